"""Small networks of a user's own, trained by plain PyTorch in a second."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4


def blobs(n: int = 300, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Points in 8 dimensions about one of three centres a class."""
    centres = 1.4 * torch.randn(3 * CLASSES, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(3 * CLASSES, (n,), generator=generator)
    return centres[which] + torch.randn(n, 8, generator=generator), which % CLASSES


def mlp(seed: int = 0, norm: bool = False, width: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width)]
        layers += [nn.BatchNorm1d(width)] if norm else []
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, CLASSES)).eval()


def trained(start: nn.Module, steps: int, seed: int) -> nn.Module:
    net = copy.deepcopy(start).train()
    x, y = blobs(2000, seed=2)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=8e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (50,), generator=order)
        optimiser.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return net.eval()


@cache
def three(norm: bool = False) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A and B, spawned, and C, trained apart. Shared: not to be changed."""
    parent = trained(mlp(0, norm), 20, 0)
    a, b = (trained(parent, 250, seed) for seed in (1, 2))
    return a, b, trained(mlp(3, norm), 250, 3)


@cache
def line() -> tuple[nn.Module, nn.Module]:
    """A before its training, and early in it."""
    return mlp(0), trained(mlp(0), 20, 0)


def pair(**more: Any) -> dict[str, Any]:
    """What a user's function returns."""
    a, b, c = three()
    return {"a": a, "b": b, "data": blobs(600), "independent": c, **more}


def apart() -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    """Modes trained apart, for matching."""
    a, _, c = three()
    return a, c, blobs(600)
