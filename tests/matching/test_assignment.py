"""Assignments are optimal: against all permutations of small matrices."""

from __future__ import annotations

from itertools import permutations, product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from llfc_core.matching.assignment import assign, assign_tree

seeds = st.integers(0, 2**32 - 1)


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
@given(st.integers(1, 5), seeds, st.booleans())
def test_assignment_is_the_best_permutation(n: int, seed: int, whole: bool) -> None:
    similarity = matrix(n, seed, whole)
    perm = assign(similarity)
    assert perm.dtype == torch.int64
    assert perm.sort().values.tolist() == list(range(n))
    assert value(similarity, perm) == pytest.approx(best(similarity), abs=1e-12)


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
