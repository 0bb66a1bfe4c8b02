"""The suite as its users run it, on a setting that trains in seconds.

Each run is a pytest in a process of its own, and costs several seconds: a run serves several tests.
Two stores are trained, one by two workers and one by a single process.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fixtures.settings import replicate
from llfc_core import claims
from llfc_core.store import Store
from tests.suite.running import ROOT, Ran, environment, run_pytest, strict_json
from tests.suite.stalled import SAYS
from tests.suite.tiny import TINY

CLAIMS = {c.name: c for c in claims.LMC + claims.LLFC}
FILES = tuple(f"phenomena/test_{name}.py" for name in ("lmc", "llfc", "controls"))
# What speaks of LMC and LLFC, controls included: the tiny pair is no pair for all the rest.
CHOSEN = ("-v", "-p", "tests.suite.tiny", "--replicates=1", "-k", "lmc or llfc")
MODES = {recipe.key(): recipe for recipe in vars(replicate(TINY, 0)).values()}


def trained(log: Path) -> Counter[str]:
    return Counter(log.read_text().split()) if log.exists() else Counter()


def read_results(folder: Path) -> dict[str, Any]:
    return strict_json(folder / "results.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def two_workers(place: Path) -> Ran:
    """The first run of all: an empty store, two workers."""
    return run_pytest(
        *FILES,
        *CHOSEN,
        "-n2",
        f"--llfc-cache-dir={place}/store",
        f"--llfc-report={place}/two",
        LLFC_TRAINED=str(place / "two.log"),
    )


@pytest.fixture(scope="module")
def from_elsewhere(place: Path, two_workers: Ran) -> Ran:
    """The same on the same store: another directory, relative paths, no xdist to be imported."""
    (place / "elsewhere").mkdir()
    return run_pytest(
        *(ROOT / file for file in FILES),
        *CHOSEN,
        *("-p", "tests.suite.without_xdist"),
        "--llfc-cache-dir=../store",
        "--llfc-report=../alone",
        cwd=place / "elsewhere",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        LLFC_TRAINED=str(place / "alone.log"),
    )


@pytest.fixture(scope="module")
def other_store(place: Path) -> Ran:
    """``-k llfc`` in one process, on a store of its own, which it trains."""
    return run_pytest(
        "phenomena/",
        *CHOSEN[:-2],
        *("-k", "llfc", "-p", "no:xdist"),
        f"--llfc-cache-dir={place}/other-store",
        f"--llfc-report={place}/other",
        LLFC_TRAINED=str(place / "other.log"),
    )


@pytest.fixture(scope="module")
def retrained(place: Path, two_workers: Ran, from_elsewhere: Ran) -> Ran:
    """``--retrain`` with two workers on the first store, after all others have read it."""
    return run_pytest(
        *FILES,
        *CHOSEN,
        "-n2",
        "--retrain",
        f"--llfc-cache-dir={place}/store",
        f"--llfc-report={place}/retrained",
        LLFC_TRAINED=str(place / "retrained.log"),
    )


@pytest.fixture(scope="module")
def mutated(place: Path, two_workers: Ran) -> Ran:
    """With a bug in the metric: α swapped for 1 − α in z."""
    return run_pytest(
        *FILES[:2],
        *CHOSEN,
        *("-p", "tests.suite.swapped_alpha", "-o", f"cache_dir={place}/cache"),
        f"--llfc-cache-dir={place}/store",
        f"--llfc-report={place}/mutated",
    )


# ---- green, and what it shows -------------------------------------------------------------------


def test_suite_is_green(two_workers: Ran) -> None:
    assert two_workers.code == 0, two_workers.out + two_workers.err
    outcomes = two_workers.outcomes
    assert {name.partition("::")[0] for name in outcomes} == set(FILES)
    expected = {f"phenomena/test_llfc.py::test_llfc[tiny-spawn-{name}]" for name in TINY.findings}
    failed = {test for test, outcome in outcomes.items() if outcome != "PASSED"}
    assert failed == expected & outcomes.keys()
    assert all(outcomes[test] == "XFAIL" for test in failed)


def test_header(two_workers: Ran, from_elsewhere: Ran, place: Path) -> None:
    """Scale, replicates, device, torch; the store with hits and misses and the time they take."""
    n = len(MODES)
    for ran in (two_workers, from_elsewhere):
        assert re.search(r"^llfc: quick scale, 1 replicate\(s\), .*, torch \d", ran.out, re.M)
    cold = rf"^store: {place}/store, 0 of {n} modes stored, {n} to train \(about \d+ s\)$"
    assert re.search(cold, two_workers.out, re.M), two_workers.out[:1000]
    assert re.search(rf"^store: {place}/store, {n} of {n} modes stored$", from_elsewhere.out, re.M)


def test_table(two_workers: Ran, from_elsewhere: Ran) -> None:
    """Claim, setting, value, interval, bound, controls, verdict: for every claim."""
    table = two_workers.table
    assert table == from_elsewhere.table
    assert set(table) == set(CLAIMS)
    for name, row in table.items():
        claim = CLAIMS[name]
        assert row["setting"] == "tiny-spawn"
        assert row["bound"] == f"{'≤' if claim.at_most else '≥'} {claim.bound:g}"
        value = float(row["value"].split()[0])
        low, high = (float(x) for x in row["95% interval"].strip("[]").split(", "))
        assert low <= value <= high
        assert row["verdict"] == ("finding" if name in TINY.findings else "holds")
        assert "shuffled" in row["controls"]
        assert "PASSES" not in row["controls"]
        apart = claim in (claims.NOT_ALIGNED, claims.NOT_ALIGNED_OUTPUT)
        assert ("independent" in row["controls"]) != apart
    assert "finding: llfc-apart-output on tiny-spawn: " in two_workers.out


def test_results(two_workers: Ran, place: Path) -> None:
    """Every number behind the verdicts, in strict JSON."""
    results = read_results(place / "two")
    assert (results["scale"], results["replicates"], results["skipped"]) == ("quick", 1, [])
    outcomes = two_workers.outcomes
    assert {v["test"] for v in results["verdicts"]} == outcomes.keys()
    for v in results["verdicts"]:
        assert v["outcome"].upper() == outcomes[v["test"]].replace("XFAIL", "XFAILED")
        worst = v["layers"][v["layer"]]
        assert [v["value"], v["low"], v["high"]] == worst
        if not v["control"]:
            row = two_workers.table[v["claim"]]
            assert float(row["value"].split()[0]) == pytest.approx(v["value"], rel=6e-3)
    (setting,) = results["settings"]
    assert setting["setting"] == "tiny-spawn"
    assert {m["mode"] for m in setting["modes"]} >= {"a", "b", "c"}
    for mode in setting["modes"]:
        entry = Store(place / "store").get(mode["key"])
        assert entry is not None
        assert entry.facts["test_error"] == mode["test_error"]
    pairs = {p["link"]: p for p in setting["pairs"]}
    assert pairs.keys() >= {"spawned", "independent", "shuffled"}
    for pair in pairs.values():
        layers, alphas = pair["layers"], pair["alphas"]
        assert layers == ["fc1", "fc2", "fc3", "fc4"]
        # Claims about training look at A and B alone, not at what lies between them.
        whole = pair["pair"] in ("linked", "independent", "shuffled")
        assert set(alphas) >= ({0, 0.25, 0.5, 0.75, 1} if whole else {0, 1})
        for key in ("one_minus_cos", "coef"):
            assert [len(row) for row in pair[key]["mean"]] == [len(alphas)] * 4
        assert len(pair["error"]["mean"]) == len(pair["loss"]["std"]) == len(alphas)


# ---- the same in every way of running -----------------------------------------------------------


def test_same_results_with_and_without_xdist_and_from_elsewhere(
    two_workers: Ran, from_elsewhere: Ran, place: Path
) -> None:
    assert from_elsewhere.code == 0, from_elsewhere.out + from_elsewhere.err
    assert from_elsewhere.outcomes == two_workers.outcomes
    assert trained(place / "alone.log") == Counter()
    one, two = (read_results(place / name) for name in ("alone", "two"))
    when, other = one.pop("run"), two.pop("run")  # the command, the date
    assert when.keys() == other.keys()
    assert one == two
    names = [
        sorted(p.name for p in (place / name / "figures").iterdir()) for name in ("alone", "two")
    ]
    assert names[0] == names[1] != []
    for name in names[0]:
        first, second = ((place / one / "figures" / name).read_bytes() for one in ("alone", "two"))
        assert first == second, name


def test_same_verdicts_on_a_store_trained_otherwise(
    two_workers: Ran, other_store: Ran, place: Path
) -> None:
    """Two workers and one process train bit-identical modes, so every number agrees."""
    assert other_store.code == 0, other_store.out + other_store.err
    assert trained(place / "other.log") == Counter(MODES.keys())
    one, other = (read_results(place / name) for name in ("two", "other"))
    verdicts = {v["test"]: v for v in one["verdicts"]}
    assert other["verdicts"]
    for v in other["verdicts"]:
        assert v == verdicts[v["test"]]
    assert one["settings"][0]["pairs"] == other["settings"][0]["pairs"]


def test_k_llfc_selects_by_file_and_claim(other_store: Ran, two_workers: Ran) -> None:
    chosen = {test for test in other_store.outcomes if "tiny-spawn" in test}
    assert {t for t in two_workers.outcomes if "llfc" in t} <= chosen
    assert all("llfc" in test for test in chosen)


def test_each_mode_is_trained_once(two_workers: Ran, place: Path) -> None:
    assert trained(place / "two.log") == Counter(MODES.keys())


def test_retrain_trains_each_mode_once_in_all(retrained: Ran, place: Path) -> None:
    assert retrained.code == 0, retrained.out + retrained.err
    assert trained(place / "retrained.log") == Counter(MODES.keys())
    assert re.search(rf"{len(MODES)} to train", retrained.out)
    before, after = (read_results(place / name) for name in ("two", "retrained"))
    assert before["verdicts"] == after["verdicts"]
    finished = {m["key"]: m["finished"] for m in before["settings"][0]["modes"]}
    for mode in after["settings"][0]["modes"]:
        assert mode["finished"] > finished[mode["key"]]


# ---- while it runs ------------------------------------------------------------------------------


def test_training_is_seen_on_stderr_from_workers_and_despite_capture(
    two_workers: Ran, other_store: Ran
) -> None:
    begun = rf"tiny-spawn: training {len(MODES)} modes: \d+ steps$"
    assert re.search(rf"^gw\d: {begun}", two_workers.err, re.M), two_workers.err
    assert re.search(rf"^{begun}", other_store.err, re.M), other_store.err
    done = r"tiny-spawn: training \d+ modes: (\d+) steps in \d+ s$"
    assert re.search(done, two_workers.err, re.M)
    assert re.search(done, other_store.err, re.M)
    assert "training" not in re.sub(r"test_\S+", "", other_store.out.split("::", 1)[1])


def test_nothing_is_said_when_nothing_is_trained(from_elsewhere: Ran) -> None:
    assert from_elsewhere.err == ""


# ---- red ----------------------------------------------------------------------------------------


def test_a_bug_in_the_metric_makes_the_suite_red(mutated: Ran) -> None:
    """z's α swapped: the run fails, and says in which layer, by how much, where to look."""
    assert mutated.code == 1
    red = {test for test, outcome in mutated.outcomes.items() if outcome == "FAILED"}
    cosine = "phenomena/test_llfc.py::test_llfc[tiny-spawn-llfc-cosine]"
    assert cosine in red
    assert "phenomena/test_lmc.py::test_lmc[tiny-spawn-lmc-error]" not in red
    message = mutated.out.split("llfc-cosine (Def. 2", 1)[1]
    assert message.split("\n", 1)[0].endswith("1 spawned pair(s): rejected")
    number = r"([\d.e+-]+)"
    lines = re.findall(rf"(→?) (fc\d) +{number} +\[{number}, {number}\]", message)[:4]
    assert [layer for _, layer, *_ in lines] == ["fc1", "fc2", "fc3", "fc4"]
    marked = [layer for mark, layer, *_ in lines if mark]
    values = {layer: float(high) for _, layer, _, _, high in lines}
    assert marked == [max(values, key=lambda k: values[k])]
    assert values[marked[0]] > claims.LLFC_COSINE.bound
    assert f"bound: ≤ {claims.LLFC_COSINE.bound:g}" in message
    assert f"look at: {claims.LLFC_COSINE.look_at}" in message
    assert mutated.table["llfc-cosine"]["verdict"] == "rejected"


