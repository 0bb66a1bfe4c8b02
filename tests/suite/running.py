"""Run the checkout's own suite in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> dict[str, str]:
        """Node id → PASSED, FAILED, XFAIL, …, from ``-v`` or ``-n``'s lines."""
        word = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
        serial = re.findall(rf"^\S*?(phenomena/\S+) {word}", self.out, re.M)
        workers = re.findall(rf"^\[gw\d+\].* {word} \S*?(phenomena/\S+)", self.out, re.M)
        return dict(serial) | {test: outcome for outcome, test in workers}

    @property
    def table(self) -> dict[str, dict[str, str]]:
        """The closing table: claim → column → cell."""
        lines = self.out.split("claims at quick scale", 1)[1].splitlines()[1:]
        head = lines[0]
        starts = [m.start() for m in re.finditer(r"(?<!\S)\S+( \S+)*", head)]
        columns = [head[i:j].strip() for i, j in zip(starts, [*starts[1:], None])]
        rows: dict[str, dict[str, str]] = {}
        for line in lines[1:]:
            if not re.match(r"[a-z0-9-]+ +tiny", line):
                break
            cells = [line[i:j].strip() for i, j in zip(starts, [*starts[1:], None])]
            rows[cells[0]] = dict(zip(columns, cells, strict=True))
        return rows


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what an outer pytest or a user's configuration put there."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "LLFC_"))}
    return {**env, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **extra}


def run_pytest(*args: object, cwd: Path = ROOT, **env: str) -> Ran:
    """``pytest ARGS`` of the checkout; nothing is written to the checkout's own cache."""
    if not any(str(a).startswith("cache_dir") for a in args):
        args = ("-p", "no:cacheprovider", *args)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, args)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


# One process for all: most of the time goes into importing torch.
_EACH = """
import json, sys, pytest
for arguments in json.loads(sys.argv[1]):
    print("@@@", flush=True)
    code = pytest.main(["-p", "no:cacheprovider", *arguments])
    print("@@@", int(code), flush=True)
"""


def run_pytests(
    runs: Mapping[str, Sequence[object]], cwd: Path = ROOT, **env: str
) -> dict[str, tuple[int, str]]:
    """Runs by name with their arguments → exit status and output (with errors) of each.

    Nothing that outlasts a pytest in its process may matter to the next one.
    """
    done = subprocess.run(
        [sys.executable, "-c", _EACH, json.dumps([[*map(str, run)] for run in runs.values()])],
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    parts = done.stdout.split("@@@")[1:]
    assert len(parts) == 2 * len(runs), done.stdout
    return {
        name: (int(code.split()[0]), out)
        for name, out, code in zip(runs, parts[::2], parts[1::2], strict=True)
    }


def strict_json(path: Path) -> Any:
    """What is in a file that must be JSON to the letter: NaN and Infinity are not."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{path} has {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)
