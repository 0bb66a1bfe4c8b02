"""The paper's figures redrawn from ``results.json``: those of a setting, and those of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import NullLocator

from llfc_core.report.bars import (
    co_occurrence,
    coef,
    commutativity,
    commutativity_independent,
    cosine,
    stable_rank,
)
from llfc_core.report.distributions import additivity, additivity_by_matching
from llfc_core.report.lines import curves_of_error, curves_of_loss, features, rho, weights, width
from llfc_core.report.plot import Frame, colour, drawing, legend, style, svg
from llfc_core.report.recorded import SIDES, Figure, Rows, SettingResults, array, over_images


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
            mean = over_images(pairs, key)[0]
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
                alpha, error = np.array(p["alphas"]), 100 * array(p["error"]["mean"])
                barrier = float((error - alpha * error[-1] - (1 - alpha) * error[0]).max())
                worst = float(np.nanmax(array(p["one_minus_cos"]["mean"])[:, half]))
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
    for (label, shade, _), name, marker in zip(SIDES, ("linked", "independent"), "o^"):
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
