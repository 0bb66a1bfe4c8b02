"""Eq. 9 as a function of permutations: the residuals of commutativity, from Gram matrices.

    f(π) = Σ_ℓ ‖R_ℓ‖²_F / ν_ℓ,     R_ℓ = (W_A − P W_B Qᵀ)(H_A − Q H_B),                    (eq. 9)

over the linear maps of a network: linear layers and convolutions, whose H are the unfolded inputs.
P and Q are what the permutation π does to a map's rows (outputs) and columns (inputs). Biases and
norms are in neither factor. R_ℓ is the difference of the two sides of Definition 4, for A and
π(B); ν_ℓ = 2(‖W_A H_A‖² + ‖W_B H_B‖²) does not depend on π, and puts all maps on one scale: where A
and π(B) are near one another each term is close to Dist_com, in whose denominator π would be.

**The data.** ‖R‖² = tr(D S Dᵀ) with D = W_A − P W_B Qᵀ and S = (H_A − Q H_B)(H_A − Q H_B)ᵀ, so all
that counts of the data is G_AA = H_A H_Aᵀ, G_AB = H_A H_Bᵀ and G_BB = H_B H_Bᵀ, (q, q) for a map
of q = c_in · k · k columns: 24q² bytes a map, whatever the amount of data.

**Off the permutations**, where Frank–Wolfe goes, f is extended by what A.3's expansion becomes when
PᵀP and QᵀQ are replaced by the identity, which they are on permutations, and constants are dropped:

    ‖R‖² = tr(Z G_BB Zᵀ) − 2⟨W_A G_AB, Z⟩ + tr(Nᵀ G_AA N) − 2⟨G_AB W_Bᵀ, N⟩
           − 2⟨P, W_A G_AA N + Z G_BB W_Bᵀ − Z G_BA N − W_A G_AB W_Bᵀ⟩ + constants,

Z = W_A Q, N = Q W_Bᵀ. It is linear in P, quadratic in Q: an assignment for P alone; a quadratic
assignment for Q alone; of the third degree where both move, or are one and the same (a square
matrix on a residual stream). Every product is one of (m, q) by (q, q) for a map of m rows, and
those are linear in Q, so that they can be carried along a path instead of being computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.features import inputs_of
from llfc_core.matching.activation import device_of, make_taps, peek
from llfc_core.matching.spec import Axis, Permutations, PermutationSpec, State
from llfc_core.matching.weight import Clock, slots
from llfc_core.metrics.commutativity import pads
from llfc_core.numerics import ieee

Linear = nn.Linear | nn.Conv2d

# Unfolded inputs are made so many entries at a time.
UNFOLD = 2**23

# Inputs that differ by no more than this share are the same but for rounding.
SAME = 1e-2

# By group: a permutation as slots, int64 (n,), or a matrix, float64 (n, n), of all its n units.
Moves = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """f(π) of two modes on some data, and what it is made of.

    Attributes
    ----------
    spec
        What may be permuted.
    terms
        By linear map, in order of execution: those that some permutation changes.
    """

    spec: PermutationSpec
    terms: Mapping[str, Term]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that f depends on."""
        held = {group for term in self.terms.values() for group in term.groups}
        return tuple(group for group in self.spec.groups if group in held)

    def by_map(self, permutations: Permutations) -> dict[str, float]:
        """‖R_ℓ‖²/ν_ℓ of each map for A and π(B), float64, exact but for the Gram matrices."""
        moves = self.moves(permutations)
        return {name: float(term.residual(moves)) for name, term in self.terms.items()}

    def value(self, permutations: Permutations) -> float:
        """f(π)."""
        return math.fsum(self.by_map(permutations).values())

    def moves(self, permutations: Permutations) -> dict[str, Tensor]:
        """What ``permutations`` do to all units of the groups that f depends on, as slots."""
        checked = self.spec.checked(permutations)
        return {g: slots(self.spec, g, checked).to(self.device) for g in self.groups}

    @property
    def device(self) -> torch.device:
        return next((t.a.device for t in self.terms.values()), torch.device("cpu"))


