"""Re-estimated BatchNorm statistics, against features kept whole in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core import batchnorm
from llfc_core.batchnorm import reestimate_statistics
from llfc_core.nets import Net, build
from llfc_core.pairs import interpolate

SHAPE = (1, 12, 12)
VGG = Net("vgg16", (4, 4, 6, 6, 8, 8, 8))
NETS = {
    "vgg16": VGG,
    "resnet20": Net("resnet20", (4, 6, 8)),
    "conv1x1": Net("resnet20", (4, 6, 8), shortcut="conv1x1"),
}


def some_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights, affine parameters and statistics that are all away from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if not value.is_floating_point():
            state[name] = torch.tensor(17)
        elif "running_var" in name:
            state[name] = 0.5 + noise.square()
        else:
            state[name] = value + 0.3 * noise
    return state


def images(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) + 0.5


def by_hand(
    module: nn.Module, state: dict[str, Tensor], batches: list[Tensor]
) -> dict[str, Tensor]:
    """All that enters each BatchNorm layer, kept; float64, layers in training mode as they come."""
    network = copy.deepcopy(module).double()
    network.load_state_dict(state)
    network.train()
    entered: dict[str, list[Tensor]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(
                lambda m, args, name=name: entered.setdefault(name, []).append(args[0].detach())
            )
    for batch in batches:
        network(batch.double())
    statistics = {}
    for name, parts in entered.items():
        values = torch.cat([p.movedim(1, 0).flatten(1) for p in parts], dim=1)  # (C, everything)
        statistics[f"{name}.running_mean"] = values.mean(1)
        statistics[f"{name}.running_var"] = values.var(1)  # unbiased
    return statistics


@pytest.mark.parametrize("sizes", [[40], [16, 16, 8], [30, 3, 7]], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_statistics_are_those_of_all_that_entered(name, sizes):
    module = build(NETS[name], SHAPE, 3)
    state = some_state(module)
    batches = list(images(sum(sizes)).split(sizes))
    new = reestimate_statistics(module, state, batches)
    expected = by_hand(module, state, batches)
    assert len(expected) == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    for key, value in expected.items():
        torch.testing.assert_close(new[key].double(), value, rtol=1e-3, atol=1e-4, msg=key)


def test_the_first_layers_statistics_do_not_depend_on_the_batches():
    module = build(VGG, SHAPE, 3)
    state = some_state(module)
    whole = reestimate_statistics(module, state, [images(40)])
    parts = reestimate_statistics(module, state, images(40).split([30, 3, 7]))
    for key in ("bn1_1.running_mean", "bn1_1.running_var"):
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-6, atol=1e-6)


def test_means_that_vary_between_batches_count_into_the_variance():
    """Two batches, all 0 ± 1 and all 10 ± 1: an average of their variances would be 1."""
    module = nn.Sequential(nn.BatchNorm1d(1))
    batches = [torch.tensor([[-1.0], [1.0]]), torch.tensor([[9.0], [11.0]])]
    new = reestimate_statistics(module, module.state_dict(), batches)
    assert float(new["0.running_mean"]) == 5
    assert float(new["0.running_var"]) == pytest.approx((36 + 16 + 16 + 36) / 3)


def test_a_large_mean_leaves_the_variance_its_digits():
    module = nn.Sequential(nn.BatchNorm1d(1, dtype=torch.float64))
    x = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    new = reestimate_statistics(module, module.state_dict(), (x + 1e7).split(100))
    assert float(new["0.running_var"]) == pytest.approx(float(x.var()), rel=1e-6)


def channels(x: Tensor) -> Tensor:
    return x.double().transpose(0, 1).flatten(1)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(20_000, 8) + 3,
        torch.randn(64, 8, 16, 16) + 3,
        (torch.randn(64, 8, 16, 16) + 100).contiguous(memory_format=torch.channels_last),
        torch.randn(3000, 8) + 1e6,
        torch.randn(300, 2, 1000) + 100,  # a data point alone fills what stays in the cache
    ],
    ids=["rows", "maps", "channels last", "far from zero", "wide"],
)
def test_sums_keep_their_digits_whatever_the_order_in_memory(x, monkeypatch):
    monkeypatch.setattr(batchnorm, "IN_CACHE", 1500)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()](x.shape[1])
    new = reestimate_statistics(norm, norm.state_dict(), [x])
    exact = channels(x)
    for name, want in (("running_mean", exact.mean(1)), ("running_var", exact.var(1))):
        torch.testing.assert_close(new[name].double(), want, rtol=3e-7, atol=0)


class KeepsNone(nn.BatchNorm1d):
    """Normalises by the batch, and writes nothing down."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


