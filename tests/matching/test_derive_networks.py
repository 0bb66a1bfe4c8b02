"""`derive_spec` on networks that others wrote: torchvision's."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from llfc_core.matching.check import TOLERANCE, SpecError, check
from llfc_core.matching.derive import _trial_state, derive_spec
from llfc_core.matching.spec import PermutationSpec

from .networks import EXAMPLES

Build = Callable[[], nn.Module]


def images(side: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def vgg16(norm: bool) -> nn.Module:
    """With narrow linear layers: what there is to see is the same, and it is 20 times as fast."""
    make = models.vgg16_bn if norm else models.vgg16
    model = make(num_classes=10, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 30), nn.ReLU(True),
        nn.Dropout(), nn.Linear(30, 10),
    )  # fmt: skip
    return model


# Network, side of the images, number of groups, and how the number comes about.
NETWORKS: dict[str, tuple[Build, int, int]] = {
    # 13 convolutions and 2 hidden linear layers
    "vgg16_bn": (lambda: vgg16(True), 32, 15),
    "vgg16": (lambda: vgg16(False), 32, 15),
    # 4 streams, the first shared with the stem, and 8 blocks with one hidden layer each
    "resnet18": (models.resnet18, 32, 12),
    # the stem, 4 streams, and 16 blocks with two hidden layers each
    "resnet50": (models.resnet50, 32, 37),
    # as ResNet-50, but for each block the groups of its convolution, and the channels in them
    "resnext50": (models.resnext50_32x4d, 32, 53),
    # the stem, 58 layers with a hidden layer and an output each, and 3 transitions
    "densenet121": (models.densenet121, 32, 120),
    # the stem, 7 streams, 16 hidden layers and the last one
    "mobilenet_v2": (models.mobilenet_v2, 32, 25),
    # as measured: what the shuffles bring together is more than one can count
    "shufflenet_v2_x0_5": (models.shufflenet_v2_x0_5, 32, 80),
    # 4 streams, and 18 blocks with a hidden layer each
    "convnext_tiny": (models.convnext_tiny, 32, 22),
    # the stem, 7 streams, 16 blocks with a squeezed layer and 15 with a hidden one, the last one
    "efficientnet_b0": (models.efficientnet_b0, 32, 40),
    # the stem, and 8 times one layer squeezed and two expanded
    "squeezenet1_1": (models.squeezenet1_1, 48, 25),
    # 3 convolutions, 9 times 6 in the branches, and 2 in each of 2 auxiliary heads
    "googlenet": (lambda: models.googlenet(init_weights=False), 64, 61),
}

SLOW: dict[str, tuple[Build, int, int]] = {
    "vgg16_bn, as it is": (lambda: models.vgg16_bn(init_weights=False), 32, 15),
    # the stream, and for each of 12 layers: heads, queries and keys, values, the hidden layer
    "vit_b_16": (models.vit_b_16, 224, 49),
    # 4 streams, and the same for each of 12 layers
    "swin_t": (models.swin_t, 224, 52),
    "swin_v2_t": (models.swin_v2_t, 256, 64),
    "maxvit_t": (models.maxvit_t, 224, 117),
    "inception_v3": (lambda: models.inception_v3(init_weights=False), 299, 96),
    "regnet_y_400mf": (models.regnet_y_400mf, 32, 69),
}


def assert_derived(build: Build, side: int, groups: int) -> PermutationSpec:
    torch.manual_seed(0)
    model, x = build(), images(side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = derive_spec(model, x, verify=False)
        assert len(spec.groups) == groups
        state = _trial_state(model)
        perms = spec.random(torch.Generator().manual_seed(2))
        check(spec, model, x, state, perms)
    # and a permutation that is right but for one tensor is seen: the first axis that moves
    last = [name for name, layout in spec.layouts.items() if any(a is not None for a in layout)]
    wrong = PermutationSpec(
        spec.groups,
        spec.units,
        dict(spec.layouts) | {last[0]: (None,) * len(spec.layouts[last[0]])},
        spec.shapes,
    )
    with pytest.raises(SpecError, match="differs by"):
        check(wrong, model, x, state, perms)
    return spec


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    assert_derived(*NETWORKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_large_networks(name: str) -> None:
    assert_derived(*SLOW[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seconds"), [("vit_b_16", 30), ("swin_t", 20)])
def test_deriving_takes_seconds(name: str, seconds: float) -> None:
    build, side, _ = SLOW[name]
    model, x = build(), images(side)
    start = time.perf_counter()
    derive_spec(model, x, verify=False)
    assert time.perf_counter() - start < seconds


@pytest.mark.slow
def test_table() -> None:
    """The table of docs/permutation-spec.md: run with -s."""
    print("\n| network | groups | weights that move | fixed | seconds |\n|---|---|---|---|---|")
    examples = {name: (e.network, e.inputs()) for name, e in EXAMPLES.items()}
    others = {
        name: (build, (images(side),)) for name, (build, side, _) in (NETWORKS | SLOW).items()
    }
    for name, (build, inputs) in (examples | others).items():
        model = build()
        start = time.perf_counter()
        spec = derive_spec(model, inputs, verify=False)
        seconds = time.perf_counter() - start
        count = moving = 0
        for tensor, weight in model.named_parameters():
            moves = torch.zeros((1,) * weight.ndim, dtype=torch.bool)
            for axis in spec.layouts[tensor]:
                if axis is not None:
                    moves = moves | torch.from_numpy(axis.units >= 0)
            count += weight.numel()
            moving += int(moves.expand(weight.shape).sum())
        fixed = ", ".join(n for n, _ in model.named_parameters() if n in spec.frozen)
        share = f"{int(1000 * moving / count) / 10} %"
        print(f"| {name} | {len(spec.groups)} | {share} | {fixed} | {seconds:.1f} |")
        assert spec.groups


def test_auxiliary_heads_of_googlenet_are_followed() -> None:
    model = models.googlenet(init_weights=False)
    spec = derive_spec(model, images(64), verify=False)
    assert "aux1.fc1.weight" in spec.groups
    # the head reads the channels of the trunk: four branches, put together
    layout = spec.layouts["aux1.conv.conv.weight"]
    assert layout[1] is not None
    assert len({n for n, u in spec.units.items() if set(u.flat) & set(layout[1].units.flat)}) == 4


def test_only_the_data_axis_may_differ_in_features() -> None:
    model = models.resnet18()
    spec = derive_spec(model, images(32), verify=False)
    layout = spec.features["layer1.0.conv1"]
    assert layout[1] is not None
    assert layout[0] is None
    perms = spec.random(torch.Generator().manual_seed(0))
    moved = spec.apply_to_feature("layer1.0.conv1", torch.randn(7, 64, 8, 8), perms)
    assert moved.shape == (7, 64, 8, 8)


def test_rounding_is_far_below_the_tolerance() -> None:
    torch.manual_seed(0)
    model, x = models.resnet18(), images(32, 4)
    spec = derive_spec(model, x, verify=False)
    perms = spec.random(torch.Generator().manual_seed(0))
    assert check(spec, model, x, _trial_state(model), perms) < TOLERANCE / 100
