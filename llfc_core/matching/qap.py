"""Quadratic assignment with a linear term, by Frank–Wolfe on doubly stochastic matrices (FAQ).

Minimises over permutation matrices P (n, n)

    f(P) = Σ_k tr(A_k P B_k Pᵀ) + ⟨C, P⟩,     P[i, perm[i]] = 1,

with any number of quadratic terms, none of which need be symmetric. In entries the k-th term is
Σ_ij A[i, j] B[perm[j], perm[i]]. Others transpose otherwise:

* `llfc_core.theory.qap.KoopmansBeckmann(A, B, C)`, tr(PᵀAPB) + tr(PᵀC): the same A, B and C;
* `scipy.optimize.quadratic_assignment(A, B)` minimises tr(AᵀPBPᵀ): our ``[(A.T, B)]``, its col_ind
  our permutation; it has no linear term;
* QAPLIB's Σ_ij a_ij b_p(i)p(j) is scipy's. Where A or B is symmetric the transposes do not matter.

Everything rests on one self-adjoint linear map, G(X) = Σ_k A_k X B_k + A_kᵀ X B_kᵀ:

    f(X) = ½⟨G(X), X⟩ + ⟨C, X⟩,     ∇f(X) = G(X) + C,
    f(X + sD) = f(X) + s⟨∇f(X), D⟩ + ½s²⟨G(D), D⟩.

So the best step on a segment is known in closed form, G of the iterate is carried along, and a
step of Frank–Wolfe costs G of one permutation matrix, which is one n × n product for a term with a
symmetric A or B (two for others), and one linear assignment on the CPU.

The problem is NP-hard, and what is found is a good permutation, not a proven best one.

J. T. Vogelstein et al., "Fast Approximate Quadratic Programming for Graph Matching", PLoS ONE
10(4), 2015 (FAQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Terms = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class QAPRun:
    """What came of one start.

    Attributes
    ----------
    start
        "barycentre", "given 0", "given 1", …, "random 0", "random 1", …
    permutation
        int64 ``(n,)`` on the CPU: perm[i] = j puts B's unit j into slot i.
    value
        f of the permutation.
    trace
        f of the doubly stochastic iterates, from the start on: ``iterations + 1`` values that do
        not increase but for rounding. (That of a permutation found at the end is another.)
    converged
        Whether the last step was no longer than the tolerance, or there was none to make.
    swaps
        Exchanges made by the local search.
    """

    start: str
    permutation: Tensor
    value: float
    trace: tuple[float, ...]
    converged: bool
    swaps: int

    @property
    def iterations(self) -> int:
        """Steps of Frank–Wolfe."""
        return len(self.trace) - 1


@dataclass(frozen=True, eq=False)
class QAPResult:
    """The best permutation, int64 ``(n,)`` on the CPU, its value f, and every start's run."""

    permutation: Tensor
    value: float
    runs: tuple[QAPRun, ...]

    @property
    def iterations(self) -> int:
        """Steps of Frank–Wolfe, over all starts."""
        return sum(run.iterations for run in self.runs)


def qap_value(quadratic: Terms, linear: Tensor | None, P: Tensor) -> Tensor:
    """f(P), a float64 scalar, differentiable in a matrix P.

    P: ``(n, n)``, any matrix; or ``(n,)`` integers, a permutation, which takes n² operations
    instead of n³. ValueError as for `solve_qap`.
    """
    problem = _Problem.of(quadratic, linear)
    if P.ndim == 1:
        return problem.value_at(_permutation(P, problem.n).to(problem.C.device))
    X = _matrix(P, "P", problem.n).to(problem.C.device)
    return 0.5 * (problem.G(X) * X).sum() + (problem.C * X).sum()


def qap_gradient(quadratic: Terms, linear: Tensor | None, P: Tensor) -> Tensor:
    """∇f(P) = Σ_k A_k P B_k + A_kᵀ P B_kᵀ + C, float64 ``(n, n)``; P as in `qap_value`."""
    problem = _Problem.of(quadratic, linear)
    if P.ndim == 1:
        perm = _permutation(P, problem.n).to(problem.C.device)
        return problem.G_at(perm) + problem.C
    return problem.G(_matrix(P, "P", problem.n).to(problem.C.device)) + problem.C


