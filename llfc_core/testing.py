"""The claims as tests of a user's own suite. The one module of the library that imports pytest.

from llfc_core.testing import parametrize_with_claims

@parametrize_with_claims([my_pair])
def test_my_networks(check):
    check()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest

from llfc_core.check import Verdicts, check_row, collect, explain, questions
from llfc_core.claims import Judged
from llfc_core.own import OwnPairError


def parametrize_with_claims(pairs: Sequence[Callable[[], Any]]) -> pytest.MarkDecorator:
    """Run a test once for every claim, and control, that there is to judge on each of ``pairs``.

    The test takes ``check``, and calls it: a claim that is rejected, vacuous or without its premise
    fails, as does a control that passes; what cannot be judged is skipped with the reason; a known
    finding is an expected failure, strictly.

    Parameters
    ----------
    pairs
        Functions that return a pair, as `llfc_core.check.collect` takes them. Called at collection;
        pairs are measured when the first of their tests runs.

    Raises
    ------
    pytest.Collector.CollectError
        A pair with a mistake in it: one line says which.
    """
    parameters = []
    for target in pairs:
        name = getattr(target, "__name__", "pair")
        try:
            row = collect(target, name)
        except OwnPairError as error:
            raise pytest.Collector.CollectError(f"{name}: {error}") from error
        verdicts = cache(partial(check_row, row))
        for question, _, _ in questions(row):
            known = row.findings.get(question)
            parameters.append(
                pytest.param(
                    _Check(verdicts, question),
                    id=f"{name}-{question.replace(' ', '-')}",
                    marks=[_expected_failure(known)] if known else [],
                )
            )
    return pytest.mark.parametrize("check", parameters)


class _Check:
    def __init__(self, verdicts: Callable[[], Verdicts], question: str) -> None:
        self._verdicts, self._question = verdicts, question

    def __call__(self) -> None:
        judged = self._verdicts().judged[self._question]
        if judged.verdict.status == "vacuous" and judged.finding:
            pytest.fail(explain(judged))  # nothing was found on what can show nothing
        assert_judged(judged, self._question.partition(" on ")[2])

    def __repr__(self) -> str:
        return f"check({self._question!r})"


def _expected_failure(finding: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason=finding, strict=True, raises=AssertionError)


def assert_judged(judged: Judged, control: str = "") -> None:
    """Pass, fail or skip the running test as a claim's verdict, or a control's, has it.

    A control that is shuffled is to be refused as vacuous; the others must miss the bound itself.
    """
    __tracebackhide__ = True
    verdict = judged.verdict
    if verdict.status == "not run":
        pytest.skip(f"{verdict.claim}: {verdict.note}")
    if judged.failing is not None:
        if judged.finding:
            pytest.xfail(f"not linearly connected here: {judged.finding}")
        pytest.fail(explain(judged))
    text = explain(judged)
    # Apart, so that pytest prints the explanation and no verdict's repr.
    holds, within = verdict.holds, verdict.within
    if not control:
        assert holds, text
    else:
        assert not holds, f"the control passes:\n{text}"
        if control != "shuffled":
            assert not within, f"the control keeps to the bound:\n{text}"