class Pools(nn.BatchNorm1d):
    """What comes out is less than what went in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(1, (-1, 2)).amax(2)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, KeepsNone, Pools])
@pytest.mark.parametrize("tracks", [True, False])
def test_statistics_are_of_what_enters_not_of_what_the_layer_makes_of_it(kind, tracks):
    norm = kind(4)
    norm.track_running_stats = tracks  # False: one way to freeze statistics
    x = 3 * torch.randn(50, 4) + 2
    new = reestimate_statistics(norm, norm.state_dict(), x.split(20))
    torch.testing.assert_close(new["running_mean"].double(), channels(x).mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(new["running_var"].double(), channels(x).var(1), rtol=1e-6, atol=0)


def test_a_layer_that_does_not_run_keeps_its_statistics_for_who_reads_them():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folded, self.norm = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm((x - self.folded.running_mean) / self.folded.running_var.sqrt())

    state = some_state(Folded())
    x = torch.randn(40, 2)
    new = reestimate_statistics(Folded(), state, [x])
    entered = (x - state["folded.running_mean"]) / state["folded.running_var"].sqrt()
    torch.testing.assert_close(new["norm.running_mean"], entered.mean(0))
    torch.testing.assert_close(new["norm.running_var"], entered.var(0))


def test_a_layer_of_two_names_has_its_statistics_under_both():
    module = nn.Sequential(nn.BatchNorm1d(2))
    module.add_module("again", module[0])
    new = reestimate_statistics(module, module.state_dict(), [torch.randn(9, 2) + 5])
    for statistic in ("running_mean", "running_var"):
        assert torch.equal(new[f"0.{statistic}"], new[f"again.{statistic}"])
    assert float(new["0.running_mean"].min()) > 2


def test_only_the_statistics_change():
    module = build(VGG, SHAPE, 3)
    state = some_state(module)
    before = {k: v.clone() for k, v in state.items()}
    own = {k: v.clone() for k, v in module.state_dict().items()}
    module.train()
    new = reestimate_statistics(module, state, [images(20)])
    assert list(new) == list(state)
    for key, value in new.items():
        assert value.dtype == state[key].dtype
        assert value.shape == state[key].shape
        assert torch.equal(value, before[key]) == ("running_" not in key), key
        assert torch.equal(state[key], before[key])  # nor is what was given written to
        assert torch.equal(module.state_dict()[key], own[key])
    assert module.training
    assert all(m.momentum == 0.1 for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(not m._forward_pre_hooks for m in module.modules())


def test_it_is_repeatable_to_the_bit_and_does_it_again_to_no_effect():
    module = build(VGG, SHAPE, 3)
    once = reestimate_statistics(module, some_state(module), images(20).split(8))
    for state in (some_state(module), once):
        again = reestimate_statistics(module, state, images(20).split(8))
        assert all(torch.equal(again[key], once[key]) for key in once)


def test_dropout_is_off_and_eval_mode_is_reproduced():
    """On one batch, the network in eval mode then gives what it gave with the batch's statistics.

    Up to n / (n−1) in the variances.
    """
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    state = some_state(module)
    module.load_state_dict(reestimate_statistics(module, state, [x]))
    module.eval()
    expected = module(x)
    module[1].train()
    torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)


def test_without_batchnorm_the_state_comes_back_and_no_data_are_read():
    def unread():
        raise AssertionError("read")
        yield

    for net in (Net("mlp", (4,)), Net("resnet20", (2, 2, 2), norm="layer", shortcut="conv3x3")):
        module = build(net, SHAPE, 3)
        state = module.state_dict()
        new = reestimate_statistics(module, state, unread())
        assert list(new) == list(state)
        assert all(new[key] is state[key] for key in state)
    keeps_none = nn.BatchNorm1d(3, track_running_stats=False)
    assert reestimate_statistics(keeps_none, keeps_none.state_dict(), unread()).keys() == {
        "weight",
        "bias",
    }


def test_a_layer_that_is_not_used_keeps_what_it_had():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    state = some_state(Network())
    new = reestimate_statistics(Network(), state, [torch.randn(5, 2)])
    assert new["spare.running_var"] is state["spare.running_var"]
    assert not torch.equal(new["used.running_var"], state["used.running_var"])


def test_no_batches_are_refused():
    module = build(VGG, SHAPE, 3)
    with pytest.raises(ValueError, match="no batches"):
        reestimate_statistics(module, module.state_dict(), [])


def test_it_restores_what_interpolated_statistics_lose():
    """Features of opposite signs: at α = ½ their variance is 0, the interpolated statistic is 1."""
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    base = module.state_dict()
    a = base | {"0.weight": torch.tensor([[1.0]]), "0.bias": torch.tensor([0.0])}
    b = base | {"0.weight": torch.tensor([[-0.9]]), "0.bias": torch.tensor([0.0])}
    middle = interpolate(a, b, 0.5)
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    for state, low, high in (
        (middle, 0.0, 0.1),
        (reestimate_statistics(module, middle, [x]), 0.9, 1.1),
    ):
        module.load_state_dict(state)
        assert low < float(module.eval()(x).detach().std()) < high
