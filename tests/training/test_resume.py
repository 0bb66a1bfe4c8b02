"""Training that was stopped goes on to the bit-identical end, and children from their parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llfc_core.data import Augmentation
from llfc_core.nets import Net
from llfc_core.store import Entry, Store
from llfc_core.training import (
    Mode,
    Optimiser,
    Point,
    Recipe,
    Schedule,
    Seeds,
    TrainingFailed,
    ensure,
    mode_key,
    spawn,
)
from tests.helpers import Silent, identical, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
DATASET = tiny_dataset()
KINDS = {
    "adam": tiny_recipe(optimiser=Optimiser("adam", lr=3e-3, weight_decay=0.01)),
    "sgd": tiny_recipe(optimiser=Optimiser("sgd", lr=0.1)),
    "momentum": tiny_recipe(
        optimiser=Optimiser("sgd", lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule("cosine", warmup=1),
    ),
    "augmented": tiny_recipe(
        optimiser=Optimiser("sgd", lr=0.05, momentum=0.9),
        augmentation=Augmentation(crop_padding=1, flip=True, zoom=(0.9, 1.1), rotation=10),
    ),
    "bfloat16": tiny_recipe(precision="bfloat16"),
    "vgg16": tiny_recipe(
        net=Net("vgg16", (2, 2, 3, 3, 4, 5, 5)),
        optimiser=Optimiser("sgd", lr=0.05, momentum=0.9, weight_decay=5e-4),
        augmentation=Augmentation(crop_padding=1),
    ),
}


class Stop(Exception):
    pass


def stop_after(steps: int) -> Callable[[int, int], Silent]:
    """A display that stops the training with an error at a step."""

    def on_advance(done: int) -> None:
        if done >= steps:
            raise Stop

    return lambda total, count: Silent(on_advance)


def stopped(recipes: list[Recipe], store: Store, steps: int) -> None:
    with pytest.raises(Stop):
        ensure(
            recipes,
            DATASET,
            store,
            workers=1,
            checkpoint_seconds=0,
            progress=stop_after(steps),  # type: ignore[arg-type]
        )


def checkpoints(store: Store) -> list[int]:
    return sorted(int(p.name) for p in (store.root / "checkpoints").glob("*/*"))


def entry_of(recipe: Recipe, store: Store) -> Entry:
    entry = store.get(mode_key(recipe, DATASET, CPU))
    assert entry is not None
    return entry


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Callable[[Recipe], Mode]:
    store = Store(tmp_path_factory.mktemp("uninterrupted"))
    return lambda recipe: ensure([recipe], DATASET, store)[0]


# ---- stopping and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_stopped_in_any_epoch_it_goes_on_to_the_same_bits(name, tmp_path, uninterrupted):
    recipe = KINDS[name]
    expected = uninterrupted(recipe).weights
    for steps, saved in ((5, []), (10, []), (11, [10]), (20, [10]), (29, [20])):
        store = Store(tmp_path / str(steps))
        stopped([recipe], store, steps)
        assert checkpoints(store) == saved
        trained = []
        [mode] = ensure(
            [recipe],
            DATASET,
            store,
            workers=1,
            progress=lambda total, count, seen=trained: Silent(seen.append),  # type: ignore
        )
        assert identical(mode.weights, expected)
        # It went on from there, rather than from the start.
        assert trained[0] == (saved[0] if saved else 0)
        assert trained[-1] == 30
        assert checkpoints(store) == []


def test_stopped_time_and_again(tmp_path, uninterrupted):
    recipe, store = KINDS["augmented"], Store(tmp_path)
    for steps in (7, 15, 25):  # of those that are shown, the skipped ones included
        stopped([recipe], store, steps)
    assert checkpoints(store) == [20]
    [mode] = ensure([recipe], DATASET, store)
    assert identical(mode.weights, uninterrupted(recipe).weights)


def test_checkpoints_are_as_far_apart_as_asked(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(Stop):
        ensure(
            [tiny_recipe()],
            DATASET,
            store,
            checkpoint_seconds=3600,
            progress=stop_after(29),  # type: ignore[arg-type]
        )
    assert checkpoints(store) == []


def test_a_damaged_checkpoint_is_put_aside_and_training_starts_over(tmp_path, uninterrupted):
    recipe, store = KINDS["momentum"], Store(tmp_path)
    stopped([recipe], store, 25)
    [path] = (store.root / "checkpoints").glob("*/20/optimiser.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"20/optimiser\.safetensors"):
        [mode] = ensure([recipe], DATASET, store)
    assert identical(mode.weights, uninterrupted(recipe).weights)


def test_the_earlier_checkpoint_is_used_if_the_latest_is_damaged(tmp_path, uninterrupted):
    recipe, store = KINDS["momentum"], Store(tmp_path)
    stopped([recipe], store, 15)
    [folder] = (store.root / "checkpoints").iterdir()
    (folder / "20").mkdir()  # as if its files had been lost
    steps: list[int] = []
    with pytest.warns(RuntimeWarning, match=r"20/manifest\.json"):
        [mode] = ensure(
            [recipe],
            DATASET,
            store,
            workers=1,
            progress=lambda total, count: Silent(steps.append),  # type: ignore[return-value]
        )
    assert steps[0] == 10
    assert identical(mode.weights, uninterrupted(recipe).weights)


def test_a_checkpoint_of_another_mode_is_not_used(tmp_path, uninterrupted):
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    stopped([tiny_recipe(1)], other, 15)
    [folder] = (other.root / "checkpoints").iterdir()
    (store.root / "checkpoints").mkdir(parents=True)
    folder.rename(store.root / "checkpoints" / mode_key(tiny_recipe(), DATASET, CPU))
    [mode] = ensure([tiny_recipe()], DATASET, store)
    assert identical(mode.weights, uninterrupted(tiny_recipe()).weights)


# ---- spawning -----------------------------------------------------------------------------------

POINTS = {"epoch": Point(1), "steps": Point(steps=14), "mid-epoch": Point(1, 3), "end": Point(3)}


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("name", KINDS)
def test_a_child_with_the_parents_seeds_is_the_uninterrupted_run(name, at, tmp_path, uninterrupted):
    """Bit for bit: so it starts from the parent's weights, optimiser and place in the epoch."""
    recipe = KINDS[name]
    [child] = spawn(recipe, POINTS[at], [recipe.seeds])
    [mode] = ensure([child], DATASET, Store(tmp_path))
    assert identical(mode.weights, uninterrupted(recipe).weights)
    assert mode.key != uninterrupted(recipe).key


