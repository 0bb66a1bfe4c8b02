"""Drawings of what ``pytest benchmarks/ --benchmark-json`` wrote: times, the floor, growth."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llfc_core.report.plot import HATCH, colour, style, svg

Row = Mapping[str, Any]
WIDE = 860
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "os^Dvx"


@dataclass(frozen=True)
class Benchmarks:
    """A run of the benchmarks, drawn: ``(heading, svg, sentence below it)`` each."""

    about: str
    drawings: tuple[tuple[str, str, str], ...]

    @staticmethod
    def read(path: Path) -> Benchmarks | None:
        """From a file; None if it is not what pytest-benchmark writes."""
        try:
            return Benchmarks.of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def of(run: Mapping[str, Any]) -> Benchmarks:
        """From what pytest-benchmark's JSON has; KeyError where it is something else."""
        rows: list[Row] = run["benchmarks"]
        groups: dict[str, list[Row]] = defaultdict(list)
        for r in rows:
            if "along" not in r["extra_info"]:
                groups[r["group"] or r["name"]].append(r)
        bandwidths = [r["extra_info"]["copy_bandwidth"] for r in rows if _has(r, "copy_bandwidth")]
        machine = run.get("machine_info", {})
        cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", ""))
        about = ", ".join(word for word in (cpu, run.get("datetime", "")[:10]) if word) + ". "
        about += "The best time of each row; compare rows of one panel. Hatched: references and "
        about += "rows without one. Metric kernels: processor time of one thread."
        if bandwidths:
            about += f" Copy bandwidth {max(bandwidths) / 1e9:.3g} GB/s."
        memory = [
            f"{r['group']}: the peak of live tensors is smaller by {i['memory_ratio']:.3g}× at the "
            f"images counted, {i['memory_ratio_10000']:.3g}× at 10,000."
            for r in rows
            if "memory_ratio_10000" in (i := r["extra_info"])
        ]
        drawn = []
        with style():
            if groups:
                drawn.append(("Time", bars_of_time(groups), " ".join(memory)))
            if bandwidths:
                drawn.append(("How near the floor", bars_of_fraction(rows), ""))
            figure, exponents = growth(rows)
            if figure:
                found = ", ".join(f"{k} {v:.2f}" for k, v in exponents.items())
                drawn.append(("Growth", figure, f"Exponents: {found}."))
        return Benchmarks(about, tuple(drawn))


