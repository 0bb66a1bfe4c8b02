"""Dist_σ (§5.1): the exact maximum against the definition, by hand and on drawn pre-activations."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llfc_core.metrics import weak_additivity
from llfc_core.metrics.weak_additivity import (
    WeakAdditivity,
    dist_sigma,
    dist_sigma_at,
    dist_sigma_histogram,
)

Pair = tuple[Tensor, Tensor]

KINDS = (
    "dense",
    "near",  # two modes that are almost one
    "opposed",  # most signs disagree, ‖U‖ gets small
    "sparse",  # zeros on either side, or both
    "negative",  # few positive entries: often undefined
    "integers",  # kinks coincide
    "tied",  # kinks at three values of τ only, up to rounding
    "scales",  # entries from 1e-6 to 1e6
)


def draw_pair(kind: str, n: int, d: int, seed: int) -> Pair:
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, d, generator=g, dtype=torch.float64)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n, d), generator=g).double()

    a, b = normal(), normal()
    match kind:
        case "near":
            b = a + 0.03 * b
        case "opposed":
            b = -a * (1 + 0.5 * b.abs()) + 0.1 * normal()
        case "sparse":
            a, b = a * integers(0, 1), b * integers(0, 1)
        case "negative":
            a, b = a - 1.2, b - 1.2
        case "integers":
            a, b = integers(-3, 3), integers(-3, 3)
        case "tied":
            b = -a * torch.tensor([0.3, 1.0, 7.0]).double()[integers(0, 2).long()]
            b = torch.where(normal() > 1, a, b)
        case "scales":
            a, b = a * 10.0 ** integers(-6, 6), b * 10.0 ** integers(-6, 6)
    return a, b


def pairs(max_n: int = 4, max_d: int = 40, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy:
    return st.builds(
        draw_pair,
        st.sampled_from(kinds),
        st.integers(1, max_n),
        st.integers(1, max_d),
        st.integers(0, 2**31),
    )


def vectors(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def slack(result: WeakAdditivity) -> Tensor:
    """What float64 leaves open when the definition is evaluated at `alpha`, relative `(n,)`.

    Its U loses digits as ‖U‖ ≪ ‖V‖ (a large distance), its U − V as U ≈ V (a small one), and α as a
    double is coarse near 1 (and, in 1 − α, near 0).
    """
    d = result.distance
    edge = torch.minimum(result.alpha, 1 - result.alpha).clamp_min(1e-17)
    return 1e-12 + 1e-14 * (d + d.clamp_min(1e-30).rsqrt()) + 1e-15 * (1 + d) / edge


def assert_same(left: WeakAdditivity, right: WeakAdditivity, rtol: float = 1e-12) -> None:
    assert torch.equal(left.undefined, right.undefined)
    known = ~left.undefined
    assert left.distance[~known].isinf().all()
    assert right.distance[~known].isinf().all()
    # Rounding of the inputs' own ratios is magnified where ‖U‖ ≪ ‖V‖.
    close = (left.distance - right.distance).abs() <= rtol * right.distance * (1 + right.distance)
    assert close[known].all(), (left.distance, right.distance)


# --------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("a", "b", "distance", "alpha"),
    [
        # One disagreement (τ = ½) beside U_2 = V_2 = 1: N = min(α, 1−α)², U = (σ(2α−1), 1),
        # V = (α, 1). On the left of ½ α²/√(1+α²) grows, on the right N falls and U, V grow.
        ((1, 1), (-1, 1), 0.25 / math.sqrt(1.25), 1 / 2),
        # τ = ⅓ (rising) and ⅔ (falling). In between, with s = 2α − 1: N = (1+s²)/2, V² = 2(1+s²),
        # U² = (1+9s²)/2, so dist = ½√((1+s²)/(1+9s²)): the maximum is inside the segment.
        ((2, -1), (-1, 2), 1 / 2, 1 / 2),
        # The same, a thrice as long: only α moves, to (½/3) / (½/3 + ½).
        ((6, -3), (-1, 2), 1 / 2, 1 / 4),
        # General x > y in place of 2, 1: y² / (x(x−y)).
        ((5, -3), (-3, 5), 9 / 10, 1 / 2),
        # b = 0 where a > 0 keeps U alive: up to τ = ½, U = (0, α), V = (α, α), N = α²: 1/√2.
        ((1, 1), (-1, 0), 1 / math.sqrt(2), 1 / 2),
        # Kinks away from ½ only: at τ = ¾, U = (0, 1), V = (¾, 1), N = 9/16 → (9/16)/(5/4).
        ((1, 1), (-3, 1), 9 / 20, 3 / 4),
    ],
)
def test_planted(a: tuple, b: tuple, distance: float, alpha: float) -> None:
    result = dist_sigma(vectors(a), vectors(b))
    assert not result.undefined.item()
    assert result.distance.item() == pytest.approx(distance, rel=1e-13)
    assert result.alpha.item() == pytest.approx(alpha, abs=1e-6)
    at = dist_sigma_at(vectors(a), vectors(b), alpha)
    assert at.item() == pytest.approx(distance, rel=1e-13)


def test_maximum_is_not_the_midpoint() -> None:
    """What the paper's code reports (α = ½) is not what the paper defines."""
    a, b = vectors([1, 1]), vectors([-3, 1])
    # At ½: U = (0, 1), V = (½, 1), N = ¼.
    assert dist_sigma_at(a, b, 0.5).item() == pytest.approx(0.25 / math.sqrt(1.25))
    assert dist_sigma(a, b).distance.item() > 2 * dist_sigma_at(a, b, 0.5).item()


