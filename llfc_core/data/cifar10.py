"""CIFAR-10, from its binary version, or from the pickled one without unpickling it."""

from __future__ import annotations

import gzip
import pickletools
import tarfile
import zlib
from pathlib import Path

import numpy as np

from llfc_core.data.dataset import DataCorrupt, Dataset, from_arrays
from llfc_core.data.files import fetch, missing

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published at https://www.cs.toronto.edu/~kriz/cifar.html
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
PIXELS = 3 * 32 * 32
# Of the training images; a std of about 0.20, often seen, is the mean of the images' own stds.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Batch = tuple[np.ndarray, np.ndarray]


def load(data_dir: Path, download: bool) -> Dataset:
    """50,000 and 10,000 colour images, 32×32, of 10 classes.

    Taken from the first of these in ``data_dir``: cifar-10-batches-bin/,
    cifar-10-binary.tar.gz, and cifar-10-batches-py/ (which torchvision leaves).
    """
    binary = data_dir / "cifar-10-batches-bin"
    archive = data_dir / "cifar-10-binary.tar.gz"
    pickled = data_dir / "cifar-10-batches-py"
    if all((binary / f"{name}.bin").is_file() for name in BATCHES):
        batches = _read_folder(binary)
    elif archive.is_file():
        batches = _read_archive(archive)
    elif all((pickled / name).is_file() for name in BATCHES):
        batches = {str(pickled / name): _parse_pickle(pickled / name) for name in BATCHES}
    elif download:
        fetch([URL], archive, MD5)
        batches = _read_archive(archive)
    else:
        files = f"{{{','.join(BATCHES)}}}"
        raise missing(
            "cifar10", [binary / f"{files}.bin", archive, pickled / files], hint=_tar_hint(data_dir)
        )
    return _assemble(batches)


def _tar_hint(data_dir: Path) -> str:
    tar = data_dir / "cifar-10-python.tar.gz"
    return f"{tar} is there, but not unpacked: tar -xf it." if tar.is_file() else ""


def _assemble(batches: dict[str, Batch]) -> Dataset:
    # All published batches have the same size; a batch cut between two records would go unnoticed.
    sizes = {where: len(labels) for where, (_, labels) in batches.items()}
    largest = max(sizes.values())
    for where, (_, labels) in batches.items():
        if sizes[where] != largest:
            raise DataCorrupt(f"{where}: {sizes[where]} images, but {largest} in another batch")
        if labels.max() > 9:
            raise DataCorrupt(f"{where}: labels must be in 0..9, but one is {labels.max()}")
    *train, test = batches.values()
    images, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return from_arrays("cifar10", (images, labels), test, 10, MEAN, STD)


def _read_folder(folder: Path) -> dict[str, Batch]:
    paths = [folder / f"{name}.bin" for name in BATCHES]
    return {str(path): _parse_binary(path.read_bytes(), str(path)) for path in paths}


def _read_archive(archive: Path) -> dict[str, Batch]:
    members = {f"cifar-10-batches-bin/{name}.bin": name for name in BATCHES}
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name in members else None
                    if file is not None:
                        contents[members[member.name]] = file.read()
            while stream.read(2**20):  # to the very end, where gzip's checksum is
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataCorrupt(f"{archive}: it does not unpack ({error}). Delete it.") from error
    if absent := [member for member, name in members.items() if name not in contents]:
        raise DataCorrupt(f"{archive}: it does not hold {', '.join(absent)}")
    return {
        f"{archive}: {member}": _parse_binary(contents[name], f"{archive}: {member}")
        for member, name in members.items()
    }


def _parse_binary(content: bytes, where: str) -> Batch:
    """Images ``(n, 3, 32, 32)`` and labels ``(n,)`` of n records: a label, then R, G, B planes."""
    size = 1 + PIXELS
    if not content or len(content) % size:
        raise DataCorrupt(f"{where}: {len(content)} bytes are not a number of {size}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].copy()


def _parse_pickle(path: Path) -> Batch:
    """A batch of the Python version, read as a list of opcodes: nothing in it is ever executed.

    The published files were written by Python 2: the pixels are one byte string of n · 3072, and
    the labels n small integers that follow the key ``labels``.
    """
    labels: list[int] = []
    pixels = b""
    key = ""
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name in ("SHORT_BINSTRING", "BINSTRING") and isinstance(argument, str):
                if len(argument) >= PIXELS:
                    pixels = argument.encode("latin-1")
                key = argument
            elif opcode.name == "BININT1" and key == "labels" and isinstance(argument, int):
                labels.append(argument)
    except (ValueError, IndexError, OverflowError) as error:
        raise DataCorrupt(f"{path}: not one of CIFAR-10's files ({error})") from error
    if not labels or len(pixels) != PIXELS * len(labels):
        raise DataCorrupt(f"{path}: {len(labels)} labels and {len(pixels)} bytes of pixels")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).copy()
    return images, np.array(labels, np.uint8)