def label(row: Row) -> str:
    """What a row is called: its ``extra_info["row"]``, else the test's parameters or name."""
    own = row["extra_info"].get("row")
    in_brackets = re.search(r"\[(.*)\]", row["name"])
    return str(own or (in_brackets[1] if in_brackets else row["name"]))


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y on log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def seconds(t: float) -> str:
    """Three digits, with the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if t >= size:
            return f"{t / size:.3g} {unit}"
    return f"{t * 1e9:.3g} ns"


def bars_of_time(groups: Mapping[str, list[Row]]) -> str:
    """A panel a group, one bar a row, the shortest on top; each panel has a scale of its own."""
    heights = [44 + 24 * len(rows) for rows in groups.values()]
    figure = Figure(figsize=(WIDE / 72, sum(heights) / 72), dpi=72)
    axes = _stack(figure, heights)
    for axis, (group, rows) in zip(axes, groups.items()):
        rows = sorted(rows, key=lambda r: -r["stats"]["min"])
        times = [r["stats"]["min"] for r in rows]
        ours = ["against" in r["extra_info"] for r in rows]
        slowest = times[0]
        notes = [seconds(t) + (f"  ({slowest / t:.3g}×)" if t < slowest else "") for t in times]
        _bars(axis, [label(r) for r in rows], times, ours, notes)
        axis.set_title(group, loc="left", fontsize=12, fontweight="bold")
        axis.set_xlim(0, slowest * 1.3)
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)
    return svg(figure, "benchmarks-time", "Best times by row", "Bars of time, a panel a group.")


def bars_of_fraction(rows: Sequence[Row]) -> str:
    """How much of the copy bandwidth each kernel that moves bytes comes to."""
    rows = [
        r
        for r in rows
        if "fraction_of_copy_bandwidth" in r["extra_info"] and "eager" not in label(r)
    ][::-1]
    values = [r["extra_info"]["fraction_of_copy_bandwidth"] for r in rows]
    height = 90 + 24 * len(rows)
    figure = Figure(figsize=(WIDE / 72, height / 72), dpi=72)
    (axis,) = _stack(figure, [height], below=44)
    names = [f"{r['group']}: {label(r)}" for r in rows]
    _bars(axis, names, values, [True] * len(rows), [f"{v:.0%}" for v in values])
    axis.axvline(1, color=colour("apart"), linewidth=1.5, linestyle=(0, (5, 2)))
    axis.text(1.01, len(rows) - 0.4, "copy", color=colour("apart"), fontsize=11)
    axis.set_xlim(0, max(1.15, *values) * 1.1)
    axis.set_xlabel("bytes that must be moved over time, as a fraction of copy bandwidth")
    what = "Bars of the fraction of copy bandwidth."
    return svg(figure, "benchmarks-floor", "How near the floor", what)


def growth(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """Time against n, d and K, on log axes, and the exponent of each line."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        info = r["extra_info"]
        if "along" in info:
            lines[info["along"]][info["what"]].append((info["x"], r["stats"]["min"]))
    if not lines:
        return "", {}
    figure = Figure(figsize=(WIDE / 72, 330 / 72), dpi=72)
    figure.subplots_adjust(
        left=64 / WIDE, right=1 - 10 / WIDE, bottom=48 / 330, top=1 - 84 / 330, wspace=0.25
    )
    exponents = {}
    first: Axes | None = None
    for i, (along, kernels) in enumerate(lines.items(), 1):
        axis = figure.add_subplot(1, len(lines), i, sharey=first)
        first = first or axis
        for j, (what, points) in enumerate(kernels.items()):
            x, y = zip(*sorted(points))
            exponents[f"{what} with {along}"] = slope = exponent(x, y)
            axis.loglog(
                x,
                y,
                linestyle=DASHES[j % len(DASHES)],
                marker=MARKERS[j % len(MARKERS)],
                color=colour(("linked", "apart", "other", "grey", "third", "second")[j % 6]),
                label=f"{what}: exponent {slope:.2f}",
            )
        axis.set_xlabel(along)
        axis.set_xscale("log", base=2)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1.02), fontsize=10)
    if first is not None:
        first.set_ylabel("seconds")
    what = "Time against n, d and K on logarithmic axes."
    return svg(figure, "benchmarks-growth", "Growth", what), exponents


def _stack(figure: Figure, heights: Sequence[float], below: float = 6) -> list[Axes]:
    """Axes one below the other, of ``heights`` pixels with their titles."""
    tall, top, axes = sum(heights), 0.0, []
    for height in heights:
        bottom = 1 - (top + height - below) / tall
        axes.append(figure.add_axes((250 / WIDE, bottom, 600 / WIDE, (height - below - 28) / tall)))
        top += height
    return axes


def _bars(
    axis: Axes,
    names: Sequence[str],
    values: Sequence[float],
    ours: Sequence[bool],
    notes: Sequence[str],
) -> None:
    drawn = axis.barh(range(len(names)), values, height=0.7)
    for bar, own in zip(drawn, ours):
        bar.set(
            facecolor=colour("linked" if own else "page"),
            edgecolor=colour("linked" if own else "grey"),
            hatch=None if own else HATCH["ab"],
        )
    axis.set_yticks(range(len(names)), names)
    axis.bar_label(drawn, notes, padding=4, fontsize=11)
    axis.tick_params(left=False)
    axis.grid(False)


def _has(row: Row, name: str) -> bool:
    return math.isfinite(row["extra_info"].get(name, math.nan))
