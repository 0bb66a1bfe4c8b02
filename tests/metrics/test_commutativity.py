"""Dist_com from the factored form, against the four products of Definition 4 written out."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from torch import Tensor, nn

from llfc_core.metrics.commutativity import (
    RHO_SMALL_UNSTRUCTURED,
    RHO_UNRELATED,
    CommutativityAccumulator,
    apply_without_bias,
    distances,
    weight_sums,
)

seeds = st.integers(0, 2**32 - 1)


def dist(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().sum() / (x.norm() * y.norm()))


def unfold(layer: nn.Conv2d, h: Tensor) -> Tensor:
    """(C k k, windows of all images): the matrix H that a convolution's W multiplies."""
    (kh, kw), (dh, dw) = layer.kernel_size, layer.dilation
    if layer.padding == "same":
        extra_h, extra_w = dh * (kh - 1), dw * (kw - 1)
        pads = [extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2]
    elif layer.padding == "valid":
        pads = [0, 0, 0, 0]
    else:
        pads = [layer.padding[1]] * 2 + [layer.padding[0]] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    columns = F.unfold(F.pad(h, pads, mode=mode), (kh, kw), (dh, dw), 0, layer.stride)
    return columns.movedim(0, 1).flatten(1)


def dense(layer: nn.Conv2d, weight: Tensor) -> Tensor:
    """(out, C k k): the convolution's matrix, block-diagonal over its groups."""
    blocks = weight.flatten(1).chunk(layer.groups)
    return torch.block_diag(*blocks)


