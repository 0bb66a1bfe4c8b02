"""The GPU kernels, in Triton: imported only where Triton is, for tensors on a GPU.

A program sums `SPLIT` coordinates of one row in float64; the parts of a row are then added up in
order. No atomics: the same bits come out each time.

``TRITON_INTERPRET=1`` runs them on a CPU, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # coordinates at a time
SPLIT = 16 * BLOCK  # of a row, to a program: short rows need no second step, long ones fill the GPU


@triton.jit
def _dots(f_at, a_at, b_at, out_at, d, splits, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    fa = tl.zeros((BLOCK,), tl.float64)
    fb = tl.zeros((BLOCK,), tl.float64)
    ff = tl.zeros((BLOCK,), tl.float64)
    for step in range(STEPS):
        column = (split * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = column < d
        f = tl.load(f_at + row * d + column, mask=inside, other=0.0).to(tl.float64)
        a = tl.load(a_at + row * d + column, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(b_at + row * d + column, mask=inside, other=0.0).to(tl.float64)
        fa += f * a
        fb += f * b
        ff += f * f
    to = out_at + (row * splits + split) * 3
    tl.store(to, tl.sum(fa))
    tl.store(to + 1, tl.sum(fb))
    tl.store(to + 2, tl.sum(ff))


@triton.jit
def _pair_sums(x_at, y_at, out_at, d, splits, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    xx = tl.zeros((BLOCK,), tl.float64)
    xy = tl.zeros((BLOCK,), tl.float64)
    yy = tl.zeros((BLOCK,), tl.float64)
    dd = tl.zeros((BLOCK,), tl.float64)
    for step in range(STEPS):
        column = (split * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = column < d
        x = tl.load(x_at + row * d + column, mask=inside, other=0.0).to(tl.float64)
        y = tl.load(y_at + row * d + column, mask=inside, other=0.0).to(tl.float64)
        xx += x * x
        xy += x * y
        yy += y * y
        dd += (x - y) * (x - y)
    to = out_at + (row * splits + split) * 4
    tl.store(to, tl.sum(xx))
    tl.store(to + 1, tl.sum(xy))
    tl.store(to + 2, tl.sum(yy))
    tl.store(to + 3, tl.sum(dd))


def dots(features: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`kernels.dots`. One launch a feature: a and b come from the GPU's cache after the first."""
    a, b = a.contiguous(), b.contiguous()
    n, d = a.shape
    splits = triton.cdiv(d, SPLIT)
    parts = a.new_empty(len(features), n, splits, 3, dtype=torch.float64)
    for k, f in enumerate(features):
        _dots[n, splits](f.contiguous(), a, b, parts[k], d, splits, BLOCK, SPLIT // BLOCK)
    return parts.sum(dim=2)


def pair_sums(x: Tensor, y: Tensor) -> Tensor:
    """`kernels.pair_sums`."""
    n, d = x.shape
    splits = triton.cdiv(d, SPLIT)
    parts = x.new_empty(n, splits, 4, dtype=torch.float64)
    _pair_sums[n, splits](x.contiguous(), y.contiguous(), parts, d, splits, BLOCK, SPLIT // BLOCK)
    return parts.sum(dim=1)
