"""How each operation of a network passes on the labels of its axes.

A layout says what the axes of a tensor hold, one entry an axis:

* an array of labels (`llfc_core.matching.units`): the axis holds units. It has the tensor's number
  of axes and its full length along this one; along another axis it has length 1, or that axis'
  length where the units depend on it (those within a block, on the axis that holds the blocks);
* a string: the axis is fixed, and this is the reason;
* None: all indices hold the same (the axis has length 1, or was expanded): any order will do.

Almost everything reduces to two rules. *Elementwise*: what stands at one index of an axis is one
unit. *Reduction*: an axis may be summed over in any order; units that depended on it must then
move alike. A linear map or a convolution is an elementwise product and a reduction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llfc_core.matching.units import Units

Ax = np.ndarray | str | None
Axes = tuple[Ax, ...]
Shape = Sequence[int]

PICKED = "one unit is picked out by its index"
PLACE = "places, not units: an operation runs along them"
KERNEL = "places in a kernel"


class Tape(Protocol):
    """The run so far."""

    units: Units
    step: int  # the number of the operation being followed

    def of(self, tensor: Tensor) -> Axes:
        """A tensor's layout."""
        ...

    def by_row(self, weight: Tensor, axis: int, on: int) -> bool:
        """Whether axis ``axis`` of a weight has a label for each index of axis ``on`` (not 1)."""
        ...

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor depends neither on the input nor on the state."""
        ...


class Call:
    """One operation as it ran: arguments by the names of its schema."""

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        self.name = func._schema.name.removeprefix("aten::")
        self.out = out
        self.values: dict[str, Any] = {}
        for i, argument in enumerate(func._schema.arguments):
            if i < len(args):
                self.values[argument.name] = args[i]
            elif argument.name in kwargs:
                self.values[argument.name] = kwargs[argument.name]
            elif argument.has_default_value():
                self.values[argument.name] = argument.default_value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    @property
    def x(self) -> Tensor:
        """The first argument."""
        return next(iter(self.values.values()))

    def tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        for value in self.values.values():
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found += [v for v in value if isinstance(v, Tensor)]
        return found


Rule = Callable[[Tape, Call], "Axes | list[Axes]"]

# ---- the algebra of layouts --------------------------------------------------------------------


def fix(tape: Tape, axes: Axes, k: int, reason: str) -> None:
    """Axis ``k`` has fixed places: units within blocks become places of the block."""
    labels = axes[k]
    if not isinstance(labels, np.ndarray):
        return
    blocks = [
        a
        for j, a in enumerate(axes)
        if j != k and labels.shape[j] > 1 and isinstance(a, np.ndarray)
    ]
    if not blocks:
        tape.units.freeze(labels, reason)
        tape.units.use(labels)  # blocks in fixed places: their parts cannot leave them
        return
    block = max(blocks, key=lambda a: a.size)
    places = np.arange(labels.shape[k]).reshape([-1 if j == k else 1 for j in range(labels.ndim)])
    tape.units.same(tape.step, labels, tape.units.at(block, places))


def joint(tape: Tape, operands: Iterable[tuple[Axes, Shape]], shape: Shape) -> Axes:
    """The layout of an elementwise operation's result."""
    n = len(shape)
    padded = []
    for axes, size in operands:
        more = n - len(size)
        front = (None,) * more
        padded.append(
            (
                front
                + tuple(
                    a.reshape((1,) * more + a.shape) if isinstance(a, np.ndarray) else a
                    for a in axes
                ),
                (1,) * more + tuple(size),
            )
        )
    result: list[Ax] = []
    for k in range(n):
        fixed: str | None = None
        labelled: list[tuple[Axes, np.ndarray]] = []
        for axes, size in padded:
            here = axes[k]
            if isinstance(here, np.ndarray):
                if size[k] == shape[k]:
                    labelled.append((axes, here))
                else:
                    fix(tape, axes, k, PICKED)
            elif isinstance(here, str) and size[k] == shape[k]:
                fixed = fixed or here
        if fixed is not None:
            for axes, _ in labelled:
                fix(tape, axes, k, fixed)
            result.append(fixed)
        elif labelled:
            chosen = max((a for _, a in labelled), key=lambda a: a.size)
            for _, other in labelled:
                tape.units.same(tape.step, chosen, other)
            result.append(chosen)
        else:
            result.append(None)
    for a in result:
        if isinstance(a, np.ndarray):
            tape.units.touch(tape.step, a)
    return tuple(result)


def reduced(tape: Tape, axes: Axes, dims: Iterable[int], keep: bool = False) -> Axes:
    """The layout once ``dims`` are summed over (or anything else that no order matters for)."""
    result = list(axes)
    dims = {d % len(axes) for d in dims} if axes else set()
    for k in dims:
        mixed(tape, axes, k, dims)
        for j, other in enumerate(result):
            if j not in dims and isinstance(other, np.ndarray):
                result[j] = other.take([0], axis=k)
    if keep:
        return tuple(None if k in dims else a for k, a in enumerate(result))
    gone = tuple(dims)
    return tuple(
        np.squeeze(_one(a, gone), gone) if isinstance(a, np.ndarray) else a
        for k, a in enumerate(result)
        if k not in dims
    )


def _one(labels: np.ndarray, gone: tuple[int, ...]) -> np.ndarray:
    for k in gone:
        labels = labels.take([0], axis=k)
    return labels


def mixed(tape: Tape, axes: Axes, k: int, besides: Iterable[int] = ()) -> None:
    """Units on axis ``k`` are mixed with one another: within their blocks, if they have any.

    Units on other axes (but ``besides``) that depended on it must then move alike.
    """
    for j, other in enumerate(axes):
        if j != k and j not in besides and isinstance(other, np.ndarray) and other.shape[k] > 1:
            tape.units.same(tape.step, other, other.take([0], axis=k))
    labels = axes[k]
    if not isinstance(labels, np.ndarray):
        return
    tape.units.touch(tape.step, labels)
    for j, a in enumerate(axes):
        if j != k and j not in besides and labels.shape[j] > 1 and isinstance(a, np.ndarray):
            tape.units.use(a)