def oracle(layer: nn.Module, w_a: Tensor, w_b: Tensor, h_a: Tensor, h_b: Tensor) -> list[float]:
    """Dist_com, Dist_W, Dist_H with all four products materialised in float64."""
    w_a, w_b, h_a, h_b = (t.double() for t in (w_a, w_b, h_a, h_b))
    if isinstance(layer, nn.Conv2d):
        matrices = dense(layer, w_a), dense(layer, w_b), unfold(layer, h_a), unfold(layer, h_b)
    else:
        matrices = w_a, w_b, h_a.flatten(0, -2).T, h_b.flatten(0, -2).T
    a, b, x, y = matrices
    return [dist(a @ x + b @ y, a @ y + b @ x), dist(w_a, w_b), dist(h_a, h_b)]


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def check(layer: nn.Module, w: tuple[Tensor, Tensor], h: tuple[Tensor, Tensor], rel: float) -> None:
    accumulator = CommutativityAccumulator(layer, *w)
    accumulator.update(*h)
    got = accumulator.result()
    want = oracle(layer, *w, *h)
    assert [got.dist_com, got.dist_w, got.dist_h] == pytest.approx(want, rel=rel)
    assert got.rho == pytest.approx(4 * want[0] / (want[1] * want[2]), rel=rel)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, int, int]:
    """A convolution with every knob drawn, and an image size it accepts."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    height, width = draw(st.integers(5, 8)), draw(st.integers(5, 8))
    padding: str | tuple[int, int] = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    padding = draw(st.sampled_from([padding, padding, "same", "valid"]))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=(1, 1) if padding == "same" else stride,
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        if padding == "pair"
        else padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    )
    return layer, height, width


@settings(deadline=None, max_examples=80)
@given(convolutions(), st.integers(1, 4), seeds)
def test_convolution_matches_the_four_products(
    drawn: tuple[nn.Conv2d, int, int], n: int, seed: int
) -> None:
    layer, height, width = drawn
    g = torch.Generator().manual_seed(seed)
    w_a, w_b = normal(g, *layer.weight.shape), normal(g, *layer.weight.shape)
    h_a, h_b = (normal(g, n, layer.in_channels, height, width).relu() for _ in range(2))
    a, x = dense(layer, w_a), unfold(layer, h_a)
    # Tiny layers can make one side vanish by chance, where dist is not a number to compare.
    assume(min((a @ x).norm(), h_a.norm(), h_b.norm(), (h_a - h_b).norm()) > 1e-3)
    check(layer, (w_a, w_b), (h_a, h_b), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(convolutions(), seeds)
def test_layer_application_is_torch_s_own(drawn: tuple[nn.Conv2d, int, int], seed: int) -> None:
    layer, height, width = drawn
    layer = layer.double()
    h = normal(torch.Generator().manual_seed(seed), 2, layer.in_channels, height, width)
    with torch.no_grad():
        assert layer.bias is not None
        want = layer(h) - layer.bias[:, None, None]
        torch.testing.assert_close(apply_without_bias(layer, layer.weight, h), want)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    seeds,
)
def test_linear_matches_the_four_products(
    lead: list[int], d_in: int, d_out: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    layer = nn.Linear(d_in, d_out)
    w = normal(g, d_out, d_in), normal(g, d_out, d_in)
    h = normal(g, *lead, d_in), normal(g, *lead, d_in)
    check(layer, w, h, rel=1e-7)


def exact_dist_com(w_a: Tensor, w_b: Tensor, h_a: Tensor, h_b: Tensor) -> float:
    """Dist_com with the four products in rational arithmetic, w (d_out, d_in) and h (n, d_in)."""
    a, b, x, y = ([[Fraction(v) for v in row] for row in t.tolist()] for t in (w_a, w_b, h_a, h_b))
    zero = Fraction(0)

    def dot(u: list[Fraction], v: list[Fraction]) -> Fraction:
        return sum((p * q for p, q in zip(u, v)), zero)

    difference = left = right = zero
    for wa, wb in zip(a, b):
        for ha, hb in zip(x, y):
            lhs, rhs = dot(wa, ha) + dot(wb, hb), dot(wa, hb) + dot(wb, ha)
            difference += (lhs - rhs) ** 2
            left += lhs**2
            right += rhs**2
    return float(difference) / math.sqrt(float(left)) / math.sqrt(float(right))


@settings(deadline=None, max_examples=40)
@given(st.floats(-6, -3), seeds)
def test_small_differences_keep_their_digits_in_float32(log_size: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w_a = normal(g, 6, 12, dtype=torch.float32)
    h_a = normal(g, 5, 12, dtype=torch.float32).relu() + 0.1
    w_b = w_a + 10**log_size * normal(g, 6, 12, dtype=torch.float32)
    h_b = h_a + 10**log_size * normal(g, 5, 12, dtype=torch.float32)
    accumulator = CommutativityAccumulator(nn.Linear(12, 6), w_a, w_b)
    accumulator.update(h_a, h_b)
    want = exact_dist_com(w_a, w_b, h_a, h_b)
    assert want > 0
    assert accumulator.result().dist_com == pytest.approx(want, rel=2e-5)


def test_four_products_in_float32_would_lose_them() -> None:
    g = torch.Generator().manual_seed(0)
    w_a = normal(g, 6, 12, dtype=torch.float32)
    h_a = normal(g, 5, 12, dtype=torch.float32).relu() + 0.1
    w_b = w_a + 1e-4 * normal(g, 6, 12, dtype=torch.float32)
    h_b = h_a + 1e-4 * normal(g, 5, 12, dtype=torch.float32)
    naive = dist(h_a @ w_a.T + h_b @ w_b.T, h_b @ w_a.T + h_a @ w_b.T)
    assert abs(naive / exact_dist_com(w_a, w_b, h_a, h_b) - 1) > 1


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.data(), st.sampled_from([torch.float32, torch.float64]), seeds)
def test_split_into_batches_makes_no_difference(
    n: int, data: st.DataObject, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    w = normal(g, 4, 3, 3, 3, dtype=dtype), normal(g, 4, 3, 3, 3, dtype=dtype)
    h = normal(g, n, 3, 5, 5, dtype=dtype), normal(g, n, 3, 5, 5, dtype=dtype)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1))))
    whole, split = CommutativityAccumulator(layer, *w), CommutativityAccumulator(layer, *w)
    whole.update(*h)
    for start, stop in zip([0, *cuts], [*cuts, n]):
        split.update(h[0][start:stop], h[1][start:stop])
        assert len(split.per_image) == stop  # looking in between must not disturb the sums
    rel = 1e-5 if dtype == torch.float32 else 1e-11
    # <S, D> sums signed terms: its rounding is measured against |S| |D|.
    scale = whole.per_image.abs().amax()
    torch.testing.assert_close(split.per_image, whole.per_image, rtol=rel, atol=rel * float(scale))
    assert split.result().n == n
    assert split.result().dist_com == pytest.approx(whole.result().dist_com, rel=rel)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), seeds)
def test_weights_count_images(n: int, seed: int) -> None:
    """The bootstrap's reweighting of per-image sums is the measurement of the resampled data."""
    g = torch.Generator().manual_seed(seed)
    w = normal(g, 4, 5), normal(g, 4, 5)
    h = normal(g, n, 5), normal(g, n, 5)
    layer = nn.Linear(5, 4)
    whole = CommutativityAccumulator(layer, *w)
    whole.update(*h)
    drawn = torch.randint(n, (3, n), generator=g)
    counts = torch.stack([torch.bincount(row, minlength=n) for row in drawn])
    many = distances(counts.double() @ whole.per_image, whole.weight_sums)
    for row, count, dist_com, rho in zip(drawn, counts, many.dist_com, many.rho):
        resampled = CommutativityAccumulator(layer, *w)
        resampled.update(h[0][row], h[1][row])
        want = resampled.result()
        assert whole.result(count).dist_com == pytest.approx(want.dist_com, rel=1e-9)
        assert float(dist_com) == pytest.approx(want.dist_com, rel=1e-9)
        assert float(rho) == pytest.approx(want.rho, rel=1e-9)
    assert many.dist_w.shape == many.dist_com.shape == (3,)


