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

    def rows(self, value: Tensor) -> Tensor:
        """The entries of each unit as ``(units, e)``, in the same order for every unit.

        All other axes, the data axis of a feature among them, are flattened into e.
        """
        front = value.movedim(self.axes, tuple(range(len(self.axes))))
        front = front.flatten(0, len(self.axes) - 1)
        units = len(self.entries)
        if len(front) == self._whole:
            return front.reshape(units, -1)
        index = torch.from_numpy(self.entries.reshape(-1)).to(value.device)
        return front.index_select(0, index).reshape(units, -1)

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
            index = _source_index(axis, k, source)
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
            grid.append(along if axis is None else _source_index(axis, k, source))
        return value[tuple(torch.from_numpy(g).to(value.device) for g in grid)]

    def uses(self, group: str) -> tuple[Use, ...]:
        """Where the units of a group are in the weights and buffers."""
        return tuple(
            use
            for name, layout in self.layouts.items()
            for use in self._uses_in(group, name, layout)
        )

    def feature_uses(self, group: str) -> tuple[Use, ...]:
        """Where the units of a group are in the features."""
        return tuple(
            use
            for name, layout in self.features.items()
            for use in self._uses_in(group, name, layout)
        )

    def _uses_in(self, group: str, tensor: str, layout: Layout) -> list[Use]:
        units = self.units[group].reshape(-1)
        found = []
        for k, axis in enumerate(layout):
            # A quick look, for most axes hold none of a group's units.
            if axis is None or axis.units.max() < units.min() or axis.units.min() > units.max():
                continue
            rank = np.full(int(max(axis.units.max(), units.max())) + 2, -1)
            rank[units] = np.arange(len(units))
            mine = rank[axis.units]  # −1 stays −1: the last entry of rank
            if not (mine >= 0).any():
                continue
            axes = tuple(j for j in range(axis.units.ndim) if j == k or axis.units.shape[j] > 1)
            where = np.squeeze(mine, tuple(set(range(mine.ndim)) - set(axes))).reshape(-1)
            positions = np.broadcast_to(axis.positions, axis.units.shape)
            positions = np.squeeze(positions, tuple(set(range(mine.ndim)) - set(axes))).reshape(-1)
            entries = np.flatnonzero(where >= 0)
            order = np.lexsort((entries, positions[entries], where[entries]))
            found.append(Use(tensor, axes, entries[order].reshape(len(units), -1)))
        return found

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


def _source_index(axis: Axis, k: int, source: np.ndarray) -> np.ndarray:
    """For each index along axis ``k``, the index whose entries take its place.

    Same shape as the axis' units: it may depend on other axes.
    """
    units, positions = axis.units, axis.positions
    free = units >= 0
    along = np.broadcast_to(
        np.arange(units.shape[k]).reshape([-1 if j == k else 1 for j in range(units.ndim)]),
        units.shape,
    )
    stride = int(positions[free].max(initial=0)) + 1
    keys = units[free] * stride + positions[free]
    known, first = np.unique(keys, return_index=True)
    wanted = source[units[free]] * stride + positions[free]
    index = along.copy()
    index[free] = along[free][first[np.searchsorted(known, wanted)]]
    return index
