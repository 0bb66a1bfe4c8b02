"""ResNet-50 (Section 3, Appendix B.1.1): torchvision's.

Its stem is left as it is, a 7×7 convolution of stride 2 and a 3×3 max pool of stride 2: the paper
names no other for Tiny-ImageNet's 64×64 images, whose maps are 16×16 in the first stage and 2×2 in
the last. (The ResNet-50 in the paper's code has a 3×3 stem and a fixed 4×4 pool, which fits 32×32
inputs only.)
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

PUBLISHED = (64, 128, 256, 512)


class ResNet50(ResNet):
    """torchvision's ResNet-50; ``widths`` are of the 3×3 convolutions in its four stages.

    Blocks are 4 times as wide outside. At the published widths and with three channels the weights
    are those that ``torchvision.models.resnet50`` draws. ``shrink``: see `Net`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        widths: tuple[int, ...] = PUBLISHED,
        norm: str = "batch",
        shortcut: str = "conv1x1",
        shrink: int = 1,
    ) -> None:
        self.shrink = shrink
        self._widths = dict(zip(PUBLISHED, widths))
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=classes)
        stem = widths[0]
        if (shape[0], stem) != (3, PUBLISHED[0]):
            self.conv1 = nn.Conv2d(shape[0], stem, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = nn.BatchNorm2d(stem)
        if widths[3] != PUBLISHED[3]:
            self.fc = nn.Linear(4 * widths[3], classes)

    def _make_layer(
        self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        """torchvision's, which asks for stages of the published widths."""
        if planes == PUBLISHED[0]:
            self.inplanes = self._widths[planes]
        return super()._make_layer(block, self._widths[planes], blocks, stride, dilate)

    def forward(self, x: Tensor) -> Tensor:
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        return super().forward(x)
