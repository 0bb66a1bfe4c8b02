"""What README and the pages of docs/ show runs as it stands.

Python: the blocks of a page one after the other, in a folder with the examples. Commands:
``python -m llfc_core`` runs; ``pytest`` collects with the options given, ``make`` says what it
would do: their runs are minutes, and tested elsewhere. Installing is left to the reader.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.suite.running import ROOT, environment, run_pytests

PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
SLOW = {"docs/matching.md", "docs/own-networks.md"}
INSTALLING = r"python3 -m venv |\.venv/bin/(pip|ruff) |(python3? -m )?pip install "
# Printed by what they stand under.
OUTPUT = {"text"}


def fences(page: str) -> list[tuple[str, str]]:
    """(kind, text) of the blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.M)


def commands(page: str) -> list[str]:
    """The lines that a reader types, of fenced and of indented blocks, comments taken away."""
    lines = [x for kind, block in fences(page) if kind == "sh" for x in block.splitlines()]
    plain = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.M)
    lines += re.findall(r"^    ((?:make|pytest|python) .*)$", plain, flags=re.M)
    typed = (line.split("  #")[0].strip().removeprefix(".venv/bin/") for line in lines)
    return [line for line in typed if re.match(r"(make|pytest|python) ", line)]


def slowly(pages: Iterable[str]) -> list[Any]:
    return [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in pages]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader might sit: with the examples, and nothing else of the checkout."""
    place = tmp_path_factory.mktemp("reader")
    (place / "examples").symlink_to(ROOT / "examples")
    return place


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment(LLFC_CACHE_DIR=str(folder / "cache"), OMP_NUM_THREADS="1")
    env["PYTHONPATH"] += os.pathsep + str(folder)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("page", slowly(p for p in PAGES if "python" in dict(fences(p))))
def test_python_runs(page: str, folder: Path) -> None:
    code = "\n".join(block for kind, block in fences(page) if kind == "python")
    done = run(folder, "-c", code)
    assert done.returncode == 0, done.stderr
    if page == "README.md":
        assert "lmc-error" in done.stdout
        assert "holds" in done.stdout


def test_one_liners_print_a_number(folder: Path) -> None:
    blocks = [block for kind, block in fences("README.md") if kind == "sh"]
    found = [x for block in blocks for x in re.findall(r"python -c '\n(.*?)'", block, re.DOTALL)]
    assert found
    for code in found:
        assert float(run(folder, "-c", code).stdout) >= 0


with_commands = [p for p in PAGES if any(c.startswith("python -m") for c in commands(p))]


@pytest.mark.parametrize("page", slowly(with_commands))
def test_commands_of_the_library_run(page: str, folder: Path) -> None:
    """After the page's Python, which may write what they read; 1 says something of the networks."""
    code = "\n".join(block for kind, block in fences(page) if kind == "python")
    if "save_file" in code and not (folder / "a.safetensors").exists():
        assert run(folder, "-c", code).returncode == 0
    for command in commands(page):
        if command.startswith("python -m llfc_core"):
            # Brackets are what may be left out.
            words = shlex.split(re.sub(r"\[.*?\]", "", command))[1:]
            done = run(folder, *words)
            if any(word.isupper() for word in words):  # stands for what a reader has
                assert "usage:" not in done.stderr, command + done.stderr
                continue
            assert done.returncode in (0, 1), command + done.stderr
            assert done.stdout, command


@pytest.mark.slow
def test_pytest_commands_collect(tmp_path: Path) -> None:
    found = [c for page in PAGES for c in commands(page) if c.startswith("pytest ")]
    assert len(found) > 10
    runs = {c: shlex.split(c.replace("DIR", str(tmp_path / "there")))[1:] for c in found}
    ran = run_pytests(
        {c: ["--collect-only", "-q", *args] for c, args in runs.items()},
        LLFC_CACHE_DIR=str(tmp_path),
    )
    for command, (code, said) in ran.items():
        if "cuda" in command and "no CUDA device here" in said:
            continue
        assert code == 0, f"{command}\n{said}"


def test_make_commands_are_targets() -> None:
    found = {c for page in PAGES for c in commands(page) if c.startswith("make ")}
    assert {"make phenomena", "make test"} <= found
    for command in found:
        words = shlex.split(command)
        done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, command + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run(page: str) -> None:
    assert {kind for kind, _ in fences(page)} <= {"python", "sh", *OUTPUT}, page
    for kind, block in fences(page):
        if kind == "sh":
            rest = re.sub(r"python -c '\n.*?'", "", block, flags=re.DOTALL).splitlines()
            known = rf"(make|(\.venv/bin/)?(pytest|python)) |{INSTALLING}|$|#"
            assert all(re.match(known, line) for line in rest), block


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / page).read_text()):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
