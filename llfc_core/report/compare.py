"""Two results side by side: which verdicts changed, and by how much the numbers differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llfc_core.report.table import columns, control_word, number, word

Verdicts = Mapping[tuple[str, str, str], Mapping[str, Any]]
_ROUNDING = 1e-12
_HEADER = ("scale", "replicates", "options", "device", "torch")


@dataclass(frozen=True)
class Change:
    """One claim in one setting, in A and in B; either may be missing."""

    claim: str
    setting: str
    control: str
    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None

    @property
    def words(self) -> tuple[str, str]:
        """The verdicts before and after as the table has them; "not run" where there is none."""
        say = control_word if self.control else word
        before, after = ("not run" if v is None else say(v) for v in (self.a, self.b))
        return before, after

    @property
    def changed(self) -> bool:
        """Whether the verdict is another one; not, if only one of the two has one."""
        return self.a is not None and self.b is not None and self.words[0] != self.words[1]

    @property
    def difference(self) -> float | None:
        """B's value less A's; None unless both are defined."""
        if self.a is None or self.b is None:
            return None
        a, b = self.a["value"], self.b["value"]
        return None if a is None or b is None else b - a

    @property
    def intervals(self) -> str:
        """How the two 95% intervals lie."""
        ends = [(v["low"], v["high"]) for v in (self.a, self.b) if v is not None]
        if len(ends) < 2 or any(end is None for pair in ends for end in pair):
            return ""
        (low_a, high_a), (low_b, high_b) = ends
        if math.isclose(low_a, low_b, abs_tol=_ROUNDING) and math.isclose(
            high_a, high_b, abs_tol=_ROUNDING
        ):
            return "the same"  # sums on another machine differ in their last digits
        return "overlap" if low_a <= high_b and low_b <= high_a else "apart"

    @property
    def name(self) -> str:
        return f"{self.claim} on {self.control}" if self.control else self.claim


@dataclass(frozen=True)
class Comparison:
    """All changes: those of a verdict first, then those whose intervals are apart, then the rest.

    ``notes``: what makes the two hard to compare, another scale for one.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.changed)


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Compare what `read_results` gives of two runs."""
    left, right = _verdicts(a), _verdicts(b)
    changes = [Change(*key, left.get(key), right.get(key)) for key in left.keys() | right.keys()]
    order = {"apart": 0, "overlap": 1, "the same": 2, "": 3}
    changes.sort(
        key=lambda c: (not c.changed, order[c.intervals], c.setting, c.claim, c.control),
    )
    notes = [
        f"{name}: {_plain(a.get(name))} in A, {_plain(b.get(name))} in B"
        for name in _HEADER
        if a.get(name) != b.get(name)
    ]
    return Comparison(tuple(changes), tuple(notes))


def lines(comparison: Comparison) -> list[str]:
    """The comparison as lines of text."""
    table = [("claim", "setting", "A", "B", "B − A", "intervals", "verdict")]
    for c in comparison.changes:
        before, after = c.words
        verdict = f"{before} → {after}" if before != after else before
        change = c.difference
        table.append(
            (
                c.name,
                c.setting,
                _value(c.a),
                _value(c.b),
                "" if change is None else f"{change:+.3g}",
                c.intervals,
                verdict,
            )
        )
    changed = len(comparison.changed)
    head = f"{changed} verdict{'' if changed == 1 else 's'} changed"
    return [head, *comparison.notes, *columns(table)]


def write_comparison(
    a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str], folder: Path
) -> Path:
    """Write the comparison as ``compare.html`` into a folder; returns its path.

    Raises
    ------
    OSError
        The folder cannot be made or written to.
    """
    from llfc_core.report.page import render  # jinja2 is wanted for the page alone

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "compare.html"
    comparison = compare(a, b)
    quick = "paper" not in (a["scale"], b["scale"])
    text = render("compare.html", comparison=comparison, a=a, b=b, names=names, quick=quick)
    page.write_text(text, encoding="utf-8")
    return page


def _verdicts(results: Mapping[str, Any]) -> Verdicts:
    return {(v["claim"], v["setting"], v["control"]): v for v in results["verdicts"]}


def _value(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    interval = f"[{number(verdict['low'])}, {number(verdict['high'])}]"
    return f"{number(verdict['value'])} {verdict['unit']}".strip() + f" {interval}"


def _plain(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list) else str(value)
