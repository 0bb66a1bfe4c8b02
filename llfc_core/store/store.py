"""The store: where entries stand, who may write them, and what becomes of bad ones.

    <root>/modes/<key>/                finished entries
    <root>/checkpoints/<key>/<step>/   unfinished ones, to resume a killed training from
    <root>/locks/                      who is training what, see `llfc_core.store.lock`
    <root>/tmp/                        entries being written; renamed into place when complete
    <root>/quarantine/                 entries that failed a check, kept for a look

Reading takes no lock: an entry appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from llfc_core.store.entry import CorruptEntry, Entry, read_entry, sync_directory, write_entry
from llfc_core.store.lock import Locks


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says why and what to do."""


class Store:
    """A store at ``root``, which need not exist yet. Any number of processes may share it.

    They may run on several machines, if the directory is one that all of them see. A machine that
    was not heard of for ``lease_seconds`` is held to be dead: what it was training, others may.
    """

    def __init__(self, root: Path | str, *, lease_seconds: float = 120.0) -> None:
        self.root = Path(root).expanduser().resolve()
        self.locks = Locks(self.root / "locks", lease_seconds)

    # ---- finished entries -------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """The entry of a key, checked, or None. A corrupt one is quarantined with a warning.

        Raises
        ------
        StoreError
            It cannot be read, or a corrupt one cannot be moved away.
        """
        return self._get(self.root / "modes" / key)

    def put(self, key: str, entry: Entry) -> None:
        """Publish an entry. If another process was first, its entry stays.

        Raises
        ------
        StoreError
            The disk is full or read-only, or the like. The store is as it was before.
        """
        self._publish(self.root / "modes" / key, entry)
        self.drop_checkpoints(key)

    def keys(self) -> list[str]:
        """The keys of all finished entries, unchecked."""
        return self._names(self.root / "modes")

    def path(self, key: str) -> Path:
        """Where the finished entry of a key stands, or would stand."""
        return self.root / "modes" / key

    def remove(self, key: str) -> None:
        """Remove a finished entry and its checkpoints."""
        with self._changing("remove from"):
            target = self.root / "modes" / key
            if target.exists():
                # Out of the way in one step first, so that nobody reads half an entry.
                trash = self._temporary()
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    target.rename(trash)
                shutil.rmtree(trash, ignore_errors=True)
        self.drop_checkpoints(key)

    # ---- checkpoints ------------------------------------------------------------------------

    def get_checkpoint(self, key: str) -> Entry | None:
        """The latest checkpoint that passes its checks; worse ones are quarantined."""
        folder = self.root / "checkpoints" / key
        for step in reversed(self._steps(folder)):
            entry = self._get(folder / str(step))
            if entry is not None:
                return entry
        return None

    def put_checkpoint(self, key: str, step: int, entry: Entry) -> None:
        """Save a checkpoint at a step, then drop the earlier ones. Raises as `put`."""
        folder = self.root / "checkpoints" / key
        self._publish(folder / str(step), entry)
        for earlier in self._steps(folder):
            if earlier < step:
                shutil.rmtree(folder / str(earlier), ignore_errors=True)

    def checkpoint_step(self, key: str) -> int | None:
        """The step of the latest checkpoint, unchecked, or None."""
        return max(self._steps(self.root / "checkpoints" / key), default=None)

    def drop_checkpoints(self, key: str) -> None:
        shutil.rmtree(self.root / "checkpoints" / key, ignore_errors=True)

    # ---- locks ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Hold the lock of a name, if nobody else does; yields whether it is held."""
        with contextlib.ExitStack() as stack:
            with self._changing("lock in"):
                held = stack.enter_context(self.locks.everywhere(name))
            yield held

    @contextlib.contextmanager
    def try_lock_here(self, name: str) -> Iterator[bool]:
        """As `try_lock`, but against processes of this machine alone."""
        with contextlib.ExitStack() as stack:
            with self._changing("lock in"):
                held = stack.enter_context(self.locks.here(name))
            yield held

    def owner(self, name: str) -> str:
        """Who holds a lock, for a waiting line: 'process 123 on host, since 14:05:12'."""
        return self.locks.owner(name)

    # ---- inside -----------------------------------------------------------------------------

    def quarantine(self, path: Path, reason: str) -> None:
        """Put an entry aside, with a warning that says why and where it is now."""
        target = self.root / "quarantine" / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        except FileNotFoundError:
            return  # another process has just done so
        except OSError as error:
            raise StoreError(
                f"{reason}. It could not be moved to {target} ({error.strerror}); remove it by hand"
            ) from error
        warnings.warn(f"{reason}. Moved to {target}", RuntimeWarning, stacklevel=2)

    def _get(self, path: Path) -> Entry | None:
        with self._changing("read from"):
            if not path.exists():
                return None
            try:
                return read_entry(path)
            except CorruptEntry as error:
                # Between the look and the read it may have been removed or put aside by another.
                if path.exists():
                    self.quarantine(path, str(error))
                return None

    def _publish(self, target: Path, entry: Entry) -> None:
        with self._changing("write to"):
            self._sweep()
            temporary = self._temporary()
            try:
                temporary.mkdir()
                write_entry(temporary, entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    temporary.rename(target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                # The entry is whole and in place. At worst its name is lost in a power cut.
                with contextlib.suppress(OSError):
                    sync_directory(target.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _temporary(self) -> Path:
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def _sweep(self) -> None:
        """Remove what killed processes of this machine were writing."""
        for path in (self.root / "tmp").glob(f"{socket.gethostname()}-*-*"):
            host, pid, _ = path.name.rsplit("-", 2)
            # Of this machine: another's name may begin with this one's, as node-1 with node.
            if host != socket.gethostname() or not pid.isdecimal():
                continue
            if int(pid) != os.getpid() and not _alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {what} the store at {self.root}: {error.strerror or error}. "
                "Nothing in it was changed. Free some space or name another place with "
                "--llfc-cache-dir DIR (in Python: Store(DIR))."
            ) from error

    @staticmethod
    def _names(folder: Path) -> list[str]:
        try:
            return sorted(p.name for p in folder.iterdir() if p.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"cannot read {folder}: {error.strerror}") from error

    @classmethod
    def _steps(cls, folder: Path) -> list[int]:
        return sorted(int(name) for name in cls._names(folder) if name.isdecimal())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
