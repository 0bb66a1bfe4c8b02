"""`parametrize_with_claims` in a suite of the user's own, with no plugin of this one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llfc_core import check_pair
from llfc_core.testing import parametrize_with_claims
from tests.own import blobs, mlp, pair
from tests.suite.running import Ran, run_pytest

SUITE = """
import pytest
from llfc_core.testing import parametrize_with_claims
from tests.own import *

def known():
    return pair(findings={findings})

def untold():
    return apart()

@parametrize_with_claims([known, untold])
def test_claims(check):
    check()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("user")
    findings = dict.fromkeys(check_pair(**pair()).unexpected, "known here")
    findings["lemma1"] = "it is thought not to hold, and does"
    (folder / "test_user.py").write_text(SUITE.format(findings=findings))
    (folder / "pytest.ini").write_text("[pytest]\n")
    return run_pytest("-rA", "-q", cwd=folder)


def outcomes(ran: Ran) -> dict[str, str]:
    lines = re.findall(r"^(PASSED|FAILED|XFAIL|XPASS) \S+?\[(\S+)\]", ran.out, re.M)
    return {question: outcome for outcome, question in lines}


def test_each_claim_and_control_is_a_test(ran: Ran) -> None:
    found = outcomes(ran)
    assert found["known-llfc-cosine"] == "PASSED"
    assert found["known-llfc-cosine-on-independent"] == "PASSED"
    assert found["known-llfc-apart-output"] == "XFAIL"
    assert found["untold-lmc-loss"] == "FAILED"
    # Without its premise, and at a strict finding that holds.
    assert found["untold-llfc-cosine"] == "FAILED"
    assert found["known-lemma1"] == "FAILED"
    assert "untold-llfc-cosine-on-independent" not in found


def test_what_cannot_be_judged_is_skipped_with_the_reason(ran: Ran) -> None:
    assert "low-rank-weights: no earlier checkpoint of A" in ran.out
    assert "llfc-co-occurrence: no independent pair" in ran.out


def test_a_failure_explains_the_verdict(ran: Ran) -> None:
    assert "lmc-loss (Def. 1; Frankle et al. 2020), 1 given pair(s): rejected" in ran.out
    assert "look at: the learning rate" in ran.out


def test_a_mistake_is_a_line_at_collection() -> None:
    def shapes() -> Any:
        return mlp(0), mlp(1, width=32), blobs()

    message = r"^shapes: mode B: '0.weight' has shape \(32, 8\), the network's has \(64, 8\)$"
    with pytest.raises(pytest.Collector.CollectError, match=message):  # shown without a traceback
        parametrize_with_claims([shapes])
