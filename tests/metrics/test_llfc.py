"""cosine_α and coef_α against features kept whole in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from llfc_core import kernels
from llfc_core.metrics.llfc import Dots, coef, one_minus_cos

seeds = st.integers(0, 2**32 - 1)
# Below, α² leaves float64: next to 0 there is nothing that a grid of α could mean.
alphas = st.just(0.0) | st.floats(1e-100, 1)
# A float32 product is off by 2^-24 of itself at most, so a sum of products by that share of the
# sum of their moduli; 1 − cos takes three such sums, and the square root halves two of them.
PRODUCT = 2.0**-24


def ends(a: Tensor, b: Tensor) -> Dots:
    return Dots.of(a, b)


def measured(f: Tensor, a: Tensor, b: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """1 − cos_α and coef_α ``(n,)`` by the kernel."""
    e, (fa, fb, ff) = ends(a, b), kernels.dots([f], a, b)[0].unbind(1)
    return one_minus_cos(e, fa, fb, ff, alpha), coef(e, fa, fb, alpha)


def oracle(f: Tensor, a: Tensor, b: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The same by Definition, z and all, in float64.

    1 − cos as ‖f/‖f‖ − z/‖z‖‖² / 2, which loses no digits however small it is.
    """
    f, z = f.double(), alpha * a.double() + (1 - alpha) * b.double()
    difference = f / f.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)
    cosine = (f * z).sum(1) / (f.norm(dim=1) * z.norm(dim=1))
    return difference.square().sum(1) / 2, f.norm(dim=1) * cosine / z.norm(dim=1)


def features(seed: int, n: int, d: int, like: str) -> tuple[Tensor, Tensor, Tensor]:
    """f, a, b ``(n, d)`` float32: unrelated, close to each other, or rectified."""
    g = torch.Generator().manual_seed(seed)
    a, b, f = torch.randn(3, n, d, generator=g)
    if like == "close":
        b, f = a + 0.1 * b, a + 0.05 * f
    return (f.relu(), a.relu(), b.relu()) if like == "rectified" else (f, a, b)


@settings(deadline=None, max_examples=150)
@given(
    seeds,
    st.integers(1, 7),
    st.integers(1, 300),
    alphas,
    st.sampled_from(["unrelated", "close", "rectified"]),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)
def test_llfc_oracle(
    seed: int,
    n: int,
    d: int,
    alpha: float,
    like: str,
    exponents: tuple[float, float, float],
    signs: tuple[int, int, int],
) -> None:
    f, a, b = (
        s * 10**e * x for s, e, x in zip(signs, exponents, features(seed, n, d, like), strict=True)
    )
    defect, slope = measured(f, a, b, alpha)
    # Whatever nearly cancels in z has lost its digits in any arithmetic that does not keep z.
    z = alpha * a.double() + (1 - alpha) * b.double()
    parts = alpha * a.double().norm(dim=1) + (1 - alpha) * b.double().norm(dim=1)
    sound = (z.norm(dim=1) > 0.05 * parts) & (f.norm(dim=1) > 0)
    assume(bool(sound.any()))
    want_defect, want_slope = oracle(f, a, b, alpha)
    torch.testing.assert_close(
        defect[sound], want_defect[sound], rtol=0, atol=2 * PRODUCT / 0.05**2
    )
    size = (f.double().norm(dim=1) / z.norm(dim=1))[sound]
    error = (slope - want_slope)[sound].abs() / size
    assert float(error.max()) <= 2 * PRODUCT / 0.05**2
    assert defect.dtype == slope.dtype == torch.float64


@pytest.mark.parametrize("d", [512, 4096, 65_536])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_llfc_small_defects_keep_their_digits(d: int, size: float) -> None:
    """Where cosines in float32 are noise: at d = 65,536 their error is some 1e-6.

    Errors of d products are independent, so their sum is off by PRODUCT / √d, not by PRODUCT.
    """
    g = torch.Generator().manual_seed(d)
    a, b, noise = torch.randn(3, 4, d, generator=g).relu()
    a = a + 0.1
    b = a + 0.3 * b
    for alpha in (0.0, 0.25, 0.5, 1.0):
        f = alpha * a + (1 - alpha) * b + (2 * size) ** 0.5 * noise
        f = 0.7 * f  # coef far from 1
        defect, slope = measured(f, a, b, alpha)
        want_defect, want_slope = oracle(f, a, b, alpha)
        assert size / 10 < float(want_defect.mean()) < size * 10  # the test is about that size
        error = float((defect - want_defect).abs().max())
        assert error <= 8 * PRODUCT / d**0.5, f"off by {error:.1e} at α = {alpha}"
        torch.testing.assert_close(slope, want_slope, rtol=8 * PRODUCT / d**0.5, atol=0)


