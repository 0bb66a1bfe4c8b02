"""Which units of a network may be permuted, and how its weights and features move with them.

A *unit* is a neuron, a channel, an attention head: one index of an axis that can be relabelled
without changing what the network computes. Units that are interchangeable form a `Group`. Each
axis of each tensor says which unit every index belongs to, so one rule permutes everything:
linear maps, convolutions, C×H×W flattened into a linear layer (one unit, several positions),
concatenations, heads and the units within them.

Permutations follow Ainsworth et al. (2023): ``perm[i] = j`` puts B's unit j into slot i.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Permutations = Mapping[str, Tensor]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Group:
    """Interchangeable units.

    Attributes
    ----------
    name
        The tensor that makes them, e.g. "layer1.0.conv1.weight".
    size
        Units n (in each block, if there is a parent).
    parent
        The group whose units are blocks of these units: attention heads, groups of a convolution.
        Each of the parent's b units has n of these, permuted within it and moved with it.
    blocks
        b, the parent's size; 1 without a parent.
    """

    name: str
    size: int
    parent: str | None = None
    blocks: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this group's permutation: ``(n,)``, or ``(b, n)`` where there is a parent."""
        return (self.size,) if self.parent is None else (self.blocks, self.size)


@dataclass(frozen=True, eq=False)
class Axis:
    """Which unit each index of an axis belongs to.

    Attributes
    ----------
    units
        int64, with as many dimensions as the tensor, broadcastable to its shape and of full length
        along the axis itself: the unit's number in the spec, −1 where the index is fixed. It
        depends on another axis where that axis holds blocks (a grouped convolution's inputs, by its
        outputs).
    positions
        int64, same shape: tells the indices of one unit apart, e.g. the pixels of a channel that
        was flattened; for fixed indices the index itself.
    """

    units: np.ndarray
    positions: np.ndarray

    def __post_init__(self) -> None:
        if self.units.shape != self.positions.shape:
            raise ValueError("units and positions must have one shape")

    @cached_property
    def _plain(self) -> int:
        """The first unit, where the units follow one another, one index each; else −1."""
        flat = self.units.reshape(-1)
        plain = len(flat) == max(self.units.shape) and flat[0] >= 0
        plain = plain and bool((flat == flat[0] + np.arange(len(flat))).all())
        return int(flat[0]) if plain else -1

    @cached_property
    def _places(self) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        """Where indices are free, and how to find a unit's: a stride, sorted keys, and entries."""
        free = self.units >= 0
        stride = int(self.positions[free].max(initial=0)) + 1
        known, first = np.unique(
            self.units[free] * stride + self.positions[free], return_index=True
        )
        return free, stride, known, first

    def source(self, k: int, source: np.ndarray) -> np.ndarray:
        """For each index along this axis, number ``k``, the index whose entries take its place.

        ``source``: by unit, the unit that takes its place. Same shape as ``units``: the index may
        depend on other axes.
        """
        if self._plain >= 0:
            return source[self.units] - self._plain
        free, stride, known, first = self._places
        along = np.arange(self.units.shape[k]).reshape(
            [-1 if j == k else 1 for j in range(self.units.ndim)]
        )
        index = np.broadcast_to(along, self.units.shape).copy()
        wanted = source[self.units[free]] * stride + self.positions[free]
        index[free] = index[free][first[np.searchsorted(known, wanted)]]
        return index


Layout = tuple[Axis | None, ...]  # of a tensor, by axis; None: the axis is fixed


