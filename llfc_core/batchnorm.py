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

IN_CACHE = 100_000  # numbers


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
    norms = _layers(network)
    moments = {layer: _Moments() for layer in norms.values()}
    for layer, found in moments.items():
        layer.training = True
        layer.momentum = 0.0  # its own running average is of no use here
        layer.register_forward_pre_hook(_collect(found))
    with torch.no_grad(), ieee():
        for inputs in batches:
            network(inputs.to(device))
    if all(m.count == 0 for m in moments.values()):
        raise ValueError("no batches to estimate statistics from")
    new = dict(state)
    for name, layer in norms.items():
        found = moments[layer]
        if found.count:  # else the layer is not used
            for key, value in (("mean", found.mean), ("var", found.squares / (found.count - 1))):
                key = f"{name}.running_{key}" if name else f"running_{key}"
                new[key] = value.to(state[key].dtype)
    return new


@dataclass
class _Moments:
    """Mean and summed squared deviation per channel, float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Merge a batch ``(n, C, …)`` (Chan et al. 1979): no difference of large sums is taken.

        Mean and deviations from it one after the other, on as much as stays in the cache: four
        times as fast as `torch.var_mean`. What rounding leaves of the deviations' sum corrects
        both (Björck's two-pass formula).
        """
        on_cpu = x.device.type == "cpu"
        at_once = max(1, IN_CACHE // max(1, x[0].numel())) if on_cpu else len(x)
        for part in x.split(at_once):
            values = part.transpose(0, 1).flatten(1)  # (C, all values of a channel)
            values = values.to(torch.promote_types(values.dtype, torch.float32))
            count = values.shape[1]
            mean = values.mean(1)
            deviations = values - mean[:, None]
            left = deviations.sum(1).double() / count
            squares = deviations.square_().sum(1).double() - count * left.square()
            delta = mean.double() + left - self.mean
            total = self.count + count
            self.mean = self.mean + delta * (count / total)
            self.squares = self.squares + squares + delta.square() * (self.count * count / total)
            self.count = total


def _layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """By name; a layer that is registered twice has two."""
    return {
        name: m
        for name, m in module.named_modules(remove_duplicate=False)
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }


def _collect(moments: _Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, args: moments.add(args[0])
