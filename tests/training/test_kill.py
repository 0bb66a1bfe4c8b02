"""SIGKILL at any moment of training or writing: the finished weights are the same bits."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from llfc_core.data import Augmentation
from llfc_core.nets import Net
from llfc_core.store import Store
from llfc_core.training import Mode, Optimiser, Point, Seeds, ensure, spawn
from tests.helpers import (
    finish,
    identical,
    quarantined,
    start,
    tiny_dataset,
    tiny_recipe,
    train_and_die,
)

DATASET = tiny_dataset()
# The last one has BatchNorm, whose statistics are in the checkpoints.
RECIPES = [
    *spawn(
        tiny_recipe(augmentation=Augmentation(crop_padding=1, flip=True)),
        Point(1, 2),
        [Seeds(1, 1, 1), Seeds(2, 2, 2)],
    ),
    tiny_recipe(3, optimiser=Optimiser("sgd", lr=0.1, momentum=0.9)),
    tiny_recipe(
        4,
        net=Net("vgg16", (2, 2, 3, 3, 4, 5, 5)),
        optimiser=Optimiser("sgd", lr=0.05, momentum=0.9),
    ),
]
EVENTS = ("step", "mkdir", "open", "write", "fsync", "rename")


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[Mode]:
    """The modes of a run that nobody killed."""
    return ensure(RECIPES, DATASET, Store(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def counts(tmp_path_factory) -> dict[str, int]:
    """How often each event happens in a run that nobody kills."""
    folder = tmp_path_factory.mktemp("counts")
    child = start(train_and_die, folder / "store", RECIPES, "none", 0, folder / "counts")
    assert finish(child) == 0
    lines = (folder / "counts").read_text().splitlines()
    found = {what: int(n) for what, n in map(str.split, lines)}
    assert found.keys() == set(EVENTS)
    return found


def started(root: Path) -> BaseProcess:
    """A process that has just done its first step."""
    child = start(train_and_die, root, RECIPES, "none", 0)
    until = time.monotonic() + 60
    while not Path(f"{root}.started").exists() and time.monotonic() < until:
        time.sleep(0.001)
    return child


@pytest.fixture(scope="module")
def seconds(tmp_path_factory) -> float:
    """How long a run takes that nobody kills, from its first step."""
    child = started(tmp_path_factory.mktemp("seconds") / "store")
    began = time.monotonic()
    assert finish(child) == 0
    return time.monotonic() - began


@pytest.fixture
def draw() -> random.Random:
    """Another moment each time; pytest shows the seed if the test fails."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random.Random({seed})")
    return random.Random(seed)


def kill_at(root: Path, event: str, nth: int) -> None:
    print(f"killed at {event} {nth}")
    assert finish(start(train_and_die, root, RECIPES, event, nth)) == -signal.SIGKILL


def check_what_is_left_and_finish(root: Path, expected: list[Mode]) -> None:
    store = Store(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a corrupt entry would be a warning
        for mode in expected:
            entry = store.get(mode.key)
            assert entry is None or identical(entry.groups["weights"], mode.weights)
        modes = ensure(RECIPES, DATASET, store, checkpoint_seconds=0)
    for mode, whole in zip(modes, expected, strict=True):
        assert mode.key == whole.key
        assert identical(mode.weights, whole.weights)
    assert not quarantined(store)
    assert len(store.keys()) == 5


@pytest.mark.parametrize("event", EVENTS)
def test_killed_at_a_random_event_it_is_finished_to_the_same_bits(
    event, tmp_path, expected, counts, draw
):
    root = tmp_path / "store"
    kill_at(root, event, draw.randint(1, counts[event]))
    check_what_is_left_and_finish(root, expected)


def test_killed_while_publishing_half_a_file_is_swept(tmp_path, expected, counts):
    root = tmp_path / "store"
    kill_at(root, "write", counts["write"])  # the last one: of a manifest
    [half] = (root / "tmp").iterdir()
    assert (half / "manifest.json").stat().st_size > 0
    check_what_is_left_and_finish(root, expected)
    assert not list((root / "tmp").iterdir())


def test_killed_after_a_checkpoint_it_goes_on_from_there(tmp_path, expected):
    root = tmp_path / "store"
    kill_at(root, "step", 27)  # 12 of the parent, one that counts what was skipped, 14 of a child
    assert [int(p.name) for p in (root / "checkpoints").glob("*/*")] == [20]
    check_what_is_left_and_finish(root, expected)
    assert not list((root / "checkpoints").glob("*/*"))


def test_killed_again_and_again(tmp_path, expected, counts, draw):
    """Each run goes on where the one before it was killed."""
    root = tmp_path / "store"
    for _ in range(5):
        event = draw.choice(("write", "fsync"))
        nth = draw.randint(1, counts[event] // 8)
        print(f"killed at {event} {nth}")
        child = start(train_and_die, root, RECIPES, event, nth)
        assert finish(child) in (0, -signal.SIGKILL)
    check_what_is_left_and_finish(root, expected)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(8))
@pytest.mark.parametrize("event", EVENTS)
def test_killed_at_many_random_events(event, trial, tmp_path, expected, counts, draw):
    root = tmp_path / "store"
    kill_at(root, event, draw.randint(1, counts[event]))
    check_what_is_left_and_finish(root, expected)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_killed_from_outside_at_a_random_time(trial, tmp_path, expected, seconds, draw):
    root = tmp_path / "store"
    child = started(root)
    time.sleep(draw.uniform(0, seconds))
    child.kill()
    assert finish(child) in (0, -signal.SIGKILL)
    check_what_is_left_and_finish(root, expected)
