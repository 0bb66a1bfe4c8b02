"""On a real Slurm, of one node, which `slurm.sh` starts and stops.

`make slurm-test`. What was trained is counted in the tasks' logs, what is there in the store.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.settings import replicate
from llfc_core.data import load_dataset
from llfc_core.store import Store
from llfc_core.training import ensure
from llfc_core.training.cluster import ClusterError, Submitted
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
from tests.suite.running import ROOT, run_pytest
from tests.suite.tiny import TINY

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("slurm.sh")


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Iterator[str]:
    """The path of a running Slurm's configuration."""
    folder = tmp_path_factory.mktemp("slurm")
    done = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    yield done.stdout.strip()
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=120)


@pytest.fixture(autouse=True)
def slurm(conf, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_CONF", conf)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def control(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def checkpointed(store: Store, submitted: Submitted) -> bool:
    """Whether a mode is half trained."""
    modes = [r for packs in submitted.tasks.values() for pack in packs for r in pack.recipes]
    return any(store.checkpoint_step(key(recipe)) for recipe in modes)


def test_an_array_trains_what_the_selected_tests_need(tmp_path):
    """As users do it, and then the tests only read."""
    place = ("-p", "tests.suite.tiny", "--replicates=1", f"--llfc-cache-dir={tmp_path}/store")
    options = ("--device=cpu", "--engine=slurm", "--array-parallelism=2", "--time=0:30:00")
    ran = run_pytest("phenomena/", "-k", "lmc", *place, *options, "--train-only")
    print(ran.out)
    assert ran.code == 0, ran.out + ran.err
    assert "all modes are in" in ran.out
    store = Store(tmp_path / "store")
    assert len(store.keys()) == len(vars(replicate(TINY, 0)))
    assert trained(store) == once(store)
    log = tmp_path / "log"
    ran = run_pytest("phenomena/test_lmc.py", *place, LLFC_TRAINED=str(log))
    assert ran.code == 0, ran.out
    assert not log.exists()


def test_requeued_in_the_middle_it_goes_on_to_the_same_bits(store, tmp_path):
    wanted = recipes(epochs=150, single=1)
    submitted = handed_in(wanted, store, "slurm", 2, checkpoint_seconds=0.5)
    until(lambda: checkpointed(store, submitted))
    for job in submitted.alive():
        control("scontrol", "requeue", job)
    failed, said = watched(submitted, store)
    assert (failed, said) == ({}, [])
    assert any(len(steps) == 2 and steps[1] > steps[0] for steps in begun(store).values())
    assert trained(store) == once(store)
    check_bits(wanted, store, tmp_path / "undisturbed")


def test_cancelled_in_the_middle_it_is_said_and_the_next_array_goes_on(store, tmp_path):
    wanted = recipes(epochs=150, single=1)
    submitted = handed_in(wanted, store, "slurm", 2, checkpoint_seconds=0.5)
    until(lambda: checkpointed(store, submitted))
    control("scancel", *(job.split("_")[0] for job in submitted.tasks))
    failed, said = watched(submitted, store)
    assert failed.keys() == submitted.tasks.keys()
    assert any("is over, and" in line for line in said)
    assert any("begun at step" in line for line in said), said
    again = handed_in(wanted, store, "slurm", 2)
    assert watched(again, store) == ({}, [])
    assert any(len(steps) == 2 and steps[1] > steps[0] for steps in begun(store).values())
    assert trained(store) == once(store)
    check_bits(wanted, store, tmp_path / "undisturbed")


def test_at_its_time_limit_a_task_is_requeued(store, tmp_path):
    """A mode that takes longer than the shortest limit there is, a minute."""
    [trial] = recipes(epochs=100, single=1)[2:]
    [mode] = ensure([trial], load_dataset(trial.data), Store(tmp_path / "trial"), workers=1)
    wanted = [replace(trial, epochs=int(75 * trial.epochs / mode.facts["seconds"]))]
    submitted = handed_in(
        wanted,
        store,
        "slurm",
        1,
        parameters={"time": 1, "signal_delay_s": 20},
        checkpoint_seconds=1,
    )
    assert watched(submitted, store) == ({}, [])
    log = "".join(path.read_text() for path in submitted.folder.glob("*.out"))
    assert "this job is timed-out" in log
    [steps] = begun(store).values()
    assert len(steps) > 1
    assert steps == sorted(set(steps)), "a requeued task did not go on from its checkpoint"
    assert trained(store) == once(store)
    check_bits(wanted, store, tmp_path / "undisturbed")


@pytest.mark.parametrize("apart", [False, True], ids=["one-node", "two-nodes"])
def test_two_arrays_race_on_one_store(apart, store, tmp_path, monkeypatch):
    """Of two users who ask for the same; on two nodes, no lock reaches from one to the other."""
    wanted = recipes(epochs=40, single=6)
    arrays = []
    for name in ("one", "two"):
        if apart:
            monkeypatch.setenv("LLFC_LOCK_DIR", str(tmp_path / name))
        arrays.append(handed_in(wanted, store, "slurm", 3))
    for array in arrays:
        assert watched(array, store) == ({}, [])
    assert trained(store) == once(store)
    assert set(map(len, begun(store).values())) == {1}
    check_bits(wanted, store, tmp_path / "undisturbed")


def test_a_task_of_two_gpus_trains_two_packs_side_by_side(store, tmp_path):
    """Slurm hands out GPUs that are not there; the training is on the CPU."""
    wanted = recipes(epochs=1, single=3)
    submitted = handed_in(wanted, store, "slurm", 4, gpus_per_task=2)
    assert sorted(map(len, submitted.tasks.values())) == [2, 2]
    assert watched(submitted, store) == ({}, [])
    assert trained(store) == once(store)
    check_bits(wanted, store, tmp_path / "undisturbed")


def test_what_slurm_refuses_is_said(store):
    with pytest.raises(ClusterError, match=r"slurm: .*invalid partition"):
        handed_in(recipes(1, 0), store, "slurm", 1, parameters={"partition": "nowhere"})


def test_a_mode_that_fails_is_said_with_its_log_and_the_others_are_trained(store):
    good = recipes(epochs=2, single=2)
    bad = replace(good[-1], max_test_error=0.0)
    submitted = handed_in([*good[:-1], bad], store, "slurm", 1)
    failed, said = watched(submitted, store)
    [lost] = failed.values()
    assert lost == [bad]
    assert any("the recipe allows 0.00%" in line for line in said)
    assert len(store.keys()) == 4
