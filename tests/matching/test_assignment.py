"""Assignments are optimal: against all permutations of small matrices, scipy, and the dual."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations, product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from llfc_core import kernels
from llfc_core.kernels import native
from llfc_core.matching.assignment import assign, assign_tree

seeds = st.integers(0, 2**32 - 1)
needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


@pytest.fixture(
    autouse=True,
    scope="module",
    params=[pytest.param("native", marks=needs_compiler), pytest.param("eager", id="scipy")],
)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.using(request.param):
        yield request.param


def matrix(n: int, seed: int, whole: bool = False) -> Tensor:
    """Whole numbers give ties."""
    g = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-1, 2, (n, n), generator=g).double()
    return torch.randn(n, n, generator=g, dtype=torch.float64)


def value(similarity: Tensor, perm: Tensor) -> float:
    return float(similarity[torch.arange(len(perm)), perm].sum())


def best(similarity: Tensor) -> float:
    n = len(similarity)
    return max(value(similarity, torch.tensor(p)) for p in permutations(range(n)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), seeds, st.booleans())
def test_assignment_is_the_best_permutation(n: int, seed: int, whole: bool) -> None:
    similarity = matrix(n, seed, whole)
    perm = assign(similarity)
    assert perm.dtype == torch.int64
    assert perm.sort().values.tolist() == list(range(n))
    assert value(similarity, perm) == pytest.approx(best(similarity), abs=1e-12)


KINDS = ["normal", "whole", "constant", "low rank", "dead", "rows alike", "diagonal"]
sizes = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 130]))
scales = st.sampled_from([1e-300, 1e-9, 1.0, 1e9, 1e300])


def drawn(kind: str, n: int, seed: int) -> Tensor:
    """Of entries about 1: what trained networks give, and what is hard for a solver."""
    g = torch.Generator().manual_seed(seed)
    similarity = matrix(n, seed, kind == "whole")
    if kind == "constant":
        return torch.full((n, n), float(similarity[0, 0]), dtype=torch.float64)
    if kind == "low rank":  # everybody wants the same few
        u, v = (torch.randn(n, 2, generator=g, dtype=torch.float64) for _ in range(2))
        return u @ v.T + 0.1 * similarity
    if kind == "dead":
        similarity[torch.rand(n, generator=g) < 0.4] = 0
        similarity[:, torch.rand(n, generator=g) < 0.4] = 0
    if kind == "rows alike":
        return similarity[:1].repeat(n, 1)
    if kind == "diagonal":
        similarity.diagonal().add_(3)
    return similarity


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(n=sizes, seed=seeds, scale=scales)
def test_as_good_as_scipys(kind: str, n: int, seed: int, scale: float) -> None:
    similarity = drawn(kind, n, seed)
    want = similarity.numpy()[linear_sum_assignment(similarity.numpy(), maximize=True)].sum()
    perm = assign(similarity * scale)
    assert perm.sort().values.tolist() == list(range(n))
    assert value(similarity, perm) == pytest.approx(want, abs=1e-12 * n)
    assert torch.equal(assign(similarity * scale), perm), "deterministic, ties included"


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(n=sizes, seed=seeds, level=st.sampled_from([0.0, 1.0, 1e6]))
def test_any_prices_will_do_to_begin_with(kind: str, n: int, seed: int, level: float) -> None:
    similarity = drawn(kind, n, seed)
    want = value(similarity, assign(similarity))
    g = torch.Generator().manual_seed(seed)
    prices = level * torch.randn(n, generator=g, dtype=torch.float64)
    for _ in range(2):  # the second time, from the optimum's own
        perm = assign(similarity, prices)
        assert value(similarity, perm) == pytest.approx(want, abs=1e-9)


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(n=sizes, seed=seeds)
def test_prices_prove_the_optimum(kind: str, n: int, seed: int) -> None:
    """Weak duality: no permutation is worth more than Σ_i max_j (s_ij − p_j) + Σ_j p_j."""
    similarity, prices = drawn(kind, n, seed), torch.zeros(1, n, dtype=torch.float64)
    perm = native.linear_assignment(similarity[None], prices)[0]
    bound = math.fsum([*(similarity - prices).max(1).values.tolist(), *prices[0].tolist()])
    assert value(similarity, perm) == pytest.approx(bound, abs=1e-12 * n)


@needs_compiler
def test_many_at_once_are_one_after_the_other() -> None:
    for n in (1, 3, 9):
        similarity = torch.stack([matrix(n, seed) for seed in range(5)])
        together = native.linear_assignment(similarity.transpose(1, 2))
        apart = [native.linear_assignment(s.T[None])[0] for s in similarity]
        assert torch.equal(together, torch.stack(apart))
    assert native.linear_assignment(torch.zeros(2, 0, 0, dtype=torch.float64)).shape == (2, 0)


@needs_compiler
def test_sums_that_overflow_are_refused() -> None:
    similarity = 1e308 * (2 * torch.eye(9, dtype=torch.float64) - 1)
    with pytest.raises(ValueError, match="too large to be added"):
        native.linear_assignment(similarity[None])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), seeds, st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_assignment_does_not_depend_on_level_or_scale(
    n: int, seed: int, level: float, scale: float
) -> None:
    similarity = matrix(n, seed)
    want = value(similarity, assign(similarity))
    changed = similarity * scale
    changed += level * scale
    assert value(similarity, assign(changed)) == pytest.approx(want, rel=1e-7, abs=1e-7)


def test_slot_i_gets_unit_perm_i() -> None:
    similarity = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [5.0, 0.0, 0.0]])
    assert assign(similarity).tolist() == [1, 2, 0]


def test_float32_is_taken_as_it_is() -> None:
    similarity = matrix(30, 0).float()
    assert torch.equal(assign(similarity), assign(similarity.double()))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.lists(st.integers(1, 3), max_size=2), seeds, st.booleans())
def test_tree_is_the_best_of_all_products(b: int, sizes: list[int], seed: int, whole: bool) -> None:
    own = matrix(b, seed, whole)
    children = {f"{i}": matrix(b * n, seed + i + 1, whole) for i, n in enumerate(sizes)}
    outer, inner = assign_tree(own, children)

    def worth(outer: Tensor, inner: dict[str, Tensor]) -> float:
        total = value(own, outer)
        for name, similarity in children.items():
            n = len(similarity) // b
            assert inner[name].shape == (b, n)
            total += value(similarity, (outer[:, None] * n + inner[name]).flatten())
        return total

    def best_inner(outer: Tensor) -> float:
        """Each block by itself, over all permutations of its units."""
        total = value(own, outer)
        for similarity in children.values():
            n = len(similarity) // b
            s = similarity.reshape(b, n, b, n)
            total += sum(best(s[i, :, int(j), :]) for i, j in enumerate(outer))
        return total

    brute = max(best_inner(torch.tensor(p)) for p in permutations(range(b)))
    assert worth(outer, inner) == pytest.approx(brute, abs=1e-12)


def test_tree_against_every_joint_permutation() -> None:
    """The same without using that blocks are independent: 2 blocks, children of 2 and 3 units."""
    own, c, d = matrix(2, 0), matrix(4, 1), matrix(6, 2)
    twos, threes = (list(permutations(range(n))) for n in (2, 3))

    def worth(outer, c0, c1, d0, d1):
        o = torch.tensor(outer)
        return (
            value(own, o)
            + value(c, (o[:, None] * 2 + torch.tensor([c0, c1])).flatten())
            + value(d, (o[:, None] * 3 + torch.tensor([d0, d1])).flatten())
        )

    outer, inner = assign_tree(own, {"c": c, "d": d})
    found = worth(outer.tolist(), *inner["c"].tolist(), *inner["d"].tolist())
    brute = max(worth(*choice) for choice in product(twos, twos, twos, threes, threes))
    assert found == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_is_refused(bad: float) -> None:
    similarity = matrix(3, 0)
    similarity[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        assign(similarity)
    with pytest.raises(ValueError, match="not finite"):
        assign_tree(matrix(3, 0), {"inner": similarity})


@pytest.mark.parametrize("shape", [(3, 4), (3,), (2, 2, 2)])
def test_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        assign(torch.zeros(shape))


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        assign_tree(torch.zeros(2, 2), {"inner": torch.zeros(3, 3)})
