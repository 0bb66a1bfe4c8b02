"""Intervals from resampling pairs first, then images.

The unit of replication is a training pair: resampling images alone tells only how well one pair
is measured. So a resample draws as many pairs as there are, with replacement, and for each drawn
pair as many images as there are, with replacement.

With few pairs that is what it is: of three, every one is drawn thrice in a resample of 27, so the
95% interval is little more than the pairs' range and covers the mean of all pairs that could have
been trained about three times in four. More replicates are one option away (``--replicates``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from llfc_core.metrics.measurement import Measurement

RESAMPLES = 1000
LEVEL = 0.95

Means = Mapping[str, np.ndarray]
Statistic = Callable[[Means, tuple[float, ...]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value and its percentile interval, per layer: float64 ``(L,)`` each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@lru_cache(maxsize=256)  # every claim on a measurement asks for the same ones
def resampled_means(measurement: Measurement, resamples: int, seed: int) -> Means:
    """Every number of a measurement averaged over images drawn anew ``resamples`` times.

    The arrays are `Measurement.values` with the axis of images gone and one of resamples in
    front, and `Measurement.constants` with an axis of 1 there. The same images are drawn for all
    numbers, so ratios between them are kept.
    """
    rng = np.random.default_rng(seed)
    n = measurement.n
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    means = {}
    for name, values in measurement.values.items():
        rows = values.reshape(-1, n)
        defined = ~np.isnan(rows)
        total = counts @ np.where(defined, rows, 0.0).T
        with np.errstate(invalid="ignore"):
            mean = total / (counts @ defined.astype(np.float64).T)
        means[name] = mean.reshape(resamples, *values.shape[:-1])
    return means | {k: v[None] for k, v in measurement.constants.items()}


def estimate(
    measurements: Sequence[Measurement],
    statistic: Statistic,
    against: Sequence[Measurement] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """The mean of a statistic over pairs, with its interval.

    Parameters
    ----------
    statistic
        Takes `Means` with any leading axis and the values of α; gives ``(…, L)``.
    against
        A second group of pairs: what is estimated is then the ratio of its mean to the first's.
    """
    rng = np.random.default_rng(seed)
    point, draws = _group(measurements, statistic, resamples, seed, rng)
    if against is not None:
        other_point, other_draws = _group(against, statistic, resamples, seed, rng)
        with np.errstate(divide="ignore", invalid="ignore"):
            point, draws = other_point / point, other_draws / draws
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):  # between two infinities there is nothing
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Estimate(point, low, high)


def compare(
    measurements: Sequence[Measurement],
    others: Sequence[Measurement],
    statistic: Statistic,
    by: Literal["ratio", "difference"],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """What a statistic is of the same pairs linked in another way, against what it is here.

    Pair by pair and image by image: every resample draws the same ones of both.

    Parameters
    ----------
    measurements, others
        Entry i of both is of the same modes and images.
    by
        "ratio": the mean of the others over the mean here. "difference": the first minus the
        second.
    """
    if len(measurements) != len(others):
        raise ValueError(f"{len(measurements)} pairs against {len(others)}")
    (here, draws), (there, other_draws) = (
        _group(group, statistic, resamples, seed, np.random.default_rng(seed))
        for group in (measurements, others)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        point = there / here if by == "ratio" else there - here
        draws = other_draws / draws if by == "ratio" else other_draws - draws
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Estimate(point, low, high)


def _group(
    measurements: Sequence[Measurement],
    statistic: Statistic,
    resamples: int,
    seed: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    if not measurements:
        raise ValueError("no pairs to judge")
    point = np.mean([statistic(m.means(), m.alphas)[0] for m in measurements], axis=0)
    # (pairs, resamples, L): each pair under images drawn anew. Pairs share the seed, but each
    # draw below takes resamples of its own from them.
    images = []
    for m in measurements:
        drawn = statistic(resampled_means(m, resamples, seed), m.alphas)
        # A statistic of constants alone has the same value under every resample.
        images.append(np.broadcast_to(drawn, (resamples, *drawn.shape[1:])))
    pairs = len(measurements)
    which = rng.integers(pairs, size=(resamples, pairs))
    draw = rng.integers(resamples, size=(resamples, pairs))
    return point, np.stack(images)[which, draw].mean(axis=1)
