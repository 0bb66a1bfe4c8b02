"""Mistakes in a pair of one's own: each is refused when it is made, in one clear line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llfc_core import OwnPair, OwnPairError
from llfc_core.check import collect
from tests.own import CLASSES, blobs, mlp

X, Y = blobs(60)


class Dicts:
    """As some loaders do."""

    def __iter__(self) -> Any:
        return iter([{"image": X, "label": Y}])


class Unequal(nn.Module):
    """The weights of `mlp` under another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*mlp())

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.net):
            x = torch.tanh(x) if i % 2 else layer(x)
        return x

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)


class Returns(nn.Module):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.what = nn.Linear(8, CLASSES), what

    def forward(self, x: Tensor) -> Any:
        return self.what(self.fc(x))


def both(what: Callable[[Tensor], Any]) -> dict[str, nn.Module]:
    return {"a": Returns(what).eval(), "b": Returns(what).eval()}


def spoiled(name: str = "2.bias", value: float = float("nan")) -> nn.Module:
    net = mlp(1)
    with torch.no_grad():
        net.state_dict()[name][0] = value
    return net


def blown_up() -> nn.Module:
    """All its weights are finite."""
    net = mlp(1)
    with torch.no_grad():
        for value in net.parameters():
            value.fill_(1e38)
    return net


def renamed(change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(k): v for k, v in mlp(1).state_dict().items()}


