"""The matching objective of commutativity (§5.2, eq. 9) and its expansion (A.3), in float64.

After B's units are permuted, W_B' = P W_B P_prev^T and H_B' = P_prev H_B, so commutativity (eq. 8)
between A and pi(B) reads R = 0 (eq. 9) with

    R = (W_A - P W_B P_prev^T)(H_A - P_prev H_B).

The two factors are what weight matching and activation matching make small.

**Erratum to A.3.** With U = W_A H_A - W_A P_prev H_B and V = P W_B P_prev^T H_A - P W_B H_B we have
R = U - V and |R|^2 = |U|^2 + |V|^2 - 2 <U, V>. A.3 ends in + <U, V>: sign and factor are both
wrong, and it matters, for the minimiser over permutations is then a different one. Its conclusion
stands: |U|^2 and |V|^2 are Koopmans-Beckmann in P_prev, <U, V> is linear in P for fixed P_prev.

The letters and shapes are the paper's, one column per data point: W_A, W_B (d_out, d_in); H_A, H_B
(d_in, n), the *inputs* of the layer; P (d_out, d_out) and P_prev (d_in, d_in) permutation matrices,
None for the identity (the network's first and last layer). Everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def permutation_matrix(perm: Tensor) -> Tensor:
    """P (d, d) float64 with (P H)[i] = H[perm[i]]: perm[i] = j puts B's unit j into slot i.

    perm: (d,) integers, a permutation of 0 ... d - 1 (ValueError otherwise).
    """
    d = len(perm)
    if perm.ndim != 1 or not torch.equal(perm.sort().values, torch.arange(d, device=perm.device)):
        raise ValueError("perm is not a permutation of 0 ... d - 1")
    return torch.eye(d, dtype=torch.float64, device=perm.device)[perm]


def commutativity_residual(
    W_A: Tensor,
    W_B: Tensor,
    H_A: Tensor,
    H_B: Tensor,
    P: Tensor | None = None,
    P_prev: Tensor | None = None,
) -> Tensor:
    """R (d_out, n) of eq. 9; without permutations dW dH, the defect of eq. 8 (Definition 4)."""
    return weight_difference(W_A, W_B, P, P_prev) @ feature_difference(H_A, H_B, P_prev)


def weight_difference(
    W_A: Tensor, W_B: Tensor, P: Tensor | None = None, P_prev: Tensor | None = None
) -> Tensor:
    """W_A - P W_B P_prev^T (d_out, d_in), the first factor of eq. 9."""
    permuted = W_B.double()
    if P is not None:
        permuted = P.double() @ permuted
    if P_prev is not None:
        permuted = permuted @ P_prev.double().T
    return W_A.double() - permuted


def feature_difference(H_A: Tensor, H_B: Tensor, P: Tensor | None = None) -> Tensor:
    """H_A - P H_B (d, n), the second factor of eq. 9."""
    return H_A.double() - (H_B.double() if P is None else P.double() @ H_B.double())


def weight_matching_objective(
    W_A: Tensor, W_B: Tensor, P: Tensor | None = None, P_prev: Tensor | None = None
) -> Tensor:
    """|W_A - P W_B P_prev^T|_F^2 (eq. 3), a scalar: the square of eq. 9's first factor."""
    return weight_difference(W_A, W_B, P, P_prev).square().sum()


def activation_matching_objective(H_A: Tensor, H_B: Tensor, P: Tensor | None = None) -> Tensor:
    """|H_A - P H_B|_F^2 (eq. 4), a scalar: the square of eq. 9's second factor."""
    return feature_difference(H_A, H_B, P).square().sum()


