"""``--train-only``: the modes of the selected tests, and no others, planned and trained."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch

from fixtures.settings import replicate
from fixtures.training import _minutes, _parameter, _positive
from llfc_core.data import load_dataset
from llfc_core.store import Store
from llfc_core.training import missing
from tests.suite.running import Ran, run_pytest, run_pytests
from tests.suite.tiny import TINY

FILES = tuple(f"phenomena/test_{name}.py" for name in ("lmc", "width", "theorem1"))
DRY = {
    # Matched by three methods, on the same networks.
    "lmc and mlp-mnist-": {"mlp-mnist-spawn": 15, "mlp-mnist-weight": 12},
    # Narrower networks are for the tests of width alone.
    "lmc and resnet20": {"resnet20-cifar10-spawn": 18, "resnet20-cifar10-weight": 12},
    "narrowest": {
        f"resnet20-cifar10-weight{x}": 12
        for x in ("", "-x0.03125", "-x0.0625", "-x0.125", "-x0.25")
    },
    "theorem1_holds": {},
}
REFUSED = {
    "-n2": "--train-only has workers of its own: leave out -n",
    "--retrain": "modes --remove",
    "--time=soon": "'soon' is no time",
    "--engine=slurm --device=cpu": "slurm: ",
}


def rows(out: str) -> dict[str, tuple[int, int]]:
    """The plan's table: by setting, modes and modes to train; but for those without any."""
    found = re.findall(r"^(\S+) +(\d+) +(\d+) +\d+\.\d", out, re.M)
    return {name: (int(needed), int(todo)) for name, needed, todo in found if int(needed)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train-only")


@pytest.fixture(scope="module")
def trained(place: Path) -> Ran:
    return run_pytest(
        *(*FILES, "-p", "tests.suite.tiny", "--replicates=1", "-k=lmc", "--train-only"),
        f"--llfc-cache-dir={place}/store",
    )


@pytest.fixture(scope="module")
def said(place: Path, trained: Ran) -> dict[str, tuple[int, str]]:
    """Exit status and output of dry runs, refusals, and of a plan for what is stored."""
    dry = ("--scale=paper", "--dry-run", "--engine=slurm", f"--data-dir={place}")
    runs = {k: (*FILES, "-k", k, *dry, f"--llfc-cache-dir={place}/dry") for k in DRY}
    tiny = ("phenomena/test_lmc.py", "-p", "tests.suite.tiny", "--replicates=1", "--train-only")
    runs |= {k: (*tiny, *k.split(), f"--llfc-cache-dir={place}/dry") for k in REFUSED}
    runs["again"] = (*tiny, f"--llfc-cache-dir={place}/store")
    return run_pytests(runs, PATH="/nowhere")  # no Slurm; the interpreter is found by its path


def test_it_trains_the_modes_and_runs_no_test(place: Path, trained: Ran) -> None:
    assert trained.code == 0, trained.out + trained.err
    assert rows(trained.out) == {"tiny-spawn": (5, 5)}
    wanted = vars(replicate(TINY, 0)).values()
    data = load_dataset("mnist5k")
    assert missing(wanted, data, Store(place / "store"), torch.device("cpu")) == []
    assert "all modes are in" in trained.out
    assert "training 5 modes" in trained.err
    assert not re.search(r"passed|failed", trained.out)


def test_then_there_is_nothing_left_to_train(place: Path, said: dict[str, tuple[int, str]]) -> None:
    code, out = said["again"]
    assert code == 0
    assert rows(out) == {"tiny-spawn": (5, 0)}
    assert len(list((place / "store" / "jobs").iterdir())) == 1


@pytest.mark.parametrize("selection", DRY)
def test_a_dry_run_plans_for_the_selected_tests(selection, place, said) -> None:
    code, out = said[selection]
    assert code == 0, out
    assert rows(out) == {name: (n, n) for name, n in DRY[selection].items()}
    assert bool(DRY[selection]) == ("GPU-hours" in out) == ("not here, so" in out)
    assert not (place / "dry").exists()


@pytest.mark.parametrize("options", REFUSED)
def test_what_makes_no_sense_is_refused(options, said) -> None:
    code, out = said[options]
    assert code == pytest.ExitCode.USAGE_ERROR, out
    assert REFUSED[options] in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("2:30:00", 150),
        ("1-0", 1440),
        ("1-2:30", 1590),
        ("1-02:30:00", 1590),
        ("0:00:30", 1),
    ],
)
def test_times_are_slurms(text, minutes) -> None:
    assert _minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "1-2:3:4:5", "-1", "1h"])
def test_other_times_are_none(text) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no time"):
        _minutes(text)


@pytest.mark.parametrize(("kind", "text"), [(_positive, "0"), (_parameter, "account")])
def test_options_that_say_nothing_are_refused(kind, text) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)


def test_parameters_are_json_or_text() -> None:
    given = ["account=abc", "cpus_per_task=8", "mem=64GB", "exclusive=true", "comment=a=b"]
    assert [_parameter(g) for g in given] == [
        ("account", "abc"),
        ("cpus_per_task", 8),
        ("mem", "64GB"),
        ("exclusive", True),
        ("comment", "a=b"),
    ]
