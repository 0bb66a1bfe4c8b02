"""The approximate Theorem 1: its bounds hold, vanish where the theorem applies, and how tight."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from llfc_core.theory import Family, ReluNet, forward, interpolate, theorem1_pair
from llfc_core.theory.bound import cosine_gap_bound, llfc_bound, unrolled_bound

seeds = st.integers(0, 2**32 - 1)
alphas = st.floats(0, 1)
widths = st.lists(st.integers(1, 12), min_size=2, max_size=6)


def random_net(g: torch.Generator, sizes: list[int], relu_last: bool) -> ReluNet:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    pairs = list(pairwise(sizes))
    return ReluNet(
        tuple(normal(n, m) * (2 / m) ** 0.5 for m, n in pairs),
        tuple(0.3 * normal(n) for _, n in pairs),
        relu_last,
    )


def random_pair(
    seed: int, sizes: list[int], n: int, distance: float, relu_last: bool
) -> tuple[ReluNet, ReluNet, Tensor]:
    """A and B = A + distance (C - A) for unrelated A, C, and Gaussian data."""
    g = torch.Generator().manual_seed(seed)
    a, c = random_net(g, sizes, relu_last), random_net(g, sizes, relu_last)
    x = torch.randn(sizes[0], n, generator=g, dtype=torch.float64)
    return a, interpolate(a, c, 1 - distance), x


@settings(deadline=None, max_examples=150)
@given(widths, st.integers(1, 12), st.floats(0, 1), alphas, st.booleans(), st.booleans(), seeds)
def test_bounds_hold(
    sizes: list[int],
    n: int,
    distance: float,
    alpha: float,
    relu_last: bool,
    per_point: bool,
    seed: int,
) -> None:
    a, b, x = random_pair(seed, sizes, n, distance, relu_last)
    got = llfc_bound(a, b, x, alpha, per_point=per_point)
    slack = 1e-12 * (1 + got.unrolled + got.target)
    assert (got.error <= got.one_step + slack).all()
    assert (got.one_step <= got.unrolled + slack).all()
    assert got.error.shape == ((len(sizes) - 1, n) if per_point else (len(sizes) - 1,))
    assert (got.commutativity[0] == 0).all()
    if not relu_last:
        assert (got.additivity[-1] == 0).all()


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 1), alphas, st.booleans(), seeds)
def test_first_layer_is_an_equality(
    distance: float, alpha: float, relu_last: bool, seed: int
) -> None:
    """Nothing lies below the first layer and it always commutes: E_1 = a_1."""
    a, b, x = random_pair(seed, [5, 7, 3], 6, distance, relu_last)
    got = llfc_bound(a, b, x, alpha, per_point=True)
    torch.testing.assert_close(got.error[0], got.additivity[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.error[0], got.unrolled[0], rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.floats(0.05, 1), alphas, seeds)
def test_a_linear_second_layer_shows_the_sign(
    n: int, distance: float, alpha: float, seed: int
) -> None:
    """f_2 - z_2 = W_alpha (f_1 - z_1) - alpha (1 - alpha) dW dH, the identity behind the bound."""
    a, b, x = random_pair(seed, [4, 6, 3], n, distance, relu_last=False)
    f_a, f_b, f = forward(a, x), forward(b, x), forward(interpolate(a, b, alpha), x)
    first, second = (f.post[k] - alpha * f_a.post[k] - (1 - alpha) * f_b.post[k] for k in (1, 2))
    w_alpha = alpha * a.weights[1] + (1 - alpha) * b.weights[1]
    defect = (a.weights[1] - b.weights[1]) @ (f_a.post[1] - f_b.post[1])
    torch.testing.assert_close(second, w_alpha @ first - alpha * (1 - alpha) * defect)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(4, 10), min_size=3, max_size=6),
    st.sampled_from(["null_space", "disjoint_support"]),
    alphas,
    st.booleans(),
    seeds,
)
def test_bound_vanishes_where_theorem_1_applies(
    sizes: list[int], family: Family, alpha: float, relu_last: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    pair = theorem1_pair(g, sizes, 3, family, relu_last=relu_last)
    got = llfc_bound(pair.a, pair.b, pair.x, alpha)
    scale = 1 + got.target.max() + sum(w.norm() for w in pair.a.weights)
    # Rounding is amplified like any residual, by the spectral norms above it.
    gains = [torch.linalg.matrix_norm(w, 2).clamp_min(1) for w in pair.a.weights]
    assert (got.unrolled <= 1e-13 * scale * 2 * torch.stack(gains).prod()).all()
    assert (got.error <= got.unrolled + 1e-13 * scale * torch.stack(gains).prod()).all()


def test_unrolled_is_the_sum_over_layers() -> None:
    g = torch.Generator().manual_seed(0)
    a, c = (torch.rand(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    gains = torch.rand(4, generator=g, dtype=torch.float64)
    got = unrolled_bound(a, c, list(gains))
    for layer in range(4):
        want = sum((a[k] + c[k]) * gains[k + 1 : layer + 1].prod() for k in range(layer + 1))
        torch.testing.assert_close(got[layer], want)
    with pytest.raises(ValueError, match="shorter"):
        unrolled_bound(a, c, [1.0])


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 20), st.floats(0, 1), seeds)
def test_cosine_and_coef_follow_from_the_relative_error(d: int, e: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(d, generator=g, dtype=torch.float64)
    step = torch.randn(d, generator=g, dtype=torch.float64)
    f = z + e * z.norm() * step / step.norm()
    gap = 1 - float(f @ z / (f.norm() * z.norm()))
    assert gap <= float(cosine_gap_bound(torch.tensor(e, dtype=torch.float64))) + 1e-7
    assert abs(float(f @ z / (z @ z)) - 1) <= e + 1e-12


@pytest.mark.parametrize("e", [1e-9, 1e-3, 0.5, 0.999])
def test_cosine_bound_is_attained(e: float) -> None:
    """f = z (1 - e^2) + e sqrt(1 - e^2) z_perp touches the ball: its angle to z is arcsin e."""
    f = torch.tensor([1 - e**2, e * (1 - e**2) ** 0.5], dtype=torch.float64)
    assert float((f - torch.tensor([1.0, 0.0])).norm()) == pytest.approx(e)
    gap = float(1 - f[0] / f.norm())
    bound = float(cosine_gap_bound(torch.tensor(e, dtype=torch.float64)))
    assert gap == pytest.approx(bound, abs=1e-15)
    assert e**2 / 2 <= bound <= e**2


def test_no_direction_is_excluded_past_a_relative_error_of_one() -> None:
    got = cosine_gap_bound(torch.tensor([0.0, 1.0, 1.5]))
    assert got.tolist() == [0, 1, 2]


def test_tightness_on_random_pairs() -> None:
    """How far above the error the bounds are: a regression guard for docs/approximate-theorem1.md.

    Median over 40 Gaussian pairs of depth 4 at a small distance; the bounds are not vacuous there.
    """
    ratios = []
    for seed in range(40):
        a, b, x = random_pair(seed, [16, 32, 32, 32, 8], 64, 0.1, relu_last=False)
        got = llfc_bound(a, b, x, 0.5)
        ratios.append(torch.stack([got.one_step / got.error, got.unrolled / got.error]))
    one_step, unrolled = torch.stack(ratios).median(0).values
    print("one step / error:", one_step.tolist(), " unrolled / error:", unrolled.tolist())
    assert one_step[0] == pytest.approx(1)
    assert (one_step < 3).all()
    assert (unrolled < torch.tensor([1.01, 4, 8, 18], dtype=torch.float64)).all()
