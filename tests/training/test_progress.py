"""What the user sees while modes train: a live bar on a terminal, else a line now and then."""

from __future__ import annotations

import io
import re
import threading

import pytest

from llfc_core.store import Store
from llfc_core.training import Progress, ensure
from llfc_core.training import progress as progress_module
from tests.helpers import tiny_dataset, tiny_recipe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    return clock


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_a_line_comes_every_so_often(clock):
    stream = io.StringIO()
    shown = Progress(600, 4, stream=stream)
    assert lines(stream) == ["training 4 modes: 600 steps"]
    for _ in range(9):
        shown.advance(10)
        clock.now += 1
        shown.refresh()
    assert len(lines(stream)) == 1
    shown.advance(10)
    clock.now += 1
    shown.refresh()
    shown.refresh()
    [_, line] = lines(stream)
    assert line.startswith("training 4 modes: ")
    assert "100/600" in line
    assert "17%" in line
    assert "00:10<00:50" in line  # ten seconds gone, fifty left
    assert "10.00step/s" in line
    clock.now += 10
    shown.refresh()
    assert len(lines(stream)) == 3


def test_a_line_is_written_in_one_piece(clock):
    """Workers share the stream: what is written apart ends up between another's."""

    class Pieces(io.StringIO):
        def __init__(self):
            super().__init__()
            self.written = []

        def write(self, text):
            self.written.append(text)
            return super().write(text)

    stream = Pieces()
    Progress(600, 4, stream=stream).close()
    assert len(stream.written) == 2
    assert all(text.endswith("\n") for text in stream.written)


def test_how_often_can_be_said(clock):
    stream = io.StringIO()
    shown = Progress(600, 4, stream=stream, every=2.0)
    for _ in range(8):
        clock.now += 1
        shown.refresh()
    assert len(lines(stream)) == 1 + 4


def test_the_end_is_said_with_its_time(clock):
    stream = io.StringIO()
    shown = Progress(600, 1, stream=stream)
    shown.advance(600)
    clock.now += 61.4
    shown.close()
    assert lines(stream) == ["training 1 mode: 600 steps", "training 1 mode: 600 steps in 61 s"]


def test_a_prefix_says_who_speaks(clock):
    stream = io.StringIO()
    Progress(6, 2, stream=stream, prefix="gw1: mlp: ").close()
    assert all(line.startswith("gw1: mlp: training 2 modes: ") for line in lines(stream))


def test_a_worker_that_waits_says_for_whom_until_it_goes_on(clock):
    stream = io.StringIO()
    shown = Progress(600, 4, stream=stream)
    shown.waiting("mlp init=3: process 12 on host, since 14:05:12")
    clock.now += 10
    shown.refresh()
    assert lines(stream)[-1].endswith("waiting for mlp init=3: process 12 on host, since 14:05:12")
    shown.advance(1)
    clock.now += 10
    shown.refresh()
    assert "waiting" not in lines(stream)[-1]


def test_the_stream_is_stderr_unless_another_is_named(capsys):
    Progress(6, 2).close()
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("training 2 modes: 6 steps\n")


def test_steps_of_many_threads_add_up(clock):
    shown = Progress(4000, 4, stream=io.StringIO())

    def advance() -> None:
        for _ in range(1000):
            shown.advance(1)

    threads = [threading.Thread(target=advance) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown.done == 4000


def frames(stream: io.StringIO) -> list[str]:
    """What a terminal showed one after the other; each drawing begins with a return."""
    return [f.strip() for f in re.split(r"[\r\n]", stream.getvalue()) if f.strip()]


def test_on_a_terminal_a_bar_is_drawn_and_goes_away(clock):
    stream = Terminal()
    shown = Progress(600, 4, stream=stream, prefix="mlp: ")
    assert "mlp: training 4 modes:   0%" in frames(stream)[0]
    shown.advance(300)
    shown.refresh()
    assert "50%" in frames(stream)[-1]
    assert "300/600" in frames(stream)[-1]
    shown.advance(300)
    shown.close()
    assert frames(stream)[-1] == "mlp: training 4 modes: 600 steps in 0 s"
    assert stream.getvalue().count("\n") == 1


def test_on_a_terminal_a_note_shows_at_once_though_no_step_is_done(clock):
    stream = Terminal()
    shown = Progress(600, 4, stream=stream)
    for _ in range(50):  # the bar has got used to many steps between drawings
        shown.advance(5)
        shown.refresh()
    shown.waiting("process 12")
    shown.refresh()
    assert "waiting for process 12" in frames(stream)[-1]
    assert "250/600" in frames(stream)[-1]
    shown.advance(1)
    shown.refresh()
    assert "waiting" not in frames(stream)[-1]
    shown.close()


def test_training_is_shown_from_beginning_to_end(tmp_path):
    stream = io.StringIO()
    ensure(
        [tiny_recipe(1), tiny_recipe(2)],
        tiny_dataset(),
        Store(tmp_path),
        progress=lambda steps, modes: Progress(steps, modes, stream=stream),
    )
    first, last = lines(stream)
    assert first == "training 2 modes: 60 steps"
    assert re.fullmatch(r"training 2 modes: 60 steps in \d+ s", last)
