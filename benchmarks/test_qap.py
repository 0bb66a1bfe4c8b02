"""Quadratic assignment: a run of solve_qap against scipy's FAQ, and one with a linear term.

    pytest benchmarks/test_qap.py

Both start from the barycentre and make the same number of steps; extra_info holds scipy's time over
ours and our value over scipy's. Matrices are symmetric, as Gram matrices are; without symmetry ours
takes two products a step instead of one.
"""

from time import perf_counter

import numpy as np
import pytest
import torch
from scipy.optimize import quadratic_assignment

from llfc_core.matching.qap import solve_qap

STEPS = 10


def gram(n: int, g: torch.Generator) -> torch.Tensor:
    X = torch.randn(n, n, generator=g, dtype=torch.float64)
    return X.T @ X / n


def scipy_faq(A: torch.Tensor, B: torch.Tensor):
    options = {"maxiter": STEPS, "tol": 1e-12, "rng": np.random.default_rng(0)}
    return quadratic_assignment(A.T.numpy(), B.numpy(), options=options)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "general"])
@pytest.mark.parametrize("n", [64, 128, 256, 512])
def test_against_scipy(benchmark, n, symmetric):
    benchmark.group = f"FAQ, {STEPS} steps, n = {n}"
    g = torch.Generator().manual_seed(0)
    A, B = gram(n, g), gram(n, g)
    if not symmetric:
        A, B = (X + torch.randn(n, n, generator=g, dtype=torch.float64) / n for X in (A, B))
    found = benchmark.pedantic(
        solve_qap,
        args=([(A, B)],),
        kwargs={"max_iterations": STEPS, "tolerance": 0.0},
        rounds=5,
        warmup_rounds=1,
    )
    seconds = []
    for _ in range(5):
        begin = perf_counter()
        theirs = scipy_faq(A, B)
        seconds.append(perf_counter() - begin)
    benchmark.extra_info["value_over_scipy"] = found.value / theirs.fun
    assert found.value == pytest.approx(theirs.fun, rel=1e-9)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["scipy_seconds"] = min(seconds)
        benchmark.extra_info["scipy_over_ours"] = min(seconds) / benchmark.stats.stats.min


@pytest.mark.parametrize("n", [256, 512, 1024])
def test_with_a_linear_term(benchmark, n):
    """Two symmetric terms and a linear one, as in matching for commutativity."""
    benchmark.group = f"two terms and C, {STEPS} steps"
    g = torch.Generator().manual_seed(0)
    terms = [(gram(n, g), gram(n, g)) for _ in range(2)]
    C = torch.randn(n, n, generator=g, dtype=torch.float64)
    found = benchmark.pedantic(
        solve_qap, args=(terms, C), kwargs={"max_iterations": STEPS, "tolerance": 0.0}, rounds=2
    )
    benchmark.extra_info["iterations"] = found.iterations
    assert found.value < found.runs[0].trace[0]


@pytest.mark.parametrize("n", [128, 256])
def test_exchanges(benchmark, n):
    """The local search alone, from the identity."""
    benchmark.group = "pairwise exchange"
    g = torch.Generator().manual_seed(0)
    terms, start = [(gram(n, g), gram(n, g))], torch.arange(n)
    options = {"starts": [start], "barycentre": False, "max_iterations": 0, "refine": True}
    found = benchmark.pedantic(solve_qap, args=(terms,), kwargs=options, rounds=2)
    benchmark.extra_info["swaps"] = found.runs[0].swaps
    assert found.runs[0].swaps > 0
