"""The closing table and results.json: the same whatever order the tests ended in."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from llfc_core import claims
from llfc_core.report import claims_matrix, claims_table, write_results
from llfc_core.report.table import blocks
from tests.planted import bump, measurement

BAD = measurement(one_minus_cos=0.05, coef=0.5, error=0.05 + 0.5 * bump())
GOOD = measurement()
SAME = measurement(distance=0.0)


def record(
    claim: claims.Claim,
    pair: Any = GOOD,
    setting: str = "mlp",
    control: str = "",
    finding: str = "",
) -> dict[str, Any]:
    """A verdict as the suite records it."""
    return {
        "setting": setting,
        "test": f"test_{control or 'claim'}[{setting}-{claim.name}]",
        "control": control,
        "finding": finding,
        **claims.judge(claim, [pair]).to_dict(),
        "outcome": "passed",
    }


def records() -> list[dict[str, Any]]:
    return [
        record(claim, pair, setting, control)
        for claim in (claims.LLFC_COSINE, claims.LLFC_COEF, claims.LMC_ERROR)
        for setting in ("mlp", "vgg")
        for pair, control in ((GOOD, ""), (BAD, "independent"), (SAME, "shuffled"))
    ]


def rows(verdicts: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, str]]:
    """(setting, claim) → column → cell, read by the columns' places."""
    head, *lines = claims_table(verdicts)
    names = ["claim", "setting", "value", "95% interval", "bound", "layer", "controls", "verdict"]
    starts = [head.index(name) for name in names]
    assert starts == sorted(starts)
    table = {}
    for line in lines:
        if line.startswith("finding: "):
            continue
        cells = [line[i:j].strip() for i, j in zip(starts, [*starts[1:], None])]
        row = dict(zip(names, cells, strict=True))
        table[row["setting"], row["claim"]] = row
    return table


def test_table_has_a_row_per_claim_and_setting() -> None:
    table = rows(records())
    assert list(table) == sorted(table)
    assert len(table) == 6
    row = table["mlp", "llfc-cosine"]
    assert row["value"] == "0.001"
    assert row["95% interval"] == "[0.001, 0.001]"
    assert row["bound"] == "≤ 0.04"
    assert row["layer"] == "fc1"
    assert row["controls"] == "independent 0.05 rejected, shuffled 0.001 vacuous"
    assert row["verdict"] == "holds"
    assert table["vgg", "lmc-error"]["value"] == "0 pp"
    assert table["vgg", "lmc-error"]["layer"] == "network"


def test_table_does_not_depend_on_the_order_of_verdicts() -> None:
    verdicts = records()
    table = claims_table(verdicts)
    for seed in range(10):
        random.Random(seed).shuffle(verdicts)
        assert claims_table(verdicts) == table


def test_table_shows_rejected_and_vacuous() -> None:
    assert rows([record(claims.LLFC_COSINE, BAD)])["mlp", "llfc-cosine"]["verdict"] == "rejected"
    assert rows([record(claims.LLFC_COSINE, SAME)])["mlp", "llfc-cosine"]["verdict"] == "vacuous"


def test_table_shouts_where_a_control_passes() -> None:
    controls = [record(claims.LLFC_COSINE, control=c) for c in ("shuffled", "independent")]
    row = rows([record(claims.LLFC_COSINE), *controls])["mlp", "llfc-cosine"]
    assert row["controls"] == "independent 0.001 PASSES, shuffled 0.001 PASSES"
    assert "PASSES" not in "\n".join(claims_table(records()))


def test_table_says_what_was_not_run() -> None:
    alone = rows([record(claims.LLFC_COSINE)])["mlp", "llfc-cosine"]
    assert alone["controls"] == "none run"
    only_control = rows([record(claims.LLFC_COSINE, BAD, control="independent")])
    assert only_control["mlp", "llfc-cosine"]["verdict"] == "not run"
    assert only_control["mlp", "llfc-cosine"]["controls"] == "independent 0.05 rejected"


def test_table_at_least() -> None:
    assert rows([record(claims.NOT_ALIGNED)])["mlp", "llfc-apart"]["bound"] == "≥ 0.05"


def test_table_findings_are_told_in_full() -> None:
    why = "because of this and that"
    finding = [record(claims.LLFC_COSINE, BAD, finding=why)]
    assert rows(finding)["mlp", "llfc-cosine"]["verdict"] == "finding"
    assert claims_table(finding)[-1] == f"finding: llfc-cosine on mlp: {why}"
    # One that has come to hold is no finding any more, and one that is vacuous was not found.
    for pair, word in ((GOOD, "holds, unexpectedly"), (SAME, "vacuous")):
        other = [record(claims.LLFC_COSINE, pair, finding=why)]
        assert rows(other)["mlp", "llfc-cosine"]["verdict"] == word
        assert why not in "\n".join(claims_table(other))


def test_table_undefined_numbers() -> None:
    verdict = record(claims.LLFC_COEF, measurement(coef=math.nan))
    row = rows([verdict])["mlp", "llfc-coef"]
    assert row["value"] == "undefined"
    assert row["95% interval"] == "[undefined, undefined]"
    assert row["verdict"] == "rejected"


def test_table_lines_have_no_trailing_blanks() -> None:
    assert all(line == line.rstrip() for line in claims_table(records()))


def test_table_of_nothing() -> None:
    assert len(claims_table([])) == 1


