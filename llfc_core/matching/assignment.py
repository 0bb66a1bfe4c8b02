"""Linear assignment: which of B's units goes into which of A's slots.

Exact, on the CPU: in C (`llfc_core.kernels.native.linear_assignment`), by scipy where there is no
compiler. The C releases the interpreter's lock, so that several assignments run side by side
(scipy's do not), and can begin where the last one of a similar matrix ended. Approximate solvers
do not pay: their permutations are not optimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from llfc_core import kernels
from llfc_core.kernels import native


def assign(similarity: Tensor, prices: Tensor | None = None) -> Tensor:
    """The permutation with the greatest Σ_i similarity[i, perm[i]].

    similarity: ``(n, n)``, A's units by B's, any device. prices: see `assign_tree`. Returns int64
    ``(n,)`` on the CPU; which of several optima is unspecified. Raises ValueError unless the matrix
    is square and finite.
    """
    return assign_tree(similarity, {}, prices)[0]


def assign_tree(
    own: Tensor, children: Mapping[str, Tensor], prices: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
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
    prices
        Float64 ``(b,)`` on the CPU, written to: prices of B's blocks at which the search begins
        (zeros, if nothing is known), and then those at which each slot takes the block that suits
        it best, an optimum of the dual. Those of an earlier, similar matrix save most of the time.

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
        best = _solve(s.reshape(b * b, *s.shape[2:])).reshape(b, b, -1)
        value = value + np.take_along_axis(s, best[..., None], axis=3).sum((2, 3))
        candidates[name] = best
    outer = _solve(value[None], None if prices is None else prices[None])[0]
    inner = {k: torch.from_numpy(best[np.arange(b), outer]) for k, best in candidates.items()}
    return torch.from_numpy(outer), inner


T = TypeVar("T")
Submit = Callable[..., Future[T]]


@contextmanager
def side_by_side(threads: int) -> Iterator[Submit]:
    """Gives ``submit(share, work, *args)``: ``work`` in one of so many threads.

    Torch uses ``share`` threads within, and kernels take the caller's path.
    """
    used = False

    def limited(share: int, work: Callable[..., T], *args: object) -> T:
        torch.set_num_threads(share)
        return work(*args)

    def submit(share: int, work: Callable[..., T], *args: object) -> Future[T]:
        nonlocal used
        used = True
        return pool.submit(copy_context().run, limited, share, work, *args)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="llfc-matching") as pool:
            yield submit
    finally:
        if used:  # what any thread sets, torch takes for the default of threads to come
            torch.set_num_threads(torch.get_num_threads())


def _matrix(similarity: Tensor, blocks: int) -> np.ndarray:
    matrix = similarity.detach().to("cpu", torch.float64).numpy()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) % blocks:
        multiple = "" if blocks == 1 else f" of a multiple of {blocks}"
        raise ValueError(f"a similarity is a square matrix{multiple}, not {matrix.shape}")
    return matrix


def _solve(similarity: np.ndarray, prices: Tensor | None = None) -> np.ndarray:
    """``(k, n, n)`` → int64 ``(k, n)``."""
    tensor = torch.from_numpy(np.ascontiguousarray(similarity))
    if kernels.path(tensor) == "native":
        return native.linear_assignment(tensor, prices).numpy()
    if not np.isfinite(similarity).all():
        raise ValueError("the similarity has values that are not finite")
    return np.array([_by_scipy(s) for s in similarity]).reshape(similarity.shape[:2])


def _by_scipy(similarity: np.ndarray) -> np.ndarray:
    # Taking off each row's and then each column's best leaves the optimum and saves the solver's
    # first searches: a quarter of the time on similarities of trained networks.
    cost = similarity.max(1, keepdims=True, initial=-np.inf) - similarity
    cost -= cost.min(0, initial=np.inf)
    return linear_sum_assignment(cost)[1].astype(np.int64)
