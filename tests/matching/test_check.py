"""`check` sees every single thing that a spec can get wrong."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.matching.check import TOLERANCE, SpecError, check
from llfc_core.matching.derive import _trial_state, derive_spec
from llfc_core.matching.spec import Axis, PermutationSpec

from .networks import EXAMPLES, VGG, mlp
from .test_derive import IDLE


def ready(name: str) -> tuple[PermutationSpec, nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    example = EXAMPLES[name]
    model = example.network()
    inputs = example.inputs()
    return derive_spec(model, inputs, verify=False), model, inputs, _trial_state(model)


def random(spec: PermutationSpec) -> dict[str, Tensor]:
    return spec.random(torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    "name", ["mlp", "vgg", "grouped", "norms", "gpt", "decoder", "vit", "lstm", "grouped queries"]
)
def test_a_spec_that_lacks_one_axis_is_refused(name: str) -> None:
    """A bias, a running mean, one axis of a weight."""
    spec, model, inputs, state = ready(name)
    perms = random(spec)
    assert check(spec, model, inputs, state, perms) < TOLERANCE
    tied = {id(t): n for n, t in model.state_dict(keep_vars=True).items()}
    seen = 0
    for tensor, layout in spec.layouts.items():
        if tensor in IDLE or tensor not in tied.values():
            continue
        for k, axis in enumerate(layout):
            if axis is None:
                continue
            less = tuple(None if j == k else a for j, a in enumerate(layout))
            wrong = replace(spec, layouts=dict(spec.layouts) | {tensor: less})
            moved, other = spec.apply(state, perms), wrong.apply(state, perms)
            if torch.equal(moved[tensor], other[tensor]):
                continue
            with pytest.raises(SpecError, match="differs by"):
                check(wrong, model, inputs, state, perms)
            seen += 1
    assert seen > 5


def test_units_in_the_wrong_order_are_refused() -> None:
    """Positions of a flattened channel, turned round in one place."""
    spec, model, inputs, state = ready("vgg")
    axis = spec.layouts["classifier.0.weight"][1]
    assert axis is not None
    turned = Axis(axis.units, axis.positions.copy())
    turned.positions[:, :4] = axis.positions[:, 3::-1]
    layout = (spec.layouts["classifier.0.weight"][0], turned)
    wrong = replace(spec, layouts=dict(spec.layouts) | {"classifier.0.weight": layout})
    perms = random(spec)
    with pytest.raises(SpecError, match="differs by"):
        check(wrong, model, inputs, state, perms)


def test_statistics_that_only_train_mode_uses() -> None:
    """Their order makes no difference in eval mode: what train mode writes tells."""

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("largest", torch.zeros(6))
            self.largest: Tensor

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).relu()
            if self.training:
                self.largest.copy_(torch.maximum(self.largest, h.detach().amax(0)))
            return self.down(h)

    model, x = Watched(), torch.randn(4, 5)
    spec = derive_spec(model, x)
    assert [g.shape for g in spec.groups.values()] == [(6,)]
    state = _trial_state(model)
    perms = random(spec)
    fixed = replace(spec, layouts=dict(spec.layouts) | {"largest": (None,)})
    with pytest.raises(SpecError, match="in train mode: buffer largest differs"):
        check(fixed, model, x, state, perms)


def test_one_small_bias_is_seen() -> None:
    model = mlp((5, 400, 3))
    x = torch.randn(4, 5)
    spec = derive_spec(model, x, verify=False)
    state = {
        k: torch.full_like(v, 0.1) if k == "1.bias" else v for k, v in _trial_state(model).items()
    }
    state["1.bias"][7] += 1e-6
    perms = spec.identity()
    perms["1.weight"][[7, 8]] = perms["1.weight"][[8, 7]]
    assert check(spec, model, x, state, perms) < TOLERANCE
    wrong = replace(spec, layouts=dict(spec.layouts) | {"1.bias": (None,)})
    with pytest.raises(SpecError, match="output differs"):
        check(wrong, model, x, state, perms)


def test_outputs_that_are_not_finite_are_refused() -> None:
    spec, model, inputs, state = ready("mlp")
    state["3.weight"][0, 0] = torch.nan
    with pytest.raises(SpecError, match="in eval mode: output is not finite"):
        check(spec, model, inputs, state, random(spec))


class Noisy(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.layers, self.always = mlp((5, 6, 3)), always

    def forward(self, x: Tensor) -> Tensor:
        noise = self.always or self.training
        return self.layers(x + torch.randn_like(x) if noise else x)


def test_networks_that_draw_random_numbers() -> None:
    x = torch.randn(4, 5)
    spec = derive_spec(mlp((5, 6, 3)), x)
    prefixed = replace(
        spec,
        layouts={f"layers.{k}": v for k, v in spec.layouts.items()},
        shapes={f"layers.{k}": v for k, v in spec.shapes.items()},
    )
    perms = random(spec)
    model = Noisy(always=True)
    with pytest.raises(SpecError, match="draws random numbers"):
        check(prefixed, model, x, model.state_dict(), perms)
    model = Noisy(always=False)
    with pytest.warns(UserWarning, match="not checked in train mode: random numbers are drawn"):
        check(prefixed, model, x, model.state_dict(), perms)


def test_dropout_does_not_disturb() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.layers(x), 0.5, self.training)

    model, x = Dropped().train(), torch.randn(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(derive_spec(model, x).groups) == 1


def test_a_batch_too_small_for_train_mode_is_said() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match="not checked in train mode: Expected more than 1 value"):
        derive_spec(model, torch.randn(1, 5))


def test_neither_the_model_nor_the_default_type_changes() -> None:
    model = VGG()
    x = torch.randn(3, 3, 16, 16)
    spec = derive_spec(model, x, verify=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    check(spec, model, x, _trial_state(model), random(spec))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.get_default_dtype() == torch.float32
    wrong = replace(spec, layouts=dict(spec.layouts) | {"features.0.bias": (None,)})
    with pytest.raises(SpecError):
        check(wrong, model, x, _trial_state(model), random(spec))
    assert torch.get_default_dtype() == torch.float32


def test_integers_are_drawn_from_the_examples_own() -> None:
    """An embedding would refuse others."""
    spec, model, _, state = ready("gpt")
    few = torch.full((2, 6), 3)
    few[0, 0] = 10
    assert check(spec, model, few, state, random(spec)) < TOLERANCE


class Head(nn.Module):
    """What the odd networks below share: linear, ReLU, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def test_a_buffer_may_be_called_output() -> None:
    class Net(Head):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 3)
            self.register_buffer("output", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).relu()
            return self.other(h) if self.training else self.down(h)

    model, x = Net(), torch.randn(5, 6)
    spec = derive_spec(model, x)
    wrong = replace(spec, layouts=dict(spec.layouts) | {"other.weight": (None, None)})
    with pytest.raises(SpecError, match="in train mode: output differs"):
        check(wrong, model, x, model.state_dict(), random(spec))