def test_lf_runs_what_was_red(mutated: Ran, place: Path) -> None:
    """The bug away, ``--lf`` runs just the failed claims again, and they hold."""
    red = {test for test, outcome in mutated.outcomes.items() if outcome == "FAILED"}
    again = run_pytest(
        *FILES[:2],
        *CHOSEN,
        *("--lf", "-o", f"cache_dir={place}/cache", f"--llfc-cache-dir={place}/store"),
    )
    assert again.code == 0, again.out
    assert again.outcomes == dict.fromkeys(red, "PASSED")
    assert set(again.table) == {test.split("tiny-spawn-")[1].rstrip("]") for test in red}


# ---- the report --------------------------------------------------------------------------------


def test_the_report_is_written_by_two_workers_and_says_what_ran(
    two_workers: Ran, place: Path
) -> None:
    assert f"the report is {place}/two/index.html" in two_workers.out
    results = read_results(place / "two")
    assert results["outcomes"] == Counter(
        o.replace("XFAIL", "xfailed").lower() for o in two_workers.outcomes.values()
    )
    assert (results["red"], results["interrupted"]) == ([], False)
    assert results["options"] == ["--replicates", "1"]
    assert "phenomena/test_lmc.py" in results["run"]["command"]
    text = (place / "two" / "index.html").read_text(encoding="utf-8")
    assert "Quick scale." in text
    assert "tiny-spawn" in text


