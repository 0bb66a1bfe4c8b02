"""What the user sees while modes train: a live bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counts steps of any number of threads and shows them with rate and time left.

    Parameters
    ----------
    steps, modes
        The work to be done.
    stream
        Where to write; a bar is drawn if it is a terminal.
    prefix
        Who is speaking, where several processes share a stream.
    every
        Seconds between lines where there is no terminal.
    """

    def __init__(
        self,
        steps: int,
        modes: int,
        stream: TextIO | None = None,
        prefix: str = "",
        every: float = 10.0,
    ) -> None:
        self.stream = stream or sys.stderr
        self.every = every
        self.title = f"{prefix}training {modes} mode{'s' if modes != 1 else ''}"
        self.total, self.done = steps, 0
        self.note = ""
        self._lock = threading.Lock()
        self._began = self._said = time.monotonic()
        self._bar = None
        if self.stream.isatty():
            self._bar = tqdm(
                total=steps, desc=self.title, unit="step", file=self.stream, leave=False
            )
        else:
            self._line(f"{self.title}: {steps} steps")

    def advance(self, steps: int) -> None:
        with self._lock:
            self.done += steps
            self.note = ""

    def waiting(self, for_what: str) -> None:
        """Say that there is nothing to do here but wait for another process."""
        with self._lock:
            self.note = f"waiting for {for_what}"

    def refresh(self) -> None:
        """Bring the display up to date; called by the thread that owns the stream."""
        with self._lock:
            done, note = self.done, self.note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            if not self._bar.update(done - self._bar.n):
                self._bar.refresh()  # the clock and the note go on where the steps do not
            return
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            meter = tqdm.format_meter(done, self.total, now - self._began, ncols=0, unit="step")
            self._line(f"{self.title}: {meter}" + (f" {note}" if note else ""))

    def close(self) -> None:
        """Take the bar away, and say in a line how long it took."""
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._began
        self._line(f"{self.title}: {self.done} steps in {seconds:.0f} s")

    def _line(self, text: str) -> None:
        self.stream.write(f"{text}\n")  # in one piece: workers share the stream
        self.stream.flush()