def test_random_numbers_that_only_reach_a_buffer() -> None:
    class Net(Head):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("spare", torch.zeros(3))
            self.spare: Tensor

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if self.training:
                self.spare.copy_(torch.rand(3))
            return y

    with pytest.warns(UserWarning, match="not checked in train mode: random numbers are drawn"):
        assert len(derive_spec(Net(), torch.randn(5, 6)).groups) == 1


def test_a_mask_of_infinities_is_compared_with_itself() -> None:
    class Net(Head):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
            self.mask: Tensor

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x).relu()
            return self.down((h @ h.transpose(1, 2) + self.mask).softmax(-1) @ h)

    model, x = Net(), torch.randn(3, 4, 6)
    spec = derive_spec(model, x)
    assert len(spec.groups) == 1
    assert check(spec, model, x, model.state_dict(), random(spec)) < TOLERANCE


class CopiesItself(Head):
    """The copy has the weights, but none of the tensors that `deepcopy` was told to put in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def __deepcopy__(self, memo: object) -> CopiesItself:
        copy = CopiesItself()
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).relu())


class DetachesItsState(Head):
    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return {k: v.detach() for k, v in super().state_dict(*args, **kwargs).items()}


class ByItsGradient(Head):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(super().forward(x).square().mean(), self.down.weight)
        return self.up(x).relu() @ (self.down.weight - 0.1 * slope).T


@pytest.mark.parametrize("network", [CopiesItself, DetachesItsState, ByItsGradient])
def test_the_twin_has_the_state_that_is_checked(network: type[Head]) -> None:
    model, x = network(), torch.randn(5, 6)
    spec = derive_spec(network(), x) if network is not DetachesItsState else derive_spec(Head(), x)
    state = {
        k: v + 0.1 * torch.rand_like(v) if v.is_floating_point() else v
        for k, v in network().state_dict().items()
    }
    assert len(spec.groups) == 1
    assert check(spec, model, x, state, random(spec)) < TOLERANCE
    wrong = replace(spec, layouts=dict(spec.layouts) | {"down.weight": (None, None)})
    with pytest.raises(SpecError, match="in eval mode: output differs"):
        check(wrong, model, x, state, random(spec))


def test_train_mode_that_works_only_once_is_left_out() -> None:
    class Once(Head):
        done = False

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                if self.done:
                    raise RuntimeError("calibrated already")
                self.done = True
            return super().forward(x)

    with pytest.warns(UserWarning, match="not checked in train mode: calibrated already"):
        assert len(derive_spec(Once(), torch.randn(5, 6)).groups) == 1


def test_the_generators_of_the_program_are_left_alone() -> None:
    spec, model, inputs, state = ready("mlp")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check(spec, model, inputs, state, random(spec))
    assert torch.equal(torch.get_rng_state(), before)
