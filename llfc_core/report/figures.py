"""The paper's figures redrawn from ``results.json``, each with the numbers it is drawn from.

A figure's table has a row for every number as recorded, pair by pair; the drawing shows means
over the pairs. Error bars are standard deviations over all images of all pairs, as in the paper, or
where a number belongs to a pair as a whole, its range over the pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import NullLocator

from llfc_core.report.plot import (
    HATCH,
    Frame,
    below_layers,
    colour,
    drawing,
    layer_ticks,
    legend,
    style,
    svg,
)

SMALL = 460  # pixels: what a telephone can show and two or three of which fit side by side
WIDEST = 1300  # of what has many layers
ALPHAS = (0.25, 0.5, 0.75)
_QUARTERS = ("α = ¼", "α = ½", "α = ¾")

Pair = Mapping[str, Any]
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class SettingResults:
    """What ``results.json`` has of one setting; ``evidence`` is empty if no claim was judged."""

    id: str
    scale: str
    evidence: Mapping[str, Any]
    numbers: Mapping[str, Any]

    @property
    def title(self) -> str:
        return self.evidence.get("title", self.id)

    def pairs(self, name: str, of: str = "") -> list[Pair]:
        """The measurements of a kind of pair; with ``of``, unless that number was not taken."""
        found = [p for p in self.evidence.get("pairs", ()) if p["pair"] == name]
        return [p for p in found if not of or np.isfinite(_array(p[of])).any()]

    def paper(self, kind: str) -> str:
        """The paper's figures of this; of the same in another setting, if it has none of this."""
        own = self.evidence.get("paper", {}).get("figures", {}).get(kind)
        return f"{own} of the paper" if own else f"in the manner of {_LIKE[kind]}"


_LIKE = {
    "cosine": "Fig. 2, 3 and 8–15",
    "coef": "Fig. 8–15",
    "co-occurrence": "Fig. 4",
    "additivity": "Fig. 5 and 6",
    "commutativity": "Fig. 7 and 16–18",
    "commutativity-independent": "Fig. 19",
    "weights": "Fig. 20",
    "features": "Fig. 21",
    "stable-rank": "Fig. 22",
}


@dataclass(frozen=True)
class Figure:
    """A drawing and what is said beside it.

    Attributes
    ----------
    id
        Unique on a page; the name of its files.
    setting
        Empty where it shows several.
    source
        Where the paper has it.
    caption
        What is seen, in sentences.
    test, keyword
        The test file behind it, and what ``-k`` picks of it.
    head, rows
        The numbers, as a table.
    """

    id: str
    setting: str
    source: str
    caption: str
    test: str
    keyword: str
    head: tuple[str, ...]
    rows: Rows
    svg: str

    @property
    def width(self) -> float:
        """Of the drawing, in pixels."""
        found = re.search(r'viewBox="0 0 ([\d.]+)', self.svg)
        assert found, "every drawing has a viewBox"
        return float(found[1])

    @property
    def wide(self) -> bool:
        """Whether it takes more room than `SMALL`."""
        return self.width > SMALL


def figures(setting: SettingResults) -> list[Figure]:
    """All figures of a setting that its results have the numbers for."""
    makers = (
        cosine,
        coef,
        co_occurrence,
        curves_of_error,
        curves_of_loss,
        additivity,
        commutativity,
        commutativity_independent,
        rho,
        stable_rank,
        weights,
        features,
        width,
    )
    with style():
        drawn = [maker(setting) for maker in makers]
    return [figure for figure in drawn if figure is not None]


def across(settings: Sequence[SettingResults]) -> list[Figure]:
    """Figures that put settings side by side."""
    with style():
        drawn = [overview(settings), scatter(settings), *additivity_by_matching(settings)]
    return [figure for figure in drawn if figure is not None]


# ---- bars: LLFC, co-occurrence, commutativity, stable rank ---------------------------------------


