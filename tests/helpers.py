"""What several tests share: a tiny data set and recipe, comparisons, child processes, bad disks."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from llfc_core.data import Dataset, Split
from llfc_core.nets import Net
from llfc_core.store import Store
from llfc_core.training import Optimiser, Recipe, Seeds, ensure
from llfc_core.training import modes as modes_module

# ---- data and recipes -------------------------------------------------------------------------


def tiny_dataset(n_train: int = 300, n_test: int = 120, classes: int = 4) -> Dataset:
    """8x8 images: one random pattern a class under noise. An MLP learns it in a few epochs."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.randint(40, 216, (classes, 1, 8, 8), generator=generator)

    def split(n: int) -> Split:
        labels = torch.randint(classes, (n,), generator=generator)
        noise = torch.randint(-40, 41, (n, 1, 8, 8), generator=generator)
        return Split((patterns[labels] + noise).clamp(0, 255).byte(), labels)

    return Dataset("tiny", split(n_train), split(n_test), classes, (0.5,), (0.25,))


def tiny_recipe(seed: int = 0, **changes: Any) -> Recipe:
    """Three epochs of ten steps, the last of which is smaller; a few milliseconds."""
    arguments: dict[str, Any] = {
        "net": Net("mlp", (16, 12)),
        "data": "tiny",
        "epochs": 3,
        "batch_size": 32,
        "optimiser": Optimiser("adam", lr=3e-3),
        "seeds": Seeds(seed, seed, seed),
    }
    return Recipe(**(arguments | changes))


# ---- comparisons ------------------------------------------------------------------------------


def identical(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Same names, types, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k].contiguous().numpy().tobytes() == b[k].contiguous().numpy().tobytes()
        for k in a
    )


def content(root: Path) -> dict[str, bytes]:
    """All files below ``root`` but locks, by relative path."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] != "locks"
    }


def quarantined(store: Store) -> list[Path]:
    folder = store.root / "quarantine"
    return sorted(folder.iterdir()) if folder.exists() else []


# ---- bad disks --------------------------------------------------------------------------------


class _File:
    """A file that reports its writes, in the middle of each."""

    def __init__(self, file: Any, report: Callable[[str], None]) -> None:
        self._file, self._report = file, report

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._report("write")
        self._file.write(data[half:])
        return len(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def intercepted(report: Callable[[str], None]) -> Iterator[None]:
    """Call ``report(what)`` before each call that changes the file system, but for removals.

    ``what`` is mkdir, open, write (half of it is then written), fsync or rename. It may raise.
    """

    def before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            reads = name == "open" and not args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            there = name == "mkdir" and Path(args[0]).is_dir()
            if not (reads or there):
                report(name)
            return function(*args, **kwargs)

        return call

    plain_open = io.open

    def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return plain_open(path, mode, *args, **kwargs)
        report("open")
        return _File(plain_open(path, mode, *args, **kwargs), report)

    with contextlib.ExitStack() as stack:
        for name in ("mkdir", "open", "fsync", "rename"):
            stack.enter_context(mock.patch.object(os, name, before(name, getattr(os, name))))
        stack.enter_context(mock.patch.object(io, "open", open_file))
        yield


# ---- child processes --------------------------------------------------------------------------

# Children are forked from a process that has imported torch and never computed with it: safe, and
# 2 s cheaper than a new interpreter each.
_context = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if _context is not None:
    _context.set_forkserver_preload(["torch._dynamo", "llfc_core.training", "tests.helpers"])


def start(function: Callable[..., None], *args: Any) -> BaseProcess:
    """Run an importable function in a process of its own, which has this one's environment."""
    assert _context is not None
    process = _context.Process(
        target=_with_environment, args=(dict(os.environ), function, args), daemon=True
    )
    process.start()
    return process


