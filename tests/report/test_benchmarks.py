"""Drawings of a benchmark run, on a page of their own and beside the claims."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import page
from llfc_core.report.benchmarks import exponent, label, seconds
from llfc_core.report.page import write_page
from tests.report.planted import results


def row(name: str, group: str, best: float, **info: Any) -> dict[str, Any]:
    return {"name": name, "group": group, "stats": {"min": best}, "extra_info": info}


RUN = {
    "machine_info": {"cpu": {"brand_raw": "a <fast> processor"}},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        row("test_x[ours]", "dots", 0.002, against="theirs", copy_bandwidth=1e10,
            fraction_of_copy_bandwidth=0.5),
        row("test_x[theirs]", "dots", 0.02),
        row("test_n[8]", "growth", 1e-6 * 8**2, along="n", what="kernel", x=8),
        row("test_n[64]", "growth", 1e-6 * 64**2, along="n", what="kernel", x=64),
    ],
}  # fmt: skip


def test_a_page_of_a_run() -> None:
    text = page(RUN)
    assert "a &lt;fast&gt; processor, 2026-01-02." in text
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert {"ours", "theirs", "2 ms  (10×)", "20 ms", "50%"} <= {
        " ".join(x.split(" ")) for x in labels
    }
    assert "Exponents: kernel with n 2.00." in text
    assert "dots: ours against theirs" in text


def test_a_run_beside_the_results_is_on_the_report(tmp_path: Path) -> None:
    given = results(tmp_path, "mlp") | {"settings": [], "numbers": {}}
    path = tmp_path / "bench.json"
    assert "Benchmarks" not in write_page(given, tmp_path).read_text(encoding="utf-8")
    path.write_text(json.dumps(RUN))
    text = write_page(given, tmp_path).read_text(encoding="utf-8")
    assert '<section id="benchmarks">' in text
    assert "benchmarks-time" in text
    for broken in ("{", "[]", "{}", '{"benchmarks": [{}]}'):
        path.write_text(broken)
        assert "Benchmarks" not in write_page(given, tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("time", "told"), [(2.5, "2.5 s"), (0.0312, "31.2 ms"), (4e-6, "4 µs"), (5e-9, "5 ns")]
)
def test_seconds(time: float, told: str) -> None:
    assert seconds(time) == told


def test_exponent_of_a_power() -> None:
    x = [1.0, 10.0, 100.0]
    assert exponent(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)


def test_labels() -> None:
    assert label(row("test_x", "g", 1.0, row="own")) == "own"
    assert label(row("test_x[a-b]", "g", 1.0)) == "a-b"
    assert label(row("test_x", "g", 1.0)) == "test_x"
