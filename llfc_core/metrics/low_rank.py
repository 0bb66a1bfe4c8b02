"""How low the rank of weights and features is (Appendix B.5; Fig. 20-22).

Features come batch by batch, so their singular values are taken from the streamed Gram matrix
Σ h_i h_iᵀ, whose eigenvalues are the squares of the singular values of H.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llfc_core.kernels import add_gram, whole_gram

# Share of ‖·‖²_F that the singular values counted by `rank_share` hold.
ENERGY = 0.95

# Gram matrices wider than this are approximated from below first: at 3136, the width of a narrow
# VGG's first layers, all eigenvalues take some 4 s and the leading ones a tenth of that.
_WIDE = 768
_PIVOTS = 64


def squared_singular_values(weight: Tensor) -> Tensor:
    """Squares of the singular values of W, descending, float64 ``(min(d_out, d_in),)``.

    A convolution's weight ``(C_out, C_in, …)`` is reshaped to ``(C_out, C_in · …)``, as the paper
    does (Section 5, footnote 4).

    They are the eigenvalues of the smaller Gram matrix, several times faster than an SVD; the error
    is a few units of rounding of the largest.
    """
    w = weight.detach().flatten(1).double()
    return _eigenvalues(w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w)


def stable_rank(squares: Tensor) -> Tensor:
    """srnk = ‖W‖²_F / ‖W‖²₂ from squared singular values, descending (Fig. 22); NaN for W = 0."""
    return squares.sum() / squares[0]


def rank_share(squares: Tensor, energy: float = ENERGY) -> Tensor:
    """Share of the singular values, the largest first, that holds ``energy`` of ‖·‖²_F.

    0 < share ≤ 1; small means approximately low rank. NaN for a zero matrix.
    """
    total = squares.sum()
    needed = int((squares.cumsum(0) < energy * total).sum()) + 1
    share = torch.tensor(min(needed, len(squares)) / len(squares), dtype=torch.float64)
    return torch.where(total.cpu() > 0, share, torch.nan)


class GramAccumulator:
    """Streams features and keeps the lower triangle of Σ h_i h_iᵀ, in float64."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []

    def update(self, features: Tensor) -> None:
        """Add a batch ``(n, d)``."""
        add_gram(self._blocks, features)

    @property
    def width(self) -> int:
        """d, or 0 while nothing has been streamed."""
        return self._blocks[-1].shape[1] if self._blocks else 0

    @property
    def gram(self) -> Tensor:
        """Σ h_i h_iᵀ ``(d, d)``. Raises ValueError if nothing has been streamed."""
        if not self._blocks:
            raise ValueError("no features have been streamed")
        return whole_gram(self._blocks)

    def squared_singular_values(self) -> Tensor:
        """Those of H, descending, float64 ``(d,)``: beyond min(n, d) they are rounding.

        Raises
        ------
        ValueError
            Nothing has been streamed.
        """
        return _eigenvalues(self.gram)

    def rank_share(self, energy: float = ENERGY) -> Tensor:
        """`rank_share` of `squared_singular_values`, without all of them where d is large.

        0 < energy < 1. Raises ValueError as they do.
        """
        gram = self.gram
        if len(gram) > _WIDE and (needed := _needed_if_certain(gram, energy)):
            return torch.tensor(needed / len(gram), dtype=torch.float64)
        return rank_share(_eigenvalues(gram), energy)


def _needed_if_certain(gram: Tensor, energy: float) -> int | None:
    """How many eigenvalues hold ``energy`` of the trace, from a pivoted Cholesky factor; or None.

    G = LLᵀ + E with E ⪰ 0, so that Σ_{i≤k} λ_i(G) lies between Σ_{i≤k} λ_i(LLᵀ) and that plus tr E,
    which shrinks column by column. Once the two bounds agree on the number it is known, and of few
    columns λ(LLᵀ) = λ(LᵀL) is cheap. None where half of the columns would not do.
    """
    d = len(gram)
    residual = gram.diagonal().clone()
    total = residual.sum()
    if not total > 0:
        return None
    room, columns = gram.new_empty(d, d // 2 + _PIVOTS), 0
    factor = room[:, :0]
    for tolerance in (1e-3, 1e-5, 1e-8):
        while residual.sum() > tolerance * total:
            if columns > d // 2:
                return None
            pivots = residual.topk(_PIVOTS).indices
            left = gram[pivots] - factor[pivots] @ factor.T
            values, vectors = torch.linalg.eigh(left[:, pivots])
            sound = values > 1e-10 * values[-1]
            added = (vectors[:, sound] / values[sound].sqrt()).T @ left
            room[:, columns : columns + len(added)] = added.T
            columns += len(added)
            factor = room[:, :columns]
            residual = (residual - added.square().sum(dim=0)).clamp_min(0)
            residual[pivots] = 0
        held = _eigenvalues(factor.T @ factor).cumsum(0)
        at_least = int((held + residual.sum() < energy * total).sum()) + 1
        at_most = int((held < energy * total).sum()) + 1
        if at_least == at_most:
            return at_most
    return None


def _eigenvalues(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
