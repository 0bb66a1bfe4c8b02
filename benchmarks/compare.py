"""Ratios between rows of one run, which hold on any machine, beside those of the committed run.

    python benchmarks/compare.py bench.json            # against benchmarks/reference.json
    python benchmarks/compare.py bench.json --write    # makes this run the reference

A row whose ``extra_info`` has ``against`` is compared with the row of its group that is named so:
how many times as fast it is. Best times, for whatever disturbs a run makes it longer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llfc_core.report.benchmarks import label

REFERENCE = Path(__file__).with_name("reference.json")
WORSE = 0.6  # of the committed ratio: what is below is marked


def ratios(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``"group: row / other"`` → how many times as fast; and fractions of the copy bandwidth."""
    rows = list(rows)
    times = {(r["group"], label(r)): r["stats"]["min"] for r in rows}
    found = {}
    for r in rows:
        group, name, info = r["group"], label(r), r["extra_info"]
        other = info.get("against")
        if (group, other) in times:
            found[f"{group}: {name} against {other}"] = times[group, other] / r["stats"]["min"]
        if "fraction_of_copy_bandwidth" in info:
            found[f"{group}: {name}, of copy bandwidth"] = info["fraction_of_copy_bandwidth"]
        if "memory_ratio" in info:
            found[f"{group}: {name}, memory"] = info["memory_ratio"]
    return {k: float(f"{v:.3g}") for k, v in found.items()}


def report(found: Mapping[str, float]) -> list[str]:
    """Lines of a table: this run, the committed run; "slower" where the ratio has fallen."""
    committed = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
    width = max(map(len, found), default=0)
    lines = [f"{'':<{width}}  this run  committed"]
    for name, value in found.items():
        before = committed.get(name)
        note = "  slower" if before is not None and value < WORSE * before else ""
        lines.append(
            f"{name:<{width}}  {value:8.3g}  {before if before is not None else '–':>9}{note}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--write", action="store_true", help="make this run the reference")
    arguments = parser.parse_args()
    found = ratios(json.loads(arguments.json.read_text())["benchmarks"])
    print("\n".join(report(found)))
    if arguments.write:
        REFERENCE.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
