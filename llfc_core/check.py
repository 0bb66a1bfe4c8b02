"""The paper's claims on a user's own networks, without pytest."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from llfc_core.claims import Claim, Judged, Verdict, judge_row
from llfc_core.evidence import Named, measure_pairs
from llfc_core.machine import cores
from llfc_core.metrics import Measurement
from llfc_core.own import (
    Data,
    OwnPair,
    OwnPairError,
    OwnRow,
    Weights,
    in_one_line,
    one_line,
    untouched_randomness,
)
from llfc_core.report import claims_table


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What became of the claims on some pairs; printed, it is the table of them.

    Attributes
    ----------
    row
        The pairs and what was known of them.
    measurements
        By the name of the pair ("linked", "independent", …), one for each replicate.
    judged
        The claims, and ("<claim> on <control>") what the same predicates say of the controls.
    """

    row: OwnRow
    measurements: dict[str, list[Measurement]]
    judged: dict[str, Judged]

    def __getitem__(self, name: str) -> Verdict:
        """The verdict of a claim, "llfc-cosine", or on a control, "llfc-cosine on independent"."""
        return self.judged[name].verdict

    def __iter__(self) -> Iterator[Verdict]:
        """The verdicts of the claims, controls left out."""
        return (j.verdict for name, j in self.judged.items() if " on " not in name)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Claims that are rejected, vacuous or without their premise, and controls that pass.

        Known ``findings`` are left out, and are unexpected where they come to hold.
        """
        return tuple(name for name, j in self.judged.items() if not as_expected(name, j))

    def explain(self, name: str) -> str:
        """A verdict in full: the claim, its bound, every layer's number and where to look."""
        return explain(self.judged[name])

    def explanations(self) -> list[str]:
        """All that is ``unexpected`` in full; claims that lack the same premise together."""
        found, lacking = [], dict[str, list[str]]()
        for judged in (self.judged[name] for name in self.unexpected):
            if judged.failing is None:
                found.append(explain(judged))
            else:
                required, first = judged.failing
                lacking.setdefault(first.explain(required), []).append(judged.claim.name)
        for premise, names in lacking.items():
            of_such = f"of linearly connected pairs, which these are not: {', '.join(names)}"
            found.append(of_such if premise in found else f"{of_such}\n{premise}")
        return found

    def __str__(self) -> str:
        return "\n".join(claims_table([record(self.row.id, k, j) for k, j in self.judged.items()]))


def check_pair(
    a: Weights,
    b: Weights,
    data: Data,
    *,
    device: torch.device | str | None = None,
    **options: Any,
) -> Verdicts:
    """Judge every claim that can be judged on two networks.

    Parameters
    ----------
    a, b, data
        As in `OwnPair`: modules in eval mode or state dicts, and what to measure them on.
    device
        Where to measure; by default where the weights are.
    **options
        The other attributes of `OwnPair`: ``module``, ``match``, ``independent``, ``loss``,
        ``layers``, ``bounds``, ``findings`` and so on.

    Raises
    ------
    OwnPairError
        A mistake, in one line.
    """
    return check_row(OwnRow("pair", (_made({"a": a, "b": b, "data": data, **options}),)), device)


def check_row(row: OwnRow, device: torch.device | str | None = None) -> Verdicts:
    """Judge every claim that can be judged on a row's pairs; ``device`` as in `check_pair`."""
    device = _there(row.first.device if device is None else device)
    named, _ = row.named(device)
    measurements = measure_row(row, named, device)
    return Verdicts(
        row,
        measurements,
        {
            name: judge_row(row, measurements, claim, control)
            for name, claim, control in questions(row)
        },
    )


def measure_row(
    row: OwnRow,
    named: Sequence[Named],
    device: torch.device | str | None = None,
    threads: int | None = None,
) -> dict[str, list[Measurement]]:
    """The measurements by name of a row's pairs, which `OwnRow.named` gives.

    Raises OwnPairError for whatever the networks and the data raise on the way.
    """
    with untouched_randomness(), in_one_line():
        return measure_pairs(
            named,
            alphas=row.first.alphas,
            layers=row.first.layers,
            device=row.first.device if device is None else device,
            # Somebody's data set may not bear to be read by several threads.
            threads=(threads or cores()) if isinstance(row.first.data, tuple) else 1,
        )


def _there(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except Exception as error:
        raise OwnPairError(f"there is no device {str(device)!r} here: {one_line(error)}") from error


def questions(row: OwnRow) -> Iterator[tuple[str, Claim, str]]:
    """What is asked of a row: by name a claim, and the control that must reject it, if any."""
    for claim in row.claims():
        yield claim.name, claim, ""
    for control, claims in row.controls().items():
        for claim in claims:
            yield f"{claim.name} on {control}", claim, control


def as_expected(name: str, judged: Judged) -> bool:
    """Whether a claim holds, a control rejects, a finding is still one, or nothing was judged."""
    verdict = judged.verdict
    if verdict.status == "not run":
        return True
    if " on " in name:
        rejected = not verdict.holds and not verdict.within
        return rejected != bool(judged.finding)
    if judged.failing:
        return bool(judged.finding)
    return verdict.status == ("rejected" if judged.finding else "holds")


def explain(judged: Judged) -> str:
    """The verdict in full, or the premise that it lacks."""
    if judged.failing is None:
        return judged.verdict.explain(judged.claim)
    required, first = judged.failing
    return (
        f"{judged.claim.name} speaks of linearly connected pairs, and these are not:\n"
        + first.explain(required)
    )


def record(row: str, name: str, judged: Judged, outcome: str = "") -> dict[str, Any]:
    """A verdict as `llfc_core.report` takes it, JSON-able."""
    return {
        "setting": row,
        "test": name,
        "control": name.partition(" on ")[2],
        "finding": judged.finding,
        "outcome": outcome,
        **judged.verdict.to_dict(),
    }


def collect(target: Callable[[], Any], id: str, **options: Any) -> OwnRow:
    """The row of what ``target()`` returns.

    Parameters
    ----------
    target
        Returns ``(a, b, data)``, a dict of `OwnPair`'s attributes, an `OwnPair`, or a list of such:
        replicates.
    options
        Attributes of `OwnPair` that replace or add to what is returned, the matching say.

    Raises
    ------
    OwnPairError
        It raises, or returns anything else, or a pair with a mistake in it.
    """
    try:
        with untouched_randomness():
            returned = target()
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise OwnPairError(f"{_name(target)} raised {what}") from error
    found = returned if isinstance(returned, list) else [returned]
    return OwnRow(id, tuple(_pair(target, one, options) for one in found))


def _pair(target: Callable[[], Any], returned: Any, options: dict[str, Any]) -> OwnPair:
    given = returned
    if isinstance(given, OwnPair):
        given = {f.name: getattr(given, f.name) for f in fields(OwnPair)}
    elif isinstance(given, tuple) and len(given) == 3:
        given = dict(zip(("a", "b", "data"), given, strict=True))
    if not isinstance(given, dict) or not {"a", "b", "data"} <= given.keys():
        raise OwnPairError(
            f"{_name(target)} returned a {type(returned).__name__}: it must be (a, b, data), or a "
            "dict with at least these, or a list of such"
        )
    return _made({**given, **options})


def _made(given: dict[str, Any]) -> OwnPair:
    known = [f.name for f in fields(OwnPair)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise OwnPairError(f"a pair has no {name!r}{hint}")
    return OwnPair(**given)


def _name(target: Callable[[], Any]) -> str:
    return f"{getattr(target, '__name__', 'it')}()"
