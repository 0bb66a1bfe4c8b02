"""The quadratic assignment problem behind matching (Section 5.2, Appendix A.3). Exact.

    R = (W_A − P W_B P_prevᵀ)(H_A − P_prev H_B) = 0                                             (9)
    ‖R‖² = ‖W_A (H_A − P_prev H_B)‖² + ‖P W_B (P_prevᵀ H_A − H_B)‖² − 2⟨·, ·⟩

Eq. 9 is eq. 8 for the permuted mode; the first two terms are Koopmans-Beckmann in P_prev, the last
is linear in P; A.3 prints + for the −2. Weight and activation matching are the two factors of R.
"""

from __future__ import annotations

from itertools import permutations, product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment, quadratic_assignment
from torch import Tensor

from llfc_core.theory import ReluNet, forward
from llfc_core.theory.qap import (
    Gram,
    activation_matching_objective,
    commutativity_residual,
    cross_profit,
    expand,
    feature_difference,
    first_term,
    permutation_matrix,
    second_term,
    weight_difference,
    weight_matching_objective,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))


class Layer:
    """W_A, W_B (d_out, d_in), H_A, H_B (d_in, n) and permutations of both sides, drawn."""

    def __init__(self, seed: int, d_out: int, d_in: int, n: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.W_A = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
        self.W_B = torch.randn(d_out, d_in, generator=g, dtype=torch.float64)
        self.H_A = torch.randn(d_in, n, generator=g, dtype=torch.float64).relu()
        self.H_B = torch.randn(d_in, n, generator=g, dtype=torch.float64).relu()
        self.P = permutation_matrix(torch.randperm(d_out, generator=g))
        self.P_prev = permutation_matrix(torch.randperm(d_in, generator=g))
        self.gram = Gram.of(self.H_A, self.H_B)

    def direct(self, P: Tensor | None, P_prev: Tensor | None) -> float:
        R = commutativity_residual(self.W_A, self.W_B, self.H_A, self.H_B, P, P_prev)
        return float(R.square().sum())

    def scale(self) -> float:
        """A bound of every term of the expansion: what rounding is relative to."""
        weights = self.W_A.norm() + self.W_B.norm()
        return float((weights * (self.H_A.norm() + self.H_B.norm())) ** 2)


def all_permutations(d: int) -> list[Tensor]:
    return [permutation_matrix(torch.tensor(perm)) for perm in permutations(range(d))]


def test_permutation_matrix_puts_unit_perm_i_into_slot_i() -> None:
    h = torch.tensor([[10.0], [20.0], [30.0]]).double()
    assert (permutation_matrix(torch.tensor([2, 0, 1])) @ h).flatten().tolist() == [30, 10, 20]
    for bad in ([0, 0], [1, 2], [[0, 1]]):
        with pytest.raises(ValueError, match="not a permutation"):
            permutation_matrix(torch.tensor(bad))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=6), st.integers(1, 8), seeds)
