import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llfc_core.metrics.low_rank import (
    GramAccumulator,
    _needed_if_certain,
    rank_share,
    squared_singular_values,
    stable_rank,
)


def planted(rank: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix with ``rank`` singular values of 1 and no others."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=g, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, rank, generator=g, dtype=torch.float64))[0]
    return u @ v.T


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_streamed_gram_gives_the_singular_values_of_all_features(n, d, batches, seed):
    h = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    gram = GramAccumulator()
    for batch in h.tensor_split(batches):
        gram.update(batch)
    direct = torch.zeros(d, dtype=torch.float64)
    direct[: min(n, d)] = torch.linalg.svdvals(h.double()).square()
    torch.testing.assert_close(gram.squared_singular_values(), direct, rtol=1e-9, atol=1e-9)


def test_weights_are_reshaped_as_the_paper_does():
    w = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    direct = torch.linalg.svdvals(w.reshape(6, 12).double()).square()
    torch.testing.assert_close(squared_singular_values(w), direct)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_planted_rank_is_found(rank):
    squares = squared_singular_values(planted(rank, 20, 30))
    assert float(stable_rank(squares)) == pytest.approx(rank)
    # 95% of `rank` equal values: all but a twentieth of them, rounded up.
    assert float(rank_share(squares)) == pytest.approx(-(-rank * 95 // 100) / 20)


def test_stable_rank_is_that_of_norms():
    w = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()
    expected = w.square().sum() / torch.linalg.matrix_norm(w, 2) ** 2
    torch.testing.assert_close(stable_rank(squared_singular_values(w)), expected)


def test_rank_share_counts_the_fewest_that_suffice():
    squares = torch.tensor([90.0, 5.0, 4.0, 1.0]).double()
    assert float(rank_share(squares)) == 0.5
    assert float(rank_share(squares, energy=0.9)) == 0.25
    assert float(rank_share(squares, energy=1.0)) == 1.0


def test_zero_matrix_has_no_rank():
    squares = squared_singular_values(torch.zeros(3, 4))
    assert stable_rank(squares).isnan()
    assert rank_share(squares).isnan()


def test_nothing_streamed_is_an_error():
    with pytest.raises(ValueError, match="no features"):
        GramAccumulator().squared_singular_values()


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("energy", [0.5, 0.95, 0.999, 0.9999])
def test_rank_share_of_wide_features_is_that_of_all_eigenvalues(decay, energy):
    """Fast decay is certain from a few columns; without any, all eigenvalues are taken."""
    d = 800
    g = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).double() ** -decay
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    gram = GramAccumulator()
    gram.update((scale[:, None] * q)[:500])
    gram.update((scale[:, None] * q)[500:])
    direct = rank_share(scale.square(), energy)
    assert float(gram.rank_share(energy)) == float(direct)
    certain = _needed_if_certain(gram.gram, energy)
    assert certain in (None, round(d * float(direct)))
    if decay in (0.0, 0.3, 4.0):
        assert (certain is None) == (decay < 1)


def test_rank_share_of_few_points_in_many_dimensions():
    h = torch.randn(60, 900, generator=torch.Generator().manual_seed(1)) + 0.3
    gram = GramAccumulator()
    gram.update(h)
    assert float(gram.rank_share()) == float(rank_share(gram.squared_singular_values()))
    assert _needed_if_certain(gram.gram, 0.95) is not None
    dead = GramAccumulator()
    dead.update(torch.zeros(4, 900))
    assert dead.rank_share().isnan()
