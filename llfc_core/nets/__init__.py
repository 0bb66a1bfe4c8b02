"""Networks by name. Each is a plain ``nn.Module`` built from a frozen, JSON-able `Net`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from llfc_core.nets.mlp import MLP

__all__ = ["MLP", "NETS", "Net", "build"]

NETS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}

# Modules draw their initial weights from torch's global generator. Modes are trained in threads,
# so whoever builds one must have that generator alone.
_global_generator = threading.Lock()


@dataclass(frozen=True)
class Net:
    """An architecture: a name in `NETS` and its widths, e.g. ``Net("mlp", (512, 512, 512))``."""

    name: str
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in NETS:
            raise ValueError(f"no network named {self.name!r}; there are {sorted(NETS)}")
        if not self.widths or any(w < 1 for w in self.widths):
            raise ValueError(f"widths must be positive, got {self.widths}")


def build(net: Net, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """The network with its initial weights θ⁽⁰⁾, on the CPU whatever device it will train on.

    Parameters
    ----------
    shape
        ``(C, H, W)`` of one input.
    seed
        Initialisation seed: the same weights on every device, whatever else was drawn before.
    """
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[net.name](shape, classes, net.widths)
