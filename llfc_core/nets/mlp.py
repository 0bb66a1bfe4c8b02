"""The multi-layer perceptron of Section 3 and Appendix B.1: 784-512-512-512-10 on MNIST."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """ReLU network with layers ``fc1 … fcL``; the input ``(n, C, H, W)`` is flattened.

    Each hidden layer is ``H⁽ℓ⁾ = σ(W⁽ℓ⁾ H⁽ℓ⁻¹⁾ + b⁽ℓ⁾)``; the last gives logits ``(n, classes)``.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, widths: tuple[int, ...] = (512, 512, 512)
    ) -> None:
        super().__init__()
        sizes = (math.prod(shape), *widths, classes)
        self.depth = len(sizes) - 1
        for layer in range(1, self.depth + 1):
            self.add_module(f"fc{layer}", nn.Linear(sizes[layer - 1], sizes[layer]))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in range(1, self.depth):
            x = F.relu(self.get_submodule(f"fc{layer}")(x))
        return self.get_submodule(f"fc{self.depth}")(x)
