"""Networks against published counts, against torchvision's, and by what their layers are called."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from llfc_core.features import Taps
from llfc_core.nets import NETS, Net, build
from llfc_core.nets.resnet20 import ChannelNorm, Pad

LN = {"norm": "layer", "shortcut": "conv3x3"}
NARROW = {
    "mlp": Net("mlp", (6, 5)),
    "vgg16": Net("vgg16", (4, 4, 6, 6, 8, 8, 7)),
    "resnet20": Net("resnet20", (4, 6, 9)),
    "resnet20-conv1x1": Net("resnet20", (4, 6, 9), shortcut="conv1x1"),
    "resnet20-ln": Net("resnet20", (4, 6, 9), **LN),
    "resnet50": Net("resnet50", (4, 3, 4, 2)),
}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


def count(net: Net, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(net, shape, classes).parameters())


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with statistics and affine parameters that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            if value.dim() == 1:
                value.copy_(noise + 0.5 if "var" in name or "weight" in name else noise - 0.5)
    return module.eval()


def images(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


# ---- published numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape", "classes", "expected"),
    [
        # He et al. (2016), Table 6: 0.27M. Option B has two 1×1 convolutions and norms more:
        # 16·32 + 32·64 + 2·(32 + 64) = 2,752.
        (Net("resnet20"), (3, 32, 32), 10, 269_722),
        (Net("resnet20", shortcut="conv1x1"), (3, 32, 32), 10, 272_474),
        # Git Re-Basin's shortcuts are 3×3: 9·(16·32 + 32·64) + 2·(32 + 64) beyond option A.
        (Net("resnet20", **LN), (3, 32, 32), 10, 292_954),
        # torchvision states 25,557,032 for 1000 classes; each class has 2048 weights and a bias.
        (Net("resnet50"), (3, 224, 224), 1000, 25_557_032),
        (Net("resnet50"), (3, 64, 64), 200, 25_557_032 - 800 * 2049),
        # 14,723,136 in the convolutions and norms of torchvision's vgg16_bn (whose classifier has
        # 138,365,992 − 14,723,136), then 512 → 4096 → 4096 → classes.
        (Net("vgg16"), (3, 32, 32), 10, 33_646_666),
        (Net("vgg16"), (3, 32, 32), 100, 34_015_396),
        # With the 512 units that many CIFAR versions have: 15.25M.
        (Net("vgg16", (64, 128, 256, 512, 512, 512, 512)), (3, 32, 32), 10, 15_253_578),
        (Net("mlp"), (1, 28, 28), 10, 784 * 512 + 2 * 512 * 512 + 512 * 10 + 3 * 512 + 10),
    ],
)
def test_parameter_counts(net, shape, classes, expected):
    assert count(net, shape, classes) == expected


def test_32_times_the_width_is_about_32_squared_times_the_parameters():
    wide = Net("resnet20", **LN).times(32)
    assert wide.widths == (512, 1024, 2048)
    assert count(wide) / count(Net("resnet20", **LN)) == pytest.approx(32**2, rel=0.01)


def reference_vgg(classes: int, hidden: int) -> nn.Module:
    """torchvision's VGG-16 with BatchNorm, its average pool and classifier cut to small images."""
    vgg = torchvision.models.vgg
    network = vgg.VGG(vgg.make_layers(vgg.cfgs["D"], batch_norm=True), init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(
        nn.Linear(512, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
    return network


def test_vgg_computes_what_torchvisions_does():
    module = randomised(
        build(Net("vgg16", (64, 128, 256, 512, 512, 96, 96)), (3, 32, 32), 10, seed=3)
    )
    reference = reference_vgg(10, 96)
    state, names = module.state_dict(), list(reference.state_dict())
    assert len(state) == len(names)
    # Both list a convolution's tensors, then its norm's; and layers from input to output.
    reference.load_state_dict(dict(zip(names, state.values(), strict=True)))
    reference.eval()
    for size in (32, 64):
        x = images(2, (3, size, size))
        torch.testing.assert_close(module(x), reference(x), rtol=1e-4, atol=1e-5)


def test_resnet50_is_torchvisions_to_the_initial_weights():
    module = build(Net("resnet50"), (3, 64, 64), 200, seed=5)
    torch.manual_seed(5)
    reference = torchvision.models.resnet50(num_classes=200)
    for (name, value), (other, expected) in zip(
        module.state_dict().items(), reference.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, expected), name
    x = images(2, (3, 64, 64))
    assert torch.equal(randomised(module)(x), randomised(reference)(x))


def test_resnet20_is_the_equations():
    """Written out with functions, for both norms and all shortcuts."""
    for norm, shortcut in itertools.product(("batch", "layer"), ("pad", "conv1x1", "conv3x3")):
        net = Net("resnet20", (4, 6, 9), norm=norm, shortcut=shortcut)
        module = randomised(build(net, (3, 12, 12), 5, seed=1))
        s = module.state_dict()

        def normalise(x: Tensor, name: str, norm=norm, s=s) -> Tensor:
            weight, bias = (s[f"{name}.{k}"][:, None, None] for k in ("weight", "bias"))
            if norm == "batch":
                mean, var = (s[f"{name}.running_{k}"][:, None, None] for k in ("mean", "var"))
                return (x - mean) / (var + 1e-5).sqrt() * weight + bias
            mean = x.mean(1, keepdim=True)
            var = x.var(1, keepdim=True, correction=0)
            return (x - mean) / (var + 1e-6).sqrt() * weight + bias

        x = images(3, (3, 12, 12))
        h = F.relu(normalise(F.conv2d(x, s["conv1.weight"], padding=1), "norm1"))
        for stage, i in itertools.product((1, 2, 3), range(3)):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = F.conv2d(h, s[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(normalise(y, f"{name}.norm1"))
            y = F.conv2d(y, s[f"{name}.conv2.weight"], padding=1)
            y = normalise(y, f"{name}.norm2")
            if stride == 2 and shortcut == "pad":
                small = h[:, :, ::2, ::2]
                h, before = torch.zeros_like(y), (y.shape[1] - small.shape[1]) // 2
                h[:, before : before + small.shape[1]] = small
            elif stride == 2:
                weight = s[f"{name}.shortcut.0.weight"]
                assert weight.shape[-1] == int(shortcut[-1])
                h = F.conv2d(h, weight, stride=2, padding=weight.shape[-1] // 2)
                h = normalise(h, f"{name}.shortcut.1")
            h = F.relu(y + h)
        expected = h.mean((2, 3)) @ s["fc.weight"].T + s["fc.bias"]
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_channel_norm_keeps_the_memory_format():
    norm = ChannelNorm(6)
    x = images(2, (6, 5, 5))
    assert norm(x).is_contiguous()
    last = x.to(memory_format=torch.channels_last)
    assert norm(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(norm(last), norm(x))
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(2, 5, 5), rtol=0, atol=1e-6)


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_every_input_size_gives_logits_and_gradients(name, shape):
    module = build(NARROW[name], shape, 7)
    logits = module(images(3, shape))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for parameter, value in module.named_parameters():
        assert value.grad is not None, parameter
        assert torch.isfinite(value.grad).all()


@pytest.mark.parametrize("size", [1, 2, 5, 28, 31, 32])
def test_vgg_pools_until_one_pixel_is_left(size):
    module = build(NARROW["vgg16"], (1, size, size), 3).eval()
    maps = {}
    Taps(module, images(2, (1, size, size))).run(
        images(2, (1, size, size)), lambda at: maps.__setitem__(at.name, at.post.shape[2:])
    )
    for stage, after in enumerate(("bn1_1", "bn2_1", "bn3_1", "bn4_1", "bn5_1")):
        assert maps[after] == (max(1, size >> stage),) * 2


@pytest.mark.parametrize("name", [n for n in NARROW if n != "mlp"])
def test_shrunk_inputs_are_averaged_over_squares(name):
    net = dataclasses.replace(NARROW[name], shrink=2)
    shrunk, plain = (randomised(build(n, (1, 28, 28), 3, seed=2)) for n in (net, NARROW[name]))
    x = images(4, (1, 28, 28))
    small = torch.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
    torch.testing.assert_close(shrunk(x), plain(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NARROW)
def test_an_image_does_not_see_its_batch_in_eval_mode(name):
    module = randomised(build(NARROW[name], (1, 28, 28), 3))
    x = images(5, (1, 28, 28))
    torch.testing.assert_close(module(x)[2:3], module(x[2:3]), rtol=1e-4, atol=1e-5)


# ---- seeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW)
def test_the_seed_decides_the_initial_weights(name):
    def state(seed: int) -> dict[str, Tensor]:
        torch.rand(3)  # whatever was drawn before
        return build(NARROW[name], (1, 28, 28), 3, seed).state_dict()

    first, again, other = state(0), state(0), state(1)
    assert all(torch.equal(first[k], again[k]) for k in first)
    drawn = [k for k in first if first[k].is_floating_point() and first[k].unique().numel() > 1]
    assert drawn
    assert not any(torch.equal(first[k], other[k]) for k in drawn)


@pytest.mark.parametrize("name", [n for n in NARROW if n != "mlp"])
def test_an_untrained_network_tells_images_apart(name):
    """Signals neither vanish nor explode on the way, in a network as narrow as the quick ones."""
    module = build(NARROW[name].times(2), (1, 28, 28), 10)
    with torch.no_grad():
        logits = module(images(64, (1, 28, 28)))  # in training mode
    assert 1e-3 < float(logits.std(0).mean()) < 10


# ---- names --------------------------------------------------------------------------------------


def names(net: Net, shape: tuple[int, ...] = (3, 32, 32)) -> tuple[str, ...]:
    return Taps(build(net, shape, 10), images(2, shape)).names


def test_vggs_layers_are_the_papers():
    """Table 2: conv 1-1 … 5-3, FC 1 and 2; the last is the output."""
    stitched = [f"{s}_{i}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    assert names(NARROW["vgg16"]) == (*(f"bn{n}" for n in stitched), "fc1", "fc2", "fc3")
    modules = dict(build(NARROW["vgg16"], (3, 32, 32), 10).named_modules())
    assert all(isinstance(modules[f"conv{n}"], nn.Conv2d) for n in stitched)


@pytest.mark.parametrize("name", ["resnet20", "resnet20-conv1x1", "resnet20-ln"])
def test_resnet20s_blocks_are_the_papers(name):
    """Table 3: blocks 1-1 … 3-3, each after its last activation."""
    blocks = [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    expected = [site for b in blocks for site in (f"{b}.norm1", b)]
    assert names(NARROW[name]) == ("norm1", *expected, "fc")


def test_resnet50s_blocks_are_named_too():
    blocks = [f"layer{s}.{i}" for s, n in enumerate((3, 4, 6, 3), 1) for i in range(n)]
    expected = [site for b in blocks for site in (f"{b}.bn1", f"{b}.bn2", b)]
    assert names(NARROW["resnet50"], (3, 64, 64)) == ("bn1", *expected, "fc")


# ---- what a Net says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Net("mlp"), Net("mlp", (512, 512, 512), None, None, 1)),
        (Net("mlp", [8, 9]), Net("mlp", (8, 9))),  # type: ignore[arg-type]
        (Net("vgg16"), Net("vgg16", (64, 128, 256, 512, 512, 4096, 4096), norm="batch")),
        (Net("resnet20"), Net("resnet20", (16, 32, 64), "batch", "pad")),
        (Net("resnet50"), Net("resnet50", (64, 128, 256, 512), "batch", "conv1x1")),
        (Net("resnet20").times(0.5), Net("resnet20", (8, 16, 32))),
    ],
)
def test_what_is_left_out_is_the_default(a, b):
    assert a == b
    assert hash(a) == hash(b)
    assert dataclasses.asdict(a) == dataclasses.asdict(b)
    assert Net(**json.loads(json.dumps(dataclasses.asdict(a)))) == a


def test_times_rounds_and_leaves_one_unit():
    assert Net("mlp", (10, 3, 1)).times(0.25).widths == (2, 1, 1)
    assert Net("resnet20", shrink=2, **LN).times(2) == Net(
        "resnet20", (32, 64, 128), shrink=2, **LN
    )


def test_every_choice_is_another_network_and_another_key():
    nets = [
        Net("resnet20"),
        Net("resnet20", (16, 32, 65)),
        Net("resnet20", norm="layer"),
        Net("resnet20", shortcut="conv1x1"),
        Net("resnet20", shortcut="conv3x3"),
        Net("resnet20", shrink=2),
        *map(Net, NETS),
    ]
    assert len({json.dumps(dataclasses.asdict(n)) for n in nets}) == len(nets) - 1
    assert len(set(nets)) == len(nets) - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Net("vgg19"), "no network named 'vgg19'; there are mlp, vgg16"),
        (lambda: Net("mlp", (0,)), "positive"),
        (lambda: Net("mlp", (8, -1)), "positive"),
        (lambda: Net("mlp", (8.0,)), "positive integers"),  # type: ignore[arg-type]
        (lambda: Net("mlp", (True,)), "positive integers"),
        (lambda: Net("vgg16", (8, 16)), "vgg16 has 7 widths, by default .*; got 2"),
        (lambda: Net("resnet20", (8, 16, 32, 64)), "resnet20 has 3 widths"),
        (lambda: Net("resnet50", (8, 16, 32)), "resnet50 has 4 widths"),
        (lambda: Net("mlp", norm="batch"), "mlp has no norm"),
        (lambda: Net("vgg16", norm="layer"), "vgg16 has 'batch', not norm='layer'"),
        (lambda: Net("vgg16", shortcut="pad"), "vgg16 has no shortcut"),
        (lambda: Net("resnet20", shortcut="A"), "'pad' or 'conv1x1' or 'conv3x3'"),
        (lambda: Net("resnet50", shortcut="pad"), "resnet50 has 'conv1x1'"),
        (lambda: Net("resnet20", shrink=0), "shrink"),
        (lambda: Net("resnet20", shrink=1.5), "shrink"),  # type: ignore[arg-type]
        (lambda: Net("mlp", shrink=2), "mlp does not shrink"),
        (lambda: build(Net("resnet20", (16, 8, 8)), (3, 32, 32), 10), "let widths grow"),
    ],
)
def test_what_makes_no_network_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pad_puts_zeros_on_both_sides():
    x = images(1, (3, 4, 4))
    y = Pad(3, 6, 2)(x)
    assert y.shape == (1, 6, 2, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, :1].any()
    assert not y[:, 4:].any()


@pytest.mark.parametrize("name", NARROW)
def test_networks_are_built_on_the_meta_device_too(name):
    with torch.device("meta"):
        module = build(NARROW[name], (1, 28, 28), 3)
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
