"""Permutations planted on the networks of the paper, found again by derived specs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from llfc_core.matching import PermutationSpec, derive_spec, match
from llfc_core.nets import Net, build
from llfc_core.pairs import interpolate

NETS = {
    "mlp": Net("mlp", (48, 40, 32)),
    "vgg16": Net("vgg16", (8, 8, 12, 16, 16, 24, 24)),
    "resnet20": Net("resnet20", (8, 12, 16)),
    "resnet20-conv1x1": Net("resnet20", (8, 12, 16), shortcut="conv1x1"),
    "resnet20-layernorm": Net("resnet20", (8, 12, 16), norm="layer", shortcut="conv3x3"),
    "resnet50": Net("resnet50", (4, 4, 6, 8)),
}
SHAPE, CLASSES = (3, 32, 32), 10
GROUPS = {
    "mlp": 3,
    "vgg16": 15,
    # Padded shortcuts: a stage's channels are those of the stage before and, in one role, the pads.
    "resnet20": 12,
    "resnet20-conv1x1": 12,
    "resnet20-layernorm": 12,
    "resnet50": 37,
}


def planted(
    net: Net, seed: int, noise: float
) -> tuple[
    torch.nn.Module, PermutationSpec, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]
]:
    """A, and B = ρ(A) plus noise of so many times each weight's own deviation; and ρ⁻¹."""
    module = build(net, SHAPE, CLASSES, seed)
    spec = derive_spec(module, torch.zeros(2, *SHAPE), verify=False)
    g = torch.Generator().manual_seed(seed)
    a = {
        # biases, affines and statistics are all alike at initialisation
        k: v + 0.2 * torch.rand(v.shape, generator=g)
        if v.is_floating_point() and v.dim() == 1
        else v
        for k, v in module.state_dict().items()
    }
    rho = spec.random(g)
    b = {
        k: v + noise * float(v.std()) * torch.randn(v.shape, generator=g)
        if v.is_floating_point() and v.dim() > 1
        else v
        for k, v in spec.apply(a, rho).items()
    }
    return module, spec, a, b, spec.inverse(rho)


def same(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> bool:
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("name", NETS)
def test_the_number_of_groups_is_the_published_one(name: str) -> None:
    _, spec, *_ = planted(NETS[name], 0, 0.0)
    assert len(spec.groups) == GROUPS[name]


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("name", NETS)
def test_weight_matching_undoes_what_was_planted(name: str, noise: float) -> None:
    module, spec, a, b, undo = planted(NETS[name], 1, noise)
    found = match(a, b, spec, module=module, restarts=2)
    assert same(found.apply(b), spec.apply(b, undo))
    if not noise:
        assert same(found.apply(b), a)


@pytest.mark.parametrize("name", NETS)
def test_activation_matching_undoes_what_was_planted(name: str) -> None:
    module, spec, a, b, _ = planted(NETS[name], 2, 0.0)
    data = [torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = match(a, b, spec, "activation", module=module, data=data, statistic="correlation")
    # Units that are never active are equal, and may stand in any order.
    module.load_state_dict(a)
    module.eval()
    with torch.no_grad():
        want = module(data[0])
        module.load_state_dict(interpolate(a, found.apply(b), 0.5))
        got = module(data[0])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
