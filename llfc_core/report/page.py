"""The report: one page to look at, made from ``results.json`` alone, with its figures as files.

The page needs nothing from outside: no script runs until it is printed or a button is pressed, and
everything that comes from results is escaped.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llfc_core import claims
from llfc_core.report.benchmarks import Benchmarks
from llfc_core.report.figures import across, figures
from llfc_core.report.plot import COLOURS, alone, scale_words
from llfc_core.report.recorded import Figure, SettingResults
from llfc_core.report.table import blocks, control_word, number, word

SYMBOLS = {
    "holds": "✓",
    "rejected": "✗",
    "finding": "◆",
    "holds, unexpectedly": "!",
    "vacuous": "–",
    "no premise": "–",
    "not run": "·",
}
# In the order of the paper; claims of a user's own come after them.
_ORDER = [
    c.name
    for c in (
        *claims.LMC,
        *claims.LMC_REESTIMATED,
        *claims.LLFC,
        *claims.ADDITIVITY,
        *claims.COMMUTATION,
        *claims.MATCHING,
        claims.STITCHING,
        claims.LEMMA1,
        *claims.LOW_RANK,
    )
]
# Numbers that have a figure or a table of their own.
_SHOWN = ("singular values of ", "error barrier by width", "stitching, test error")


@dataclass(frozen=True)
class Cell:
    """A verdict as it stands in a table."""

    claim: str
    setting: str
    word: str
    verdict: Mapping[str, Any]
    controls: tuple[Mapping[str, Any], ...]
    anchor: str

    @property
    def symbol(self) -> str:
        return SYMBOLS.get(self.word, "?")

    @property
    def kind(self) -> str:
        """The word as a name for style sheets."""
        return self.word.replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class ClaimRows:
    """A claim and what became of it in every setting."""

    name: str
    source: str
    statement: str
    cells: tuple[Cell, ...]
    anchor: str

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Every bound with its reason, and the settings it is for where there are several."""
        found: dict[tuple[str, str], list[str]] = {}
        for cell in self.cells:
            if v := cell.verdict:
                sign = "≤" if v["at_most"] else "≥"
                bound = f"{sign} {v['bound']:.3g} {v['unit']}".strip()
                found.setdefault((bound, v.get("reason", "")), []).append(cell.setting)
        if len(found) == 1:
            return list(found)
        return [(f"{b} ({', '.join(where)})", reason) for (b, reason), where in found.items()]


@dataclass(frozen=True)
class Section:
    """A setting's part of the page."""

    setting: SettingResults
    anchor: str
    counts: Mapping[str, int]
    networks: Sequence[Mapping[str, Any]]
    figures: Sequence[Figure]
    stitching: Mapping[str, Any] | None
    others: Mapping[str, Any]


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``index.html`` and ``figures/`` into a folder; returns the page's path.

    A ``bench.json`` beside it (of pytest-benchmark) is drawn too. The same results give the same
    bytes.

    Raises
    ------
    OSError
        The folder cannot be made or written to.
    """
    settings = settings_of(results)
    sections = [_section(s, results) for s in settings]
    together = across(settings)
    rows = claim_rows(results["verdicts"])
    rows_by_name = {row.name: row for row in rows}
    path = folder / "bench.json"
    benchmarks = Benchmarks.read(path) if path.exists() else None
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for figure in [*together, *(f for s in sections for f in s.figures)]:
        base = folder / "figures" / figure.id
        _write(base.with_name(f"{figure.id}.svg"), alone(figure.svg))
        _write(base.with_name(f"{figure.id}.csv"), table_text(figure))
    page = folder / "index.html"
    text = (
        _environment()
        .get_template("page.html")
        .render(
            results=results,
            run=results.get("run", {}),
            quick=results["scale"] != "paper",
            scale=scale_words(results["scale"])[0],
            claims=rows,
            matrices=[
                ([rows_by_name[name] for name in names], of)
                for names, of in blocks([(r.name, c.setting) for r in rows for c in r.cells])
            ],
            sections=sections,
            across=together,
            benchmarks=benchmarks,
            command=lambda f: command(f.test, f.keyword, results),
            stitching_command=lambda name: command("phenomena/test_stitching.py", name, results),
        )
    )
    _write(page, text)
    return page


def settings_of(results: Mapping[str, Any]) -> list[SettingResults]:
    """Every setting that the results have numbers of, by name."""
    evidence = {s["setting"]: s for s in results["settings"]}
    numbers = results["numbers"]
    return [
        SettingResults(name, results["scale"], evidence.get(name, {}), numbers.get(name, {}))
        for name in sorted(evidence.keys() | numbers.keys())
    ]


def claim_rows(verdicts: Sequence[Mapping[str, Any]]) -> list[ClaimRows]:
    """Claims in the paper's order, each with its settings by name; controls beside the claims."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    controls: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for v in verdicts:
        key = v["claim"], v["setting"]
        if v["control"]:
            controls.setdefault(key, []).append(v)
        else:
            found[key] = v
    names = sorted(
        {claim for claim, _ in found.keys() | controls.keys()},
        key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name),
    )
    rows = []
    for i, name in enumerate(names, 1):
        cells = []
        keys = sorted(k for k in found.keys() | controls.keys() if k[0] == name)
        for j, key in enumerate(keys, 1):
            verdict = found.get(key, {})
            beside = tuple(sorted(controls.get(key, ()), key=lambda c: c["control"]))
            said = word(verdict) if verdict else "not run"
            cells.append(Cell(*key, said, verdict, beside, f"v{i}-{j}"))
        any_of = found.get(keys[0]) or controls[keys[0]][0]
        statement = any_of.get("statement", "")
        rows.append(ClaimRows(name, any_of["source"], statement, tuple(cells), f"claim-{i}"))
    return rows


