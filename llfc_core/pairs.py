"""Pairs of modes, the line between them, and the controls that look like pairs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llfc_core.numerics import finite

State = Mapping[str, Tensor]

TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class ModePair:
    """Two modes θ_A, θ_B of one network and how they are linked.

    Attributes
    ----------
    link
        What is said to connect them: "spawned", "independent", "shuffled", …
    module
        Any instance of the network; its own weights do not matter.
    a, b
        State dicts with the module's names and shapes.
    between
        θ_α for α between 0 and 1, where it is more than `interpolate`: with BatchNorm's statistics
        re-estimated, say.
    """

    link: str
    module: nn.Module
    a: State
    b: State
    between: Callable[[float], State] | None = None

    def __post_init__(self) -> None:
        check_states(self.module, self.a, self.b)


def check_states(module: nn.Module, a: State, b: State) -> None:
    """Refuse, with a reason, two state dicts that are not weights of ``module``.

    Raises
    ------
    ValueError
        Names, shapes or dtypes differ from the module's or each other's, or a value is not finite.
    """
    own = module.state_dict()
    for which, state in (("A", a), ("B", b)):
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(f"mode {which} lacks {missing[0]!r} ({len(missing)} names missing)")
        if foreign := sorted(state.keys() - own.keys()):
            raise ValueError(f"mode {which} has {foreign[0]!r}, which the network has not")
        for name, value in state.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"mode {which}: {name!r} has shape {tuple(value.shape)}, "
                    f"the network's has {tuple(own[name].shape)}"
                )
            if not finite(value):
                raise ValueError(f"mode {which}: {name!r} has values that are not finite")
    for name in own:
        if a[name].dtype != b[name].dtype:
            raise ValueError(f"{name!r} is {a[name].dtype} in A and {b[name].dtype} in B")


def interpolate(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """θ_α = αθ_A + (1−α)θ_B, entry by entry, as the paper writes it: α = 1 is A.

    BatchNorm's running statistics are interpolated like weights; counters are A's.
    """
    return {
        name: alpha * value + (1 - alpha) * b[name] if value.is_floating_point() else value
        for name, value in a.items()
    }


def loss_barrier(
    pair: ModePair,
    loss: Callable[[nn.Module], float | Tensor],
    alphas: Sequence[float] = TENTHS,
) -> float:
    """max_α of loss(θ_α) over the chord α·loss(θ_A) + (1−α)·loss(θ_B) (Frankle et al. 2020).

    Parameters
    ----------
    loss
        Given the network with the weights θ_α, in eval mode: a number. Called once for each α, and
        for the ends; what it returns is in its own unit, and so is the barrier.

    Returns
    -------
    The barrier, 0 at least: the ends are on the chord.

    Raises
    ------
    ValueError
        No α, an α outside [0, 1], or a loss that is not finite.
    """
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"every α must lie in [0, 1], got {tuple(alphas)}")
    network = copy.deepcopy(pair.module).eval()
    curve = {}
    with torch.no_grad():
        for alpha in sorted({0.0, 1.0, *map(float, alphas)}):
            network.load_state_dict(interpolate(pair.a, pair.b, alpha))
            curve[alpha] = float(loss(network))
            if not math.isfinite(curve[alpha]):
                raise ValueError(f"the loss is {curve[alpha]} at α = {alpha:g}")
    return max(v - (a * curve[1.0] + (1 - a) * curve[0.0]) for a, v in curve.items())


def shuffled_difference(a: State, b: State, seed: int) -> dict[str, Tensor]:
    """A plus the entries of B − A in random order, tensor by tensor: a control.

    Each tensor moves as far as it does from A to B, in a direction without structure. Such a
    small random move keeps 1 − cos_α near 0 for want of any change, which is not LLFC. BatchNorm's
    running statistics stay A's: shuffled steps could make a variance negative.
    """
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, value in sorted(a.items()):  # state dicts come in any order
        order = torch.randperm(value.numel(), generator=generator)
        if value.is_floating_point() and not name.endswith(("running_mean", "running_var")):
            step = (b[name] - value).flatten()[order].reshape(value.shape)
            moved[name] = value + step
        else:
            moved[name] = value
    return moved
