"""A plan: which GPU trains which modes, and how long that will take.

`ensure` needs no plan: any number of workers may be given the same list. A plan saves them from
waiting for each other. Modes are dealt out in *pieces* that one GPU trains without waiting for
another: a parent with its children, and as many such families alike as a stack holds. Pieces go to
*packs*, the longest first, each to the pack that has least so far (Graham 1969): O(n log n) for n
modes, and for the sort and the heap alone. A pack is what one GPU trains in one go, an element of a
job array; there are several to a GPU, the longest start first, so that a wrong guess at a pack's
length is made up for by those that have not started yet.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llfc_core.training.cost import Costs
from llfc_core.training.recipe import Recipe, with_parents

# A pack is not made shorter than this for balance's sake: a process starts, and reads its data.
_WORTH_STARTING = 300.0
_PACKS_PER_GPU = 20
_PACKS = 1000  # in all: Slurm's arrays have 1,001 elements at most, unless it is told otherwise


@dataclass(frozen=True)
class Pack:
    """Modes that one GPU trains in one go, parents first, and how many seconds it takes."""

    recipes: tuple[Recipe, ...]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Packs, the longest first, for so many GPUs at a time.

    Attributes
    ----------
    seconds
        Of all packs together.
    critical
        Seconds of the longest line from a parent to its child: no number of GPUs is faster.
    """

    packs: tuple[Pack, ...]
    gpus: int
    seconds: float
    critical: float

    @property
    def bound(self) -> float:
        """Seconds that no schedule on ``gpus`` GPUs can be faster than."""
        return max(self.critical, self.seconds / self.gpus)

    @property
    def makespan(self) -> float:
        """Seconds to the end, where each GPU takes the next pack as soon as it is free."""
        free = [0.0] * self.gpus
        for pack in self.packs:
            heapq.heapreplace(free, free[0] + pack.seconds)
        return max(free)

    def save(self, path: Path, **how: Any) -> None:
        """Write it for the processes that will train, with what they need to know besides."""
        packs = [[recipe.to_dict() for recipe in pack.recipes] for pack in self.packs]
        path.write_text(json.dumps({**how, "packs": packs}))


