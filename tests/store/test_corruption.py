"""Whatever happens to an entry's bytes, it is noticed, put aside and made anew; never loaded."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llfc_core.store import Entry, Store
from llfc_core.training import Mode, Point, ensure, spawn
from tests.helpers import content, identical, quarantined, tiny_dataset, tiny_recipe

DATASET = tiny_dataset()
# A recipe that stops has both groups of tensors in its entry: weights and optimiser.
RECIPE = tiny_recipe(stop=Point(epochs=2))
FILES = ("manifest.json", "optimiser.safetensors", "weights.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Mode]:
    """A store with one mode, never written to by tests, and that mode."""
    root = tmp_path_factory.mktemp("trained")
    [mode] = ensure([RECIPE], DATASET, Store(root))
    return root, mode


@pytest.fixture
def store(trained, tmp_path) -> Store:
    shutil.copytree(trained[0], tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def path(store, trained) -> Path:
    """The entry's place in `store`."""
    return store.path(trained[1].key)


def seal(directory: Path, facts: dict) -> None:
    """Write a manifest as the store would, whatever the directory holds."""
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in directory.iterdir()
        if p.name != "manifest.json"
    }
    body = {"facts": facts, "files": files}
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "sha256": own}, sort_keys=True, indent=1) + "\n"
    (directory / "manifest.json").write_text(text)


def get_quietly(store: Store, key: str) -> tuple[Entry | None, list[str]]:
    """`Store.get` and the warnings it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return store.get(key), [str(w.message) for w in caught]


def positions(name: str, data: bytes) -> list[int]:
    """A safetensors file's length field, every third byte of its header, a spread over the rest."""
    header = 0
    if name.endswith(".safetensors"):
        header = 8 + int.from_bytes(data[:8], "little")
    body = range(header, len(data), (len(data) - header) // 120)
    return sorted({*range(min(header, 8)), *range(8, header, 3), *body, len(data) - 1})


def test_the_forging_of_manifests_in_these_tests_is_the_stores_own_form(path, trained):
    before = content(path)
    seal(path, trained[1].facts)
    assert content(path) == before


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_detected_and_put_aside(name, store, path, trained):
    pristine = content(path)
    draw = random.Random(f"flips of {name}")
    tried = positions(name, pristine[name])
    assert len(tried) > 100
    for position in tried:
        damaged = bytearray(pristine[name])
        damaged[position] ^= draw.randrange(1, 256)
        (path / name).write_bytes(damaged)
        entry, said = get_quietly(store, trained[1].key)
        assert entry is None, f"byte {position} of {name} was changed, and the entry loaded"
        assert not path.exists()
        [aside] = quarantined(store)
        assert content(aside) == {**pristine, name: bytes(damaged)}
        [warning] = said
        assert name in warning
        assert str(aside) in warning
        aside.rename(path)
        (path / name).write_bytes(pristine[name])
    entry, said = get_quietly(store, trained[1].key)
    assert entry is not None  # so it was the flip each time
    assert not said


def cut_short(path: Path) -> str:
    (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:-1])
    return "weights.safetensors"


def cut_to_nothing(path: Path) -> str:
    (path / "weights.safetensors").write_bytes(b"")
    return "weights.safetensors"


def cut_manifest(path: Path) -> str:
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:-2])
    return "manifest.json"


def grow(path: Path) -> str:
    with (path / "optimiser.safetensors").open("ab") as file:
        file.write(b"\0")
    return "optimiser.safetensors"


def grow_manifest(path: Path) -> str:
    with (path / "manifest.json").open("ab") as file:
        file.write(b"\n")
    return "manifest.json"


def add_file(path: Path) -> str:
    (path / "weights.pt").write_bytes(b"")
    return "weights.pt"


def add_folder(path: Path) -> str:
    (path / "more").mkdir()
    return "more"


def lose_weights(path: Path) -> str:
    (path / "weights.safetensors").unlink()
    return "weights.safetensors"


def lose_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "manifest.json"


def lose_all(path: Path) -> str:
    for name in FILES:
        (path / name).unlink()
    return "manifest.json"


def swap_groups(path: Path) -> str:
    weights, optimiser = path / "weights.safetensors", path / "optimiser.safetensors"
    weights.rename(path / "x")
    optimiser.rename(weights)
    (path / "x").rename(optimiser)
    return "safetensors"


def folder_for_a_file(path: Path) -> str:
    (path / "weights.safetensors").unlink()
    (path / "weights.safetensors").mkdir()
    return "weights.safetensors"


def file_for_an_entry(path: Path) -> str:
    shutil.rmtree(path)
    path.write_bytes(b"")
    return "manifest.json"


def manifest_of_another(path: Path) -> str:
    write_another(path.with_name("other"))
    (path.with_name("other") / "manifest.json").replace(path / "manifest.json")
    shutil.rmtree(path.with_name("other"))
    return "safetensors"


def entry_of_another(path: Path) -> str:
    shutil.rmtree(path)
    write_another(path)
    return path.name


def write_another(path: Path) -> None:
    """A true entry of a recipe with other seeds."""
    from llfc_core.training import mode_key

    recipe = tiny_recipe(1, stop=Point(epochs=2))
    other = Store(path.with_name("other-store"))
    ensure([recipe], DATASET, other)
    other.path(mode_key(recipe, DATASET, torch.device("cpu"))).rename(path)
    shutil.rmtree(other.root)


def entry_of_another_data_set(path: Path) -> str:
    """The same recipe, trained on other images of the same shape: intact, and wrong here."""
    shutil.rmtree(path)
    other = Store(path.with_name("other-store"))
    [mode] = ensure([RECIPE], tiny_dataset(n_train=200), other)
    other.path(mode.key).rename(path)
    shutil.rmtree(other.root)
    return path.name