# ---- results.json -------------------------------------------------------------------------------

HEADER = {"scale": "quick", "replicates": 3}


def evidence(*settings: str) -> dict[str, dict[str, Any]]:
    dead = measurement(one_minus_cos_ab=np.nan)
    return {s: {"setting": s, "pairs": [GOOD.summary(), dead.summary()]} for s in settings}


def written(path: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "header": HEADER,
        "evidence": evidence("mlp", "vgg"),
        "numbers": {"mlp": {"steps": {"value": 0.5}}},
        "verdicts": records(),
        "skipped": ["vgg: no data", "resnet: no data"],
    }
    write_results(path, **(arguments | changes))
    return path.read_text()


def strict(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_results_have_every_number(tmp_path: Path) -> None:
    results = strict(written(tmp_path / "results.json"))
    assert results["scale"] == "quick"
    assert [s["setting"] for s in results["settings"]] == ["mlp", "vgg"]
    assert len(results["verdicts"]) == len(records())
    assert results["numbers"] == {"mlp": {"steps": {"value": 0.5}}}
    assert results["skipped"] == ["resnet: no data", "vgg: no data"]
    pair = results["settings"][0]["pairs"][0]
    for name in GOOD.values:
        mean = np.array(pair[name]["mean"], dtype=float)
        np.testing.assert_allclose(mean, GOOD.means()[name][0], err_msg=name)
    assert pair["alphas"] == list(GOOD.alphas)
    assert results["settings"][0]["pairs"][1]["one_minus_cos_ab"]["mean"] == [None] * 3


def test_results_same_bytes_in_any_order(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json")
    verdicts = records()
    for seed in range(5):
        random.Random(seed).shuffle(verdicts)
        again = written(
            tmp_path / "b.json",
            evidence=dict(reversed(evidence("vgg", "mlp").items())),
            verdicts=verdicts,
            skipped=["resnet: no data", "vgg: no data"],
            header=dict(reversed(HEADER.items())),
        )
        assert again == first


def test_results_other_numbers_other_bytes(tmp_path: Path) -> None:
    verdicts = records()
    verdicts[0]["value"] += 1e-12
    assert written(tmp_path / "a.json") != written(tmp_path / "b.json", verdicts=verdicts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_are_strict_json_whatever_the_numbers(tmp_path: Path, value: float) -> None:
    text = written(tmp_path / "a.json", numbers={"mlp": {"x": [{"y": (value, 1.0)}]}})
    assert strict(text)["numbers"]["mlp"]["x"] == [{"y": [None, 1.0]}]


def test_results_replace_what_was_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "results.json"
    written(path)
    before = path.read_text()
    with pytest.raises(TypeError):
        written(path, numbers={"mlp": {"x": object()}})
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    written(path, verdicts=[])
    assert strict(path.read_text())["verdicts"] == []


def test_summary_of_a_pair_is_strict_json() -> None:
    for pair in (GOOD, BAD, measurement(coef=np.nan, one_minus_cos=np.nan)):
        summary = pair.summary()
        assert strict(json.dumps(summary)) == json.loads(json.dumps(summary, allow_nan=False))


def test_matrix_has_a_row_a_claim_and_a_column_a_setting_whatever_the_order() -> None:
    verdicts = [*records(), record(claims.LLFC_COSINE, BAD, "cnn", finding="known")]
    verdicts += [record(claims.LMC_ERROR, BAD, "cnn"), record(claims.LLFC_COEF, SAME, "cnn")]
    random.Random(1).shuffle(verdicts)
    head, *lines, legend, cnn, mlp, vgg = claims_matrix(verdicts)
    assert head.split() == ["claim", "(1)", "(2)", "(3)"]
    assert (cnn, mlp, vgg) == ("(1) cnn", "(2) mlp", "(3) vgg")
    names = [v.name for v in (claims.LLFC_COEF, claims.LLFC_COSINE, claims.LMC_ERROR)]
    assert [line.split()[0] for line in lines] == names
    assert [line.split()[2] for line in lines] == ["-", "*", "!"]
    assert all(line.split()[4] == "=" == line.split()[6] for line in lines)
    assert all(word in legend for word in ("holds", "rejected", "finding", "vacuous"))


def test_claims_and_settings_that_never_meet_are_tables_apart() -> None:
    judged = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "3"), ("c", "1"), ("b", "4")]
    assert blocks(judged) == [(["a", "c", "d"], ["1", "3"]), (["b"], ["2", "4"])]
    apart = [record(claims.LMC_ERROR, GOOD, "cnn"), record(claims.LLFC_COEF, GOOD, "mlp")]
    first, _, second, _, _, mlp, cnn = claims_matrix(apart)
    assert (first.split(), second.split()) == (["claim", "(1)"], ["claim", "(2)"])
    assert (mlp, cnn) == ("(1) mlp", "(2) cnn")


def test_a_control_that_cannot_reject_is_a_finding_and_not_an_alarm() -> None:
    known = record(claims.LMC_ERROR, GOOD, control="independent", finding="they are linked too")
    alarm = record(claims.LMC_ERROR, GOOD, control="independent")
    claim = record(claims.LMC_ERROR)
    assert "not rejected" in claims_table([claim, known])[1]
    assert "they are linked too" in claims_table([claim, known])[2]
    assert "PASSES" in claims_table([claim, alarm])[1]