def test_a_child_needs_the_parents_optimiser_too(tmp_path, uninterrupted):
    """The test above would notice a fresh one: without its moments the end differs."""
    from llfc_core.training.engine import TrainingState, train

    recipe = KINDS["momentum"]
    [child] = spawn(recipe, Point(1), [recipe.seeds])
    parent = entry_of_parent(child, Store(tmp_path))
    for optimiser, same in ((parent.groups["optimiser"], True), ({}, False)):
        start = TrainingState(10, parent.groups["weights"], optimiser)
        [end] = train([child], DATASET, [start], CPU)
        assert identical(end.model, uninterrupted(recipe).weights) == same


def entry_of_parent(child: Recipe, store: Store) -> Entry:
    ensure([child], DATASET, store)
    assert child.parent is not None
    return entry_of(child.parent, store)


@pytest.mark.parametrize("at", POINTS)
def test_children_part_after_the_spawning_point(at, tmp_path):
    recipe, store = KINDS["augmented"], Store(tmp_path)
    a, b = spawn(recipe, POINTS[at], [Seeds(1, 1, 1), Seeds(2, 2, 2)])
    mode_a, mode_b = ensure([a, b], DATASET, store)
    assert len(store.keys()) == 3
    parent = entry_of(recipe_of_parent(a), store)
    assert parent.facts["step"] == POINTS[at].in_steps(10)
    assert parent.facts["parent"] is None
    for mode in (mode_a, mode_b):
        assert mode.facts["parent"] == mode_key(recipe_of_parent(a), DATASET, CPU)
        assert mode.facts["step"] == 30
    # At the end nothing is left to train.
    ended = at == "end"
    assert identical(mode_a.weights, mode_b.weights) == ended
    assert identical(mode_a.weights, parent.groups["weights"]) == ended


def recipe_of_parent(child: Recipe) -> Recipe:
    assert child.parent is not None
    return child.parent


