"""What training a mode will cost: seconds, from measurements where there are any, and bytes."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from llfc_core.data import Dataset, Size
from llfc_core.machine import cores
from llfc_core.nets import Net, build
from llfc_core.store import CorruptEntry, Store
from llfc_core.store.entry import read_manifest
from llfc_core.training.engine import stack_size
from llfc_core.training.recipe import Recipe

# Floating-point operations a second that training reaches, a core or a GPU.
_NOMINAL_FLOPS = {
    ("cpu", "linear"): 8e10,
    ("cpu", "convolutional"): 4e10,
    ("cuda", "linear"): 1e14,
    ("cuda", "convolutional"): 4e14,
}
# A GPU's step is no shorter, for each tensor of parameters: kernels are launched one by one.
_NOMINAL_LAUNCHES = {"cpu": 0.0, "cuda": 6e-5}


@dataclass(frozen=True)
class Costs:
    """What modes cost on a kind of device.

    Attributes
    ----------
    sizes
        Of the data sets, by name.
    measured
        Seconds a step of a whole stack, by `Recipe.along`, see `measured_steps`. Without one the
        cost is a guess: floating-point operations over a nominal rate.
    """

    device: torch.device
    sizes: Mapping[str, Size]
    measured: Mapping[Recipe, float] = field(default_factory=dict)

    def slots(self, recipe: Recipe) -> int:
        """Modes that train as one stack."""
        return stack_size(self.device, recipe.net)

    def seconds(self, recipe: Recipe) -> float:
        """Of one stack of such modes, full or not: empty slots are filled, and cost as much."""
        first, last = recipe.span(self.sizes[recipe.data].n_train)
        return (last - first) * self._step(recipe)

    def bytes(self, recipe: Recipe) -> int:
        """Of the mode in the store: weights, and for a parent the optimiser's state."""
        size = self.sizes[recipe.data]
        weights, parameters, _ = _extent(recipe.net, size.shape, size.classes)
        if recipe.stop is None or recipe.span(size.n_train)[1] == 0:
            return weights
        copies = 2 if recipe.optimiser.name == "adam" else bool(recipe.optimiser.momentum)
        return weights + copies * parameters

    def _step(self, recipe: Recipe) -> float:
        along = recipe.along()
        if along in self.measured:
            return self.measured[along]
        size = self.sizes[recipe.data]
        kind = "convolutional" if recipe.net.convolutional else "linear"
        work = 3 * _forward_flops(recipe.net, size.shape, size.classes) * recipe.batch_size
        tensors = _extent(recipe.net, size.shape, size.classes)[2]
        return max(
            self.slots(recipe) * work / _NOMINAL_FLOPS[self.device.type, kind],
            tensors * _NOMINAL_LAUNCHES[self.device.type],
        )


def expected_seconds(recipes: Sequence[Recipe], dataset: Dataset, device: torch.device) -> float:
    """A guess at the training time of recipes on this machine, for those who wait."""
    costs = Costs(device, {recipe.data: dataset.size for recipe in recipes})
    total = sum(costs.seconds(recipe) / costs.slots(recipe) for recipe in recipes)
    return total / (cores() if device.type == "cpu" else 1)


def measured_steps(
    store: Store, sizes: Mapping[str, Size], device: torch.device
) -> dict[Recipe, float]:
    """Seconds a step of a whole stack took on this kind of device, by `Recipe.along`.

    From the manifests of the store, all modes of a recipe taken together.
    """
    seconds: dict[Recipe, float] = defaultdict(float)
    steps: dict[Recipe, int] = defaultdict(int)
    for key in store.keys():
        with contextlib.suppress(CorruptEntry, OSError, KeyError, TypeError, ValueError):
            facts, _ = read_manifest(store.path(key))
            if not facts["device"].startswith(device.type):
                continue
            recipe = Recipe.from_dict(facts["recipe"])
            first, last = recipe.span(sizes[recipe.data].n_train)
            along = recipe.along()
            seconds[along] += facts["seconds"] * facts.get("stack", 1)
            steps[along] += last - first
    return {along: seconds[along] / n for along, n in steps.items() if n}


@cache
def _forward_flops(net: Net, shape: tuple[int, ...], classes: int) -> int:
    """Floating-point operations of one image forward; backward takes twice as many."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(net, shape, classes).eval()(torch.empty(1, *shape))
    return counter.get_total_flops()


@cache
def _extent(net: Net, shape: tuple[int, ...], classes: int) -> tuple[int, int, int]:
    """Bytes of the weights and of the parameters among them, and how many tensors the latter."""
    with torch.device("meta"):
        module = build(net, shape, classes)
    parameters = list(module.parameters())
    return (
        sum(t.nbytes for t in module.state_dict().values()),
        sum(t.nbytes for t in parameters),
        len(parameters),
    )
