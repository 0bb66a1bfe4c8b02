"""Train a plan on a cluster: submit it, watch it from the store, say what failed.

Engines are submitit's: ``slurm``, and ``local``, a process for each pack on this machine. Tasks
share nothing but the store: what is done is what the store has, whatever the queue says of it.
A task that is killed, preempted or out of time is requeued, and goes on from its checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llfc_core.data import load_dataset
from llfc_core.job import Task
from llfc_core.machine import cores
from llfc_core.store import Store
from llfc_core.training.engine import TrainingFailed
from llfc_core.training.modes import ensure
from llfc_core.training.plan import Pack, Plan
from llfc_core.training.progress import Progress
from llfc_core.training.recipe import Recipe

_LONG = 365 * 24 * 60  # minutes


class ClusterError(RuntimeError):
    """The engine cannot be used; the message says why and what to do."""


# ---- in a task ----------------------------------------------------------------------------------


def train_pack(path: Path, number: int) -> None:
    """Train one pack of a plan that `submit` wrote.

    Raises
    ------
    TrainingFailed
        Some of its modes failed; all others are in the store.
    ClusterError
        It is no such plan, or has no such pack.
    """
    by_data: dict[str, list[Recipe]] = {}
    try:
        plan = json.loads(path.read_text())
        for recipe in map(Recipe.from_dict, plan["packs"][number]):
            by_data.setdefault(recipe.data, []).append(recipe)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ClusterError(f"{path}: no plan with a pack {number} ({error!r})") from error
    failures = []
    for data, recipes in by_data.items():
        title = f"pack {number}, {data}: "
        try:
            ensure(
                recipes,
                load_dataset(data, data_dir=plan["data_dir"], device=plan["device"]),
                Store(plan["store"]),
                plan["device"],
                progress=partial(Progress, prefix=title),
                checkpoint_seconds=plan["checkpoint_seconds"],
                keep_going=True,
            )
        except TrainingFailed as error:
            failures.append(str(error))
    if failures:
        raise TrainingFailed("\n".join(failures))


# ---- where it is submitted ----------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """Tasks in the hands of an engine.

    Attributes
    ----------
    folder
        Of the plan and the logs.
    tasks
        By the engine's name of the job, the packs that it trains.
    jobs
        submitit's.
    """

    engine: str
    folder: Path
    tasks: dict[str, tuple[Pack, ...]]
    jobs: tuple[Any, ...] = field(repr=False)  # each would ask the queue how it is

    def alive(self) -> dict[str, str] | None:
        """States of the jobs that are not over, in the engine's words; None if it does not say."""
        if self.engine == "local":
            return {job.job_id: "running" for job in self.jobs if not job.done()}
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return None  # the controller is restarting, or busy
        states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        return {job: states[job].strip().lower() for job in self.tasks if job in states}

    def log(self, job: str) -> Path:
        return next(j.paths.stderr for j in self.jobs if j.job_id == job)

    def tail(self, job: str, lines: int = 12) -> list[str]:
        """The end of a task's log."""
        try:
            return self.log(job).read_text(errors="replace").splitlines()[-lines:]
        except OSError as error:
            return [f"no log: {error}"]


