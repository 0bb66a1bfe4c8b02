"""``python -m llfc_core modes``: what it prints, what it removes, how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llfc_core.__main__ import main
from llfc_core.store import Store
from llfc_core.training import Mode, Optimiser, Point, Seeds, ensure, spawn
from tests.helpers import content, tiny_dataset, tiny_recipe

ROOT = Path(__file__).parents[1]
SGD = tiny_recipe(4, epochs=1, optimiser=Optimiser("sgd", lr=0.1))
[CHILD] = spawn(tiny_recipe(3), Point(1, 2), [Seeds(5, 5, 5)])


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def modes(store) -> list[Mode]:
    """Three modes in the store: SGD, a child, and its parent."""
    return ensure([SGD, CHILD], tiny_dataset(), store)


def modes_command(store: Store, *arguments: str) -> int:
    return main(["modes", "--llfc-cache-dir", str(store.root), *arguments])


def damage(store: Store, key: str) -> None:
    weights = store.path(key) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def line_of(text: str, key: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith(key[:12])]
    return line


# ---- list ---------------------------------------------------------------------------------------


def test_a_list_says_recipe_error_size_and_age(store, modes, capsys):
    assert modes_command(store) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{store.root}: 3 modes"
    line = line_of(out, modes[0].key)
    assert "mlp on tiny, sgd 0.1, 1 epochs, init 4 order 4" in line
    assert f"error {modes[0].test_error:.2f}%" in line
    assert " 0.0 MB" in line
    assert " s old" in line
    assert "init 3 order 5" in line_of(out, modes[1].key)
    parent = line_of(out, modes[1].facts["parent"])
    assert "stopped at epoch 1 step 2" in parent
    assert "stopped" not in line_of(out, modes[1].key)
    assert out.splitlines()[-1] == "0.0 MB"


@pytest.mark.parametrize(
    ("seconds", "age"), [(5, "5 s"), (90, "2 min"), (2 * 3600, "2 h"), (3 * 86400, "3 d")]
)
def test_ages(seconds, age, store, modes, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: modes[0].facts["finished"] + seconds)
    modes_command(store)
    assert f"{age} old" in line_of(capsys.readouterr().out, modes[0].key)


def test_sizes_are_added_up(store, modes, capsys):
    path = store.path(modes[0].key)
    with (path / "weights.safetensors").open("ab") as file:
        file.truncate(3_000_000)
    modes_command(store)
    out = capsys.readouterr().out
    assert " 3.0 MB" in line_of(out, modes[0].key)
    assert out.splitlines()[-1] == "3.0 MB"


def test_listing_and_verifying_write_nothing(store, modes, capsys):
    damage(store, modes[0].key)
    before = content(store.root)
    modes_command(store)
    modes_command(store, "--verify")
    assert content(store.root) == before


def test_an_empty_store(store, capsys):
    assert modes_command(store) == 0
    assert capsys.readouterr().out.splitlines() == [f"{store.root}: 0 modes", "0.0 MB"]
    assert not store.root.exists()


# ---- verify -------------------------------------------------------------------------------------


def test_verify_reads_every_byte(store, modes, capsys):
    assert modes_command(store, "--verify") == 0
    assert capsys.readouterr().out.count("intact") == 3
    damage(store, modes[0].key)
    assert modes_command(store) == 0  # a list does not read tensors
    assert "CORRUPT" not in capsys.readouterr().out
    assert modes_command(store, "--verify") == 1
    out = capsys.readouterr().out
    line = line_of(out, modes[0].key)
    assert "CORRUPT" in line
    assert str(store.path(modes[0].key) / "weights.safetensors") in line
    assert out.count("intact") == 2
    assert out.splitlines()[-1].endswith("1 corrupt")


def test_a_list_shows_a_corrupt_manifest_and_goes_on(store, modes, capsys):
    (store.path(modes[0].key) / "manifest.json").write_text("{}")
    assert modes_command(store) == 1
    out = capsys.readouterr().out
    assert "CORRUPT" in line_of(out, modes[0].key)
    assert "error" in line_of(out, modes[1].key)


def test_an_intact_entry_in_anothers_place_is_shown(store, modes, capsys):
    a, b = (store.path(m.key) for m in modes)
    a.rename(a.with_name("x"))
    b.rename(a)
    a.with_name("x").rename(b)
    assert modes_command(store, "--verify") == 1
    out = capsys.readouterr().out
    for mode in modes:
        assert "CORRUPT" in line_of(out, mode.key)
        assert "another mode's entry" in line_of(out, mode.key)


# ---- remove -------------------------------------------------------------------------------------


def test_remove_by_the_start_of_a_key(store, modes, capsys):
    kept = modes[1].key
    assert modes_command(store, "--remove", modes[0].key[:8]) == 0
    assert capsys.readouterr().out == f"removed {modes[0].key[:12]}\n"
    assert store.keys() == sorted([kept, modes[1].facts["parent"]])


def test_remove_several(store, modes, capsys):
    assert modes_command(store, "--remove", modes[0].key[:8], modes[1].key) == 0
    assert store.keys() == [modes[1].facts["parent"]]


def test_a_mode_named_twice_is_removed_once(store, modes, capsys):
    assert modes_command(store, "--remove", modes[0].key, modes[0].key[:9]) == 0
    assert capsys.readouterr().out.count("removed") == 1


def test_remove_all(store, modes, capsys):
    assert modes_command(store, "--remove", "all") == 0
    assert store.keys() == []
    assert capsys.readouterr().out.count("removed") == 3


@pytest.mark.parametrize(("prefix", "count"), [("", 5), ("abc", 2), ("nothing", 0)])
def test_an_ambiguous_or_unknown_key_removes_nothing(prefix, count, store, modes, capsys):
    for key in ("abc1", "abc2"):
        store.path(modes[0].key).parent.joinpath(key).mkdir()
    before = store.keys()
    # Nor what was named before it.
    assert modes_command(store, "--remove", modes[0].key, prefix) == 2
    assert store.keys() == before
    out, err = capsys.readouterr()
    assert not out
    assert f"{prefix}: {count} modes have such a key" in err


def test_a_corrupt_mode_can_be_removed(store, modes, capsys):
    damage(store, modes[0].key)
    assert modes_command(store, "--remove", modes[0].key) == 0
    assert modes[0].key not in store.keys()


# ---- ends ---------------------------------------------------------------------------------------


def test_a_store_that_is_a_file_is_an_error_in_words(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["modes", "--llfc-cache-dir", str(tmp_path / "file")]) == 2
    out, err = capsys.readouterr()
    assert str(tmp_path / "file") in err
    assert not out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["modes", "--nonsense"]])
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m llfc_core" in capsys.readouterr().err


def test_as_a_command_on_the_store_that_the_environment_names(store, modes):
    damage(store, modes[0].key)
    run = subprocess.run(
        [sys.executable, "-m", "llfc_core", "modes", "--verify"],
        cwd=ROOT,
        env={**os.environ, "LLFC_CACHE_DIR": str(store.root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stderr
    assert run.stdout.startswith(f"{store.root}: 3 modes\n")
    assert "CORRUPT" in run.stdout
    assert not run.stderr
