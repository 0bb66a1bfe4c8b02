"""The pairs of a row by name, and their measurements: what its claims are judged on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llfc_core.metrics import ALPHAS, Measurement, Part, measure
from llfc_core.metrics.measure import Loss
from llfc_core.pairs import ModePair

# What is asked of pairs: ranks are a matter of one network, and judged along its training.
_PAIRS: tuple[Part, ...] = ("additivity", "commutativity", "stitching")
_PARTS: dict[str, tuple[Part, ...]] = {
    "re-estimated": (),
    "independent re-estimated": (),
    "random": ("commutativity",),
    "training": ("ranks",),
    "untrained": ("ranks",),
}


@dataclass(frozen=True, eq=False)
class Named:
    """A pair to be measured, and what on.

    Attributes
    ----------
    name
        What it is for:

        ``linked``
            A and B, permuted where matching is the link.
        ``independent``
            A, and a mode trained apart; where matching is the link, A and B as they were.
        ``re-estimated``, ``independent re-estimated``
            The first two with BatchNorm's statistics estimated anew between A and B, at the output.
        ``shuffled``
            A, and A plus the shuffled entries of B − A.
        ``random``
            A, and B permuted at random.
        ``training``
            A, and A earlier in its training.
        ``untrained``
            A before any training, and early in it.
    batches
        ``(inputs, labels)``, as `llfc_core.metrics.measure` has them; gone through for each pair.
    loss, guessing, parts
        As `llfc_core.metrics.measure` has them; parts by default what claims ask of such a pair.
    modes
        Keys of the modes, where they and the name say all about the pair.
    """

    name: str
    pair: ModePair
    batches: Iterable[tuple[Tensor, Tensor]]
    modes: tuple[str, ...] = ()
    loss: Loss | None = None
    guessing: float = math.nan
    parts: tuple[Part, ...] | None = None

    def inputs(self, count: int) -> Tensor:
        """The first ``count`` inputs, or all if there are fewer."""
        taken: list[Tensor] = []
        for x, _ in self.batches:
            taken.append(x[: count - sum(map(len, taken))])
            if sum(map(len, taken)) == count:
                break
        return torch.cat(taken)


def measure_pairs(
    pairs: Sequence[Named],
    *,
    alphas: Sequence[float] = ALPHAS,
    layers: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    threads: int = 1,
    measured: dict[tuple[str, ...], Measurement] | None = None,
) -> dict[str, list[Measurement]]:
    """Measure pairs, each in one pass over its data; by name, in the order they came.

    Their modules are copied and never changed. ``alphas``, ``layers`` and ``device``
    are those of `llfc_core.metrics.measure`, which says what it raises.

    Parameters
    ----------
    threads
        On a CPU, how many pairs are measured side by side.
    measured
        Measurements by name and modes' keys: found here, and left here.
    """
    device = torch.device(device)
    known = {} if measured is None else measured

    def one(which: Named) -> Measurement:
        key = (which.name, *which.modes)
        if which.modes and key in known:
            return known[key]
        parts = which.parts if which.parts is not None else _PARTS.get(which.name, _PAIRS)
        at_output = which.name.endswith("re-estimated")
        result = measure(
            replace(which.pair, module=copy.deepcopy(which.pair.module)),
            which.batches,
            loss=which.loss,
            guessing=which.guessing,
            # () is the ends alone
            alphas=alphas if at_output or which.name not in _PARTS else (),
            layers=[] if at_output else layers,
            parts=parts,
            device=device,
        )
        if which.modes:
            known[key] = result
        return result

    # One thread a pair, so that the sums do not depend on how many cores or workers there are.
    with ThreadPoolExecutor(
        threads if device.type == "cpu" else 1,
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        results = list(pool.map(one, pairs))
    found: dict[str, list[Measurement]] = {}
    for which, measurement in zip(pairs, results, strict=True):
        found.setdefault(which.name, []).append(measurement)
    return found
