"""Options of the suite: refused in one line, and known to every worker alike."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures import options
from tests.suite.running import run_pytests

BAD = {
    "--device=quantum": r"--device quantum: use auto, cpu, cuda or cuda:0",
    "--device=meta": r"--device meta: only cpu and cuda are supported",
    "--device=cuda:99": r"--device cuda:99: (torch finds no CUDA device here|there are \d+ .*)",
    "--replicates=0": r"--replicates must be at least 1",
    "--replicates=-2": r"--replicates must be at least 1",
    "--replicates=two": r"argument --replicates: invalid int value: 'two'",
    "--data=cats": r"argument --data: invalid choice: 'cats'.*",
    "--scale=huge": r"argument --scale: invalid choice: 'huge'.*",
    f"--llfc-report={__file__}": r"--llfc-report .*test_options\.py: File exists",
}


def test_bad_options_are_one_clear_line() -> None:
    said = run_pytests({option: ("phenomena/test_lmc.py", "--co", "-q", option) for option in BAD})
    for option, (code, text) in said.items():
        assert code == pytest.ExitCode.USAGE_ERROR, text
        assert "Traceback" not in text
        errors = [x for x in text.splitlines() if re.match(r"ERROR: --|\S+: error: ", x)]
        assert len(errors) == 1, text
        assert re.fullmatch(BAD[option], errors[0].split(": ", 1)[1].removeprefix("error: ")), text


def test_workers_know_when_the_session_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that starts later, or replaces one that died, must not retrain what is new."""
    clock = iter([100.0, 200.0, 300.0])
    monkeypatch.setattr(options.time, "time", lambda: next(clock))
    controller: Any = SimpleNamespace(stash={})
    workers: list[Any] = [SimpleNamespace(config=controller, workerinput={}) for _ in range(2)]
    for node in workers:
        options.pytest_configure_node(node)
    starts = [options._session_start(c) for c in (controller, *workers)]
    assert len(set(starts)) == 1