def cosine(s: SettingResults) -> Figure | None:
    """E[1 − cosine_α] by layer and α, against E[1 − cosine_{A,B}] (Fig. 2, 3, 8–15)."""
    pairs = s.pairs("linked", "one_minus_cos_ab")
    if not pairs:
        return None
    layers = pairs[0]["layers"]
    mean, spread = _over_images(pairs, "one_minus_cos")
    ab, ab_spread = _over_images(pairs, "one_minus_cos_ab")
    at = [pairs[0]["alphas"].index(alpha) for alpha in ALPHAS]
    series = [
        Series(label, mean[:, k], spread[:, k], name, None)
        for label, k, name in zip(_QUARTERS, at, ("first", "second", "third"))
    ]
    series.append(Series("A against B", ab, ab_spread, "grey", HATCH["ab"]))
    rows = _rows(pairs, "one_minus_cos", layers, ALPHAS)
    rows += [
        ("A,B", *row) for row in _values(pairs, layers, lambda p: _spread(p, "one_minus_cos_ab"))
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
    mean, spread = _over_images(pairs, "coef")
    at = [pairs[0]["alphas"].index(alpha) for alpha in ALPHAS]
    series = [
        Series(label, 1 - mean[:, k], spread[:, k], name, None)
        for label, k, name in zip(_QUARTERS, at, ("first", "second", "third"))
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
        _rows(pairs, "coef", layers, ALPHAS),
    )


def co_occurrence(s: SettingResults) -> Figure | None:
    """E[1 − cosine_½] of linked and of independent pairs (Fig. 4)."""
    groups = _linked_and_apart(s, "one_minus_cos")
    if groups is None:
        return None
    layers = groups[0][0]["layers"]
    series, rows = [], []
    for pairs, (label, name, hatch) in zip(groups, _SIDES):
        mean, spread = _over_images(pairs, "one_minus_cos")
        half = pairs[0]["alphas"].index(0.5)
        series.append(Series(label, mean[:, half], spread[:, half], name, hatch))
        rows += _rows(pairs, "one_minus_cos", layers, (0.5,))
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
        Series(label, *_over_pairs(pairs, key, slice(1, None)), name, hatch)
        for label, key, name, hatch in (
            ("Dist com", "dist_com", "linked", None),
            ("Dist W", "dist_w", "grey", None),
            ("Dist H", "dist_h", "other", HATCH["other"]),
        )
    ]
    rows = [
        (key, *row)
        for key in ("dist_com", "dist_w", "dist_h", "rho")
        for row in _values(pairs, pairs[0]["linear"], lambda p, key=key: [(v,) for v in p[key]])
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
    groups = _linked_and_apart(s, "dist_com")
    if groups is None:
        return None
    series = [
        Series(label, *_over_pairs(pairs, "dist_com", slice(1, None)), name, hatch)
        for pairs, (label, name, hatch) in zip(groups, _SIDES)
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
            for row in _values(
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
        Series("after one epoch", *_over_pairs(after, "stable_rank", (..., 1)), "first", None),
        Series("at the end", *_over_pairs(after, "stable_rank", (..., 0)), "third", None),
    ]
    if before:
        first = Series(
            "before training", *_over_pairs(before, "stable_rank", (..., 0)), "grey", HATCH["ab"]
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
        for row in _values(pairs, maps, lambda p, i=i: [(v[i],) for v in p["stable_rank"]])
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
    figure, axis = _by_layer(s, title, layers, 7.0 * (len(series) + 1))
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
    return _done(figure, s, kind, title, caption, test, head, rows)


# ---- distributions -------------------------------------------------------------------------------


def additivity(s: SettingResults) -> Figure | None:
    """Distributions of Dist_σ over the images, by layer (Fig. 5, 6)."""
    groups = _linked_and_apart(s, "dist_sigma")
    if groups is None:
        return None
    title = "Weak additivity: distribution of Dist σ"
    layers = groups[0][0]["layers"][:-1]
    figure, axis = _by_layer(s, title, layers, 28)
    for side, (pairs, (label, name, hatch)) in enumerate(zip(groups, _SIDES)):
        for i in range(len(layers)):
            _half_violin(axis, pairs, i, i, -1 if side == 0 else 1, name, hatch, len(layers))
        axis.bar([0], [0], label=label, **_fill(name, hatch))
    _log_distances(axis, layers)
    legend(axis)
    return _done(
        figure,
        s,
        "additivity",
        title,
        "How Dist σ is distributed over the images, for the linked pairs (left halves) and pairs "
        "trained apart (right halves); a bar marks the median. Dist σ is the normalised distance "
        "of the two sides of Definition 3 at the worst α of all of [0, 1]. Logarithmic scale.",
        "phenomena/test_weak_additivity.py",
        ("pair", "replicate", "layer", "quantile", "Dist σ"),
        [row for pairs in groups for row in _quantile_rows(pairs, layers)],
    )


def additivity_by_matching(settings: Sequence[SettingResults]) -> list[Figure]:
    """Fig. 6: the same two modes, unmatched and matched in several ways."""
    found = []
    by_modes: dict[tuple[str, ...], list[SettingResults]] = {}
    for s in settings:
        keys = tuple(m["key"] for m in s.evidence.get("modes", ()) if m["mode"] in ("c", "d"))
        if keys and _linked_and_apart(s, "dist_sigma"):
            by_modes.setdefault(keys, []).append(s)
    for i, shared in enumerate(g for g in by_modes.values() if len(g) > 1):
        layers = shared[0].pairs("linked")[0]["layers"][:-1]
        title = f"Weak additivity by matching: {_common([s.id for s in shared])}"
        groups: list[tuple[str, list[Pair], str, str | None]]
        groups = [("unmatched", shared[0].pairs("independent"), "apart", HATCH["apart"])]
        fills = (("linked", None), ("other", HATCH["other"]), ("grey", None), ("third", "xxxx"))
        for s, (name, hatch) in zip(shared, fills):
            groups.append((s.pairs("linked")[0]["link"], s.pairs("linked"), name, hatch))
        some = SettingResults("", shared[0].scale, {}, {})
        figure, axis = _by_layer(some, title, layers, 14.0 * len(groups), least=640)
        step = 0.84 / len(groups)
        for g, (label, pairs, name, hatch) in enumerate(groups):
            for layer in range(len(layers)):
                x = layer + (g - (len(groups) - 1) / 2) * step
                _half_violin(axis, pairs, layer, x, 0, name, hatch, len(layers), step)
            axis.bar([0], [0], label=label, **_fill(name, hatch))
        _log_distances(axis, layers)
        legend(axis)
        rows = [
            (label, *row) for label, pairs, _, _ in groups for row in _quantile_rows(pairs, layers)
        ]
        ident = f"across-additivity-{i + 1}"
        caption = (
            "How Dist σ is distributed over the images for the same two modes as they were trained "
            "and after matching in several ways; a bar marks the median. Logarithmic scale."
        )
        found.append(
            Figure(
                ident,
                "",
                "Fig. 6 of the paper",
                caption,
                "phenomena/test_weak_additivity.py",
                " or ".join(s.id for s in shared),
                ("link", "pair", "replicate", "layer", "quantile", "Dist σ"),
                rows,
                svg(figure, ident, title, caption),
            )
        )
    return found


def _half_violin(
    axis: Axes,
    pairs: Sequence[Pair],
    layer: int,
    x: float,
    side: int,
    name: str,
    hatch: str | None,
    layers: int,
    room: float = 0.84,
) -> None:
    """A distribution at ``x``, to the left (−1), to the right (1), or to both sides (0)."""
    ends = [np.log10(np.maximum(_array(p["dist_sigma"]["quantiles"][layer]), 1e-6)) for p in pairs]
    ends = [e for e in ends if np.isfinite(e).all()]
    if not ends:
        return
    at = pairs[0]["dist_sigma"]["at"]
    low, high = min(e[0] for e in ends), max(e[-1] for e in ends)
    grid = np.linspace(low - 1e-3, high + 1e-3, 49 if layers <= 8 else 25)
    share = np.mean([np.interp(grid, e, at, left=0, right=1) for e in ends], axis=0)
    density = np.convolve(np.gradient(share), [0.25, 0.5, 0.25], mode="same")
    wide = density / density.max() * room / 2 * 0.94
    left = x - wide if side <= 0 else np.full_like(wide, x)
    right = x + wide if side >= 0 else np.full_like(wide, x)
    axis.fill_betweenx(10**grid, left, right, **_fill(name, hatch))
    median = np.interp(0.5, share, grid)
    reach = np.interp(median, grid, wide)
    axis.plot(
        [x - reach * (side <= 0), x + reach * (side >= 0)],
        [10**median] * 2,
        color=colour("ink"),
        linewidth=1.6,
    )


def _fill(name: str, hatch: str | None) -> dict[str, Any]:
    return {
        "facecolor": colour("page" if hatch else name),
        "edgecolor": colour(name),
        "linewidth": 1,
        "hatch": hatch,
    }


def _log_distances(axis: Axes, layers: Sequence[str]) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    layer_ticks(axis, layers)
    axis.set_xlim(-0.6, len(layers) - 0.4)


def _quantile_rows(pairs: Sequence[Pair], layers: Sequence[str]) -> Rows:
    return [
        (p["pair"], p["replicate"], layer, q, value)
        for p in pairs
        for layer, values in zip(layers, p["dist_sigma"]["quantiles"])
        for q, value in zip(p["dist_sigma"]["at"], values)
    ]


# ---- lines ---------------------------------------------------------------------------------------


def curves_of_error(s: SettingResults) -> Figure | None:
    """The test error from B to A (Definition 1), by both BatchNorm policies."""
    return _curves(s, "error", 100.0, "Test error from B to A, per cent")


def curves_of_loss(s: SettingResults) -> Figure | None:
    """The test loss from B to A (Definition 1), by both BatchNorm policies."""
    return _curves(s, "loss", 1.0, "Test loss from B to A, nats")


_CURVES = (
    ("linked", "linked", "linked", "-", "o"),
    ("re-estimated", "linked, statistics re-estimated", "linked", (0, (4, 2)), "s"),
    ("independent", "independent", "apart", (0, (1, 1.2)), "^"),
    ("independent re-estimated", "independent, re-estimated", "apart", (0, (5, 1.5, 1, 1.5)), "v"),
)


def _curves(s: SettingResults, key: str, unit: float, title: str) -> Figure | None:
    drawn = [(row, pairs) for row in _CURVES if (pairs := s.pairs(row[0], key))]
    if not drawn:
        return None
    figure, (axis,) = drawing(_frame(s, title), SMALL, 320 if len(drawn) > 2 else 300, below=40)
    if len(drawn) > 2:
        figure.subplots_adjust(top=1 - 88 / 320)
    rows: Rows = []
    for (name, label, shade, dash, marker), pairs in drawn:
        alphas = pairs[0]["alphas"]
        curves = unit * np.array([_array(p[key]["mean"]) for p in pairs])
        for curve in curves if len(curves) > 1 else ():
            axis.plot(alphas, curve, color=colour(shade), linewidth=0.8, alpha=0.35)
        axis.plot(
            alphas,
            curves.mean(axis=0),
            color=colour(shade),
            linestyle=dash,
            marker=marker,
            label=label,
            markerfacecolor=colour(shade if marker in "os" else "page"),
        )
        rows += [
            (name, p["replicate"], alpha, mean, std)
            for p in pairs
            for alpha, mean, std in zip(alphas, p[key]["mean"], p[key]["std"])
        ]
    axis.set_ylim(bottom=0)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0: B", "¼", "½", "¾", "1: A"])
    axis.set_xlabel("α")
    legend(axis, columns=2)
    return _done(
        figure,
        s,
        key,
        title,
        "Along the line from B to A; means over the pairs, and faintly each pair. LMC says that "
        "the linked pairs’ curve is nearly flat. Where there is BatchNorm, its statistics are "
        "interpolated as in the paper’s code, or re-estimated on training data at every α.",
        "phenomena/test_lmc.py",
        ("pair", "replicate", "alpha", "mean", "std"),
        rows,
        source="Definition 1",
    )


def rho(s: SettingResults) -> Figure | None:
    """ρ = 4 Dist_com / (Dist_W Dist_H), which takes away what closeness alone explains."""
    groups = _linked_and_apart(s, "rho")
    if groups is None:
        return None
    maps = groups[0][0]["linear"][1:]
    title = "ρ = 4 Dist com / (Dist W · Dist H)"
    figure, axis = _by_layer(s, title, maps, 20)
    for pairs, (label, name, _), marker in zip(groups, _SIDES, "o^"):
        mean, reach = _over_pairs(pairs, "rho", slice(1, None))
        axis.errorbar(
            range(len(maps)),
            mean,
            reach,
            color=colour(name),
            marker=marker,
            linestyle="-" if marker == "o" else (0, (1, 1.2)),
            markerfacecolor=colour(name if marker == "o" else "page"),
            elinewidth=0.9,
            label=label,
        )
    axis.axhline(
        1, color=colour("muted"), linewidth=1, linestyle=(0, (6, 3)), label="without structure"
    )
    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.3), max(high, 3))
    axis.set_yticks([t for t in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= t <= high])
    layer_ticks(axis, maps)
    axis.set_xlim(-0.6, len(maps) - 0.4)
    legend(axis)
    return _done(
        figure,
        s,
        "rho",
        title,
        "Whether the modes commute better than their closeness alone explains: 1 for small "
        "differences without structure, about 2 for unrelated modes. Bars: range over the pairs.",
        "phenomena/test_commutativity.py",
        ("pair", "replicate", "layer", "value"),
        [
            row
            for pairs in groups
            for row in _values(pairs, pairs[0]["linear"], lambda p: [(v,) for v in p["rho"]])
        ],
        source="not in the paper",
    )


_LINES: tuple[tuple[str, Any, str], ...] = (
    ("first", "-", "o"),
    ("second", (0, (5, 2)), "s"),
    ("third", (0, (1, 1.2)), "D"),
    ("apart", "-", "^"),
    ("other", (0, (5, 2)), "v"),
    ("grey", (0, (5, 1.5, 1, 1.5)), "x"),
)


def weights(s: SettingResults) -> Figure | None:
    """Singular values of weight matrices (Fig. 20)."""
    return _spectra(s, "weights", "W", "weight matrices")


def features(s: SettingResults) -> Figure | None:
    """Singular values of features over the test set (Fig. 21)."""
    return _spectra(s, "features", "H", "post-activations over the test set")


def _spectra(s: SettingResults, kind: str, letter: str, of: str) -> Figure | None:
    spectra = s.numbers.get(f"singular values of {letter}, mode A")
    if not spectra:
        return None
    names = _in_order(list(spectra), s, "linear" if letter == "W" else "layers")
    some = [names[i] for i in sorted({*np.linspace(0, len(names) - 1, 6).round().astype(int)})]
    title = f"Singular values of {letter}"
    figure, (axis,) = drawing(_frame(s, title), SMALL, 330, below=40)
    figure.subplots_adjust(top=1 - 88 / 330)
    for name, (shade, dash, marker) in zip(some, _LINES):
        values = np.array(spectra[name], dtype=float)
        share = np.arange(1, len(values) + 1) / len(values)
        # No more points than can be seen.
        few = np.unique(np.linspace(0, len(values) - 1, min(len(values), 80)).round().astype(int))
        axis.plot(
            share[few],
            np.maximum(values[few] / values[0], 1e-4),
            color=colour(shade),
            linestyle=dash,
            marker=marker,
            markersize=4,
            markevery=max(1, len(few) // 8),
            label=name.removesuffix(".weight"),
        )
    axis.set_yscale("log")
    axis.set_ylim(8e-4, 1.3)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.set_xlim(0, 1.01)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.set_xlabel("share of the singular values, largest first")
    legend(axis, columns=3 if len(some) > 4 else 4)
    fewer = "" if len(some) == len(names) else f" {len(some)} of {len(names)} layers are drawn."
    return _done(
        figure,
        s,
        kind,
        title,
        f"Singular values of the {of} of mode A (first replicate), over the largest, in descending "
        f"order. Logarithmic scale.{fewer}",
        "phenomena/test_low_rank_spectra.py",
        ("layer", "i", "singular value"),
        [(name, i, value) for name in names for i, value in enumerate(spectra[name], 1)],
    )


def width(s: SettingResults) -> Figure | None:
    """The error barrier of matched pairs by the network's width."""
    barriers = s.numbers.get("error barrier by width, percentage points")
    if not barriers:
        return None
    title = "Error barrier by width, percentage points"
    figure, (axis,) = drawing(_frame(s, title), SMALL, 280)
    names = list(barriers)
    # results.json sorts by name; the numbers in the names are the widths
    names.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    means = [float(np.mean(barriers[name])) for name in names]
    axis.plot(range(len(names)), means, color=colour("linked"), marker="o", label="mean")
    for i, name in enumerate(names):
        axis.plot(
            [i] * len(barriers[name]),
            barriers[name],
            linestyle="none",
            marker="_",
            markersize=14,
            color=colour("ink"),
            label="" if i else "each pair",
        )
        axis.annotate(
            f"{means[i]:.3g}", (i, means[i]), (12, 4), textcoords="offset points", fontsize=11
        )
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylim(bottom=0)
    legend(axis)
    return _done(
        figure,
        s,
        "width",
        title,
        "The largest rise of the test error over the chord between A and B, for the same recipe at "
        "several widths of the network (in brackets).",
        "phenomena/test_width.py",
        ("network", "pair", "barrier"),
        [(name, i, value) for name in names for i, value in enumerate(barriers[name])],
        source="App. B.1.2",
    )


# ---- several settings ----------------------------------------------------------------------------


def overview(settings: Sequence[SettingResults]) -> Figure | None:
    """1 − cosine_½ of linked and independent pairs, and 1 − cosine_{A,B}, a panel a setting."""
    shown = [s for s in settings if s.pairs("linked", "one_minus_cos_ab")]
    if not shown:
        return None
    columns = min(len(shown), 3)
    rows_of = -(-len(shown) // columns)
    title = "The network halfway between A and B: 1 − cosine, first layer to output"
    frame = Frame(title, shown[0].scale, "means over pairs and test images")
    wide = 64 + 330 * columns if columns > 1 else 640
    height = 110 + 196 * rows_of
    figure, axes = drawing(frame, wide, height, 34, columns, rows_of)
    table: Rows = []
    for axis, s in zip(axes, shown):
        linked, apart = s.pairs("linked"), s.pairs("independent", "one_minus_cos")
        layers = linked[0]["layers"]
        half = linked[0]["alphas"].index(0.5)
        lines = [
            ("linked pair, halfway", linked, "one_minus_cos", "linked", "-", "o"),
            ("independent pair, halfway", apart, "one_minus_cos", "apart", (0, (1, 1.2)), "^"),
            ("linked pair, A against B", linked, "one_minus_cos_ab", "grey", (0, (5, 2)), "s"),
        ]
        for label, pairs, key, shade, dash, marker in lines:
            if not pairs:
                continue
            mean = _over_images(pairs, key)[0]
            axis.plot(
                range(len(layers)),
                mean if mean.ndim == 1 else mean[:, half],
                color=colour(shade),
                linestyle=dash,
                marker=marker,
                markersize=5 if len(layers) <= 20 else 3,
                markerfacecolor=colour("page" if marker == "^" else shade),
                label=label,
                zorder=3 if shade == "linked" else 2,
            )
            for p in pairs:
                for layer, values in zip(layers, p[key]["mean"]):
                    value = values if mean.ndim == 1 else values[half]
                    table.append((s.id, label, p["replicate"], layer, value))
        axis.set_title(s.id, loc="left", fontsize=12, pad=8)
        axis.set_ylim(bottom=0)
        ends = [0, len(layers) - 1] if len(layers) > 6 else range(len(layers))
        axis.set_xticks(ends, [layers[i] for i in ends])
        axis.set_xlim(-0.4, len(layers) - 0.6)
    for axis in axes[len(shown) :]:
        axis.remove()
    legend(axes[0])
    caption = (
        "For each layer, from the first to the output: how far the feature of the network halfway "
        "between A and B is from halfway between their features, for the linked pairs and for "
        "pairs trained apart; dashed, how far A’s and B’s features are from each other."
    )
    return Figure(
        "llfc",
        "",
        "Fig. 2, 3 and 4 of the paper",
        caption,
        "phenomena/test_llfc.py",
        " or ".join(s.id for s in shown) if len(shown) <= 3 else "",
        ("setting", "line", "replicate", "layer", "mean"),
        table,
        svg(figure, "llfc", title, caption),
    )


def scatter(settings: Sequence[SettingResults]) -> Figure | None:
    """Every pair by its loss barrier and its worst 1 − cosine_½: LLFC co-occurs with LMC."""
    points: dict[str, list[tuple[str, int, float, float]]] = {}
    for s in settings:
        for name in ("linked", "independent"):
            for p in s.pairs(name, "one_minus_cos"):
                half = p["alphas"].index(0.5)
                alpha, error = np.array(p["alphas"]), 100 * _array(p["error"]["mean"])
                barrier = float((error - alpha * error[-1] - (1 - alpha) * error[0]).max())
                worst = float(np.nanmax(_array(p["one_minus_cos"]["mean"])[:, half]))
                points.setdefault(name, []).append((s.id, p["replicate"], barrier, worst))
    if len(points) < 2:
        return None
    title = "LLFC co-occurs with LMC: every pair"
    frame = Frame(
        title,
        settings[0].scale,
        ", ".join(s.id for s in settings) if len(settings) < 4 else f"{len(settings)} settings",
    )
    figure, (axis,) = drawing(frame, 640, 360, below=40)
    for (label, shade, _), name, marker in zip(_SIDES, ("linked", "independent"), "o^"):
        axis.plot(
            [x for _, _, x, _ in points[name]],
            [y for _, _, _, y in points[name]],
            linestyle="none",
            marker=marker,
            markersize=7,
            color=colour(shade),
            markerfacecolor=colour(shade if marker == "o" else "page"),
            alpha=0.85,
            label=f"{label} ({len(points[name])} pairs)",
        )
    axis.set_xscale("symlog", linthresh=1)
    ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100]
    highest = max(x for rows in points.values() for _, _, x, _ in rows)
    axis.set_xticks([t for t in ticks if t <= highest * 1.5 + 1])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.set_xlim(-0.1, highest * 1.25 + 0.2)
    axis.set_xlabel("error barrier, percentage points (linear up to 1, then logarithmic)")
    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.grid(True, axis="x")
    legend(axis)
    caption = (
        "A mark a pair: across, its error barrier; upwards, 1 − cosine at α = ½ in the layer where "
        "it is largest. Linked pairs have neither, pairs trained apart have both."
    )
    return Figure(
        "across-co-occurrence",
        "",
        "the statement of Fig. 4",
        caption,
        "phenomena/test_llfc.py",
        "",
        ("pair", "setting", "replicate", "error barrier", "1 - cosine at 1/2, worst layer"),
        [(name, *row) for name, rows in points.items() for row in rows],
        svg(figure, "across-co-occurrence", title, caption),
    )


# ---- what they share -----------------------------------------------------------------------------

_SIDES = (("linked", "linked", None), ("independent", "apart", HATCH["apart"]))


def _linked_and_apart(s: SettingResults, of: str) -> tuple[list[Pair], list[Pair]] | None:
    linked, apart = s.pairs("linked", of), s.pairs("independent", of)
    return (linked, apart) if linked and apart else None


def _by_layer(
    s: SettingResults, title: str, layers: Sequence[str], each: float, least: float = SMALL
) -> tuple[Drawing, Axes]:
    """A drawing with ``each`` pixels a layer if they are many, and as it fits if they are more."""
    below = below_layers(layers)
    room = min(len(layers) * each, WIDEST - 62)
    wide = least if room <= 1.25 * (least - 62) else 62 + room
    figure, (axis,) = drawing(_frame(s, title), wide, 270 + below, below)
    return figure, axis


def _frame(s: SettingResults, title: str) -> Frame:
    linked = s.pairs("linked")
    counts = f" · {len(linked)} pairs · {linked[0]['images']} images" if linked else ""
    return Frame(title, s.scale, s.id + counts)


def _done(
    figure: Drawing,
    s: SettingResults,
    kind: str,
    title: str,
    caption: str,
    test: str,
    head: tuple[str, ...],
    rows: Rows,
    source: str = "",
) -> Figure:
    ident = f"{_slug(s.id)}-{kind}"
    what = f"{s.title}, {s.scale} scale. {caption}"
    drawn = svg(figure, ident, f"{title}, {s.id}", what)
    found = source or s.paper(kind)
    return Figure(ident, s.id, found, caption, test, s.id, head, rows, drawn)


def _slug(name: str) -> str:
    """A name for files and ids, whatever a setting is called, and no other setting's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _array(value: Any) -> np.ndarray:
    """float64 of nested lists, NaN for None."""
    if isinstance(value, Mapping):
        value = value["mean"]
    return np.array(value, dtype=float)


def _spread(p: Pair, key: str) -> list[tuple[Any, Any]]:
    return list(zip(p[key]["mean"], p[key]["std"]))


def _over_images(pairs: Sequence[Pair], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the images of all pairs."""
    means = np.array([_array(p[key]) for p in pairs])
    within = np.array([np.array(p[key]["std"], dtype=float) for p in pairs])
    return means.mean(axis=0), np.sqrt((within**2).mean(axis=0) + means.var(axis=0))


def _over_pairs(pairs: Sequence[Pair], key: str, which: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over pairs, and how far they reach below and above it: ``(2, …)``."""
    values = np.array([_array(p[key])[which] for p in pairs])
    mean = values.mean(axis=0)
    return mean, np.stack([mean - values.min(axis=0), values.max(axis=0) - mean])


def _rows(pairs: Sequence[Pair], key: str, layers: Sequence[str], alphas: Iterable[float]) -> Rows:
    """(α, pair, replicate, layer, mean, std), the numbers as they are recorded."""
    return [
        (alpha, *row)
        for alpha in alphas
        for row in _values(
            pairs,
            layers,
            lambda p, alpha=alpha: [
                (mean[p["alphas"].index(alpha)], std[p["alphas"].index(alpha)])
                for mean, std in _spread(p, key)
            ],
        )
    ]


def _values(pairs: Sequence[Pair], layers: Sequence[str], of: Any) -> Rows:
    """(pair, replicate, layer, *numbers) from a function of a pair that gives those by layer."""
    return [
        (p["pair"], p["replicate"], layer, *numbers)
        for p in pairs
        for layer, numbers in zip(layers, of(p))
    ]


def _in_order(names: list[str], s: SettingResults, of: str) -> list[str]:
    """In the order of execution where the pairs tell it; results.json sorts by name."""
    pairs = s.pairs("linked")
    order = {name: i for i, name in enumerate(pairs[0][of])} if pairs else {}
    last = len(order)
    return sorted(names, key=lambda name: (order.get(name.removesuffix(".weight"), last), name))


def _common(names: Sequence[str]) -> str:
    """The start that names have in common, at a hyphen."""
    parts = [name.split("-") for name in names]
    shared = []
    for column in zip(*parts):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "-".join(shared) or names[0]
