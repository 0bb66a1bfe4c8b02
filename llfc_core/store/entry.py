"""One entry of the store: a directory of safetensors files and the manifest that seals them.

``manifest.json`` names every tensor file with its size and sha256 and ends with its own sha256,
over bytes that are written in one canonical form. So any changed byte, missing file or foreign
file shows, before a tensor file is parsed. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

MANIFEST = "manifest.json"
SUFFIX = ".safetensors"

# What a damaged entry can answer to a read. Other errors (no permission, too many open files) say
# nothing about it.
_DAMAGED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}


class CorruptEntry(RuntimeError):
    """An entry is not what was written; the message names the file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What an entry holds: named groups of tensors, on the CPU, and JSON-able facts about them."""

    groups: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def write_entry(directory: Path, entry: Entry) -> None:
    """Write an entry into an existing empty directory and sync it to the disk.

    Raises
    ------
    OSError
        From the file system, unchanged.
    """
    files = {}
    for group, tensors in entry.groups.items():
        content = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
        files[group + SUFFIX] = _seal(content)
        _write(directory / (group + SUFFIX), content)
    _write(directory / MANIFEST, _manifest(files, entry.facts))
    sync_directory(directory)


def read_entry(directory: Path) -> Entry:
    """Read and check an entry, the manifest first.

    Each file is read once, so what was checked is what is used.

    Raises
    ------
    CorruptEntry
        A file is missing, foreign, changed, or no safetensors file.
    OSError
        It cannot be read for a reason that is not its own, e.g. a lack of permission.
    """
    facts, files = read_manifest(directory)
    groups = {}
    for name, seal in files.items():
        content = _read(directory / name)
        if _seal(content) != seal:
            raise CorruptEntry(f"{directory / name}: not the bytes that the manifest names")
        try:
            tensors = safetensors.torch.load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CorruptEntry(f"{directory / name}: not a safetensors file ({error})") from error
        # safetensors gives them in any order; sums over them should always run in one.
        groups[name.removesuffix(SUFFIX)] = dict(sorted(tensors.items()))
    return Entry(groups, facts)


def read_manifest(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts and the sealed files of an entry, without reading its tensors.

    Raises
    ------
    CorruptEntry
        The manifest is missing or not as it was written, or the directory has other files.
    OSError
        As `read_entry`.
    """
    path = directory / MANIFEST
    content = _read(path)
    try:
        manifest = json.loads(content)
        facts, files = manifest["facts"], manifest["files"]
        intact = (
            isinstance(facts, dict)
            and isinstance(files, dict)
            and all(name.endswith(SUFFIX) for name in files)
            and _manifest(files, facts) == content
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptEntry(f"{path}: not as it was written")
    with _reading(directory):
        present = {p.name for p in directory.iterdir()} - {MANIFEST}
    if present != set(files):
        raise CorruptEntry(
            f"{directory}: should hold {sorted(files)} beside its manifest, holds {sorted(present)}"
        )
    return facts, files


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable, where the system can."""
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(files: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    body = {"facts": facts, "files": files}
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": seal}, sort_keys=True, indent=1).encode() + b"\n"


def _seal(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    with _reading(path):
        return path.read_bytes()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _DAMAGED:
            raise
        raise CorruptEntry(f"{path}: cannot be read ({error.strerror})") from error