def _with_environment(
    environment: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    # Not that of the fork server, which is as it was when some test first asked for a process.
    os.environ.clear()
    os.environ.update(environment)
    function(*args)


def finish(process: BaseProcess, within: float = 120.0) -> int:
    """The exit status, negative for a signal; a process that hangs is killed and reported."""
    process.join(within)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{process} did not end within {within} s")
    return process.exitcode


class Silent:
    """Stands for a `Progress`; calls ``on_advance`` with the steps done so far."""

    def __init__(self, on_advance: Callable[[int], None] = lambda done: None) -> None:
        self.done, self.notes, self.on_advance = 0, set[str](), on_advance

    def advance(self, steps: int) -> None:
        self.done += steps
        self.on_advance(self.done)

    def waiting(self, for_what: str) -> None:
        self.notes.add(for_what)

    def refresh(self) -> None: ...

    def close(self) -> None: ...


def train_and_die(
    root: Path, recipes: Sequence[Recipe], at: str, nth: int, counts: Path | None = None
) -> None:
    """Train into a store, with a checkpoint every epoch, up to the nth event; then SIGKILL.

    Events are steps and what `intercepted` reports. With ``counts`` they are written there at the
    end, if it comes so far. The file ``<root>.started`` appears with the first step.
    """
    seen: Counter[str] = Counter()

    def report(what: str) -> None:
        seen[what] += 1
        if what == at and seen[what] == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_advance(done: int) -> None:
        report("step")
        Path(f"{root}.started").touch()

    with intercepted(report):
        ensure(
            recipes,
            tiny_dataset(),
            Store(root),
            progress=lambda steps, count: Silent(on_advance),  # type: ignore[return-value]
            workers=1,
            checkpoint_seconds=0,
        )
    if counts is not None:
        counts.write_text("\n".join(f"{what} {n}" for what, n in seen.items()))


def train_and_log(
    root: Path,
    recipes: Sequence[Recipe],
    log: Path,
    barrier: Any,
    workers: int,
    lock_dir: Path | None = None,
) -> None:
    """`ensure` in one of several processes, on a machine of its own if it has a ``lock_dir``.

    Each training appends its recipe to the log; the modes that came back go to ``<log>.<pid>``.
    """
    on_machine(lock_dir)
    plain = modes_module.train

    def logged(stack: Sequence[Recipe], *args: Any, **kwargs: Any) -> Any:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for recipe in stack:
            os.write(descriptor, f"{recipe.label()}\n".encode())
        os.close(descriptor)
        return plain(stack, *args, **kwargs)

    modes_module.train = logged
    dataset = tiny_dataset()
    barrier.wait(60)
    modes = ensure(recipes, dataset, Store(root), workers=workers)
    returned = [
        (m.key, {k: v.numpy().tobytes().hex() for k, v in m.weights.items()}) for m in modes
    ]
    Path(f"{log}.{os.getpid()}").write_text(json.dumps(returned))


def on_machine(lock_dir: Path | None) -> None:
    """In a child process: be on the machine that has its lock files there, by default on ours."""
    os.environ.pop("LLFC_LOCK_DIR", None)
    if lock_dir is not None:
        os.environ["LLFC_LOCK_DIR"] = str(lock_dir)


def train_without_locks(root: Path, recipes: Sequence[Recipe], log: Path, barrier: Any) -> None:
    """As `train_and_log`, with locks that everybody gets, and all at the same step."""
    Store.try_lock = lambda self, name: contextlib.nullcontext(True)  # type: ignore[assignment]
    publish = Store.put

    def put(self: Store, key: str, entry: Any) -> None:
        barrier.wait(60)
        publish(self, key, entry)

    Store.put = put  # type: ignore[method-assign]
    train_and_log(root, recipes, log, barrier, 1)


def hold_lock(
    root: Path, name: str, held: Any, everywhere: bool = True, lock_dir: Path | None = None
) -> None:
    """Take a lock, say so, and keep it until killed."""
    on_machine(lock_dir)
    store = Store(root)
    with (store.try_lock if everywhere else store.try_lock_here)(name) as mine:
        if mine:
            held.set()
        signal.pause()


def event() -> Any:
    assert _context is not None
    return _context.Event()


def barrier(parties: int) -> Any:
    assert _context is not None
    return _context.Barrier(parties)