@pytest.mark.parametrize("part", ["order", "augmentation"])
def test_either_seed_alone_parts_a_child_from_the_run(part, tmp_path, uninterrupted):
    recipe = KINDS["augmented"]
    [child] = spawn(recipe, Point(2), [replace(recipe.seeds, **{part: 5})])
    [mode] = ensure([child], DATASET, Store(tmp_path))
    assert not identical(mode.weights, uninterrupted(recipe).weights)


def test_spawned_at_0_children_share_theta_0_and_nothing_else(tmp_path, uninterrupted):
    recipe, store = tiny_recipe(3), Store(tmp_path)
    a, b, c = spawn(recipe, Point(), [Seeds(1, 1, 1), Seeds(2, 2, 2), recipe.seeds])
    modes = ensure([a, b, c], DATASET, store)
    assert len(store.keys()) == 3  # there is no parent to train
    assert [m.facts["parent"] for m in modes] == [None] * 3
    assert not identical(modes[0].weights, modes[1].weights)
    assert identical(modes[2].weights, uninterrupted(recipe).weights)
    starts = ensure([replace(r, epochs=0) for r in (a, b)], DATASET, store)
    assert identical(starts[0].weights, starts[1].weights)


def test_a_grandchild(tmp_path, uninterrupted):
    recipe = KINDS["momentum"]
    first = replace(recipe, stop=Point(1, 2))
    second = replace(recipe, parent=first, stop=Point(2, 5))
    third = replace(recipe, parent=second)
    store = Store(tmp_path)
    [mode] = ensure([third], DATASET, store)
    assert identical(mode.weights, uninterrupted(recipe).weights)
    assert entry_of(second, store).facts["parent"] == mode_key(first, DATASET, CPU)


def test_a_stopped_child_goes_on_from_its_own_checkpoint(tmp_path, uninterrupted):
    recipe = KINDS["augmented"]
    [child] = spawn(recipe, Point(steps=4), [recipe.seeds])
    for steps, saved in ((3, []), (8, []), (11, [10]), (21, [20])):
        store = Store(tmp_path / str(steps))
        stopped([child], store, steps)
        assert checkpoints(store) == saved
        [mode] = ensure([child], DATASET, store)
        assert identical(mode.weights, uninterrupted(recipe).weights)


def test_the_parents_state_is_not_changed_by_its_children(tmp_path):
    """A and B start from one stored state, and training works in place."""
    recipe = KINDS["momentum"]
    children = spawn(recipe, Point(1), [Seeds(i, i, i) for i in range(3)])
    together = ensure(children, DATASET, Store(tmp_path / "together"), workers=1)
    for child, mode in zip(children, together, strict=True):
        [alone] = ensure([child], DATASET, Store(tmp_path / child.key()))
        assert identical(mode.weights, alone.weights)


def test_a_parent_that_vanishes_is_an_error_that_says_so(tmp_path: Path, monkeypatch):
    store = Store(tmp_path)
    [child] = spawn(tiny_recipe(), Point(1), [Seeds(1, 1, 1)])
    parent = mode_key(recipe_of_parent(child), DATASET, CPU)
    plain = Store.get_checkpoint

    def get_checkpoint(self: Store, key: str) -> Entry | None:
        if key != parent:
            self.remove(parent)
        return plain(self, key)

    monkeypatch.setattr(Store, "get_checkpoint", get_checkpoint)
    with pytest.raises(TrainingFailed, match="run again"):
        ensure([child], DATASET, store)


def test_the_time_before_a_stop_counts(tmp_path):
    """A mode's seconds are what plans go by."""
    recipe, store = KINDS["adam"], Store(tmp_path)
    stopped([recipe], store, 25)
    key = mode_key(recipe, DATASET, CPU)
    checkpoint = store.get_checkpoint(key)
    assert checkpoint is not None
    assert 0 < checkpoint.facts["seconds"] < 1000
    store.drop_checkpoints(key)
    store.put_checkpoint(key, 20, Entry(checkpoint.groups, checkpoint.facts | {"seconds": 1000.0}))
    [mode] = ensure([recipe], DATASET, store)
    assert 1000 < mode.facts["seconds"] < 2000
    assert mode.facts["stack"] == 1