def test_eq_8_of_the_permuted_network_is_eq_9(widths: list[int], n: int, seed: int) -> None:
    """Definition 4 between A and pi(B), features by running pi(B), is eq. 9 on A's and B's own."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    depth = len(widths) - 1
    a, b = (
        ReluNet(
            tuple(normal(widths[k + 1], widths[k]) for k in range(depth)),
            tuple(normal(widths[k + 1]) for k in range(depth)),
        )
        for _ in range(2)
    )
    x = normal(widths[0], n)
    # No permutation of the inputs and of the outputs.
    P = [permutation_matrix(torch.randperm(d, generator=g)) for d in widths]
    P[0], P[-1] = torch.eye(widths[0]).double(), torch.eye(widths[-1]).double()
    permuted = ReluNet(
        tuple(P[k + 1] @ b.weights[k] @ P[k].T for k in range(depth)),
        tuple(P[k + 1] @ b.biases[k] for k in range(depth)),
    )
    f_a, f_b, f_p = forward(a, x), forward(b, x), forward(permuted, x)
    torch.testing.assert_close(f_p.post[-1], f_b.post[-1])
    for k in range(depth):
        W_A, W_P, H_A, H_P = a.weights[k], permuted.weights[k], f_a.post[k], f_p.post[k]
        eq_8 = (W_A @ H_A + W_P @ H_P) - (W_A @ H_P + W_P @ H_A)
        eq_9 = commutativity_residual(
            W_A, b.weights[k], H_A, f_b.post[k], P[k + 1] if k < depth - 1 else None, P[k]
        )
        scale = float((W_A.norm() + W_P.norm()) * (H_A.norm() + H_P.norm()))
        torch.testing.assert_close(eq_8, eq_9, rtol=0, atol=1e-13 * (1 + scale))
        if k == 0:
            assert (eq_9 == 0).all()  # the first layer commutes whatever the permutation


@settings(deadline=None, max_examples=80)
@given(sizes, st.booleans(), st.booleans(), seeds)
def test_expansion_in_traces_is_the_norm(
    size: tuple[int, int, int], outer: bool, inner: bool, seed: int
) -> None:
    layer = Layer(seed, *size)
    P, P_prev = layer.P if outer else None, layer.P_prev if inner else None
    got = expand(layer.W_A, layer.W_B, layer.gram, P, P_prev)
    rounding = 1e-14 * layer.scale()
    assert float(got.total) == pytest.approx(layer.direct(P, P_prev), abs=rounding)

    Q = layer.P_prev if inner else torch.eye(size[1]).double()
    U = layer.W_A @ layer.H_A - layer.W_A @ Q @ layer.H_B
    V = layer.W_B @ Q.T @ layer.H_A - layer.W_B @ layer.H_B
    V = layer.P @ V if outer else V
    assert float(got.first) == pytest.approx(float(U.square().sum()), abs=rounding)
    assert float(got.second) == pytest.approx(float(V.square().sum()), abs=rounding)
    assert float(got.cross) == pytest.approx(float((U * V).sum()), abs=rounding)


def test_a3_s_cross_term_is_wrong_in_sign_and_factor() -> None:
    """The erratum in numbers: + <U, V> as printed is not |R|^2, and picks another permutation."""
    changed = 0
    for seed in range(20):
        layer = Layer(seed, 3, 3, 6)
        candidates = list(product(all_permutations(3), repeat=2))
        terms = [expand(layer.W_A, layer.W_B, layer.gram, *pair) for pair in candidates]
        direct = torch.tensor([layer.direct(*pair) for pair in candidates])
        right = torch.stack([t.total for t in terms])
        printed = torch.stack([t.first + t.second + t.cross for t in terms])
        torch.testing.assert_close(right, direct.double(), atol=1e-4, rtol=1e-6)
        assert (printed - direct).abs().max() > 0.1 * direct.mean()
        changed += int(direct[printed.argmin()] > 1.001 * direct.min())
    print(f"A.3's printed form picks a worse permutation in {changed} of 20 draws")
    assert changed >= 10


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8), seeds)
def test_best_permutations_by_brute_force(d_out: int, d_in: int, n: int, seed: int) -> None:
    """The expansion's minimiser over both permutations minimises the norm (values, not ties)."""
    layer = Layer(seed, d_out, d_in, n)
    candidates = list(product(all_permutations(d_out), all_permutations(d_in)))
    direct = [layer.direct(*pair) for pair in candidates]
    expanded = [float(expand(layer.W_A, layer.W_B, layer.gram, *p).total) for p in candidates]
    best = min(range(len(candidates)), key=expanded.__getitem__)
    assert direct[best] == pytest.approx(min(direct), abs=1e-13 * layer.scale())


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 8), seeds)
def test_best_inner_permutation_of_five_units(n: int, seed: int) -> None:
    """All 120 P_prev of a layer with 5 inputs, each part by its own brute force."""
    layer = Layer(seed, 4, 5, n)
    first, second = first_term(layer.W_A, layer.gram), second_term(layer.W_B, layer.gram)
    candidates = all_permutations(5)
    expanded = [
        float(expand(layer.W_A, layer.W_B, layer.gram, layer.P, Q).total) for Q in candidates
    ]
    direct = [layer.direct(layer.P, Q) for Q in candidates]
    best = min(range(120), key=expanded.__getitem__)
    rounding = 1e-13 * layer.scale()
    assert direct[best] == pytest.approx(min(direct), abs=rounding)
    for Q in candidates:
        U = layer.W_A @ feature_difference(layer.H_A, layer.H_B, Q)
        V = layer.W_B @ (Q.T @ layer.H_A - layer.H_B)
        assert float(first(Q)) == pytest.approx(float(U.square().sum()), abs=rounding)
        assert float(second(Q)) == pytest.approx(float(V.square().sum()), abs=rounding)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), seeds)
