"""Tiny-ImageNet: 200 classes of 64×64 colour JPEGs, decoded once and kept as uint8."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import PIL
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llfc_core.data.dataset import DataCorrupt, Dataset, Split
from llfc_core.data.files import cache_dir, fetch, missing

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
DECODING = 1  # part of the cache's key; raise it when the code below decodes differently

# What zipfile raises on damaged files: RuntimeError when a flipped bit means "encrypted", OSError
# or ValueError when an offset leads out of the file.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)

_log = logging.getLogger(__name__)


def load(data_dir: Path, download: bool) -> Dataset:
    """100,000 training images and, as test set, the 10,000 validation images (whose labels are
    public), from ``data_dir/tiny-imagenet-200.zip`` or else ``data_dir/tiny-imagenet-200/``.

    Labels number the WordNet ids in sorted order, as torchvision's ImageFolder does. Greyscale
    images become RGB. Decoding 110,000 files takes some time, so the arrays are kept in the user's
    cache folder (1.4 GB) under the names, sizes and checksums (in a folder: times) of the files.
    """
    folder, archive = data_dir / "tiny-imagenet-200", data_dir / "tiny-imagenet-200.zip"
    if not archive.is_file() and not (folder / "wnids.txt").is_file():
        if not download:
            raise missing("tiny-imagenet", [archive, folder / "wnids.txt"])
        fetch([URL], archive, MD5)
    if archive.is_file():  # before the folder, which may be half unpacked
        with _open_zip(archive) as files:
            return _load(files)
    return _load(_open_folder(folder))


@dataclass(frozen=True)
class _Files:
    """The files below tiny-imagenet-200, in a folder or in a zip.

    ``versions`` maps each name (such as ``val/images/val_0.JPEG``) to a text that changes when the
    file does; ``read`` gives the content of a name; ``where`` is for messages.
    """

    where: str
    versions: dict[str, str]
    read: Callable[[str], bytes]

    def corrupt(self, name: str, what: str) -> DataCorrupt:
        return DataCorrupt(f"{self.where}{name}: {what}")

    def lines(self, name: str) -> list[str]:
        if name not in self.versions:
            raise self.corrupt(name, "not there")
        try:
            return self.read(name).decode("ascii").splitlines()
        except UnicodeDecodeError as error:
            raise self.corrupt(name, f"not a text file ({error})") from error


def _open_folder(folder: Path) -> _Files:
    versions = {}
    for path in folder.rglob("*.*"):  # folders' names have no dot
        status = path.stat()
        versions[path.relative_to(folder).as_posix()] = f"{status.st_size} {status.st_mtime_ns}"
    return _Files(f"{folder}{os.sep}", versions, lambda name: (folder / name).read_bytes())


@contextmanager
def _open_zip(archive: Path) -> Iterator[_Files]:
    prefix = "tiny-imagenet-200/"
    with archive.open("rb") as opened:
        try:
            file = zipfile.ZipFile(opened)
        except _DAMAGED as error:
            raise DataCorrupt(f"{archive}: not a whole zip file ({error}). Delete it.") from error

        def read(name: str) -> bytes:
            try:
                return file.read(prefix + name)
            except _DAMAGED as error:
                raise DataCorrupt(f"{archive}: {prefix}{name}: damaged ({error})") from error

        versions = {
            info.filename.removeprefix(prefix): f"{info.file_size} {info.CRC:08x}"
            for info in file.infolist()
            if info.filename.startswith(prefix) and not info.is_dir()
        }
        yield _Files(f"{archive}: {prefix}", versions, read)


def _load(files: _Files) -> Dataset:
    train, test, classes = _index(files)
    kept = [*(name for name, _ in train + test), "wnids.txt", "val/val_annotations.txt"]
    path = cache_dir() / f"tiny-imagenet-{_key(files, kept)}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several workers asking at once decode once.
        lock = filelock.FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept, as {path} cannot be written: {error}", stacklevel=2
        )
        return _decode(files, train, test, classes)
    with lock:
        if (dataset := _restore(path, classes)) is not None:
            return dataset
        dataset = _decode(files, train, test, classes)
        _keep(dataset, path)
        return dataset


Labelled = list[tuple[str, int]]


def _index(files: _Files) -> tuple[Labelled, Labelled, int]:
    """Names of the train and test images, each with its label; the number of classes."""
    wnids = sorted({line.strip() for line in files.lines("wnids.txt")} - {""})
    if not wnids:
        raise files.corrupt("wnids.txt", "it names no class")
    labels = {wnid: label for label, wnid in enumerate(wnids)}

    by_class: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in sorted(files.versions):
        parts = name.split("/")
        if name.endswith(".JPEG") and len(parts) == 4 and parts[0] == "train":
            if parts[1] not in labels:
                raise files.corrupt(f"train/{parts[1]}", "a class that wnids.txt does not name")
            by_class[parts[1]].append(name)
    # All classes have the same number of images: an unpacking that was cut short shows here.
    most = max(len(names) for names in by_class.values())
    for wnid, names in by_class.items():
        if not names or len(names) != most:
            raise files.corrupt(
                f"train/{wnid}", f"{len(names)} images, but {most} in another class"
            )
    train = [(name, labels[wnid]) for wnid, names in by_class.items() for name in names]

    test = []
    for number, line in enumerate(files.lines("val/val_annotations.txt"), start=1):
        if not line.strip():
            continue
        image, wnid, *_ = *line.split("\t"), ""
        name = f"val/images/{image}"
        if wnid not in labels:
            raise files.corrupt("val/val_annotations.txt", f"line {number}: no class {wnid!r}")
        if name not in files.versions:
            raise files.corrupt(name, "not there, though val_annotations.txt lists it")
        test.append((name, labels[wnid]))
    there = sum(n.startswith("val/images/") and n.endswith(".JPEG") for n in files.versions)
    if not test or len(test) != there:
        raise files.corrupt("val/val_annotations.txt", f"{len(test)} lines for {there} images")
    return train, test, len(wnids)


def _key(files: _Files, names: Iterable[str]) -> str:
    # Decoders may differ in the last bit, so Pillow's version (it brings its own) belongs here.
    sha = hashlib.sha256(f"{DECODING} {PIL.__version__}\n".encode())
    for name in names:
        sha.update(f"{name} {files.versions[name]}\n".encode())
    return sha.hexdigest()[:32]


def _decode(files: _Files, train: Labelled, test: Labelled, classes: int) -> Dataset:
    _log.info("decoding the %d images of %s", len(train) + len(test), files.where)
    shape = _decode_one(files, train[0][0]).shape

    def decode(labelled: Labelled) -> Split:
        images = np.empty((len(labelled), *shape), np.uint8)

        def put(i: int) -> None:
            name = labelled[i][0]
            image = _decode_one(files, name)
            if image.shape != shape:
                raise files.corrupt(name, f"{image.shape[1:]} pixels, but others have {shape[1:]}")
            images[i] = image

        for _ in pool.map(put, range(len(labelled))):
            pass
        labels = torch.tensor([label for _, label in labelled])
        return Split(torch.from_numpy(images), labels)

    # Threads suffice, Pillow decodes outside of the interpreter's lock.
    pool = ThreadPoolExecutor()
    try:
        return Dataset("tiny-imagenet", decode(train), decode(test), classes, MEAN, STD)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_one(files: _Files, name: str) -> np.ndarray:
    """``(3, H, W)``, uint8."""
    content = files.read(name)
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise files.corrupt(name, f"not a whole JPEG file ({error})") from error


def _keep(dataset: Dataset, path: Path) -> None:
    tensors = {
        f"{side}.{kind}": getattr(getattr(dataset, side), kind)
        for side in ("train", "test")
        for kind in ("images", "labels")
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            written = Path(folder) / path.name
            save_file(tensors, written, metadata={"digest": dataset.digest})
            written.replace(path)
    except (OSError, SafetensorError) as error:  # a full disk, say
        warnings.warn(f"decoded images are not kept: {path}: {error}", stacklevel=2)


def _restore(path: Path, classes: int) -> Dataset | None:
    """What `_keep` wrote, or None if there is nothing, or nothing that can be trusted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("digest")
            train, test = (
                Split(file.get_tensor(f"{side}.images"), file.get_tensor(f"{side}.labels"))
                for side in ("train", "test")
            )
        dataset = Dataset("tiny-imagenet", train, test, classes, MEAN, STD)
        if dataset.digest == digest:
            return dataset
        problem = "its content does not have the digest it was written with"
    except (SafetensorError, ValueError, OSError) as error:
        problem = str(error)
    warnings.warn(f"{path} is damaged ({problem}): decoding the images again", stacklevel=2)
    return None