def test_bias_cancels() -> None:
    g = torch.Generator().manual_seed(1)
    w = normal(g, 4, 5), normal(g, 4, 5)
    h = normal(g, 7, 5), normal(g, 7, 5)
    b_a, b_b = normal(g, 4), normal(g, 4)
    lhs = F.linear(h[0], w[0], b_a) + F.linear(h[1], w[1], b_b)
    rhs = F.linear(h[1], w[0], b_a) + F.linear(h[0], w[1], b_b)
    accumulator = CommutativityAccumulator(nn.Linear(5, 4), *w)
    accumulator.update(*h)
    assert accumulator.result().sums[0] == pytest.approx(float((lhs - rhs).square().sum()))


def test_equal_modes_are_at_distance_zero() -> None:
    g = torch.Generator().manual_seed(2)
    w, w_other = normal(g, 4, 5), normal(g, 4, 5)
    h, h_other = normal(g, 7, 5), normal(g, 7, 5)
    for (w_b, h_b), zeros in {
        (w, h): (True, True),
        (w, h_other): (True, False),
        (w_other, h): (False, True),
    }.items():
        accumulator = CommutativityAccumulator(nn.Linear(5, 4), w, w_b)
        accumulator.update(h, h_b)
        got = accumulator.result()
        assert got.dist_com == 0
        assert (got.dist_w == 0, got.dist_h == 0) == zeros
        assert math.isnan(got.rho)


@pytest.mark.parametrize(
    ("sums", "weights", "want"),
    [
        # Everything zero: both sides agree.
        ([0, 0, 0, 0, 0, 0], [0, 0, 0], (0, 0, 0)),
        # H_A = 0: Dist_H infinite.
        ([1, 0, 4, 1, 0, 1], [1, 1, 1], (0.8, 1, math.inf)),
        # S = D: RHS vanishes, LHS does not.
        ([4, 4, 4, 1, 1, 1], [1, 1, 1], (math.inf, 1, 1)),
        # W_B = 0.
        ([1, 0, 4, 1, 1, 1], [2, 2, 0], (0.8, math.inf, 1)),
    ],
)
def test_zero_norms(sums: list[float], weights: list[float], want: tuple[float, ...]) -> None:
    got = distances(torch.tensor(sums).double(), torch.tensor(weights).double())
    assert tuple(map(float, got[:3])) == pytest.approx(want)
    undefined = any(not math.isfinite(d) or d == 0 for d in want[1:])
    assert math.isnan(got.rho) == undefined


def test_nan_is_not_hidden() -> None:
    h = torch.full((2, 3), torch.nan)
    accumulator = CommutativityAccumulator(nn.Linear(3, 2), torch.ones(2, 3), torch.zeros(2, 3))
    accumulator.update(h, torch.ones(2, 3))
    assert math.isnan(accumulator.result().dist_com)
    assert math.isnan(accumulator.result().dist_h)


