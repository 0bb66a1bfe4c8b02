"""Which indices of which axes belong together: the bookkeeping behind `derive_spec`.

While a network runs, every index of an axis that may be permuted carries a *label*, an integer.
Operations say which labels must move together (`Units.same`), which belong to a block
(`Units.within`), which cannot move at all (`Units.freeze`), and which went through an operation
together (`Units.touch`). `Units.solve` then finds the *units* (connected labels) and the groups of
units that play the same role.

Two units have the same role if nothing that was recorded tells them apart: their labels come from
the same axes and went through the same operations, at the same positions, in the same kind of
block. That is decided by colour refinement (Weisfeiler and Leman, 1968) on the recorded relations.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TIED = "its units are tied to those of other blocks"
ALONE = "alone in its role"


@dataclass(frozen=True, eq=False)
class Family:
    """A group of units as `Units.solve` finds it: ``units`` is ``(b, n)``, b = 1 without parent."""

    units: np.ndarray
    parent: int | None


@dataclass(frozen=True, eq=False)
class Solution:
    """What the labels turned out to be.

    Attributes
    ----------
    unit
        By label, its unit.
    rank
        By label, its role within the unit: any two units of a family have labels of equal ranks.
    families
        Groups of units; a parent comes before its children.
    reason
        By unit, why it is fixed; empty where it is in a family (or in no weight at all).
    """

    unit: np.ndarray
    rank: np.ndarray
    families: list[Family]
    reason: list[str]


class Units:
    """Labels and all that is known about them."""

    def __init__(self) -> None:
        self.count = 0
        self.heads: list[np.ndarray] = []  # labels of blocks that are attention heads
        self._roles: list[tuple[int, int]] = []  # (number of labels, role), in order of creation
        self._role = 0
        self._same: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._touched: list[tuple[int, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._within: list[tuple[np.ndarray, np.ndarray]] = []
        self._used: list[np.ndarray] = []
        self._at: dict[tuple[int, int], int] = {}
        self._whole: dict[int, tuple[int, int]] = {}
        self._idle: set[int] = set()
        self._blocks: dict[tuple[bytes, tuple[int, ...], tuple[int, ...]], list[np.ndarray]] = {}

    # ---- labels ---------------------------------------------------------------------------------

    def fresh(self, *shape: int) -> np.ndarray:
        """New labels, int64 of the shape, all in one role."""
        self._role += 1
        size = int(np.prod(shape))
        labels = np.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        self._roles.append((size, self._role))
        return labels

    def idle(self, length: int) -> np.ndarray:
        """New labels of indices that all hold the same so far: no loss if they are fixed."""
        labels = self.fresh(length)
        self._idle.update(labels.tolist())
        return labels

    def is_idle(self, labels: np.ndarray) -> bool:
        """Whether `idle` made these labels."""
        return int(labels.flat[0]) in self._idle

    def at(self, labels: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Labels of parts of units: the same part always has the same label.

        labels, positions: broadcast against each other; e.g. channels and the pixels in each.
        """
        labels, positions = np.broadcast_arrays(labels, positions)
        found = np.empty(labels.shape, np.int64)
        flat = found.reshape(-1)
        for i, key in enumerate(zip(labels.ravel().tolist(), positions.ravel().tolist())):
            part = self._at.get(key)
            if part is None:
                part = self._at[key] = self.count
                self._whole[part] = key
                self.count += 1
                self._roles.append((1, -1 - key[1]))
            flat[i] = part
        return found

    def whole(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """What `at` was given for these labels; None where one of them is no part of a unit."""
        keys = [self._whole.get(part) for part in labels.ravel().tolist()]
        if not keys or any(key is None for key in keys):
            return None
        wholes, positions = np.array(keys).T
        return wholes.reshape(labels.shape), positions.reshape(labels.shape)

    def split(self, labels: np.ndarray, axis: int, sizes: tuple[int, ...]) -> list[np.ndarray]:
        """Labels of the axes that an axis is split into by a view, outermost first.

        All but the last are labels of blocks, and an axis' labels depend on the axes before it.
        Each has the shape of ``labels`` with ``axis`` replaced by ``sizes``, 1 for later ones.
        """
        key = (labels.tobytes(), labels.shape, (axis, *sizes))
        if key in self._blocks:
            return self._blocks[key]
        before, after = labels.shape[:axis], labels.shape[axis + 1 :]
        axes = []
        for depth in range(1, len(sizes)):
            later = (1,) * (len(sizes) - depth)
            axes.append(self.fresh(*before, *sizes[:depth], *later, *after))
        axes.append(labels.reshape(*before, *sizes, *after))
        for block, part in pairwise(axes):
            self.within(part, block)
        self._blocks[key] = axes
        return axes

    # ---- what is known about them ---------------------------------------------------------------

    def same(self, step: int, a: np.ndarray, b: np.ndarray) -> None:
        """Labels ``a`` and ``b`` (broadcast) move together, because of operation ``step``.

        Where one label is paired with several of the other, their order tells these apart.
        """
        if a is b or (a.shape == b.shape and bool((a == b).all())):
            return
        spread = [p != q for p, q in zip(a.shape, b.shape)]
        full = np.broadcast_shapes(a.shape, b.shape)
        place = np.arange(np.prod([n for n, s in zip(full, spread) if s], dtype=int))
        place = place.reshape([n if s else 1 for n, s in zip(full, spread)])
        codes, a, b = np.broadcast_arrays(step + (place << 32), a, b)
        self._same.append((codes.reshape(-1), a.reshape(-1), b.reshape(-1)))

    def touch(self, step: int, labels: np.ndarray) -> None:
        """Operation ``step`` treats these labels alike, and no others."""
        self._touched.append((step, labels.reshape(-1)))

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """These labels cannot move."""
        self._frozen.append((labels.reshape(-1), reason))

    def within(self, parts: np.ndarray, blocks: np.ndarray) -> None:
        """``parts`` stay within ``blocks`` (broadcast), if these blocks are ever used."""
        parts, blocks = np.broadcast_arrays(parts, blocks)
        self._within.append((parts.reshape(-1), blocks.reshape(-1)))

    def use(self, blocks: np.ndarray) -> None:
        """The network distinguishes these blocks: parts must stay in theirs."""
        self._used.append(blocks.reshape(-1))

    # ---- what follows ---------------------------------------------------------------------------

    def solve(self, slots: np.ndarray) -> Solution:
        """The units and their groups; ``slots`` are the labels in weights and buffers, in order."""
        parts = np.array(list(self._whole), np.int64)
        wholes = np.array([key for key, _ in self._whole.values()], np.int64)
        places = np.array([place for _, place in self._whole.values()], np.int64)
        step = np.concatenate([*(codes for codes, _, _ in self._same), -1 - places])
        a = np.concatenate([*(a for _, a, _ in self._same), parts])
        b = np.concatenate([*(b for _, _, b in self._same), wholes])
        child, block = _joined(self._within)
        used_labels = np.concatenate([*self._used, np.empty(0, np.int64)])
        frozen = list(self._frozen)
        colour = self._colours()
        sizes, roles = np.array(self._roles, np.int64).reshape(-1, 2).T
        made = np.repeat(roles, sizes)[block]  # by block, in which split it was made
        more: list[tuple[np.ndarray, np.ndarray]] = []

        while True:
            more_a, more_b = _joined(more)
            unit = _components(self.count, np.r_[a, more_a], np.r_[b, more_b])
            n = int(unit.max(initial=-1)) + 1
            reason = np.full(n, -1)
            for i in range(len(frozen) - 1, -1, -1):  # the first reason given counts
                reason[unit[frozen[i][0]]] = i
            used = np.zeros(n, bool)
            used[unit[used_labels]] = True
            pairs = np.stack([unit[child], unit[block]], axis=1)
            pairs = np.unique(pairs[used[pairs[:, 1]] & (pairs[:, 0] != pairs[:, 1])], axis=0)
            alive = np.zeros(n, bool)
            alive[unit[slots]] = True
            while (gained := pairs[alive[pairs[:, 0]] & ~alive[pairs[:, 1]], 1]).size:
                alive[gained] = True
            first = np.full(n, -1)
            first[unit[::-1]] = np.arange(self.count)[::-1]  # a label for each unit

            if twins := _twins(pairs, np.stack([unit[block], made], axis=1)):
                more += [(first[[u]], first[[v]]) for u, v in twins]
                continue
            if to_freeze := _fixed_blocks(pairs, reason, [why for _, why in frozen]):
                frozen += [(first[np.array(units)], why) for units, why in to_freeze]
                continue
            free = alive & (reason < 0)
            parent = np.full(n, -1)
            loose = pairs[free[pairs[:, 0]] & free[pairs[:, 1]]]
            parent[loose[:, 0]] = loose[:, 1]
            keep = free[unit[a]]
            inside = used[unit[block]]
            rank, role = _refined(
                colour,
                unit,
                (step[keep], a[keep], b[keep]),
                (child[inside], block[inside]),
                reason >= 0,
            )
            blocks, at = np.unique(block[inside], return_index=True)
            blocks, split = blocks[free[unit[blocks]]], made[inside][at][free[unit[blocks]]]
            alike = np.stack([unit[blocks], split, rank[blocks].view(np.int64)], axis=1)
            _, at, times = np.unique(alike, axis=0, return_index=True, return_counts=True)
            if (times > 1).any():  # blocks side by side in one unit, and nothing tells them apart
                frozen.append((blocks[at[times > 1]], TIED))
                continue
            families, single, joined = _families(free, parent, role)
            if joined:
                more += [(first[[u]], first[[v]]) for u, v in joined]
                continue
            if single:
                frozen.append((first[np.array(single)], ALONE))
                if np.isin(single, pairs).any():
                    continue
                reason[np.array(single)] = len(frozen) - 1
            order = np.full(n, self.count)
            np.minimum.at(order, unit[slots], np.arange(len(slots)))
            return Solution(
                unit,
                rank,
                _sorted(families, order),
                [frozen[i][1] if i >= 0 else "" for i in reason.tolist()],
            )

    def _colours(self) -> np.ndarray:
        """By label: its role and the operations that it went through, hashed."""
        sizes, roles = np.array(self._roles, np.int64).reshape(-1, 2).T
        colour = _hash(np.repeat(roles, sizes).astype(np.uint64))
        for step, labels in self._touched:
            np.add.at(colour, labels, _hash(np.array([step + (1 << 40)], np.uint64)))
        return colour


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.empty(0, np.int64)
    return (
        np.concatenate([*(a for a, _ in pairs), none]),
        np.concatenate([*(b for _, b in pairs), none]),
    )


def _components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _hash(x: np.ndarray) -> np.ndarray:
    """A 64-bit mixing of each entry (splitmix64's finaliser)."""
    x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _twins(pairs: np.ndarray, made: np.ndarray) -> list[tuple[int, int]]:
    """Blocks that hold the same units are the same block, unless they were made side by side.

    made: ``(block, split)``, where each block was made.
    """
    content = np.zeros(int(pairs.max(initial=-1)) + 1, np.uint64)
    np.add.at(content, pairs[:, 1], _hash(pairs[:, 0]))
    splits: dict[int, set[int]] = {}
    for block, split in np.unique(made, axis=0).tolist():
        splits.setdefault(block, set()).add(split)
    seen: dict[int, int] = {}
    twins = []
    for block in np.unique(pairs[:, 1]).tolist():
        other = seen.setdefault(int(content[block]), block)
        if other != block and not splits[block] & splits[other]:
            twins.append((other, block))
            splits[other] |= splits[block]
    return twins


def _fixed_blocks(
    pairs: np.ndarray, reason: np.ndarray, why: list[str]
) -> list[tuple[list[int], str]]:
    """Blocks that cannot move, though nothing says so of themselves."""
    child, block = pairs.T
    # what holds something fixed is fixed
    stuck = (reason[child] >= 0) & (reason[block] < 0)
    if stuck.any():
        return [([b], why[reason[c]]) for c, b in zip(child[stuck].tolist(), block[stuck].tolist())]
    free = reason[block] < 0
    child, block = child[free], block[free]
    # units in several blocks: only the smallest may move, the others are told apart
    size = np.bincount(block, minlength=len(reason))
    several = np.bincount(child, minlength=len(reason))[child] > 1
    if several.any():
        by_child: dict[int, list[int]] = {}
        for c, b in zip(child[several].tolist(), block[several].tolist()):
            by_child.setdefault(c, []).append(b)
        fixed: set[int] = set()
        for blocks in by_child.values():
            smallest = min(size[b] for b in blocks)
            keep = [b for b in blocks if size[b] == smallest]
            fixed |= set(blocks) - set(keep if len(keep) == 1 else [])
        return [(sorted(fixed), TIED)]
    # blocks in blocks: one level is kept
    outer = np.isin(child, block)
    if outer.any():
        return [(np.unique(block[outer]).tolist(), "a block of blocks")]
    return []


def _refined(
    colour: np.ndarray,
    unit: np.ndarray,
    same: tuple[np.ndarray, np.ndarray, np.ndarray],
    within: tuple[np.ndarray, np.ndarray],
    fixed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of labels and of units that agree just where their surroundings agree.

    colour: to begin with. same: ``(step, a, b)``, within: ``(part, block)``, labels both. fixed: by
    unit; those that are have a colour of their own.
    """
    (step, a, b), (child, block) = same, within
    here, there = _hash(2 * step), _hash(2 * step + 1)
    own = _hash(_hash(np.arange(len(fixed))))
    count = 0
    while True:
        role = np.zeros(len(fixed), np.uint64)
        np.add.at(role, unit, _hash(colour))
        role = np.where(fixed, own, _hash(role))
        around = np.zeros(len(colour), np.uint64)
        np.add.at(around, a, _hash(colour[b] ^ here))
        np.add.at(around, b, _hash(colour[a] ^ there))
        which = np.where(fixed[unit[block]], _hash(block), colour[block] ^ role[unit[block]])
        np.add.at(around, child, _hash(which ^ np.uint64(1)))
        np.add.at(around, block, _hash(colour[child] ^ np.uint64(2)))
        colour = _hash(colour + _hash(around + _hash(role)[unit]))
        distinct = len(np.unique(colour))
        if distinct == count:
            return colour, role
        count = distinct


def _families(
    free: np.ndarray, parent: np.ndarray, role: np.ndarray
) -> tuple[list[Family], list[int], list[tuple[int, int]]]:
    """Groups by role; units alone in theirs; and units alone in their block, with the block."""
    units = np.flatnonzero(free)
    _, which = np.unique(role[units], return_inverse=True)
    members = np.split(units[np.argsort(which, kind="stable")], np.cumsum(np.bincount(which))[:-1])
    families: list[Family] = []
    single: list[int] = []
    joined: list[tuple[int, int]] = []
    number: dict[int, int] = {}  # of a unit, its family
    for group in (g for g in members if len(g) and parent[g[0]] < 0):
        if len(group) == 1:
            single.append(int(group[0]))
            continue
        number |= dict.fromkeys(group.tolist(), len(families))
        families.append(Family(group[None], None))
    for group in (g for g in members if len(g) and parent[g[0]] >= 0):
        if int(parent[group[0]]) not in number:
            continue  # a block that is alone: it will be frozen, and this comes again
        outer = number[int(parent[group[0]])]
        blocks = families[outer].units[0]
        inside = [group[parent[group] == b] for b in blocks]
        if len({len(i) for i in inside}) != 1 or sum(map(len, inside)) != len(group):
            raise AssertionError("blocks of one role with different content")
        if len(inside[0]) == 1:
            joined += [(int(u[0]), int(b)) for u, b in zip(inside, blocks)]
        families.append(Family(np.stack(inside), outer))
    return families, single, joined


def _sorted(families: list[Family], order: np.ndarray) -> list[Family]:
    """Families and the units in them, by where they occur first; parents before children."""
    inner: dict[int, np.ndarray] = {}  # a parent without weights of its own goes by its parts
    for family in families:
        if family.parent is not None:
            firsts = order[family.units].min(axis=1)
            known = inner.get(family.parent)
            inner[family.parent] = firsts if known is None else np.minimum(known, firsts)
    rearranged: list[np.ndarray] = []
    row_order: dict[int, np.ndarray] = {}
    for i, family in enumerate(families):
        units = family.units
        if family.parent is None:
            key = order[units[0]]
            if i in inner:
                key = np.minimum(key, inner[i])
            row_order[i] = np.argsort(key, kind="stable")
            rearranged.append(units[:, row_order[i]])
        else:
            units = units[row_order[family.parent]]
            along = np.argsort(order[units], axis=1, kind="stable")
            rearranged.append(np.take_along_axis(units, along, axis=1))
    start = [
        int(min(order[units].min(), inner[i].min() if i in inner else len(order) + 10**12))
        for i, units in enumerate(rearranged)
    ]
    for i, family in enumerate(families):
        if family.parent is not None:
            start[family.parent] = min(start[family.parent], start[i])
    by = sorted(range(len(families)), key=lambda i: (start[i], families[i].parent is not None))
    # a parent starts no later than its parts, and goes first at equal starts
    place = {old: new for new, old in enumerate(by)}
    return [
        Family(rearranged[i], None if (p := families[i].parent) is None else place[p]) for i in by
    ]
