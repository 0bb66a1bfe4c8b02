"""The table and the figures of docs/commutativity-matching.md, from a run of the suite.

    pytest phenomena/test_commutativity_matching.py --llfc-report llfc-report
    python docs/figures/matchers.py llfc-report/results.json

writes matchers-objective.svg and matchers-barrier.svg beside this file and prints the table in
Markdown: means over pairs, with 95% intervals from resampling pairs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import numpy as np

NAMES = {
    "independent": "none",
    "weight": "weight",
    "activation": "activation",
    "ste": "STE",
    "linked": "commutativity",
}
COLOURS = {
    "weight": "#c9ced6",
    "activation": "#8a94a6",
    "ste": "#d97706",
    "linked": "#2b6cb0",
}
COLUMNS = {
    "objective": "objective",
    "objective, held out": "held out",
    "Dist_com": "Dist_com",
    "rho": "ρ",
    "loss barrier": "loss barrier",
    "error barrier": "error barrier, pp",
    "1 - cos": "max 1 − cos_α",
    "coef at the output": "coef_½, output",
}


# By width, then by depth.
ORDER = ("mlp32", "mlp64", "mlp128", "mlp6x128", "resnet20")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 2.5% and 97.5% quantiles of means of pairs drawn anew."""
    v = np.array(values)
    draws = v[np.random.default_rng(0).integers(len(v), size=(4000, len(v)))].mean(axis=1)
    return float(v.mean()), *(float(q) for q in np.quantile(draws, [0.025, 0.975]))


def table(results: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: a row a network and matching method."""
    lines = [
        f"| network | matching | {' | '.join(COLUMNS.values())} | seconds |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for setting, numbers in results.items():
        for key, name in NAMES.items():
            row = numbers[key]
            cells = []
            for column in COLUMNS:
                mean, low, high = interval(row[column])
                digits = 1 if "error" in column else 2 if "rho" in column else 3
                cells.append(f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})")
            seconds = row["seconds"]
            cells.append(f"{np.mean(seconds):.2g}" if seconds else "")
            lines.append(f"| {setting} | {name} | {' | '.join(cells)} |")
    return lines


def bars(results: Mapping[str, Any], what: str, label: str, path: Path) -> None:
    """Bars by network and method with intervals, and a dot a pair."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "matchers", "font.size": 9})
    settings = list(results)
    figure, axes = plt.subplots(1, len(settings), figsize=(1.9 * len(settings), 2.6))
    for ax, setting in zip(np.atleast_1d(axes), settings, strict=True):
        for i, (key, colour) in enumerate(COLOURS.items()):
            values = results[setting][key][what]
            mean, low, high = interval(values)
            ax.bar(i, mean, color=colour, width=0.8, label=NAMES[key])
            ax.plot([i, i], [low, high], color="#1a202c", lw=1)
            ax.plot([i] * len(values), values, ".", color="#1a202c", ms=3, alpha=0.5)
        ax.set_title(setting, fontsize=9)
        ax.set_xticks([])
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel(label)
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(COLOURS), frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(results_json: str) -> None:
    found = {
        setting.removesuffix("-matchers"): numbers["by matching method"]
        for setting, numbers in json.loads(Path(results_json).read_text())["numbers"].items()
        if "by matching method" in numbers
    }
    results = {name: found[name] for name in ORDER if name in found}
    print("\n".join(table(results)))
    here = Path(__file__).parent
    bars(
        results, "objective, held out", "objective on test images", here / "matchers-objective.svg"
    )
    bars(results, "error barrier", "error barrier, points", here / "matchers-barrier.svg")


if __name__ == "__main__":
    main(sys.argv[1])
