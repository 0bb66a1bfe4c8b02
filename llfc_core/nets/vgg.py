"""VGG-16 with BatchNorm for small images (Section 3, Appendix B.1.1; Table 2 names its layers).

Configuration D of Simonyan & Zisserman (2015): 13 convolutions of 3×3 in five stages, three linear
layers. As in the paper's code the feature map is averaged over its pixels before them, and the
hidden linear layers are 4096 wide (33,646,666 parameters with 10 classes). That code also drops
out half of their units; the paper does not mention it, Frankle et al. (2020) do not do it, and here
it is left out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (2, 2, 3, 3, 3)  # convolutions in each stage


class VGG16(nn.Module):
    """``conv1_1, bn1_1, … conv5_3, bn5_3, fc1, fc2, fc3``; inputs ``(n, C, H, W)`` of any size.

    Each convolution is followed by BatchNorm and ReLU, so the features of the paper's "conv 1-1"
    are the activation after ``bn1_1``. Each stage ends in a 2×2 max pool, but for maps that are one
    pixel high or wide already: 28×28 inputs go 28, 14, 7, 3, 1, 1, and 32×32 inputs 32, 16, 8, 4,
    2, 1.

    ``widths``: channels of the five stages, then units of fc1 and fc2. ``shrink``: see `Net`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        widths: tuple[int, ...] = (64, 128, 256, 512, 512, 4096, 4096),
        norm: str = "batch",
        shrink: int = 1,
    ) -> None:
        super().__init__()
        self.shrink = shrink
        channels = shape[0]
        for stage, (depth, width) in enumerate(zip(DEPTHS, widths), start=1):
            for i in range(1, depth + 1):
                self.add_module(f"conv{stage}_{i}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"bn{stage}_{i}", nn.BatchNorm2d(width))
                channels = width
        self.fc1 = nn.Linear(channels, widths[5])
        self.fc2 = nn.Linear(widths[5], widths[6])
        self.fc3 = nn.Linear(widths[6], classes)
        self._draw()

    def _draw(self) -> None:
        # He et al. (2015) for every layer but the last. torchvision's N(0, 0.01²) for linear ones
        # goes with 4096 units; in narrow networks the signal would vanish.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.fc3.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        for stage, depth in enumerate(DEPTHS, start=1):
            for i in range(1, depth + 1):
                x = self.get_submodule(f"conv{stage}_{i}")(x)
                x = F.relu(self.get_submodule(f"bn{stage}_{i}")(x))
            if min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
        x = x.mean((2, 3))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
