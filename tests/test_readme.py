"""The Python and the one-liners of README and docs run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str, tmp_path: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"LLFC_CACHE_DIR": str(tmp_path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def blocks(page: str, kind: str) -> list[str]:
    found = re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert found, page
    return found


def test_readme_code_runs(tmp_path):
    out = run("\n".join(blocks("README.md", "python")), tmp_path)
    assert "lmc-error" in out
    assert "holds" in out


def test_readme_one_liner_prints_a_barrier(tmp_path):
    (code,) = (
        found
        for block in blocks("README.md", "sh")
        for found in re.findall(r"python -c '\n(.*?)'", block, flags=re.DOTALL)
    )
    assert float(run(code, tmp_path)) >= 0


@pytest.mark.slow
def test_matching_page_runs(tmp_path):
    groups, *_ = run("\n".join(blocks("docs/matching.md", "python")), tmp_path).split()
    assert int(groups) == 12