def submit(
    plan: Plan,
    engine: str,
    store: Store,
    *,
    device: str,
    data_dir: Path | None = None,
    gpus_per_task: int = 0,
    parameters: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 10.0,
) -> Submitted:
    """Hand a plan to an engine: Slurm gets a job array that keeps ``plan.gpus`` GPUs busy.

    Parameters
    ----------
    device
        "cpu" or "cuda": what the tasks train on.
    gpus_per_task
        Packs that a task trains side by side, each on a GPU of its own; 0 and 1 are one pack.
    parameters
        submitit's for Slurm, e.g. ``partition``, ``time`` in minutes, ``account``. A job that runs
        out of time is requeued.
    checkpoint_seconds
        As of `ensure`.

    Raises
    ------
    ClusterError
        submitit is not installed, or there is no Slurm here, or it refuses the job.
    """
    submitit = _submitit()
    if engine == "slurm" and not shutil.which("srun"):
        raise ClusterError("slurm: there is no srun here; submit from a node of the cluster")
    folder = store.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    path = folder / "plan.json"
    plan.save(
        path,
        store=str(store.root),
        device=device,
        data_dir=None if data_dir is None else str(data_dir),
        checkpoint_seconds=checkpoint_seconds,
    )
    each = max(1, gpus_per_task)
    numbers = [
        tuple(range(i, min(i + each, len(plan.packs)))) for i in range(0, len(plan.packs), each)
    ]
    jobs: list[Any] = []
    try:
        if engine == "local":
            executor = submitit.LocalExecutor(folder)
            for i, packs in enumerate(numbers):
                gpus = _visible()[i * each :][:gpus_per_task]
                executor.update_parameters(
                    timeout_min=_LONG, gpus_per_node=len(gpus), visible_gpus=gpus
                )
                jobs.append(executor.submit(Task(str(path), packs)))
        else:
            # It counts the times that a job ran out of time, and there may be many.
            executor = submitit.SlurmExecutor(folder, max_num_timeout=10_000)
            settings = {
                "job_name": "llfc",
                "time": _minutes(plan),
                "array_parallelism": max(1, plan.gpus // each),
                "additional_parameters": {"requeue": True},
            }
            if gpus_per_task:
                settings |= {"gpus_per_task": gpus_per_task, "ntasks_per_node": 1}
            executor.update_parameters(**settings | dict(parameters or {}))
            with executor.batch():  # an array
                jobs = [executor.submit(Task(str(path), packs)) for packs in numbers]
    except (RuntimeError, ValueError, TypeError, subprocess.SubprocessError) as error:
        raise ClusterError(f"{engine}: {error}") from error
    tasks = {
        job.job_id: tuple(plan.packs[p] for p in packs)
        for job, packs in zip(jobs, numbers, strict=True)
    }
    return Submitted(engine, folder, tasks, tuple(jobs))


def watch(
    submitted: Submitted,
    store: Store,
    key: Callable[[Recipe], str],
    n_train: Callable[[Recipe], int],
    display: Progress,
    say: Callable[[str], None],
    every: float = 1.0,
) -> dict[str, list[Recipe]]:
    """Until all tasks are over: show what they do, and say what failed, with the end of its log.

    Returns
    -------
    The modes that are not in the store, by the job that was to train them.
    """
    recipes = {
        recipe: key(recipe)
        for packs in submitted.tasks.values()
        for pack in packs
        for recipe in pack.recipes
    }
    spans = {recipe: recipe.span(n_train(recipe)) for recipe in recipes}
    over: set[str] = set()
    failed: dict[str, list[Recipe]] = {}
    while len(over) < len(submitted.tasks):
        alive = submitted.alive()
        stored = set(store.keys())
        done = 0
        for recipe, its_key in recipes.items():
            first, last = spans[recipe]
            step = last if its_key in stored else store.checkpoint_step(its_key)
            done += max(0, (step or first) - first)
        display.advance(done - display.done)
        if alive is not None:
            states = Counter(alive.values())
            display.waiting(", ".join(f"{n} {state}" for state, n in sorted(states.items())))
            for job in submitted.tasks.keys() - over - alive.keys():
                over.add(job)
                lost = [
                    recipe
                    for pack in submitted.tasks[job]
                    for recipe in pack.recipes
                    if not store.path(recipes[recipe]).exists()  # a list may be of a while ago
                ]
                if lost:
                    failed[job] = lost
                    say(f"job {job} is over, and {len(lost)} of its modes are not in the store:")
                    for recipe in lost[:5]:
                        say(f"  {recipe.label()}")
                    say(f"the end of {submitted.log(job)}:")
                    for line in submitted.tail(job):
                        say(f"  | {line}")
        display.refresh()
        if len(over) < len(submitted.tasks):
            time.sleep(every)
    return failed


def _visible() -> list[int]:
    """The numbers of this machine's GPUs, of those that the user lets be seen."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(map(int, names.split(","))) if names else list(range(torch.cuda.device_count()))


def _minutes(plan: Plan) -> int:
    """A time limit: half as much again as the longest pack is guessed to take."""
    longest = max((pack.seconds for pack in plan.packs), default=0.0)
    return max(60, int(1.5 * longest / 60) + 10)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ClusterError(
            "jobs are submitted through submitit: pip install 'llfc-core[cluster]'"
        ) from error
    return submitit


def lanes(device: torch.device, engine: str, parameters: Mapping[str, Any]) -> int:
    """Stacks that one pack's process trains side by side."""
    if device.type == "cuda":
        return 1
    return cores() if engine == "local" else int(parameters.get("cpus_per_task", 1))
