"""Commutativity matching: permute B so that it commutes with A (the open question of Section 6).

Minimises f(π) = Σ_ℓ ‖(W_A − P_ℓ W_B P_{ℓ−1}ᵀ)(H_A − P_{ℓ−1} H_B)‖²/ν_ℓ (eq. 9; see `residuals`),
whose factors weight matching and activation matching make small one at a time. That is a quadratic
assignment problem, NP-hard (A.3): what is found is a good permutation, not a proven best one.

Frank–Wolfe on doubly stochastic matrices, as in `qap`, but on f as a whole, which is cubic where a
map's rows and columns move together, and with trees of groups for single ones. Along a segment f is
a cubic, so that the best step is known in closed form; of what a step needs, the products by Gram
matrices are carried along, and those of the one new vertex are computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llfc_core.matching.assignment import assign_tree
from llfc_core.matching.residuals import Moves, Objective, Term, commutativity_objective
from llfc_core.matching.result import Match
from llfc_core.matching.spec import Permutations, PermutationSpec, State
from llfc_core.matching.weight import TOLERANCE, Clock, families, match_weights

Variant = Literal["both", "joint", "layers"]
VARIANTS: tuple[Variant, ...] = ("both", "joint", "layers")
Start = Literal["identity", "weight", "activation"]
STARTS: tuple[Start, ...] = ("identity", "weight", "activation")
MAX_SWEEPS = 50


def match_commutativity(
    a: State,
    b: State,
    spec: PermutationSpec,
    module: nn.Module,
    data: Iterable[Any],
    *,
    seed: int = 0,
    start: Permutations | None = None,
    starts: Collection[Start] = STARTS,
    restarts: int = 1,
    variant: Variant = "both",
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    max_sweeps: int = MAX_SWEEPS,
) -> Match:
    """The best permutation found from several starts, and never worse than any of them.

    From each start: Frank–Wolfe, then the best of the permutations it went by and of the one
    nearest to where it ended, if f is lower there than before, and so on until f falls no more.
    Groups that are in no linear map stay as weight matching, or ``start``, has them.

    Parameters
    ----------
    a, b
        States that fit ``spec`` and ``module``, on one device, where everything but the assignments
        is computed; batches are moved there.
    data
        Batches: inputs ``(n, …)``, or tuples that begin with them. It is gone through once.
    start
        A permutation to begin with, in place of the identity.
    starts
        "identity"; "weight": weight matching's permutation; "activation": that which makes the
        inputs of the linear maps most alike, Σ_ℓ ⟨H_A, Q H_B⟩/(‖H_A‖‖H_B‖).
    restarts
        Random starts besides.
    variant
        "joint": all groups move at once. "layers": one group (with those within its blocks) at a
        time, in a new random order each sweep. "both": the first, then the second.
    max_iterations, tolerance
        Of Frank–Wolfe, an iteration of which is an assignment of every group that moves: it stops
        where a step lowers f, of the maps that change, by no more than this share.
    max_sweeps
        Limit on the sweeps of each variant in a run.

    Raises
    ------
    ValueError
        No data, features that are not finite, no start, or an argument that is not one of these.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    if isinstance(starts, str) or set(starts) - set(STARTS):
        raise ValueError(f"starts: a collection of {', '.join(STARTS)}, not {starts!r}")
    if not starts and restarts == 0:
        raise ValueError("no start: give starts or restarts")
    if min(restarts, tolerance) < 0 or min(max_iterations, max_sweeps) < 1:
        raise ValueError("restarts, tolerance ≥ 0 and max_iterations, max_sweeps ≥ 1")
    clock = Clock()
    with clock.timing("total"), torch.no_grad():
        objective = commutativity_objective(a, b, spec, module, data, clock)
        identity = spec.checked(spec.identity() if start is None else start)
        others = identity
        if start is None or "weight" in starts:
            weights = match_weights(a, b, spec, seed=seed)
            for what in ("similarity", "assignment"):
                clock[what] += weights.seconds[what]
            others = weights.permutations if start is None else identity
        generator = torch.Generator().manual_seed(seed)
        search = _Search(objective, others, clock, max_iterations, tolerance, max_sweeps)
        begin = [identity] if "identity" in starts else []
        if "weight" in starts:
            begin.append(weights.permutations)
        if "activation" in starts:
            begin.append(search.activation_matching())
        begin += [spec.random(generator) for _ in range(restarts)]
        runs = [search.run(p, variant, generator) for p in begin]
    best = min(runs, key=lambda run: run.trace[-1])  # of equals the first
    first = runs[0].trace[0]
    return Match(
        method="commutativity",
        spec=spec,
        permutations=best.permutations,
        # That of the whole search: it begins at the first start, whichever run was kept.
        objective=(first, *(v for v in best.trace if v < first)),
        seconds=dict(clock),
        sweeps=best.sweeps,
        restarts=tuple(run.trace[-1] for run in runs),
        converged=best.converged,
        unmatched={
            group: "its units are in no linear map that is compared"
            for group in spec.groups
            if group not in objective.groups
            # a root is matched by the units in its blocks, too
            and not any(group == tree[0] for tree in search.trees)
        },
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """What came of one start: f at the start and after each accepted step."""

    permutations: dict[str, Tensor]
    trace: tuple[float, ...]
    sweeps: int
    converged: bool


class _Search:
    """Frank–Wolfe on an objective, and what is to become of groups that it does not depend on.

    ``trees``: groups with the groups of units within their blocks, the root first, where f depends
    on any of them.
    """

    def __init__(
        self,
        objective: Objective,
        others: Mapping[str, Tensor],
        clock: Clock,
        max_iterations: int,
        tolerance: float,
        max_sweeps: int,
    ) -> None:
        self.objective, self.others, self.clock = objective, others, clock
        self.max_iterations, self.tolerance = max_iterations, tolerance
        self.max_sweeps = max_sweeps
        held = set(objective.groups)
        self.trees = [t for t in families(objective.spec).values() if held & set(t)]

    def run(
        self, start: Mapping[str, Tensor], variant: Variant, generator: torch.Generator
    ) -> _Run:
        """From a start, until no tree can be improved."""
        permutations = self._completed(start)
        trace = [self.objective.value(permutations)]
        tolerance = TOLERANCE * len(self.objective.terms)
        single = [[tree] for tree in self.trees]
        stages = {"joint": [[self.trees]], "layers": [single], "both": [[self.trees], single]}
        sweeps, converged = 0, True
        for blocks in stages[variant]:
            due = set(range(len(blocks)))
            for _ in range(self.max_sweeps):
                if not due:
                    break
                sweeps += 1
                for i in torch.randperm(len(blocks), generator=generator).tolist():
                    if i not in due:
                        continue
                    due.discard(i)
                    found = self._walk(permutations, blocks[i])
                    if (value := self.objective.value(found)) < trace[-1] - tolerance:
                        permutations = found
                        trace.append(value)
                        due |= {k for k, other in enumerate(blocks) if self._meet(blocks[i], other)}
            converged = not due
        return _Run(permutations, tuple(trace), sweeps, converged)

    def activation_matching(self) -> dict[str, Tensor]:
        """The permutation that makes the inputs of the linear maps most alike."""
        similarity: dict[str, Tensor] = {}
        for term in self.objective.terms.values():
            norm = float(term.AA.trace() * term.BB.trace()) ** 0.5
            for group, value in term.columns.pick(term.AB / (norm or 1.0)).items():
                similarity[group] = similarity.get(group, 0) + value
        return self._assign(self.others, self.trees, similarity)

    def _walk(
        self, permutations: dict[str, Tensor], block: Sequence[list[str]]
    ) -> dict[str, Tensor]:
        """The best permutation that Frank–Wolfe comes by when the trees of a block move.

        The vertices, and what is nearest to where it ends.
        """
        moving = {group for tree in block for group in tree}
        terms = [t for t in self.objective.terms.values() if moving & set(t.groups)]
        now = self._at(terms, self.objective.moves(permutations))
        best, least = permutations, now.value
        for _ in range(self.max_iterations):
            with self.clock.timing("similarity"):
                gradient = now.gradient(moving)
            vertex = self._assign(permutations, block, {g: -v for g, v in gradient.items()})
            there = self.objective.moves(vertex)
            then = self._at(terms, {**now.moves, **{g: there[g] for g in gradient}})
            if then.value < least:
                best, least = vertex, then.value
            with self.clock.timing("similarity"):
                slope = math.fsum(
                    _inner(v, then.moves[g]) - _inner(v, now.moves[g]) for g, v in gradient.items()
                )
                cube = now.cube(then)
                square = then.value - now.value - slope - cube
                step = best_step(slope, square, cube)
                if step == 0:
                    break
                gain = -step * (slope + step * (square + step * cube))
                now = now.towards(then, step, -gain)
                if gain <= self.tolerance * now.value:
                    break
        nearest = self._assign(permutations, block, {g: _matrix(now.moves[g]) for g in gradient})
        if self._at(terms, self.objective.moves(nearest)).value < least:
            best = nearest
        return best

    def _at(self, terms: Sequence[Term], moves: Moves) -> _Point:
        with self.clock.timing("similarity"):
            products = [term.products(moves) for term in terms]
            values = [t.value(p, moves) for t, p in zip(terms, products)]
            return _Point(terms, moves, products, math.fsum(values))

    def _assign(
        self,
        permutations: Mapping[str, Tensor],
        block: Sequence[list[str]],
        similarity: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The most similar permutation of a block's trees, the others being as they are."""
        found = dict(permutations)
        with self.clock.timing("assignment"):
            for root, *inner in block:
                size = self.objective.spec.groups[root].size
                found[root], within = assign_tree(
                    similarity.get(root, torch.zeros(size, size, dtype=torch.float64)),
                    {g: similarity[g] for g in inner if g in similarity},
                )
                found |= within
        return self._completed(found)

    def _completed(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A permutation, but for what f does not depend on: that stays in its block, as it was."""
        whole = dict(self.others)
        for root, *inner in self.trees:
            whole[root] = found[root]
            block = self.others[root].argsort()[found[root]]
            for group in inner:
                held = group in self.objective.groups
                whole[group] = found[group] if held else self.others[group][block]
        return whole

    def _meet(self, block: Sequence[list[str]], other: Sequence[list[str]]) -> bool:
        """Whether some linear map holds units of both."""
        one, two = ({g for tree in trees for g in tree} for trees in (block, other))
        return any(
            one & set(t.groups) and two & set(t.groups) for t in self.objective.terms.values()
        )


@dataclass(frozen=True, eq=False)
class _Point:
    """Somewhere among the permutations: the terms that change, their products and sum there."""

    terms: Sequence[Term]
    moves: Moves
    products: Sequence[Tensor]
    value: float

    def gradient(self, moving: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for term, products in zip(self.terms, self.products):
            for group, value in term.gradient(products, self.moves).items():
                if group in moving:
                    found[group] = found[group] + value if group in found else value
        return found

    def cube(self, other: _Point) -> float:
        """The coefficient of s³ on the way to another point."""
        return math.fsum(
            t.cube(p, q, self.moves, other.moves)
            for t, p, q in zip(self.terms, self.products, other.products)
        )

    def towards(self, other: _Point, step: float, gain: float) -> _Point:
        """The point so far on the way to another, where f is higher by ``gain``."""
        if step == 1:
            return other
        moves = {
            group: move
            if other.moves[group] is move
            else torch.lerp(_matrix(move), _matrix(other.moves[group]), step)
            for group, move in self.moves.items()
        }
        products = [torch.lerp(p, q, step) for p, q in zip(self.products, other.products)]
        return _Point(self.terms, moves, products, self.value + gain)


def best_step(slope: float, square: float, cube: float) -> float:
    """The s in [0, 1] where slope·s + square·s² + cube·s³ is least; 0 if nothing is gained."""
    candidates = [0.0, 1.0]
    if (discriminant := square * square - 3 * slope * cube) >= 0:
        q = -(square + math.copysign(math.sqrt(discriminant), square))
        candidates += [q / (3 * cube)] if cube else []
        candidates += [slope / q] if q else []
    inside = [s for s in candidates if 0 <= s <= 1]
    return min(inside, key=lambda s: s * (slope + s * (square + s * cube)))


def _matrix(move: Tensor) -> Tensor:
    if move.ndim == 2:
        return move
    return torch.eye(len(move), dtype=torch.float64, device=move.device)[move]


def _inner(gradient: Tensor, move: Tensor) -> float:
    """⟨gradient, P⟩."""
    if move.ndim == 2:
        return float((gradient * move).sum())
    return float(gradient.gather(1, move[:, None]).sum())
