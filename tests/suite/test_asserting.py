"""What `assert_claim` and `assert_rejected` make of planted evidence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from fixtures.measurements import Evidence
from fixtures.reporting import EVIDENCE, VERDICT
from llfc_core import claims
from tests.planted import bump, measurement
from tests.suite.tiny import TINY

GOOD = measurement()
BAD = measurement(one_minus_cos=0.05)
SAME = measurement(distance=0.0)
BARRIER = measurement(error=0.05 + 0.3 * bump())
WHY = "for a reason"


@pytest.fixture
def linked() -> Any:
    """Each test says by parametrisation what its linked pair is."""
    return GOOD


@pytest.fixture
def evidence(linked: Any) -> Evidence:
    """In place of the suite's own: nothing is trained. llfc-cosine is a known finding."""
    pairs = {"linked": [linked], "independent": [linked], "shuffled": [linked]}
    setting = replace(TINY, findings={"llfc-cosine": WHY}, bounds={})
    return Evidence(setting, [], [], pairs)


@pytest.fixture(autouse=True)
def said(request: pytest.FixtureRequest) -> Iterator[Callable[[], dict[str, Any]]]:
    """What was left on the test itself, taken away from it: it is not this session's result."""
    node = request.node

    def take() -> dict[str, Any]:
        properties = dict(node.user_properties)
        marks = [m for m in node.own_markers if m.name == "xfail"]
        node.user_properties.clear()
        node.own_markers = [m for m in node.own_markers if m.name != "xfail"]
        return {**properties, "xfail": marks}

    yield take
    take()


def planted(*pairs: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("linked", pairs, ids=lambda m: "")


@planted(GOOD)
def test_a_claim_that_holds_is_recorded(assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    assert_claim(claims.LLFC_COEF)
    left = said()
    assert left[VERDICT]["claim"] == "llfc-coef"
    assert left[VERDICT]["control"] == ""
    assert left[EVIDENCE]["setting"] == TINY.id
    json.dumps(left[EVIDENCE], allow_nan=False)
    assert left["xfail"] == []


@planted(BARRIER)
def test_a_claim_whose_premise_fails_is_not_judged(assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(pytest.fail.Exception, match="linearly connected pairs, and these are not"):
        assert_claim(claims.LLFC_COEF)
    assert said()[VERDICT]["status"] == "no premise"


@planted(BARRIER)
def test_a_claim_whose_premise_is_known_to_fail_is_reported_without_a_verdict(  # type: ignore[no-untyped-def]
    evidence, assert_claim, said
) -> None:
    evidence.setting.findings["lmc-error"] = WHY
    with pytest.raises(pytest.xfail.Exception, match=f"not linearly connected here: {WHY}"):
        assert_claim(claims.LLFC_COEF)
    left = said()[VERDICT]
    assert (left["status"], left["finding"]) == ("no premise", WHY)
    del evidence.setting.findings["lmc-error"]


@planted(GOOD)
def test_a_setting_s_own_bound_is_the_one_judged(evidence, assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    evidence.setting.bounds["llfc-apart"] = (0.5, WHY)
    with pytest.raises(AssertionError, match=WHY):
        assert_claim(claims.NOT_ALIGNED)
    assert said()[VERDICT]["bound"] == 0.5
    del evidence.setting.bounds["llfc-apart"]


@planted(GOOD)
def test_a_control_known_not_to_reject_is_a_strict_expected_failure(  # type: ignore[no-untyped-def]
    evidence, assert_rejected, said
) -> None:
    evidence.setting.findings["llfc-coef on independent"] = WHY
    with pytest.raises(AssertionError, match="the control passes"):
        assert_rejected(claims.LLFC_COEF, "independent")
    left = said()
    assert left[VERDICT]["finding"] == WHY
    assert [m.kwargs for m in left["xfail"]] == [{"reason": WHY, "strict": True}]
    del evidence.setting.findings["llfc-coef on independent"]


@planted(BAD)
def test_a_finding_is_a_strict_expected_failure(assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError, match=r"llfc-cosine .* 1 spawned pair\(s\): rejected"):
        assert_claim(claims.LLFC_COSINE)
    left = said()
    assert left[VERDICT]["finding"] == WHY
    assert [m.kwargs for m in left["xfail"]] == [{"reason": WHY, "strict": True}]


@planted(GOOD)
def test_a_finding_that_comes_to_hold_is_noticed(assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    assert_claim(claims.LLFC_COSINE)
    assert [m.kwargs["strict"] for m in said()["xfail"]] == [True]


@planted(SAME)
def test_a_finding_excuses_no_vacuous_pair(evidence, assert_claim, said) -> None:  # type: ignore[no-untyped-def]
    """Nothing was found on a pair that can show nothing."""
    evidence.setting.findings["lmc-error"] = WHY
    with pytest.raises(AssertionError, match=r"1 spawned pair\(s\): vacuous"):
        assert_claim(claims.LMC_ERROR)
    assert said()["xfail"] == []
    del evidence.setting.findings["lmc-error"]


@planted(GOOD)
@pytest.mark.parametrize("control", ["independent", "shuffled"])
def test_a_control_that_passes_fails(control, assert_rejected, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError, match=r"the control passes:\n\s*llfc-cosine"):
        assert_rejected(claims.LLFC_COSINE, control)
    assert said()[VERDICT]["control"] == control


@planted(BAD)
def test_a_control_that_is_rejected_passes(assert_rejected, said) -> None:  # type: ignore[no-untyped-def]
    assert_rejected(claims.LLFC_COSINE, "independent")
    assert said()[VERDICT]["status"] == "rejected"


@planted(SAME)
def test_only_a_shuffled_control_may_be_refused_as_vacuous(assert_rejected, said) -> None:  # type: ignore[no-untyped-def]
    assert_rejected(claims.LLFC_COSINE, "shuffled")
    assert said()[VERDICT]["status"] == "vacuous"
    with pytest.raises(AssertionError, match="keeps to the bound"):
        assert_rejected(claims.LLFC_COSINE, "independent")
    said()
