"""Random crops, flips, zooms and rotations (paper, B.1), the same on every device.

B.1.1 (spawning): "random horizontal flips and random 32×32 pixel crops",
``Augmentation(crop_padding=4, flip=True)``. B.1.2 (ResNet-20 × 32) adds "random resizes of the
image between 0.8× and 1.2×, and random rotations between ±30°", ``zoom=(0.8, 1.2), rotation=30``.
Parameters are drawn on the CPU, apart from the images, so that a seed means the same augmentation
whatever device the images are on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AugmentationParameters:
    """What is done to each of n images.

    Attributes
    ----------
    top, left
        int64 ``(n,)`` in 0..2p: where the crop begins in the image padded by p; p leaves it as is.
    flip
        bool ``(n,)``.
    zoom
        float64 ``(n,)``: magnification.
    angle
        float64 ``(n,)``, degrees, counter-clockwise.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    zoom: Tensor
    angle: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, index: slice | Tensor) -> AugmentationParameters:
        """The parameters of some of the images."""
        return AugmentationParameters(*(t[index] for t in self._tensors()))

    def to(self, device: torch.device | str) -> AugmentationParameters:
        return AugmentationParameters(*(t.to(device) for t in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.top, self.left, self.flip, self.zoom, self.angle


@dataclass(frozen=True)
class Augmentation:
    """Which random changes images undergo in training; by default none.

    Attributes
    ----------
    crop_padding
        p pixels of black (0, before normalisation) are put around the image, then a window of the
        image's size is cut out at one of (2p+1)² places, all equally likely.
    flip
        Mirror left and right with probability ½ (after the crop).
    zoom
        Magnify about the centre by a factor drawn uniformly from (lowest, highest), then cut or
        pad with black to the image's size.
    rotation
        Degrees: rotate about the centre by an angle drawn uniformly from ±rotation.
    """

    crop_padding: int = 0
    flip: bool = False
    zoom: tuple[float, float] | None = None
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must not be negative, got {self.crop_padding}")
        if self.zoom is not None:
            lowest, highest = self.zoom
            if not 0 < lowest <= highest < float("inf"):
                raise ValueError(f"zoom must be (lowest, highest) with 0 < lowest, got {self.zoom}")
            # A list, as JSON gives, would make this unhashable.
            object.__setattr__(self, "zoom", (float(lowest), float(highest)))
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be in 0..180 degrees, got {self.rotation}")
        # 30 and 30.0, 0 and False are equal, but not in JSON, and equal recipes share a key.
        object.__setattr__(self, "rotation", float(self.rotation))
        object.__setattr__(self, "flip", bool(self.flip))

    @property
    def identity(self) -> bool:
        """Whether nothing is to be done."""
        return not (self._gathers or self._warps)

    @property
    def _gathers(self) -> bool:
        return self.crop_padding > 0 or self.flip

    @property
    def _warps(self) -> bool:
        return self.zoom not in (None, (1.0, 1.0)) or self.rotation > 0

    def draw(self, n: int, generator: torch.Generator) -> AugmentationParameters:
        """Parameters for ``n`` images, on the CPU.

        Takes ``5 n`` numbers from ``generator`` (a CPU generator) whatever is switched on: the
        crops of a seed do not depend on whether images are also flipped.
        """
        top, left, flip, zoom, angle = torch.rand(5, n, dtype=torch.float64, generator=generator)
        places = 2 * self.crop_padding + 1
        lowest, highest = self.zoom or (1.0, 1.0)
        return AugmentationParameters(
            top=(top * places).long(),
            left=(left * places).long(),
            flip=(flip < 0.5) if self.flip else torch.zeros(n, dtype=torch.bool),
            zoom=lowest + (highest - lowest) * zoom,
            angle=self.rotation * (2 * angle - 1),
        )

    def __call__(self, images: Tensor, parameters: AugmentationParameters) -> Tensor:
        """Augmented images, without waiting for the device.

        Parameters
        ----------
        images
            uint8 ``(n, C, H, W)``.
        parameters
            Of n images, on the same device.

        Returns
        -------
        ``(n, C, H, W)``. Crops and flips alone give uint8 with the same bits on every device. With
        zoom or rotation it is float32 in [0, 255], equal across devices to rounding only.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) != len(parameters):
            raise ValueError(
                f"uint8 (n, C, H, W) wanted with n = {len(parameters)}, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if self._gathers:
            images = _crop_flip(images, parameters, self.crop_padding)
        if self._warps:
            return _zoom_rotate(images, parameters)
        return images


def _crop_flip(images: Tensor, parameters: AugmentationParameters, padding: int) -> Tensor:
    """One gather: out[i, c, y, x] = padded[i, c, y + top_i, x' + left_i].

    x' is W−1−x where image i is flipped and x elsewhere.
    """
    n, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4)
    x = torch.arange(width, device=device)
    columns = torch.where(parameters.flip[:, None], width - 1 - x, x) + parameters.left[:, None]
    rows = torch.arange(height, device=device) + parameters.top[:, None]
    return padded[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _zoom_rotate(images: Tensor, parameters: AugmentationParameters) -> Tensor:
    """One bilinear sampling: the output at (x, y) is the input at (x', y').

    Both count pixels from the centre, y downwards; z is the zoom and θ the angle:
    x' = (x cos θ − y sin θ) / z, y' = (x sin θ + y cos θ) / z. Black outside of the image.
    """
    height, width = images.shape[2:]
    # Written out rather than by affine_grid, whose matrix product may run in TF32 on a GPU; in
    # float64 first, as devices differ in their sines and cosines.
    radians = torch.deg2rad(parameters.angle)
    cos = (radians.cos() / parameters.zoom).float()[:, None, None]
    sin = (radians.sin() / parameters.zoom).float()[:, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    # grid_sample wants the image to span −1..1.
    grid = torch.stack(
        [(cos * x - sin * y) / (width / 2), (sin * x + cos * y) / (height / 2)], dim=-1
    )
    warped = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return warped.clamp(0, 255)  # the four weights may sum to 1 + 1e-7
