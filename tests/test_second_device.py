"""Everything works where the tensors are on another device: see `on_second_device`."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_library_on_a_second_device():
    """In a process of its own, in which that device is registered."""
    checks = Path(__file__).with_name("on_second_device.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(checks), "-q", "-x", "-p", "no:cacheprovider"],
        cwd=checks.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
