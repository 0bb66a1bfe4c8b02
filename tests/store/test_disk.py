"""A full, read-only or failing disk: a clear error, and the store as it was before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from llfc_core.store import Entry, Store, StoreError
from tests.helpers import content, identical, intercepted

ROOT = Path(__file__).parents[2]


def entry(value: float, size: int = 100) -> Entry:
    return Entry(
        {"weights": {"a": torch.full((size,), value)}, "optimiser": {"b": torch.zeros(3)}},
        {"value": value},
    )


class Disk:
    """Fails at the nth call that changes the file system, and at later ones if ``for_good``."""

    def __init__(self, number: int, nth: int | None, for_good: bool) -> None:
        self.number, self.nth, self.for_good, self.calls = number, nth, for_good, list[str]()

    def __call__(self, what: str) -> None:
        self.calls.append(what)
        n = len(self.calls) - 1
        if self.nth is not None and (n == self.nth or (self.for_good and n > self.nth)):
            raise OSError(self.number, os.strerror(self.number))


def calls_of_put(root: Path, filled: bool) -> list[str]:
    store = Store(root)
    if filled:
        fill(store)
    disk = Disk(errno.ENOSPC, None, False)
    with intercepted(disk):
        store.put("new", entry(1.0))
    return disk.calls


def fill(store: Store) -> None:
    store.put("old", entry(0.0))
    store.put_checkpoint("new", 10, entry(0.5))


def error_of_putting(store: Store, key: str, what: Entry) -> str | None:
    try:
        store.put(key, what)
    except StoreError as error:
        return str(error)
    return None


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("filled", [False, True], ids=["cold", "filled"])
def test_wherever_putting_fails_the_store_is_as_it_was(filled, number, for_good, tmp_path):
    calls = calls_of_put(tmp_path / "rehearsal", filled)
    # Three files are written and synced, their folder is synced, and then renamed into place.
    changes = [call for call in calls if call != "mkdir"]
    assert changes == ["open", "write", "fsync"] * 3 + ["fsync", "rename", "fsync"]
    failed = 0
    for nth in range(len(calls)):
        store = Store(tmp_path / str(nth))
        if filled:
            fill(store)
        before = content(store.root) if filled else {}
        disk = Disk(number, nth, for_good)
        with intercepted(disk):
            said = error_of_putting(store, "new", entry(1.0))
        if said is not None:
            failed += 1
            assert os.strerror(number) in said
            assert str(store.root) in said
            assert "--llfc-cache-dir" in said
            assert content(store.root) == before, f"call {nth} ({disk.calls[nth]}) left something"
            store.put("new", entry(1.0))
        else:  # only after the rename may a failure go unsaid: the entry is in place
            assert disk.calls[nth - 1 :] == ["rename", "fsync"]
        found = store.get("new")
        assert found is not None
        assert identical(found.groups["weights"], entry(1.0).groups["weights"])
        assert not list((store.root / "tmp").iterdir())
    assert failed == len(calls) - 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_wherever_saving_a_checkpoint_fails_the_earlier_one_stays(number, tmp_path):
    store = Store(tmp_path)
    fill(store)
    before = content(tmp_path)
    for nth in range(15):
        disk = Disk(number, nth, True)
        with intercepted(disk), pytest.raises(StoreError, match=os.strerror(number)):
            store.put_checkpoint("new", 20, entry(2.0))
        assert content(tmp_path) == before
        if "rename" in disk.calls:
            break
    else:
        pytest.fail("the rename was never reached")
    assert store.get_checkpoint("new").facts == {"value": 0.5}


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_a_lock_that_cannot_be_made_is_a_store_error(what, tmp_path):
    def report(call: str) -> None:
        if call == what:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    store = Store(tmp_path)
    with (
        intercepted(report),
        pytest.raises(StoreError, match=r"lock in the store.*[Rr]ead-only"),
        store.try_lock("key"),
    ):
        pytest.fail("there is no lock to hold")


def test_a_lock_is_held_even_if_its_owner_cannot_be_written_down(tmp_path):
    def report(call: str) -> None:
        if call == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    with intercepted(report), store.try_lock("key") as held:
        assert held
        assert store.owner("key") == "another process"


def test_a_file_where_the_store_should_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    store = Store(tmp_path / "file")
    assert store.get("key") is None
    with pytest.raises(StoreError, match=str(store.root)):
        store.put("key", entry(1.0))
    with pytest.raises(StoreError, match=str(store.root)), store.try_lock("key"):
        pytest.fail("there is no lock to hold")
    with pytest.raises(StoreError, match=str(store.root)):
        store.keys()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES], ids=errno.errorcode.get)
def test_an_entry_that_cannot_be_opened_now_is_not_called_corrupt(number, tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put("key", entry(1.0))

    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(StoreError, match=os.strerror(number)):
            store.get("key")
    assert store.get("key").facts == {"value": 1.0}


def test_an_entry_on_a_bad_sector_is_quarantined(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.put("key", entry(1.0))

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.warns(RuntimeWarning, match=os.strerror(errno.EIO)):
            assert store.get("key") is None
    assert store.keys() == []


# ---- real ones ----------------------------------------------------------------------------------


def on_small_disk(tmp_path: Path, script: str, size: str = "300k") -> None:
    """Run a script with ``disk``, a file system of its own, which nobody else sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    unshare = [
        "unshare",
        "--mount",
        *(["--map-root-user"] if os.getuid() else []),
        "sh",
        "-c",
        'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"',
        "sh",
        size,
        str(disk),
    ]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: it gives a process a disk of its own")
    trial = subprocess.run([*unshare, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"cannot mount a small disk here: {trial.stderr.strip()}")
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r}); disk = {str(disk)!r}\n"
    run = subprocess.run(
        [*unshare, sys.executable, "-c", head + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all well" in run.stdout


def test_a_disk_that_is_full_then_read_only(tmp_path):
    on_small_disk(
        tmp_path,
        """
        import subprocess
        from pathlib import Path
        import pytest
        import torch
        from llfc_core.store import Entry, Store, StoreError
        from llfc_core.training import ensure
        from tests.helpers import content, identical, quarantined, tiny_dataset, tiny_recipe

        def entry(n):
            return Entry({"weights": {"a": torch.arange(float(n))}}, {})

        dataset, store = tiny_dataset(), Store(Path(disk) / "store")
        [mode] = ensure([tiny_recipe(1)], dataset, store)
        store.put("fits", entry(40_000))
        before = content(store.root)
        for _ in range(3):
            with pytest.raises(StoreError, match="No space left"):
                store.put("too large", entry(40_000))
            assert content(store.root) == before

        # Not a byte is left.
        with pytest.raises(OSError, match="No space left"), open(f"{disk}/rest", "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with pytest.raises(StoreError, match="No space left"):
            ensure([tiny_recipe(2)], dataset, store, checkpoint_seconds=0)
        assert content(store.root) == before
        [again] = ensure([tiny_recipe(1)], dataset, store)
        assert identical(again.weights, mode.weights)

        Path(disk, "rest").unlink()
        store.remove("fits")
        store.put("too large", entry(40_000))
        assert store.get("too large") is not None
        assert not list((store.root / "tmp").iterdir())

        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = content(store.root)
        [again] = ensure([tiny_recipe(1)], dataset, store)
        assert identical(again.weights, mode.weights)
        assert sorted(store.keys()) == sorted([mode.key, "too large"])
        for attempt in (
            lambda: ensure([tiny_recipe(2)], dataset, store),
            lambda: ensure([tiny_recipe(1)], dataset, store, retrain_before=float("inf")),
            lambda: store.put("new", entry(3)),
            lambda: store.put_checkpoint("new", 1, entry(3)),
            lambda: store.remove(mode.key),
        ):
            with pytest.raises(StoreError, match="Read-only"):
                attempt()
        assert content(store.root) == before

        # A damaged entry is not used either where it cannot be put aside.
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        path = store.path(mode.key) / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreError, match="remove it by hand"):
            ensure([tiny_recipe(1)], dataset, store)
        assert not quarantined(store)
        print("all well")
        """,
    )