# ------------------------------------------------------------------------------- zero-norm policy


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((1, -1), (-1, 1), 1 / 2, 1 / 2),  # U vanishes at one α alone
        ((0.1, -0.3), (-0.7, 2.1), 7 / 8, 7 / 8),  # the same, up to rounding
        ((1, -3), (-3, 1), 1 / 4, 3 / 4),  # on an interval
        ((1, -1), (-2, -3), 0, 2 / 3),  # b ≤ 0: σ(b) = 0
        ((-2, -3), (1, -1), 1 / 3, 1),
        ((1,), (-1,), 0, 1 / 2),  # d = 1: any disagreement
        ((1, 0, 0), (-1, 0, -1), 0, 1 / 2),
    ],
)
def test_unbounded_is_flagged(a: tuple, b: tuple, low: float, high: float) -> None:
    for kernel in (dist_sigma, dist_sigma_histogram):
        result = kernel(vectors(a), vectors(b))
        assert result.undefined.tolist() == [True]
        assert result.distance.tolist() == [math.inf]
        assert result.upper.tolist() == [math.inf]
        assert low - 1e-15 <= result.alpha.item() <= high + 1e-15
        assert dist_sigma_at(vectors(a), vectors(b), result.alpha).item() > 1e14


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0, 0), (0, 0)),
        ((-1, -2), (-3, 0)),  # U = V = 0 all along
        ((0, 0), (1, -1)),
        ((1, 2), (3, 0)),  # no sign disagrees
        ((1, -2), (3, -1)),
    ],
)
def test_agreement_is_zero_even_at_zero_norm(a: tuple, b: tuple) -> None:
    for kernel in (dist_sigma, dist_sigma_histogram):
        result = kernel(vectors(a), vectors(b))
        assert (result.distance.item(), result.alpha.item(), result.upper.item()) == (0, 0, 0)
        assert not result.undefined.item()
    for alpha in (0.0, 0.25, 0.5, 1.0):
        assert dist_sigma_at(vectors(a), vectors(b), alpha).item() == 0


def test_ends_are_zero_by_definition() -> None:
    """Also where one side's norm vanishes there: σ(b) = 0 at α = 0."""
    a, b = vectors([1, 2], [1, -1]), vectors([-1, -1], [-1, 1])
    for alpha in (0.0, 1.0):
        assert dist_sigma_at(a, b, alpha).tolist() == [0, 0]
    assert dist_sigma_at(a, b, 0.5).tolist() == [
        pytest.approx(0.5**2 * 2 / (0.5 * math.sqrt(1.25))),
        math.inf,
    ]


