"""What the tests of engines share: modes that take a while, and what tasks' logs say of them."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llfc_core.data import SIZES, load_dataset
from llfc_core.nets import Net
from llfc_core.store import Store
from llfc_core.training import (
    Costs,
    Mode,
    Optimiser,
    Point,
    Recipe,
    Seeds,
    ensure,
    make_plan,
    missing,
    mode_key,
    spawn,
)
from llfc_core.training.cluster import Submitted, submit, watch
from tests.helpers import Silent, identical

CPU = torch.device("cpu")
BASE = Recipe(
    net=Net("mlp", (16, 16)),
    data="mnist5k",
    epochs=2,
    batch_size=500,
    optimiser=Optimiser("adam", lr=1e-3),
    seeds=Seeds(0, 0, 0),
)


def recipes(epochs: int, single: int, base: Recipe = BASE) -> list[Recipe]:
    """A spawned pair, whose parent is not said, and so many modes apart."""
    base = replace(base, epochs=epochs)
    pair = spawn(base, Point(epochs=1), [Seeds(1, 1, 1), Seeds(2, 2, 2)])
    return [*pair, *(replace(base, seeds=Seeds(i, i, i)) for i in range(3, 3 + single))]


def key(recipe: Recipe) -> str:
    return mode_key(recipe, load_dataset(recipe.data), CPU)


def handed_in(
    wanted: Sequence[Recipe], store: Store, engine: str, tasks: int, **options: Any
) -> Submitted:
    """What the store lacks of them, planned for so many tasks at a time, and submitted."""
    todo = missing(wanted, load_dataset("mnist5k"), store, CPU)
    plan = make_plan(todo, Costs(CPU, SIZES), tasks, rounds=1)
    return submit(plan, engine, store, device="cpu", **options)


def watched(submitted: Submitted, store: Store, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """What failed, and what was said."""
    said: list[str] = []
    failed = watch(
        submitted,
        store,
        key,
        lambda recipe: SIZES[recipe.data].n_train,
        Silent(),  # type: ignore[arg-type]
        said.append,
        every=0.3,
        **options,
    )
    return failed, said


def begun(store: Store) -> dict[str, list[int]]:
    """The steps at which each mode's trainings began, by the logs of all tasks."""
    found: dict[str, list[int]] = {}
    for its_key, step in re.findall(r" (\w{12}) .*: begun at step (\d+)", _logs(store)):
        found.setdefault(its_key, []).append(int(step))
    return found


def trained(store: Store) -> Counter[str]:
    """How often each mode was trained to its end."""
    return Counter(re.findall(r" (\w{12}) .*: trained to step", _logs(store)))


def _logs(store: Store) -> str:
    return "".join(log.read_text() for log in sorted((store.root / "jobs").glob("*/*.err")))


def once(store: Store) -> Counter[str]:
    """What `trained` should say: each of the store's modes, once."""
    return Counter(k[:12] for k in store.keys())


def check_bits(wanted: Sequence[Recipe], store: Store, folder: Path) -> None:
    """The store's modes are those of an undisturbed run, to the bit."""
    modes: list[Mode] = ensure(wanted, load_dataset("mnist5k"), Store(folder))
    for mode in modes:
        entry = store.get(mode.key)
        assert entry is not None, f"{mode.recipe.label()} is lost"
        assert identical(entry.groups["weights"], mode.weights)
    assert sorted(store.keys()) == sorted(Store(folder).keys())


def until(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of ``what()``; a deadline, not a pause, decides."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what} is still {value!r} after {seconds:g} s")