def shuffled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=20, shuffle=True)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    # of the networks
    "train mode": ({"a": mlp().train()}, r"A is in train mode: call eval\(\) first.*"),
    "part in train mode": (
        {"b": nn.Sequential(*mlp(1)).eval().apply(lambda m: setattr(m, "training", True))},
        r"B is in train mode.*",
    ),
    "shapes": (
        {"b": mlp(1, width=32)},
        r"mode B: '0.weight' has shape \(32, 8\), the network's has \(64, 8\)",
    ),
    "no overlap": (
        {"b": renamed(lambda k: f"encoder.{k}")},
        r"B and the network have no weights in common: B has 'encoder.0.weight', the network "
        r"'0.weight'",
    ),
    "prefix": (
        {"b": renamed(lambda k: f"module.{k}")},
        r"B's names all begin with 'module.': take that away",
    ),
    "missing": (
        {"b": {k: v for k, v in mlp(1).state_dict().items() if k != "2.bias"}},
        r"mode B lacks '2.bias' \(1 names missing\)",
    ),
    "foreign": ({"b": {**mlp(1).state_dict(), "ema": X}}, r"mode B has 'ema', which.*has not"),
    "no tensor": ({"b": {**mlp(1).state_dict(), "step": 3}}, r"B's 'step' is a int, not a tensor"),
    "dtypes": ({"b": mlp(1).double()}, r"'0.weight' is torch.float32 in A and torch.float64 in B"),
    "half": (
        {"a": mlp().bfloat16(), "b": mlp(1).bfloat16()},
        r"'0.weight' is torch.bfloat16, too coarse.*: call float\(\) first",
    ),
    "devices": ({"b": mlp(1).to("meta")}, r"the modes are on several devices: cpu, meta"),
    "nan": ({"b": spoiled()}, r"mode B: '2.bias' has values that are not finite"),
    "nan in C": (
        {"independent": spoiled()},
        r"mode C: '2.bias' has values that are not finite",
    ),
    "early of other shapes": (
        {"early": mlp(1, width=32)},
        r"mode early: '0.weight' has shape \(32, 8\), the network's has \(64, 8\)",
    ),
    "no module": (
        {"a": mlp().state_dict(), "b": mlp(1).state_dict()},
        r"A and B are state dicts: give the module that they are weights of",
    ),
    "class": ({"module": nn.Sequential}, r"module is a type, not a module"),
    "path": ({"b": "b.pt"}, r"B is a str, not a module or a state dict"),
    "other network": (
        {"b": Unequal().eval()},
        r"B with its own weights computes something else than the architecture .*",
    ),
    "random": (
        both(lambda z: z + torch.rand_like(z)),
        r"A with its own weights computes something else .* without random numbers",
    ),
    "output": (
        both(lambda z: {"logits": z}),
        r"A returns a dict, not a tensor: wrap it in a module that returns one",
    ),
    "not finite": (both(lambda z: z / 0), r"A's outputs are not finite"),
    "no weights": (
        {"a": nn.Flatten().eval(), "b": nn.Flatten().eval()},
        r"the networks have no weights",
    ),
    "compiled": (
        {"a": torch.compile(mlp()), "b": torch.compile(mlp(1))},
        r"the module is compiled, its calls cannot be seen: use the original",
    ),
    "data axis": (
        both(lambda z: torch.relu(z.T).T),
        r"layer 'relu' gives float32 \(4, 3\) for 3 data points, which must be on the first axis.*",
    ),
    # of the data
    "dicts": (
        {"data": Dicts()},
        r"the data give batches that are a dict with 'image', 'label': each must be "
        r"\(inputs, targets\)",
    ),
    "empty tensors": ({"data": (X[:0], Y[:0])}, r"data is empty"),
    "empty loader": ({"data": []}, r"data is empty"),
    "once": ({"data": iter([(X, Y)])}, r"the data can be gone through only once: .*"),
    "shuffled": ({"data": shuffled()}, r"data comes otherwise the second time: no shuffling.*"),
    "shuffled train": ({"train": shuffled()}, r"train comes otherwise the second time.*"),
    "lengths": ({"data": (X, Y[:-1])}, r"the data are 60 inputs and 59 targets"),
    "one tensor": ({"data": X}, r"the data are a Tensor: give \(inputs, targets\), .*"),
    "three": ({"data": [(X, X, Y)]}, r"a batch must be two tensors, .* not \(Tensor, Tensor, .*"),
    "nan inputs": ({"data": (X / 0, Y)}, r"the inputs have values that are not finite"),
    "inputs of another shape": (
        {"data": (X[:, :5], Y)},
        r"A cannot run on the data \(float32 \(3, 5\)\): .*mat1 and mat2 shapes.*",
    ),
    "inputs of another dtype": (
        {"data": (X.double(), Y)},
        r"A cannot run on the data \(float64 \(3, 8\)\): .*",
    ),
    "labels out of range": (
        {"data": (X, Y + CLASSES)},
        r"label \d is out of range: there are 4 logits",
    ),
    "labels of another shape": (
        {"data": (X, Y[:, None])},
        r"outputs \(3, 4\) and labels \(3, 1\) do not fit: .*",
    ),
    "numbers for labels": (
        {"data": (X, Y.float())},
        r"labels are torch.float32, class numbers are int64: give a loss .*",
    ),
    "ignored": ({"data": (X, torch.full_like(Y, -100))}, r"all labels of a data point are -100.*"),
    # of the rest
    "loss": (
        {"loss": lambda output, target: (output.sum(1) - target).square().mean()},
        r"the loss must give a number for each of 3 data points, and gives float32 \(\): "
        r"reduction='none'\?",
    ),
    "loss that raises": ({"loss": lambda output, target: 1 / 0}, r"division by zero"),
    "layers": ({"layers": ["fc1"]}, r"no layer 'fc1'.*"),
    "match": ({"match": "weights"}, r"no matching method 'weights'; there are weight, .*"),
    "match by labels": (
        {"match": "ste", "loss": lambda output, target: output.sum(1)},
        r"'ste' matches by cross-entropy.*",
    ),
    "two independent": ({"independent": (mlp(2),)}, r"C is a tuple, not a module or a state dict"),
    "initial alone": ({"initial": mlp(2)}, r"initial is compared with early: give both.*"),
    "alphas": ({"alphas": (0, 0.5, 1)}, r"alphas must lie in \[0, 1\] and have 0.25, 0.5 and 0.75"),
    "finding": (
        {"findings": {"llfc-cosin": "x"}},
        r"findings: no claim 'llfc-cosin': did you mean 'llfc-cosine'\?",
    ),
    "finding on a control": (
        {"findings": {"llfc-cosine on indep": "x"}},
        r"findings: no claim 'llfc-cosine on indep': did you mean 'llfc-cosine on independent'\?",
    ),
    "bound": ({"bounds": {"x": 1.0}}, r"bounds: no claim 'x'"),
    "findings in a list": (
        {"findings": ["lmc-error"]},
        r"findings must be a dict by claim, not a list",
    ),
    "finding without a reason": (
        {"findings": {"lmc-error": ""}},
        r"findings: say why 'lmc-error' does not hold",
    ),
    "bound that is no number": (
        {"bounds": {"lmc-error": float("nan")}},
        r"bounds: 'lmc-error' is nan, not a number or \(number, reason\)",
    ),
    "bound of three": (
        {"bounds": {"lmc-error": (1, "a", "b")}},
        r"bounds: 'lmc-error' is \(1, 'a', 'b'\), not a number or \(number, reason\)",
    ),
    "no A": ({"a": None}, r"A is missing: give a module or a state dict"),
    "no B": ({"b": None}, r"B is missing: give a module or a state dict"),
    "batches of nothing": (
        {"batch_size": 0},
        r"batch_size must be a whole number from 1, not 0",
    ),
    "C of another architecture": (
        {"independent": Unequal().eval()},
        r"C with its own weights computes something else than the architecture .*",
    ),
    "early of another architecture": (
        {"early": Unequal().eval()},
        r"early with its own weights computes something else than the architecture .*",
    ),
    "C without finite outputs": (
        {"independent": blown_up()},
        r"C's outputs are not finite",
    ),
    "training data of another width": (
        {"train": (X[:, :5], Y)},
        r"A cannot run on train \(float32 \(3, 5\)\): .*",
    ),
    "training labels out of range": (
        {"match": "ste", "train": (X, Y + 9)},
        r"label \d+ is out of range: there are 4 logits",
    ),
    "arrays": (
        {"data": (X.numpy(), Y.numpy())},
        r"the data are \(ndarray, ndarray\): give two tensors, \(inputs, targets\)",
    ),
    "three tensors": (
        {"data": (X, Y, Y)},
        r"the data are \(Tensor, Tensor, Tensor\): give two tensors, \(inputs, targets\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    given: dict[str, Any] = {"a": mlp(0), "b": mlp(1), "data": (X, Y)}
    with pytest.raises(OwnPairError) as caught:
        OwnPair(**(given | changes))
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_without_a_mistake_it_is_taken() -> None:
    OwnPair(mlp(0), mlp(1), (X, Y))


def test_an_architecture_may_be_in_train_mode_where_weights_are_given() -> None:
    """As a constructor leaves it; it is measured in eval mode whatever it is in."""
    module = mlp(2).train()
    OwnPair(mlp(0).state_dict(), mlp(1).state_dict(), (X, Y), module=module)
    assert module.training


def test_refusing_touches_nothing() -> None:
    a = mlp(0)
    rng = torch.get_rng_state()
    with pytest.raises(OwnPairError):
        OwnPair(a, mlp(1), shuffled())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(part._forward_hooks for part in a.modules())


# ---- what a function may return -----------------------------------------------------------------


def good() -> Any:
    return mlp(0), mlp(1), (X, Y)


def raises() -> Any:
    raise RuntimeError("no\nGPU here")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"target\(\) returned a NoneType: it must be \(a, b, data\), or a dict .*"),
        ((1, 2), r"target\(\) returned a tuple: .*"),
        ({"a": 1, "b": 2}, r"target\(\) returned a dict: .*"),
        ([], r"there are no pairs"),
        ({"a": 1, "b": 2, "data": 3, "net": 4}, r"a pair has no 'net'"),
    ],
)
def test_what_a_function_may_not_return(returned: Any, message: str) -> None:
    def target() -> Any:
        return returned

    with pytest.raises(OwnPairError, match=message):
        collect(target, "x")


