"""Data sets by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from llfc_core.data import cifar10, idx, mnist5k, tiny_imagenet
from llfc_core.data.dataset import Dataset, Size
from llfc_core.data.files import default_data_dir

_LOADERS: dict[str, Callable[[Path, bool], Dataset]] = {
    "mnist5k": lambda data_dir, download: mnist5k.load(),
    "mnist": idx.load_mnist,
    "fashion-mnist": idx.load_fashion_mnist,
    "cifar10": cifar10.load,
    "tiny-imagenet": tiny_imagenet.load,
}
DATASETS: tuple[str, ...] = tuple(_LOADERS)
# For plans of what is to be trained where the data is not.
SIZES: dict[str, Size] = {
    "mnist5k": Size(4_000, (1, 28, 28), 10),
    "mnist": Size(60_000, (1, 28, 28), 10),
    "fashion-mnist": Size(60_000, (1, 28, 28), 10),
    "cifar10": Size(50_000, (3, 32, 32), 10),
    "tiny-imagenet": Size(100_000, (3, 64, 64), 200),
}

_loaded: dict[tuple[str, Path, torch.device], Dataset] = {}
_loading = threading.Lock()  # modes are trained in threads, and one read is enough


def load_dataset(
    name: str,
    *,
    data_dir: Path | str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Dataset:
    """The data set ``name``, one of `DATASETS`, on ``device``.

    A process reads it once: later calls give the same object, even if files have changed since.

    Parameters
    ----------
    data_dir
        Folder with the data sets, laid out as torchvision does (MNIST/raw, FashionMNIST/raw,
        cifar-10-batches-bin or -py, tiny-imagenet-200 or its .zip). By default the environment
        variable LLFC_DATA_DIR, otherwise the user's data folder (~/.local/share/llfc on Linux).
    download
        Download what is missing to ``data_dir``.

    Raises
    ------
    ValueError
        No data set has this name.
    DataMissing
        It is not there, or the download failed; the message says where it was looked for.
    DataCorrupt
        A file is damaged; the message names it.
    """
    if name not in _LOADERS:
        raise ValueError(f"no data set named {name!r}; there are {', '.join(DATASETS)}")
    folder = (Path(data_dir) if data_dir is not None else default_data_dir()).expanduser().resolve()
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    cpu = torch.device("cpu")
    with _loading:
        if (name, folder, cpu) not in _loaded:
            _loaded[name, folder, cpu] = _LOADERS[name](folder, download)
        if (name, folder, device) not in _loaded:
            _loaded[name, folder, device] = _loaded[name, folder, cpu].to(device)
        return _loaded[name, folder, device]