def test_for_fixed_inner_permutation_it_is_a_linear_assignment(
    d_out: int, d_in: int, n: int, seed: int
) -> None:
    layer = Layer(seed, d_out, d_in, n)
    profit = cross_profit(layer.W_A, layer.W_B, layer.gram, layer.P_prev)
    _, perm = linear_sum_assignment(profit.numpy(), maximize=True)
    found = layer.direct(permutation_matrix(torch.as_tensor(perm)), layer.P_prev)
    # Random rivals for every size, all of them where there are few.
    g = torch.Generator().manual_seed(seed)
    rivals = [permutation_matrix(torch.randperm(d_out, generator=g)) for _ in range(20)]
    if d_out <= 4:
        rivals = all_permutations(d_out)
    best = min(layer.direct(P, layer.P_prev) for P in rivals)
    assert found <= best + 1e-13 * layer.scale()
    if d_out <= 4:
        assert found == pytest.approx(best, abs=1e-13 * layer.scale())


@settings(deadline=None, max_examples=30)
@given(sizes, st.sampled_from(["faq", "2opt", "given"]), seeds)
def test_quadratic_parts_are_what_scipy_calls_the_objective(
    size: tuple[int, int, int], method: str, seed: int
) -> None:
    """scipy's `fun`, at its own col_ind or one we fix in full, is our tr(P^T A P B)."""
    layer = Layer(seed, *size)
    d_in = size[1]
    for part in (first_term(layer.W_A, layer.gram), second_term(layer.W_B, layer.gram)):
        options: dict[str, object] = {"rng": np.random.default_rng(0)}
        if method == "given":
            wanted = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))
            options["partial_match"] = torch.stack([torch.arange(d_in), wanted], 1).numpy()
        result = quadratic_assignment(
            part.A.numpy(),
            part.B.numpy(),
            method="2opt" if method == "2opt" else "faq",
            options=options,
        )
        perm = torch.as_tensor(result.col_ind)
        if method == "given":
            assert torch.equal(perm, wanted)
        ours = float(part.quadratic(permutation_matrix(perm)))
        assert ours == pytest.approx(result.fun, rel=1e-10, abs=1e-12 * layer.scale())


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 4), seeds)
def test_where_scipy_applies_it_solves_our_part(d_out: int, d_in: int, n: int, seed: int) -> None:
    """Without a linear term, H_A H_B^T = 0, scipy's objective plus our constant is |U|^2 itself.

    Elsewhere it is not: scipy's form has no linear term, and A.3's have one.
    """
    layer = Layer(seed, d_out, d_in, n)
    # A's features are on the first n points only, B's on the last n.
    zeros = torch.zeros_like(layer.H_A)
    H_A, H_B = torch.cat([layer.H_A, zeros], 1), torch.cat([zeros, layer.H_B], 1)
    part = first_term(layer.W_A, Gram.of(H_A, H_B))
    assert (part.C == 0).all()
    result = quadratic_assignment(
        part.A.numpy(), part.B.numpy(), method="2opt", options={"rng": np.random.default_rng(0)}
    )
    P = permutation_matrix(torch.as_tensor(result.col_ind))
    U = layer.W_A @ (H_A - P @ H_B)
    assert result.fun + float(part.constant) == pytest.approx(float(U.square().sum()), rel=1e-9)
    values = [float(part(Q)) for Q in all_permutations(d_in)]
    # 2-opt is a heuristic: never better than the optimum, and a local optimum of swaps.
    assert min(values) <= result.fun + float(part.constant) + 1e-12 * layer.scale()