def make_plan(
    recipes: Iterable[Recipe], costs: Costs, gpus: int, lanes: int = 1, rounds: int | None = None
) -> Plan:
    """Deal out the modes that are to be trained; a parent that is not among them is stored.

    Parameters
    ----------
    gpus
        How many there are at a time; on CPUs, machines.
    lanes
        Stacks that one of them trains side by side: 1 on a GPU, one a core on a CPU.
    rounds
        Packs to a GPU. By default up to 20, and fewer if they would take less than 5 minutes, or
        be more than 1,000 in all.
    """
    pieces = _pieces(list(dict.fromkeys(recipes)), costs)
    total = sum(piece.seconds for piece in pieces) / lanes
    if rounds is None:
        most = min(_PACKS_PER_GPU, _PACKS // gpus)
        rounds = max(1, min(most, int(total / gpus / _WORTH_STARTING)))
    # Number the heap's entries, so that equal loads are not decided by comparing what is in them.
    loads = [(0.0, i) for i in range(min(gpus * rounds, len(pieces)))]
    dealt: list[list[_Piece]] = [[] for _ in loads]
    for piece in sorted(pieces, key=lambda p: -p.seconds):
        load, i = loads[0]
        dealt[i].append(piece)
        heapq.heapreplace(loads, (load + piece.seconds, i))
    packs = [
        Pack(
            tuple(recipe for piece in packed for recipe in piece.recipes),
            max(sum(p.seconds for p in packed) / lanes, max(p.critical for p in packed)),
        )
        for packed in _joined(dealt, min(_WORTH_STARTING, total / gpus / 2) * lanes)
    ]
    return Plan(
        tuple(sorted(packs, key=lambda p: -p.seconds)),
        gpus,
        total,
        max((piece.critical for piece in pieces), default=0.0),
    )


@dataclass(frozen=True)
class _Piece:
    """Families alike, as many as a stack holds.

    ``seconds`` of all its stacks, one after another, ``critical`` of its longest line.
    """

    recipes: tuple[Recipe, ...]
    seconds: float
    critical: float


def _joined(dealt: Iterable[list[_Piece]], least: float) -> list[list[_Piece]]:
    """Packs that are too short for a process of their own, put together until they are not."""
    joined: list[list[_Piece]] = []
    lacking = 0.0  # seconds, of the last one
    for packed in sorted(dealt, key=lambda packed: sum(p.seconds for p in packed)):
        seconds = sum(piece.seconds for piece in packed)
        if lacking > 0 and seconds < least:
            joined[-1] += packed
            lacking -= seconds
        elif packed:
            joined.append(packed)
            lacking = least - seconds
    return joined


def _pieces(recipes: Sequence[Recipe], costs: Costs) -> list[_Piece]:
    wanted = set(recipes)
    families: dict[Recipe, list[Recipe]] = {}
    root: dict[Recipe, Recipe] = {}
    for recipe in with_parents(recipes):
        if recipe not in wanted:
            continue
        above = recipe.parent
        root[recipe] = root[above] if above is not None and above in wanted else recipe
        families.setdefault(root[recipe], []).append(recipe)
    alike: dict[Any, list[list[Recipe]]] = defaultdict(list)
    for first, family in families.items():
        alike[first.along(), tuple(map(_span, family))].append(family)
    pieces = []
    for group in alike.values():
        slots = costs.slots(group[0][0])
        for i in range(0, len(group), slots):
            pieces.append(_piece(group[i : i + slots], costs, slots))
    return pieces


def _piece(families: Sequence[Sequence[Recipe]], costs: Costs, slots: int) -> _Piece:
    one = families[0]
    seconds = {_span(recipe): costs.seconds(recipe) for recipe in one}
    counts = Counter(_span(recipe) for family in families for recipe in family)
    ends: dict[Recipe, float] = {}
    for recipe in one:
        before = 0.0 if recipe.parent is None else ends.get(recipe.parent, 0.0)
        ends[recipe] = before + seconds[_span(recipe)]
    return _Piece(
        # Those that train as a stack side by side, parents first.
        tuple(recipe for generation in zip(*families, strict=True) for recipe in generation),
        sum(-(-n // slots) * seconds[span] for span, n in counts.items()),
        max(ends.values()),
    )


def _span(recipe: Recipe) -> Any:
    """Where a recipe begins and ends: in one family, modes alike are those that agree in it."""
    return None if recipe.parent is None else recipe.parent.stop, recipe.stop


def describe(
    rows: Mapping[str, Sequence[Recipe]], lacking: Sequence[Recipe], costs: Costs, plan: Plan
) -> list[str]:
    """The plan in words.

    Parameters
    ----------
    rows
        The modes that are needed, by what needs them. A mode counts where it is needed first.
    lacking
        Those of them that are to be trained.
    """
    todo, seen = set(lacking), set[Recipe]()
    unit = "GPU-hours" if costs.device.type == "cuda" else "core-hours"
    table = [("", "modes", "to train", unit, "longest, h", "store, GB")]
    for name, needed in rows.items():
        new = [recipe for recipe in with_parents(needed) if recipe not in seen]
        seen.update(new)
        own = make_plan([r for r in new if r in todo], costs, 1, rounds=1)
        table.append(
            (
                name,
                str(len(new)),
                str(sum(r in todo for r in new)),
                f"{own.seconds / 3600:.3f}",
                f"{own.critical / 3600:.3f}",
                f"{sum(map(costs.bytes, new)) / 1e9:.2f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]
    files = sum(2 + (recipe.stop is not None) for recipe in seen)
    device = "GPU" if costs.device.type == "cuda" else "machine"
    lines += [
        "(a mode counts where it is needed first)",
        f"{len(seen)} modes, {len(todo)} to train; in the store, "
        f"{sum(map(costs.bytes, seen)) / 1e9:.1f} GB in {files} files of {len(seen)} folders",
    ]
    if not plan.packs:
        return lines
    return [
        *lines,
        f"{len(plan.packs)} pack{_s(plan.packs)} of {_time(plan.packs[-1].seconds)} to "
        f"{_time(plan.packs[0].seconds)} on {plan.gpus} {device}{'s' if plan.gpus > 1 else ''}: "
        f"{_time(plan.makespan)} in all; no order takes less than {_time(plan.bound)}, "
        f"and no number of {device}s less than {_time(plan.critical)}",
        f"costs of {sum(r.along() in costs.measured for r in todo)} modes are measured, the others "
        "guessed from the networks' operations",
    ]


def _time(seconds: float) -> str:
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _s(things: Sequence[object]) -> str:
    return "" if len(things) == 1 else "s"