def solve_qap(
    quadratic: Terms,
    linear: Tensor | None = None,
    *,
    starts: Sequence[Tensor] = (),
    barycentre: bool = True,
    restarts: int = 0,
    seed: int = 0,
    refine: bool = False,
    max_iterations: int = 30,
    tolerance: float = 0.03,
) -> QAPResult:
    """A permutation with a small f(P) = Σ_k tr(A_k P B_k Pᵀ) + ⟨C, P⟩.

    From every start: Frank–Wolfe, then the permutation nearest to where it ended, then, with
    ``refine``, exchanges of two units as long as one helps. The best of all is returned.

    Parameters
    ----------
    quadratic
        Pairs (A_k, B_k) of ``(n, n)`` matrices of any real dtype, on one device; all is computed
        there in float64, but for the assignments. May be empty if ``linear`` is given.
    linear
        C ``(n, n)``, None for 0.
    starts
        Permutations, ``(n,)`` integers, or doubly stochastic matrices ``(n, n)``. The result is
        never worse than a permutation among them.
    barycentre
        Start from the matrix with all entries 1/n as well.
    restarts, seed
        Number of random starts, each somewhere between the barycentre and a random permutation.
        With the same seed, fewer restarts are the first of more.
    refine
        Local search at the end of each run, in which a swap costs some n² operations and the best
        of all n(n − 1)/2 is made.
    max_iterations, tolerance
        Of Frank–Wolfe in each run: it stops when a step is no longer than ``tolerance`` · √n in
        Frobenius norm (two permutation matrices are at most √(2n) apart). FAQ's usual ones.

    Raises
    ------
    ValueError
        Nothing to minimise or no start; matrices that are not square, not of one size, or not
        finite; a start that is neither a permutation nor doubly stochastic; a negative number of
        iterations or restarts, a negative tolerance.
    """
    if max_iterations < 0 or restarts < 0 or not tolerance >= 0:
        raise ValueError("max_iterations, restarts and tolerance must not be negative")
    with torch.no_grad():
        problem = _Problem.of(quadratic, linear)
        runs = []
        for name, start in _starts(problem.n, starts, barycentre, restarts, seed):
            runs.append(_run(problem, name, start, refine, max_iterations, tolerance))
    if not runs:
        raise ValueError("no start: give starts or restarts, or start from the barycentre")
    best = min(runs, key=lambda run: run.value)  # of equals the first
    return QAPResult(best.permutation, best.value, tuple(runs))


# ---- the objective ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Problem:
    """Terms (A, B), C (n, n), and pairs (L, R) with G(X) = Σ L X R; float64 on one device."""

    terms: tuple[tuple[Tensor, Tensor], ...]
    C: Tensor
    pairs: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(quadratic: Terms, linear: Tensor | None) -> _Problem:
        named = [
            (f"{letter}_{k}", matrix)
            for k, pair in enumerate(quadratic)
            for letter, matrix in zip("AB", pair, strict=True)
        ]
        if linear is not None:
            named.append(("C", linear))
        if not named:
            raise ValueError("nothing to minimise: neither a quadratic nor a linear term")
        n = named[0][1].shape[0] if named[0][1].ndim else 0
        matrices = [_matrix(matrix, name, n) for name, matrix in named]
        if len({matrix.device for matrix in matrices}) > 1:
            raise ValueError("the matrices are on several devices")
        C = torch.zeros_like(matrices[0]) if linear is None else matrices.pop()
        terms = tuple(zip(matrices[::2], matrices[1::2], strict=True))
        pairs: list[tuple[Tensor, Tensor]] = []
        for A, B in terms:
            if _is_symmetric(A) or _is_symmetric(B):
                # One symmetric: of the other only the symmetric part counts, A X B + Aᵀ X Bᵀ is
                # twice the product of the two, and one product does.
                pairs.append((A + A.T, 0.5 * (B + B.T)))
            else:
                pairs += [(A, B), (A.T.contiguous(), B.T.contiguous())]
        return _Problem(terms, C, tuple(pairs))

    @property
    def n(self) -> int:
        return len(self.C)

    def G(self, X: Tensor) -> Tensor:
        """G(X) for a matrix X."""
        result = torch.zeros_like(self.C)
        for L, R in self.pairs:
            result = result + L @ X @ R
        return result

    def G_at(self, perm: Tensor) -> Tensor:
        """G(P) for a permutation: L P is a rearrangement of L's columns."""
        result = torch.zeros_like(self.C)
        inverse = perm.argsort()
        for L, R in self.pairs:
            result.addmm_(L[:, inverse], R)
        return result

    def value_at(self, perm: Tensor) -> Tensor:
        """f(P) for a permutation, in n² operations, and without rounding for integers."""
        value = self.C[torch.arange(self.n, device=perm.device), perm].sum()
        for A, B in self.terms:
            value = value + (A.T * B[perm][:, perm]).sum()
        return value


