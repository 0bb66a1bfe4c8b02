"""What tells one network from another: its family's name, its widths, and a few choices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llfc_core.nets.mlp import MLP
from llfc_core.nets.resnet20 import ResNet20
from llfc_core.nets.vgg import VGG16

# Modules draw their initial weights from torch's global generator. Modes are trained in threads,
# so whoever builds one must have that generator alone.
_global_generator = threading.Lock()


@dataclass(frozen=True)
class Family:
    """What a `Net` of this name may say; the first of each choice is what it says by default.

    Attributes
    ----------
    widths
        The published ones. Other widths must be as many, but in an MLP.
    shrinks
        Whether its inputs may be made smaller.
    """

    module: Callable[..., nn.Module]
    widths: tuple[int, ...]
    norms: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    shrinks: bool = True


def _resnet50(*arguments: Any, **options: Any) -> nn.Module:
    from llfc_core.nets.resnet50 import ResNet50  # importing torchvision takes a second

    return ResNet50(*arguments, **options)


NETS: dict[str, Family] = {
    "mlp": Family(MLP, (512, 512, 512), shrinks=False),
    "vgg16": Family(VGG16, (64, 128, 256, 512, 512, 4096, 4096), norms=("batch",)),
    "resnet20": Family(
        ResNet20, (16, 32, 64), norms=("batch", "layer"), shortcuts=("pad", "conv1x1", "conv3x3")
    ),
    "resnet50": Family(_resnet50, (64, 128, 256, 512), norms=("batch",), shortcuts=("conv1x1",)),
}


@dataclass(frozen=True)
class Net:
    """An architecture, e.g. ``Net("mlp", (512, 512))`` or ``Net("resnet20").times(1 / 2)``.

    What is not said is the family's default, so that equal networks are equal and share a key.

    Attributes
    ----------
    name
        In `NETS`.
    widths
        Of the MLP's hidden layers; of VGG-16's five stages and two hidden linear layers; of
        ResNet-20's three stages; of the 3×3 convolutions in ResNet-50's four stages, whose blocks
        are 4 times as wide outside. By default the published ones.
    norm
        ``"batch"`` or ``"layer"`` (over the channels at each pixel); None where there is none.
    shortcut
        How a residual block's shortcut changes shape, see `ResNet20`; None where there is none.
    shrink
        Inputs are first averaged over squares of so many pixels a side: a quarter of the work for
        2, with the network as wide and as deep as it is.
    """

    name: str
    widths: tuple[int, ...] = ()
    norm: str | None = None
    shortcut: str | None = None
    shrink: int = 1

    def __post_init__(self) -> None:
        if self.name not in NETS:
            raise ValueError(f"no network named {self.name!r}; there are {', '.join(NETS)}")
        family = NETS[self.name]
        # A tuple: a list, as JSON gives, would make this unhashable.
        widths = tuple(self.widths) or family.widths
        if any(type(w) is not int or w < 1 for w in widths):
            raise ValueError(f"widths must be positive integers, got {widths}")
        if self.name != "mlp" and len(widths) != len(family.widths):
            raise ValueError(
                f"{self.name} has {len(family.widths)} widths, by default {family.widths}; "
                f"got {len(widths)}: {widths}"
            )
        if type(self.shrink) is not int or self.shrink < 1:
            raise ValueError(f"shrink must be a positive integer, got {self.shrink!r}")
        if self.shrink > 1 and not family.shrinks:
            raise ValueError(f"{self.name} does not shrink its inputs")
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "norm", self._chosen("norm", self.norm, family.norms))
        object.__setattr__(
            self, "shortcut", self._chosen("shortcut", self.shortcut, family.shortcuts)
        )

    def _chosen(self, what: str, value: str | None, choices: tuple[str, ...]) -> str | None:
        if value is None:
            return choices[0] if choices else None
        if value not in choices:
            known = " or ".join(map(repr, choices)) or f"no {what}"
            raise ValueError(f"{self.name} has {known}, not {what}={value!r}")
        return value

    @property
    def convolutional(self) -> bool:
        return self.name != "mlp"

    def times(self, factor: float) -> Net:
        """The same network with every width multiplied (rounded, at least 1): the paper's "32×"."""
        return replace(self, widths=tuple(max(1, round(factor * w)) for w in self.widths))


def build(net: Net, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """The network with its initial weights θ⁽⁰⁾, on the CPU whatever device it will train on.

    Parameters
    ----------
    shape
        ``(C, H, W)`` of one input.
    seed
        Initialisation seed: the same weights on every device, whatever else was drawn before.
    """
    choices = {
        name: value
        for name, value in (("norm", net.norm), ("shortcut", net.shortcut), ("shrink", net.shrink))
        if value not in (None, 1)
    }
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[net.name].module(shape, classes, net.widths, **choices)
