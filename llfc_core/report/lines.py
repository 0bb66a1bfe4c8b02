"""Figures with lines: the way from B to A, ρ, singular values, width."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from llfc_core.report.plot import colour, drawing, layer_ticks, legend
from llfc_core.report.recorded import (
    SIDES,
    SMALL,
    Figure,
    Rows,
    SettingResults,
    array,
    by_layer,
    done,
    frame_of,
    in_order,
    linked_and_apart,
    over_pairs,
    rows_by_layer,
)


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
    figure, (axis,) = drawing(frame_of(s, title), SMALL, 320 if len(drawn) > 2 else 300, below=40)
    if len(drawn) > 2:
        figure.subplots_adjust(top=1 - 88 / 320)
    rows: Rows = []
    for (name, label, shade, dash, marker), pairs in drawn:
        alphas = pairs[0]["alphas"]
        curves = unit * np.array([array(p[key]["mean"]) for p in pairs])
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
    return done(
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
    groups = linked_and_apart(s, "rho")
    if groups is None:
        return None
    maps = groups[0][0]["linear"][1:]
    title = "ρ = 4 Dist com / (Dist W · Dist H)"
    figure, axis = by_layer(s, title, maps, 20)
    for pairs, (label, name, _), marker in zip(groups, SIDES, "o^"):
        mean, reach = over_pairs(pairs, "rho", slice(1, None))
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
    return done(
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
            for row in rows_by_layer(pairs, pairs[0]["linear"], lambda p: [(v,) for v in p["rho"]])
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
    names = in_order(list(spectra), s, "linear" if letter == "W" else "layers")
    some = [names[i] for i in sorted({*np.linspace(0, len(names) - 1, 6).round().astype(int)})]
    title = f"Singular values of {letter}"
    figure, (axis,) = drawing(frame_of(s, title), SMALL, 330, below=40)
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
    return done(
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
    figure, (axis,) = drawing(frame_of(s, title), SMALL, 280)
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
    return done(
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
