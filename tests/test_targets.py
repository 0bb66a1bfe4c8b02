"""What a command line names: functions in modules and files, checkpoints, hostile ones too."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llfc_core import OwnPairError
from llfc_core.__main__ import main
from llfc_core.targets import load_checkpoint, own_rows, resolve
from tests.helpers import identical
from tests.own import mlp


@pytest.fixture(autouse=True)
def imports_undone() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("zoo", "llfc_own", "broken")):
            del sys.modules[name]


ZOO = """
from tests.own import *
number = 3
def nothing(): return None
def net(): return mlp(7).train()
def data(): return blobs(60)
def unfit(): return blobs(60)[0]
class Nets:
    pair = staticmethod(pair)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "zoo.py").write_text(ZOO)
    (tmp_path / "broken.py").write_text("import no_such_thing")
    return tmp_path


@pytest.mark.parametrize("target", ["zoo:pair", "zoo.py:pair", "zoo:Nets.pair", "./zoo.py:apart"])
def test_a_function_is_found_by_module_or_file(folder: Path, target: str) -> None:
    assert callable(resolve(target, folder))


def test_a_file_is_run_once(folder: Path) -> None:
    assert resolve("zoo.py:net", folder).__globals__ is resolve("zoo.py:data", folder).__globals__


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("zoo", r"not module:attribute, like mypkg.zoo:pair, or file.py:attribute"),
        ("zoo:", r"not module:attribute, .*"),
        ("zoo:pairr", r"zoo has no 'pairr': did you mean 'pair'\?"),
        ("zoo:number", r"'number' in zoo is a int, not a function"),
        ("zoos:pair", r"no module 'zoos' in .* or installed"),
        ("zoos.py:pair", r"no file .*zoos.py"),
        ("broken:pair", r"importing broken raised ModuleNotFoundError: No module .*no_such_thing'"),
        ("broken.py:pair", r"importing broken.py raised ModuleNotFoundError: .*"),
    ],
)
def test_what_cannot_be_found_is_one_line(folder: Path, target: str, message: str) -> None:
    with pytest.raises(OwnPairError, match=f"^{message}$"):
        resolve(target, folder)


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_checkpoints_give_back_what_was_saved(tmp_path: Path, name: str) -> None:
    state, path = mlp().state_dict(), tmp_path / name
    if name.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    assert identical(load_checkpoint(path), state)


def test_a_state_dict_may_stand_in_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "state_dict": mlp().state_dict()}, path)
    assert identical(load_checkpoint(path), mlp().state_dict())


class Hostile:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.touched),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"0.weight": Hostile(touched)}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Hostile(touched)))
    torch.save(mlp(), tmp_path / "module.pt")
    for name in ("zip.pt", "raw.pt", "module.pt"):
        with pytest.raises(OwnPairError) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"{name} is refused: ")
    assert not touched.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"\xff" * 64, b"PK\x03\x04" + b"0" * 99, b"cut"]
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    if content == b"cut":
        save_file(mlp().state_dict(), path) if name == "w.safetensors" else torch.save(
            mlp().state_dict(), path
        )
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(OwnPairError, match=rf"^{name} is (damaged|refused): ") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "w.pt holds no state dict: names and tensors"),
        ({"a": 1}, "w.pt holds no state dict: names and tensors"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(OwnPairError, match=message):
        load_checkpoint(tmp_path / "w.pt")


# ---- rows from a command line -------------------------------------------------------------------


@pytest.fixture
def files(folder: Path) -> Path:
    save_file(mlp(0).state_dict(), folder / "a.safetensors")
    torch.save(mlp(1).state_dict(), folder / "b.pt")
    return folder


def from_files(folder: Path, **more: Any) -> Any:
    given = {"own_data": "zoo:data", "net": "zoo:net"} | more
    files = (Path(given.pop("a", "a.safetensors")), Path("b.pt"), given.pop("net"))
    return own_rows([], files, folder=folder, **given)


def test_checkpoints_make_a_row(files: Path) -> None:
    [row] = from_files(files, match="weight")
    assert (row.id, row.matched) == ("a~b", True)
    assert identical(row.first.states["a"], mlp(0).state_dict())
    assert identical(row.first.states["b"], mlp(1).state_dict())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"a": "c.pt"}, r"--mode-a c.pt --mode-b b.pt: no file .*c.pt"),
        ({"a": "zoo.py"}, r"--mode-a .*: zoo.py: not .safetensors, .pt or .pth"),
        ({"net": None}, r"checkpoints: give --mode-a, --mode-b and --net"),
        ({"net": "zoo:data"}, r".*: zoo:data\(\) returned a tuple, not a module"),
        ({"net": "zoo:pairr"}, r".*: zoo has no 'pairr'.*"),
        ({"own_data": None}, r"--data, --own-data: give the data of --mode-a.*"),
        ({"data": "mnist5k"}, r"--data, --own-data: give the data of --mode-a.*"),
        ({"own_data": "zoo:unfit"}, r".*: the data are a Tensor: give .*"),
        ({"own_data": None, "data": "mnist5k"}, r".*: A cannot run on the data .*"),
    ],
)
def test_mistakes_with_checkpoints_are_one_line(
    files: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(OwnPairError) as caught:
        from_files(files, **more)
    assert "\n" not in str(caught.value)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_rows_of_several_targets(folder: Path) -> None:
    rows = own_rows(["zoo:pair", "zoo.py:apart"], folder=folder)
    assert [row.id for row in rows] == ["zoo:pair", "zoo:apart"]
    with pytest.raises(OwnPairError, match="two rows would be named zoo:pair"):
        own_rows(["zoo:pair", "zoo.py:pair"], folder=folder)
    assert own_rows([], folder=folder) == ()
    assert own_rows([], data="mnist5k", folder=folder) == ()  # of the paper's rows
    for more in ({"match": "weight"}, {"own_data": "zoo:data"}):
        with pytest.raises(OwnPairError, match="only for"):
            own_rows([], folder=folder, **more)  # type: ignore[arg-type]


# ---- python -m llfc_core check ------------------------------------------------------------------


def test_command_prints_the_table_and_what_is_unexpected(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["check", "zoo:apart"]) == 1
    out = capsys.readouterr().out
    assert "llfc-cosine" in out
    assert "lmc-loss (Def. 1; Frankle et al. 2020), 1 given pair(s): rejected" in out
    known = "from zoo import *\ndef known():\n    return dict(zip(('a', 'b', 'data'), apart()))"
    (folder / "zoo2.py").write_text(
        f"{known} | dict(findings={{'lmc-error': 'apart', 'lmc-loss': 'apart'}})"
    )
    assert main(["check", "zoo2:known"]) == 0
    assert "finding: lmc-loss on zoo2:known: apart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo:nothing"], r"zoo:nothing: nothing() returned a NoneType: it must be (a, b, data)"),
        ([], "nothing to check: name a function, mypkg.zoo:pair, or checkpoints"),
        (["zoo:pair", "--match", "weight"], "leave out independent"),
    ],
)
def test_command_says_a_mistake_in_a_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
