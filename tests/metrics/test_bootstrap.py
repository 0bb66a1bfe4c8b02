"""Intervals from resampling pairs, then images: coverage, and agreement with plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llfc_core.metrics import Measurement, estimate
from llfc_core.metrics.bootstrap import Means, compare, resampled_means
from tests.planted import measurement

ENDS = (0.0, 1.0)


def one_layer(values: np.ndarray, **others: Any) -> Measurement:
    """A pair of which only ``one_minus_cos_ab`` ``(n,)`` of a single layer matters here."""
    return measurement(
        n=len(values), layers=["fc1"], alphas=ENDS, one_minus_cos_ab=values[None], **others
    )


def mean(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    return means["one_minus_cos_ab"]


def coverage(pairs: int, images: int, between: float, within: float, trials: int) -> float:
    """Share of 95% intervals that hold the truth, 1."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(trials):
        means = 1 + between * rng.standard_normal(pairs)
        drawn = [one_layer(m + within * rng.standard_normal(images)) for m in means]
        e = estimate(drawn, mean, resamples=200, seed=trial)
        hits += bool(e.low[0] <= 1 <= e.high[0])
    return hits / trials


def test_bootstrap_covers_the_truth_of_one_pair() -> None:
    """Nominal 95%; with 80 images a percentile interval has about 94%."""
    assert 0.91 <= coverage(pairs=1, images=80, between=0, within=1, trials=400) <= 0.98


def test_bootstrap_covers_the_truth_of_many_pairs() -> None:
    """16 pairs that differ, well measured: about 92%, as for 16 numbers.

    A bootstrap over images alone would have a tenth of it.
    """
    assert 0.87 <= coverage(pairs=16, images=20, between=1, within=0.5, trials=150) <= 0.98


def test_bootstrap_three_pairs_that_differ_give_their_range() -> None:
    """The extreme resample, one pair three times, is drawn in 1 of 27: more often than in 2.5%.

    So with three replicates the interval is the range of the pairs, which holds the population's
    mean in 3 of 4 cases only.
    """
    pairs = [one_layer(np.full(50, v)) for v in (1.0, 2.0, 4.0)]
    e = estimate(pairs, mean)
    assert (e.low[0], e.high[0]) == (1, 4)
    assert e.value[0] == pytest.approx(7 / 3)