def test_null_values_of_unrelated_modes() -> None:
    """Independent Gaussian weights and ReLU features: Dist_W 2, Dist_H 2 - 2/pi, rho 2."""
    g = torch.Generator().manual_seed(3)
    got = []
    for _ in range(3):
        accumulator = CommutativityAccumulator(
            nn.Linear(300, 300), normal(g, 300, 300), normal(g, 300, 300)
        )
        accumulator.update(normal(g, 500, 300).relu(), normal(g, 500, 300).relu())
        result = accumulator.result()
        got.append([result.dist_w, result.dist_h, result.dist_com, result.rho])
    dist_w, dist_h, dist_com, rho = torch.tensor(got).mean(0).tolist()
    assert dist_w == pytest.approx(2, abs=0.02)
    assert dist_h == pytest.approx(2 - 2 / math.pi, abs=0.02)
    assert dist_com == pytest.approx(2 - 2 / math.pi, abs=0.05)
    assert rho == pytest.approx(RHO_UNRELATED, abs=0.08)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1e-1])
def test_null_value_of_small_unstructured_differences(size: float) -> None:
    g = torch.Generator().manual_seed(4)
    w, h = normal(g, 300, 300), normal(g, 500, 300).relu()
    accumulator = CommutativityAccumulator(nn.Linear(300, 300), w, w + size * normal(g, 300, 300))
    accumulator.update(h, h + size * normal(g, 500, 300))
    assert accumulator.result().rho == pytest.approx(RHO_SMALL_UNSTRUCTURED, abs=0.05)


def test_half_precision_and_autocast_do_not_reach_the_products() -> None:
    g = torch.Generator().manual_seed(5)
    w = normal(g, 8, 16, dtype=torch.float32), normal(g, 8, 16, dtype=torch.float32)
    h = normal(g, 9, 16, dtype=torch.float32), normal(g, 9, 16, dtype=torch.float32)
    layer = nn.Linear(16, 8)
    plain, cast = CommutativityAccumulator(layer, *w), CommutativityAccumulator(layer, *w)
    plain.update(*h)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(*h)
    assert torch.equal(plain.per_image, cast.per_image)
    half = CommutativityAccumulator(layer, w[0].bfloat16(), w[1].bfloat16())
    half.update(h[0].bfloat16(), h[1].bfloat16())
    want = oracle(layer, *(t.bfloat16() for t in (*w, *h)))
    assert half.result().dist_com == pytest.approx(want[0], rel=1e-5)


def test_sums_are_float64_and_carry_no_graph() -> None:
    layer = nn.Linear(3, 2)
    accumulator = CommutativityAccumulator(layer, layer.weight, layer.weight + 1)
    accumulator.update(torch.ones(4, 3, requires_grad=True), torch.zeros(4, 3))
    assert accumulator.per_image.dtype == torch.float64
    assert accumulator.per_image.shape == (4, 6)
    assert not accumulator.per_image.requires_grad
    assert weight_sums(layer.weight, layer.weight + 1).tolist()[0] == pytest.approx(6)


def test_squares_are_summed_in_float64() -> None:
    """4096^2 + 1 = 2^24 + 1 is no float32."""
    accumulator = CommutativityAccumulator(nn.Linear(2, 1), torch.ones(1, 2), torch.zeros(1, 2))
    accumulator.update(torch.tensor([[4096.0, 1.0]]), torch.zeros(1, 2))
    assert accumulator.result().sums[4] == 2**24 + 1


def test_errors() -> None:
    layer = nn.Linear(3, 2)
    w = torch.ones(2, 3)
    with pytest.raises(TypeError, match="ReLU"):
        CommutativityAccumulator(nn.ReLU(), w, w)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer's"):
        CommutativityAccumulator(layer, w, w.T)
    accumulator = CommutativityAccumulator(layer, w, w)
    with pytest.raises(ValueError, match="no image"):
        accumulator.result()
    with pytest.raises(ValueError, match="differ in shape"):
        accumulator.update(torch.ones(4, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="linear layer"):
        accumulator.update(torch.ones(3), torch.ones(3))
    accumulator.update(torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="weights must be"):
        accumulator.result(torch.ones(3))
    conv = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="convolution"):
        CommutativityAccumulator(conv, conv.weight, conv.weight).update(
            torch.ones(1, 4, 4), torch.ones(1, 4, 4)
        )
    with pytest.raises(ValueError, match="sums"):
        distances(torch.ones(5), torch.ones(3))
