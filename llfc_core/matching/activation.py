"""Activation matching: permute B so that its features are nearest to A's.

Minimising Σ_ℓ ‖H_A^(ℓ) − P^(ℓ) H_B^(ℓ)‖² (eq. 4) is, for each group by itself, maximising
Σ_i (H_A H_Bᵀ)[i, perm(i)]: one linear assignment, and exact (Ainsworth et al. 2023, Section 3.1).
The products are summed over all of the data as it streams past; features are never kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llfc_core.features import Layer, Taps
from llfc_core.matching.assignment import assign_tree, side_by_side
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec, State, Use
from llfc_core.matching.weight import TOLERANCE, Clock, families, slots
from llfc_core.numerics import ieee

Statistic = Literal["product", "correlation"]
STATISTICS: tuple[Statistic, ...] = ("product", "correlation")


def match_activations(
    a: State,
    b: State,
    spec: PermutationSpec,
    module: nn.Module,
    data: Iterable[Any],
    *,
    statistic: Statistic = "product",
    start: Mapping[str, Tensor] | None = None,
) -> Match:
    """One assignment for each tree of ``spec``, on statistics of all of ``data``.

    A group is compared where its units are seen after an activation function; where there is no
    such place, at modules' outputs; where it is seen nowhere, it is left as it was and the
    `Match` says so. A group seen in several places (a residual stream) is compared by the sum of
    their similarities, each of which has the same weight whatever the scale of its features.

    Parameters
    ----------
    a, b
        States that fit ``spec`` and ``module``, on one device; batches are moved there.
    data
        Batches: inputs ``(n, …)``, or tuples that begin with them. It is gone through once.
    statistic
        "product": (H_A H_Bᵀ) / (‖H_A‖‖H_B‖), un-centred, as in Git Re-Basin: its trace, the
        objective, is the cosine between A's and π(B)'s features of all data together.
        "correlation": Pearson's over data points and positions, over the number of units: its
        trace is the mean correlation. Units that do not vary have correlation 0.
    start
        The permutation to keep where nothing is better; None: the identity.

    Raises
    ------
    ValueError
        No data, or an unknown statistic.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
    clock = Clock()
    permutations = spec.checked(spec.identity() if start is None else start)
    with clock.timing("total"), torch.no_grad(), ieee():
        first, batches = peek(data)
        uses = _seen(spec, module, first)
        moments = {
            group: [_Moments(statistic) for _ in here] for group, here in uses.items() if here
        }
        _stream(a, b, module, first, batches, uses, moments, clock)
        trees = {
            root: {
                group: _total(moments[group])[:, slots(spec, group, permutations)]
                for group in members
                if group in moments
            }
            for root, members in families(spec).items()
            if not moments.keys().isdisjoint(members)
        }
        with clock.timing("assignment"), side_by_side(torch.get_num_threads()) as submit:
            found = {root: submit(1, _step, root, here, spec) for root, here in trees.items()}
            steps = {root: future.result() for root, future in found.items()}
        trace, gains = [0.0], []
        for root, similarity in trees.items():
            step = steps[root]
            before = {group: float(m.trace()) for group, m in similarity.items()}
            after = {
                group: float(m[:, slots(spec, group, step)].trace())
                for group, m in similarity.items()
            }
            trace[0] += math.fsum(before.values())
            gain = math.fsum([*after.values(), *(-value for value in before.values())])
            if gain > TOLERANCE * len(similarity):
                gains.append(gain)
                permutations = spec.compose(permutations, spec.identity() | step)
    for gain in gains:
        trace.append(trace[-1] + gain)
    return Match(
        method="activation",
        spec=spec,
        permutations=permutations,
        objective=tuple(trace),
        seconds=dict(clock),
        sweeps=1,
        restarts=(trace[-1],),
        converged=True,
        unmatched={
            group: "its units are in no feature"
            for root, members in families(spec).items()
            for group in members
            # a root is matched by the units in its blocks, too
            if group not in moments and (group != root or not moments.keys() & set(members))
        },
    )


def peek(data: Iterable[Any]) -> tuple[Tensor, Iterator[Tensor]]:
    """The first batch of inputs that is not empty, and all of them.

    Batches are inputs ``(n, …)``, or tuples or lists that begin with them. Raises ValueError where
    there is none, TypeError for something else.
    """
    if isinstance(data, Tensor):
        raise TypeError("data: an iterable of batches, not one tensor: give [inputs]")
    batches = filter(len, map(_inputs, data))
    first = next(batches, None)
    if first is None:
        raise ValueError("no data: matching needs at least one input")
    return first, chain([first], batches)


