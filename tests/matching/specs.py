"""Small networks with their permutation specs written by hand, and planted pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.matching.spec import Axis, Group, Layout, PermutationSpec


class Numbers:
    """Gives out unit numbers, group by group."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.units: dict[str, np.ndarray] = {}
        self._next = 0

    def group(self, name: str, size: int, parent: str | None = None) -> np.ndarray:
        """A new group; its numbers ``(b, n)``."""
        blocks = 1 if parent is None else self.groups[parent].size
        self.groups[name] = Group(name, size, parent, blocks)
        numbers = np.arange(self._next, self._next + blocks * size).reshape(blocks, size)
        self._next += blocks * size
        self.units[name] = numbers
        return numbers


def axis(units: np.ndarray, positions: int = 1) -> Axis:
    """Each unit with its positions in a row: the channels of a flattened C×H×W, say.

    One-dimensional; `spec` puts it where it belongs among a tensor's axes.
    """
    flat = units.reshape(-1)
    return Axis(np.repeat(flat, positions), np.tile(np.arange(positions), len(flat)))


def spec(
    module: nn.Module,
    numbers: Numbers,
    layouts: Mapping[str, Layout],
    features: Mapping[str, Layout],
) -> PermutationSpec:
    """What is not in ``layouts`` is fixed."""

    def placed(layout: Layout) -> Layout:
        shapes = [[-1 if j == k else 1 for j in range(len(layout))] for k in range(len(layout))]
        return tuple(
            a
            if a is None or a.units.ndim > 1
            else Axis(a.units.reshape(shape), a.positions.reshape(shape))
            for a, shape in zip(layout, shapes, strict=True)
        )

    state = module.state_dict()
    return PermutationSpec(
        groups=numbers.groups,
        units=numbers.units,
        layouts={k: placed(layouts.get(k, (None,) * v.ndim)) for k, v in state.items()},
        shapes={k: tuple(v.shape) for k, v in state.items()},
        features={k: placed(layout) for k, layout in features.items()},
    )


# ---- networks -----------------------------------------------------------------------------------


