"""What a cluster is given to run: a command for each GPU of a task.

submitit pickles a `Task` on its way from our own submitting process to our own task, and that is
two strings and some numbers. Everything else travels as JSON. Nothing here imports torch: this
process only waits for its children, and answers signals at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class Task:
    """``python -m llfc_core train PLAN --pack I`` for each of a task's packs, one on each GPU."""

    plan: str
    packs: tuple[int, ...]

    def __call__(self) -> None:
        # submitit ignores it: Slurm means that the job is over here, requeued or not.
        signal.signal(signal.SIGTERM, stop)
        commands = [
            [sys.executable, "-m", "llfc_core", "train", self.plan, "--pack", str(pack)]
            for pack in self.packs
        ]
        with contextlib.ExitStack() as running:
            children = [
                running.enter_context(_running(command, environment))
                for command, environment in zip(commands, self._environments(), strict=True)
            ]
            codes = [child.wait() for child in children]
        for pack, code in zip(self.packs, codes, strict=True):
            if code:
                print(f"pack {pack} ended with status {code}", file=sys.stderr)
        if any(codes):
            sys.exit(1)  # an exception would bury the log's end under submitit's own lines

    def checkpoint(self) -> Any:
        """What submitit submits again near the time limit: the same, as the store remembers."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _environments(self) -> list[dict[str, str]]:
        """A GPU of the task's for each pack, where there are several."""
        if len(self.packs) == 1:
            return [dict(os.environ)]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else list(map(str, range(len(self.packs))))
        return [
            {**os.environ, "CUDA_VISIBLE_DEVICES": device} for device in devices[: len(self.packs)]
        ]


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is asked to stop where this process stops, and gives its locks back."""
    child = subprocess.Popen(command, env=environment)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()


def stop(number: int, frame: object) -> NoReturn:
    """A signal handler: end in good order, from where the program is."""
    sys.exit(128 + number)
