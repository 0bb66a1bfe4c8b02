"""Figures with bars: LLFC, its co-occurrence with LMC, commutativity, stable rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llfc_core.report.plot import HATCH, colour, layer_ticks, legend
from llfc_core.report.recorded import (
    ALPHAS,
    SIDES,
    Figure,
    Rows,
    SettingResults,
    by_layer,
    done,
    linked_and_apart,
    mean_and_std,
    over_images,
    over_pairs,
    quarters,
    rows_by_alpha,
    rows_by_layer,
)

QUARTERS = dict(zip(ALPHAS, (("α = ¼", "first"), ("α = ½", "second"), ("α = ¾", "third"))))


def cosine(s: SettingResults) -> Figure | None:
    """E[1 − cosine_α] by layer and α, against E[1 − cosine_{A,B}] (Fig. 2, 3, 8–15)."""
    pairs = s.pairs("linked", "one_minus_cos_ab")
    if not pairs:
        return None
    layers = pairs[0]["layers"]
    mean, spread = over_images(pairs, "one_minus_cos")
    ab, ab_spread = over_images(pairs, "one_minus_cos_ab")
    at = quarters(pairs)
    series = [
        Series(QUARTERS[alpha][0], mean[:, k], spread[:, k], QUARTERS[alpha][1], None)
        for alpha, k in at.items()
    ]
    series.append(Series("A against B", ab, ab_spread, "grey", HATCH["ab"]))
    rows = rows_by_alpha(pairs, "one_minus_cos", layers, at)
    rows += [
        ("A,B", *row)
        for row in rows_by_layer(pairs, layers, lambda p: mean_and_std(p, "one_minus_cos_ab"))
    ]
    return _bars(
        s,
        "cosine",
        "1 − cosine by layer",
        layers,
        series,
        "Mean of 1 − cosine between the feature at α on the line from B to A and the interpolation "
        "of A’s and B’s features, for each layer; hatched, 1 − cosine between A’s and B’s own. "
        "LLFC says that the former is near 0 where the latter is not. Error bars: standard "
        "deviation over the images.",
        "phenomena/test_llfc.py",
        ("alpha", "pair", "replicate", "layer", "mean", "std"),
        rows,
    )


def coef(s: SettingResults) -> Figure | None:
    """E[1 − coef_α] by layer and α (Fig. 8–15)."""
    pairs = s.pairs("linked", "coef")
    if not pairs:
        return None
    layers = pairs[0]["layers"]
    mean, spread = over_images(pairs, "coef")
    at = quarters(pairs)
    series = [
        Series(QUARTERS[alpha][0], 1 - mean[:, k], spread[:, k], QUARTERS[alpha][1], None)
        for alpha, k in at.items()
    ]
    return _bars(
        s,
        "coef",
        "1 − coef by layer",
        layers,
        series,
        "Mean of 1 − coef at α, the projection of the feature in between on the interpolated one: "
        "0 where the two are equal in length too. Error bars: standard deviation over the images.",
        "phenomena/test_llfc.py",
        ("alpha", "pair", "replicate", "layer", "mean coef", "std"),
        rows_by_alpha(pairs, "coef", layers, at),
    )


def co_occurrence(s: SettingResults) -> Figure | None:
    """E[1 − cosine_½] of linked and of independent pairs (Fig. 4)."""
    groups = linked_and_apart(s, "one_minus_cos")
    if groups is None:
        return None
    layers = groups[0][0]["layers"]
    series, rows = [], []
    for pairs, (label, name, hatch) in zip(groups, SIDES):
        mean, spread = over_images(pairs, "one_minus_cos")
        half = pairs[0]["alphas"].index(0.5)
        series.append(Series(label, mean[:, half], spread[:, half], name, hatch))
        rows += rows_by_alpha(pairs, "one_minus_cos", layers, (0.5,))
    return _bars(
        s,
        "co-occurrence",
        "1 − cosine at α = ½: linked, independent",
        layers,
        series,
        "Mean of 1 − cosine at α = ½ for the linked pairs beside pairs trained apart, which are "
        "not linearly connected: LLFC comes with LMC. Error bars: standard deviation over the "
        "images.",
        "phenomena/test_llfc.py",
        ("alpha", "pair", "replicate", "layer", "mean", "std"),
        rows,
    )


def commutativity(s: SettingResults) -> Figure | None:
    """Dist_com, Dist_W and Dist_H of linked pairs, by linear map (Fig. 7, 16–18)."""
    pairs = s.pairs("linked", "dist_com")
    if not pairs:
        return None
    maps = pairs[0]["linear"][1:]
    series = [
        Series(label, *over_pairs(pairs, key, slice(1, None)), name, hatch)
        for label, key, name, hatch in (
            ("Dist com", "dist_com", "linked", None),
            ("Dist W", "dist_w", "grey", None),
            ("Dist H", "dist_h", "other", HATCH["other"]),
        )
    ]
    rows = [
        (key, *row)
        for key in ("dist_com", "dist_w", "dist_h", "rho")
        for row in rows_by_layer(
            pairs, pairs[0]["linear"], lambda p, key=key: [(v,) for v in p[key]]
        )
    ]
    return _bars(
        s,
        "commutativity",
        "Commutativity: Dist com, Dist W, Dist H",
        maps,
        series,
        "Normalised distance between the two sides of eq. 8, between the weights, and between the "
        "features that enter the layer, for the linked pairs. The first layer, whose input is the "
        "data, is left out. Error bars: range over the pairs.",
        "phenomena/test_commutativity.py",
        ("number", "pair", "replicate", "layer", "value"),
        rows,
    )


def commutativity_independent(s: SettingResults) -> Figure | None:
    """Dist_com of linked and of independent pairs (Fig. 19)."""
    groups = linked_and_apart(s, "dist_com")
    if groups is None:
        return None
    series = [
        Series(label, *over_pairs(pairs, "dist_com", slice(1, None)), name, hatch)
        for pairs, (label, name, hatch) in zip(groups, SIDES)
    ]
    return _bars(
        s,
        "commutativity-independent",
        "Dist com: linked, independent",
        groups[0][0]["linear"][1:],
        series,
        "Dist com of the linked pairs beside pairs trained apart. Error bars: range over pairs.",
        "phenomena/test_commutativity.py",
        ("pair", "replicate", "layer", "value"),
        [
            row
            for pairs in groups
            for row in rows_by_layer(
                pairs, pairs[0]["linear"], lambda p: [(value,) for value in p["dist_com"]]
            )
        ],
    )


def stable_rank(s: SettingResults) -> Figure | None:
    """The stable rank of every weight matrix over training (Fig. 22)."""
    after, before = s.pairs("training", "stable_rank"), s.pairs("untrained", "stable_rank")
    if not after:
        return None
    maps = after[0]["linear"]
    series = [
        Series("after one epoch", *over_pairs(after, "stable_rank", (..., 1)), "first", None),
        Series("at the end", *over_pairs(after, "stable_rank", (..., 0)), "third", None),
    ]
    if before:
        first = Series(
            "before training", *over_pairs(before, "stable_rank", (..., 0)), "grey", HATCH["ab"]
        )
        series.insert(0, first)
    rows = [
        (when, *row)
        for when, pairs, i in (
            ("before", before, 0),
            ("one epoch", after, 1),
            ("end", after, 0),
        )
        if pairs
        for row in rows_by_layer(pairs, maps, lambda p, i=i: [(v[i],) for v in p["stable_rank"]])
    ]
    return _bars(
        s,
        "stable-rank",
        "Stable rank of the weights over training",
        maps,
        series,
        "‖W‖² in the Frobenius norm over that in the spectral norm, for every weight matrix of A. "
        "Error bars: range over the replicates.",
        "phenomena/test_low_rank.py",
        ("when", "pair", "replicate", "layer", "stable rank"),
        rows,
    )


@dataclass(frozen=True, eq=False)
class Series:
    """A bar a layer: heights ``(L,)`` and what the error bars reach below and above: ``(2, L)``."""

    label: str
    heights: np.ndarray
    reach: np.ndarray
    colour: str
    hatch: str | None


def _bars(
    s: SettingResults,
    kind: str,
    title: str,
    layers: Sequence[str],
    series: Sequence[Series],
    caption: str,
    test: str,
    head: tuple[str, ...],
    rows: Rows,
) -> Figure:
    reach = [
        np.broadcast_to(one.reach, (2, len(layers))) if one.reach.ndim == 1 else one.reach
        for one in series
    ]
    figure, axis = by_layer(s, title, layers, 7.0 * (len(series) + 1))
    width = 0.8 / len(series)
    for i, (one, error) in enumerate(zip(series, reach)):
        axis.bar(
            np.arange(len(layers)) + (i - (len(series) - 1) / 2) * width,
            np.nan_to_num(one.heights),
            width * 0.92,
            label=one.label,
            color=colour("page" if one.hatch else one.colour),
            edgecolor=colour(one.colour),
            linewidth=1,
            hatch=one.hatch,
            yerr=np.nan_to_num(error),
            error_kw={"elinewidth": 0.9, "ecolor": colour("ink"), "capsize": 0},
        )
    lowest = min(float(np.nanmin(one.heights, initial=0.0)) for one in series)
    highest = max(
        float(np.nanmax(one.heights + e[1], initial=0.0)) for one, e in zip(series, reach)
    )
    axis.set_ylim(lowest * 1.15, highest * 1.06 or 1)
    if lowest < 0:
        axis.axhline(0, color=colour("grey"), linewidth=1)
    layer_ticks(axis, layers)
    axis.set_xlim(-0.6, len(layers) - 0.4)
    legend(axis)
    return done(figure, s, kind, title, caption, test, head, rows)