def _is_symmetric(X: Tensor) -> bool:
    """But for rounding: XᵀX as a product of matrices can be off in the last place."""
    return float((X - X.T).abs().max()) <= 1e-13 * float(X.abs().max())


def _matrix(matrix: Tensor, name: str, n: int) -> Tensor:
    """The matrix in float64, (n, n) with n > 0, all finite; ValueError if it is not."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, not of shape {tuple(matrix.shape)}")
    if len(matrix) != n:
        raise ValueError(f"{name} is {len(matrix)} × {len(matrix)}, others are {n} × {n}")
    if matrix.is_complex():
        raise ValueError(f"{name} is complex")
    matrix = matrix.to(torch.float64)
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite")
    return matrix


# ---- starts -----------------------------------------------------------------------------------


def _starts(
    n: int, given: Sequence[Tensor], barycentre: bool, restarts: int, seed: int
) -> list[tuple[str, Tensor]]:
    """Names and starts: permutations int64 (n,), matrices float64 (n, n), on the CPU."""
    centre = torch.full((n, n), 1 / n, dtype=torch.float64)
    starts = [("barycentre", centre)] if barycentre else []
    for k, start in enumerate(given):
        name = f"given {k}"
        if start.ndim == 1:
            starts.append((name, _permutation(start, n, name)))
        else:
            starts.append((name, _doubly_stochastic(start.detach().cpu(), n, name)))
    generator = torch.Generator().manual_seed(seed)
    for k in range(restarts):
        # Random matrices scaled to be doubly stochastic, the usual choice, lie near the barycentre
        # and often lead to where it does, above all with a linear term. These are anywhere.
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        corner = _permutation_matrix(torch.rand(n, generator=generator).argsort())
        starts.append((f"random {k}", torch.lerp(centre, corner, share)))
    return starts


def _permutation(perm: Tensor, n: int, name: str = "P") -> Tensor:
    whole = not (perm.is_floating_point() or perm.is_complex() or perm.dtype == torch.bool)
    perm = perm.detach().cpu()
    if not whole or not torch.equal(perm.sort().values.long(), torch.arange(n)):
        raise ValueError(f"{name} is not a permutation of 0 … {n - 1}")
    return perm.long()


def _doubly_stochastic(matrix: Tensor, n: int, name: str) -> Tensor:
    matrix = _matrix(matrix, name, n)
    sums = torch.cat([matrix.sum(0), matrix.sum(1)])
    if bool((matrix < -1e-9).any()) or float((sums - 1).abs().max()) > 1e-6:
        raise ValueError(f"{name} is not doubly stochastic")
    return matrix


# ---- one run ----------------------------------------------------------------------------------


def _run(
    problem: _Problem,
    name: str,
    start: Tensor,
    refine: bool,
    max_iterations: int,
    tolerance: float,
) -> QAPRun:
    start = start.to(problem.C.device)
    P = start if start.ndim == 2 else _permutation_matrix(start)
    P, trace, converged = _frank_wolfe(problem, P, max_iterations, tolerance)
    perm = _assign(-P)
    value = float(problem.value_at(perm))
    if start.ndim == 1 and (own := float(problem.value_at(start))) <= value:
        # Projecting what lies between permutations can lose what was there at the start.
        perm, value = start, own
    swaps = 0
    if refine:
        perm, value, swaps = _exchange(problem, perm, value)
    return QAPRun(name, perm.cpu(), value, trace, converged, swaps)


def _frank_wolfe(
    problem: _Problem, P: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, tuple[float, ...], bool]:
    """The last iterate, f of all of them, and whether a step got short enough to stop."""
    C, n = problem.C, problem.n
    G = problem.G(P)
    trace = [float(0.5 * (G * P).sum() + (C * P).sum())]
    for _ in range(max_iterations):
        perm = _assign(G + C)  # the vertex that the linearisation likes best
        Q, G_Q = _permutation_matrix(perm), problem.G_at(perm)
        D = Q - P
        slope = float(((G + C) * D).sum())
        step = best_step(slope, 0.5 * float(((G_Q - G) * D).sum()))
        length = step * float(D.norm())
        if length == 0:
            return P, tuple(trace), True
        P, G = torch.lerp(P, Q, step), torch.lerp(G, G_Q, step)  # exactly Q for a whole step
        trace.append(float(0.5 * (G * P).sum() + (C * P).sum()))
        if length <= tolerance * n**0.5:
            return P, tuple(trace), True
    return P, tuple(trace), False


def best_step(slope: float, curvature: float) -> float:
    """The s in [0, 1] where slope·s + curvature·s² is least; 0 if nothing is gained."""
    if curvature > 0 and -slope < 2 * curvature:
        return max(0.0, -slope / (2 * curvature))
    return 1.0 if slope + curvature < 0 else 0.0


def _assign(cost: Tensor) -> Tensor:
    """The permutation of least cost, int64 on the cost's device."""
    columns = linear_sum_assignment(cost.cpu().numpy())[1].astype(np.int64)
    return torch.from_numpy(columns).to(cost.device)


