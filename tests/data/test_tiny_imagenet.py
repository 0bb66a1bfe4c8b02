"""Tiny-ImageNet from a small folder and zip of the published layout, and the cache of arrays."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder, utils

from llfc_core.data import DataCorrupt, Dataset, load_dataset, tiny_imagenet
from llfc_core.data import load as load_module

WNIDS = ["n02124075", "n01443537", "n04067472"]  # unsorted, as published


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(load_module, "_loaded", {})
    monkeypatch.setenv("LLFC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the images decoded so far (the first of all twice, to learn the size)."""
    names: list[str] = []
    decode = tiny_imagenet._decode_one

    def spy(files, name):
        names.append(name)
        return decode(files, name)

    monkeypatch.setattr(tiny_imagenet, "_decode_one", spy)
    return names


def read(data_dir: Path, **options) -> Dataset:
    load_module._loaded.clear()
    return load_dataset("tiny-imagenet", data_dir=data_dir, **options)


def jpeg(rng: np.random.Generator, mode: str = "RGB", size: int = 64) -> bytes:
    # Smooth, so that the compression leaves it recognisable.
    coarse = rng.integers(256, size=(4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    image.convert(mode).save(written, "JPEG", quality=95)
    return written.getvalue()


def write_folder(data_dir: Path) -> Path:
    """Three classes of four images, the second of each grey, and two validation images a class."""
    rng = np.random.default_rng(0)
    folder = data_dir / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n00001740\tentity\n")
    annotations = []
    for c, wnid in enumerate(WNIDS):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(
            f"{wnid}_0.JPEG\t0\t10\t63\t58\n"
        )
        for i in range(4):
            content = jpeg(rng, "L" if i == 1 else "RGB")
            (folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(content)
        for i in (c, c + 3):
            (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(rng))
            annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(sorted(annotations)))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "images" / "test_0.JPEG").write_bytes(b"unlabelled, never read")
    return folder


def zip_up(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        file.mkdir("tiny-imagenet-200")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"tiny-imagenet-200/{path.relative_to(folder)}")


def test_pixels_and_labels(tmp_path):
    folder = write_folder(tmp_path)
    made = read(tmp_path)
    assert (made.name, made.classes, made.shape) == ("tiny-imagenet", 3, (3, 64, 64))
    theirs = ImageFolder(folder / "train")  # sorted classes, names in order, Pillow
    assert made.train.labels.tolist() == theirs.targets == [0] * 4 + [1] * 4 + [2] * 4
    for i, (image, _) in enumerate(theirs):
        assert np.array_equal(made.train.images[i].permute(1, 2, 0), np.asarray(image))
    # val_0 .. val_5 are of WNIDS[0], [1], [2], [0], [1], [2], and these are 1, 0, 2 when sorted.
    assert made.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    with Image.open(folder / "val" / "images" / "val_4.JPEG") as image:
        assert np.array_equal(made.test.images[4].permute(1, 2, 0), np.asarray(image))


def test_grey_images_become_colour(tmp_path):
    write_folder(tmp_path)
    images = read(tmp_path).train.images.int()
    spread = (images.max(dim=1).values - images.min(dim=1).values).amax(dim=(1, 2))
    grey = (spread == 0).tolist()
    assert grey == [False, True, False, False] * 3


def test_zip_and_folder_agree(tmp_path):
    folder = write_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    zip_up(folder, tmp_path / "b" / "tiny-imagenet-200.zip")
    unpacked, packed = read(tmp_path / "a"), read(tmp_path / "b")
    assert unpacked.digest == packed.digest
    assert torch.equal(unpacked.test.labels, packed.test.labels)


@pytest.mark.parametrize("zipped", [False, True])
def test_images_are_decoded_once(zipped, tmp_path, cache, decoded):
    folder = write_folder(tmp_path)
    if zipped:
        zip_up(folder, tmp_path / "tiny-imagenet-200.zip")
        shutil.rmtree(folder)
    first = read(tmp_path)
    assert len(decoded) == 1 + 12 + 6
    again = read(tmp_path)
    assert len(decoded) == 1 + 12 + 6
    assert again is not first
    assert again.digest == first.digest
    assert again.classes == 3
    assert len(list(cache.glob("*.safetensors"))) == 1


def test_a_changed_image_is_decoded_again(tmp_path, decoded):
    folder = write_folder(tmp_path)
    first = read(tmp_path)
    path = folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_2.JPEG"
    path.write_bytes(jpeg(np.random.default_rng(9)))
    assert read(tmp_path).digest != first.digest
    assert len(decoded) == 2 * (1 + 12 + 6)


def test_an_image_written_again_at_the_same_size_is_decoded_again(tmp_path, decoded):
    folder = write_folder(tmp_path)
    read(tmp_path)
    os.utime(folder / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_2.JPEG", (1, 1))
    read(tmp_path)
    assert len(decoded) == 2 * (1 + 12 + 6)


def test_a_zip_goes_before_a_half_unpacked_folder(tmp_path):
    folder = write_folder(tmp_path)
    zip_up(folder, tmp_path / "tiny-imagenet-200.zip")
    shutil.rmtree(folder / "val")
    assert len(read(tmp_path).test.labels) == 6


def test_a_zip_that_was_moved_is_not_decoded_again(tmp_path, decoded):
    folder = write_folder(tmp_path)
    for place in ("b", "c"):
        (tmp_path / place).mkdir()
        zip_up(folder, tmp_path / place / "tiny-imagenet-200.zip")
        read(tmp_path / place)
    assert len(decoded) == 1 + 12 + 6


@pytest.mark.parametrize("damage", ["cut", "pixel", "empty", "digest"])
def test_a_damaged_cache_is_noticed_and_replaced(damage, tmp_path, cache, decoded):
    write_folder(tmp_path)
    first = read(tmp_path)
    [path] = cache.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "pixel":
        content[-5000] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        position = content.index(first.digest.encode())
        content[position] = ord("0") if content[position] != ord("0") else ord("1")
    path.unlink()  # not in place: the arrays in use may be mapped from the file
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{re.escape(str(path))} is damaged"):
        assert read(tmp_path).digest == first.digest
    assert len(decoded) == 2 * (1 + 12 + 6)
    assert read(tmp_path).digest == first.digest
    assert len(decoded) == 2 * (1 + 12 + 6)


def test_a_cache_that_cannot_be_written(tmp_path, cache):
    write_folder(tmp_path)
    cache.parent.mkdir()
    cache.write_text("a file where the folder belongs")
    with pytest.warns(UserWarning, match="not kept"):
        made = read(tmp_path)
    assert len(made.train.labels) == 12


def test_a_full_disk(tmp_path, cache, monkeypatch):
    def save_file(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tiny_imagenet, "save_file", save_file)
    write_folder(tmp_path)
    with pytest.warns(UserWarning, match="No space left"):
        made = read(tmp_path)
    assert len(made.train.labels) == 12
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []


def test_the_cache_is_unlocked_afterwards(tmp_path, cache):
    import filelock

    write_folder(tmp_path)
    read(tmp_path)
    [path] = cache.glob("*.safetensors")
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
        pass


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


IMAGE = f"train/{WNIDS[1]}/images/{WNIDS[1]}_1.JPEG"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (IMAGE, cut, "not a whole JPEG"),
        (IMAGE, lambda p: p.write_bytes(b""), "not a whole JPEG"),
        (IMAGE, lambda p: p.write_bytes(p.read_bytes()[:20]), "not a whole JPEG"),
        (IMAGE, lambda p: p.write_bytes(jpeg(np.random.default_rng(0), size=63)), "63, 63. pixels"),
        ("val/images/val_3.JPEG", cut, "not a whole JPEG"),
        ("val/images/val_3.JPEG", Path.unlink, "not there, though val_annotations.txt lists it"),
        ("val/val_annotations.txt", Path.unlink, "not there"),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text("".join(p.read_text().splitlines(True)[:-1])),
            "5 lines for 6 images",
        ),
        ("val/val_annotations.txt", lambda p: p.write_text(""), "0 lines for 6 images"),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text(p.read_text().replace(WNIDS[1], "n99", 1)),
            "line 2: no class 'n99'",
        ),
        ("val/val_annotations.txt", lambda p: p.write_text("val_0.JPEG"), "line 1: no class ''"),
        ("val/val_annotations.txt", lambda p: p.write_bytes(b"\xff\xfe"), "not a text file"),
        ("wnids.txt", lambda p: p.write_text("\n"), "names no class"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_damaged_file_is_named(file, change, message, zipped, tmp_path):
    folder = write_folder(tmp_path)
    change(folder / file)
    where = f"{folder}/{file}"
    if zipped:
        archive = tmp_path / "tiny-imagenet-200.zip"
        zip_up(folder, archive)
        shutil.rmtree(folder)
        where = f"{archive}: tiny-imagenet-200/{file}"
    with pytest.raises(DataCorrupt, match=message) as error:
        read(tmp_path)
    assert where in str(error.value)


def test_an_unpacking_cut_short(tmp_path):
    folder = write_folder(tmp_path)
    (folder / IMAGE).unlink()
    with pytest.raises(DataCorrupt, match=f"train/{WNIDS[1]}: 3 images, but 4 in another class"):
        read(tmp_path)
    shutil.rmtree(folder / "train" / WNIDS[1])
    with pytest.raises(DataCorrupt, match=f"train/{WNIDS[1]}: 0 images"):
        read(tmp_path)


def test_a_class_too_many(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "wnids.txt").write_text("\n".join(WNIDS[:2]))
    with pytest.raises(DataCorrupt, match=f"train/{WNIDS[2]}: a class that wnids.txt"):
        read(tmp_path)


def test_a_damaged_zip_is_named(tmp_path):
    folder = write_folder(tmp_path)
    archive = tmp_path / "tiny-imagenet-200.zip"
    zip_up(folder, archive)
    shutil.rmtree(folder)
    whole = archive.read_bytes()
    reference = read(tmp_path).digest
    rng = np.random.default_rng(0)
    damages = [whole[:length] for length in (0, 1, 22, 1000, len(whole) // 2, len(whole) - 1)]
    for position in [*rng.integers(len(whole), size=40), *range(len(whole) - 60, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.integers(8)
        damages.append(bytes(flipped))
    noticed = 0
    for content in damages:
        archive.write_bytes(content)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        try:
            made = read(tmp_path)
        except DataCorrupt as error:
            assert str(archive) in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert made.digest == reference  # a bit that means nothing, of a time stamp say
    assert noticed > len(damages) // 2


def test_download(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "source")
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, filename, md5))
        zip_up(folder, Path(root) / filename)

    monkeypatch.setattr(utils, "download_url", download_url)
    made = read(tmp_path / "new", download=True)
    assert made.digest == read(tmp_path / "source").digest
    read(tmp_path / "new", download=True)
    assert asked == [
        (tiny_imagenet.URL, "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
    ]