def commutativity_objective(
    a: State,
    b: State,
    spec: PermutationSpec,
    module: nn.Module,
    data: Iterable[Any],
    clock: Clock | None = None,
) -> Objective:
    """Stream the data once, and keep the Gram matrices of every linear map.

    Linear maps are the ``nn.Linear`` and ``nn.Conv2d`` that run as modules, each at its first call:
    those that `llfc_core.metrics.measure` measures. Left out are maps that no permutation changes;
    those whose inputs are the same in A and B, and fixed (the data, for which R is 0); and those
    with units along other axes of their inputs too, as the channels of a map over tokens: Gram
    matrices cannot say what permuting those does.

    Parameters
    ----------
    a, b
        States that fit ``spec`` and ``module``, on one device; batches are moved there.
    data
        Batches: inputs ``(n, …)``, or tuples that begin with them. It is gone through once.

    Raises
    ------
    ValueError
        No data, or features that are not finite.
    """
    clock = Clock() if clock is None else clock
    with torch.no_grad(), ieee():
        first, batches = peek(data)
        layers = _layers(module, spec, first, a)
        grams = {name: _Grams(layer) for name, layer in layers.items()}
        taps = make_taps(module, first, ())
        for x in batches:
            x = x.to(device_of(a))
            of_a: dict[str, Tensor] = {}

            def keep(name: str, h: Tensor, of_a: dict[str, Tensor] = of_a) -> None:
                of_a[name] = h.clone()  # the network may write into it

            def compare(name: str, h: Tensor, of_a: dict[str, Tensor] = of_a) -> None:
                with clock.timing("similarity"):
                    grams[name].update(of_a.pop(name), h)

            before = clock["similarity"]
            with clock.timing("features"):
                for state, tell in ((a, keep), (b, compare)):
                    with inputs_of(layers, tell):
                        taps.run(x, lambda layer: None, state)
            clock["features"] -= clock["similarity"] - before
        with clock.timing("similarity"):
            terms = {}
            for name, layer in layers.items():
                term = grams[name].term(name, layer, spec, a, b)
                if term is not None:
                    terms[name] = term
    return Objective(spec, terms)