def command(test: str, keyword: str, results: Mapping[str, Any]) -> str:
    """What makes some numbers again."""
    chosen = ["-k", keyword] if keyword else []
    return shlex.join(["pytest", test, *chosen, *results.get("options", ())])


def table_text(figure: Figure) -> str:
    """A figure's numbers as CSV, each as ``results.json`` has it; what is undefined is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(figure.head)
    writer.writerows(figure.rows)
    return out.getvalue()


def _section(s: SettingResults, results: Mapping[str, Any]) -> Section:
    verdicts = [v for v in results["verdicts"] if v["setting"] == s.id and not v["control"]]
    replicates: dict[int, dict[str, Any]] = {}
    for mode in s.evidence.get("modes", ()):
        row = replicates.setdefault(mode["replicate"], {"replicate": mode["replicate"]})
        row[mode["mode"]] = mode.get("test_error")
    position = [v["setting"] for v in results["settings"]]
    position += sorted(set(results["numbers"]) - set(position))
    return Section(
        s,
        f"setting-{position.index(s.id) + 1}",
        Counter(word(v) for v in verdicts),
        list(replicates.values()),
        figures(s),
        _stitching(s),
        {k: v for k, v in s.numbers.items() if not k.startswith(_SHOWN)},
    )


def _stitching(s: SettingResults) -> dict[str, Any] | None:
    """Tables 1 to 3: rows of errors in per cent, a column a layer, and the paper's own row."""
    linked, apart = s.pairs("linked", "stitched_error"), s.pairs("independent", "stitched_error")
    if not linked:
        return None
    layers = linked[0]["layers"]

    def row(pairs: Sequence[Mapping[str, Any]], way: int) -> tuple[float, float, list[float]]:
        stitched = np.mean([_floats(p["stitched_error"]["mean"])[:, way] for p in pairs], axis=0)
        ends = np.mean([_floats(p["error"]["mean"]) for p in pairs], axis=0)
        return 100 * ends[-1], 100 * ends[0], list(100 * stitched)

    rows = [("B on A’s features", row(linked, 0)), ("A on B’s features", row(linked, 1))]
    if apart:
        rows.append(("independent: D on C’s features", row(apart, 0)))
    cut = [i for i, value in enumerate(rows[0][1][2]) if not math.isnan(value)]
    head = [layers[i] for i in cut]
    table = [(name, a, b, [errors[i] for i in cut]) for name, (a, b, errors) in rows]
    paper = s.evidence.get("paper", {}).get("stitching")
    if paper:
        own = [paper["stitched"].get(layer, math.nan) for layer in head]
        table.append(
            (f"the paper’s {paper['source']}, B on A’s features", paper["a"], paper["b"], own)
        )
    source = paper["source"] if paper else ""
    return {"layers": head, "rows": table, "source": source}


def _floats(value: Any) -> np.ndarray:
    return np.array(value, dtype=float)


def _write(path: Path, text: str) -> None:
    """Write a file whole: a page that was there before stays until the new one is complete."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


# ---- the templates' words ------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    templates = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        control_word=control_word,
        points=lambda v: "–" if v is None or math.isnan(v) else f"{v:.2f}",
        brief=brief,
        symbol=lambda w: SYMBOLS.get(w, "?"),
        sentence=sentence,
        counted=counted,
        drawn=lambda svg: Markup(svg),
    )
    environment.globals.update(style=Markup(style_sheet()), gauge=gauge)
    return environment


def render(template: str, **values: Any) -> str:
    """A template of this package as text; everything in ``values`` is escaped."""
    return _environment().get_template(template).render(**values)


def style_sheet() -> str:
    """The pages' style, with the colours of the drawings."""
    sheet = Path(__file__).with_name("templates").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        "\n".join(f"  --{name}: {row[i]};" for name, row in COLOURS.items()) for i in (1, 2)
    )
    return (
        f":root {{\n{light}\n}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{\n:root {{\n{dark}\n}}\n}}\n{sheet}"
    )


def gauge(verdict: Mapping[str, Any]) -> dict[str, float | bool]:
    """Where a value and its interval lie beside the bound: shares of a scale from 0 to 2 bounds.

    ``above``, ``below``: whether the interval goes on beyond the scale.
    """
    bound = verdict["bound"]

    def share(value: float | None) -> float:
        if value is None or not bound:
            return 1.0
        return round(min(max(value / bound / 2, 0.0), 1.0), 4)

    low, high = share(verdict["low"]), share(verdict["high"])
    return {
        "value": share(verdict["value"]),
        "low": low,
        "high": high,
        "over": high >= 1.0,
        "defined": verdict["value"] is not None,
    }


def brief(value: Any) -> str:
    """Any recorded number or list of numbers in a few words."""
    if isinstance(value, bool) or value is None:
        return "undefined" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):
        if len(value) <= 12:
            return ", ".join(f"{v:.3g}" for v in value)
        return f"{len(value)} numbers from {min(value):.3g} to {max(value):.3g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}…"


def sentence(text: str) -> str:
    """With a capital and a full stop; a formula at the start is left as it is."""
    capital = text[:1].upper() if re.match(r"[a-z]+\b", text) else text[:1]
    return capital + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def counted(word: str, count: int) -> str:
    """``3 findings``."""
    plural = {"holds": "hold", "finding": "findings", "holds, unexpectedly": "hold, unexpectedly"}
    return f"{count} {word if count == 1 else plural.get(word, word)}"
