"""Sums over features, each in one read of them: what every metric is made of.

One small interface, three paths:

``native``
    C, compiled on first use in half a second and kept (`native`): CPU tensors, where there is a
    compiler.
``triton``
    CUDA tensors, where there is Triton (`triton_gpu`).
``eager``
    torch alone (`eager`), everywhere else.

All multiply and add in float64, in which products of float32 are exact: the paths differ by the
order of the sums, some 1e-15 of ‖x‖‖y‖. `reference` has the straightforward way, for tests and
benchmarks. ``LLFC_KERNELS=eager`` in the environment, or `using`, asks for another path.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from llfc_core.classification import errors
from llfc_core.kernels import eager, native

__all__ = [
    "Path",
    "add_cross_gram",
    "add_gram",
    "dots",
    "lmc",
    "pair_sums",
    "path",
    "using",
    "whole_gram",
]

Path = Literal["native", "triton", "eager"]

_forced: ContextVar[Path | None] = ContextVar("_forced", default=None)

GRAM_ROWS = 256  # of a Gram matrix, computed and kept together up to the diagonal


@contextmanager
def using(which: Path) -> Iterator[None]:
    """Within, in this thread, the kernels take this path. Raises ValueError where there is none."""
    if which == "native" and native.library() is None:
        raise ValueError("no C compiler that works was found")
    if which == "triton" and not _has_triton():
        raise ValueError("Triton is not installed")
    token = _forced.set(which)
    try:
        yield
    finally:
        _forced.reset(token)


def path(like: Tensor) -> Path:
    """The path that tensors on the device of ``like`` take."""
    forced = _forced.get() or os.environ.get("LLFC_KERNELS")
    if forced == "eager":
        return "eager"
    if like.device.type == "cuda" or forced == "triton":
        return "triton" if _has_triton() else "eager"
    return "native" if like.device.type == "cpu" and native.library() is not None else "eager"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def dots(features: Sequence[Tensor] | Tensor, a: Tensor, b: Tensor, check: bool = True) -> Tensor:
    """⟨f,a⟩, ⟨f,b⟩, ⟨f,f⟩ of every data point for each of K features, float64 ``(K, n, 3)``.

    With ⟨a,a⟩, ⟨a,b⟩, ⟨b,b⟩ that is all cosine_α and coef_α need (`llfc_core.metrics.llfc`).

    Parameters
    ----------
    features
        K tensors ``(n, d)``, or one ``(K, n, d)``: f⁽ℓ⁾(θ_α) for K values of α.
    a, b
        ``(n, d)``: f⁽ℓ⁾(θ_A), f⁽ℓ⁾(θ_B). Any real floating type, any strides.
    check
        Refuse sums that are not finite. Without, they are given as they are (on a GPU, looking at
        them waits for it).

    Raises
    ------
    ValueError
        Unlike shapes or devices, tensors that are not 2-D; an infinite or NaN entry.
    TypeError
        Anything but real floating point.
    """
    features = [f.detach() for f in features]
    _same(*features, a, b)
    if not features:
        return a.new_empty(0, len(a), 3, dtype=torch.float64)
    return _checked(_module(a).dots(features, a.detach(), b.detach()), check)


def pair_sums(x: Tensor, y: Tensor, check: bool = True) -> Tensor:
    """⟨x,x⟩, ⟨x,y⟩, ⟨y,y⟩, ‖x − y‖² of every data point: ``(n, d)`` twice → float64 ``(n, 4)``.

    ‖x − y‖² is a sum of squares of differences, exact for float32 however close x and y are: what
    the first three give by subtraction is not. ``check`` and errors: as for `dots`.
    """
    _same(x, y)
    return _checked(_module(x).pair_sums(x.detach(), y.detach()), check)


def add_gram(blocks: list[Tensor], x: Tensor) -> None:
    """Adds xᵀx to the lower triangle of a Gram matrix, in float64: half of the work and memory.

    blocks: 256 rows each, up to the diagonal; filled with zeros first if empty. x: ``(n, d)``.
    """
    d, x = x.shape[1], x.double()
    for i, start in enumerate(range(0, d, GRAM_ROWS)):
        stop = min(start + GRAM_ROWS, d)
        if len(blocks) == i:
            blocks.append(x.new_zeros(stop - start, stop))
        blocks[i].addmm_(x[:, start:stop].T, x[:, :stop])


def whole_gram(blocks: list[Tensor]) -> Tensor:
    """What `add_gram` has added up: float64 ``(d, d)``."""
    d = blocks[-1].shape[1]
    gram = blocks[0].new_empty(d, d)
    for i, block in enumerate(blocks):
        start, stop = i * GRAM_ROWS, block.shape[1]
        gram[start:stop, :stop] = block
        gram[:start, start:stop] = block[:, :start].T
    return gram


def add_cross_gram(gram: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """gram += xᵀy in float64, in place; returned. x ``(n, d)``, y ``(n, e)``, gram ``(d, e)``."""
    return gram.addmm_(x.double().T, y.double())


def lmc(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and error, of K logits: ``(K, n, classes)`` → float64 ``(K, n)`` each.

    labels: int64 ``(n,)``. Error is 1 where the label's logit is not strictly the largest
    (`llfc_core.classification`), else 0.
    """
    k, n, classes = logits.shape
    flat, again = logits.reshape(k * n, classes), labels.repeat(k)
    loss = torch.nn.functional.cross_entropy(flat.double(), again, reduction="none")
    return loss.view(k, n), errors(flat, again).double().view(k, n)


def _same(*tensors: Tensor) -> None:
    first = tensors[-1]
    for t in tensors:
        if t.shape != first.shape or t.dim() != 2:
            shapes = " and ".join(sorted({str(tuple(t.shape)) for t in tensors}))
            raise ValueError(f"features must all be (n, d) of one shape: got {shapes}")
        if t.device != first.device:
            raise ValueError(f"features must be on one device: got {t.device} and {first.device}")
        if not t.is_floating_point():
            raise TypeError(f"features must be real floating point, got {t.dtype}")


def _checked(sums: Tensor, check: bool) -> Tensor:
    # A square is finite only if the entry is, up to 1e154, where float64's squares end.
    if check and not bool(sums.isfinite().all()):
        raise ValueError("features must be finite: found inf or NaN")
    return sums


def _module(like: Tensor):  # type: ignore[no-untyped-def]
    which = path(like)
    if which == "triton":
        from llfc_core.kernels import triton_gpu

        return triton_gpu
    return native if which == "native" else eager