def test_the_report_of_a_subset_has_what_ran(other_store: Ran, place: Path) -> None:
    assert "the report is" in other_store.out
    text = (place / "other" / "index.html").read_text(encoding="utf-8")
    assert "llfc-cosine" in text
    assert 'id="tiny-spawn-cosine"' in text
    assert "low-rank-weights" not in text
    assert 'id="tiny-spawn-weights"' not in text


def test_the_report_is_written_when_tests_fail(mutated: Ran, place: Path) -> None:
    red = {test for test, outcome in mutated.outcomes.items() if outcome == "FAILED"}
    results = read_results(place / "mutated")
    assert set(results["red"]) == red
    assert results["outcomes"]["failed"] == len(red)
    text = (place / "mutated" / "index.html").read_text(encoding="utf-8")
    assert f"{len(red)} test" in text
    assert all(test in text for test in red)


def test_the_report_is_written_when_interrupted(two_workers: Ran, place: Path) -> None:
    """Ctrl-C: what was judged by then, and the exit status of an interrupted run."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", FILES[0], *CHOSEN]
    command += ["-p", "tests.suite.stalled", "-p", "no:xdist", f"--llfc-cache-dir={place}/store"]
    with subprocess.Popen(
        [*command, f"--llfc-report={place}/interrupted"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell runs in the background ignores SIGINT, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None
        out = ""
        while SAYS not in out:
            line = child.stdout.readline()
            assert line, out
            out += line
        child.send_signal(signal.SIGINT)
        out += child.communicate(timeout=120)[0]
    assert child.returncode == pytest.ExitCode.INTERRUPTED, out
    results = read_results(place / "interrupted")
    assert results["interrupted"]
    assert [v["claim"] for v in results["verdicts"]] == ["lmc-error"]
    assert "Interrupted." in (place / "interrupted" / "index.html").read_text(encoding="utf-8")
    assert "the report is" in out


@pytest.mark.parametrize(
    ("kilobytes", "told"),
    [pytest.param(1, "results not written", marks=pytest.mark.slow), (60, "no page")],
)
def test_a_full_disk_is_told_in_a_line_and_masks_nothing(
    two_workers: Ran, place: Path, kilobytes: int, told: str
) -> None:
    """No file may get longer than so much: the results, or the page, cannot be written whole."""
    folder = place / f"full-{kilobytes}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", FILES[0], *CHOSEN]
    options = ["-p", "no:xdist", f"--llfc-cache-dir={place}/store", f"--llfc-report={folder}"]
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *command, *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(told)]
    assert "File too large" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert (folder / "results.json").exists() == (told == "no page")
    assert not (folder / "index.html").exists()
    assert not list(folder.rglob("*.tmp"))


# ---- what cannot run ----------------------------------------------------------------------------


def test_paper_scale_without_data_is_skipped_with_a_line_each(tmp_path: Path) -> None:
    empty = tmp_path / "data"
    empty.mkdir()
    ran = run_pytest(
        "phenomena/",
        *("-k", "llfc", "--scale=paper", f"--llfc-report={tmp_path}"),
        f"--llfc-cache-dir={tmp_path}/store",
        LLFC_DATA_DIR=str(empty),
    )
    assert ran.code == 0, ran.out + ran.err
    assert re.search(r"\d+ skipped", ran.out)
    lines = [line for line in ran.out.splitlines() if line.startswith("not run: ")]
    assert len(lines) == len({line.split()[2] for line in lines}) >= 1
    for line in lines:
        assert re.match(r"not run: \S+ \(paper\): .*", line)
        assert str(empty) in line
        assert "--download" in line
        assert "--data-dir" in line
    assert "claims at paper scale" not in ran.out
    results = read_results(tmp_path)
    assert [f"not run: {reason}" for reason in results["skipped"]] == sorted(lines)
    assert results["verdicts"] == []
