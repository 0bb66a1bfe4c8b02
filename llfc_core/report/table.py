"""The closing table: a row per claim and setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("claim", "setting", "value", "95% interval", "bound", "layer", "controls", "verdict")


def claims_table(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of text from recorded verdicts, those on controls folded into the claims' rows.

    A verdict is ``Verdict.to_dict()`` with ``setting``, ``control`` (empty: the claim itself),
    ``finding`` and ``outcome``. Sorted, so that it does not matter in which order tests ended.
    """
    rows = []
    claims = {(v["setting"], v["claim"]): v for v in verdicts if not v["control"]}
    controls: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for v in verdicts:
        if v["control"]:
            controls.setdefault((v["setting"], v["claim"]), []).append(v)
    for key in sorted(claims.keys() | controls.keys()):
        verdict = claims.get(key)
        checked = sorted(controls.get(key, []), key=lambda c: c["control"])
        checked = [c for c in checked if c["status"] != "not run"]
        beside = ", ".join(
            f"{c['control']} {number(c['value'])} {control_word(c)}" for c in checked
        )
        if verdict is None:
            rows.append((key[1], key[0], "", "", "", "", beside, "not run"))
            continue
        v = verdict
        if v["status"] == "not run":
            why = f"not run: {v['note']}"
            rows.append((v["claim"], v["setting"], "", "", "", "", beside, why))
            continue
        sign = "≤" if v["at_most"] else "≥"
        rows.append(
            (
                v["claim"],
                v["setting"],
                f"{number(v['value'])} {v['unit']}".strip(),
                f"[{number(v['low'])}, {number(v['high'])}]",
                f"{sign} {v['bound']:.3g}",
                v["layer"],
                beside or "none run",
                word(v),
            )
        )
    lines = columns([HEAD, *rows])
    findings = [
        f"finding: {v['claim']} on {v['setting']}: {v['finding']}"
        for _, v in sorted(claims.items())
        if v["finding"] and v["status"] == "rejected"
    ]
    findings += [
        f"finding: {v['claim']} is not rejected on {v['setting']}'s {v['control']} pairs: "
        f"{v['finding']}"
        for _, checked in sorted(controls.items())
        for v in checked
        if v["finding"]
    ]
    return lines + findings


def claims_matrix(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of text with a row a claim and a column a setting, to be seen at one glance."""
    found = {(v["claim"], v["setting"]): v for v in verdicts if not v["control"]}
    lines, told = [], ["= holds, ! rejected, * finding, - vacuous or without its premise"]
    for names, settings in blocks(sorted(found)):
        heads = [f"({i})" for i in range(len(told), len(told) + len(settings))]
        told += [f"{head} {setting}" for head, setting in zip(heads, settings)]
        rows = [("claim", *heads)]
        for name in names:
            cells = [found.get((name, setting)) for setting in settings]
            rows.append((name, *("" if v is None else _cell(v) for v in cells)))
        lines += columns(rows)
    return lines + told


def blocks(judged: Sequence[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """Claims and the settings they were judged in; those that never meet are tables apart.

    Claims in the order given, settings by name.
    """
    found: list[tuple[list[str], set[str]]] = []
    for claim, setting in judged:
        names, settings = [claim], {setting}
        apart = []
        for block in found:
            if claim in block[0] or setting in block[1]:
                names = list(dict.fromkeys([*block[0], *names]))
                settings |= block[1]
            else:
                apart.append(block)
        found = [*apart, (names, settings)]
    order = {claim: i for i, claim in enumerate(dict.fromkeys(claim for claim, _ in judged))}
    return sorted(
        ((sorted(names, key=order.__getitem__), sorted(settings)) for names, settings in found),
        key=lambda block: order[block[0][0]],
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _cell(verdict: Mapping[str, Any]) -> str:
    if verdict["status"] == "not run":
        return ""
    marks = {"holds": "=", "rejected": "!"}
    mark = "*" if word(verdict) == "finding" else marks.get(verdict["status"], "-")
    return f"{number(verdict['value'])} {mark}"


def number(value: float | None) -> str:
    """Three significant digits."""
    return "undefined" if value is None else f"{value:.3g}"


def word(verdict: Mapping[str, Any]) -> str:
    """A recorded verdict in a word or two."""
    if verdict["finding"] and verdict["status"] in ("holds", "rejected"):
        return "holds, unexpectedly" if verdict["status"] == "holds" else "finding"
    return verdict["status"]


def control_word(control: Mapping[str, Any]) -> str:
    """What a claim says of a control; in capitals what it must not say."""
    if control["status"] != "holds":
        return control["status"]
    return "not rejected" if control["finding"] else "PASSES"
