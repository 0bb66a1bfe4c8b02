"""What a command line names: ``package.module:attribute``, ``file.py:attribute``, checkpoints."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llfc_core.check import collect
from llfc_core.data import load_dataset
from llfc_core.own import OwnPairError, OwnRow, one_line, untouched_randomness

# Under which other names than its own a checkpoint may hold the state dict.
WITHIN = ("state_dict", "model_state_dict", "model")


def resolve(target: str, folder: Path | None = None) -> Callable[..., Any]:
    """The callable that ``module:attribute`` or ``path/to/file.py:attribute`` names.

    Parameters
    ----------
    folder
        Where to look for modules and files first: put on ``sys.path``; by default the current one.

    Raises
    ------
    OwnPairError
        It cannot be imported, there is no such attribute, or it cannot be called.
    """
    folder = Path.cwd() if folder is None else folder
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise OwnPairError("not module:attribute, like mypkg.zoo:pair, or file.py:attribute")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = _from_file(folder / place) if place.endswith(".py") else _imported(place)
    except OwnPairError:
        raise
    except Exception as error:
        raise OwnPairError(f"importing {place} raised {_what(error)}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise OwnPairError(f"{place} has no {name!r}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise OwnPairError(f"{name!r} in {place} is a {type(found).__name__}, not a function")
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that it imports may be what is missing.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise OwnPairError(f"no module {error.name!r} in {sys.path[0]} or installed") from None
        raise


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise OwnPairError(f"no file {path}")
    known = f"llfc_own_{path.stem}_{abs(hash(path)):x}"
    if known in sys.modules:
        return sys.modules[known]
    if str(path.parent) not in sys.path:
        sys.path.insert(1, str(path.parent))  # what stands beside a script is its own
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[known] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known]
        raise
    return module


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors``, ``.pt`` or ``.pth`` file, on the CPU.

    Nothing is unpickled: of a ``.pt`` file only plain weights are read (``weights_only``), and
    anything else in it is refused. A state dict may stand in it under one of `WITHIN`.

    Raises
    ------
    OwnPairError
        There is no such file, it is damaged, or it holds anything but weights.
    """
    if not path.is_file():
        raise OwnPairError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in (".pt", ".pth"):
            raise OwnPairError(f"{path.name}: not .safetensors, .pt or .pth")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OwnPairError:
        raise
    except pickle.UnpicklingError as error:
        raise OwnPairError(
            f"{path.name} is refused: it is damaged, or holds more than plain weights "
            "(torch.load with weights_only=True will not read it)"
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise OwnPairError(f"{path.name} is damaged: {one_line(error, 120)}") from error
    for name in WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(torch.is_tensor(v) for v in found.values()):
        raise OwnPairError(f"{path.name} holds no state dict: names and tensors")
    return dict(found)


def own_rows(
    targets: Sequence[str],
    checkpoints: tuple[Path | None, Path | None, str | None] = (None, None, None),
    *,
    own_data: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    download: bool = False,
    match: str | None = None,
    folder: Path | None = None,
) -> tuple[OwnRow, ...]:
    """The rows that a command line names.

    Parameters
    ----------
    targets
        As `resolve` has them, each a function as `llfc_core.check.collect` takes it.
    checkpoints
        Files of A and of B, and the network they are weights of: one more row.
    own_data, data
        Of the checkpoints: a function that returns data, or the name of a data set; with it
        ``data_dir`` and ``download`` as of `llfc_core.data.load_dataset`.
    match
        Of all rows: `llfc_core.own.OwnPair.match`.
    folder
        What paths and modules are relative to; by default the current one.

    Raises
    ------
    OwnPairError, llfc_core.data.DataError
        A mistake; the message says in which option, in one line.
    """
    folder = Path.cwd() if folder is None else folder
    more = {} if match is None else {"match": match}
    rows = []
    for target in targets:
        with _saying(target):
            rows.append(collect(resolve(target, folder), _row_id(target), **more))
    a, b, net = checkpoints
    if a is not None or b is not None or net is not None:
        if a is None or b is None or net is None:
            raise OwnPairError("checkpoints: give --mode-a, --mode-b and --net")
        with _saying(f"--mode-a {a} --mode-b {b}"):
            given = _from_checkpoints(folder / a, folder / b, net, folder)
        with _saying("--data, --own-data"):
            if (own_data is None) == (data is None):
                raise OwnPairError("give the data of --mode-a, --mode-b by one of these")
            if own_data is not None:
                given["data"] = _called(own_data, folder)
            else:
                assert data is not None
                found = load_dataset(data, data_dir=data_dir, download=download)
                given["data"] = found.normalise(found.test.images), found.test.labels
        with _saying(f"--mode-a {a} --mode-b {b}"):
            rows.append(collect(lambda: given, f"{a.stem}~{b.stem}", **more))
    elif own_data is not None or (targets and data is not None):
        raise OwnPairError("--data, --own-data: only for --mode-a and --mode-b")
    elif match is not None and not targets:
        raise OwnPairError("--match: only for networks of your own")
    ids = [row.id for row in rows]
    for id in ids:
        if ids.count(id) > 1:
            raise OwnPairError(f"two rows would be named {id}")
    return tuple(rows)


@contextmanager
def _saying(option: str) -> Iterator[None]:
    try:
        yield
    except OwnPairError as error:
        raise OwnPairError(f"{option}: {one_line(error)}") from error


def _called(target: str, folder: Path) -> Any:
    make = resolve(target, folder)
    try:
        with untouched_randomness():
            return make()
    except Exception as error:
        raise OwnPairError(f"{target}() raised {_what(error)}") from error


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _from_checkpoints(a: Path, b: Path, net: str, folder: Path) -> dict[str, Any]:
    module = _called(net, folder)
    if not isinstance(module, nn.Module):
        raise OwnPairError(f"{net}() returned a {type(module).__name__}, not a module")
    return {"a": load_checkpoint(a), "b": load_checkpoint(b), "module": module.eval()}


def _row_id(target: str) -> str:
    """A short name for tables and tests: folders and ``.py`` left out."""
    place, _, name = target.rpartition(":")
    return f"{Path(place).stem if place.endswith('.py') else place}:{name}"