def plain(tape: Tape, axes: Axes, k: int) -> Ax:
    """Axis ``k`` as a vector of labels: units that depend on another axis must move alike."""
    labels = axes[k]
    if not isinstance(labels, np.ndarray):
        return labels
    first = labels
    for j in range(labels.ndim):
        if j != k:
            first = first.take([0], axis=j)
    tape.units.same(tape.step, labels, first)
    return first.reshape(-1)


def along(labels: np.ndarray, k: int, n: int) -> np.ndarray:
    """A vector of labels as labels of axis ``k`` of ``n``."""
    return labels.reshape([-1 if j == k else 1 for j in range(n)])


def contracted(
    tape: Tape, a: tuple[Axes, Shape], b: tuple[Axes, Shape], dims: Sequence[int]
) -> Axes:
    """The product of two tensors of as many axes (of length 1 where one lacks an axis), summed."""
    shape = [max(p, q) for p, q in zip(a[1], b[1])]
    return reduced(tape, joint(tape, (a, b), shape), dims)


def inserted(axes: Axes, shape: Shape, at: int) -> tuple[Axes, tuple[int, ...]]:
    """A new axis of length 1."""
    moved = [np.expand_dims(a, at) if isinstance(a, np.ndarray) else a for a in axes]
    return (*moved[:at], None, *moved[at:]), (*shape[:at], 1, *shape[at:])


def permuted(axes: Axes, order: Sequence[int]) -> Axes:
    order = [d % len(axes) for d in order]
    return tuple(a.transpose(order) if isinstance(a := axes[d], np.ndarray) else a for d in order)


def indexed(tape: Tape, axes: Axes, k: int, index: np.ndarray) -> Axes:
    """Some of the indices of axis ``k``, as an axis again."""
    result: list[Ax] = []
    for j, a in enumerate(axes):
        if isinstance(a, np.ndarray) and (j == k or a.shape[k] > 1):
            a = a.take(index, axis=k)
            if j == k and len(np.unique(index)) < len(index):
                a = distinct(tape, a, k)
        result.append(a)
    return tuple(result)


def picked(tape: Tape, axes: Axes, k: int, index: int) -> Axes:
    """One index of axis ``k``; the axis is gone."""
    one = indexed(tape, axes, k, np.array([index]))
    labels = one[k]
    if isinstance(labels, np.ndarray):
        tape.units.freeze(labels, PICKED)
    return tuple(
        np.squeeze(_one(a, (k,)), k) if isinstance(a, np.ndarray) else a
        for j, a in enumerate(one)
        if j != k
    )


def distinct(tape: Tape, labels: np.ndarray, k: int) -> np.ndarray:
    """Tell the indices of axis ``k`` apart that hold the same label: first, second, …."""
    front = np.moveaxis(labels, k, -1)
    rows = front.reshape(-1, front.shape[-1])
    count = np.zeros_like(rows)
    repeated = False
    for row, number in zip(rows, count):
        order = np.argsort(row, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(row[order]) != 0])
        lengths = np.diff(np.r_[starts, len(row)])
        number[order] = np.arange(len(row)) - np.repeat(starts, lengths)
        repeated |= bool((lengths > 1).any())
    if not repeated:
        return labels
    return np.moveaxis(tape.units.at(front, count.reshape(front.shape)), -1, k)


def _varies(labels: np.ndarray, k: int) -> bool:
    return labels.shape[k] > 1 and bool((labels != labels.take([0], axis=k)).any())


def viewed(tape: Tape, axes: Axes, old: Shape, new: Shape) -> Axes:
    """The layout of the same entries under another shape."""
    for k, n in enumerate(old):
        if n == 1:
            fix(tape, axes, k, PICKED)
    ones = tuple(k for k, n in enumerate(old) if n == 1)
    work: list[Ax] = [
        np.squeeze(a, ones) if isinstance(a, np.ndarray) else a
        for k, a in enumerate(axes)
        if k not in ones
    ]
    have = [n for n in old if n != 1]
    want = [n for n in new if n != 1]
    if have != want:
        ends, goals = list(accumulate(have, int.__mul__)), list(accumulate(want, int.__mul__))
        between = sorted({*ends, *goals})
        if any(q % p for p, q in pairwise(between)):
            between = sorted({*ends} & {*goals})  # lengths that do not nest: through one axis
            work, have = _merged_to(tape, work, have, between)
            ends = between
            between = goals
        work, have = _split_to(tape, work, have, between)
        work, have = _merged_to(tape, work, have, goals)
    result: list[Ax] = []
    for n in new:
        result.append(None if n == 1 else work.pop(0))
    singles = tuple(k for k, n in enumerate(new) if n == 1)
    return tuple(np.expand_dims(a, singles) if isinstance(a, np.ndarray) else a for a in result)


