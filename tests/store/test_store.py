"""Keys, locks, checkpoints and left-overs of a store that many share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from llfc_core.store import Entry, Store, StoreError
from llfc_core.store import store as store_module
from tests.helpers import content, event, finish, hold_lock, identical, quarantined, start


def entry(value: float) -> Entry:
    return Entry({"weights": {"a": torch.full((5,), value)}}, {"value": value})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def quiet():
    """A warning is said where it is expected, and nowhere else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- entries ------------------------------------------------------------------------------------


def test_a_store_need_not_exist_and_looking_does_not_make_it(store):
    assert store.get("key") is None
    assert store.get_checkpoint("key") is None
    assert store.keys() == []
    store.remove("key")
    store.drop_checkpoints("key")
    assert not store.root.exists()


def test_put_then_get(store):
    store.put("b", entry(1.0))
    store.put("a", entry(2.0))
    assert store.keys() == ["a", "b"]
    assert identical(store.get("b").groups["weights"], entry(1.0).groups["weights"])
    assert store.get("b").facts == {"value": 1.0}
    assert store.path("b") == store.root / "modes" / "b"
    assert sorted(p.name for p in store.path("b").iterdir()) == [
        "manifest.json",
        "weights.safetensors",
    ]
    assert not list((store.root / "tmp").iterdir())


def test_reading_writes_nothing(store):
    store.put("key", entry(1.0))
    stamps = {p: p.stat().st_mtime_ns for p in store.root.rglob("*")}
    store.get("key")
    store.keys()
    store.get_checkpoint("key")
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*")} == stamps


def test_what_was_published_first_stays(store):
    store.put("key", entry(1.0))
    before = content(store.root)
    store.put("key", entry(2.0))
    assert content(store.root) == before
    assert not list((store.root / "tmp").iterdir())


def test_many_threads_publish_one_key(store):
    gate = threading.Barrier(8)
    failures = []

    def publish(value: float) -> None:
        gate.wait()
        try:
            store.put("key", entry(value))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(float(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = store.get("key")
    assert identical(found.groups["weights"], entry(found.facts["value"]).groups["weights"])
    assert not list((store.root / "tmp").iterdir())


def test_an_entry_that_vanishes_while_it_is_read_is_missing_not_corrupt(store, monkeypatch):
    """Between any two looks at its files another process may remove an entry."""
    plain_read, plain_list = Path.read_bytes, Path.iterdir
    for nth in range(4):
        store.put("key", entry(1.0))
        looks = []

        def look(path: Path, nth: int = nth, looks: list = looks) -> None:
            if path.is_relative_to(store.path("key")):
                looks.append(path)
                if len(looks) == nth + 1:
                    with pytest.MonkeyPatch.context() as undone:
                        undone.setattr(Path, "read_bytes", plain_read)
                        undone.setattr(Path, "iterdir", plain_list)
                        Store(store.root).remove("key")

        def read(path: Path, look=look) -> bytes:
            look(path)
            return plain_read(path)

        def listing(path: Path, look=look):
            look(path)
            return plain_list(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read)
            patch.setattr(Path, "iterdir", listing)
            found = store.get("key")
        assert (found is None) == (nth < 3)  # manifest, folder, weights; there is no fourth look
        assert len(looks) == min(nth + 1, 3)
        assert not quarantined(store)
        store.remove("key")


def test_remove(store):
    for key in ("a", "b"):
        store.put(key, entry(1.0))
        store.put_checkpoint(key, 3, entry(0.5))
    store.remove("a")
    assert store.keys() == ["b"]
    assert store.get("a") is None
    assert store.get_checkpoint("a") is None
    assert store.get_checkpoint("b") is not None
    assert not list((store.root / "tmp").iterdir())


def test_two_processes_remove_one_key(store, monkeypatch):
    """The slower one finds nothing left to do, as when two workers retrain at once."""
    store.put("key", entry(1.0))
    plain = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", plain)
        Store(store.root).remove("key")
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", late)
    store.remove("key")
    assert store.keys() == []


def test_two_processes_quarantine_one_entry(store, monkeypatch):
    store.put("key", entry(1.0))
    (store.path("key") / "manifest.json").write_bytes(b"")
    plain = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", plain)
        with pytest.warns(RuntimeWarning, match=r"manifest\.json"):
            assert Store(store.root).get("key") is None
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", late)
    assert store.get("key") is None
    assert len(quarantined(store)) == 1


def test_a_root_may_be_given_in_any_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Store("here").root == tmp_path / "here"
    assert Store("~/there").root == tmp_path / "home" / "there"


# ---- checkpoints --------------------------------------------------------------------------------


def test_the_latest_checkpoint_is_kept_and_earlier_ones_are_dropped(store):
    for step in (9, 10, 100):  # as numbers, not as names
        store.put_checkpoint("key", step, entry(float(step)))
        assert [p.name for p in (store.root / "checkpoints" / "key").iterdir()] == [str(step)]
        assert store.get_checkpoint("key").facts == {"value": float(step)}
    assert store.keys() == []


def test_a_corrupt_checkpoint_is_put_aside_and_the_one_before_it_used(store):
    store.put_checkpoint("key", 20, entry(20.0))
    store.put_checkpoint("key", 9, entry(9.0))  # as if 20 had been written before 9 was dropped
    weights = store.root / "checkpoints" / "key" / "20" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"20/weights\.safetensors"):
        assert store.get_checkpoint("key").facts == {"value": 9.0}
    assert len(quarantined(store)) == 1
    (store.root / "checkpoints" / "key" / "9" / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match=r"9/manifest\.json"):
        assert store.get_checkpoint("key") is None


def test_publishing_drops_the_checkpoints_of_its_key_only(store):
    store.put_checkpoint("key", 1, entry(1.0))
    store.put_checkpoint("other", 1, entry(1.0))
    store.put("key", entry(2.0))
    assert store.get_checkpoint("key") is None
    assert store.get_checkpoint("other") is not None


def test_other_names_among_the_checkpoints_are_passed_over(store):
    store.put_checkpoint("key", 1, entry(1.0))
    for name in ("notes", "²", "-3"):
        (store.root / "checkpoints" / "key" / name).mkdir()
    assert store.get_checkpoint("key").facts == {"value": 1.0}


# ---- locks --------------------------------------------------------------------------------------


def test_a_lock_excludes_every_other_taker_until_it_is_released(store):
    other = Store(store.root)
    with store.try_lock("key") as first:
        assert first
        with other.try_lock("key") as second, store.try_lock("key") as third:
            assert not second
            assert not third
        with store.try_lock("key") as still:
            assert not still  # those who had not got it have not released it either
        with store.try_lock("another") as apart:
            assert apart
    with other.try_lock("key") as again:
        assert again


def test_a_lock_excludes_other_threads(store):
    seen = []

    def take() -> None:
        with store.try_lock("key") as held:
            seen.append(held)

    with store.try_lock("key"):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    take()
    assert seen == [False, True]


def test_a_lock_is_released_when_its_holder_raises(store):
    def fail_with_the_lock() -> None:
        with store.try_lock("key") as held:
            assert held
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_the_lock()
    with store.try_lock("key") as held:
        assert held


def test_a_lock_excludes_other_processes_and_dies_with_its_holder(store):
    held = event()
    child = start(hold_lock, store.root, "key", held)
    assert held.wait(60)
    with store.try_lock("key") as mine:
        assert not mine
    assert f"process {child.pid} on {socket.gethostname()}, since " in store.owner("key")
    os.kill(child.pid, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL
    with store.try_lock("key") as mine:
        assert mine
        assert f"process {os.getpid()} " in store.owner("key")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"host": 1, "pid": 2, "since": "x"}', "\0"])
def test_an_owner_that_cannot_be_read_is_another_process(store, text):
    assert store.owner("key") == "another process"
    with store.try_lock("key"):
        (store.root / "locks" / "key" / "0").write_text(text)
        assert store.owner("key") == "another process"


# ---- left-overs ---------------------------------------------------------------------------------


def left_over(store: Store, host: str, pid: int) -> Path:
    path = store.root / "tmp" / f"{host}-{pid}-0123abcd"
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"half")
    return path


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return child.pid


