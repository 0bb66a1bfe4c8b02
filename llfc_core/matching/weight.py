"""Weight matching: permute B so that its weights are nearest to A's.

Minimising Σ_ℓ ‖W_A^(ℓ) − P^(ℓ) W_B^(ℓ) P^(ℓ−1)ᵀ‖² (eq. 3) is maximising ⟨θ_A, π(θ_B)⟩, for a
permutation changes no norm. Git Re-Basin (Ainsworth et al. 2023, Algorithm 1) does so group by
group: with all others held, the best permutation of one group is a linear assignment.

Here a step solves a *tree*: a group with the groups of units within its blocks. Everything is
computed in float64 (a float32 product is only a quarter faster, and its rounding would decide
ties). Products are taken where the weights are, assignments on the CPU, each from the prices at
which the tree's last one ended. Trees that share no tensor do not wait for each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from time import perf_counter

import torch
from torch import Tensor

from llfc_core import kernels
from llfc_core.matching.assignment import Submit, assign_tree, side_by_side
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec, State, Use

# A step counts if it raises ⟨A, π(B)⟩ by more than this share of Σ‖A_t‖‖B_t‖ over the tensors it
# moves: far below any gain that matters, far above the rounding of float64 sums (which grows
# with those norms; sums in float32 would err by 1e-7 of them, and never settle).
TOLERANCE = 1e-12
MAX_SWEEPS = 200
PART = 1 << 22  # numbers of a tensor that are summed at a time: bounds what is held in float64

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def weight_names(state: State, weights: Collection[str] | None = None) -> tuple[str, ...]:
    """The tensors that are compared: by default all floating ones but BatchNorm's statistics.

    Running statistics are not weights: they are in other units than these (variances grow with
    the fourth power of the weights' scale), and would drown biases and norms' affine parameters.
    They move with π all the same. Raises ValueError for a name that is not a floating tensor of
    the state.
    """
    if weights is None:
        return tuple(
            name
            for name, value in state.items()
            if value.is_floating_point() and not name.endswith(_STATISTICS)
        )
    if isinstance(weights, str):
        raise TypeError(f"weights: a collection of names, not the string {weights!r}")
    for name in weights:
        if name not in state or not state[name].is_floating_point():
            raise ValueError(f"weights: {name!r} is no floating tensor of the state")
    return tuple(name for name in state if name in set(weights))


def inner_product(a: State, b: State, weights: Collection[str] | None = None) -> float:
    """⟨θ_A, θ_B⟩ over `weight_names`, in float64: the objective of weight matching at π = 1."""
    names = weight_names(a, weights)
    return math.fsum(product for product, _ in _products(a, b, names).values())


def match_weights(
    a: State,
    b: State,
    spec: PermutationSpec,
    *,
    seed: int = 0,
    weights: Collection[str] | None = None,
    start: Mapping[str, Tensor] | None = None,
    restarts: int = 0,
    max_sweeps: int = MAX_SWEEPS,
) -> Match:
    """Coordinate descent over the trees of ``spec``, in a new random order each sweep.

    A step is taken only where the objective rises, so it never falls, and the result is never
    worse than the start. Where no tensor holds one tree on two axes, a step is the exact optimum
    given the rest. Where one does (a square matrix on the residual stream), the objective is
    quadratic in that tree's permutation: the step is the optimum of its linearisation, and is
    rejected where the objective itself does not rise.

    A tree is solved again only when a tree that shares a tensor with it has changed. Trees that
    share none are solved side by side, in as many threads as torch uses (`torch.get_num_threads`);
    the result is that of one after the other.

    Parameters
    ----------
    a, b
        States that fit ``spec``, finite, on one device.
    weights
        Names of the tensors to compare; None: see `weight_names`.
    start
        The permutation to begin with. None: the identity, then, if that is better, one sweep
        outwards from the tensors whose other axes cannot move (`Descent.anchor`).
    restarts
        Further runs from random permutations; the best run is kept, the first of equals.
    max_sweeps
        Limit on the sweeps of a run.
    """
    if restarts < 0 or max_sweeps < 1:
        raise ValueError(f"restarts ≥ 0 and max_sweeps ≥ 1, not {restarts} and {max_sweeps}")
    clock = Clock()
    generator = torch.Generator().manual_seed(seed)
    with clock.timing("total"):
        names = weight_names(a, weights)
        trees = find_trees(spec, names)
        first = Descent(
            trees, a, b, spec, spec.identity() if start is None else start, names, clock
        )
        if start is None:
            first.anchor()
        first.run(generator, max_sweeps)
        best, finals = first, [first.trace[-1]]
        for _ in range(restarts):
            again = Descent(trees, a, b, spec, spec.random(generator), names, clock)
            again.run(generator, max_sweeps)
            finals.append(again.trace[-1])
            if again.trace[-1] > best.trace[-1] + best.tolerance:
                best = again
    # The trace is that of the whole search: it begins at the start, whichever run was kept.
    trace = first.trace if best is first else [first.trace[0], *_above(first.trace[0], best.trace)]
    return Match(
        method="weight",
        spec=spec,
        permutations=best.permutations,
        objective=tuple(trace),
        seconds=dict(clock),
        sweeps=best.sweeps,
        restarts=tuple(finals),
        converged=best.converged,
        unmatched={
            group: "none of the tensors compared holds its units"
            for tree in trees
            for group, uses in tree.uses.items()
            # a root is matched by the units in its blocks, too
            if not uses and (group != tree.root or not any(tree.uses.values()))
        },
    )


@dataclass(frozen=True, eq=False)
class Tree:
    """A group and its children, which are assigned together.

    Attributes
    ----------
    uses
        By group, the root first: where its units are in the tensors compared.
    spec
        Of the tree's groups and these tensors alone.
    quadratic
        Tensors that hold the tree on more than one axis.
    neighbours
        Indices of the trees that share a tensor with this one; its own if it is quadratic.
    """

    uses: dict[str, tuple[Use, ...]]
    spec: PermutationSpec
    quadratic: frozenset[str]
    neighbours: frozenset[int]

    @property
    def root(self) -> str:
        return next(iter(self.uses))

    def step(self, similarity: Mapping[str, Tensor], prices: Tensor) -> dict[str, Tensor]:
        """The assignment of the whole tree, given ``(units, units)`` by group (`assign_tree`)."""
        children = {k: v for k, v in similarity.items() if k != self.root}
        outer, inner = assign_tree(similarity[self.root], children, prices)
        return {self.root: outer, **inner}


def families(spec: PermutationSpec) -> dict[str, list[str]]:
    """Each group without a parent, with itself and its children.

    Raises ValueError for blocks within blocks within blocks, which `assign_tree` cannot do.
    """
    members: dict[str, list[str]] = {k: [k] for k, g in spec.groups.items() if g.parent is None}
    for name, group in spec.groups.items():
        if group.parent is not None:
            if group.parent not in members:
                raise ValueError(f"{name!r}: its parent {group.parent!r} has a parent itself")
            members[group.parent].append(name)
    return members


def slots(spec: PermutationSpec, group: str, permutations: Mapping[str, Tensor]) -> Tensor:
    """By slot, the unit that goes into it: ``(b·n,)``, numbered n·block + unit on both sides."""
    perm, parent = permutations[group], spec.groups[group].parent
    if parent is not None:
        perm = permutations[parent][:, None] * perm.shape[1] + perm
    return perm.flatten()


def find_trees(spec: PermutationSpec, names: Iterable[str]) -> list[Tree]:
    """The trees of ``spec`` as far as they are in the tensors named, in the spec's order."""
    names = set(names)
    members = families(spec)
    uses = {
        group: tuple(use for use in spec.uses(group) if use.tensor in names)
        for group in spec.groups
    }
    holds: dict[str, set[int]] = defaultdict(set)  # trees by tensor
    axes: dict[tuple[int, str], set[tuple[int, ...]]] = defaultdict(set)
    for i, groups in enumerate(members.values()):
        for use in (use for group in groups for use in uses[group]):
            holds[use.tensor].add(i)
            axes[i, use.tensor].add(use.axes)
    trees = []
    for i, groups in enumerate(members.values()):
        tensors = [name for name, held in holds.items() if i in held]
        quadratic = frozenset(name for name in tensors if len(axes[i, name]) > 1)
        near = set().union(*(holds[name] for name in tensors)) if tensors else set()
        trees.append(
            Tree(
                uses={group: uses[group] for group in groups},
                spec=replace(
                    spec,
                    groups={group: spec.groups[group] for group in groups},
                    layouts={name: spec.layouts[name] for name in tensors},
                    shapes={name: spec.shapes[name] for name in tensors},
                ),
                quadratic=quadratic,
                neighbours=frozenset(near if quadratic else near - {i}),
            )
        )
    return trees


class Descent:
    """One run: the permutation so far, π(B), and each group's similarity, kept up to date.

    Memory: what has moved of B twice, and n² float64 for each group of n units, where B is.
    ``prices``, by tree, of π(B)'s units: where the next assignment begins.
    """

    def __init__(
        self,
        trees: list[Tree],
        a: State,
        b: State,
        spec: PermutationSpec,
        start: Mapping[str, Tensor],
        names: Iterable[str],
        clock: Clock,
        prices: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.trees, self.spec, self.clock = trees, spec, clock
        self.permutations = spec.checked(start)
        permuted = spec.apply(b, self.permutations)
        self.moved = {name: permuted[name].detach() for name in names}
        self.a = {name: a[name].detach() for name in self.moved}
        products = _products(self.a, self.moved, self.moved)
        self.norms = {name: norms for name, (_, norms) in products.items()}
        self.trace = [math.fsum(product for product, _ in products.values())]
        self.sweeps = 0
        self.converged = False
        self.prices = {
            tree.root: torch.zeros(spec.groups[tree.root].size, dtype=torch.float64)
            for tree in trees
        } | dict(prices or {})
        # By group, Σ rows(A) rows(π(B))ᵀ and, by use, the tensor of π(B) that is in that sum.
        self._similarity: dict[str, tuple[Tensor, dict[int, Tensor]]] = {}

    @property
    def tolerance(self) -> float:
        return TOLERANCE * math.fsum(self.norms.values())

    def run(self, generator: torch.Generator, max_sweeps: int) -> None:
        """Sweep until no tree can be improved."""
        # Trees whose similarities have changed since they were last solved.
        due = set(range(len(self.trees)))
        # Elsewhere than on a CPU products are taken one after the other anyway.
        on_cpu = all(value.device.type == "cpu" for value in self.a.values())
        threads = torch.get_num_threads() if on_cpu else 1
        with side_by_side(threads) as submit:
            while due and self.sweeps < max_sweeps:
                self.sweeps += 1
                order = torch.randperm(len(self.trees), generator=generator).tolist()
                for gain in self._sweep(order, due, submit, threads):
                    self.trace.append(self.trace[-1] + gain)
        self.converged = not due

    def _sweep(self, order: list[int], due: set[int], submit: Submit, threads: int) -> list[float]:
        """Solve the trees that are due; gains in order, and ``due`` as it is then.

        A tree waits for its neighbours earlier in the order, and for nobody else: it finds what it
        would find if one tree were solved after the other.
        """
        gains: dict[int, float] = {}
        waiting, running = order.copy(), dict[Future[float], int]()

        def done(i: int, gain: float) -> None:
            gains[i] = gain
            if gain > 0:
                due.update(self.trees[i].neighbours)

        while waiting or running:
            ready = self._ready(waiting, running.values(), due)
            due.difference_update(ready)
            if threads == 1 or not (running or len(ready) > 1):
                for i in ready:
                    done(i, self._improve(self.trees[i]))
                continue
            share = max(1, threads // (len(ready) + len(running)))
            running |= {submit(share, self._improve, self.trees[i]): i for i in ready}
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done(running.pop(future), future.result())
        return [gains[i] for i in order if gains.get(i, 0.0) > 0]

    def _ready(self, waiting: list[int], running: Collection[int], due: set[int]) -> list[int]:
        """Takes from ``waiting`` all trees that no neighbour ahead of them keeps waiting.

        Returns those that are due.
        """
        ahead, ready = set(running), []
        for i in waiting.copy():
            if self.trees[i].neighbours.isdisjoint(ahead):
                waiting.remove(i)
                if i not in due:
                    continue
                ready.append(i)
            ahead.add(i)
        return ready

    def anchor(self) -> None:
        """Move to where a sweep from the fixed axes outwards leads, if that is better.

        Each tree is compared only in tensors whose other axes are fixed (pixels, classes) or
        already matched, the tree that has most of them next. Elsewhere B's other units are still
        in an order that has nothing to do with A's, and add noise: a residual stream is held by
        dozens of tensors, of which the first alone says anything at the start.
        """
        before = dict(self.permutations), dict(self.moved)
        holds: dict[str, set[int]] = defaultdict(set)
        for i, tree in enumerate(self.trees):
            for name in tree.spec.layouts:
                holds[name].add(i)
        left = list(range(len(self.trees)))
        while left:
            known = [
                {
                    name
                    for name in self.trees[i].spec.layouts
                    if holds[name].isdisjoint(set(left) - {i})
                    and name not in self.trees[i].quadratic
                }
                for i in left
            ]
            shares = [_share(self.trees[i], names) for i, names in zip(left, known)]
            if not any(shares):
                break  # nothing that is left is held by anything
            at = shares.index(max(shares))
            tree, names = self.trees[left.pop(at)], known[at]
            step = self._step(tree, names)
            self._accept(tree, step, self._permuted(tree, step))
        reached = inner_product(self.a, self.moved, self.moved)
        if reached > self.trace[0] + self.tolerance:
            self.trace.append(reached)
        else:
            self.permutations, self.moved = before

    def _improve(self, tree: Tree) -> float:
        """Solve one tree; how much the objective rises, 0 where it does not and nothing changes."""
        step = self._step(tree)
        if all(torch.equal(p, torch.arange(p.shape[-1]).expand_as(p)) for p in step.values()):
            return 0.0
        if tree.quadratic:
            moved = self._permuted(tree, step)
            gain = inner_product(self.a, moved, moved) - inner_product(self.a, self.moved, moved)
        else:
            gain = math.fsum(self._gain(group, step) for group in tree.uses)
        if gain <= TOLERANCE * math.fsum(self.norms[name] for name in tree.spec.layouts):
            return 0.0
        self._accept(tree, step, moved if tree.quadratic else self._permuted(tree, step))
        return gain

    def _gain(self, group: str, step: Mapping[str, Tensor]) -> float:
        """tr(M P) − tr(M): what a linear step adds to ⟨A, π(B)⟩ in one group's entries."""
        similarity = self._similarity[group][0]
        columns = slots(self.spec, group, step).to(similarity.device)
        return float((similarity.gather(1, columns[:, None])[:, 0] - similarity.diagonal()).sum())

    def _step(self, tree: Tree, names: set[str] | None = None) -> dict[str, Tensor]:
        """The best step from π(B), compared in the tensors named (None: all)."""
        similarity = {}
        with self.clock.timing("similarity"):
            for group, uses in tree.uses.items():
                here = {k: u for k, u in enumerate(uses) if names is None or u.tensor in names}
                similarity[group] = self._compare(group, here).cpu()
        with self.clock.timing("assignment"):
            return tree.step(similarity, self.prices[tree.root])

    def _compare(self, group: str, uses: Mapping[int, Use]) -> Tensor:
        """The similarity of a group's units, float64 ``(units, units)``.

        That of unit i of A and j of π(B) is the sum of their products over all tensors and axes
        that hold the group: the gradient of ⟨A, π(B)⟩ by the step's permutation matrix.

        Only what is new since the last time is multiplied. Late steps move few units, and change
        few columns of their neighbours' rows.
        """
        units = math.prod(self.spec.groups[group].shape)
        similarity, seen = self._similarity.get(group, (None, {}))
        if similarity is None:
            device = next(iter(self.a.values())).device
            similarity = torch.zeros(units, units, dtype=torch.float64, device=device)
        for k, use in uses.items():
            now, before = self.moved[use.tensor], seen.get(k)
            if now is before:
                continue
            seen[k] = now
            if before is None:
                of_a, of_b = (use.rows(x, torch.float64) for x in (self.a[use.tensor], now))
                similarity.addmm_(of_a, of_b.T)
                continue
            of_a, of_b, was = (use.rows(x) for x in (self.a[use.tensor], now, before))
            changed = (of_b != was).any(0)
            if not changed.all():
                columns = changed.nonzero()[:, 0]
                of_a, of_b, was = (r.index_select(1, columns) for r in (of_a, of_b, was))
            similarity.addmm_(of_a.double(), (of_b.double() - was.double()).T)
        self._similarity[group] = similarity, seen
        return similarity

    def _permuted(self, tree: Tree, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a tree after a step."""
        with self.clock.timing("similarity"):
            return tree.spec.apply({name: self.moved[name] for name in tree.spec.layouts}, step)

    def _accept(self, tree: Tree, step: Mapping[str, Tensor], moved: State) -> None:
        with self.clock.timing("similarity"):
            before = {group: self.permutations[group] for group in tree.uses}
            self.permutations |= tree.spec.compose(before, step)
            self.moved |= moved
            # The step has moved the units of π(B), and with them their prices.
            self.prices[tree.root] = self.prices[tree.root][step[tree.root]]
            if tree.quadratic:
                return  # rows have changed in other ways, too: `_compare` will find out
            for group, uses in tree.uses.items():
                # … and the columns of the similarity.
                similarity, seen = self._similarity[group]
                columns = slots(self.spec, group, step).to(similarity.device)
                self._similarity[group] = (
                    similarity.index_select(1, columns),
                    {k: self.moved[uses[k].tensor] for k in seen},
                )


class Clock(dict[str, float]):
    """Seconds by what they were spent on, summed over threads that work side by side."""

    def __init__(self) -> None:
        super().__init__({"similarity": 0.0, "assignment": 0.0, "total": 0.0})
        self._lock = Lock()

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - began
            with self._lock:
                self[what] = self.get(what, 0.0) + seconds


def _products(a: State, b: State, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """⟨A, B⟩ and ‖A‖‖B‖ by tensor, in float64."""
    names = list(names)
    if not names:
        return {}
    sums = []
    for name in names:
        parts = zip(a[name].flatten().split(PART), b[name].flatten().split(PART), strict=True)
        found = [kernels.pair_sums(x[None], y[None], check=False) for x, y in parts]
        sums.append(torch.cat(found).sum(0))
    return {
        name: (ab, math.sqrt(aa * bb))
        for name, (aa, ab, bb, _) in zip(names, torch.stack(sums).tolist(), strict=True)
    }


def _share(tree: Tree, names: set[str]) -> float:
    """Which share of the entries that a tree's units have is in the tensors named."""
    sizes = {name: math.prod(shape) for name, shape in tree.spec.shapes.items()}
    return sum(sizes[name] for name in names) / max(1, sum(sizes.values()))


def _above(floor: float, trace: list[float]) -> list[float]:
    return [value for value in trace if value > floor]
