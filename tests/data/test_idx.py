"""MNIST and Fashion-MNIST, on small files in the published format."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST, utils

from llfc_core.data import DataCorrupt, DataMissing, idx, load_dataset
from llfc_core.data import load as load_module

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Each test reads its own files."""
    monkeypatch.setattr(load_module, "_loaded", {})


def encode(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for images, labels, n in ((TRAIN_IMAGES, TRAIN_LABELS, 7), (TEST_IMAGES, TEST_LABELS, 5)):
        arrays[images] = rng.integers(256, size=(n, 6, 4), dtype=np.uint8)
        arrays[labels] = rng.integers(10, size=n, dtype=np.uint8)
    return arrays


def write(folder: Path, arrays: dict[str, np.ndarray], zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
        else:
            (folder / name).write_bytes(encode(array))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_reads_what_was_written(name, place, zipped, tmp_path):
    arrays = contents()
    write(tmp_path / place / "raw", arrays, zipped)
    made = load_dataset(name, data_dir=tmp_path)
    assert made.name == name
    assert made.shape == (1, 6, 4)
    for split, images, labels in (
        (made.train, TRAIN_IMAGES, TRAIN_LABELS),
        (made.test, TEST_IMAGES, TEST_LABELS),
    ):
        assert np.array_equal(split.images[:, 0].numpy(), arrays[images])
        assert np.array_equal(split.labels.numpy(), arrays[labels])


def test_torchvision_reads_the_same(tmp_path):
    write(tmp_path / "MNIST" / "raw", contents())
    made = load_dataset("mnist", data_dir=tmp_path)
    theirs = MNIST(tmp_path, train=False)
    assert torch.equal(made.test.images[:, 0], theirs.data)
    assert torch.equal(made.test.labels, theirs.targets)


def test_raw_and_gzipped_files_give_one_digest_other_pixels_another(tmp_path):
    digests = []
    for i, (zipped, seed) in enumerate([(False, 0), (True, 0), (False, 1)]):
        write(tmp_path / str(i) / "MNIST" / "raw", contents(seed), zipped)
        digests.append(load_dataset("mnist", data_dir=tmp_path / str(i)).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("file", idx.FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_cut_short_anywhere_is_named(file, zipped, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write(folder, contents(), zipped)
    path = folder / (f"{file}.gz" if zipped else file)
    whole = path.read_bytes()
    for length in {0, 1, 3, 4, 5, 8, 9, 15, 16, 17, len(whole) // 2, len(whole) - 1}:
        if length < len(whole):
            path.write_bytes(whole[:length])
            with pytest.raises(DataCorrupt, match=re.escape(str(path))):
                load_dataset("mnist", data_dir=tmp_path)
    path.write_bytes(whole)
    load_dataset("mnist", data_dir=tmp_path)


def test_a_gzip_with_a_flipped_bit_is_named(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write(folder, contents(), zipped=True)
    path = folder / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    for position in range(10, len(whole)):  # the first ten bytes hold a time stamp and the like
        content = bytearray(whole)
        content[position] ^= 4
        path.write_bytes(content)
        with pytest.raises(DataCorrupt, match=re.escape(str(path))):
            load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (TRAIN_IMAGES, lambda b: b"\x00\x00\x0d" + b[3:], "begins with '00000d03', not '00000803'"),
        (TRAIN_IMAGES, lambda b: b"\x01" + b[1:], "begins with '01000803'"),
        (TRAIN_LABELS, lambda b: encode(contents()[TRAIN_IMAGES]), "begins with '00000803'"),
        (TRAIN_IMAGES, lambda b: b[:4] + b"\xff" * 12 + b[16:], "bytes announced"),
        (TEST_IMAGES, lambda b: b + b"\x00", "120 bytes announced .5 × 6 × 4., but 121 there"),
        (TEST_LABELS, lambda b: encode(contents()[TRAIN_LABELS]), "7 labels for the 5 images"),
        (TEST_LABELS, lambda b: b[:-1] + b"\x0a", "0..9, but one is 10"),
        (TEST_IMAGES, lambda b: encode(np.zeros((5, 4, 6), np.uint8)), "images of"),
    ],
)
def test_a_wrong_file_is_named(file, change, message, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write(folder, contents())
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataCorrupt, match=message) as error:
        load_dataset("mnist", data_dir=tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def test_no_images(tmp_path):
    empty = {TEST_IMAGES: np.zeros((0, 6, 4), np.uint8), TEST_LABELS: np.zeros(0, np.uint8)}
    write(tmp_path / "MNIST" / "raw", contents() | empty)
    with pytest.raises(DataCorrupt, match=f"{TEST_IMAGES}: no images"):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    folder = tmp_path / "usr" / "share"
    monkeypatch.setattr(idx, "DEBIAN_FASHION", folder)
    return folder


def test_all_four_files_from_one_folder(tmp_path, no_debian):
    """Half a data set here and half there is no data set, but a later folder may be whole."""
    arrays = contents()
    first = dict(list(arrays.items())[:3])
    write(tmp_path / "FashionMNIST" / "raw", first)
    write(no_debian, {TEST_LABELS: arrays[TEST_LABELS]})
    with pytest.raises(DataMissing, match=str(no_debian)):
        load_dataset("fashion-mnist", data_dir=tmp_path)
    write(no_debian, contents(1), zipped=True)
    made = load_dataset("fashion-mnist", data_dir=tmp_path)
    assert np.array_equal(made.train.images[:, 0], contents(1)[TRAIN_IMAGES])


def test_data_dir_goes_before_debians(tmp_path, no_debian):
    write(no_debian, contents(1))
    write(tmp_path / "FashionMNIST" / "raw", contents())
    made = load_dataset("fashion-mnist", data_dir=tmp_path)
    assert np.array_equal(made.train.images[:, 0], contents()[TRAIN_IMAGES])


@pytest.mark.parametrize(("name", "published"), [("mnist", MNIST), ("fashion-mnist", FashionMNIST)])
def test_download(name, published, tmp_path, no_debian, monkeypatch):
    """One mirror is down for one file; checksums and addresses are torchvision's."""
    arrays, asked = contents(), []

    def download_url(url, root, filename, md5):
        asked.append((url, filename, md5))
        if url == published.mirrors[0] + f"{TRAIN_LABELS}.gz" and len(published.mirrors) > 1:
            raise OSError("no route to host")
        path = Path(root) / filename
        path.write_bytes(gzip.compress(encode(arrays[filename.removesuffix(".gz")])))

    monkeypatch.setattr(utils, "download_url", download_url)
    made = load_dataset(name, data_dir=tmp_path, download=True)
    assert np.array_equal(made.test.images[:, 0], arrays[TEST_IMAGES])
    folder = tmp_path / published.__name__ / "raw"
    visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert visible == sorted(f"{file}.gz" for file in idx.FILES)
    assert {(filename, md5) for _, filename, md5 in asked} == set(published.resources)
    assert len(asked) == 4 + (len(published.mirrors) > 1)

    load_module._loaded.clear()
    load_dataset(name, data_dir=tmp_path, download=True)  # all there: nothing is asked for
    assert len(asked) == 4 + (len(published.mirrors) > 1)


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("File not found or corr")])
def test_a_failed_download_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def download_url(url, root, filename, md5):
        (Path(root) / filename).write_bytes(b"half of")
        raise error

    monkeypatch.setattr(utils, "download_url", download_url)
    with pytest.raises(DataMissing, match="could not download") as raised:
        load_dataset("mnist", data_dir=tmp_path, download=True)
    assert str(error) in str(raised.value)
    assert all(mirror in str(raised.value) for mirror in MNIST.mirrors)
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "MNIST").write_text("a file where a folder belongs")
    with pytest.raises(DataMissing, match="could not download"):
        load_dataset("mnist", data_dir=tmp_path, download=True)


@pytest.mark.skipif(not idx.DEBIAN_FASHION.is_dir(), reason="needs dataset-fashion-mnist (Debian)")
def test_debians_fashion_mnist(tmp_path):
    made = load_dataset("fashion-mnist", data_dir=tmp_path)
    assert made.digest == "8a70844303971eb8230be1dd33d7220b96995826fcf937f06b59fac803909e7c"
    assert made.shape == (1, 28, 28)
    assert made.train.labels.bincount().tolist() == [6000] * 10
    assert made.test.labels.bincount().tolist() == [1000] * 10
    assert made.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    pixels = made.train.images.float() / 255
    assert abs(pixels.mean() - made.mean[0]) < 1e-4
    assert abs(pixels.std() - made.std[0]) < 1e-4
