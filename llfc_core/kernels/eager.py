"""The kernels in eager torch: what runs on a CPU without a compiler and on a GPU without Triton.

Features go to float64 in blocks that a CPU's caches hold, so that memory is read once more or less;
products of float32 are exact in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 2**16  # coordinates of each tensor worked on at a time by a CPU
_ACCELERATED = 64  # times as many elsewhere, where launches cost


def dots(features: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`kernels.dots`."""
    out = a.new_empty(len(features), *a.shape[:1], 3, dtype=torch.float64)
    for rows in _blocks(a):
        x, y = a[rows].double(), b[rows].double()
        for k, feature in enumerate(features):
            f = feature[rows].double()
            out[k, rows] = torch.stack([(f * x).sum(1), (f * y).sum(1), (f * f).sum(1)], dim=1)
    return out


def pair_sums(x: Tensor, y: Tensor) -> Tensor:
    """`kernels.pair_sums`."""
    out = x.new_empty(*x.shape[:1], 4, dtype=torch.float64)
    for rows in _blocks(x):
        u, v = x[rows].double(), y[rows].double()
        terms = (u * u, u * v, v * v, (u - v).square_())
        out[rows] = torch.stack([t.sum(1) for t in terms], dim=1)
    return out


def _blocks(x: Tensor) -> list[slice]:
    n, d = x.shape
    rows = max(1, _BLOCK * (1 if x.device.type == "cpu" else _ACCELERATED) // max(d, 1))
    return [slice(i, i + rows) for i in range(0, n, rows)]
