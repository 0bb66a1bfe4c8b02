"""How low the rank of weights and features is (Appendix B.5; Fig. 20-22).

Features come batch by batch, so their singular values are taken from the streamed Gram matrix
Σ h_i h_iᵀ, whose eigenvalues are the squares of the singular values of H.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Share of ‖·‖²_F that the singular values counted by `rank_share` hold.
ENERGY = 0.95


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
    """Streams features and keeps Σ h_i h_iᵀ, float64 ``(d, d)``."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add a batch ``(n, d)``."""
        h = features.double()
        self.gram = h.T @ h if self.gram is None else self.gram.addmm_(h.T, h)

    def squared_singular_values(self) -> Tensor:
        """Those of H, descending, float64 ``(d,)``: beyond min(n, d) they are rounding.

        Raises
        ------
        ValueError
            Nothing has been streamed.
        """
        if self.gram is None:
            raise ValueError("no features have been streamed")
        return _eigenvalues(self.gram)


def _eigenvalues(gram: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