def test_llfc_cosine_is_signed() -> None:
    _, a, b = features(0, 5, 40, "unrelated")
    for alpha in (0.0, 0.3, 1.0):
        z = alpha * a + (1 - alpha) * b
        defect, slope = measured(-z, a, b, alpha)
        torch.testing.assert_close(defect, torch.full((5,), 2.0).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(slope, torch.full((5,), -1.0).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        ends(a, -a).one_minus_cos_ab(), torch.full((5,), 2.0).double(), rtol=0, atol=1e-9
    )
    # Neither squared (which would hide the sign of a vector at right angles to nothing) …
    half = ends(a, a.roll(1, dims=1)).one_minus_cos_ab()
    want = oracle(a, a.roll(1, dims=1), a, 1.0)[0]
    torch.testing.assert_close(half, want, rtol=0, atol=1e-6)


def test_llfc_one_minus_cos_ab_is_that_of_a_and_b() -> None:
    _, a, b = features(1, 6, 50, "close")
    want = oracle(a, b, b, 0.0)[0]
    torch.testing.assert_close(ends(a, b).one_minus_cos_ab(), want, rtol=0, atol=1e-7)
    assert float(want.min()) > 1e-3


@pytest.mark.parametrize(("alpha", "end"), [(1.0, "a"), (0.0, "b")])
def test_llfc_alpha_1_is_a(alpha: float, end: str) -> None:
    """Equation z = αa + (1−α)b: swapping α for 1 − α is seen at either end."""
    _, a, b = features(2, 5, 30, "unrelated")
    f = {"a": 3 * a, "b": 3 * b}[end]
    defect, slope = measured(f, a, b, alpha)
    torch.testing.assert_close(defect, torch.zeros(5).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(slope, torch.full((5,), 3.0).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("c", [0.25, 0.5, 2.0, 4.0])
def test_llfc_coef_is_the_factor_of_z(c: float) -> None:
    """coef = 1/c for the c of Definition 2, c·f = z; taken upside down it would be c."""
    _, a, b = features(3, 5, 30, "rectified")
    a, b = a + 0.01, b + 0.01
    z = 0.25 * a + 0.75 * b
    defect, slope = measured(z / c, a, b, 0.25)
    torch.testing.assert_close(slope, torch.full((5,), 1 / c).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(defect, torch.zeros(5).double(), rtol=0, atol=1e-6)


def test_llfc_zero_features_are_undefined_not_zero() -> None:
    """Row 0: all alive. 1: f dead. 2: a dead. 3: b dead. 4: a = −b, dead at ½ only. 5: all."""
    f, a, b = (x + 0.1 for x in features(4, 6, 20, "rectified"))
    f[1] = a[2] = b[3] = f[5] = a[5] = b[5] = 0
    b[4] = -a[4]

    def undefined(values: Tensor) -> list[int]:
        return values.isnan().nonzero().flatten().tolist()

    assert undefined(ends(a, b).one_minus_cos_ab()) == [2, 3, 5]
    for alpha, dead in {0.0: [3, 5], 0.25: [5], 0.5: [4, 5], 1.0: [2, 5]}.items():
        defect, slope = measured(f, a, b, alpha)
        assert undefined(defect) == sorted({1, *dead})
        assert undefined(slope) == dead  # f = 0 against a living z is a coefficient: 0
    assert float(measured(f, a, b, 0.25)[1][1]) == 0


@pytest.mark.parametrize("left", [0.0, 1e-8, 1e-7, 1e-5, 1e-2])
def test_llfc_what_cancels_in_z_is_undefined(left: float) -> None:
    """b = −a but for a share of ``left``: z is rounding below 1e-6 of its parts, and then has no
    direction; above, its cosine is right to what the rounding of float32 leaves."""
    _, a, other = features(5, 6, 500, "unrelated")
    b = left * other - a
    f = a + other
    defect, slope = measured(f, a, b, 0.5)
    for values in (defect, slope):
        assert values.isnan().all() if left < 5e-7 else values.isfinite().all()
    if left >= 1e-5:
        want = oracle(f, a, left * other.double() - a.double(), 0.5)[0]
        torch.testing.assert_close(defect, want, rtol=0, atol=1e-6 / left)
    # At every other α it is a number.
    assert measured(f, a, b, 0.25)[0].isfinite().all()
