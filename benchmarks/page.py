"""A readable page of one run: what it took, how near the floor, how it grows.

    python benchmarks/page.py bench.json out.html

One HTML file with its figures inside: bars of time beside the references, bars of the fraction of
copy bandwidth, growth on log axes with fitted exponents, and the table of ratios.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import numpy as np

if __package__:
    from benchmarks.compare import label, ratios, report
else:
    from compare import label, ratios, report

Row = Mapping[str, Any]
KERNEL, REFERENCE, FLOOR = "#2b6cb0", "#c9ced6", "#d97706"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2; font-weight: 600 } h2 { margin-top: 2.5rem }
p.note { color: #4a5568 } svg { max-width: 100%; height: auto }
pre { font-size: 12px; overflow-x: auto; background: #f7fafc; padding: 1rem }
"""


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
    heights = [0.55 + 0.3 * len(rows) for rows in groups.values()]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights
    )
    for axis, (group, rows) in zip(axes[:, 0], groups.items()):
        rows = sorted(rows, key=lambda r: -r["stats"]["min"])
        times = [r["stats"]["min"] for r in rows]
        colours = [KERNEL if "against" in r["extra_info"] else REFERENCE for r in rows]
        drawn = axis.barh([label(r) for r in rows], times, color=colours, height=0.7)
        slowest = times[0]
        notes = [seconds(t) + (f"  ({slowest / t:.3g}×)" if t < slowest else "") for t in times]
        axis.bar_label(drawn, notes, padding=4, fontsize=9)
        axis.set_title(group, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlim(0, slowest * 1.25)
        axis.tick_params(left=False, labelsize=9)
        axis.xaxis.set_visible(False)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    return _svg(figure)


def bars_of_fraction(rows: Sequence[Row]) -> str:
    """How much of the copy bandwidth each kernel that moves bytes comes to."""
    rows = [
        r
        for r in rows
        if "fraction_of_copy_bandwidth" in r["extra_info"] and "eager" not in label(r)
    ][::-1]
    values = [r["extra_info"]["fraction_of_copy_bandwidth"] for r in rows]
    names = [f"{r['group']}: {label(r)}" for r in rows]
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.3 * len(rows)))
    drawn = axis.barh(names, values, color=KERNEL, height=0.7)
    axis.bar_label(drawn, [f"{v:.0%}" for v in values], padding=4, fontsize=9)
    axis.axvline(1, color=FLOOR, linewidth=1.5)
    axis.text(1.01, len(rows) - 0.4, "copy", color=FLOOR, fontsize=9)
    axis.set_xlim(0, max(1.15, *values) * 1.1)
    axis.set_xlabel("bytes that must be moved over time, as a fraction of copy bandwidth")
    axis.tick_params(left=False, labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def growth(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """Time against n, d and K, on log axes, and the exponent of each line."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        info = r["extra_info"]
        if "along" in info:
            lines[info["along"]][info["what"]].append((info["x"], r["stats"]["min"]))
    if not lines:
        return "", {}
    figure, axes = plt.subplots(1, len(lines), figsize=(9, 3.4), squeeze=False, sharey=True)
    exponents = {}
    for axis, (along, kernels) in zip(axes[0], lines.items()):
        for what, points in kernels.items():
            x, y = zip(*sorted(points))
            exponents[f"{what} with {along}"] = slope = exponent(x, y)
            axis.loglog(x, y, "o-", label=f"{what}: exponent {slope:.2f}", markersize=4)
        axis.set_xlabel(along)
        axis.set_xscale("log", base=2)
        axis.legend(fontsize=7, frameon=False)
        axis.grid(True, color="#edf2f7")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds")
    figure.tight_layout()
    return _svg(figure), exponents


def page(run: Mapping[str, Any]) -> str:
    """The whole page from what ``--benchmark-json`` wrote."""
    rows: list[Row] = run["benchmarks"]
    groups: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        if "along" not in r["extra_info"]:
            groups[r["group"] or r["name"]].append(r)
    figure, exponents = growth(rows)
    bandwidths = [r["extra_info"]["copy_bandwidth"] for r in rows if _has(r, "copy_bandwidth")]
    machine = run.get("machine_info", {})
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", ""))
    memory = [
        f"{r['group']}: the peak of live tensors is smaller by {i['memory_ratio']:.3g}× at the "
        f"images counted, {i['memory_ratio_10000']:.3g}× at 10,000."
        for r in rows
        if "memory_ratio_10000" in (i := r["extra_info"])
    ]
    sections = [
        "<h1>What measuring costs</h1>",
        f"<p class=note>{html.escape(cpu)}, {html.escape(run.get('datetime', '')[:10])}. Best time "
        "of each row; compare rows of one panel. Metric kernels: processor time of one thread.",
        f" Copy bandwidth {max(bandwidths) / 1e9:.3g} GB/s." if bandwidths else "",
        " Grey: references and rows without one. Not measured on a GPU yet.</p>",
        "<h2>Time</h2>",
        bars_of_time(groups) if groups else "",
        *(f"<p>{html.escape(line)}</p>" for line in memory),
    ]
    if bandwidths:
        sections += ["<h2>How near the floor</h2>", bars_of_fraction(rows)]
    if figure:
        found = ", ".join(f"{k} {v:.2f}" for k, v in exponents.items())
        sections += ["<h2>Growth</h2>", figure, f"<p>Exponents: {html.escape(found)}.</p>"]
    table = html.escape("\n".join(report(ratios(rows))))
    sections += ["<h2>Ratios beside the committed run</h2>", f"<pre>{table}</pre>"]
    head = f"<meta charset=utf-8><title>What measuring costs</title><style>{STYLE}</style>"
    return (
        f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(sections)}</body></html>"
    )


def _has(row: Row, name: str) -> bool:
    return math.isfinite(row["extra_info"].get(name, math.nan))


def _svg(figure: Any) -> str:
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("html", type=Path, help="where the page goes")
    arguments = parser.parse_args()
    arguments.html.write_text(page(json.loads(arguments.json.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
