"""Locks among machines that share a directory and nothing else: no lock file, no clock."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from llfc_core.store import Store
from llfc_core.store import lock as lock_module
from tests.helpers import content, event, finish, hold_lock, start


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine("a")``: the store as a machine of that name sees it."""

    def make(name: str, lease_seconds: float = 120.0) -> Store:
        monkeypatch.setenv("LLFC_LOCK_DIR", str(tmp_path / "machines" / name))
        return Store(tmp_path / "store", lease_seconds=lease_seconds)

    return make


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only as it is told."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(lock_module.time, "monotonic", lambda: Clock.now)
    return Clock


def leases(store: Store) -> list[str]:
    return [str(p.relative_to(store.locks.folder)) for p in store.locks.folder.glob("key/*")]


def kill_a_holder(store: Store, lock_dir: Path | None) -> None:
    held = event()
    child = start(hold_lock, store.root, "key", held, True, lock_dir)
    assert held.wait(60)
    os.kill(child.pid, signal.SIGKILL)
    finish(child)
    assert leases(store)


def die_holding(store: Store) -> None:
    """On a machine of its own, which is never heard of again."""
    kill_a_holder(store, store.root.parent / "machines" / f"dead-{uuid.uuid4()}")


def test_machines_exclude_each_other(machine):
    one, other = machine("one"), machine("other")
    with one.try_lock("key") as first:
        assert first
        with other.try_lock("key") as second, one.try_lock("key") as third:
            assert not second
            assert not third
        with other.try_lock("another") as apart, other.try_lock_here("key") as here:
            assert apart
            assert here
    with other.try_lock("key") as again:
        assert again
        assert f"process {os.getpid()} " in one.owner("key")
    assert leases(one) == []


def test_each_lock_directory_is_a_machine_and_keeps_its_name(machine):
    identities = [machine(name).locks._identity for name in ("one", "other", "one")]
    assert identities[0] == identities[2] != identities[1]


def test_a_lock_directory_serves_several_stores(machine, tmp_path):
    with machine("one").try_lock("key") as first, Store(tmp_path / "b").try_lock("key") as second:
        assert first
        assert second


def test_a_machine_that_is_not_heard_of_is_dead_after_a_while(machine, clock):
    store = machine("one", lease_seconds=60)
    die_holding(store)
    for seconds, expected in ((0, False), (59, False), (2, True)):
        clock.now += seconds
        with store.try_lock("key") as held:
            assert held == expected
    assert leases(store) == []


@pytest.mark.parametrize("away", [-1e6, 1e6], ids=["past", "future"])
def test_a_machine_that_is_heard_of_lives_whatever_its_clock_says(away, machine, clock):
    store = machine("one", lease_seconds=60)
    die_holding(store)
    lease = store.locks.folder / "key" / "0"
    for i in range(5):
        os.utime(lease, (1e9 + away + i, 1e9 + away + i))
        clock.now += 50
        with store.try_lock("key") as held:
            assert not held
    clock.now += 61
    with store.try_lock("key") as held:
        assert held


def test_a_holder_lets_itself_be_heard_of(machine):
    touched = threading.Event()
    plain = os.utime

    def utime(path: Path) -> None:
        plain(path)
        touched.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "utime", utime)
        with machine("one", lease_seconds=0.08).try_lock("key"):
            assert touched.wait(60)


def test_this_machines_dead_are_known_at_once(tmp_path, machine):
    store = machine("one")
    kill_a_holder(store, tmp_path / "machines" / "one")
    with machine("other").try_lock("key") as held:
        assert not held
    with store.try_lock("key") as held:
        assert held


def test_of_many_machines_one_takes_over_from_the_dead(machine, clock, monkeypatch):
    """All have seen that it is dead before any of them acts on it."""
    stores = [machine(str(i), lease_seconds=60) for i in range(6)]
    die_holding(stores[0])
    for store in stores:
        with store.try_lock("key") as held:
            assert not held
    clock.now += 61
    seen, done = threading.Barrier(len(stores)), threading.Barrier(len(stores))
    results = []
    plain = lock_module.Locks._free

    def free(self: lock_module.Locks, lease: Path) -> bool:
        answer = plain(self, lease)
        seen.wait(60)
        return answer

    def take(store: Store) -> None:
        with store.try_lock("key") as held:
            results.append(held)
            done.wait(60)

    monkeypatch.setattr(lock_module.Locks, "_free", free)
    threads = [threading.Thread(target=take, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == 1


def test_who_was_held_to_be_dead_leaves_the_others_lease_alone(machine, clock):
    """A machine that was suspended goes on, and ends."""
    one, other = machine("one", lease_seconds=1e6), machine("other", lease_seconds=60)
    with ExitStack() as first:
        assert first.enter_context(one.try_lock("key"))
        with other.try_lock("key") as held:
            assert not held
        clock.now += 61
        with other.try_lock("key") as held:
            assert held
            first.close()
            assert leases(other) == ["key/1"]
            with one.try_lock("key") as again:
                assert not again


def test_a_late_comer_does_not_take_a_number_that_was_given_back(machine, clock, monkeypatch):
    """It looked when there was no lease; meanwhile 0 came and died, and 1 took over."""
    one, other = machine("one", lease_seconds=60), machine("other", lease_seconds=60)
    die_holding(one)
    with one.try_lock("key") as held:
        assert not held
    clock.now += 61
    with one.try_lock("key") as held:
        assert held
        assert leases(one) == ["key/1"]
        plain = other.locks._latest
        looks = iter([lambda name: [], plain])
        monkeypatch.setattr(other.locks, "_latest", lambda name: next(looks)(name))
        with other.try_lock("key") as late:
            assert not late
        assert leases(one) == ["key/1"]


def test_nothing_is_left_but_lock_files(machine):
    store = machine("one")
    with store.try_lock("key"):
        pass
    assert content(store.root) == {}
