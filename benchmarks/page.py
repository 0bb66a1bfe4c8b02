"""A readable page of one run: what it took, how near the floor, how it grows.

    python benchmarks/page.py bench.json out.html

One HTML file with its figures inside: bars of time beside the references, bars of the fraction of
copy bandwidth, growth on log axes with fitted exponents, and the table of ratios.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llfc_core.report.benchmarks import Benchmarks
from llfc_core.report.page import render

if __package__:
    from benchmarks.compare import ratios, report
else:
    from compare import ratios, report


def page(run: Mapping[str, Any]) -> str:
    """The whole page from what ``--benchmark-json`` wrote."""
    table = "\n".join(report(ratios(run["benchmarks"])))
    return render("benchmarks.html", benchmarks=Benchmarks.of(run), table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("html", type=Path, help="where the page goes")
    arguments = parser.parse_args()
    arguments.html.write_text(page(json.loads(arguments.json.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
