"""What a command line names: ``package.module:attribute``, ``file.py:attribute``, checkpoints."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llfc_core.own import OwnPairError, one_line

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
        raise OwnPairError(
            f"importing {place} raised {type(error).__name__}: {one_line(error)}"
        ) from error
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


def checkpoints(a: Path, b: Path, net: str, folder: Path | None = None) -> dict[str, Any]:
    """``a``, ``b`` and ``module`` of `llfc_core.own.OwnPair`, from files and a ``module:callable``.

    Raises OwnPairError as `resolve` and `load_checkpoint` do, and if ``net`` makes no module.
    """
    make = resolve(net, folder)
    try:
        with torch.random.fork_rng(devices=[]):
            module = make()
    except Exception as error:
        raise OwnPairError(f"{net}() raised {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise OwnPairError(f"{net}() returned a {type(module).__name__}, not a module")
    return {"a": load_checkpoint(a), "b": load_checkpoint(b), "module": module.eval()}


def row_id(target: str) -> str:
    """A short name for tables and tests: folders and ``.py`` left out."""
    place, _, name = target.rpartition(":")
    return f"{Path(place).stem if place.endswith('.py') else place}:{name}"
