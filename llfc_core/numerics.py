"""Arithmetic that training and measurements may rely on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor


def finite(value: Tensor) -> bool:
    """Whether every entry is: neither NaN nor infinite.

    By their sum, which is not if anything is not; if it is not, for it may have overflowed, by the
    extremes, which are NaN if anything is. Far faster than looking at every entry.
    """
    if not value.numel() or not value.is_floating_point():
        return bool(value.isfinite().all())
    if bool(value.sum().isfinite()):
        return True
    low, high = value.aminmax()
    return bool(low.isfinite() & high.isfinite())


def process_wide(
    switches: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Make a context that sets global switches one that threads may be in at the same time.

    The first thread to come in sets the switches, the last to leave puts them back. Were each to
    put back what it found, one that came in while they were set would leave them so for good, and
    with them other kernels, whose sums are rounded otherwise.
    """
    lock, undo, inside = threading.Lock(), ExitStack(), 0

    @contextmanager
    def shared() -> Iterator[None]:
        nonlocal inside
        with lock:
            if inside == 0:
                undo.enter_context(switches())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if inside == 0:
                    undo.close()

    shared.__doc__ = switches.__doc__
    return shared


@process_wide
@contextmanager
def ieee() -> Iterator[None]:
    """Float32 products in IEEE float32: no TF32, no reduced precision.

    cuDNN convolutions use TF32 by default, whose 10-bit mantissa is of the size of the effects
    measured here.
    """
    matmul = torch.backends.cuda.matmul.allow_tf32
    convolution = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def repeatable_convolutions(device: torch.device) -> Iterator[None]:
    """On a GPU, only cuDNN kernels whose sums come out the same each time, chosen the same way."""
    if device.type != "cuda":  # the switches are global, and modes train in threads on a CPU
        yield
        return
    cudnn = torch.backends.cudnn
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