@dataclass(frozen=True, eq=False)
class Use:
    """Where a group's units are in one tensor (or feature): on which axes, at which entries.

    ``axes`` is one axis, or several where the units depend on another axis too; ``entries`` are
    ``(units, p)`` indices into these axes flattened together, unit by unit (``b·n + u``).
    """

    tensor: str
    axes: tuple[int, ...]
    entries: np.ndarray

    def rows(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The entries of each unit as ``(units, e)``, in the same order for every unit.

        All other axes, the data axis of a feature among them, are flattened into e. ``dtype``: to
        convert to; None: the tensor's own.
        """
        front = value.movedim(self.axes, tuple(range(len(self.axes))))
        units, dtype = len(self.entries), dtype or value.dtype
        if math.prod(front.shape[: len(self.axes)]) == self._whole:
            # turned and converted at once, which takes half of the time
            return front.to(dtype, memory_format=torch.contiguous_format).reshape(units, -1)
        front = front.flatten(0, len(self.axes) - 1)
        index = torch.from_numpy(self.entries.reshape(-1)).to(value.device)
        return front.index_select(0, index).to(dtype).reshape(units, -1)

    @cached_property
    def _whole(self) -> int:
        """How long an axis is that consists of the entries in their order; −1 if they are not."""
        flat = self.entries.reshape(-1)
        return len(flat) if bool((flat == np.arange(len(flat))).all()) else -1


@dataclass(frozen=True, eq=False)
class PermutationSpec:
    """The permutations that leave a network's function as it is.

    Permutations are given by group name, int64: ``(n,)``, or ``(b, n)`` for units within blocks,
    where row i permutes the block that goes into slot i.

    Attributes
    ----------
    groups
        By name; a parent comes before its children.
    units
        By group, the numbers of its units: ``(b, n)``, b = 1 without a parent.
    layouts
        By tensor of the state dict, what its axes hold.
    shapes
        Of the tensors of the state dict.
    features
        Layouts of features: by layer, as `llfc_core.features.Taps` names them (activation sites,
        the output, and modules' outputs); axis 0 is the data.
    reasons
        Why an axis, or part of it, is fixed: ``{tensor: {axis: reason}}``.
    example
        The inputs that the network was followed on, on the CPU: what `check` can draw others like.
    """

    groups: Mapping[str, Group]
    units: Mapping[str, np.ndarray]
    layouts: Mapping[str, Layout]
    shapes: Mapping[str, tuple[int, ...]]
    features: Mapping[str, Layout] = field(default_factory=dict)
    reasons: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    example: tuple[Tensor, ...] = ()

    # ---- permutations ---------------------------------------------------------------------------

    def identity(self) -> dict[str, Tensor]:
        """The permutation that moves nothing."""
        return {
            name: torch.arange(group.size).expand(group.shape).clone()
            for name, group in self.groups.items()
        }

    def random(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A uniformly random permutation; ``generator`` is a CPU one."""
        return {
            name: torch.rand(group.shape, generator=generator).argsort(dim=-1)
            for name, group in self.groups.items()
        }

    def inverse(self, perms: Permutations) -> dict[str, Tensor]:
        """The permutation that undoes ``perms``."""
        perms = self.checked(perms)
        inverse = {}
        for name, group in self.groups.items():
            back = perms[name].argsort(dim=-1)
            inverse[name] = back if group.parent is None else back[perms[group.parent].argsort()]
        return inverse

    def compose(self, first: Permutations, then: Permutations) -> dict[str, Tensor]:
        """One permutation for ``first`` and, on what that gives, ``then``."""
        first, then = self.checked(first), self.checked(then)
        both = {}
        for name, group in self.groups.items():
            outer = first[name] if group.parent is None else first[name][then[group.parent]]
            both[name] = outer.gather(-1, then[name])
        return both

    def checked(self, perms: Permutations) -> dict[str, Tensor]:
        """``perms`` on the CPU as int64. Raises ValueError if it is no permutation of this spec."""
        if wrong := perms.keys() ^ self.groups.keys():
            raise ValueError(f"permutations do not fit the spec: {sorted(wrong)[0]!r}")
        result = {}
        for name, group in self.groups.items():
            perm = torch.as_tensor(perms[name]).to("cpu", torch.int64)
            if perm.shape != group.shape:
                raise ValueError(f"{name!r}: shape {tuple(perm.shape)}, not {group.shape}")
            if not bool((perm.sort(dim=-1).values == torch.arange(group.size)).all()):
                raise ValueError(f"{name!r}: not a permutation of 0 … {group.size - 1}")
            result[name] = perm
        return result

    # ---- what they do to tensors ----------------------------------------------------------------

    def apply(self, state: State, perms: Permutations) -> dict[str, Tensor]:
        """π(θ): the state dict with its units permuted, on the device it is on.

        Raises ValueError for names or shapes that are not the network's.
        """
        self.check_state(state)
        return self.permuted(state, perms)

    def permuted(self, tensors: State, perms: Permutations) -> dict[str, Tensor]:
        """`apply` for some of the tensors of a state dict."""
        source = self._source(self.checked(perms))
        return {name: self._moved(self.layouts[name], v, source) for name, v in tensors.items()}

    def apply_to_feature(self, layer: str, feature: Tensor, perms: Permutations) -> Tensor:
        """The feature of π(θ) at ``layer``, given θ's ``(n, …)``."""
        if layer not in self.features:
            raise ValueError(f"no feature {layer!r}; there are {', '.join(self.features)}")
        return self._moved(self.features[layer], feature, self._source(self.checked(perms)))

    def check_state(self, state: State) -> None:
        """Raises ValueError unless ``state`` has the names and shapes of this network."""
        for name in sorted(self.shapes.keys() ^ state.keys()):
            which = "lacks" if name in self.shapes else "has"
            raise ValueError(f"the state {which} {name!r}, unlike the network of the spec")
        for name, shape in self.shapes.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}, not {shape}")

    def _source(self, perms: Mapping[str, Tensor]) -> np.ndarray:
        """By unit number, the unit that takes its place."""
        count = 1 + max((int(u.max()) for u in self.units.values()), default=-1)
        source = np.arange(count)
        for name, group in self.groups.items():
            units, perm = self.units[name], perms[name].numpy()
            if group.parent is None:
                source[units[0]] = units[0][perm]
            else:
                blocks = perms[group.parent].numpy()
                source[units] = np.take_along_axis(units[blocks], perm, axis=1)
        return source

    def _moved(self, layout: Layout, value: Tensor, source: np.ndarray) -> Tensor:
        plain: list[tuple[int, Tensor]] = []
        dependent = False
        for k, axis in enumerate(layout):
            if axis is None:
                continue
            index = axis.source(k, source)
            if index.size == value.shape[k]:
                flat = index.reshape(-1)
                if (flat != np.arange(len(flat))).any():
                    plain.append((k, torch.from_numpy(flat).to(value.device)))
            else:
                dependent = True
        if not dependent:
            for k, index_k in plain:
                value = value.index_select(k, index_k)
            return value
        # An axis whose units depend on another: index all axes together.
        grid = []
        for k, axis in enumerate(layout):
            along = np.arange(value.shape[k]).reshape(
                [-1 if j == k else 1 for j in range(len(layout))]
            )
            grid.append(along if axis is None else axis.source(k, source))
        return value[tuple(torch.from_numpy(g).to(value.device) for g in grid)]

    def uses(self, group: str) -> tuple[Use, ...]:
        """Where the units of a group are in the weights and buffers."""
        return self._uses.get(group, ())

    def feature_uses(self, group: str) -> tuple[Use, ...]:
        """Where the units of a group are in the features."""
        return self._feature_uses.get(group, ())

    @cached_property
    def _uses(self) -> dict[str, tuple[Use, ...]]:
        return self._uses_in(self.layouts)

    @cached_property
    def _feature_uses(self) -> dict[str, tuple[Use, ...]]:
        return self._uses_in(self.features)

    def _uses_in(self, layouts: Mapping[str, Layout]) -> dict[str, tuple[Use, ...]]:
        """By group, in the order of the layouts and of their axes."""
        names, sizes = (
            list(self.groups),
            [group.size * group.blocks for group in self.groups.values()],
        )
        # By unit number, the group and the unit's place in it; −1, which is fixed, is the last.
        count = 1 + max((int(u.max()) for u in self.units.values()), default=-1)
        owner, rank = np.full(count + 1, -1), np.full(count + 1, -1)
        for g, name in enumerate(names):
            owner[self.units[name]] = g
            rank[self.units[name].reshape(-1)] = np.arange(sizes[g])
        found: dict[str, list[Use]] = {}
        for tensor, layout in layouts.items():
            for k, axis in enumerate(layout):
                if axis is None:
                    continue
                axes = tuple(j for j, n in enumerate(axis.units.shape) if j == k or n > 1)
                units, positions = axis.units.reshape(-1), axis.positions.reshape(-1)
                owners = owner[units]
                for g in np.unique(owners[owners >= 0]):
                    entries = np.flatnonzero(owners == g)
                    order = np.lexsort((entries, positions[entries], rank[units[entries]]))
                    use = Use(tensor, axes, entries[order].reshape(sizes[g], -1))
                    found.setdefault(names[g], []).append(use)
        return {name: tuple(uses) for name, uses in found.items()}

    # ---- what it says ---------------------------------------------------------------------------

    @property
    def frozen(self) -> dict[str, str]:
        """Tensors that no permutation moves, with the reason."""
        return {
            name: "; ".join(dict.fromkeys(self.reasons.get(name, {}).values())) or "it has no axes"
            for name, layout in self.layouts.items()
            if not any(axis is not None and (axis.units >= 0).any() for axis in layout)
        }

    def explain(self, tensor: str) -> str:
        """What each axis of a tensor holds, and why what is fixed is fixed."""
        if tensor not in self.layouts:
            close = difflib.get_close_matches(tensor, self.layouts)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"no tensor {tensor!r} in the network{hint}")
        lines = [f"{tensor} {self.shapes[tensor]}"]
        for k, axis in enumerate(self.layouts[tensor]):
            names = [] if axis is None else self._groups_on(axis)
            fixed = axis is None or bool((axis.units < 0).any())
            reason = self.reasons.get(tensor, {}).get(k, "")
            parts = names + ([f"fixed: {reason}" if reason else "fixed"] if fixed else [])
            lines.append(f"  axis {k} ({self.shapes[tensor][k]}): {', '.join(parts)}")
        return "\n".join(lines)

    def _groups_on(self, axis: Axis) -> list[str]:
        here = np.unique(axis.units[axis.units >= 0])
        found = [name for name, units in self.units.items() if np.isin(units, here).any()]
        return [
            name if (g := self.groups[name]).parent is None else f"{name} (in each of {g.parent})"
            for name in found
        ]

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} groups"]
        width = max((len(name) for name in self.groups), default=0)
        for name, group in self.groups.items():
            size = f"{group.size}" if group.parent is None else f"{group.blocks} × {group.size}"
            tensors = dict.fromkeys(use.tensor for use in self.uses(name))
            within = f" in each of {group.parent}" if group.parent else ""
            lines.append(f"  {name:<{width}}  {size:>9}{within}  {', '.join(tensors)}")
        if frozen := self.frozen:
            lines.append(f"{len(frozen)} tensors frozen")
            lines += [f"  {name}: {reason}" for name, reason in frozen.items()]
        return "\n".join(lines)
