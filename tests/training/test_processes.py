"""Several processes share a store: each mode is trained once, and who waits says for whom."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest
import torch

from llfc_core.machine import cores
from llfc_core.store import Entry, Store
from llfc_core.training import Optimiser, Point, Seeds, ensure, mode_key, spawn
from llfc_core.training import modes as modes_module
from tests.helpers import (
    Silent,
    barrier,
    event,
    finish,
    hold_lock,
    identical,
    quarantined,
    start,
    tiny_dataset,
    tiny_recipe,
    train_and_log,
    train_without_locks,
)

CPU = torch.device("cpu")
DATASET = tiny_dataset()
CHILDREN = spawn(tiny_recipe(), Point(1, 2), [Seeds(1, 1, 1), Seeds(2, 2, 2)])
OTHERS = [
    tiny_recipe(3),
    tiny_recipe(4, optimiser=Optimiser("sgd", lr=0.1, momentum=0.9)),
    tiny_recipe(5, epochs=0),
]
RECIPES = [*CHILDREN, *OTHERS]


@pytest.mark.parametrize("apart", [False, True], ids=["one-machine", "four-machines"])
@pytest.mark.parametrize("workers", [1, 2])
def test_four_processes_on_a_cold_store_train_each_mode_once(workers, apart, tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    gate = barrier(4)
    children = [
        # Each asks in another order.
        start(
            train_and_log,
            root,
            RECIPES[i:] + RECIPES[:i],
            log,
            gate,
            workers,
            tmp_path / f"machine-{i}" if apart else None,
        )
        for i in range(4)
    ]
    assert [finish(child) for child in children] == [0] * 4
    trained = sorted(log.read_text().splitlines())
    assert trained == sorted([CHILDREN[0].parent.label(), *(r.label() for r in RECIPES)])
    expected = {
        m.key: {k: v.numpy().tobytes().hex() for k, v in m.weights.items()}
        for m in ensure(RECIPES, DATASET, Store(tmp_path / "alone"))
    }
    for child in children:
        got = json.loads(log.with_name(f"log.{child.pid}").read_text())
        assert len(got) == len(RECIPES)
        assert dict(got) == expected
    assert not list((root / "tmp").iterdir())


def test_without_any_lock_nothing_is_lost(tmp_path):
    """Two processes train everything at once, side by side: what is kept needs no lock."""
    root, log = tmp_path / "store", tmp_path / "log"
    gate = barrier(2)
    children = [start(train_without_locks, root, RECIPES, log, gate) for _ in range(2)]
    assert [finish(child) for child in children] == [0, 0]
    assert len(log.read_text().splitlines()) > len(RECIPES) + 1, "they have not met"
    for mode in ensure(RECIPES, DATASET, Store(tmp_path / "alone")):
        entry = Store(root).get(mode.key)
        assert entry is not None
        assert identical(entry.groups["weights"], mode.weights)
    assert not quarantined(Store(root))
    assert not list((root / "tmp").iterdir())
    assert not list((root / "checkpoints").glob("*/*"))


class Waiter(Silent):
    """Does something when it is first told to wait."""

    def __init__(self, do: Callable[[], None]) -> None:
        super().__init__()
        self.do = do

    def waiting(self, for_what: str) -> None:
        if not self.notes:
            self.do()
        super().waiting(for_what)


def ensured_by(recipe, store: Store, waiter: Waiter, workers: int = 1):
    [mode] = ensure(
        [recipe],
        DATASET,
        store,
        workers=workers,
        progress=lambda steps, count: waiter,  # type: ignore[arg-type, return-value]
    )
    return mode


@pytest.fixture
def expected(tmp_path):
    [mode] = ensure([OTHERS[0]], DATASET, Store(tmp_path / "expected"))
    return mode


def test_who_waits_says_for_whom_and_takes_over_from_the_dead(tmp_path, expected):
    recipe, store = OTHERS[0], Store(tmp_path / "store")
    held = event()
    holder = start(hold_lock, store.root, mode_key(recipe, DATASET, CPU), held)
    assert held.wait(60)
    waiter = Waiter(lambda: os.kill(holder.pid, signal.SIGKILL))
    mode = ensured_by(recipe, store, waiter)
    assert finish(holder) == -signal.SIGKILL
    assert identical(mode.weights, expected.weights)
    assert waiter.done == 30
    [note] = {n.rsplit(",", 1)[0] for n in waiter.notes}
    assert note == f"{recipe.label()}: process {holder.pid} on {socket.gethostname()}"


@pytest.mark.parametrize("workers", [1, 2])
def test_who_waits_takes_what_the_other_has_finished(workers, tmp_path, expected, monkeypatch):
    """And counts its steps once, however many workers were waiting."""
    recipe, store = OTHERS[0], Store(tmp_path / "store")
    recipes = [recipe, OTHERS[1]]
    keys = [mode_key(r, DATASET, CPU) for r in recipes]
    others = ensure(recipes, DATASET, Store(tmp_path / "others"))

    def publish() -> None:
        for key in keys:
            store.path(key).parent.mkdir(parents=True, exist_ok=True)
            Store(tmp_path / "others").path(key).rename(store.path(key))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is nothing to train")

    monkeypatch.setattr(modes_module, "train", refuse)
    waiter = Waiter(publish)
    with store.try_lock(keys[0]), store.try_lock(keys[1]):
        modes = ensure(
            recipes,
            DATASET,
            store,
            workers=workers,
            progress=lambda steps, count: waiter,  # type: ignore[arg-type, return-value]
        )
    assert waiter.done == 60
    for mode, other in zip(modes, others, strict=True):
        assert identical(mode.weights, other.weights)


def test_two_workers_that_find_a_finished_mode_at_once_count_it_once(tmp_path, monkeypatch):
    recipes = OTHERS[:2]
    store, other = Store(tmp_path / "store"), Store(tmp_path / "others")
    keys = [m.key for m in ensure(recipes, DATASET, other)]
    meeting = {key: threading.Barrier(2) for key in keys}
    plain = Store.get

    def publish() -> None:
        for key in keys:
            store.path(key).parent.mkdir(parents=True, exist_ok=True)
            other.path(key).rename(store.path(key))

    def get(self: Store, key: str) -> Entry | None:
        entry = plain(self, key)
        if entry is not None:
            meeting[key].wait(60)  # the other worker has it too, and neither has said so
        return entry

    monkeypatch.setattr(Store, "get", get)
    waiter = Waiter(publish)
    with store.try_lock(keys[0]), store.try_lock(keys[1]):
        ensure(
            recipes,
            DATASET,
            store,
            workers=2,
            progress=lambda steps, count: waiter,  # type: ignore[arg-type, return-value]
        )
    assert waiter.done == 60


def test_a_child_waits_for_a_parent_that_another_process_trains(tmp_path):
    store = Store(tmp_path / "store")
    parent = CHILDREN[0].parent
    held = event()
    holder = start(hold_lock, store.root, mode_key(parent, DATASET, CPU), held)
    assert held.wait(60)
    waiter = Waiter(lambda: os.kill(holder.pid, signal.SIGKILL))
    mode = ensured_by(CHILDREN[0], store, waiter)
    assert any(parent.label() in note for note in waiter.notes)
    [alone] = ensure([CHILDREN[0]], DATASET, Store(tmp_path / "alone"))
    assert identical(mode.weights, alone.weights)
    assert finish(holder) == -signal.SIGKILL


def test_no_more_modes_train_at_once_than_there_are_cores(tmp_path, expected):
    """Whichever processes ask: here another one has taken every core."""
    store = Store(tmp_path / "store")
    names = [f"core-{i}" for i in range(cores())]
    events = [event() for _ in names]
    holders = [
        start(hold_lock, store.root, name, held, False)
        for name, held in zip(names, events, strict=True)
    ]
    assert all(held.wait(60) for held in events)
    waiter = Waiter(lambda: os.kill(holders[-1].pid, signal.SIGKILL))
    mode = ensured_by(OTHERS[0], store, waiter)
    assert set(waiter.notes) == {"a core: other processes train on all"}
    assert identical(mode.weights, expected.weights)
    for holder in holders:
        holder.kill()
        finish(holder)