def _split_to(
    tape: Tape, axes: list[Ax], shape: list[int], ends: list[int]
) -> tuple[list[Ax], list[int]]:
    start = math.prod(shape)
    for k in range(len(shape) - 1, -1, -1):
        stop, start = start, start // shape[k]
        cuts = [start, *(e for e in ends if start < e < stop), stop]
        sizes = [q // p for p, q in pairwise(cuts)]
        if len(sizes) > 1:
            axes = _split(tape, axes, k, sizes)
            shape = [*shape[:k], *sizes, *shape[k + 1 :]]
    return axes, shape


def _merged_to(
    tape: Tape, axes: list[Ax], shape: list[int], ends: list[int]
) -> tuple[list[Ax], list[int]]:
    for k, end in enumerate(ends):
        done, m = math.prod(shape[:k]), 1
        while done * math.prod(shape[k : k + m]) < end:
            m += 1
        if m > 1:
            axes = _merged(tape, axes, shape, k, m)
            shape = [*shape[:k], math.prod(shape[k : k + m]), *shape[k + m :]]
    return axes, shape


def _split(tape: Tape, axes: list[Ax], k: int, sizes: list[int]) -> list[Ax]:
    own = axes[k]
    result: list[Ax] = []
    for j, a in enumerate(axes):
        if j == k:
            if isinstance(own, np.ndarray):
                result += _split_labels(tape, own, k, sizes)
            else:
                result += [own] * len(sizes)
        elif isinstance(a, np.ndarray):
            middle = sizes if a.shape[k] > 1 else [1] * len(sizes)
            result.append(a.reshape(*a.shape[:k], *middle, *a.shape[k + 1 :]))
        else:
            result.append(a)
    return result


def _split_labels(tape: Tape, labels: np.ndarray, k: int, sizes: list[int]) -> list[Ax]:
    """Labels of the axes that axis ``k`` is split into."""
    parts = tape.units.whole(labels)
    if parts is not None:
        # units with places, e.g. a flattened C×H×W: axes of places become fixed axes again
        shape = (*labels.shape[:k], *sizes, *labels.shape[k + 1 :])
        wholes, places = (p.reshape(shape) for p in parts)
        inside = range(k, k + len(sizes))
        of_places = [j for j in inside if not _varies(wholes, j)]
        count = math.prod(shape[j] for j in of_places)
        if (
            of_places
            and len(np.unique(places)) == count
            and not any(_varies(places, j) for j in range(len(shape)) if j not in of_places)
        ):
            of_units = [j for j in inside if j not in of_places]
            result: list[Ax] = ["places of a flattened unit"] * len(sizes)
            if of_units:
                wholes = _one(wholes, tuple(of_places))
                flat = wholes.reshape(*labels.shape[:k], -1, *labels.shape[k + 1 :])
                lengths = [shape[j] for j in of_units]
                deeper = _split_labels(tape, flat, k, lengths) if len(lengths) > 1 else [flat]
                for j, a in zip(of_units, deeper):
                    if isinstance(a, np.ndarray):
                        if len(lengths) == 1:
                            a = a.reshape(wholes.shape)
                        else:
                            a = np.expand_dims(a, tuple(of_places))
                    result[j - k] = a
            return result
    return list(tape.units.split(labels, k, tuple(sizes)))


def _merged(tape: Tape, axes: list[Ax], shape: list[int], k: int, m: int) -> list[Ax]:
    """Axes k … k+m−1 become one."""
    inside = range(k, k + m)
    length = math.prod(shape[k : k + m])
    labelled = {j: a for j in inside if isinstance(a := axes[j], np.ndarray)}
    own: Ax
    if not labelled:
        own = next((a for a in (axes[j] for j in inside) if isinstance(a, str)), None)
    else:
        # the axis whose units tell the most: parts of blocks tell the blocks too
        def telling(j: int) -> tuple[int, bool, int]:
            a = labelled[j]
            return sum(a.shape[i] > 1 for i in labelled), not tape.units.is_idle(a), -j

        best = max(labelled, key=telling)
        labels = labelled[best]
        for j in labelled:
            if j != best and labels.shape[j] == 1:
                fix(tape, tuple(axes), j, "flattened together with other units")
        rest = [j for j in inside if j != best and labels.shape[j] == 1]
        if rest:
            places = np.arange(math.prod(shape[j] for j in rest)).reshape(
                [shape[j] if j in rest else 1 for j in range(len(shape))]
            )
            labels = tape.units.at(labels, places)
        full = [shape[j] if j in inside else labels.shape[j] for j in range(len(shape))]
        labels = np.broadcast_to(labels, full)
        own = distinct(tape, labels.reshape(*full[:k], length, *full[k + m :]), k)
    result: list[Ax] = []
    for j, a in enumerate(axes):
        if j == k:
            result.append(own)
        elif j not in inside:
            if isinstance(a, np.ndarray):
                if any(a.shape[i] > 1 for i in inside):
                    full = [shape[i] if i in inside else a.shape[i] for i in range(len(shape))]
                    a = np.broadcast_to(a, full)
                    a = a.reshape(*full[:k], length, *full[k + m :])
                    if not _varies(a, k):
                        a = a.take([0], axis=k)
                else:
                    a = np.squeeze(a, tuple(range(k + 1, k + m)))
            result.append(a)
    return result


def restrided(
    tape: Tape, axes: Axes, old: tuple[Shape, Shape], new: tuple[Shape, Shape]
) -> Axes | None:
    """The layout of the same memory under another (shape, strides): axes reordered, 1s put in.

    None where it is anything else.
    """
    have = [(s, n, k) for k, (n, s) in enumerate(zip(*old)) if n != 1]
    want = [(s, n) for n, s in zip(*new) if n != 1]
    if sorted(want) != sorted(h[:2] for h in have) or len({s for s, _ in want}) < len(want):
        return None
    place = {s: k for s, _, k in have}
    ones = [k for k, n in enumerate(old[0]) if n == 1]
    order = [place[s] for s, _ in want] + ones
    moved = permuted(axes, order)
    return viewed(tape, moved, [old[0][k] for k in order], new[0])


def expanded(tape: Tape, axes: Axes, old: Shape, new: Shape) -> Axes:
    more = len(new) - len(old)
    result: list[Ax] = [None] * more
    for k, a in enumerate(axes):
        if isinstance(a, np.ndarray):
            if old[k] != new[k + more]:
                fix(tape, axes, k, PICKED)
                a = None
            else:
                a = a.reshape((1,) * more + a.shape)
        elif old[k] != new[k + more]:
            a = None
        result.append(a)
    return tuple(result)


# ---- rules of operations -----------------------------------------------------------------------


def elementwise(tape: Tape, c: Call) -> Axes | list[Axes]:
    outs = c.out if isinstance(c.out, (tuple, list)) else [c.out]
    operands = [(tape.of(t), t.shape) for t in c.tensors()]
    result = joint(tape, operands, outs[0].shape)
    return [result] * len(outs) if isinstance(c.out, (tuple, list)) else result


def uniform(tape: Tape, c: Call) -> Axes:
    """zeros, ones, full: any order leaves them as they are."""
    return (None,) * c.out.ndim


def view(tape: Tape, c: Call) -> Axes:
    return viewed(tape, tape.of(c.x), c.x.shape, c.out.shape)


def permute(tape: Tape, c: Call) -> Axes:
    return permuted(tape.of(c.x), c["dims"])


def transpose(tape: Tape, c: Call) -> Axes:
    order = list(range(c.x.ndim))
    i, j = (c["dim0"], c["dim1"]) if "dim0" in c.values else (0, -1)
    if c.x.ndim > 1:
        order[i], order[j] = order[j], order[i]
    return permuted(tape.of(c.x), order)


def as_strided(tape: Tape, c: Call) -> Axes | list[Axes]:
    x = c.x
    if x.storage_offset() == c.out.storage_offset():
        old, new = (x.shape, x.stride()), (c.out.shape, c.out.stride())
        if (axes := restrided(tape, tape.of(x), old, new)) is not None:
            return axes
    return frozen(tape, c)


def expand(tape: Tape, c: Call) -> Axes:
    return expanded(tape, tape.of(c.x), c.x.shape, c.out.shape)


def repeat(tape: Tape, c: Call) -> Axes:
    axes, shape = tape.of(c.x), tuple(c.x.shape)
    times = list(c["repeats"])
    for _ in range(len(times) - len(shape)):
        axes, shape = inserted(axes, shape, 0)
    for k in range(len(times) - 1, -1, -1):
        if times[k] > 1:
            axes, shape = inserted(axes, shape, k)
            wide = (*shape[:k], times[k], *shape[k + 1 :])
            axes = expanded(tape, axes, shape, wide)
            shape = (*wide[:k], wide[k] * wide[k + 1], *wide[k + 2 :])
            axes = viewed(tape, axes, wide, shape)
    return axes


def select(tape: Tape, c: Call) -> Axes:
    k = c["dim"] % c.x.ndim
    return picked(tape, tape.of(c.x), k, c["index"] % c.x.shape[k])


def slice_(tape: Tape, c: Call) -> Axes:
    k = c["dim"] % c.x.ndim
    index = np.arange(c.x.shape[k])[c["start"] : c["end"] : c["step"]]
    if len(index) == c.x.shape[k]:
        return tape.of(c.x)
    return indexed(tape, tape.of(c.x), k, index)


def split(tape: Tape, c: Call) -> list[Axes]:
    k = c["dim"] % c.x.ndim
    axes = tape.of(c.x)
    result, start = [], 0
    for part in c.out:
        result.append(indexed(tape, axes, k, np.arange(start, start + part.shape[k])))
        start += part.shape[k]
    return result


def unbind(tape: Tape, c: Call) -> list[Axes]:
    k = c["dim"] % c.x.ndim
    axes = tape.of(c.x)
    return [picked(tape, axes, k, i) for i in range(len(c.out))]


def unsqueeze(tape: Tape, c: Call) -> Axes:
    return inserted(tape.of(c.x), c.x.shape, c["dim"] % c.out.ndim)[0]


def flip(tape: Tape, c: Call) -> Axes:
    axes = tape.of(c.x)
    for k in c["dims"]:
        axes = indexed(tape, axes, k % c.x.ndim, np.arange(c.x.shape[k])[::-1])
    return axes


def roll(tape: Tape, c: Call) -> Axes:
    axes = tape.of(c.x)
    if not c["dims"]:
        flat = viewed(tape, axes, c.x.shape, (c.x.numel(),))
        flat = indexed(tape, flat, 0, np.roll(np.arange(c.x.numel()), c["shifts"][0]))
        return viewed(tape, flat, (c.x.numel(),), c.x.shape)
    for shift, k in zip(c["shifts"], c["dims"]):
        axes = indexed(tape, axes, k % c.x.ndim, np.roll(np.arange(c.x.shape[k]), shift))
    return axes


def concatenate(tape: Tape, pieces: list[tuple[Axes, Shape]], k: int) -> Axes:
    n = len(pieces[0][1])
    whole = [max(shape[j] for _, shape in pieces) for j in range(n)]
    # the axis itself: one piece after the other
    own: Ax = None
    if any(isinstance(axes[k], np.ndarray) or axes[k] is None for axes, _ in pieces):
        labels = []
        for axes, shape in pieces:
            here = axes[k]
            if not isinstance(here, np.ndarray):
                vector = tape.units.fresh(shape[k])
                if isinstance(here, str):
                    tape.units.freeze(vector, here)
                here = along(vector, k, n)
            labels.append(here)
        wide = [1 if j == k else max(a.shape[j] for a in labels) for j in range(n)]
        labels = [
            np.broadcast_to(a, [a.shape[k] if j == k else wide[j] for j in range(n)])
            for a in labels
        ]
        rows = np.concatenate(labels, axis=k)
        if len(np.unique(rows)) < sum(len(np.unique(a)) for a in labels):
            labels = [tape.units.at(a, np.array(i)) for i, a in enumerate(labels)]
            rows = np.concatenate(labels, axis=k)
        own = rows
    else:
        own = next(str(axes[k]) for axes, _ in pieces)
    # all other axes: what stands at one index is one unit, in all pieces
    others = [
        (tuple(None if j == k else _free_of(tape, axes, j, k) for j in range(n)), shape)
        for axes, shape in pieces
    ]
    rest = joint(
        tape,
        [(axes, [1 if j == k else s for j, s in enumerate(shape)]) for axes, shape in others],
        [1 if j == k else s for j, s in enumerate(whole)],
    )
    result = (*rest[:k], own, *rest[k + 1 :])
    if isinstance(own, np.ndarray):
        tape.units.touch(tape.step, own)
    return result


def _free_of(tape: Tape, axes: Axes, j: int, k: int) -> Ax:
    """Axis ``j`` with no dependence on axis ``k``."""
    a = axes[j]
    if isinstance(a, np.ndarray) and a.shape[k] > 1:
        first = a.take([0], axis=k)
        tape.units.same(tape.step, a, first)
        return first
    return a


def cat(tape: Tape, c: Call) -> Axes:
    tensors = [t for t in c["tensors"] if not (t.ndim == 1 and t.numel() == 0)]
    k = c["dim"] % c.out.ndim
    if len(tensors) == 1:
        return tape.of(tensors[0])
    return concatenate(tape, [(tape.of(t), t.shape) for t in tensors], k)


def stack(tape: Tape, c: Call) -> Axes:
    """A fixed new axis; other axes may hold different units at each of its indices."""
    k, n = c["dim"] % c.out.ndim, c.out.ndim
    pieces = [inserted(tape.of(t), t.shape, k)[0] for t in c["tensors"]]
    order = "the order of a stack"
    result: list[Ax] = []
    for j in range(n):
        if j == k:
            result.append(None if c.out.shape[k] == 1 else order)
            continue
        here = [p[j] for p in pieces]
        labels = [a for a in here if isinstance(a, np.ndarray)]
        fixed = next((a for a in here if isinstance(a, str)), None)
        if fixed is not None:
            for piece in pieces:
                fix(tape, piece, j, fixed)
            result.append(fixed)
        elif not labels:
            result.append(None)
        else:
            here = [
                a if isinstance(a, np.ndarray) else along(tape.units.idle(c.out.shape[j]), j, n)
                for a in here
            ]
            wide = np.broadcast_shapes(*(a.shape for a in here if isinstance(a, np.ndarray)))
            field = np.concatenate([np.broadcast_to(a, wide) for a in here], axis=k)  # type: ignore[arg-type]
            result.append(field if _varies(field, k) else field.take([0], axis=k))
    for a in result:
        if isinstance(a, np.ndarray):
            tape.units.touch(tape.step, a)
    return tuple(result)


def pad(tape: Tape, c: Call) -> Axes:
    axes, x, amounts = tape.of(c.x), c.x, list(c["pad"])
    n = x.ndim
    for i in range(0, len(amounts), 2):
        k, before, after = n - 1 - i // 2, amounts[i], amounts[i + 1]
        if before == after == 0:
            continue
        labels = axes[k]
        axes = tuple(_free_of(tape, axes, j, k) if j != k else axes[j] for j in range(n))
        if labels is None:
            axes = (*axes[:k], "padded", *axes[k + 1 :])
        if not isinstance(labels, np.ndarray):
            continue
        front, back = max(-before, 0), labels.shape[k] - max(-after, 0)
        labels = labels.take(np.arange(front, back), axis=k)
        ends = np.split(tape.units.fresh(max(before, 0) + max(after, 0)), [max(before, 0)])
        wide = [labels.shape[j] for j in range(n)]
        pieces = [
            np.broadcast_to(along(e, k, n), [len(e) if j == k else wide[j] for j in range(n)])
            for e in ends
        ]
        labels = np.concatenate([pieces[0], labels, pieces[1]], axis=k)
        tape.units.touch(tape.step, labels)
        axes = (*axes[:k], labels, *axes[k + 1 :])
    return axes


def reduce(tape: Tape, c: Call) -> Axes | list[Axes]:
    dims = c.get("dim")
    if dims is None or dims == []:
        dims = list(range(c.x.ndim))
    dims = [dims] if isinstance(dims, int) else dims
    axes = tape.of(c.x)
    result = reduced(tape, axes, dims, bool(c.get("keepdim", False)))
    return [result] * len(c.out) if isinstance(c.out, (tuple, list)) else result


def pick_extreme(tape: Tape, c: Call) -> Axes | list[Axes]:
    """Reductions that return an index: it tells one unit from another."""
    if "dim" in c.values and c["dim"] is not None:
        fix(tape, tape.of(c.x), c["dim"] % max(c.x.ndim, 1), f"{c.name} returns an index into it")
    elif isinstance(c.out, Tensor) and not c.out.is_floating_point():
        for k in range(c.x.ndim):
            fix(tape, tape.of(c.x), k, f"{c.name} returns an index into it")
    return reduce(tape, c)


def ordered(tape: Tape, c: Call) -> Axes | list[Axes]:
    """The order along one axis matters; all else passes through."""
    k = (c.get("dim") if c.get("dim") is not None else -1) % max(c.x.ndim, 1)
    reason = f"{c.name} depends on the order"
    fix(tape, tape.of(c.x), k, reason)
    outs = c.out if isinstance(c.out, (tuple, list)) else [c.out]
    axes = tape.of(c.x)
    axes = tuple(_free_of(tape, axes, j, k) if j != k else reason for j in range(c.x.ndim))
    return [axes] * len(outs) if isinstance(c.out, (tuple, list)) else axes


def triangle(tape: Tape, c: Call) -> Axes:
    axes = tape.of(c.x)
    for k in (c.x.ndim - 2, c.x.ndim - 1):
        fix(tape, axes, k, f"{c.name} depends on the order")
    return (*axes[:-2], f"{c.name} depends on the order", f"{c.name} depends on the order")


def softmax(tape: Tape, c: Call) -> Axes:
    axes = tape.of(c.x)
    mixed(tape, axes, c["dim"] % max(c.x.ndim, 1))
    return axes


def matmul(tape: Tape, c: Call) -> Axes:
    """mm, bmm, mv, dot, linear and the same with a sum: addmm, baddbmm, addbmm, addmv."""
    names = {
        "addmm": ("mat1", "mat2"),
        "baddbmm": ("batch1", "batch2"),
        "addmv": ("mat", "vec"),
        "mv": ("self", "vec"),
        "dot": ("self", "tensor"),
        "linear": ("input", "weight"),
    }
    first, second = (c[n] for n in names.get(c.name, ("self", "mat2")))
    a, p = tape.of(first), tuple(first.shape)
    b, q = tape.of(second), tuple(second.shape)
    if c.name == "linear":
        b, q = permuted(b, (1, 0)), q[::-1]
    if len(p) == 1:
        a, p = inserted(a, p, 0)
    if len(q) == 1:
        b, q = inserted(b, q, 1)
    n = max(len(p), len(q))
    while len(p) < n:
        a, p = inserted(a, p, 0)
    while len(q) < n:
        b, q = inserted(b, q, 0)
    for k in range(n - 2):
        if isinstance(here := a[k], np.ndarray):
            tape.units.heads.append(here)
    # a (…, m, k) as (…, m, k, 1); b (…, k, n) as (…, 1, k, n)
    a, p = inserted(a, p, n)
    b, q = inserted(b, q, n - 2)
    axes = contracted(tape, (a, p), (b, q), [n - 1])
    shape = [*(max(r, s) for r, s in zip(p[: n - 2], q)), p[n - 2], q[n]]
    if len(c.out.shape) < n:
        axes = viewed(tape, axes, shape, c.out.shape)
    added = c.get("bias") if c.name == "linear" else c.get("self")
    if c.name in ("addmm", "baddbmm", "addmv", "linear") and added is not None:
        axes = joint(tape, [(axes, c.out.shape), (tape.of(added), added.shape)], c.out.shape)
    return axes


def convolution(tape: Tape, c: Call) -> Axes:
    x, weight, bias = c["input"], c["weight"], c["bias"]
    groups, turned = c["groups"], c["transposed"]
    axes = tape.of(x)
    for k in range(2, x.ndim):
        fix(tape, axes, k, PLACE)
    channels = plain(tape, axes, 1)
    n_out = c.out.shape[1]
    dim_in, dim_out = (0, 1) if turned else (1, 0)
    inner = 1  # the axis with a slice for each group: inputs of a group, or outputs if turned
    by_row = groups > 1 and tape.by_row(weight, inner, 1 - inner)
    kernel = tape.of(weight)
    for k in range(2, weight.ndim):
        fix(tape, kernel, k, KERNEL)
    units, step = tape.units, tape.step
    if groups == 1:
        w_in, w_out = plain(tape, kernel, dim_in), plain(tape, kernel, dim_out)
        _tie(tape, channels, w_in)
        out = _labels(tape, w_out, n_out)
    else:
        ins, outs = x.shape[1] // groups, n_out // groups
        per_row = weight.shape[0] // groups
        held = _labels(tape, channels, x.shape[1]).reshape(groups, ins)
        rows = _labels(tape, plain(tape, kernel, 0), weight.shape[0]).reshape(groups, per_row)
        # the other axis of the weight, for each row the units of its group
        here = kernel[inner]
        if isinstance(here, np.ndarray):
            whole = here.reshape(here.shape[:2])[: None if by_row else 1]
        else:
            whole = _labels(tape, here, weight.shape[1])[None]
        inner_labels = np.broadcast_to(whole, tuple(weight.shape[:2]))
        inner_labels = inner_labels.reshape(groups, per_row, -1)
        if turned:
            made = units.fresh(groups, outs)
            units.same(step, rows, held)
            if outs > 1:
                units.same(step, inner_labels, np.broadcast_to(made[:, None], inner_labels.shape))
        else:
            made = rows
            if ins > 1:
                units.same(step, inner_labels, np.broadcast_to(held[:, None], inner_labels.shape))
        if ins == 1:
            block = held[:, 0]
        elif outs == 1:
            block = made[:, 0]
        else:
            block = units.fresh(groups)
        units.use(block)
        if ins > 1:
            units.within(held, block[:, None])
        if outs > 1:
            units.within(made, block[:, None])
        if ins == outs == 1:
            units.same(step, made, held)
        out = made.reshape(-1)
    units.touch(step, out)
    if isinstance(channels, np.ndarray):
        units.touch(step, channels)
    result: list[Ax] = [_alone_axis(tape, axes, 0), along(out, 1, x.ndim)]
    result += [PLACE if n > 1 else None for n in c.out.shape[2:]]
    if bias is not None:
        _tie(tape, out, plain(tape, tape.of(bias), 0))
    return tuple(result)


def _labels(tape: Tape, axis: Ax, length: int) -> np.ndarray:
    """A vector of labels, also where the axis is fixed."""
    if isinstance(axis, np.ndarray):
        return axis
    labels = tape.units.fresh(length)
    if axis is not None:
        tape.units.freeze(labels, axis)
    return labels


def _alone_axis(tape: Tape, axes: Axes, k: int) -> Ax:
    labels = plain(tape, axes, k)
    return along(labels, k, len(axes)) if isinstance(labels, np.ndarray) else labels


def _tie(tape: Tape, a: Ax, b: Ax) -> None:
    """Two vectors of labels, index by index."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, np.ndarray) and isinstance(other, str):
            tape.units.freeze(one, other)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        tape.units.same(tape.step, a, b)


def _affine(tape: Tape, axes: Axes, shape: Shape, k: int, c: Call, names: Iterable[str]) -> Axes:
    """Vectors that belong to axis ``k``: scales, shifts, running statistics."""
    operands: list[tuple[Axes, Shape]] = [(axes, shape)]
    for name in names:
        vector = c.get(name)
        if isinstance(vector, Tensor):
            labels = tape.of(vector)[0]
            layout: list[Ax] = [None] * len(shape)
            layout[k] = along(labels, k, len(shape)) if isinstance(labels, np.ndarray) else labels
            operands.append((tuple(layout), [n if j == k else 1 for j, n in enumerate(shape)]))
    return joint(tape, operands, shape)


def batch_norm(tape: Tape, c: Call) -> list[Axes] | Axes:
    x = c.x
    axes = tape.of(x)
    training = c.get("training", "running_var" not in c.values or c.name.endswith("with_update"))
    if training:  # statistics are taken over all axes but the channels
        labels = plain(tape, axes, 1)
        own = along(labels, 1, x.ndim) if isinstance(labels, np.ndarray) else labels
        for k in range(x.ndim):
            if k != 1:
                mixed(tape, axes, k)
        axes = (axes[0], own, *axes[2:])
    names = ("weight", "bias", "running_mean", "running_var")
    axes = _affine(tape, axes, x.shape, 1, c, names)
    labels = axes[1]
    vector: Axes = (labels.reshape(-1) if isinstance(labels, np.ndarray) else labels,)
    if not isinstance(c.out, (tuple, list)):
        return axes
    return [
        axes
        if o.ndim == x.ndim
        else vector
        if o.ndim == 1 and o.numel() == x.shape[1]
        else ("not followed",)
        for o in c.out
    ]


def layer_norm(tape: Tape, c: Call) -> list[Axes]:
    x, n = c.x, len(c["normalized_shape"])
    axes = tape.of(x)
    over = range(x.ndim - n, x.ndim)
    for k in over:
        mixed(tape, axes, k, over)
    operands = [(axes, x.shape)]
    for name in ("weight", "bias"):
        if isinstance(p := c.get(name), Tensor):
            operands.append((tape.of(p), p.shape))
    axes = joint(tape, operands, x.shape)
    statistic = reduced(tape, axes, over, keep=True)
    return [axes, *[statistic] * (len(c.out) - 1)]


def group_norm(tape: Tape, c: Call) -> list[Axes]:
    x, groups = c.x, c["group"]
    axes = tape.of(x)
    labels = plain(tape, axes, 1)
    per = x.shape[1] // groups
    if isinstance(labels, np.ndarray):
        axes = (axes[0], along(labels, 1, x.ndim), *axes[2:])
        tape.units.touch(tape.step, labels)
        if groups > 1 and per > 1:
            block = tape.units.fresh(groups, 1)
            tape.units.within(labels.reshape(groups, per), block)
            tape.units.use(block)
    for k in range(2, x.ndim):
        mixed(tape, axes, k)
    axes = _affine(tape, axes, x.shape, 1, c, ("weight", "bias"))
    statistic: Axes = (axes[0] if isinstance(axes[0], str) else None, "statistics of groups")
    return [axes, *[statistic] * (len(c.out) - 1)]


def pool(tape: Tape, c: Call) -> Axes | list[Axes]:
    """Pooling and resampling: along all axes after the channels."""
    x, outs = c.x, c.out if isinstance(c.out, (tuple, list)) else [c.out]
    axes = tape.of(x)
    spatial = next((int(s) for s in "123" if f"{s}d" in c.name), x.ndim - 2)
    for k in range(x.ndim - spatial, x.ndim):
        fix(tape, axes, k, PLACE)
    kept: list[Ax] = []
    for j in range(x.ndim - spatial):
        a = axes[j]
        if isinstance(a, np.ndarray):
            for k in range(x.ndim - spatial, x.ndim):
                a = _free_of(tape, (*axes[:j], a, *axes[j + 1 :]), j, k)
            assert isinstance(a, np.ndarray)
            tape.units.touch(tape.step, a)
        kept.append(a)
    result = (*kept, *[PLACE if n > 1 else None for n in outs[0].shape[x.ndim - spatial :]])
    return [result] * len(outs) if isinstance(c.out, (tuple, list)) else result


def pixel_shuffle(tape: Tape, c: Call) -> Axes:
    x, up = c.x, c.name == "pixel_shuffle"
    factor = c["upscale_factor"] if up else c["downscale_factor"]
    *lead, ch, h, w = x.shape
    n = len(lead)
    axes = tape.of(x)
    before = list(range(n))
    if up:
        apart = [*lead, ch // factor**2, factor, factor, h, w]
        order = [*before, n, n + 3, n + 1, n + 4, n + 2]
        places: tuple[int, ...] = (n + 1, n + 2)
    else:
        apart = [*lead, ch, h // factor, factor, w // factor, factor]
        order = [*before, n, n + 2, n + 4, n + 1, n + 3]
        places = (n + 1, n + 2, n + 3, n + 4)
    axes = viewed(tape, axes, x.shape, apart)
    for k in places:
        fix(tape, axes, k, PLACE)
    axes = tuple(PLACE if k in places else a for k, a in enumerate(axes))
    # the fixed axes depend on no unit now, but units may have depended on them
    axes = tuple(
        _over(tape, axes, j, places) if isinstance(axes[j], np.ndarray) else axes[j]
        for j in range(len(axes))
    )
    return viewed(tape, permuted(axes, order), [apart[d] for d in order], c.out.shape)


def _over(tape: Tape, axes: Axes, j: int, ks: Iterable[int]) -> Ax:
    for k in ks:
        axes = (*axes[:j], _free_of(tape, axes, j, k), *axes[j + 1 :])
    return axes[j]


def embedding(tape: Tape, c: Call) -> Axes:
    weight, index = c["weight"], c["indices"]
    axes = tape.of(weight)
    fix(tape, axes, 0, "rows are looked up by their number")
    labels = plain(tape, axes, 1)
    for k in range(index.ndim):
        fix(tape, tape.of(index), k, "numbers of rows")
    front: list[Ax] = [a if isinstance(a, str) else None for a in tape.of(index)]
    front = [
        "numbers of rows" if n > 1 and not isinstance(a, str) else a
        for a, n in zip(front, index.shape)
    ]
    if isinstance(labels, np.ndarray):
        tape.units.touch(tape.step, labels)
        return (*front, along(labels, index.ndim, index.ndim + 1))
    return (*front, labels)


def index(tape: Tape, c: Call) -> Axes:
    x, indices = c.x, list(c["indices"])
    axes = tape.of(x)
    used = [k for k, i in enumerate(indices) if i is not None]
    only = indices[used[0]]
    if len(used) == 1 and only.ndim == 1 and only.dtype != torch.bool and tape.is_constant(only):
        return indexed(tape, axes, used[0], only.cpu().numpy() % x.shape[used[0]])
    reason = "looked up by number"
    for i in (indices[k] for k in used):
        for k in range(i.ndim):
            fix(tape, tape.of(i), k, "numbers of what is looked up")
    for k in used:
        fix(tape, axes, k, reason)
    kept = [_over(tape, axes, j, used) for j in range(x.ndim) if j not in used]
    if used != list(range(used[0], used[-1] + 1)):
        for j, _ in enumerate(axes):
            fix(tape, axes, j, reason)
        return tuple(reason for _ in c.out.shape)
    n_front, n_index = used[0], c.out.ndim - len(kept)
    result: list[Ax] = []
    for a in kept:
        if isinstance(a, np.ndarray):
            a = np.squeeze(a, tuple(used))
            a = np.expand_dims(a, tuple(range(n_front, n_front + n_index)))
        result.append(a)
    return (*result[:n_front], *[reason] * n_index, *result[n_front:])


def index_select(tape: Tape, c: Call) -> Axes:
    x, k = c.x, c["dim"] % max(c.x.ndim, 1)
    if tape.is_constant(c["index"]):
        return indexed(tape, tape.of(x), k, c["index"].cpu().numpy().reshape(-1) % x.shape[k])
    fix(tape, tape.of(x), k, "looked up by number")
    fix(tape, tape.of(c["index"]), 0, "numbers of what is looked up")
    axes = tape.of(x)
    return tuple(
        "looked up by number" if j == k else _free_of(tape, axes, j, k) for j in range(x.ndim)
    )


def gather(tape: Tape, c: Call) -> Axes | list[Axes]:
    x, k, where = c.x, c["dim"] % max(c.x.ndim, 1), c["index"]
    if any(where.shape[j] != x.shape[j] for j in range(x.ndim) if j != k):
        return frozen(tape, c)
    axes, numbers = tape.of(x), tape.of(where)
    fix(tape, axes, k, "looked up by number")
    fix(tape, numbers, k, "numbers of what is looked up")
    axes = tuple(None if j == k else _free_of(tape, axes, j, k) for j in range(x.ndim))
    numbers = tuple(None if j == k else _free_of(tape, numbers, j, k) for j in range(x.ndim))
    flat = [1 if j == k else n for j, n in enumerate(where.shape)]
    result = joint(tape, [(axes, flat), (numbers, flat)], flat)
    return tuple("looked up by number" if j == k else a for j, a in enumerate(result))


def glu(tape: Tape, c: Call) -> Axes:
    k, axes = c["dim"] % c.x.ndim, tape.of(c.x)
    half = c.x.shape[k] // 2
    parts = [indexed(tape, axes, k, np.arange(i, i + half)) for i in (0, half)]
    return joint(tape, [(p, c.out.shape) for p in parts], c.out.shape)


def unfold(tape: Tape, c: Call) -> Axes:
    k, axes = c["dimension"] % c.x.ndim, tape.of(c.x)
    fix(tape, axes, k, PLACE)
    axes = tuple(PLACE if j == k else _free_of(tape, axes, j, k) for j in range(c.x.ndim))
    return (*(a[..., None] if isinstance(a, np.ndarray) else a for a in axes), PLACE)


def im2col(tape: Tape, c: Call) -> Axes:
    axes = tape.of(c.x)
    for k in (-2, -1):
        fix(tape, axes, c.x.ndim + k, PLACE)
    axes = tuple(_over(tape, axes, j, (c.x.ndim - 2, c.x.ndim - 1)) for j in range(c.x.ndim - 2))
    cells = math.prod(c["kernel_size"])
    labels = axes[-1]
    if isinstance(labels, np.ndarray):
        labels = labels.reshape(labels.shape[:-2])
        wide = (*labels.shape, 1)
        parts = tape.units.at(labels.reshape(wide), np.arange(cells))
        labels = parts.reshape(*labels.shape[:-1], -1, 1)
    lead = tuple(a[..., 0] if isinstance(a, np.ndarray) else a for a in axes[:-1])
    return (*lead, labels, PLACE)


def weight_norm(tape: Tape, c: Call) -> list[Axes]:
    v, g, k = c["v"], c["g"], c["dim"]
    axes = tape.of(v)
    result = joint(tape, [(axes, v.shape), (tape.of(g), g.shape)], v.shape)
    for j in range(v.ndim):
        if j != k:
            mixed(tape, axes, j)
    return [result, tape.of(g)]


def copy(tape: Tape, c: Call) -> Axes:
    src = c["src"]
    return joint(tape, [(tape.of(c.x), c.x.shape), (tape.of(src), src.shape)], c.x.shape)


def constant(tape: Tape, c: Call) -> Axes:
    return tuple("a constant of the network" if n > 1 else None for n in c.out.shape)


def frozen(tape: Tape, c: Call) -> Axes | list[Axes]:
    """What there is no rule for: nothing that enters it, or comes out of it, may move."""
    reason = f"{c.name} is not followed"
    for t in c.tensors():
        for a in tape.of(t):
            if isinstance(a, np.ndarray):
                tape.units.freeze(a, reason)
    if isinstance(c.out, (tuple, list)):
        return [tuple(reason for _ in o.shape) if isinstance(o, Tensor) else () for o in c.out]
    return tuple(reason for _ in c.out.shape) if isinstance(c.out, Tensor) else ()


def _rules() -> dict[str, Rule]:
    table: list[tuple[Rule, str]] = [
        (
            elementwise,
            """native_dropout clone _to_copy lift_fresh lift_fresh_copy detach alias contiguous
            fill zero masked_fill where clamp clamp_min clamp_max threshold relu relu6 elu gelu silu
            mish hardswish hardsigmoid hardtanh leaky_relu softplus softshrink hardshrink sigmoid
            tanh _prelu_kernel prelu log_sigmoid_forward rrelu_with_noise add sub mul div pow rsub
            addcmul addcdiv lerp bitwise_and bitwise_or bitwise_not logical_and logical_or
            logical_not eq ne lt le gt ge isnan isinf nan_to_num floor_divide remainder fmod abs neg
            exp log sqrt rsqrt sin cos erf maximum minimum square reciprocal sign round floor ceil
            bernoulli uniform normal rand_like randn_like dropout feature_dropout celu selu
            real _conj conj _neg_view""",
        ),
        (copy, "copy"),
        (
            uniform,
            """zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones
            new_full new_empty empty_strided new_empty_strided scalar_tensor""",
        ),
        (constant, "arange linspace logspace eye tril_indices triu_indices range"),
        (view, "view _unsafe_view reshape _reshape_alias squeeze flatten _view_copy view_copy"),
        (unsqueeze, "unsqueeze"),
        (permute, "permute"),
        (transpose, "t transpose"),
        (as_strided, "as_strided"),
        (expand, "expand"),
        (repeat, "repeat"),
        (select, "select"),
        (slice_, "slice"),
        (split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk"),
        (unbind, "unbind"),
        (flip, "flip"),
        (roll, "roll"),
        (cat, "cat"),
        (stack, "stack"),
        (pad, "constant_pad_nd"),
        (
            reduce,
            """mean sum amax amin var std var_mean std_mean linalg_vector_norm norm logsumexp prod
            any all nansum""",
        ),
        (pick_extreme, "max min argmax argmin"),
        (ordered, "cumsum cumprod sort topk median logcumsumexp"),
        (triangle, "triu tril"),
        (softmax, "_softmax _log_softmax _safe_softmax"),
        (matmul, "mm bmm addmm baddbmm mv addmv dot linear"),
        (convolution, "convolution _convolution convolution_overrideable"),
        (
            batch_norm,
            """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
            _batch_norm_with_update _batch_norm_no_update cudnn_batch_norm""",
        ),
        (layer_norm, "native_layer_norm _fused_rms_norm"),
        (group_norm, "native_group_norm"),
        (
            pool,
            """avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices
            _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
            upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
            _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
            upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
            _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d
            replication_pad1d replication_pad2d replication_pad3d""",
        ),
        (pixel_shuffle, "pixel_shuffle pixel_unshuffle"),
        (embedding, "embedding"),
        (index, "index"),
        (index_select, "index_select"),
        (gather, "gather"),
        (glu, "glu"),
        (unfold, "unfold"),
        (im2col, "im2col"),
        (weight_norm, "_weight_norm_interface"),
    ]
    return {name: rule for rule, names in table for name in names.split()}


RULES = _rules()


def rule_for(func: Any) -> Rule:
    """By the operation's name, without the underscore of operations in place."""
    name = func._schema.name.removeprefix("aten::")
    known = RULES.get(name) or (RULES.get(name[:-1]) if name.endswith("_") else None)
    if known is not None and not func._schema.name.startswith("aten::"):
        known = None
    if known is None and torch.Tag.pointwise in func.tags:
        known = elementwise
    return known or frozen