def _permutation_matrix(perm: Tensor) -> Tensor:
    return torch.eye(len(perm), dtype=torch.float64, device=perm.device)[perm]


# ---- pairwise exchange ------------------------------------------------------------------------


def swap_gains(quadratic: Terms, linear: Tensor | None, perm: Tensor) -> Tensor:
    """By how much f changes if slots r and s exchange what they hold: float64 ``(n, n)``.

    Symmetric with a zero diagonal, negative where f falls. With v = e_r − e_s the new matrix is
    (I − vvᵀ)P, and writing d(X)_rs = vᵀXv = X_rr + X_ss − X_rs − X_sr, the change is

        −d(∇f(P)Pᵀ) + Σ_k d(A_k) d(P B_k Pᵀ):

    one product for all swaps, whatever the symmetry. ValueError as for `solve_qap`.
    """
    problem = _Problem.of(quadratic, linear)
    perm = _permutation(perm, problem.n).to(problem.C.device)
    slopes, curvatures = _exchange_state(problem, perm)
    return curvatures - _second_difference(slopes)


def _second_difference(X: Tensor) -> Tensor:
    """X_rr + X_ss − X_rs − X_sr for all r, s."""
    diagonal = X.diagonal()
    return diagonal[:, None] + diagonal - (X + X.T)


def _exchange_state(problem: _Problem, perm: Tensor) -> tuple[Tensor, Tensor]:
    """∇f(P)Pᵀ and Σ_k d(A_k) d(P B_k Pᵀ), (n, n) each."""
    slopes = (problem.G_at(perm) + problem.C)[:, perm]
    curvatures = torch.zeros_like(slopes)
    for A, B in problem.terms:
        curvatures += _second_difference(A) * _second_difference(B)[perm][:, perm]
    return slopes, curvatures


def _exchange(problem: _Problem, perm: Tensor, value: float) -> tuple[Tensor, float, int]:
    """Swap the two units that lower f most until no swap does; perm, f and the number of swaps.

    A swap changes the gradient by a matrix of rank one per pair, so that it costs n² operations.
    """
    n, swaps = problem.n, 0
    differences = [(_second_difference(A), _second_difference(B)) for A, B in problem.terms]
    while True:
        # Anew every n swaps and at the end, so that rounding cannot add up.
        slopes, curvatures = _exchange_state(problem, perm)
        new, made = perm.clone(), 0
        rounding = 1e-13 * n**0.5 * float(slopes.abs().max() + curvatures.abs().max())
        while made < n:
            gains = curvatures - _second_difference(slopes)
            at = int(gains.argmin())
            r, s = divmod(at, n)
            if float(gains[r, s]) >= -rounding:
                break
            # P' = (I − vvᵀ)P: ∇f gains −Σ L v vᵀP R, and the columns of ∇f Pᵀ move as well.
            for L, R in problem.pairs:
                slopes.addr_(L[:, r] - L[:, s], (R[new[r]] - R[new[s]])[new], alpha=-1)
            slopes[:, [r, s]] = slopes[:, [s, r]]
            # The linear term has no part in this: C does not depend on P.
            new[[r, s]] = new[[s, r]]
            curvatures[[r, s]] = 0.0
            for A, B in differences:
                curvatures[[r, s]] += A[[r, s]] * B[new[[r, s]]][:, new]
            curvatures[:, [r, s]] = curvatures[[r, s]].T
            made += 1
        new_value = float(problem.value_at(new))
        if not made or new_value >= value:
            return perm, value, swaps
        perm, value, swaps = new, new_value, swaps + made
