"""On submitit's local engine: tasks are processes of this machine, all else is as on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from llfc_core import job
from llfc_core.__main__ import main
from llfc_core.store import Store
from llfc_core.training import Optimiser, cluster
from llfc_core.training.cluster import ClusterError
from tests.cluster.running import (
    begun,
    check_bits,
    handed_in,
    key,
    once,
    recipes,
    trained,
    until,
    watched,
)
from tests.suite.running import ROOT

WANTED = recipes(epochs=2, single=2)


@pytest.fixture(autouse=True)
def checkout(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_a_mode_that_fails_is_said_with_its_log_and_all_others_are_trained_once(store, tmp_path):
    """Its children are not tried. Two tasks: the families of a parent, and of one that fails."""
    parent = replace(WANTED[0].parent, optimiser=Optimiser("sgd", lr=1e30))
    lost = [replace(r, optimiser=parent.optimiser, parent=parent) for r in WANTED[:2]]
    submitted = handed_in([*WANTED, *lost], store, "local", 2)
    failed, said = watched(submitted, store)
    [(job_id, modes)] = failed.items()
    assert modes == [parent, *lost]
    text = "\n".join(said)
    assert f"job {job_id} is over, and 3 of its modes are not in the store" in text
    assert "not finite in epoch 1" in text
    assert str(submitted.log(job_id)) in text
    assert trained(store) == once(store)
    steps = begun(store)
    assert sorted(steps.values()) == [[0]] * 4 + [[8]] * 2  # the pair, at its parent's end
    assert key(parent)[:12] in steps
    check_bits(WANTED, store, tmp_path / "undisturbed")


def test_a_task_that_is_told_to_stop_gives_its_locks_back_and_goes_on_later(store, tmp_path):
    """By the signal of preemption: submitit requeues the task by itself."""
    wanted = recipes(epochs=60, single=0)
    submitted = handed_in(wanted, store, "local", 1, checkpoint_seconds=0.2)
    [running] = submitted.jobs
    until(lambda: store.checkpoint_step(key(wanted[0])))
    [task] = until(lambda: children(running.job_id))
    os.kill(task, signal.SIGUSR2)
    assert watched(submitted, store) == ({}, [])
    first = begun(store)[key(wanted[0])[:12]]
    assert len(first) == 2
    assert first[1] > first[0] == 8
    assert trained(store) == once(store)
    check_bits(wanted, store, tmp_path / "undisturbed")


def children(process: str) -> list[int]:
    done = subprocess.run(["ps", "--ppid", process, "-o", "pid="], capture_output=True, text=True)
    return list(map(int, done.stdout.split()))


def test_the_command_refuses_what_is_no_plan(tmp_path, capsys):
    assert main(["train", str(tmp_path / "plan.json"), "--pack", "0"]) == 2
    (tmp_path / "plan.json").write_text("{}")
    assert main(["train", str(tmp_path / "plan.json"), "--pack", "0"]) == 2
    assert str(tmp_path / "plan.json") in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is not job.stop  # it is the caller's again


def test_without_submitit_it_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ClusterError, match=r"pip install 'llfc-core\[cluster\]'"):
        handed_in(WANTED, store, "local", 1)


def test_without_slurm_it_is_said(store, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match=r"slurm: .*srun"):
        handed_in(WANTED, store, "slurm", 1)


@pytest.mark.parametrize(
    ("visible", "packs", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        ("2,3,5", 2, ["2", "3"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("3", 1, ["3"]),
        (None, 1, [None]),
    ],
)
def test_each_pack_of_a_task_has_a_gpu_of_its_own(visible, packs, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    task = job.Task("plan.json", tuple(range(packs)))
    assert [e.get("CUDA_VISIBLE_DEVICES") for e in task._environments()] == expected


def test_what_waits_for_the_training_does_not_import_torch():
    code = "import sys, llfc_core.job; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_queue_is_believed_only_when_it_answers(monkeypatch):
    def squeue(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "squeue")

    monkeypatch.setattr(cluster.subprocess, "run", squeue)
    assert cluster.Submitted("slurm", ROOT, {"1": ()}, ()).alive() is None
