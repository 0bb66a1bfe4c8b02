"""CIFAR-10 from its binary and its pickled version, on small files in the published formats."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, utils

from llfc_core.data import DataCorrupt, DataMissing, cifar10, load_dataset
from llfc_core.data import load as load_module

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
BATCHES.append("test_batch")
N = 3


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(load_module, "_loaded", {})


def batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(256, size=(N, 3, 32, 32), dtype=np.uint8),
            rng.integers(10, size=N, dtype=np.uint8),
        )
        for name in BATCHES
    }


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True))


def write_folder(data_dir: Path) -> Path:
    folder = data_dir / "cifar-10-batches-bin"
    folder.mkdir()
    for name, batch in batches().items():
        (folder / f"{name}.bin").write_bytes(binary(*batch))
    (folder / "batches.meta.txt").write_text("airplane\n")
    return folder


def write_archive(path: Path, leave_out: str = "") -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, batch in {"readme": None, **batches()}.items():
            content = binary(*batch) if batch else b"hello"
            if name != leave_out:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}{'.bin' if batch else ''}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Protocol 2 as Python 2's cPickle wrote it: byte strings throughout."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt"
        + b"R(K\x01"
        + (b"J" + struct.pack("<i", len(images)) + b"M" + struct.pack("<H", 3072) + b"\x86")
        + (b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03U\x01|NNN")
        + (b"J\xff\xff\xff\xff" * 2 + b"K\x00tb\x89")
        + (b"T" + struct.pack("<i", images.size) + images.tobytes() + b"tb")
    )
    items = [
        (text(b"batch_label"), text(b"training batch 1 of 5")),
        (text(b"labels"), b"](" + b"".join(b"K" + bytes([y]) for y in labels) + b"e"),
        (text(b"data"), array),
        (text(b"filenames"), b"](" + text(b"leptodactylus_pentadactylus_s_000004.png") + b"e"),
    ]
    return b"\x80\x02}(" + b"".join(key + value for key, value in items) + b"u."


def write_pickles(data_dir: Path) -> Path:
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir()
    for name, batch in batches().items():
        (folder / name).write_bytes(python2_pickle(*batch))
    return folder


def assert_right(made) -> None:
    written = batches()
    train = [written[name] for name in BATCHES[:5]]
    assert made.shape == (3, 32, 32)
    assert np.array_equal(made.train.images, np.concatenate([x for x, _ in train]))
    assert np.array_equal(made.train.labels, np.concatenate([y for _, y in train]))
    assert np.array_equal(made.test.images, written["test_batch"][0])
    assert np.array_equal(made.test.labels, written["test_batch"][1])


def test_folder_archive_and_pickles_agree(tmp_path):
    digests = set()
    for kind in ("folder", "archive", "pickles"):
        data_dir = tmp_path / kind
        data_dir.mkdir()
        if kind == "folder":
            write_folder(data_dir)
        elif kind == "archive":
            write_archive(data_dir / "cifar-10-binary.tar.gz")
        else:
            write_pickles(data_dir)
        made = load_dataset("cifar10", data_dir=data_dir)
        assert_right(made)
        digests.add(made.digest)
    assert len(digests) == 1


def test_the_pickles_written_here_are_pickles_of_what_torchvision_expects(tmp_path):
    """Unpickled the ordinary way they give a batch, so what is parsed is the format itself."""
    images, labels = batches()["data_batch_1"]
    entry = pickle.loads(python2_pickle(images, labels), encoding="latin1")
    assert np.array_equal(entry["data"].reshape(-1, 3, 32, 32), images)
    assert entry["labels"] == labels.tolist()
    assert {"data", "labels"} <= set(entry)
    assert CIFAR10.base_folder == "cifar-10-batches-py"
    assert [name for name, _ in CIFAR10.train_list + CIFAR10.test_list] == BATCHES


def test_a_pickle_is_never_executed(tmp_path):
    folder = write_pickles(tmp_path)
    trap = tmp_path / "sprung"
    command = f"open({str(trap)!r}, 'w')"
    evil = b"\x80\x02cbuiltins\neval\nX" + struct.pack("<i", len(command)) + command.encode()
    path = folder / "data_batch_2"
    path.write_bytes(evil + b"\x85R.")
    pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works
    trap.unlink()
    with pytest.raises(DataCorrupt, match="0 labels and 0 bytes"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("length", [0, 1, 2, 50, 200, 5000, -3000, -2])
def test_a_pickle_cut_short_is_named(length, tmp_path):
    path = write_pickles(tmp_path) / "data_batch_3"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataCorrupt, match=re.escape(str(path))):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("length", [0, 1, 3072, 3073, 3074, -3073, -1])
@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch"])
def test_a_binary_file_cut_short_is_named(name, length, tmp_path):
    """Also between two records."""
    path = write_folder(tmp_path) / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataCorrupt, match=re.escape(str(path))):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_label_out_of_range_is_named(tmp_path):
    path = write_folder(tmp_path) / "data_batch_4.bin"
    content = bytearray(path.read_bytes())
    content[2 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match="but one is 10") as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert str(path) in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path)
    whole = path.read_bytes()
    damages = [whole[:length] for length in (0, 1, 9, 12, 600, 20_000, len(whole) - 9)]
    damages += [whole[:-1], b"no archive at all", gzip.compress(b"x" * 2000)]
    for position in (100, 3000, len(whole) // 2, len(whole) - 6):  # the last: gzip's checksum
        damages.append(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
    for content in damages:
        path.write_bytes(content)
        with pytest.raises(DataCorrupt, match=re.escape(str(path))):
            load_dataset("cifar10", data_dir=tmp_path)


def test_an_archive_without_a_batch(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, leave_out="data_batch_2")
    with pytest.raises(DataCorrupt, match=r"does not hold cifar-10-batches-bin/data_batch_2\.bin$"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_packed_python_version_is_pointed_out(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataMissing, match=r"cifar-10-python\.tar\.gz is there, but not unpacked"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_download(tmp_path, monkeypatch):
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, filename, md5))
        write_archive(Path(root) / filename)

    monkeypatch.setattr(utils, "download_url", download_url)
    data_dir = tmp_path / "new"
    assert_right(load_dataset("cifar10", data_dir=data_dir, download=True))
    assert asked == [(cifar10.URL, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")]
    load_module._loaded.clear()
    assert_right(load_dataset("cifar10", data_dir=data_dir, download=True))
    assert len(asked) == 1
