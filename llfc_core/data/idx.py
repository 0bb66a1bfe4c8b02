"""MNIST and Fashion-MNIST, in the IDX format in which both are published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from llfc_core.data.dataset import DataCorrupt, Dataset, from_arrays
from llfc_core.data.files import fetch, missing

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def load_mnist(data_dir: Path, download: bool) -> Dataset:
    """60,000 and 10,000 handwritten digits, 28×28, from ``data_dir/MNIST/raw``."""
    folder = data_dir / "MNIST" / "raw"
    return _load("mnist", "MNIST", [folder], download, (0.1307,), (0.3081,))


def load_fashion_mnist(data_dir: Path, download: bool) -> Dataset:
    """60,000 and 10,000 pieces of clothing, 28×28, from ``data_dir/FashionMNIST/raw`` or Debian."""
    folders = [data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION]
    return _load("fashion-mnist", "FashionMNIST", folders, download, (0.2860,), (0.3530,))


def _load(
    name: str,
    published_as: str,
    folders: list[Path],
    download: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """The first of ``folders`` that has all four files; downloads go to the first.

    ``published_as`` names torchvision's class, which knows the addresses and checksums.
    """
    paths = next((found for folder in folders if (found := _find(folder))), None)
    if paths is None and download:
        from torchvision import datasets  # takes seconds: only for this

        published = getattr(datasets, published_as)
        for filename, md5 in published.resources:
            fetch([mirror + filename for mirror in published.mirrors], folders[0] / filename, md5)
        paths = _find(folders[0])
    if paths is None:
        raise missing(name, (f"{folder}/{file}[.gz]" for folder in folders for file in FILES))
    train, test = _read_split(*paths[:2]), _read_split(*paths[2:])
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataCorrupt(
            f"{paths[2]}: images of {test[0].shape[1:]}, but {train[0].shape[1:]} in {paths[0]}"
        )
    return from_arrays(name, train, test, 10, mean, std)


def _find(folder: Path) -> list[Path] | None:
    """The four `FILES`, each as it is or gzipped, or None if one is not in ``folder``."""
    paths = []
    for file in FILES:
        candidates = (folder / file, folder / f"{file}.gz")
        path = next((c for c in candidates if c.is_file()), None)
        if path is None:
            return None
        paths.append(path)
    return paths


def _read_split(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataCorrupt(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}"
        )
    if images.size == 0:
        raise DataCorrupt(f"{images_path}: no images")
    if labels.max() > 9:
        raise DataCorrupt(f"{labels_path}: labels must be in 0..9, but one is {labels.max()}")
    return images[:, None], labels


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes, gzipped if its name ends in .gz.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values, last dimension fastest.

    Raises
    ------
    DataCorrupt
        Not an IDX file of bytes with so many ``dimensions``, or not of the length it announces.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataCorrupt(f"{path}: it does not decompress ({error})") from error
    magic = bytes([0, 0, 8, dimensions])
    header = 4 + 4 * dimensions
    if content[:4] != magic:
        raise DataCorrupt(f"{path}: it begins with {content[:4].hex()!r}, not {magic.hex()!r}")
    if len(content) < header:
        raise DataCorrupt(f"{path}: it ends after {len(content)} bytes, within its header")
    shape = [int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4)]
    if len(content) - header != math.prod(shape):
        raise DataCorrupt(
            f"{path}: {math.prod(shape)} bytes announced ({' × '.join(map(str, shape))}), "
            f"but {len(content) - header} there"
        )
    # A copy, as an array over bytes is read-only.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
