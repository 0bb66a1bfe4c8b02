"""Two results side by side, and the command that draws and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llfc_core.__main__ import main
from llfc_core.report import ResultsError, read_results
from llfc_core.report.compare import compare, lines
from tests.report.planted import changed, results


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return results(tmp_path / "a", "mlp")


def saved(given: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(given))
    return folder


def test_a_result_against_itself(given: dict[str, Any]) -> None:
    found = compare(given, given)
    assert found.changed == found.notes == ()
    assert len(found.changes) == len(given["verdicts"])
    assert {c.difference for c in found.changes} == {0.0}
    assert {c.intervals for c in found.changes} == {"the same"}
    assert lines(found)[0] == "0 verdicts changed"


def test_a_changed_verdict_comes_first(given: dict[str, Any]) -> None:
    before = next(v for v in given["verdicts"] if not v["control"])
    other = changed(given, status="rejected", value=7.0, low=6.0, high=8.0)
    found = compare(given, other)
    first = found.changes[0]
    assert found.changed == (first,)
    assert (first.claim, first.setting, first.control) == (before["claim"], "mlp", "")
    assert first.words == (before["status"], "rejected")
    assert first.difference == 7.0 - before["value"]
    assert first.intervals == "apart"
    text = lines(found)
    assert text[0] == "1 verdict changed"
    assert f"{before['status']} → rejected" in text[2]
    assert "apart" in text[2]


def test_a_changed_verdict_comes_before_what_is_apart(given: dict[str, Any]) -> None:
    other = changed(given, status="rejected")  # its interval is the same
    next(v for v in other["verdicts"] if v["control"]).update(low=1e6, high=2e6)
    found = compare(given, other).changes[:2]
    assert [(c.changed, c.intervals) for c in found] == [(True, "the same"), (False, "apart")]


@pytest.mark.parametrize(
    ("low", "high", "how"),
    [(0, 1, "the same"), (0, 1 + 1e-14, "the same"), (1, 2, "overlap"), (1.01, 2, "apart")],
)
def test_intervals(given: dict[str, Any], low: float, high: float, how: str) -> None:
    a = changed(given, low=0, high=1)
    b = changed(given, low=low, high=high)
    for x, y in ((a, b), (b, a)):
        (one,) = [
            c for c in compare(x, y).changes if (c.a or {})["high"] != (c.b or {})["high"]
        ] or [compare(x, y).changes[0]]
        assert one.intervals == how


def test_apart_without_a_changed_verdict_comes_before_the_rest(given: dict[str, Any]) -> None:
    other = changed(given, low=1e6, high=2e6)
    assert [c.intervals for c in compare(given, other).changes][:2] == ["apart", "the same"]


def test_a_control_that_comes_to_pass_has_changed(given: dict[str, Any]) -> None:
    first, second = changed(given), changed(given)
    for one, status in ((first, "rejected"), (second, "holds")):
        next(v for v in one["verdicts"] if v["control"])["status"] = status
    (found,) = compare(first, second).changed
    assert found.words == ("rejected", "PASSES")
    assert found.name.endswith(" on independent")


def test_what_only_one_has_is_shown_and_has_not_changed(given: dict[str, Any]) -> None:
    fewer = given | {"verdicts": given["verdicts"][1:]}
    for a, b in ((given, fewer), (fewer, given)):
        found = compare(a, b)
        assert not found.changed
        last = found.changes[-1]
        assert "not run" in last.words
        assert last.difference is None
        assert last.intervals == ""


def test_undefined_numbers_have_no_difference(given: dict[str, Any]) -> None:
    found = compare(given, changed(given, value=None, low=None, high=None))
    (one,) = [c for c in found.changes if c.difference is None]
    assert one.intervals == ""
    assert any("undefined" in line for line in lines(found))


def test_what_makes_them_hard_to_compare_is_said(given: dict[str, Any]) -> None:
    notes = compare(given, given | {"scale": "paper", "options": [], "run": {}}).notes
    assert notes == (
        "scale: quick in A, paper in B",
        "options: --replicates 2 in A, none in B",
    )


# ---- the command ---------------------------------------------------------------------------------


def test_command_compares(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = tmp_path / "a"
    b = saved(changed(given, status="rejected", setting="<b>mlp"), tmp_path / "b")
    assert main(["report", "--compare", str(a), str(a)]) == 0
    assert capsys.readouterr().out.startswith("0 verdicts changed\n")
    c = saved(changed(given, status="rejected"), tmp_path / "c")
    assert main(["report", "--compare", str(a), str(c), "-o", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("1 verdict changed\n")
    page = tmp_path / "out" / "compare.html"
    assert out.endswith(f"{page}\n")
    text = page.read_text(encoding="utf-8")
    assert "1 verdict changed" in text
    assert "Quick scale." in text
    first = text.index('<tr class="changed">')
    assert first < text.index("<tr>", text.index("<tbody>"))
    main(["report", "--compare", str(a), str(b), "-o", str(tmp_path / "out")])
    assert "<b>mlp" not in page.read_text(encoding="utf-8")


def test_command_draws_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results(tmp_path, "mlp")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    first = (tmp_path / "index.html").read_bytes()
    other = tmp_path / "other"
    assert main(["report", str(tmp_path / "results.json"), "-o", str(other)]) == 0
    assert (other / "index.html").read_bytes() == first
    assert len(list((other / "figures").iterdir())) == len(list((tmp_path / "figures").iterdir()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        ("[]", "is no results.json"),
        ('{"scale": "quick"}', "is no results.json"),
        (
            '{"scale": 1, "verdicts": [], "settings": [], "numbers": {}, "skipped": []}',
            "another version",
        ),
    ],
)
def test_what_is_no_result_is_an_error_in_one_line(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultsError, match=told):
        read_results(tmp_path)
    for arguments in ([str(tmp_path)], ["--compare", str(path), str(path)]):
        assert main(["report", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert told in err
        assert str(path) in err
        assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["x", "--compare", "x", "x"], ["--compare", "x"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments])
    assert stop.value.code == 2
    assert "usage: python -m llfc_core report" in capsys.readouterr().err