def _inputs(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise TypeError(f"a batch is inputs or (inputs, labels, …), not a {type(batch).__name__}")
    return x


def device_of(state: State) -> torch.device:
    """The device of a state dict, by its first tensor."""
    return next(iter(state.values())).device


def make_taps(module: nn.Module, example: Tensor, layers: Sequence[str] | None = None) -> Taps:
    """Taps found by an example of two inputs, wherever ``module`` is."""
    return Taps(module, example[:2].to(device_of(module.state_dict())), layers)


def _seen(spec: PermutationSpec, module: nn.Module, example: Tensor) -> dict[str, list[Use]]:
    """By group, the features it is compared in: after activations if it can be."""
    sites = set(make_taps(module, example).names)
    seen = {}
    for group in spec.groups:
        uses = spec.feature_uses(group)
        seen[group] = [use for use in uses if use.tensor in sites] or list(uses)
    return seen


def _stream(
    a: State,
    b: State,
    module: nn.Module,
    example: Tensor,
    batches: Iterable[Tensor],
    uses: Mapping[str, Sequence[Use]],
    moments: Mapping[str, Sequence[_Moments]],
    clock: Clock,
) -> None:
    """Run both networks over the data, and each group's features into its moments."""
    at: dict[str, list[tuple[Use, _Moments]]] = defaultdict(list)
    for group, here in uses.items():
        for use, moment in zip(here, moments.get(group, ()), strict=True):
            at[use.tensor].append((use, moment))
    taps = make_taps(module, example, tuple(at))
    for x in batches:
        x = x.to(device_of(a))
        of_a: dict[str, Tensor] = {}

        def keep(layer: Layer, of_a: dict[str, Tensor] = of_a) -> None:
            of_a[layer.name] = layer.post.clone()  # the network may write into it

        def compare(layer: Layer, of_a: dict[str, Tensor] = of_a) -> None:
            with clock.timing("similarity"):
                feature = of_a.pop(layer.name)
                for use, moment in at[layer.name]:
                    moment.update(use.rows(feature), use.rows(layer.post))

        before = clock["similarity"]
        with clock.timing("features"):
            taps.run(x, keep, a)
            taps.run(x, compare, b)
        clock["features"] -= clock["similarity"] - before


class _Moments:
    """Sums over all data and positions of what two networks' units give, ``(units, e)`` a time.

    Products in the features' own precision (float32 for half precision), sums in float64.
    """

    def __init__(self, statistic: Statistic) -> None:
        self.statistic = statistic
        self.count = 0
        self.cross = torch.zeros(())
        self.sums: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.shifts: list[Tensor] = []

    def update(self, *rows: Tensor) -> None:
        """Add A's and B's features of the same data, ``(units, e)`` each."""
        pair = [r if r.dtype == torch.float64 else r.float() for r in rows]
        if not self.count:
            units = len(pair[0])
            self.cross = pair[0].new_zeros(units, units, dtype=torch.float64)
            self.sums = [r.new_zeros(units, dtype=torch.float64) for r in pair]
            self.squares = [s.clone() for s in self.sums]
            # Variances are taken about the first value: there they do not cancel, and a unit that
            # never varies has exactly none.
            self.shifts = [r[:, :1].clone() for r in pair]
        self.count += pair[0].shape[1]
        if self.statistic == "correlation":
            pair = [r - shift for r, shift in zip(pair, self.shifts)]
        self.cross += pair[0] @ pair[1].T
        for r, total, squares in zip(pair, self.sums, self.squares):
            total += r.sum(dim=1, dtype=torch.float64)
            squares += torch.linalg.vector_norm(r, dim=1, dtype=torch.float64).square()

    def similarity(self) -> Tensor:
        """``(units, units)`` float64 on the CPU."""
        if self.statistic == "product":
            norm = (self.squares[0].sum() * self.squares[1].sum()).sqrt()
            return (self.cross / norm if norm > 0 else self.cross).cpu()
        covariance = self.cross - torch.outer(*self.sums) / self.count
        scales = []
        for total, squares, shift in zip(self.sums, self.squares, self.shifts):
            variance = squares - total.square() / self.count
            # Below the rounding of the unit's own level there is no variance to be seen.
            level = self.count * (8 * torch.finfo(shift.dtype).eps * shift[:, 0].double()).square()
            alive = variance > level
            scales.append(torch.where(alive, variance, torch.inf).rsqrt())
        return (covariance * torch.outer(*scales) / len(covariance)).cpu()


def _total(moments: Sequence[_Moments]) -> Tensor:
    return torch.stack([m.similarity() for m in moments]).sum(0)


def _step(root: str, similarity: Mapping[str, Tensor], spec: PermutationSpec) -> dict[str, Tensor]:
    """The assignment of a tree; units that are seen nowhere keep their order in their block."""
    size = spec.groups[root].size
    outer, inner = assign_tree(
        similarity.get(root, torch.zeros(size, size, dtype=torch.float64)),
        {group: similarity[group] for group in similarity if group != root},
    )
    still = spec.identity()
    return {root: outer} | {g: inner.get(g, still[g]) for g in families(spec)[root] if g != root}
