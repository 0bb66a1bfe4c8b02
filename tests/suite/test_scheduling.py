"""Tests come setting by setting, then file by file. Each setting's go to one worker, and so do
those of a module without settings.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.options import RUN
from fixtures.scheduling import effort, pytest_xdist_make_scheduler, setting_in
from fixtures.settings import COMPARED, SETTINGS, Setting
from tests.suite.running import run_pytest
from tests.suite.twins import TWINS

IDS = ("mlp-mnist-spawn", "mlp-mnist-spawn-wide", "vgg")


@pytest.mark.parametrize(
    ("nodeid", "found"),
    [
        ("phenomena/test_lmc.py::test_lmc[mlp-mnist-spawn-lmc-error]", "mlp-mnist-spawn"),
        ("phenomena/test_lmc.py::test_lmc[mlp-mnist-spawn-wide-lmc-error]", "mlp-mnist-spawn-wide"),
        ("phenomena/test_lmc.py::test_lmc[mlp-mnist-spawn]", "mlp-mnist-spawn"),
        ("phenomena/test_lmc.py::test_lmc[lmc-error-vgg]", "vgg"),
        ("phenomena/test_lmc.py::test_lmc[a-vgg-b]", "vgg"),
        ("phenomena/test_lmc.py::test_lmc[vggish]", None),
        ("phenomena/test_vgg.py::test_vgg", None),
        ("phenomena/vgg/test_a.py::test_b[x]", None),
    ],
)
def test_setting_in(nodeid: str, found: str | None) -> None:
    assert setting_in(nodeid, IDS) == found
    assert setting_in(nodeid, IDS[::-1]) == found


def test_what_takes_long_goes_first() -> None:
    rows = [None, *SETTINGS["quick"], *COMPARED["quick"]]
    ids = [row.id for row in sorted(rows, key=effort, reverse=True) if row is not None]
    assert ids[0] == "resnet20-matchers"
    first_mlp = next(i for i, row in enumerate(ids) if row.startswith("mlp"))
    assert all(row.startswith("mlp") for row in ids[first_mlp:])
    assert ids[first_mlp].endswith("-matchers")
    assert effort(None) == 0


def test_workers_are_given_what_takes_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduling = pytest.importorskip("xdist.scheduler").LoadScopeScheduling
    given = []
    monkeypatch.setattr(
        scheduling,
        "_assign_work_unit",
        lambda self, node: given.append(self.workqueue.popitem(last=False)[0]),
    )
    config: Any = Config(SETTINGS["quick"] + COMPARED["quick"], "load", 2)
    scheduler = pytest_xdist_make_scheduler(config, None)
    waiting = ["phenomena/test_lemma1.py", "mlp-mnist-spawn", "mlp32-matchers"]
    waiting += ["vgg16-cifar10-spawn", "resnet20-cifar10-spawn"]
    scheduler.workqueue = OrderedDict((name, {}) for name in waiting)
    while scheduler.workqueue:
        scheduler._assign_work_unit(None)
    assert given == [*waiting[3:], waiting[2], *waiting[:2]]


def test_order_is_by_setting_then_by_file(tmp_path: Path) -> None:
    """So that a setting's evidence is made once, and the table fills file by file.

    Collecting trains nothing, and makes no store.
    """
    ran = run_pytest(
        *("phenomena/", "-p", "tests.suite.twins", "--collect-only", "-q"),
        f"--llfc-cache-dir={tmp_path}/store",
    )
    assert (ran.code, ran.err) == (0, ""), ran.out
    assert not (tmp_path / "store").exists()
    tests = [line for line in ran.out.splitlines() if "::" in line and "tiny-spawn" in line]
    settings = ["wide" if "tiny-spawn-wide" in test else "tiny" for test in tests]
    assert [s for s, _ in groupby(settings)] == ["tiny", "wide"]
    for setting in ("tiny", "wide"):
        files = [t.split("::")[0] for t, s in zip(tests, settings, strict=True) if s == setting]
        runs = [file for file, _ in groupby(files)]
        assert len(runs) == len(set(runs)) >= 3, f"files are interleaved: {runs}"


PROJECT = {
    "conftest.py": """
pytest_plugins = ["fixtures.options", "fixtures.modes", "fixtures.scheduling"]
""",
    "test_one.py": """
import os, pathlib, pytest

@pytest.mark.parametrize("claim", range(6))
def test_claim(setting, claim):
    worker = os.environ["PYTEST_XDIST_WORKER"]
    with pathlib.Path(os.environ["WORKERS"]).open("a") as file:
        file.write(f"{setting.id} {worker}\\n")
""",
    "test_bare.py": """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(6))
def test_of_no_setting(number):
    worker = os.environ["PYTEST_XDIST_WORKER"]
    with pathlib.Path(os.environ["WORKERS"]).open("a") as file:
        file.write(f"bare {worker}\\n")
""",
}


def test_two_settings_on_two_workers(tmp_path: Path) -> None:
    for name, text in {**PROJECT, "test_two.py": PROJECT["test_one.py"]}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    log = tmp_path / "workers"
    ran = run_pytest("-v", "-n2", "-p", "tests.suite.twins", cwd=tmp_path, WORKERS=str(log))
    assert ran.code == 0, ran.out + ran.err
    assert "30 passed" in ran.out
    assert "BySetting" in ran.out
    seen: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        setting, worker = line.split()
        seen.setdefault(setting, set()).add(worker)
    assert sorted(map(len, seen.values())) == [1, 1, 1]
    assert set.union(*seen.values()) == {"gw0", "gw1"}


class Config:
    """As much of a pytest configuration as choosing a scheduler takes."""

    def __init__(self, settings: tuple[Setting, ...], dist: str, workers: int) -> None:
        self.stash = {RUN: SimpleNamespace(all_settings=settings)}
        self.options = {"dist": dist, "tx": [f"{workers}*popen"]}

    def getoption(self, name: str) -> Any:
        return self.options[name]

    getvalue = getoption


@pytest.mark.parametrize(
    ("settings", "dist", "workers", "grouped"),
    [
        (TWINS, "load", 2, True),
        (TWINS, "load", 1, True),
        (TWINS, "load", 3, False),
        (TWINS[:1], "load", 2, False),
        (TWINS, "worksteal", 2, False),
        (TWINS, "loadfile", 2, False),
    ],
)
def test_grouping_is_for_settings_enough_and_no_other_wish(
    settings: tuple[Setting, ...], dist: str, workers: int, grouped: bool
) -> None:
    pytest.importorskip("xdist")
    config: Any = Config(settings, dist, workers)
    scheduler = pytest_xdist_make_scheduler(config, None)
    assert (scheduler is not None) == grouped
    if grouped:
        alone = "phenomena/test_lemma1.py::test_lemma1"
        assert scheduler._split_scope(alone) == "phenomena/test_lemma1.py"
        assert scheduler._split_scope("a.py::b[tiny-spawn-c]") == "tiny-spawn"


def test_scheduler_is_registered(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("fixtures.scheduling")