def sealed_without_weights(path: Path) -> str:
    facts = json.loads((path / "manifest.json").read_bytes())["facts"]
    (path / "weights.safetensors").unlink()
    seal(path, facts)
    return path.name


def flips(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    data = bytearray((path / name).read_bytes())
    data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    (path / name).write_bytes(data)
    return name


def flip(seed: int) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        return flips(path, random.Random(seed))

    damage.__name__ = f"flip_{seed}"
    return damage


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        cut_to_nothing,
        cut_manifest,
        grow,
        grow_manifest,
        add_file,
        add_folder,
        lose_weights,
        lose_manifest,
        lose_all,
        swap_groups,
        folder_for_a_file,
        file_for_an_entry,
        manifest_of_another,
        entry_of_another,
        entry_of_another_data_set,
        sealed_without_weights,
        *(flip(seed) for seed in range(12)),
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_mode_is_put_aside_and_retrained_to_the_same_bits(damage, store, path, trained):
    name = damage(path)
    with pytest.warns(RuntimeWarning) as said:
        [mode] = ensure([RECIPE], DATASET, store)
    assert [name in str(w.message) for w in said] == [True]
    assert len(quarantined(store)) == 1
    assert identical(mode.weights, trained[1].weights)
    stored = store.get(mode.key)
    assert stored is not None
    assert identical(stored.groups["weights"], trained[1].weights)
    pristine = Store(trained[0]).get(mode.key)
    assert identical(stored.groups["optimiser"], pristine.groups["optimiser"])


def test_a_damaged_parent_of_stored_children_is_retrained_alone(tmp_path):
    children = spawn(tiny_recipe(), Point(epochs=1), [tiny_recipe(i).seeds for i in (1, 2)])
    store = Store(tmp_path)
    before = ensure(children, DATASET, store)
    [parent] = [k for k in store.keys() if k not in {m.key for m in before}]
    cut_short(store.path(parent))
    stamps = {m.key: m.facts["finished"] for m in before}
    with pytest.warns(RuntimeWarning, match=parent):
        after = ensure(children, DATASET, store)
    assert {m.key: m.facts["finished"] for m in after} == stamps
    assert store.get(parent) is not None


# ---- pickles ----------------------------------------------------------------------------------


class Bait:
    """Creates a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


def plain_pickle(bait: Bait) -> bytes:
    return pickle.dumps({"fc1.weight": bait})


def torch_zip(bait: Bait) -> bytes:
    buffer = io.BytesIO()
    torch.save({"fc1.weight": torch.zeros(2), "bait": bait}, buffer)
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


def torch_legacy(bait: Bait) -> bytes:
    buffer = io.BytesIO()
    torch.save({"bait": bait}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def in_place(path: Path, poison: bytes) -> None:
    (path / "weights.safetensors").write_bytes(poison)


def in_place_and_sealed(path: Path, poison: bytes) -> None:
    facts = json.loads((path / "manifest.json").read_bytes())["facts"]
    in_place(path, poison)
    seal(path, facts)


def beside(path: Path, poison: bytes) -> None:
    (path / "weights.pt").write_bytes(poison)


def beside_and_sealed(path: Path, poison: bytes) -> None:
    facts = json.loads((path / "manifest.json").read_bytes())["facts"]
    beside(path, poison)
    seal(path, facts)


def instead_and_sealed(path: Path, poison: bytes) -> None:
    (path / "weights.safetensors").unlink()
    beside_and_sealed(path, poison)


def as_the_manifest(path: Path, poison: bytes) -> None:
    (path / "manifest.json").write_bytes(poison)


@pytest.mark.parametrize("poison", [plain_pickle, torch_zip, torch_legacy])
def test_the_bait_bites(poison, tmp_path):
    """Unpickled, each of the poisons below would leave its mark."""
    flag = tmp_path / "executed"
    torch.load(io.BytesIO(poison(Bait(flag))), weights_only=False) if (
        poison is not plain_pickle
    ) else pickle.loads(poison(Bait(flag)))
    assert flag.exists()


@pytest.mark.parametrize("poison", [plain_pickle, torch_zip, torch_legacy])
@pytest.mark.parametrize(
    "plant",
    [in_place, in_place_and_sealed, beside, beside_and_sealed, instead_and_sealed, as_the_manifest],
)
def test_a_pickle_is_refused_unread(poison, plant, store, path, trained, tmp_path):
    flag = tmp_path / "executed"
    plant(path, poison(Bait(flag)))
    with pytest.warns(RuntimeWarning, match="quarantine"):
        [mode] = ensure([RECIPE], DATASET, store)
    assert not flag.exists()
    assert len(quarantined(store)) == 1
    assert identical(mode.weights, trained[1].weights)


def test_only_safetensors_files_are_read_however_well_they_are_sealed(store, path, trained):
    (path / "weights.safetensors").rename(path / "weights.pt")
    seal(path, trained[1].facts)
    with pytest.warns(RuntimeWarning, match="quarantine"):
        assert store.get(trained[1].key) is None


def test_a_pickle_is_refused_unread_as_a_checkpoint(store, trained, tmp_path):
    flag = tmp_path / "executed"
    key = trained[1].key
    store.put_checkpoint(key, 10, store.get(key))
    checkpoint = store.root / "checkpoints" / key / "10"
    in_place_and_sealed(checkpoint, torch_zip(Bait(flag)))
    with pytest.warns(RuntimeWarning, match="quarantine"):
        assert store.get_checkpoint(key) is None
    assert not flag.exists()