class MLP(nn.Module):
    """fc1 … fcL with ReLUs."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.depth = len(sizes) - 1
        for i in range(1, len(sizes)):
            self.add_module(f"fc{i}", nn.Linear(sizes[i - 1], sizes[i]))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth):
            x = F.relu(self.get_submodule(f"fc{i}")(x))
        return self.get_submodule(f"fc{self.depth}")(x)


def mlp(*sizes: int) -> tuple[MLP, PermutationSpec]:
    module, numbers = MLP(*sizes), Numbers()
    layouts: dict[str, Layout] = {}
    features: dict[str, Layout] = {}
    before: Axis | None = None
    for i, size in enumerate(sizes[1:], 1):
        here = None if i == module.depth else axis(numbers.group(f"fc{i}.weight", size))
        layouts[f"fc{i}.weight"] = (here, before)
        layouts[f"fc{i}.bias"] = (here,)
        features[f"fc{i}"] = (None, here)
        before = here
    return module, spec(module, numbers, layouts, features)


class CNN(nn.Module):
    """Two convolutions, BatchNorm on one, C×H×W flattened into a linear layer."""

    def __init__(self, c1: int, c2: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, c1, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(c1)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(c2 * 9, hidden)
        self.fc2 = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:  # (n, 1, 6, 6)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x)).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def cnn(c1: int = 6, c2: int = 5, hidden: int = 7) -> tuple[CNN, PermutationSpec]:
    module, numbers = CNN(c1, c2, hidden), Numbers()
    one = axis(numbers.group("conv1.weight", c1))
    channels = numbers.group("conv2.weight", c2)
    two, flat = axis(channels), axis(channels, 9)
    three = axis(numbers.group("fc1.weight", hidden))
    layouts: dict[str, Layout] = {
        "conv1.weight": (one, None, None, None),
        "conv1.bias": (one,),
        **{f"bn1.{k}": (one,) for k in ("weight", "bias", "running_mean", "running_var")},
        "conv2.weight": (two, one, None, None),
        "conv2.bias": (two,),
        "fc1.weight": (three, flat),
        "fc1.bias": (three,),
        "fc2.weight": (None, three),
    }
    features: dict[str, Layout] = {
        "bn1": (None, one, None, None),
        "conv2": (None, two, None, None),
        "fc1": (None, three),
    }
    return module, spec(module, numbers, layouts, features)


class Residual(nn.Module):
    """A residual stream h ← relu(h + W₂ relu(W₁ h)); with ``square``, h ← relu(h + W h)."""

    def __init__(self, d: int, inner: int, blocks: int, square: bool, inputs: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(d, d)})
            if square
            else nn.ModuleDict({"up": nn.Linear(d, inner), "down": nn.Linear(inner, d)})
            for _ in range(blocks)
        )
        self.head = nn.Linear(d, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            inner = block["up"](h)
            h = F.relu(h + (block["down"](F.relu(inner)) if "down" in block else inner))
        return self.head(h)


def residual(
    d: int = 8, inner: int = 6, blocks: int = 3, square: bool = False, inputs: int = 8
) -> tuple[Residual, PermutationSpec]:
    module, numbers = Residual(d, inner, blocks, square, inputs), Numbers()
    stream = axis(numbers.group("stem.weight", d))
    layouts: dict[str, Layout] = {
        "stem.weight": (stream, None),
        "stem.bias": (stream,),
        "head.weight": (None, stream),
    }
    features: dict[str, Layout] = {"stem": (None, stream)}
    for i in range(blocks):
        name = f"blocks.{i}.up"
        if square:
            layouts |= {f"{name}.weight": (stream, stream), f"{name}.bias": (stream,)}
        else:
            hidden = axis(numbers.group(f"{name}.weight", inner))
            layouts |= {
                f"{name}.weight": (hidden, stream),
                f"{name}.bias": (hidden,),
                f"blocks.{i}.down.weight": (stream, hidden),
                f"blocks.{i}.down.bias": (stream,),
            }
            features[name] = (None, hidden)
        # Sums of the stream have no module of their own: Taps names them after the function.
        features["relu" if i == 0 else f"relu#{i + 1}"] = (None, stream)
    return module, spec(module, numbers, layouts, features)


class Blocks(nn.Module):
    """A grouped convolution: b groups, interchangeable, with n inputs and m outputs each.

    ``scale`` belongs to the groups themselves.
    """

    def __init__(self, b: int, n: int, m: int, grouped: bool = True) -> None:
        super().__init__()
        self.m = m
        self.wide = nn.Conv2d(3, b * n, 1)
        self.grouped = nn.Conv2d(b * n, b * m, 3, padding=1, groups=b)
        self.scale = nn.Parameter(torch.ones(b))
        self.narrow = nn.Conv2d(b * m, 4, 1)

    def forward(self, x: Tensor) -> Tensor:  # (n, 3, H, W)
        h = F.relu(self.grouped(F.relu(self.wide(x))))
        h = h * self.scale.repeat_interleave(self.m)[:, None, None]
        return self.narrow(h).mean((2, 3))


def blocks(b: int = 3, n: int = 4, m: int = 2) -> tuple[Blocks, PermutationSpec]:
    module, numbers = Blocks(b, n, m), Numbers()
    groups = numbers.group("groups", b)
    ins = numbers.group("wide.weight", n, "groups")
    outs = numbers.group("grouped.weight", m, "groups")
    # Input u of the grouped weight is unit u of the group that the output is in.
    per_output = np.repeat(ins, m, axis=0).reshape(b * m, n, 1, 1)
    layouts: dict[str, Layout] = {
        "wide.weight": (axis(ins), None, None, None),
        "wide.bias": (axis(ins),),
        "grouped.weight": (
            axis(outs),
            Axis(per_output, np.zeros_like(per_output)),
            None,
            None,
        ),
        "grouped.bias": (axis(outs),),
        "scale": (axis(groups),),
        "narrow.weight": (None, axis(outs), None, None),
    }
    features: dict[str, Layout] = {
        "wide": (None, axis(ins), None, None),
        "grouped": (None, axis(outs), None, None),
    }
    return module, spec(module, numbers, layouts, features)


class Heads(nn.Module):
    """Units within blocks, and no tensor that holds two of the groups: a tree solved exactly."""

    def __init__(self, b: int, n: int) -> None:
        super().__init__()
        self.b = b
        self.up = nn.Linear(5, b * n)
        self.gate = nn.Linear(5, b)
        self.down = nn.Linear(b * n, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.up(x)).unflatten(1, (self.b, -1))
        weight = torch.softmax(h.square().sum(2) + self.gate(x), dim=1)  # block by block
        return self.down((weight[:, :, None] * h).flatten(1))


def heads(b: int = 4, n: int = 3) -> tuple[Heads, PermutationSpec]:
    module, numbers = Heads(b, n), Numbers()
    outer = numbers.group("gate.weight", b)
    inner = numbers.group("up.weight", n, "gate.weight")
    layouts: dict[str, Layout] = {
        "up.weight": (axis(inner), None),
        "up.bias": (axis(inner),),
        "gate.weight": (axis(outer), None),
        "gate.bias": (axis(outer),),
        "down.weight": (None, axis(inner)),
    }
    return module, spec(module, numbers, layouts, {"up": (None, axis(inner))})


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    # builder, shape of an input
    "mlp": (lambda: mlp(5, 7, 6, 8, 4), (5,)),
    "cnn": (cnn, (1, 6, 6)),
    "residual": (residual, (8,)),
    "square": (lambda: residual(square=True), (8,)),
    "blocks": (blocks, (3, 4, 4)),
    "heads": (heads, (5,)),
}


# ---- states -------------------------------------------------------------------------------------


def randomised(module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A state in which no two units are alike; variances are positive, counters are kept."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            state[name] = value.clone()
            continue
        fan = max(1, value[0].numel()) if value.ndim > 1 else 4
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64) / fan**0.5
        state[name] = (drawn.abs() + 0.5 if name.endswith("var") else drawn).to(dtype)
    return state


def noisy(state: Mapping[str, Tensor], noise: float, seed: int) -> dict[str, Tensor]:
    """Gaussian noise of ``noise`` times each tensor's own root mean square."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value
        + noise
        * value.square().mean().sqrt()
        * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point() and not name.endswith("var")
        else value
        for name, value in state.items()
    }


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batches(
    shape: Sequence[int], n: int, seed: int = 0, size: int = 8
) -> list[tuple[Tensor, Tensor]]:
    """``n`` random inputs with labels in 0 … 3, ``size`` at a time."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    y = torch.randint(4, (n,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))
