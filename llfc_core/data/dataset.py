"""What a data set is: uint8 images and labels of a train and a test split, and their digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class DataError(RuntimeError):
    """A data set cannot be had; the message says why and what to do."""


class DataMissing(DataError):
    """The files are not there (or could not be downloaded)."""


class DataCorrupt(DataError):
    """A file is there but is not what it should be; the message names the file."""


@dataclass(frozen=True, eq=False)
class Split:
    """One side of a data set.

    Attributes
    ----------
    images
        uint8 ``(n, C, H, W)``.
    labels
        int64 ``(n,)``, from 0.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Size:
    """As much of a data set as the cost of training on it depends on."""

    n_train: int
    shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split on one device. Shared by all who load it: never write to it.

    Attributes
    ----------
    mean, std
        Per channel, of pixel values scaled to [0, 1]: what `normalise` subtracts and divides by.
    digest
        sha256 (hexadecimal) of the splits, ``classes``, ``mean`` and ``std``, but not of ``name``
        or the device. Computed if not given.

    Raises
    ------
    ValueError
        Shapes, types or labels that do not fit together.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""

    def __post_init__(self) -> None:
        if self.digest:  # a copy of a data set that was checked; looking at labels costs a sync
            return
        for split in (self.train, self.test):
            _check(split, self.classes)
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise ValueError("train and test images differ in shape")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(
                f"mean and std must have one value for each of {self.shape[0]} channels"
            )
        object.__setattr__(self, "digest", _digest(self))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def size(self) -> Size:
        return Size(len(self.train.labels), self.shape, self.classes)

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``, under the same digest."""
        train, test = (
            Split(s.images.to(device), s.labels.to(device)) for s in (self.train, self.test)
        )
        return replace(self, train=train, test=test)

    def normalise(self, images: Tensor) -> Tensor:
        """(x − 255·mean) / (255·std) per channel.

        Parameters
        ----------
        images
            ``(..., C, H, W)``, uint8, or floating with values in [0, 255] (as `Augmentation` gives
            them), on any device.

        Returns
        -------
        float32, same shape. One subtraction and one product, each rounded once, so that every
        device gives the same bits.
        """
        shift, factor = self._constants
        return images.float().sub(shift.to(images.device)).mul(factor.to(images.device))

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        # Kept on the device: made afresh, they would be copied there once a batch. Ordinary
        # tensors even when first needed in inference mode, as autograd may meet them later.
        with torch.inference_mode(False):
            shift = torch.tensor([255 * m for m in self.mean], dtype=torch.float32)
            factor = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float32)
            return shift.view(-1, 1, 1).to(self.device), factor.view(-1, 1, 1).to(self.device)


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """A `Dataset` of ``(images, labels)`` arrays: uint8 ``(n, C, H, W)`` and integers ``(n,)``."""
    train_split, test_split = (
        Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
        for images, labels in (train, test)
    )
    return Dataset(name, train_split, test_split, classes, mean, std)


def _check(split: Split, classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images must be uint8 (n, C, H, W), not {images.dtype} {images.shape}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be int64 ({len(images)},) as there are {len(images)} images, "
            f"not {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("a split must not be empty")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, but span {lowest}..{highest}")


def _digest(dataset: Dataset) -> str:
    # Shapes and types go in beside the bytes, or different arrays could share their bytes.
    sha = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        for tensor in (split.images, split.labels):
            array = tensor.cpu().contiguous().numpy()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            sha.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(little.data)
    constants = [float(v).hex() for v in (*dataset.mean, *dataset.std)]
    sha.update(f"{dataset.classes} {' '.join(constants)}\n".encode())
    return sha.hexdigest()