def _layers(
    module: nn.Module, spec: PermutationSpec, example: Tensor, state: State
) -> dict[str, Linear]:
    """The linear maps in order of execution whose input is Q H where the network is permuted.

    That is seen by permuting it. Others have units along the data as well.
    """
    candidates = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, Linear) and f"{name}.weight" in spec.layouts
    }
    moved = {name: p.roll(1, dims=-1) for name, p in spec.identity().items()}
    x = example[:2].to(device_of(state))
    taps = make_taps(module, example, ())
    plain, permuted = dict[str, Tensor](), dict[str, Tensor]()
    for weights, seen in ((state, plain), (spec.apply(state, moved), permuted)):

        def keep(name: str, h: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen[name] = unfolded(candidates[name], h)

        with inputs_of(candidates, keep):
            taps.run(x, lambda layer: None, weights)
    found = {}
    for name, h in plain.items():
        columns = _sides(candidates[name], spec, f"{name}.weight", x.device)[1]
        moves = {g: slots(spec, g, moved).to(x.device) for g in columns.entries}
        if float((permuted[name] - h[columns.source(moves)]).norm()) <= SAME * float(h.norm()):
            found[name] = candidates[name]
    return found


def unfolded(layer: Linear, h: Tensor) -> Tensor:
    """H ``(q, N)``: the inputs of a linear map, one column for each output position.

    h: ``(n, …, d_in)`` or ``(n, C, H, W)``; q = d_in, or C·k·k, channel by channel.
    """
    if isinstance(layer, nn.Linear):
        return h.reshape(-1, h.shape[-1]).T
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    size, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    windows = F.unfold(F.pad(h, pads(layer), mode=mode), size, dilation, 0, stride)  # (n, q, L)
    return windows.transpose(0, 1).flatten(1)


def _columns(layer: Linear, weight: Tensor) -> Tensor:
    """A weight as the matrix ``(m, q)`` that acts on `unfolded` inputs, float64.

    That of a convolution in groups is block-diagonal.
    """
    weight = weight.detach().double()
    if isinstance(layer, nn.Linear) or layer.groups == 1:
        return weight.flatten(1)
    return torch.block_diag(*weight.flatten(1).chunk(layer.groups))


class _Grams:
    """G_AA, G_AB and G_BB of one map: products in the inputs' precision, sums in float64."""

    def __init__(self, layer: Linear) -> None:
        self.layer = layer
        self.sums: Tensor | None = None  # (3, q, q)
        self.differ = False

    def update(self, h_a: Tensor, h_b: Tensor) -> None:
        if h_a.dtype != torch.float64:
            h_a, h_b = h_a.float(), h_b.float()
        if not self.differ and torch.equal(h_a, h_b):
            return  # so far H_A − H_B is 0, and ``sums`` need not be there: the map reads the data
        self.differ = True
        per_image = unfolded(self.layer, h_a[:1]).numel()
        size = max(1, UNFOLD // max(1, per_image))
        for part_a, part_b in zip(h_a.split(size), h_b.split(size)):
            x, y = unfolded(self.layer, part_a), unfolded(self.layer, part_b)
            if self.sums is None:
                self.sums = x.new_zeros(3, len(x), len(x), dtype=torch.float64)
            for k, (u, v) in enumerate(((x, x), (x, y), (y, y))):
                self.sums[k] += u @ v.T

    def term(
        self, name: str, layer: Linear, spec: PermutationSpec, a: State, b: State
    ) -> Term | None:
        """The map's term of the objective; None if it is 0, or no permutation changes it."""
        if self.sums is None:
            return None
        if not bool(self.sums.isfinite().all()):
            raise ValueError(f"the features that go into {name!r} are not finite")
        weight = f"{name}.weight"
        device = self.sums.device
        rows, columns = _sides(layer, spec, weight, device)
        if not rows.entries and not columns.entries:
            return None
        w_a, w_b = _columns(layer, a[weight]), _columns(layer, b[weight])
        norm = 2 * ((w_a @ self.sums[0] * w_a).sum() + (w_b @ self.sums[2] * w_b).sum())
        if not float(norm) > 0:
            return None
        return Term.of(w_a.T.contiguous(), w_b.T.contiguous(), self.sums / norm, rows, columns)


@dataclass(frozen=True, eq=False)
class Side:
    """Which units are along one side of a matrix.

    Attributes
    ----------
    index
        0 … size − 1.
    entries
        By group, ``(units, p)`` indices, unit by unit.
    whole
        The group that all of the side is, in order: then nothing need be looked up.
    """

    index: Tensor
    entries: Mapping[str, Tensor]
    whole: str | None

    @staticmethod
    def of(
        spec: PermutationSpec, units: np.ndarray, positions: np.ndarray, device: torch.device
    ) -> Side:
        """From the unit and the position of every index, −1 where it is fixed."""
        entries: dict[str, Tensor] = {}
        for group, own in spec.units.items():
            numbers = own.reshape(-1)
            here = np.flatnonzero(np.isin(units, numbers))
            if here.size:
                rank = np.full(int(units.max()) + 1, -1)
                rank[numbers] = np.arange(len(numbers))
                order = here[np.lexsort((positions[here], rank[units[here]]))]
                entries[group] = torch.from_numpy(order.reshape(len(numbers), -1)).to(device)
        index = torch.arange(len(units), device=device)
        whole = [group for group, e in entries.items() if torch.equal(e.flatten(), index)]
        return Side(index, entries, whole[0] if whole else None)

    def source(self, moves: Moves) -> Tensor:
        """By index, the index that takes its place: a permutation given as slots, int64."""
        index = self.index.clone()
        for group, here in self.entries.items():
            index[here] = here[moves[group]]
        return index

    def move(self, moves: Moves, X: Tensor, transpose: bool = False) -> Tensor:
        """Π X or ΠᵀX for X ``(size, k)``, Π being what ``moves`` do to this side."""
        if self.whole is not None:
            P = moves[self.whole]
            return _moved(P, X.reshape(len(P), -1), transpose).reshape(X.shape)
        if not self.entries:
            return X
        result = X.clone()
        for group, here in self.entries.items():
            part = X[here]  # (units, p, k)
            result[here] = _moved(moves[group], part.flatten(1), transpose).view_as(part)
        return result

    def collect(self, X: Tensor, Y: Tensor) -> dict[str, Tensor]:
        """The gradient of ⟨Π, X Yᵀ⟩ by the groups' matrices, for X, Y ``(size, k)``."""
        if self.whole is not None:
            units = len(self.entries[self.whole])
            return {self.whole: X.reshape(units, -1) @ Y.reshape(units, -1).T}
        return {
            group: X[here].flatten(1) @ Y[here].flatten(1).T for group, here in self.entries.items()
        }

    def pick(self, M: Tensor) -> dict[str, Tensor]:
        """The gradient of ⟨Π, M⟩ by the groups' matrices, for M ``(size, size)``."""
        if self.whole is not None and len(self.entries[self.whole]) == len(M):
            return {self.whole: M}
        return {group: M[here[:, None], here[None]].sum(-1) for group, here in self.entries.items()}


def _moved(P: Tensor, X: Tensor, transpose: bool) -> Tensor:
    if P.ndim == 1:
        return X[P.argsort() if transpose else P]
    return (P.T if transpose else P) @ X


def _sides(
    layer: Linear, spec: PermutationSpec, weight: str, device: torch.device
) -> tuple[Side, Side]:
    """Rows and columns of `_columns`."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    windows = 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)
    shape = spec.shapes[weight][:2]

    def along(axis: Axis | None) -> list[np.ndarray]:
        """Units and positions by row and column of the weight."""
        if axis is None:
            return [np.full(shape, -1), np.zeros(shape, int)]
        both = (axis.units, axis.positions)
        return [np.broadcast_to(v.reshape(v.shape[:2]), shape) for v in both]

    out, inputs = map(along, spec.layouts[weight][:2])
    rows = Side.of(spec, out[0][:, 0], out[1][:, 0], device)
    # The columns of a convolution in groups: those of each group's first row, one after the other.
    units, positions = (v[:: shape[0] // groups].reshape(-1, 1) for v in inputs)
    positions = positions * windows + np.arange(windows)
    units = np.broadcast_to(units, positions.shape)
    return rows, Side.of(spec, units.reshape(-1), positions.reshape(-1), device)


@dataclass(frozen=True, eq=False)
class Term:
    """One map's ‖R‖²/ν. All matrices float64 and on one device.

    ``a``, ``b``: W_Aᵀ and W_Bᵀ, ``(q, m)``. ``AA``, ``AB``, ``BB``: Gram matrices over ν. ``aAA``,
    ``aAB``, ``bAB``, ``bBB``: G_AA W_Aᵀ, G_BA W_Aᵀ, G_AB W_Bᵀ, G_BB W_Bᵀ.
    """

    a: Tensor
    b: Tensor
    AA: Tensor
    AB: Tensor
    BB: Tensor
    aAA: Tensor
    aAB: Tensor
    bAB: Tensor
    bBB: Tensor
    fixed: Tensor
    rows: Side
    columns: Side

    @staticmethod
    def of(a: Tensor, b: Tensor, grams: Tensor, rows: Side, columns: Side) -> Term:
        """Of W_A ``(m, q)``, W_B and their inputs' G_AA, G_AB, G_BB ``(3, q, q)``, float64."""
        AA, AB, BB = grams
        aAA, aAB, bAB, bBB = AA @ a, AB.T @ a, AB @ b, BB @ b
        fixed = a.T @ bAB  # W_A G_AB W_Bᵀ
        return Term(a, b, AA, AB, BB, aAA, aAB, bAB, bBB, fixed, rows, columns)

    @property
    def groups(self) -> tuple[str, ...]:
        return (*self.rows.entries, *self.columns.entries)

    def residual(self, moves: Moves) -> Tensor:
        """tr(D S Dᵀ) for a permutation."""
        q, m = self.columns.source(moves), self.rows.source(moves)
        D = self.a - self.b[q][:, m]
        cross = self.AB[:, q]
        S = self.AA - cross - cross.T + self.BB[q][:, q]
        return (S @ D * D).sum()

    def products(self, moves: Moves) -> Tensor:
        """Zᵀ, N, G_BB Zᵀ, G_AB Zᵀ, G_AA N and G_BA N: ``(6, q, m)``, linear in Q."""
        Z = self.columns.move(moves, self.a, transpose=True)
        N = self.columns.move(moves, self.b)
        return torch.stack([Z, N, self.BB @ Z, self.AB @ Z, self.AA @ N, self.AB.T @ N])

    def _right(self, moves: Moves, X: Tensor, transpose: bool = False) -> Tensor:
        """X P, or X Pᵀ, for X ``(q, m)``."""
        return self.rows.move(moves, X.T, transpose=not transpose).T

    def value(self, products: Tensor, moves: Moves) -> float:
        """The extension; its constant, (‖W_A H_A‖² + ‖W_B H_B‖²)/ν, is ½."""
        Z, N, BZ, AZ, AN, _ = products
        cross = (self._right(moves, self.aAA - AZ) * N).sum()
        cross += (self._right(moves, Z) * self.bBB).sum()
        cross -= self.rows.move(moves, self.fixed, transpose=True).diagonal().sum()
        own = (BZ * Z).sum() + (AN * N).sum() - 2 * ((self.aAB * Z).sum() + (self.bAB * N).sum())
        return float(own - 2 * cross) + 0.5

    def gradient(self, products: Tensor, moves: Moves) -> dict[str, Tensor]:
        """By the matrix of each group that the map holds, ``(units, units)``."""
        Z, N, BZ, AZ, AN, BN = products
        found: dict[str, Tensor] = {}
        parts = []
        if self.rows.entries:
            M = (self.aAA - AZ).T @ N + Z.T @ self.bBB - self.fixed
            parts.append(self.rows.pick(-2 * M))
        if self.columns.entries:
            left = BZ - self.aAB - self._right(moves, self.bBB - BN, True)
            right = AN - self.bAB - self._right(moves, self.aAA - AZ)
            parts.append(self.columns.collect(2 * self.a, left))
            parts.append(self.columns.collect(2 * right, self.b))
        for part in parts:
            for group, value in part.items():
                found[group] = found[group] + value if group in found else value
        return found

    def cube(self, now: Tensor, then: Tensor, before: Moves, after: Moves) -> float:
        """The coefficient of s³ from one point of a segment to another."""
        if not (self.rows.entries and self.columns.entries):
            return 0.0
        AZ, N = then[3] - now[3], then[1] - now[1]
        moved = self._right(after, AZ) - self._right(before, AZ)
        return 2 * float((moved * N).sum())
