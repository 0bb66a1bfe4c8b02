"""Theorem 1: weak additivity and commutativity imply LLFC with c = 1. An exact test, no margins.

    s(alpha p_A + (1-alpha) p_B) = alpha s(p_A) + (1-alpha) s(p_B)   for all layers  (Definition 3)
    W_A H_A + W_B H_B = W_A H_B + W_B H_A                            for all layers  (Definition 4)
    =>  f^(l)(alpha theta_A + (1-alpha) theta_B) = alpha f^(l)(theta_A) + (1-alpha) f^(l)(theta_B)

Hypothesis draws ReLU networks (depth, widths, weights, biases, data) that satisfy both conditions
by construction (`theorem1_pair` says how) with A and B different and units both on and off; LLFC
must then hold to float64 rounding at every layer and alpha. Drawn alike but for one condition, the
conclusion must fail, and the tests say by how much. When it need not fail:

- at alpha 0 and 1, always; both residuals vanish there;
- where the commutativity defect falls on units that are off all along the way: the ReLU hides it;
- at single alphas the two residuals can cancel (an example is below).
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from llfc_core.theory import (
    Break,
    Family,
    ReluNet,
    Theorem1Pair,
    commutativity_residual,
    forward,
    interpolate,
    theorem1_pair,
    weak_additivity_residual,
)

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
ROUNDING = 1e-12  # relative to the largest feature; about 1e-15 is seen, times widths and depth


@st.composite
def null_space(draw: st.DrawFn) -> tuple[list[int], int]:
    """Widths and n with n < d: dH cannot have full row rank, so dW is nonzero in every layer."""
    depth = draw(st.integers(2, 5))
    n = draw(st.integers(2, 6))
    return draw(st.lists(st.integers(n + 1, 14), min_size=depth + 1, max_size=depth + 1)), n


@st.composite
def disjoint_support(draw: st.DrawFn) -> tuple[list[int], int]:
    """Any widths from 2 on, n on either side of them."""
    depth = draw(st.integers(2, 5))
    widths = draw(st.lists(st.integers(2, 14), min_size=depth + 1, max_size=depth + 1))
    return widths, draw(st.integers(2, 20))


shapes = st.one_of(
    st.tuples(st.just("null_space"), null_space()),
    st.tuples(st.just("disjoint_support"), disjoint_support()),
)
Shape = tuple[Family, tuple[list[int], int]]
seeds = st.integers(0, 2**32 - 1)


def scale(pair: Theorem1Pair) -> float:
    """The largest number in sight: what rounding is relative to."""
    features = (*forward(pair.a, pair.x).pre, *forward(pair.b, pair.x).pre, pair.x)
    return max(1.0, *(float(t.abs().max()) for t in features))


def llfc_errors(pair: Theorem1Pair, alpha: float) -> list[Tensor]:
    """f^(l)(theta_alpha) - z^(l) of layers 1 ... L, (d_l, n)."""
    f = forward(interpolate(pair.a, pair.b, alpha), pair.x).post
    f_a, f_b = forward(pair.a, pair.x).post, forward(pair.b, pair.x).post
    return [p - (alpha * q + (1 - alpha) * r) for p, q, r in zip(f, f_a, f_b)][1:]


def condition_residuals(pair: Theorem1Pair, alpha: float) -> tuple[list[Tensor], list[Tensor]]:
    """Weak additivity's and commutativity's residuals of layers 1 ... L, (d_l, n) each."""
    f_a, f_b = forward(pair.a, pair.x), forward(pair.b, pair.x)
    additivity = [
        weak_additivity_residual(p, q, alpha) * pair.a.has_relu(layer)
        for layer, (p, q) in enumerate(zip(f_a.pre, f_b.pre), 1)
    ]
    commutativity = [
        commutativity_residual(w, v, p, q)
        for w, v, p, q in zip(pair.a.weights, pair.b.weights, f_a.post, f_b.post)
    ]
    return additivity, commutativity


def largest(tensors: list[Tensor]) -> float:
    return max(float(t.abs().max()) for t in tensors)


@settings(deadline=None, max_examples=120)
@given(shapes, st.booleans(), st.floats(0.05, 1), st.floats(0, 1), seeds)
def test_theorem1_holds(
    shape: Shape, relu_last: bool, size: float, alpha: float, seed: int
) -> None:
    family, (widths, n) = shape
    g = torch.Generator().manual_seed(seed)
    pair = theorem1_pair(g, widths, n, family, relu_last=relu_last, size=size)
    tolerance = ROUNDING * scale(pair)
    for a in (*ALPHAS, alpha):
        additivity, commutativity = condition_residuals(pair, a)
        assert largest(additivity) <= tolerance, "the construction misses Definition 3"
        assert largest(commutativity) <= tolerance, "the construction misses Definition 4"
        for layer, error in enumerate(llfc_errors(pair, a), 1):
            assert float(error.abs().max()) <= tolerance, f"LLFC fails at layer {layer}, alpha {a}"


@settings(deadline=None, max_examples=60)
@given(null_space(), seeds)
def test_theorem1_pairs_are_not_trivial(shape: tuple[list[int], int], seed: int) -> None:
    """In every layer the weights differ, and so do the features; hidden features are not zero."""
    widths, n = shape
    pair = theorem1_pair(torch.Generator().manual_seed(seed), widths, n, "null_space")
    f_a, f_b = forward(pair.a, pair.x), forward(pair.b, pair.x)
    for layer in range(pair.a.depth):
        change = pair.a.weights[layer] - pair.b.weights[layer]
        assert change.norm() > 1e-3 * pair.a.weights[layer].norm()
        assert (pair.a.biases[layer] - pair.b.biases[layer]).abs().max() > 1e-6
        assert (f_a.post[layer + 1] - f_b.post[layer + 1]).norm() > 1e-3
        assert f_a.post[layer + 1].norm() > 0


@settings(deadline=None, max_examples=60)
@given(disjoint_support(), seeds)
def test_theorem1_pairs_with_disjoint_support_commute_without_rounding(
    shape: tuple[list[int], int], seed: int
) -> None:
    """There dW dH is exactly 0 with dW and dH both nonzero, also with more data than width."""
    widths, n = shape
    pair = theorem1_pair(torch.Generator().manual_seed(seed), widths, n, "disjoint_support")
    f_a, f_b = forward(pair.a, pair.x), forward(pair.b, pair.x)
    for layer in range(pair.a.depth):
        change = pair.a.weights[layer] - pair.b.weights[layer]
        assert (change @ (f_a.post[layer] - f_b.post[layer]) == 0).all()
        assert (f_a.post[layer + 1] - f_b.post[layer + 1]).norm() > 1e-6
        if widths[layer] >= 2:
            assert change.norm() > 1e-6


@pytest.mark.parametrize("family", ["null_space", "disjoint_support"])
def test_theorem1_units_are_on_for_some_points_and_off_for_others(family: Family) -> None:
    """Additivity does not come from units that never switch: in every layer most of them do."""
    mixed = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        pair = theorem1_pair(g, [12, 12, 12, 12, 4], 8, family)
        on = [p > 0 for p in forward(pair.a, pair.x).pre[:-1]]
        on_b = [p > 0 for p in forward(pair.b, pair.x).pre[:-1]]
        assert all(torch.equal(p, q) for p, q in zip(on, on_b))
        mixed.append([float((t.any(1) & ~t.all(1)).double().mean()) for t in on])
    share = torch.tensor(mixed).mean(0)
    print(f"{family}: share of units that switch, layers 1-3: {share.tolist()}")
    assert (share > 0.5).all()


@settings(deadline=None, max_examples=60)
@given(shapes, st.booleans(), st.data(), seeds)
def test_theorem1_without_additivity_llfc_fails(
    shape: Shape, relu_last: bool, data: st.DataObject, seed: int
) -> None:
    """dW dH = 0 everywhere, signs differ in one layer: there f - z is exactly that residual.

    Below it LLFC holds. No exception but alpha 0 and 1: weak additivity's residual is what the
    ReLU has already let through.
    """
    family, (widths, n) = shape
    depth = len(widths) - 1
    layer = data.draw(st.integers(1, depth if relu_last else depth - 1), label="layer")
    g = torch.Generator().manual_seed(seed)
    pair = theorem1_pair(
        g, widths, n, family, relu_last=relu_last, broken="additivity", broken_layer=layer
    )
    tolerance = ROUNDING * scale(pair)
    for alpha in ALPHAS:
        additivity, commutativity = condition_residuals(pair, alpha)
        assert largest(commutativity) <= tolerance
        errors = llfc_errors(pair, alpha)
        assert largest(errors[: layer - 1] or [torch.zeros(1)]) <= tolerance
        torch.testing.assert_close(errors[layer - 1], additivity[layer - 1], rtol=0, atol=tolerance)
        if 0 < alpha < 1:
            assert largest(errors) > 1e3 * tolerance
        else:
            assert largest(errors) <= tolerance


@settings(deadline=None, max_examples=60)
@given(shapes, st.booleans(), st.data(), seeds)
def test_theorem1_without_commutativity_llfc_fails(
    shape: Shape, relu_last: bool, data: st.DataObject, seed: int
) -> None:
    """Signs agree everywhere, dW dH != 0 in one layer: the pre-activation is off by it.

    At that layer f = s(z_pre - alpha (1 - alpha) dW dH) where LLFC wants s(z_pre), so LLFC fails
    unless every defect sits where both are off, the exception of the module's docstring.
    """
    family, (widths, n) = shape
    layer = data.draw(st.integers(2, len(widths) - 1), label="layer")
    g = torch.Generator().manual_seed(seed)
    pair = theorem1_pair(
        g, widths, n, family, relu_last=relu_last, broken="commutativity", broken_layer=layer
    )
    tolerance = ROUNDING * scale(pair)
    f_a, f_b = forward(pair.a, pair.x), forward(pair.b, pair.x)
    for alpha in ALPHAS:
        additivity, commutativity = condition_residuals(pair, alpha)
        assert largest(additivity) <= tolerance
        errors = llfc_errors(pair, alpha)
        assert largest(errors[: layer - 1]) <= tolerance
        z_pre = alpha * f_a.pre[layer - 1] + (1 - alpha) * f_b.pre[layer - 1]
        off = z_pre - alpha * (1 - alpha) * commutativity[layer - 1]
        want = off.relu() - z_pre.relu() if pair.a.has_relu(layer) else off - z_pre
        torch.testing.assert_close(errors[layer - 1], want, rtol=0, atol=tolerance)
    assume(float(want_at_half(pair, layer).abs().max()) > 1e-6)
    assert largest(llfc_errors(pair, 0.5)) > 1e3 * tolerance


def want_at_half(pair: Theorem1Pair, layer: int) -> Tensor:
    """The commutativity defect of `layer` on units that are on at alpha = 1/2."""
    f_a, f_b = forward(pair.a, pair.x), forward(pair.b, pair.x)
    defect = condition_residuals(pair, 0.5)[1][layer - 1]
    on = f_a.pre[layer - 1] + f_b.pre[layer - 1] > 0
    return defect * on if pair.a.has_relu(layer) else defect


@pytest.mark.parametrize("family", ["null_space", "disjoint_support"])
@pytest.mark.parametrize("broken", ["additivity", "commutativity"])
def test_theorem1_broken_conditions_are_not_negligible(family: Family, broken: Break) -> None:
    """Breaking one condition in layer 2 of 3 costs LLFC at the output far more than rounding."""
    relative = []
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        pair = theorem1_pair(g, [12, 12, 12, 4], 8, family, broken=broken, broken_layer=2)
        target = 0.5 * (forward(pair.a, pair.x).post[-1] + forward(pair.b, pair.x).post[-1])
        relative.append(float(llfc_errors(pair, 0.5)[-1].norm() / target.norm()))
    print(f"{family} without {broken}: relative LLFC error {min(relative):.1e}-{max(relative):.1e}")
    assert min(relative) > 1e-4


def net(*layers: tuple[list[list[float]], list[float]], relu_last: bool = False) -> ReluNet:
    return ReluNet(
        tuple(torch.tensor(w, dtype=torch.float64) for w, _ in layers),
        tuple(torch.tensor(b, dtype=torch.float64) for _, b in layers),
        relu_last,
    )


def test_theorem1_exception_a_defect_on_units_that_are_off() -> None:
    """dW dH = 1 in layer 2, but its unit is far below zero in A, B and between: LLFC holds."""
    a = net(([[2.0]], [0.0]), ([[2.0]], [-9.0]), relu_last=True)
    b = net(([[1.0]], [0.0]), ([[1.0]], [-9.0]), relu_last=True)
    pair = Theorem1Pair(a, b, torch.ones(1, 1, dtype=torch.float64))
    assert condition_residuals(pair, 0.5)[1][1].item() == 1
    assert all(largest(llfc_errors(pair, alpha)) == 0 for alpha in ALPHAS)


def test_theorem1_exception_residuals_that_cancel_at_one_alpha() -> None:
    """Both conditions fail in layer 2, LLFC holds at alpha = 1/2 (and 0, 1), nowhere else.

    p_A = 1, p_B = -1, dW dH = -2: at 1/2, s(0 + 2/4) = 1/2 = s(1)/2 + s(-1)/2.
    """
    a = net(([[2.0]], [0.0]), ([[-1.0]], [3.0]), relu_last=True)
    b = net(([[1.0]], [0.0]), ([[1.0]], [-2.0]), relu_last=True)
    pair = Theorem1Pair(a, b, torch.ones(1, 1, dtype=torch.float64))
    additivity, commutativity = condition_residuals(pair, 0.5)
    assert (additivity[1].item(), commutativity[1].item()) == (-0.5, -2)
    assert largest(llfc_errors(pair, 0.5)) == 0
    for alpha in (0.1, 0.25, 0.75, 0.9):
        assert largest(llfc_errors(pair, alpha)) > 0.01


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 20), st.floats(0.01, 0.99), seeds)
def test_theorem1_both_forms_of_definition_3_are_one_condition(
    d: int, alpha: float, seed: int
) -> None:
    """The text's (every alpha) and the appendix's s(p+q) = s(p)+s(q) hold where pq >= 0 only."""
    g = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, d, generator=g, dtype=torch.float64)
    p[torch.rand(d, generator=g) < 0.2] = 0
    agree = p * q >= 0
    text = weak_additivity_residual(p, q, alpha)
    appendix = (p + q).relu() - (p.relu() + q.relu())
    for residual in (text, appendix):
        assert (residual[agree].abs() < 1e-14).all()
        # Where signs differ the residual is at least 0.01 of the smaller of the two.
        assert (residual[~agree] <= -0.0099 * torch.minimum(p.abs(), q.abs())[~agree]).all()