def test_publishing_sweeps_what_dead_processes_of_this_machine_left(store):
    host = socket.gethostname()
    dead = dead_process()
    swept = left_over(store, host, dead)
    kept = [
        left_over(store, host, os.getpid()),  # another thread's
        left_over(store, host, os.getppid()),
        left_over(store, "elsewhere", dead),
        left_over(store, f"{host}-1", dead),  # a machine whose name begins like this one's
    ]
    (store.root / "tmp" / f"{host}-notes").mkdir()
    store.put("key", entry(1.0))
    assert not swept.exists()
    assert all((path / "weights.safetensors").read_bytes() == b"half" for path in kept)
    assert (store.root / "tmp" / f"{host}-notes").exists()


def test_host_names_may_have_dashes(store, monkeypatch):
    monkeypatch.setattr(store_module.socket, "gethostname", lambda: "node-7-b")
    swept = left_over(store, "node-7-b", dead_process())
    kept = left_over(store, "node-7", dead_process())
    store.put("key", entry(1.0))
    assert not swept.exists()
    assert kept.exists()


def test_a_process_of_another_user_is_alive(monkeypatch, store):
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    path = left_over(store, socket.gethostname(), dead_process())
    monkeypatch.setattr(os, "kill", kill)
    store.put("key", entry(1.0))
    assert path.exists()


def test_an_interrupt_while_writing_leaves_nothing(store, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put("key", entry(1.0))
    assert content(store.root) == {}
    assert store.keys() == []


def test_a_corrupt_entry_that_cannot_be_moved_is_an_error(store, monkeypatch):
    store.put("key", entry(1.0))
    (store.path("key") / "manifest.json").write_text(json.dumps({}))
    (store.root / "quarantine").write_text("in the way")
    with pytest.raises(StoreError, match="remove it by hand"):
        store.get("key")