@settings(deadline=None, max_examples=100)
@given(pairs(max_d=6, kinds=("dense", "sparse", "negative", "integers")))
def test_undefined_iff_interpolation_is_nowhere_positive(pair: Pair) -> None:
    """In rationals: some α ∈ (0, 1) with αa + (1−α)b ≤ 0 throughout, and some sign disagrees."""
    undefined = dist_sigma(*pair).undefined
    for a, b, flag in zip(*(x.tolist() for x in pair), undefined.tolist(), strict=True):
        low, high, alive, disagree = Fraction(0), Fraction(1), False, False
        for s, t in zip(map(Fraction, a), map(Fraction, b), strict=True):
            if s * t < 0:
                disagree = True
                τ = abs(t) / (abs(s) + abs(t))
                low, high = (low, min(high, τ)) if s > 0 else (max(low, τ), high)
            elif max(s, t) > 0:
                alive = True
        assert flag == (disagree and not alive and low <= high)


# ------------------------------------------------------------------------- it is the exact maximum


@settings(deadline=None, max_examples=100)
@given(pairs())
def test_attained_and_never_exceeded(pair: Pair) -> None:
    a, b = pair
    result = dist_sigma(a, b)
    assert result.distance.dtype == result.alpha.dtype == torch.float64
    assert not result.distance.isnan().any()
    assert ((result.alpha >= 0) & (result.alpha <= 1)).all()
    assert torch.equal(result.undefined, result.distance.isinf())
    assert torch.equal(result.distance, result.upper)

    tolerance = slack(result)
    at = dist_sigma_at(a, b, result.alpha)
    known = ~result.undefined
    off = (at - result.distance).abs() <= tolerance * result.distance
    assert off[known].all(), (at, result.distance)
    assert (at[~known] > 100).all()

    near = torch.linspace(-1, 1, 33, dtype=torch.float64).unsqueeze(1)
    grid = torch.linspace(0, 1, 129, dtype=torch.float64).unsqueeze(1).expand(-1, len(a))
    zoom = [(result.alpha + width * near).clamp(0, 1) for width in (1e-2, 1e-4, 1e-6)]
    alpha = torch.cat((grid, *zoom))
    k = len(alpha)
    values = dist_sigma_at(a.repeat(k, 1), b.repeat(k, 1), alpha.view(-1)).view(k, -1)
    over = values.amax(0) > result.distance * (1 + tolerance) + 1e-28
    assert not over[known].any(), (values.amax(0), result.distance)


def quartic_maximum(a: np.ndarray, b: np.ndarray) -> float:
    """Every stationary point, by the roots of 2N′QP − N(QP)′ between kinks, and every kink."""
    τ = np.unique([abs(t) / (abs(s) + abs(t)) for s, t in zip(a, b) if s * t < 0])
    candidates = list(τ)
    line = [np.poly1d([s - t, t]) for s, t in zip(a, b)]  # αs + (1−α)t
    v = [np.poly1d([max(s, 0) - max(t, 0), max(t, 0)]) for s, t in zip(a, b)]
    zero = np.poly1d([0.0])
    for low, high in pairwise(τ):
        u = [f if f((low + high) / 2) > 0 else zero for f in line]
        N = sum(((f - g) ** 2 for f, g in zip(u, v)), zero)
        QP = sum((f**2 for f in u), zero) * sum((g**2 for g in v), zero)
        roots = (2 * N.deriv() * QP - N * QP.deriv()).roots
        real = roots[abs(roots.imag) < 1e-6].real
        candidates += [x for x in real if low < x < high]
    ab = torch.tensor(np.stack([a, b]))
    alpha = torch.tensor(candidates, dtype=torch.float64)
    stack = len(candidates), len(a)
    return dist_sigma_at(ab[0].expand(stack), ab[1].expand(stack), alpha).max().item()


