"""Dist_σ: the exact maximum against the maximum over a 21-point grid, in eager torch.

    pytest benchmarks/test_weak_additivity.py

Pre-activations are as wide as the MLP's layers, and correlated as those of linked pairs are.
"""

import pytest
import torch

from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_histogram

SIZES = [(1000, 512), (100, 16384)]


def pre_activations(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a, other = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    return a, 0.9 * a + 0.19**0.5 * other


def grid_in_eager_torch(a: torch.Tensor, b: torch.Tensor, points: int = 21) -> torch.Tensor:
    a, b = a.double(), b.double()
    best = torch.zeros(len(a), dtype=torch.float64)
    for i in range(points):
        alpha = i / (points - 1)
        u = (alpha * a + (1 - alpha) * b).relu()
        v = alpha * a.relu() + (1 - alpha) * b.relu()
        best = torch.maximum(best, (u - v).square().sum(1) / (u.norm(dim=1) * v.norm(dim=1)))
    return best


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("kernel", ["exact", "histogram", "grid of 21"])
def test_dist_sigma(benchmark, n, d, kernel):
    benchmark.group = f"Dist_σ, {n} × {d}"
    a, b = pre_activations(n, d)
    run = {
        "exact": lambda: dist_sigma(a, b).distance,
        "histogram": lambda: dist_sigma_histogram(a, b).distance,
        "grid of 21": lambda: grid_in_eager_torch(a, b),
    }[kernel]
    assert bool((benchmark(run) > 0).all())
