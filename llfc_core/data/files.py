"""Where data sets are looked for, and how missing ones are downloaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import filelock
import platformdirs

from llfc_core.data.dataset import DataMissing


def default_data_dir() -> Path:
    """``$LLFC_DATA_DIR``, or else the user's data folder (~/.local/share/llfc on Linux)."""
    if from_environment := os.environ.get("LLFC_DATA_DIR"):
        return Path(from_environment)
    return platformdirs.user_data_path("llfc")


def cache_dir() -> Path:
    """Where decoded data is kept: ``data`` in ``$LLFC_CACHE_DIR`` or the user's cache folder.

    Whatever is in it can be deleted.
    """
    return Path(os.environ.get("LLFC_CACHE_DIR") or platformdirs.user_cache_path("llfc")) / "data"


def missing(name: str, looked_for: Iterable[object], hint: str = "") -> DataMissing:
    """The error for a data set that was not found in any of the places ``looked_for``."""
    lines = [
        f"{name}: no data. Looked for",
        *(f"  {place}" for place in looked_for),
        "Name the folder that has it (pytest --data-dir DIR, data_dir=DIR in Python, or the "
        "environment variable LLFC_DATA_DIR), or have it downloaded there (pytest --download, "
        "download=True).",
    ]
    return DataMissing("\n".join(lines + [hint] * bool(hint)))


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download ``path`` from the first of the ``urls`` that works, if it is not there already.

    However many processes ask at once, one downloads. The file appears under its name only when
    it is complete and its md5 is right.

    Raises
    ------
    DataMissing
        No url gave the file, or its folder cannot be written.
    """
    from torchvision.datasets import utils  # importing torchvision takes seconds: only for this

    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                return
            for url in urls:
                with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder:
                    try:
                        utils.download_url(url, folder, filename=path.name, md5=md5)
                    except (OSError, RuntimeError) as error:  # no network; wrong md5
                        failures.append(f"  {url}: {error}")
                    else:
                        (Path(folder) / path.name).replace(path)
                        return
    except OSError as error:
        failures.append(f"  {error}")
    raise DataMissing("\n".join([f"could not download {path}", *failures]))