@settings(deadline=None, max_examples=60)
@given(pairs(max_n=1, max_d=12, kinds=("dense", "opposed", "sparse", "integers", "near")))
def test_agrees_with_roots_of_the_quartic(pair: Pair) -> None:
    result = dist_sigma(*pair)
    if result.undefined or result.distance == 0:
        return
    expected = quartic_maximum(*(x[0].numpy() for x in pair))
    assert result.distance.item() == pytest.approx(expected, rel=1e-10)


def test_maximum_inside_a_segment_is_found() -> None:
    """Where the kinks alone undershoot visibly: in d = 3 that is every eighth point or so."""
    a, b = draw_pair("dense", 2000, 3, seed=0)
    result = dist_sigma(a, b)
    τ = b.abs() / (a.abs() + b.abs())
    at_kinks = torch.stack([dist_sigma_at(a, b, τ[:, j]) for j in range(3)])
    at_kinks = at_kinks.masked_fill((a * b >= 0).T, 0.0).amax(0)
    inside = ~result.undefined & (result.distance > at_kinks * (1 + 1e-6))
    assert inside.sum() > 50
    off = dist_sigma_at(a, b, result.alpha)[inside] / result.distance[inside] - 1
    assert off.abs().max() < 1e-11


def test_bound_of_a_segment_is_one() -> None:
    """N²/(QP) ≤ max(ends, inner bound), for quadratics with coefficients ≥ 0, some of them 0."""
    g = torch.Generator().manual_seed(0)
    forms = torch.rand(3, 3, 5000, generator=g, dtype=torch.float64) ** 4
    forms[0] *= torch.rand(3, 5000, generator=g) < 0.6
    n, q, p = (tuple(f) for f in forms)
    t = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    N, Q, P = (f[0] * (1 - t) ** 2 + 2 * f[1] * t * (1 - t) + f[2] * t**2 for f in forms)
    values = N.square() / (Q * P)
    bound = weak_additivity._inner_bound(n, q, p).maximum(values[0]).maximum(values[-1])
    assert (values.amax(0) <= bound * (1 + 1e-14)).all()


