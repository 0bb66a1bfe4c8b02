"""Locks on a directory that several machines may share.

A lock has two parts, taken in this order:

* The operating system's lock on a file that only this machine uses. It excludes the machine's other
  processes and ends with its holder, however that ends.
* A lease, which excludes other machines: ``<folder>/<name>/<n>``, created exclusively, which is
  atomic on every file system, NFS included. Its holder touches it now and then. Who sees it
  untouched for ``lease_seconds`` of their own clock takes it over by creating n + 1: of many who
  try, one succeeds. The clocks of machines are never compared.

Locks on shared file systems may be missing, or silently local to a machine, so that nothing here
needs them to reach further. Nothing that is kept depends on locks at all: an entry is published by
one rename. Should two processes train one mode after all (a machine that was suspended for minutes
and then went on), they end in the same bits, and the second to publish drops its own.

A machine is who shares its lock files. LLFC_LOCK_DIR names another place for them, for a file
system without any locks, and each such place counts as a machine of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


class Locks:
    """The locks below a shared ``folder``, which need not exist yet."""

    def __init__(self, folder: Path, lease_seconds: float) -> None:
        self.folder, self.lease_seconds = folder, lease_seconds
        self._identity = _machine()  # in leases: what tells this machine from others
        place = os.environ.get("LLFC_LOCK_DIR")
        if place:  # it may serve several stores
            store = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
            self.own = Path(place).expanduser().resolve() / store
            self._identity += f", {self.own.parent}"
        else:
            self.own = folder / f"on-{_machine()}"
        self._seen: dict[Path, tuple[int, float]] = {}

    @contextlib.contextmanager
    def here(self, name: str) -> Iterator[bool]:
        """Hold this machine's lock of a name, if none of its processes does; yields whether so."""
        self.own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.own / f"{name}.lock", is_singleton=False, thread_local=False)
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    @contextlib.contextmanager
    def everywhere(self, name: str) -> Iterator[bool]:
        """Hold the lock of a name, if no process of any machine does; yields whether so."""
        with self.here(name) as first:
            lease = self._lease(name) if first else None
            if lease is None:
                yield False
                return
            ended = threading.Event()
            touching = threading.Thread(target=self._touch, args=(lease, ended), daemon=True)
            touching.start()
            try:
                yield True
            finally:
                ended.set()
                touching.join(1.0)  # no longer: a file server may be away
                _remove(lease)
                with contextlib.suppress(OSError):  # another lease is in it
                    lease.parent.rmdir()

    def owner(self, name: str) -> str:
        """Who holds a name: 'process 123 on host, since 14:05:12', or 'another process'."""
        try:
            owner = json.loads(self._latest(name)[-1].read_text())
            since = time.strftime("%H:%M:%S", time.localtime(owner["since"]))
            return f"process {owner['pid']} on {owner['host']}, since {since}"
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return "another process"

    # ---- leases -----------------------------------------------------------------------------

    def _lease(self, name: str) -> Path | None:
        """Take the lease of a name whose machine's lock is held already, or None."""
        before = self._latest(name)
        if before and not self._free(before[-1]):
            return None
        lease = self.folder / name / str(int(before[-1].name) + 1 if before else 0)
        lease.parent.mkdir(parents=True, exist_ok=True)
        owner = {
            "machine": self._identity,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
        }
        try:
            self._create(lease, json.dumps(owner))
        except (FileExistsError, FileNotFoundError):  # another machine was faster
            return None
        after = self._latest(name)
        if not after or after[-1] != lease:  # a later one came up since we looked
            _remove(lease)
            return None
        for old in before:
            _remove(old)
        return lease

    def _create(self, lease: Path, text: str) -> None:
        """Exclusively, and with its text at once: whoever is killed meanwhile leaves no riddle."""
        draft = lease.with_name(f".{_machine()}-{os.getpid()}")
        try:
            draft.write_text(text)
            os.link(draft, lease)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # no hard links, or a full disk: it is a lease without a text, too
            with lease.open("x") as file, contextlib.suppress(OSError):
                file.write(text)
        finally:
            _remove(draft)

    def _free(self, lease: Path) -> bool:
        """Whether the holder of a lease is dead, as far as anybody can tell."""
        try:
            with lease.open() as file:  # opening, not looking, is what makes NFS ask the server
                touched = os.fstat(file.fileno()).st_mtime_ns
                text = file.read()
        except FileNotFoundError:
            return False  # released just now; the next try will see that
        with contextlib.suppress(ValueError, TypeError, KeyError):
            # This machine's lock is ours, so the process that had it is gone.
            if json.loads(text)["machine"] == self._identity:
                return True
        now = time.monotonic()
        last, since = self._seen.get(lease, (None, now))
        if last != touched:
            since = now
        self._seen[lease] = touched, since
        return now - since > self.lease_seconds

    def _touch(self, lease: Path, ended: threading.Event) -> None:
        while not ended.wait(self.lease_seconds / 8):
            try:
                os.utime(lease)
            except FileNotFoundError:
                return  # taken over: this process was held to be dead
            except OSError:
                continue  # a file server may come back

    def _latest(self, name: str) -> list[Path]:
        """The leases of a name, the one that counts last."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(
                (p for p in (self.folder / name).iterdir() if p.name.isdecimal()),
                key=lambda p: int(p.name),
            )
        return []


def _remove(lease: Path) -> None:
    with contextlib.suppress(OSError):
        lease.unlink()


def _machine() -> str:
    """Its name, and which of its boots: machines may share a name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = ""
    return f"{socket.gethostname()}-{boot}".rstrip("-")