def test_bootstrap_one_pair_has_the_spread_of_its_images() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    e = estimate([one_layer(values)], mean, resamples=2000)
    error = values.std() / 20
    assert e.value[0] == pytest.approx(values.mean())
    assert e.high[0] - e.low[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert e.low[0] < values.mean() - error
    assert e.high[0] > values.mean() + error


def test_bootstrap_pairs_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((6, 500))
    alike = [one_layer(1 + x) for x in noise]
    apart = [one_layer(1 + i + x) for i, x in enumerate(noise)]
    width = {
        name: float(np.ptp([e.low, e.high]))
        for name, e in (("alike", estimate(alike, mean)), ("apart", estimate(apart, mean)))
    }
    # 6 numbers 0 … 5: their mean has a standard error of 0.7, the images' is 0.02.
    assert width["apart"] == pytest.approx(2 * 1.96 * np.arange(6).std() / 6**0.5, rel=0.15)
    assert width["alike"] < width["apart"] / 10


def brute_force(values: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """Draw pairs, then each one's images, and average what is not NaN, one by one."""
    rng = np.random.default_rng(12345)
    draws = []
    for _ in range(resamples):
        drawn = []
        for i in rng.integers(len(values), size=len(values)):
            picked = values[i][rng.integers(len(values[i]), size=len(values[i]))]
            picked = [x for x in picked if not np.isnan(x)]
            drawn.append(sum(picked) / len(picked))
        draws.append(sum(drawn) / len(drawn))
    return np.array(draws)


def with_gaps(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    values = [rng.exponential(i + 1, size=40) for i in range(4)]
    for v in values:
        v[rng.random(40) < 0.3] = np.nan
    return values


def test_bootstrap_agrees_with_a_loop_over_what_is_defined() -> None:
    values = with_gaps(0)
    e = estimate([one_layer(v) for v in values], mean, resamples=4000)
    draws = brute_force(values, 4000)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert e.value[0] == pytest.approx(np.mean([np.nanmean(v) for v in values]))
    width = high - low
    assert abs(e.low[0] - low) < 0.06 * width
    assert abs(e.high[0] - high) < 0.06 * width


def test_bootstrap_gaps_are_left_out_not_counted_as_zero() -> None:
    values = np.where(np.random.default_rng(0).random(60) < 0.5, np.nan, 7.0)
    e = estimate([one_layer(values)], mean)
    np.testing.assert_allclose([e.value, e.low, e.high], 7)


def test_bootstrap_nothing_defined_is_nan() -> None:
    nothing = one_layer(np.full(20, np.nan))
    e = estimate([nothing], mean)
    assert np.isnan([e.value, e.low, e.high]).all()
    # Nor can a second pair make up for it: the mean over pairs is not defined.
    e = estimate([nothing, one_layer(np.ones(20))], mean)
    assert np.isnan([e.value, e.low, e.high]).all()


def test_bootstrap_ratio_agrees_with_a_loop() -> None:
    below, above = with_gaps(1), [10 + v for v in with_gaps(2)[:3]]
    e = estimate([one_layer(v) for v in below], mean, [one_layer(v) for v in above], resamples=4000)
    draws = brute_force(above, 4000) / brute_force(below, 4000)[::-1]
    low, high = np.quantile(draws, [0.025, 0.975])
    ratio = np.mean([np.nanmean(v) for v in above]) / np.mean([np.nanmean(v) for v in below])
    assert e.value[0] == pytest.approx(ratio)
    width = high - low
    assert abs(e.low[0] - low) < 0.08 * width
    assert abs(e.high[0] - high) < 0.08 * width


def test_bootstrap_draws_the_same_images_for_all_numbers() -> None:
    """A ratio of two numbers of one image is known better than either."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=60)
    m = one_layer(values, one_minus_cos=3 * values)

    def ratio(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
        return means["one_minus_cos"][..., 0] / means["one_minus_cos_ab"]

    e = estimate([m], ratio)
    np.testing.assert_allclose([e.low, e.high], 3)
    assert np.ptp(np.concatenate([(w := estimate([m], mean)).low, w.high])) > 0.1


def test_bootstrap_layers_and_alphas_keep_their_places() -> None:
    alphas = (0.0, 0.5, 1.0)
    planted = np.arange(6.0).reshape(2, 3, 1)
    m = measurement(layers=["fc1", "fc2"], alphas=alphas, n=30, one_minus_cos=planted)
    for k in range(3):
        e = estimate([m, m], lambda means, a, k=k: means["one_minus_cos"][..., k])  # type: ignore[misc]
        np.testing.assert_allclose([e.value, e.low, e.high], np.tile([k, 3.0 + k], (3, 1)))


def test_bootstrap_resampled_means_are_those_of_whole_samples() -> None:
    """As many images are drawn as there are, so the mean of ones is one."""
    m = measurement(n=17, loss=1.0)
    means = resampled_means(m, 50, seed=3)
    np.testing.assert_allclose(means["loss"], 1)
    assert means["loss"].shape == (50, len(m.alphas))
    assert means["one_minus_cos"].shape == (50, 3, len(m.alphas))
    for name, constant in m.constants.items():
        np.testing.assert_array_equal(means[name], constant[None])


def test_bootstrap_is_a_function_of_its_seed() -> None:
    rng = np.random.default_rng(0)
    pairs = [one_layer(rng.exponential(size=50)) for _ in range(3)]
    first, again, other = (estimate(pairs, mean, seed=s) for s in (5, 5, 6))
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)
    assert first.value == other.value


def test_bootstrap_level() -> None:
    values = np.random.default_rng(0).standard_normal(300)
    wide, narrow = (estimate([one_layer(values)], mean, level=x) for x in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_refuses_no_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        estimate([], mean)
    with pytest.raises(ValueError, match="no pairs"):
        estimate([one_layer(np.ones(3))], mean, [])


# ---- pair by pair -------------------------------------------------------------------------------


def test_compare_draws_the_same_pairs_and_images() -> None:
    """Pairs and images that differ a hundred times as much as the two links of each of them."""
    rng = np.random.default_rng(0)
    here = [rng.normal(10 * i, 10, 300) for i in range(1, 6)]
    there = [h + 0.1 for h in here]
    e = compare([one_layer(h) for h in here], [one_layer(t) for t in there], mean, "difference")
    assert (e.value[0], e.low[0], e.high[0]) == pytest.approx((0.1, 0.1, 0.1))
    twice = [one_layer(2 * h) for h in here]
    e = compare([one_layer(h) for h in here], twice, mean, "ratio")
    assert (e.value[0], e.low[0], e.high[0]) == pytest.approx((2, 2, 2))


def test_compare_is_as_wide_as_the_differences_of_pairs() -> None:
    here = [one_layer(np.full(50, v)) for v in (1.0, 2.0, 3.0)]
    there = [one_layer(np.full(50, v)) for v in (2.0, 5.0, 3.0)]  # 1, 3 and 0 more
    e = compare(here, there, mean, "difference")
    assert e.value[0] == pytest.approx(4 / 3)
    assert (e.low[0], e.high[0]) == (0, 3)
    ratio = compare(here, there, mean, "ratio")
    assert ratio.value[0] == pytest.approx(10 / 6)
    assert (ratio.low[0], ratio.high[0]) == (1, 2.5)
    with pytest.raises(ValueError, match="3 pairs against 2"):
        compare(here, there[:2], mean, "ratio")