@settings(deadline=None, max_examples=60)
@given(sizes, seeds)
def test_matching_objectives_are_the_two_factors(size: tuple[int, int, int], seed: int) -> None:
    layer = Layer(seed, *size)
    W = weight_difference(layer.W_A, layer.W_B, layer.P, layer.P_prev)
    H = feature_difference(layer.H_A, layer.H_B, layer.P_prev)
    weight = weight_matching_objective(layer.W_A, layer.W_B, layer.P, layer.P_prev)
    activation = activation_matching_objective(layer.H_A, layer.H_B, layer.P_prev)
    assert float(weight) == pytest.approx(float(W.norm()) ** 2)
    assert float(activation) == pytest.approx(float(H.norm()) ** 2)
    # In the form Git Re-Basin maximises: constants minus twice the inner product.
    permuted = layer.P @ layer.W_B @ layer.P_prev.T
    inner = layer.W_A.square().sum() + layer.W_B.square().sum() - 2 * (layer.W_A * permuted).sum()
    assert float(weight) == pytest.approx(float(inner), abs=1e-12)
    inner = torch.trace(layer.gram.AA + layer.gram.BB) - 2 * torch.trace(
        layer.P_prev.T @ layer.gram.AB
    )
    assert float(activation) == pytest.approx(float(inner), abs=1e-12)
    # Each factor bounds the residual, so each matcher helps commutativity without seeing it whole.
    direct = layer.direct(layer.P, layer.P_prev)
    product_of_squares = float(weight * activation)
    assert direct <= product_of_squares * (1 + 1e-12)
    spectral = float(torch.linalg.matrix_norm(W, 2) ** 2 * activation)
    assert direct <= spectral * (1 + 1e-12) <= product_of_squares * (1 + 1e-10)


def test_planted_permutation_is_free() -> None:
    """B = A permuted: every objective is 0 at the inverse permutation and positive elsewhere."""
    layer = Layer(0, 4, 4, 6)
    W_B, H_B = layer.P.T @ layer.W_A @ layer.P_prev, layer.P_prev.T @ layer.H_A
    gram = Gram.of(layer.H_A, H_B)
    assert float(weight_matching_objective(layer.W_A, W_B, layer.P, layer.P_prev)) == 0
    assert float(activation_matching_objective(layer.H_A, H_B, layer.P_prev)) == 0
    assert abs(float(expand(layer.W_A, W_B, gram, layer.P, layer.P_prev).total)) < 1e-12
    other = permutation_matrix(torch.tensor([1, 2, 3, 0]))
    assert float(weight_matching_objective(layer.W_A, W_B, other @ layer.P, layer.P_prev)) > 0.1
    assert float(activation_matching_objective(layer.H_A, H_B, other @ layer.P_prev)) > 0.1


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(1, 12), seeds)
def test_gram_matrices_of_batches_add_up(size: tuple[int, int, int], cut: int, seed: int) -> None:
    layer = Layer(seed, *size)
    one = Gram.of(layer.H_A[:, :cut], layer.H_B[:, :cut])
    two = Gram.of(layer.H_A[:, cut:], layer.H_B[:, cut:])
    summed = Gram(one.AA + two.AA, one.AB + two.AB, one.BB + two.BB)
    got = expand(layer.W_A, layer.W_B, summed, layer.P, layer.P_prev).total
    want = layer.direct(layer.P, layer.P_prev)
    assert float(got) == pytest.approx(want, abs=1e-14 * layer.scale())


def test_float32_inputs_are_computed_in_float64() -> None:
    layer = Layer(0, 3, 4, 5)
    w_a, w_b, h_a, h_b = (t.float() for t in (layer.W_A, layer.W_B, layer.H_A, layer.H_B))
    assert commutativity_residual(w_a, w_b, h_a, h_b).dtype == torch.float64
    assert Gram.of(h_a, h_b).AB.dtype == torch.float64
    assert expand(w_a, w_b, Gram.of(h_a, h_b)).total.dtype == torch.float64
    want = commutativity_residual(w_a, w_b, h_a, h_b, layer.P, layer.P_prev).square().sum()
    got = expand(w_a, w_b, Gram.of(h_a, h_b), layer.P.float(), layer.P_prev.float()).total
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
