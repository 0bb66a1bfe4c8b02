"""Linear assignment: which of B's units goes into which of A's slots.

Exact, on the CPU, by scipy's solver. Two things that look promising do not pay and are left out:
several assignments in threads (scipy 1.17 holds the interpreter's lock: two of 512 units take 14 ms
each alone and 29 ms side by side) and approximate solvers, whose permutations are not optimal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(similarity: Tensor) -> Tensor:
    """The permutation with the greatest Σ_i similarity[i, perm[i]].

    similarity: ``(n, n)``, A's units by B's, any device. Returns int64 ``(n,)`` on the CPU; which
    of several optima is unspecified. Raises ValueError unless the matrix is square and finite.
    """
    return assign_tree(similarity, {})[0]


def assign_tree(own: Tensor, children: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The best permutation of b blocks together with those of the units within them.

    Putting block j into slot i is worth own[i, j] plus, for each child, the best assignment of
    block j's units to block i's: b² small assignments, then one of b × b. Exact, for the units
    of a block may be permuted as is best for the slot that it goes into.

    Parameters
    ----------
    own
        Similarity of the blocks themselves, ``(b, b)``.
    children
        Similarities of units within the blocks, by name, ``(b·n, b·n)``, unit by unit (n·i + u).

    Returns
    -------
    outer, inner
        int64 on the CPU: ``(b,)``, and by name ``(b, n)``, whose row i permutes the block that
        goes into slot i.

    Raises
    ------
    ValueError
        A matrix is not square, not finite, or not one of whole blocks.
    """
    value = _matrix(own, 1)
    b = len(value)
    candidates = {}
    for name, similarity in children.items():
        whole = _matrix(similarity, b)
        s = whole.reshape(b, len(whole) // b, b, len(whole) // b).swapaxes(1, 2)
        best = np.array([[_solve(s[i, j]) for j in range(b)] for i in range(b)])  # (b, b, n)
        value = value + np.take_along_axis(s, best[..., None], axis=3).sum((2, 3))
        candidates[name] = best
    outer = _solve(value)
    inner = {k: torch.from_numpy(best[np.arange(b), outer]) for k, best in candidates.items()}
    return torch.from_numpy(outer), inner


def _matrix(similarity: Tensor, blocks: int) -> np.ndarray:
    matrix = similarity.detach().to("cpu", torch.float64).numpy()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) % blocks:
        multiple = "" if blocks == 1 else f" of a multiple of {blocks}"
        raise ValueError(f"a similarity is a square matrix{multiple}, not {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("the similarity has values that are not finite")
    return matrix


def _solve(similarity: np.ndarray) -> np.ndarray:
    # Taking off each row's and then each column's best leaves the optimum and saves the solver's
    # first searches: a quarter of the time on similarities of trained networks.
    cost = similarity.max(1, keepdims=True, initial=-np.inf) - similarity
    cost -= cost.min(0, initial=np.inf)
    return linear_sum_assignment(cost)[1].astype(np.int64)
