"""``pytest phenomena/ --modes zoo:pair``: a user's networks in place of the paper's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llfc_core import check_pair, claims
from tests.own import apart, pair
from tests.suite.running import ROOT, Ran, run_pytest, run_pytests, strict_json

ZOO = """
from tests.own import *
def net(): return mlp(9)
def data(): return blobs(600)
def known():
    return pair(findings={findings})
def train_mode():
    a, b, data = apart()
    return mlp(0).train(), b, data
def shapes():
    return mlp(0), mlp(1, width=32), blobs()
def dicts():
    return mlp(0), mlp(1), [{{"x": 1}}]
def raises():
    return 1 / 0
def late():
    x, y = blobs()
    return mlp(0), mlp(1), [(x, y), (x, y + 9)]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user has, and pytest's words for what is not as in the paper."""
    folder = tmp_path_factory.mktemp("own")
    given = pair()
    found = check_pair(**given)
    findings = dict.fromkeys(found.unexpected, "known here")
    (folder / "zoo.py").write_text(ZOO.format(findings=findings))
    c, d, _ = apart()
    save_file(c.state_dict(), folder / "c.safetensors")
    torch.save(d.state_dict(), folder / "d.pt")
    return folder


def run(place: Path, *args: object) -> Ran:
    phenomena = ROOT / "phenomena"
    return run_pytest(
        phenomena, "-v", "-c", ROOT / "pytest.ini", "--rootdir", ROOT, *args, cwd=place
    )


@pytest.fixture(scope="module")
def known(place: Path) -> Ran:
    rows = ("--modes", "zoo:known", "--modes", "zoo:late")
    return run(place, *rows, "--llfc-report", "report", "-n2")


def test_all_claims_are_judged_on_the_user_s_pair(known: Ran, place: Path) -> None:
    results = strict_json(place / "report" / "results.json")
    verdicts = {v["claim"]: v for v in results["verdicts"] if not v["control"]}
    assert verdicts.keys() == {c.name for c in claims.ALL}
    ours = {v.claim: v for v in check_pair(**pair())}
    for name, verdict in verdicts.items():
        assert verdict["status"] == ours[name].status
        if verdict["status"] != "not run":
            assert verdict["value"] == pytest.approx(ours[name].value, rel=1e-6)
    on = {v["control"] for v in results["verdicts"]}
    assert on == {"", "independent"}
    [setting] = results["settings"]
    assert (results["scale"], setting["setting"]) == ("own", "zoo:known")
    assert {p["pair"] for p in setting["pairs"]} == {"linked", "independent"}
    assert setting["modes"] == []


def test_only_the_user_s_rows_run(known: Ran) -> None:
    assert known.outcomes
    assert all("zoo:known" in test or "zoo:late" in test for test in known.outcomes)
    assert "test_width" not in known.out
    assert "mlp-mnist" not in known.out


def test_header_and_table_say_whose_networks(known: Ran) -> None:
    assert re.search(
        r"^llfc: your own networks, zoo:known \(1 pair\(s\)\), .*torch", known.out, re.M
    )
    assert "claims on your own networks" in known.out
    assert "quick scale" not in known.out


def test_known_findings_are_expected_failures(known: Ran) -> None:
    found = {outcome for test, outcome in known.outcomes.items() if "zoo:known" in test}
    assert found == {"PASSED", "XFAIL", "SKIPPED"}
    assert "finding: " in known.out


def test_what_cannot_be_judged_is_skipped_and_the_table_says_why(known: Ran) -> None:
    name = "phenomena/test_low_rank.py::test_low_rank[zoo:known-low-rank-weights]"
    assert known.outcomes[name] == "SKIPPED"
    row = r"^low-rank-weights +zoo:known +not run: no earlier checkpoint of A$"
    assert re.search(row, known.out, re.M)


@pytest.fixture(scope="module")
def checkpoints(place: Path) -> Ran:
    return run(
        place,
        *("--mode-a", "c.safetensors", "--mode-b", "d.pt", "--net", "zoo:net"),
        *("--own-data", "zoo:data", "--match", "weight", "-k", "lmc or matching"),
    )


@pytest.mark.slow  # the same rows are made in tests/test_targets.py
def test_checkpoints_are_matched_first(checkpoints: Ran, place: Path) -> None:
    c, d, data = apart()
    ours = check_pair(c, d, data, match="weight")
    tests = {
        "lmc-loss": "test_lmc.py::test_lmc",
        "matching-dist-w": "test_matching.py::test_matching_lowers",
    }
    for claim, test in tests.items():
        outcome = checkpoints.outcomes[f"phenomena/{test}[c~d-{claim}]"]
        assert outcome == ("PASSED" if ours[claim].holds else "FAILED")
    assert "random" in checkpoints.out
    assert "given pair" not in checkpoints.out
    assert (
        checkpoints.outcomes[
            "phenomena/test_matching.py::test_matching_at_random_does_not[c~d-matching-dist-w]"
        ]
        == "PASSED"
    )


MISTAKES = {
    "--modes=zoo:train_mode": r"zoo:train_mode: A is in train mode: call eval\(\) first.*",
    "--modes=zoo:shapes": r"zoo:shapes: mode B: '0.weight' has shape \(32, 8\), .*",
    "--modes=zoo:dicts": r"zoo:dicts: the data give batches that are a dict with 'x'.*",
    "--modes=zoo:raises": r"zoo:raises: raises\(\) raised ZeroDivisionError: division by zero",
    "--modes=zoo:nothing": r"zoo:nothing: zoo has no 'nothing'.*",
    "--mode-a=c.safetensors": r"checkpoints: give --mode-a, --mode-b and --net",
    "--match=weight": r"--match: only for networks of your own",
    "--own-data=zoo:data": r"--data, --own-data: only for --mode-a and --mode-b",
}


def test_mistakes_are_one_clear_line_at_collection(place: Path) -> None:
    once = (ROOT / "phenomena/test_lmc.py", "-c", ROOT / "pytest.ini", "--co", "-q")
    for option, (code, text) in run_pytests({o: (*once, o) for o in MISTAKES}, place).items():
        assert code == pytest.ExitCode.USAGE_ERROR, text
        assert "Traceback" not in text
        errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
        assert len(errors) == 1, text
        assert re.fullmatch(MISTAKES[option], errors[0].removeprefix("ERROR: ")), text


def test_a_mistake_found_while_measuring_is_a_line_too(known: Ran) -> None:
    found = {outcome for test, outcome in known.outcomes.items() if "zoo:late" in test}
    assert "ERROR" in found
    assert "PASSED" not in {o for t, o in known.outcomes.items() if "test_lmc[zoo:late" in t}
    assert re.search(r"^zoo:late: label \d+ is out of range: there are 4 logits$", known.out, re.M)
    assert "Traceback" not in known.out