def test_wide_layer() -> None:
    a, b = draw_pair("dense", 3, 20_000, seed=1)
    result = dist_sigma(a, b)
    assert torch.allclose(dist_sigma_at(a, b, result.alpha), result.distance, rtol=1e-12, atol=0)
    fine = dist_sigma_histogram(a, b, bins=4096, rtol=math.inf)
    assert (fine.distance <= result.distance * (1 + 1e-12)).all()
    assert torch.allclose(fine.distance, result.distance, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------- invariances


@settings(deadline=None, max_examples=60)
@given(pairs(), st.integers(0, 2**31), st.integers(-40, 40), st.integers(-40, 40))
def test_invariances(pair: Pair, seed: int, i: int, j: int) -> None:
    a, b = pair
    g = torch.Generator().manual_seed(seed)
    result = dist_sigma(a, b)

    swapped = dist_sigma(b, a)
    assert_same(swapped, result)

    order = torch.randperm(a.shape[1], generator=g)
    assert_same(dist_sigma(a[:, order], b[:, order]), result)

    padded = (torch.cat((x, torch.zeros_like(x)), dim=1) for x in (a, b))
    assert_same(dist_sigma(*padded), result)

    assert_same(dist_sigma(a * 2.0**i, b * 2.0**j), result)  # α moves, the maximum does not
    assert_same(dist_sigma(a * 3.7, b * 3.7), result, rtol=1e-11)

    agree = (a * b >= 0).all(1)
    assert torch.equal(result.distance == 0, agree)


@pytest.mark.parametrize(("s", "t"), [(1e200, 1e200), (1e-200, 1e-200), (1e200, 1e-100), (1, 1e9)])
def test_range_of_float64(s: float, t: float) -> None:
    a, b = draw_pair("dense", 20, 30, seed=2)
    assert_same(dist_sigma(s * a, t * b), dist_sigma(a, b))
    scaled = dist_sigma_histogram(s * a, t * b, rtol=math.inf).distance
    assert torch.allclose(scaled, dist_sigma_histogram(a, b, rtol=math.inf).distance, rtol=1e-12)
    assert torch.allclose(dist_sigma_at(s * a, s * b, 0.4), dist_sigma_at(a, b, 0.4), rtol=1e-13)


# --------------------------------------------------------------------------------------- histogram


@settings(deadline=None, max_examples=60)
@given(pairs(max_d=80), st.sampled_from([2, 7, 64, 128]))
def test_histogram_brackets_the_maximum(pair: Pair, bins: int) -> None:
    exact = dist_sigma(*pair).distance
    loosely = dist_sigma_histogram(*pair, bins=bins, rtol=math.inf)
    tightly = dist_sigma_histogram(*pair, bins=bins)
    rounding = 1e-12 * (1 + exact.clamp_max(1e9))
    for result in (loosely, tightly):
        assert not result.distance.isnan().any()
        assert (result.distance <= exact * (1 + rounding)).all()
        assert (result.upper * (1 + rounding) >= exact).all()
    assert torch.equal(tightly.undefined, exact.isinf())
    known = ~tightly.undefined
    assert (tightly.upper <= 1.005 * tightly.distance * (1 + 1e-15))[known].all()
    assert (tightly.distance >= exact * (1 - 5e-3))[known].all()


@pytest.mark.parametrize("bins", [2, 13, 128])
def test_histogram_is_exact_on_its_grid(bins: int) -> None:
    a, b = draw_pair("dense", 30, 50, seed=3)
    b = 5 * b
    result = dist_sigma_histogram(a, b, bins, rtol=math.inf)
    β = torch.linspace(0, 1, bins + 1, dtype=torch.float64).unsqueeze(1)
    x, y = β * b.norm(dim=1), (1 - β) * a.norm(dim=1)
    values = torch.stack([dist_sigma_at(a, b, alpha) for alpha in x / (x + y)])
    assert torch.allclose(result.distance, values.amax(0), rtol=1e-12, atol=0)
    assert torch.allclose(dist_sigma_at(a, b, result.alpha), result.distance, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["dense", "near"])
def test_histogram_of_wide_layers_needs_no_second_look(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = draw_pair(kind, 10, 16_384, seed=4)
    exact = dist_sigma(a, b).distance

    def fail(*_: object) -> None:
        raise AssertionError("a point was handed to the exact kernel")

    monkeypatch.setattr(weak_additivity, "_exact", fail)
    result = dist_sigma_histogram(a, b)
    assert (result.distance <= exact).all()
    assert (exact <= result.upper).all()
    assert (result.distance / exact).min() > 1 - 2e-3


# ------------------------------------------------------------------------------ inputs and memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_upcast(dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in draw_pair("near", 20, 100, seed=5))
    for kernel in (dist_sigma, dist_sigma_histogram):
        low, high = kernel(a, b), kernel(a.double(), b.double())
        assert low.distance.dtype == torch.float64
        assert torch.equal(low.distance, high.distance)
        assert torch.equal(low.alpha, high.alpha)
    assert torch.equal(dist_sigma_at(a, b, 0.3), dist_sigma_at(a.double(), b.double(), 0.3))


def test_float32_features_lose_only_their_own_rounding() -> None:
    a, b = draw_pair("dense", 50, 200, seed=6)
    exact = dist_sigma(a, b).distance
    assert torch.allclose(dist_sigma(a.float(), b.float()).distance, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", [dist_sigma, dist_sigma_histogram])
def test_chunks_change_nothing(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (torch.cat([draw_pair(kind, 9, 23, seed=7)[side] for kind in KINDS]) for side in (0, 1))
    whole = kernel(a, b)
    sizes = []
    exact = weak_additivity._exact

    def spy(a: Tensor, b: Tensor) -> WeakAdditivity:
        sizes.append(len(a))
        return exact(a, b)

    monkeypatch.setattr(weak_additivity, "_exact", spy)
    monkeypatch.setenv("LLFC_KERNELS", "eager")  # compiled, points come one by one anyway
    for chunk in (1, 100, 2500):
        monkeypatch.setattr(weak_additivity, "_CHUNK", chunk)
        sizes.clear()
        parts = kernel(a, b)
        assert max(sizes) == {1: 1, 100: 4, 2500: max(sizes)}[chunk]
        assert_same(parts, whole, rtol=1e-14)
        assert torch.allclose(parts.alpha, whole.alpha, rtol=1e-12)


def test_each_point_alone() -> None:
    """Points do not see their neighbours, however many kinks those have."""
    a, b = (torch.cat([draw_pair(k, 3, 17, seed=8)[side] for k in KINDS]) for side in (0, 1))
    whole = dist_sigma(a, b)
    for i in range(len(a)):
        alone = dist_sigma(a[i : i + 1], b[i : i + 1])
        assert alone.distance.item() == pytest.approx(whole.distance[i].item(), rel=1e-13)


@pytest.mark.parametrize("kernel", [dist_sigma, dist_sigma_histogram])
def test_layout_and_autograd(kernel) -> None:
    a, b = draw_pair("dense", 6, 10, seed=9)
    before = a.clone(), b.clone()
    expected = kernel(a, b)
    strided = kernel(a.T.contiguous().T, torch.stack((b, b), dim=2)[:, :, 0])
    tracked = kernel(a.clone().requires_grad_(), b.clone().requires_grad_())
    expanded = kernel(a[:1].expand(4, 10), b[:1].expand(4, 10))
    assert_same(strided, expected)
    assert_same(tracked, expected)
    assert not tracked.distance.requires_grad
    assert torch.allclose(expanded.distance, expected.distance[0], rtol=1e-13)
    assert torch.equal(a, before[0])  # inputs are left as they were
    assert torch.equal(b, before[1])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_compare(shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    for kernel in (dist_sigma, dist_sigma_histogram):
        result = kernel(x, x)
        for field in (result.distance, result.alpha, result.upper):
            assert torch.equal(field, torch.zeros(shape[0], dtype=torch.float64))
        assert result.undefined.shape == shape[:1]
        assert not result.undefined.any()
    assert torch.equal(dist_sigma_at(x, x, 0.5), torch.zeros(shape[0], dtype=torch.float64))


def at_half(a: Tensor, b: Tensor) -> Tensor:
    return dist_sigma_at(a, b, 0.5)


@pytest.mark.parametrize("kernel", [dist_sigma, dist_sigma_histogram, at_half])
def test_errors(kernel) -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        kernel(x, torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        kernel(x[0], x[0])
    for bad in (math.inf, -math.inf, math.nan):
        y = x.clone()
        y[2, 1] = bad
        with pytest.raises(ValueError, match="finite"):
            kernel(x, y)
        with pytest.raises(ValueError, match="finite"):
            kernel(y, x)
    with pytest.raises(TypeError, match="int64"):
        kernel(x, torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="device"):
        kernel(x, torch.ones(3, 4, device="meta"))


def test_errors_of_arguments() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match="bins"):
        dist_sigma_histogram(x, x, bins=1)
    for rtol in (-1e-3, math.nan):
        with pytest.raises(ValueError, match="rtol"):
            dist_sigma_histogram(x, x, rtol=rtol)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="0, 1"):
            dist_sigma_at(x, x, alpha)
    with pytest.raises(ValueError, match="one per point"):
        dist_sigma_at(x, x, torch.zeros(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    a, b = (torch.cat([draw_pair(k, 200, 60, seed=10)[side] for k in KINDS]) for side in (0, 1))
    for kernel in (dist_sigma, dist_sigma_histogram):
        there = kernel(a.cuda(), b.cuda())
        assert there.distance.is_cuda
        here = WeakAdditivity(*(x.cpu() for x in weak_additivity._fields(there)))
        assert_same(here, kernel(a, b), rtol=1e-11)
