"""Arithmetic that training and measurements may rely on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
