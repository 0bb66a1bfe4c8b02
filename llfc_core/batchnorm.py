"""BatchNorm of a network that nobody trained, such as one halfway between two modes.

Running statistics are averages of what a network's features were in training. Interpolated like
weights, as the paper's code does, they are not the statistics of the interpolated network's
features: those of θ_½ vary less than A's or B's, and the network seems worse than it is (Jordan et
al. 2023, REPAIR). Both policies belong in a report: interpolated, and re-estimated by this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from llfc_core.numerics import ieee


def reestimate_statistics(
    module: nn.Module, state: Mapping[str, Tensor], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """``state`` with the running statistics of its BatchNorm layers measured on ``batches``.

    One pass, in which only BatchNorm layers are in training mode: each normalises a batch by that
    batch's own mean and variance, as in training. Each layer's new statistics are then the mean
    and the unbiased variance of all that entered it, over images, pixels and batches together. (An
    average of the batches' variances, which ``momentum=None`` gives, would leave out how the means
    vary between batches, and count a last, small batch like any other.) The statistics of deep
    layers still depend a little on how the images are cut into batches: large ones are better.

    Parameters
    ----------
    module
        Any instance of the network; it is not changed.
    state
        A state dict of it. Weights, affine parameters and counters of batches are left as they are.
    batches
        Inputs ``(n, …)`` as the network takes them: training data, all of it, without augmentation.

    Returns
    -------
    A new state dict on the same device, which shares what has not changed with ``state``. With no
    BatchNorm that keeps statistics it is ``state`` as it was, and ``batches`` are not read.

    Raises
    ------
    ValueError
        There are no batches, or one with a single value per channel (torch's own).
    """
    layers = _layers(module)
    if not layers:
        return dict(state)
    device = next(iter(state.values())).device
    network = copy.deepcopy(module).to(device).eval()
    network.load_state_dict(dict(state))
    moments: dict[str, _Moments] = {}
    for name, layer in _layers(network).items():
        layer.reset_running_stats()
        layer.training = True
        layer.momentum = 1.0  # its running statistics are those of the last batch
        moments[name] = _Moments()
        layer.register_forward_hook(_collect(moments[name]))
    with torch.no_grad(), ieee():
        for inputs in batches:
            network(inputs.to(device))
    if all(m.count == 0 for m in moments.values()):
        raise ValueError("no batches to estimate statistics from")
    new = dict(state)
    for name, found in moments.items():
        if found.count:  # else the layer is not used
            for key, value in (("mean", found.mean), ("var", found.squares / (found.count - 1))):
                new[f"{name}.running_{key}"] = value.to(state[f"{name}.running_{key}"].dtype)
    return new


@dataclass
class _Moments:
    """Mean and summed squared deviation per channel, float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Merge a batch (Chan et al. 1979): no difference of large sums is taken.

        mean, variance: of ``count`` values per channel, the variance unbiased.
        """
        delta = mean.double() - self.mean
        total = self.count + count
        self.mean = self.mean + delta * (count / total)
        self.squares = (
            self.squares
            + variance.double() * (count - 1)
            + delta.square() * (self.count * count / total)
        )
        self.count = total


def _layers(module: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: m
        for name, m in module.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }


def _collect(moments: _Moments) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def after(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        count = output.numel() // output.shape[1]
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        moments.add(count, layer.running_mean, layer.running_var)

    return after
