"""`ensure`: each mode once, the same whatever trains beside it, and never a bad one."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

from llfc_core.data import Augmentation
from llfc_core.nets import Net
from llfc_core.store import Store
from llfc_core.training import (
    Mode,
    Optimiser,
    Point,
    Seeds,
    TrainingFailed,
    ensure,
    expected_seconds,
    missing,
    mode_key,
    spawn,
)
from llfc_core.training import cost as cost_module
from llfc_core.training import engine as engine_module
from llfc_core.training import modes as modes_module
from tests.helpers import Silent, content, identical, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
DATASET = tiny_dataset()
A, B = spawn(
    tiny_recipe(augmentation=Augmentation(flip=True)), Point(1, 2), [Seeds(1, 1, 1), Seeds(2, 2, 2)]
)
C, D = tiny_recipe(3), tiny_recipe(4, optimiser=Optimiser("sgd", lr=0.1, momentum=0.9))
ALL = [A, B, C, D]
NAN = tiny_recipe(5, optimiser=Optimiser("sgd", lr=1e30))
POOR = tiny_recipe(6, optimiser=Optimiser("sgd", lr=1e-6), max_test_error=5.0)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[object, Mode]:
    """Each of the modes trained by itself, in a store of its own."""
    modes = {}
    for recipe in ALL:
        [modes[recipe]] = ensure([recipe], DATASET, Store(tmp_path_factory.mktemp("alone")))
    return modes


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def error_of(mode: Mode, split, dataset=DATASET) -> float:
    """Per cent of wrong answers, by hand."""
    w = mode.weights
    x = ((split.images.double() / 255 - dataset.mean[0]) / dataset.std[0]).flatten(1)
    for layer in ("fc1", "fc2", "fc3"):
        x = x @ w[f"{layer}.weight"].double().T + w[f"{layer}.bias"].double()
        x = x.relu() if layer != "fc3" else x
    return 100 * float((x.argmax(1) != split.labels).double().mean())


# ---- what comes back ----------------------------------------------------------------------------


def test_modes_come_in_the_order_asked_and_are_trained_well(store):
    modes = ensure([C, A, C], DATASET, store)
    assert [m.recipe for m in modes] == [C, A, C]
    assert modes[0] is modes[2]
    for mode in modes:
        assert mode.test_error == pytest.approx(error_of(mode, DATASET.test))
        assert mode.facts["train_error"] == pytest.approx(error_of(mode, DATASET.train))
        assert mode.test_error < 40  # by chance it would be 75
        assert mode.key == mode_key(mode.recipe, DATASET, CPU)
        assert {t.device.type for t in mode.weights.values()} == {"cpu"}
    facts = store.get(modes[0].key).facts
    assert facts == modes[0].facts
    assert facts["key"] == modes[0].key
    assert facts["recipe"] == C.to_dict()
    assert facts["torch"] == torch.__version__
    assert facts["test_loss"] > 0
    assert abs(time.time() - facts["finished"]) < 3600


def test_only_what_spawning_needs_is_stored_beside_the_weights(store):
    [mode] = ensure([A], DATASET, store)
    assert store.get(mode.key).groups.keys() == {"weights"}
    parent = store.get(mode.facts["parent"])
    assert parent.groups.keys() == {"weights", "optimiser"}
    assert {k.split(".")[0] for k in parent.groups["optimiser"]} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_what_is_stored_is_not_trained_again(store, monkeypatch):
    first = ensure(ALL, DATASET, store)
    before = content(store.root)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("there is nothing to train")

    monkeypatch.setattr(modes_module, "train", refuse)
    again = ensure(ALL, DATASET, store, progress=refuse)  # type: ignore[arg-type]
    assert [identical(a.weights, b.weights) for a, b in zip(first, again)] == [True] * 4
    assert [a.facts for a in first] == [b.facts for b in again]
    assert content(store.root) == before


def test_progress_is_told_the_work_and_counts_it_exactly(store):
    shown: list[Silent] = []

    def progress(steps: int, count: int) -> Silent:
        shown.append(Silent())
        assert (steps, count) == work
        return shown[-1]

    work = (30, 1)
    ensure([C], DATASET, store, progress=progress)  # type: ignore[arg-type]
    work = (12 + 2 * 18 + 30, 4)  # A and B with their parent, and D; C is there
    ensure(ALL, DATASET, store, progress=progress)  # type: ignore[arg-type]
    assert [s.done for s in shown] == [30, 78]


def test_missing_names_what_is_not_stored_parents_first(store):
    parent = A.parent
    assert missing(ALL, DATASET, store, CPU) == [parent, A, B, C, D]
    ensure([A, C], DATASET, store)
    assert missing(ALL, DATASET, store, CPU) == [B, D]
    assert missing(ALL, DATASET, store, torch.device("cuda")) == [parent, A, B, C, D]
    assert missing(ALL, tiny_dataset(n_test=30), store, CPU) == [parent, A, B, C, D]


def test_expected_seconds_grow_with_the_work():
    one = expected_seconds([C], DATASET, CPU)
    assert 0 < one < 1
    assert expected_seconds([C, C], DATASET, CPU) == pytest.approx(2 * one)
    assert expected_seconds([replace(C, epochs=6)], DATASET, CPU) == pytest.approx(2 * one)
    assert expected_seconds([], DATASET, CPU) == 0
    wide = replace(C, net=Net("mlp", (160, 120)))
    assert expected_seconds([wide], DATASET, CPU) > 8 * one


def test_expected_seconds_count_each_use_of_a_weight():
    """A convolution uses its weights at every pixel: with 16 times the pixels, 16 times the work.

    But for the linear layer, and stages of maps that are one pixel already.
    """
    recipe = replace(C, net=Net("resnet20", (8, 8, 8)))
    small, large = (replace(recipe, net=replace(recipe.net, shrink=shrink)) for shrink in (4, 1))
    ratio = expected_seconds([large], DATASET, CPU) / expected_seconds([small], DATASET, CPU)
    assert 8 < ratio < 16


def test_the_work_of_a_network_is_twice_its_products():
    assert cost_module._forward_flops(Net("mlp", (16, 12)), (1, 8, 8), 4) == 2 * (
        64 * 16 + 16 * 12 + 12 * 4
    )


def test_equal_recipes_in_other_words_are_one_mode(store):
    a, b = (tiny_recipe(max_test_error=limit) for limit in (50, 50.0))
    first, second = ensure([a, b], DATASET, store)
    assert first is second


# ---- alone and in company -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_weights_do_not_depend_on_the_number_of_workers(workers, store, alone):
    for mode in ensure(ALL, DATASET, store, workers=workers):
        assert identical(mode.weights, alone[mode.recipe].weights)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_weights_do_not_depend_on_order_or_company(size, tmp_path, alone):
    # In every order of two and rotation of more.
    for i, some in enumerate(itertools.permutations(ALL, size)):
        if size > 2 and i % 5:
            continue
        for mode in ensure(list(some), DATASET, Store(tmp_path / str(i))):
            assert identical(mode.weights, alone[mode.recipe].weights)


def test_weights_do_not_depend_on_the_threads_torch_is_given(tmp_path, alone):
    threads = torch.get_num_threads()
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            [mode] = ensure([D], DATASET, Store(tmp_path / str(n)))
            assert identical(mode.weights, alone[D].weights)
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)


def test_workers_compute_on_one_core_each(store):
    """Sums are cut where threads meet, so weights would depend on how many there are."""
    seen = set()

    def on_advance(done: int) -> None:
        seen.add(torch.get_num_threads())

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ensure(
            ALL,
            DATASET,
            store,
            progress=lambda steps, count: Silent(on_advance),  # type: ignore[return-value]
        )
    finally:
        torch.set_num_threads(threads)
    assert seen == {1}


def test_other_threads_of_the_process_keep_their_cores_after_training(store):
    seen = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ensure([C], DATASET, store)
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(threads)
    assert seen == [3]


@pytest.fixture
def stacks_of_four(monkeypatch):
    """As on a GPU: modes train in stacks.

    Of four, so that arrays are multiples of a CPU's vectors: the rest of others is computed by
    other instructions there. A GPU knows no such rest, and a CPU's stacks hold one mode.
    """
    for module in (modes_module, engine_module):
        monkeypatch.setattr(module, "stack_size", lambda device, net: 4)


@pytest.mark.usefixtures("stacks_of_four")
def test_modes_that_train_in_stacks_do_not_depend_on_their_company(tmp_path):
    recipes = [*ALL, *(replace(C, seeds=Seeds(i, i, i)) for i in range(10, 14))]
    together = ensure(recipes, DATASET, Store(tmp_path / "together"))
    for recipe, mode in zip(recipes, together, strict=True):
        [single] = ensure([recipe], DATASET, Store(tmp_path / recipe.key()), workers=2)
        assert identical(mode.weights, single.weights)


@pytest.mark.usefixtures("stacks_of_four")
def test_a_stack_holds_modes_that_are_alike_and_ready(store, monkeypatch):
    seen = []
    plain = modes_module.train

    def watched(stack, *args, **kwargs):
        seen.append([r.seeds.init for r in stack])
        assert len({(r.along(), r.stop) for r in stack}) == 1
        return plain(stack, *args, **kwargs)

    monkeypatch.setattr(modes_module, "train", watched)
    recipes = [tiny_recipe(i) for i in range(5)]
    children = spawn(tiny_recipe(9), Point(1), [Seeds(i, i, i) for i in range(2)])
    ensure([*children, *recipes], DATASET, store, workers=1)
    # The parent is like nothing else, and its children start where nothing else does.
    assert seen == [[9], [9, 9], [0, 1, 2, 3], [4]]


@pytest.mark.usefixtures("stacks_of_four")
def test_checkpoints_of_different_age_do_not_share_a_stack(tmp_path):
    recipes = [tiny_recipe(i) for i in range(3)]
    expected = ensure(recipes, DATASET, Store(tmp_path / "expected"))
    store = Store(tmp_path / "store")

    class Stop(Exception):
        pass

    def stop(total: int, count: int) -> Silent:
        def on_advance(done: int) -> None:
            if done > 12 * count:
                raise Stop

        return Silent(on_advance)

    with pytest.raises(Stop):
        ensure(
            recipes[:2],
            DATASET,
            store,
            progress=stop,  # type: ignore[arg-type]
            checkpoint_seconds=0,
        )
    shown = []

    def progress(total: int, count: int) -> Silent:
        shown.append(Silent())
        return shown[-1]

    modes = ensure(recipes, DATASET, store, progress=progress)  # type: ignore[arg-type]
    assert shown[0].done == 90
    for mode, other in zip(modes, expected, strict=True):
        assert identical(mode.weights, other.weights)


# ---- failures -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_never_published(store):
    with pytest.raises(TrainingFailed, match="not finite in epoch 1"):
        ensure([NAN], DATASET, store, checkpoint_seconds=0)
    assert content(store.root) == {}


def test_weights_that_are_not_finite_after_a_last_finite_loss_are_never_published(store):
    """One step, from a finite loss to weights beyond all bounds."""
    recipe = replace(NAN, epochs=1, batch_size=300, optimiser=Optimiser("sgd", lr=1e45))
    with pytest.raises(TrainingFailed, match="not finite"):
        ensure([recipe], DATASET, store)
    assert content(store.root) == {}


def test_a_mode_below_its_recipes_floor_is_never_published(store):
    with pytest.raises(TrainingFailed, match=r"test error is .*%.*allows 5\.00%"):
        ensure([POOR], DATASET, store, checkpoint_seconds=0)
    assert content(store.root) == {}


def test_the_floor_is_not_asked_of_a_parent(store):
    child = spawn(replace(C, max_test_error=20.0), Point(steps=1), [Seeds(0, 7, 7)])
    [mode] = ensure(child, DATASET, store)
    assert mode.test_error <= 20 < store.get(mode.facts["parent"]).facts["test_error"]


def test_the_floor_may_be_met_exactly(store, alone):
    error = alone[C].test_error
    [mode] = ensure([replace(C, max_test_error=error)], DATASET, store)
    assert mode.test_error == error


@pytest.mark.parametrize("bad", [NAN, POOR], ids=["nan", "poor"])
def test_finished_modes_stay_when_another_fails(bad, store, alone):
    with pytest.raises(TrainingFailed):
        ensure([C, bad, D], DATASET, store, workers=1)
    assert store.keys() == [mode_key(C, DATASET, CPU)]
    for mode in ensure([C, D], DATASET, store):
        assert identical(mode.weights, alone[mode.recipe].weights)
    with pytest.raises(TrainingFailed):
        ensure([bad], DATASET, store)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("bad", [NAN, POOR], ids=["nan", "poor"])
def test_keeping_going_all_others_are_trained_before_it_is_said(bad, workers, store, alone):
    """But for those that descend from what failed; and nothing waits for them."""
    lost = spawn(NAN, Point(1), [Seeds(5, 7, 7)])
    with pytest.raises(TrainingFailed) as raised:
        ensure([*lost, bad, *ALL], DATASET, store, workers=workers, keep_going=True)
    assert len(str(raised.value).splitlines()) == 2
    assert bad.label() in str(raised.value)
    assert lost[0].parent.label() in str(raised.value)
    for mode in ensure(ALL, DATASET, store):
        assert identical(mode.weights, alone[mode.recipe].weights)
    assert len(store.keys()) == len(ALL) + 1


@pytest.mark.usefixtures("stacks_of_four")
def test_a_stacks_other_modes_stay_when_one_misses_its_floor(tmp_path):
    """Of three in a stack the first is made to fail, by a floor between their errors."""
    base = tiny_recipe(epochs=1, optimiser=Optimiser("sgd", lr=0.02))
    modes = ensure(
        [replace(base, seeds=Seeds(i, i, i)) for i in range(9)], DATASET, Store(tmp_path / "a")
    )
    modes.sort(key=lambda m: -m.test_error)
    worst, best = modes[0], modes[-1]
    assert best.test_error < worst.test_error
    recipes = [replace(m.recipe, max_test_error=best.test_error) for m in (worst, best)]
    store = Store(tmp_path / "b")
    with pytest.raises(TrainingFailed, match=f"init={worst.recipe.seeds.init} "):
        ensure(recipes, DATASET, store, workers=1)
    assert store.keys() == [mode_key(recipes[1], DATASET, CPU)]


@pytest.mark.usefixtures("stacks_of_four")
def test_a_stacks_other_modes_stay_when_one_loses_its_loss(tmp_path, monkeypatch):
    """Of two in a stack one begins with a NaN; its checkpoints must not come back either."""
    recipes = [tiny_recipe(i) for i in range(2)]
    expected = ensure(recipes, DATASET, Store(tmp_path / "whole"))
    plain = modes_module.initial_state

    def spoiled(recipe, dataset):
        state = plain(recipe, dataset)
        if recipe == recipes[0]:
            state.model["fc1.bias"][0] = torch.nan
        return state

    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(modes_module, "initial_state", spoiled)
        with pytest.raises(TrainingFailed, match=r"init=0 .*not finite in epoch 1"):
            ensure(recipes, DATASET, store, workers=1, checkpoint_seconds=0)
    assert store.keys() == [expected[1].key]
    assert not list((store.root / "checkpoints").glob("*/*"))
    for mode, whole in zip(ensure(recipes, DATASET, store), expected, strict=True):
        assert identical(mode.weights, whole.weights)


def test_an_impossible_span_is_refused_before_anything_is_trained(store):
    with pytest.raises(ValueError, match="cannot train from step"):
        ensure([C, tiny_recipe(stop=Point(9))], DATASET, store)
    assert content(store.root) == {}


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupt_stops_all_workers(workers, store):
    """Ctrl-C reaches the main thread, which draws the display; here it strikes in mid-training."""

    class Interrupted(Silent):
        closed = False

        def refresh(self) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            self.closed = True

    shown = []

    def progress(steps: int, count: int) -> Silent:
        shown.append(Interrupted())
        return shown[-1]

    # Long enough that nobody finishes before the interrupt: 10,000 epochs.
    recipes = [tiny_recipe(i, epochs=10_000) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        ensure(recipes, DATASET, store, progress=progress, workers=workers)  # type: ignore[arg-type]
    assert not [t for t in threading.enumerate() if t.name.startswith("training-")]
    assert shown[0].closed
    assert store.keys() == []
    for recipe in recipes:
        with store.try_lock(mode_key(recipe, DATASET, CPU)) as free:
            assert free


def test_an_error_in_one_worker_stops_the_others(store, monkeypatch):
    plain = modes_module.train
    started = threading.Barrier(2)

    def breaking(stack, *args, **kwargs):
        started.wait(60)
        if stack[0] == recipes[0]:
            raise ZeroDivisionError
        return plain(stack, *args, **kwargs)

    monkeypatch.setattr(modes_module, "cores", lambda: 2)
    monkeypatch.setattr(modes_module, "train", breaking)
    recipes = [tiny_recipe(0), tiny_recipe(1, epochs=10_000)]
    with pytest.raises(ZeroDivisionError):
        ensure(recipes, DATASET, store, workers=2)
    assert store.keys() == []


# ---- training anew ------------------------------------------------------------------------------


def test_retrain_before_trains_what_is_older_and_keeps_what_is_not(store):
    [old] = ensure([C], DATASET, store)
    [kept] = ensure([C], DATASET, store, retrain_before=old.facts["finished"])
    assert kept.facts == old.facts
    moment = time.time()
    [new] = ensure([C], DATASET, store, retrain_before=moment)
    assert new.facts["finished"] > old.facts["finished"]
    assert identical(new.weights, old.weights)
    [again] = ensure([C], DATASET, store, retrain_before=moment)
    assert again.facts == new.facts
    assert store.keys() == [new.key]


def test_retrain_before_goes_for_parents_too(store):
    [a] = ensure([A], DATASET, store)
    finished = store.get(a.facts["parent"]).facts["finished"]
    moment = time.time()
    ensure([A], DATASET, store, retrain_before=moment)
    assert store.get(a.facts["parent"]).facts["finished"] > finished


def test_retrain_before_does_not_go_on_from_a_checkpoint_of_the_old_one(store, alone):
    [old] = ensure([C], DATASET, store)
    store.put_checkpoint(old.key, 20, store.get(old.key))
    seen: list[int] = []
    [new] = ensure(
        [C],
        DATASET,
        store,
        retrain_before=time.time(),
        workers=1,
        progress=lambda steps, count: Silent(seen.append),  # type: ignore[return-value]
    )
    assert seen[0] == 0
    assert seen[-1] == 30
    assert identical(new.weights, alone[C].weights)