@dataclass(frozen=True)
class KoopmansBeckmann:
    """tr(P^T A P B) + tr(P^T C) + constant, as a function of the permutation matrix P (d, d).

    A and B are symmetric here, so tr(P^T A P B) is what scipy's `quadratic_assignment(A, B)` calls
    `fun`, with its col_ind our perm. It has no linear term: it solves our problem only when C = 0.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    constant: Tensor

    def quadratic(self, P: Tensor) -> Tensor:
        """tr(P^T A P B), a scalar."""
        return torch.trace(P.T @ self.A @ P @ self.B)

    def __call__(self, P: Tensor) -> Tensor:
        """The whole value, a scalar."""
        return self.quadratic(P) + torch.trace(P.T @ self.C) + self.constant


@dataclass(frozen=True)
class Gram:
    """H_A H_A^T, H_A H_B^T, H_B H_B^T (d_in, d_in): all that the objective needs of the data."""

    AA: Tensor
    AB: Tensor
    BB: Tensor

    @staticmethod
    def of(H_A: Tensor, H_B: Tensor) -> Gram:
        """From the features (d_in, n). Gram matrices of batches add up."""
        a, b = H_A.double(), H_B.double()
        return Gram(a @ a.T, a @ b.T, b @ b.T)


def first_term(W_A: Tensor, gram: Gram) -> KoopmansBeckmann:
    """|W_A H_A - W_A P_prev H_B|_F^2 as a function of P_prev (A.3, first term)."""
    K_A = W_A.double().T @ W_A.double()
    return KoopmansBeckmann(K_A, gram.BB, -2 * K_A @ gram.AB, torch.trace(K_A @ gram.AA))


def second_term(W_B: Tensor, gram: Gram) -> KoopmansBeckmann:
    """|P W_B P_prev^T H_A - P W_B H_B|_F^2 as a function of P_prev (A.3, second term).

    P drops out, an orthogonal map changes no norm. A.3 writes the quadratic part with P_prev where
    the form has P^T: tr(P K P^T G) is tr(P^T G P K).
    """
    K_B = W_B.double().T @ W_B.double()
    return KoopmansBeckmann(gram.AA, K_B, -2 * gram.AB @ K_B, torch.trace(K_B @ gram.BB))


def cross_profit(W_A: Tensor, W_B: Tensor, gram: Gram, P_prev: Tensor | None = None) -> Tensor:
    """M (d_out, d_out) with <U, V> = tr(P^T M): the profit of a linear assignment in P.

    M = W_A S P_prev W_B^T with S = (H_A - P_prev H_B)(H_A - P_prev H_B)^T, from P_prev^T (H_A -
    P_prev H_B) = P_prev^T H_A - H_B. As |U| and |V| do not depend on P, the P that minimises |R|
    for fixed P_prev is exactly `linear_sum_assignment(M, maximize=True)`.
    """
    Q = torch.eye(len(gram.AA)).to(gram.AA) if P_prev is None else P_prev.double()
    cross = gram.AB @ Q.T
    S = gram.AA - cross - cross.T + Q @ gram.BB @ Q.T
    return W_A.double() @ S @ Q @ W_B.double().T


@dataclass(frozen=True)
class Expansion:
    """|U|^2, |V|^2 and <U, V> of |R|^2 = |U - V|^2, scalars."""

    first: Tensor
    second: Tensor
    cross: Tensor

    @property
    def total(self) -> Tensor:
        """|R|_F^2, with the cross term's factor put right: -2, not A.3's +1."""
        return self.first + self.second - 2 * self.cross


def expand(
    W_A: Tensor,
    W_B: Tensor,
    gram: Gram,
    P: Tensor | None = None,
    P_prev: Tensor | None = None,
) -> Expansion:
    """A.3's expansion of |R|_F^2 in traces, from the Gram matrices alone.

    The traces cancel against each other, so a small |R|^2 keeps an absolute error of 1e-16 times
    the largest term. P and P_prev must be orthogonal (permutations are); elsewhere, on doubly
    stochastic matrices, the expansion is another function than |R|^2.
    """
    M = cross_profit(W_A, W_B, gram, P_prev)
    I_out, I_in = torch.eye(len(M)).to(M), torch.eye(len(gram.AA)).to(M)
    Q = I_in if P_prev is None else P_prev.double()
    return Expansion(
        first=first_term(W_A, gram)(Q),
        second=second_term(W_B, gram)(Q),
        cross=torch.trace((I_out if P is None else P.double()).T @ M),
    )
