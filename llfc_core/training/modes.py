"""From recipes to modes: what the store lacks is trained, once, by whoever comes first.

`ensure` needs no plan and no leader. Every worker (a thread here, another pytest worker, another
node on a shared directory) walks the same list: it takes the first mode that is neither stored nor
locked by someone else, trains it, publishes it, and walks on. What others are training it waits
for. A worker that is killed loses its locks, and the next one goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llfc_core.data import Dataset
from llfc_core.machine import cores, device_name
from llfc_core.nets import build
from llfc_core.store import Entry, Store
from llfc_core.training.engine import (
    ENGINE_VERSION,
    TrainingFailed,
    TrainingState,
    evaluate,
    initial_state,
    stack_size,
    train,
)
from llfc_core.training.progress import Progress
from llfc_core.training.recipe import Recipe, with_parents

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Mode:
    """Trained weights θ and where they come from. Never changed.

    Attributes
    ----------
    weights
        A state dict on the CPU: parameters and buffers.
    facts
        What the manifest says: test error in per cent, loss, seconds, versions.
    """

    recipe: Recipe
    key: str
    weights: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def test_error(self) -> float:
        """Test error in per cent."""
        return self.facts["test_error"]


def mode_key(recipe: Recipe, dataset: Dataset, device: torch.device) -> str:
    """The store's key: the recipe and all else that decides the weights' bits."""
    return recipe.key(
        data=dataset.digest,
        engine=ENGINE_VERSION,
        device=device.type,
        stack=stack_size(device, recipe.net),
    )


def missing(
    recipes: Iterable[Recipe], dataset: Dataset, store: Store, device: torch.device
) -> list[Recipe]:
    """The recipes, parents included and first, that have no entry in the store (unchecked)."""
    return [
        recipe
        for recipe in with_parents(recipes)
        if not store.path(mode_key(recipe, dataset, device)).exists()
    ]


def ensure(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    store: Store,
    device: torch.device | str = "cpu",
    *,
    progress: Callable[[int, int], Progress] | None = None,
    workers: int | None = None,
    retrain_before: float | None = None,
    checkpoint_seconds: float = 10.0,
    keep_going: bool = False,
) -> list[Mode]:
    """The modes of ``recipes``, in their order: from the store, or trained into it.

    Parameters
    ----------
    progress
        Makes the display when there is something to train: ``progress(steps, modes)``.
    workers
        Threads that train side by side; by default one a core, or one on a GPU, where modes are
        stacked instead. The weights do not depend on it.
    retrain_before
        Entries that were finished before this moment (seconds since the epoch) are trained anew.
    checkpoint_seconds
        Save a checkpoint at the first end of an epoch after so many seconds.
    keep_going
        Where a mode fails, train all that do not descend from it before raising.

    Raises
    ------
    TrainingFailed
        A loss was not finite, or a mode misses its recipe's ``max_test_error``. The other modes
        that were finished stay in the store.
    StoreError
        The store cannot be written to.
    """
    device = torch.device(device)
    fleet = _Fleet(
        recipes=with_parents(recipes),
        dataset=dataset.to(device),
        store=store,
        device=device,
        retrain_before=retrain_before,
        checkpoint_seconds=checkpoint_seconds,
        keep_going=keep_going,
    )
    modes = fleet.run(progress, workers or (cores() if device.type == "cpu" else 1))
    return [modes[fleet.key(recipe)] for recipe in recipes]


class _Stopped(Exception):
    """Another worker failed, or the user interrupted: stop quietly."""


@dataclass
class _Fleet:
    """One call of `ensure`: the workers' common state."""

    recipes: list[Recipe]
    dataset: Dataset
    store: Store
    device: torch.device
    retrain_before: float | None
    checkpoint_seconds: float
    keep_going: bool
    modes: dict[str, Mode] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    failed: dict[str, TrainingFailed] = field(default_factory=dict)
    failure: BaseException | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    display: Progress | None = None

    def key(self, recipe: Recipe) -> str:
        return mode_key(recipe, self.dataset, self.device)

    def run(self, progress: Callable[[int, int], Progress] | None, workers: int) -> dict[str, Mode]:
        lacking = [r for r in self.recipes if not self._stored(r)]
        if not lacking:
            return self.modes
        n = len(self.dataset.train.labels)
        steps = sum(last - first for first, last in (r.span(n) for r in lacking))
        self.display = progress(steps, len(lacking)) if progress else None
        # Asked for here, this thread's number is settled before the workers choose theirs, which
        # would otherwise become the number of every thread that has not computed yet.
        intra_operation = torch.get_num_threads()
        threads = [
            threading.Thread(target=self._work, name=f"training-{i}", daemon=True)
            for i in range(min(workers, len(lacking)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)  # a bare join would not let Ctrl-C through
                    if self.display:
                        self.display.refresh()
        except BaseException as interrupt:
            self._fail(interrupt)
            for thread in threads:
                if thread.is_alive():  # it may not have been started
                    thread.join()
        finally:
            torch.set_num_threads(intra_operation)
            if self.display:
                self.display.close()
        if self.failure is not None:
            raise self.failure
        if self.failed:
            raise TrainingFailed("\n".join(map(str, self.failed.values())))
        return self.modes

    # ---- a worker ---------------------------------------------------------------------------

    def _work(self) -> None:
        # This thread's operations use one core: the sums, and so the weights, then do not depend
        # on how many cores there are, and one mode a core is faster than all cores on one mode.
        torch.set_num_threads(1)
        patience = 0.1
        try:
            while self.failure is None and not self._finished():
                with ExitStack() as locks:
                    turn = locks.enter_context(self._turn())
                    stack = self._take(locks) if turn else []
                    if stack:
                        try:
                            self._train(stack)
                        finally:
                            self._release(stack)
                        patience = 0.1
                        continue
                self._wait(patience, for_core=not turn)
                patience = min(2 * patience, 2.0)  # every look costs a shared store's server
        except _Stopped:
            pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def _release(self, stack: list[Recipe]) -> None:
        with self.changed:
            self.taken -= {self.key(r) for r in stack}
            self.changed.notify_all()

    def _finished(self) -> bool:
        with self.changed:
            return all(self.key(r) in self.modes or self._doomed(r) for r in self.recipes)

    def _doomed(self, recipe: Recipe | None) -> bool:
        """Whether training failed, its own or that of one it descends from."""
        while recipe is not None and self.failed:
            if self.key(recipe) in self.failed:
                return True
            recipe = recipe.parent
        return False

    def _wait(self, seconds: float, for_core: bool) -> None:
        """Until something changes here, or for a while: other processes cannot notify us."""
        with self.changed:
            here = self.modes.keys() | self.taken
            elsewhere = [r for r in self.recipes if self.key(r) not in here and not self._doomed(r)]
        elsewhere = [r for r in elsewhere if not self._stored(r, elsewhere=True)]
        with self.changed:
            if elsewhere and self.display:
                recipe = elsewhere[0]
                owner = f"{recipe.label()}: {self.store.owner(self.key(recipe))}"
                self.display.waiting("a core: other processes train on all" if for_core else owner)
            self.changed.wait(seconds)

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """A place to train in, if there is one: one a core, whichever processes ask."""
        with ExitStack() as stack:
            places = range(cores()) if self.device.type == "cpu" else ()
            for i in places:
                if stack.enter_context(self.store.try_lock_here(f"core-{i}")):
                    break
            else:
                yield not places
                return
            yield True

    def _take(self, locks: ExitStack) -> list[Recipe]:
        """Lock modes to train: as many as a stack holds, all alike and ready to start."""
        stack: list[Recipe] = []
        n = len(self.dataset.train.labels)
        for recipe in self.recipes:
            if stack and len(stack) == stack_size(self.device, stack[0].net):
                break
            key = self.key(recipe)
            alike = not stack or (
                recipe.along() == stack[0].along()
                and recipe.stop == stack[0].stop
                and recipe.span(n) == stack[0].span(n)
            )
            with self.changed:
                ready = recipe.parent is None or self.key(recipe.parent) in self.modes
                settled = key in self.modes or key in self.taken or self._doomed(recipe)
                if settled or not ready or not alike:
                    continue
                self.taken.add(key)
            mine = locks.enter_context(self.store.try_lock(key))
            # Whoever held the lock before may have finished it.
            if mine and not self._stored(recipe, elsewhere=True):
                stack.append(recipe)
            else:
                with self.changed:
                    self.taken.discard(key)
        return stack

    def _stored(self, recipe: Recipe, *, elsewhere: bool = False) -> bool:
        """Whether the mode is in the store, checked; then it is in ``modes`` too.

        ``elsewhere`` says that only another process can have trained it: its steps then count.
        """
        key = self.key(recipe)
        if key in self.modes:
            return True
        entry = self.store.get(key)
        if entry is None:
            return False
        problem = self._problem(recipe, entry)
        if problem:
            self.store.quarantine(self.store.path(key), f"{self.store.path(key)}: {problem}")
            return False
        if self.retrain_before is not None and entry.facts["finished"] < self.retrain_before:
            self.store.remove(key)
            return False
        with self.changed:
            new = key not in self.modes  # several threads may be waiting for it
            self.modes.setdefault(key, Mode(recipe, key, entry.groups["weights"], entry.facts))
        if new and elsewhere and self.display:
            first, last = recipe.span(len(self.dataset.train.labels))
            self.display.advance(last - first)
        return True

    def _problem(self, recipe: Recipe, entry: Entry) -> str | None:
        """What keeps an intact entry from being this recipe's mode, or None."""
        if entry.facts.get("key") != self.key(recipe):
            return "it is another mode's entry"
        with torch.device("meta"):
            expected = build(recipe.net, self.dataset.shape, self.dataset.classes).state_dict()
        weights = entry.groups.get("weights", {})
        if {k: (v.shape, v.dtype) for k, v in weights.items()} != {
            k: (v.shape, v.dtype) for k, v in expected.items()
        }:
            return "the tensors are not those of the recipe's network"
        if not all(bool(torch.isfinite(v).all()) for v in weights.values()):
            return "the weights are not finite"
        return None

    # ---- training ---------------------------------------------------------------------------

    def _train(self, stack: list[Recipe]) -> None:
        begun = [(recipe, *self._start(recipe)) for recipe in stack]
        # Checkpoints of different age cannot share a stack: take those that are furthest behind.
        first = min(state.step for _, state, _ in begun)
        begun = [b for b in begun if b[1].step == first]
        stack, starts = [b[0] for b in begun], [b[1] for b in begun]
        spent = [b[2] for b in begun]
        for recipe in stack:
            _log.info("%.12s %s: begun at step %d", self.key(recipe), recipe.label(), first)
        began = saved = time.monotonic()
        failures: dict[int, TrainingFailed] = {}

        def on_failure(place: int, failure: TrainingFailed) -> None:
            failures[place] = failure
            self.store.drop_checkpoints(self.key(stack[place]))
            if len(failures) == len(stack):
                raise failure

        def on_step() -> None:
            if self.failure is not None:
                raise _Stopped
            if self.display:
                self.display.advance(len(stack))

        def facts(place: int) -> dict[str, Any]:
            """A mode's share of the time, that before a checkpoint included."""
            seconds = spent[place] + (time.monotonic() - began) / len(stack)
            return {"seconds": seconds, "stack": len(stack)}

        def on_epoch(states: Callable[[], list[TrainingState]]) -> None:
            nonlocal saved
            if time.monotonic() - saved >= self.checkpoint_seconds:
                for place, state in enumerate(states()):
                    if place not in failures:
                        recipe = stack[place]
                        groups = {"weights": state.model, "optimiser": state.optimiser}
                        self.store.put_checkpoint(
                            self.key(recipe),
                            state.step,
                            self._entry(recipe, state.step, groups, facts(place)),
                        )
                saved = time.monotonic()

        if self.display:
            skipped = sum(
                s.step - r.span(len(self.dataset.train.labels))[0]
                for r, s in zip(stack, starts, strict=True)
            )
            self.display.advance(skipped)
        try:
            states = train(
                stack,
                self.dataset,
                starts,
                self.device,
                on_step=on_step,
                on_epoch=on_epoch,
                on_failure=on_failure,
            )
        except TrainingFailed:  # of all of them
            states = []
        known = [facts(place) for place in range(len(stack))]
        for place, state in enumerate(states):
            if place in failures:
                continue
            try:
                self._publish(stack[place], state, known[place])
            except TrainingFailed as error:  # of this mode; the others of the stack are kept
                failures[place] = error
        with self.changed:
            self.failed |= {self.key(stack[place]): error for place, error in failures.items()}
        if failures and not self.keep_going:
            raise next(iter(failures.values()))

    def _start(self, recipe: Recipe) -> tuple[TrainingState, float]:
        """A checkpoint and the seconds it took so far, else the parent's end, else θ⁽⁰⁾."""
        entry = self.store.get_checkpoint(self.key(recipe))
        if entry is not None and entry.facts.get("key") == self.key(recipe):
            return _state(entry), entry.facts.get("seconds", 0.0)
        if recipe.parent is not None:
            parent = self.store.get(self.key(recipe.parent))
            if parent is None:
                raise TrainingFailed(
                    f"the parent of {recipe.label()} was in the store and is gone; run again"
                )
            return _state(parent), 0.0
        return initial_state(recipe, self.dataset), 0.0

    def _publish(self, recipe: Recipe, state: TrainingState, facts: dict[str, Any]) -> None:
        key = self.key(recipe)
        problem = None
        if not all(bool(torch.isfinite(v).all()) for v in state.model.values()):
            problem = "its weights are not finite"
        module = build(recipe.net, self.dataset.shape, self.dataset.classes).to(self.device)
        module.load_state_dict(state.model)
        test_error, test_loss = evaluate(module, self.dataset.test, self.dataset)
        train_error, train_loss = evaluate(module, self.dataset.train, self.dataset)
        if recipe.stop is None and test_error > recipe.max_test_error:
            problem = (
                f"its test error is {test_error:.2f}%, "
                f"and the recipe allows {recipe.max_test_error:.2f}%"
            )
        if problem:
            self.store.drop_checkpoints(key)
            raise TrainingFailed(
                f"{recipe.label()} was trained, but {problem}; it was not kept. "
                "Look at the recipe's learning rate, epochs and data."
            )
        facts = {
            "test_error": test_error,
            "test_loss": test_loss,
            "train_error": train_error,
            "train_loss": train_loss,
            **facts,
            "finished": time.time(),
            "device": device_name(self.device),
            "torch": torch.__version__,
        }
        groups = {"weights": state.model}
        # Only spawning and resuming need the optimiser, and it is twice the size of the weights.
        if recipe.stop is not None:
            groups["optimiser"] = state.optimiser
        self.store.put(key, self._entry(recipe, state.step, groups, facts))
        _log.info(
            "%.12s %s: trained to step %d in %.0f s, test error %.2f%%",
            *(key, recipe.label(), state.step, facts["seconds"], test_error),
        )
        if not self._stored(recipe):
            raise TrainingFailed(f"{recipe.label()} was written but cannot be read back")

    def _entry(
        self, recipe: Recipe, step: int, groups: dict[str, dict[str, Tensor]], facts: dict[str, Any]
    ) -> Entry:
        known = {
            "key": self.key(recipe),
            "recipe": recipe.to_dict(),
            "parent": None if recipe.parent is None else self.key(recipe.parent),
            "step": step,
        }
        return Entry(groups, known | facts)


def _state(entry: Entry) -> TrainingState:
    return TrainingState(
        entry.facts["step"], entry.groups["weights"], entry.groups.get("optimiser", {})
    )


def cache_dir() -> Path:
    """The default place of the store: ``LLFC_CACHE_DIR``, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("LLFC_CACHE_DIR") or platformdirs.user_cache_path("llfc"))
