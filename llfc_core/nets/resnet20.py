"""ResNet-20 (He et al. 2016, Section 4.2), with BatchNorm or with LayerNorm.

The spawned networks of Appendix B.1.1 have BatchNorm, those that are matched (B.1.2) LayerNorm and
32 times the width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet20(nn.Module):
    """``conv1, norm1``, blocks ``layer1.0 … layer3.2``, ``fc``; inputs ``(n, C, H, W)``.

    Stages 2 and 3 begin with a stride of 2. The features of the paper's "block 1-1" are the
    activation that ends ``layer1.0``.

    Parameters
    ----------
    widths
        Channels of the three stages; 16, 32, 64 have 0.27M parameters.
    norm
        ``"batch"``, or ``"layer"``: LayerNorm over the channels at each pixel, as Git Re-Basin has.
    shortcut
        Where shapes change: ``"pad"``, every second pixel and channels of zeros on both sides
        (He et al.'s option A, which the paper's code has; no parameters, but stages' units are tied
        to one another); ``"conv1x1"``, a 1×1 convolution of stride 2 and a norm (option B; Frankle
        et al. 2020); ``"conv3x3"``, a 3×3 one and a norm (Git Re-Basin).
    shrink
        See `Net`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        widths: tuple[int, ...] = (16, 32, 64),
        norm: str = "batch",
        shortcut: str = "pad",
        shrink: int = 1,
    ) -> None:
        super().__init__()
        self.shrink = shrink
        channels = widths[0]
        self.conv1 = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        self.norm1 = _norm(norm, channels)
        for stage, width in enumerate(widths, start=1):
            blocks = []
            for i in range(3):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(Block(channels, width, stride, norm, shortcut))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        x = F.relu(self.norm1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """σ(shortcut(x) + norm2(conv2(σ(norm1(conv1(x))))))."""

    def __init__(self, channels: int, width: int, stride: int, norm: str, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, width)
        if stride == 1 and channels == width:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = Pad(channels, width, stride)
        else:
            size = {"conv1x1": 1, "conv3x3": 3}[shortcut]
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
                _norm(norm, width),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class Pad(nn.Module):
    """Every ``stride``-th pixel, and channels of zeros before and after to make ``width``."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        if width < channels:
            raise ValueError(
                f"a shortcut can pad {channels} channels, not cut them to {width}: "
                "let widths grow, or take shortcut='conv1x1'"
            )
        before = (width - channels) // 2
        self.stride, self.pads = stride, (0, 0, 0, 0, before, width - channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pads)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(n, C, H, W)`` at each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # Without this the channels would come last in memory, and convolutions in that layout
        # have crashed on CPUs.
        return y.contiguous() if x.is_contiguous() else y


def _norm(norm: str, channels: int) -> nn.Module:
    # flax' epsilon in LayerNorm, which Git Re-Basin has.
    return nn.BatchNorm2d(channels) if norm == "batch" else ChannelNorm(channels, eps=1e-6)
