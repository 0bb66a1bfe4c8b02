"""Figures of distributions over the images: weak additivity, by layer and by matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from llfc_core.report.plot import HATCH, colour, layer_ticks, legend, svg
from llfc_core.report.recorded import (
    SIDES,
    Figure,
    Pair,
    Rows,
    SettingResults,
    array,
    by_layer,
    done,
    linked_and_apart,
)


def additivity(s: SettingResults) -> Figure | None:
    """Distributions of Dist_σ over the images, by layer (Fig. 5, 6)."""
    groups = linked_and_apart(s, "dist_sigma")
    if groups is None:
        return None
    title = "Weak additivity: distribution of Dist σ"
    layers = groups[0][0]["layers"][:-1]
    figure, axis = by_layer(s, title, layers, 28)
    for side, (pairs, (label, name, hatch)) in enumerate(zip(groups, SIDES)):
        for i in range(len(layers)):
            _half_violin(axis, pairs, i, i, -1 if side == 0 else 1, name, hatch, len(layers))
        axis.bar([0], [0], label=label, **_fill(name, hatch))
    _log_distances(axis, layers)
    legend(axis)
    return done(
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
        keys = tuple(m["key"] for m in s.evidence.get("modes", ()) if m["mode"] in ("a", "c"))
        if keys and linked_and_apart(s, "dist_sigma"):
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
        figure, axis = by_layer(some, title, layers, 14.0 * len(groups), least=640)
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
    ends = [np.log10(np.maximum(array(p["dist_sigma"]["quantiles"][layer]), 1e-6)) for p in pairs]
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


def _common(names: Sequence[str]) -> str:
    """The start that names have in common, at a hyphen."""
    parts = [name.split("-") for name in names]
    shared = []
    for column in zip(*parts):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "-".join(shared) or names[0]