def test_a_function_that_raises_is_said_in_one_line() -> None:
    with pytest.raises(OwnPairError, match=r"^raises\(\) raised RuntimeError: no GPU here$"):
        collect(raises, "x")


def test_a_function_may_return_a_tuple_a_dict_a_pair_or_several() -> None:
    a, b, data = good()
    forms: tuple[Any, ...] = (
        (a, b, data),
        {"a": a, "b": b, "data": data, "link": "given"},
        OwnPair(a, b, data),
    )
    for form in forms:
        row = collect(lambda form=form: form, "x")
        assert len(row.replicates) == 1
        assert row.first.states["b"].keys() == b.state_dict().keys()
    assert len(collect(lambda: list(forms), "x").replicates) == 3


def test_options_replace_what_a_function_returns() -> None:
    row = collect(good, "x", match="weight")
    assert row.matched
    assert set(row.controls()) == {"independent", "random"}
    assert not collect(good, "x").controls()


def test_a_function_may_draw_random_numbers_and_leaves_none() -> None:
    rng = torch.get_rng_state()

    def drawing() -> Any:
        torch.manual_seed(3)
        return mlp(0), copy.deepcopy(mlp(1)), (torch.randn(20, 8), Y[:20])

    collect(drawing, "x")
    assert torch.equal(torch.get_rng_state(), rng)
