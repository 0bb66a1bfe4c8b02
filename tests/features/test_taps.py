"""Taps finds every layer, however it is written, and leaves the network as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from llfc_core.features import Layer, Taps, flatten


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _in_place(h: Tensor) -> Tensor:
    h.relu_()  # a statement: the result is not used
    return h


class MLP(nn.Module):
    def __init__(self, relu: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def sequential(mlp: MLP, inplace: bool = False) -> nn.Sequential:
    relu = nn.ReLU(inplace)
    return nn.Sequential(mlp.fc1, relu, mlp.fc2, relu, mlp.fc3)


def features(
    taps: Taps, x: Tensor, state: dict[str, Tensor] | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor, str]], Tensor]:
    seen: dict[str, tuple[Tensor, Tensor, str]] = {}

    def keep(layer: Layer) -> None:
        assert layer.name not in seen
        seen[layer.name] = (layer.pre.clone(), layer.post.clone(), layer.kind)

    with torch.no_grad():
        output = taps.run(x, keep, state)
    assert tuple(seen) == taps.names
    return seen, output


def other_state(module: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """Other weights and (positive) buffers for the module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) - 0.4 * ("running" not in name)
        if value.is_floating_point()
        else value.clone()
        for name, value in module.state_dict().items()
    }


def with_state(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    return net


def n_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


# -- what is found, and its values


@pytest.mark.parametrize(
    "relu", [F.relu, torch.relu, Tensor.relu, torch.relu_, _in_place, nn.ReLU(), nn.ReLU(True)]
)
def test_an_mlp_has_the_same_layers_however_it_is_written(
    relu: Callable[[Tensor], Tensor],
) -> None:
    mlp, x = MLP(relu), torch.randn(20, 4)
    mlp.load_state_dict(other_state(mlp))
    seen, output = features(Taps(mlp, x), x)

    pre1 = x @ mlp.fc1.weight.T + mlp.fc1.bias
    pre2 = pre1.clamp(min=0) @ mlp.fc2.weight.T + mlp.fc2.bias
    logits = pre2.clamp(min=0) @ mlp.fc3.weight.T + mlp.fc3.bias
    assert [(name, kind) for name, (_, _, kind) in seen.items()] == [
        ("fc1", "activation"),
        ("fc2", "activation"),
        ("fc3", "output"),
    ]
    assert (pre1 < 0).any()
    assert (pre2 < 0).any()
    assert (logits < 0).any()
    for name, pre, post in [
        ("fc1", pre1, pre1.clamp(min=0)),
        ("fc2", pre2, pre2.clamp(min=0)),
        ("fc3", logits, logits),
    ]:
        torch.testing.assert_close(seen[name][0], pre)
        torch.testing.assert_close(seen[name][1], post)
    torch.testing.assert_close(output, logits)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_sequential_mlp_has_the_same_features_under_its_own_names(inplace: bool) -> None:
    mlp, x = MLP(), torch.randn(5, 4)
    expected, _ = features(Taps(mlp, x), x)
    seen, _ = features(Taps(sequential(mlp, inplace), x), x)
    assert list(seen) == ["0", "2", "4"]
    for ours, theirs in zip(seen.values(), expected.values(), strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]


@pytest.mark.parametrize(
    ("call", "oracle"),
    [
        (nn.ReLU6(), lambda h: h.clamp(0, 6)),
        (F.relu6, lambda h: h.clamp(0, 6)),
        (nn.LeakyReLU(0.1, inplace=True), lambda h: torch.where(h > 0, h, 0.1 * h)),
        (nn.GELU(), lambda h: h * (1 + torch.erf(h / 2**0.5)) / 2),
        (nn.SiLU(inplace=True), lambda h: h / (1 + torch.exp(-h))),
        (nn.ELU(inplace=True), lambda h: torch.where(h > 0, h, torch.expm1(h))),
        (nn.Hardswish(), lambda h: h * (h + 3).clamp(0, 6) / 6),
        (nn.Mish(), lambda h: h * torch.tanh(torch.log1p(torch.exp(h)))),
        (nn.PReLU(), lambda h: torch.where(h > 0, h, 0.25 * h)),
        (nn.Threshold(0.1, -7.0, True), lambda h: torch.where(h > 0.1, h, -7.0)),
        (nn.LogSigmoid(), lambda h: -torch.log1p(torch.exp(-h))),
        (F.sigmoid, lambda h: 1 / (1 + torch.exp(-h))),
        (torch.tanh_, lambda h: (torch.exp(2 * h) - 1) / (torch.exp(2 * h) + 1)),
        (lambda h: torch.relu(input=h), lambda h: h.clamp(min=0)),
        (lambda h: F.relu(h, True), lambda h: h.clamp(min=0)),
        (lambda h: torch.sigmoid(h, out=h), lambda h: 1 / (1 + torch.exp(-h))),
    ],
)
def test_other_activations_are_sites_counted_once(
    call: Callable[[Tensor], Tensor], oracle: Callable[[Tensor], Tensor]
) -> None:
    mlp, x = MLP(call), 3 * torch.randn(50, 4)
    seen, _ = features(Taps(mlp, x), x)
    assert list(seen) == ["fc1", "fc2", "fc3"]
    pre, post, _ = seen["fc1"]
    torch.testing.assert_close(pre, mlp.fc1(x))
    torch.testing.assert_close(post, oracle(mlp.fc1(x)))


def resnet() -> nn.Sequential:
    """A small one of torchvision's blocks: sites 1, 3.bn1, 3, 4.bn1, 4, output 7."""
    shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.BatchNorm2d(8))
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(BasicBlock(4, 4), BasicBlock(4, 8, 2, shortcut)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


RESNET18 = ["bn1"] + [
    f"layer{stage}.{block}{bn}" for stage in (1, 2, 3, 4) for block in (0, 1) for bn in (".bn1", "")
]


def test_resnet18_has_its_17_relus_and_the_output() -> None:
    with torch.device("meta"):
        net = torchvision.models.resnet18(weights=None)
    net.to_empty(device="cpu").load_state_dict(other_state(net))
    x = torch.randn(2, 3, 32, 32)
    taps = Taps(net, x)
    assert taps.names == (*RESNET18, "fc")
    seen, output = features(taps, x)
    for name in RESNET18:
        pre, post, kind = seen[name]
        assert kind == "activation"
        assert torch.equal(post, pre.clamp(min=0)), name
        assert not torch.equal(pre, post), name  # a pre cloned too late would be its own post

    with torch.no_grad():
        net.eval()
        assert torch.equal(output, net(x))
        assert torch.equal(seen["fc"][1], output)
        block, h = net.layer2[0], seen["layer1.1"][1]
        inner = block.bn1(block.conv1(h))
        total = block.bn2(block.conv2(inner.clamp(min=0))) + block.downsample(h)
    torch.testing.assert_close(seen["layer2.0.bn1"][0], inner)
    torch.testing.assert_close(seen["layer2.0"][0], total)


def test_vgg11_bn_is_named_after_its_batch_norms_and_linear_layers() -> None:
    with torch.device("meta"):  # without the initial weights of its 100 million
        net = torchvision.models.vgg11_bn(weights=None)
        head = (nn.Linear(512 * 49, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 5))
        net.classifier = nn.Sequential(*head)
    net.to_empty(device="cpu").load_state_dict(other_state(net))
    x = torch.randn(2, 3, 32, 32)
    bns = [f"features.{i}" for i, part in enumerate(net.features) if "Norm" in str(part)]
    seen, output = features(Taps(net, x), x)
    assert list(seen) == [*bns, "classifier.0", "classifier.3"]
    assert len(bns) == 8
    for name, (pre, post, kind) in seen.items():
        if kind == "activation":
            assert torch.equal(post, pre.clamp(min=0)), name
    assert torch.equal(output, net.eval()(x))


def test_in_place_networks_compute_what_they_compute_untapped() -> None:
    mlp, x = MLP(_in_place), torch.randn(5, 4)
    taps = Taps(mlp, x)
    assert torch.equal(features(taps, x)[1], mlp(x))
    assert torch.equal(features(taps, x, other_state(mlp))[1], with_state(mlp, other_state(mlp))(x))


def test_attention_does_not_hide_the_activation_of_its_block() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 3, 8)
    seen, output = features(Taps(net, x), x)
    assert list(seen) == ["layers.0.linear1", "layers.1.linear1", "layers.1.norm2"]
    torch.testing.assert_close(output, net.eval()(x))
    with pytest.raises(TypeError, match=r"self_attn.*tuple"):
        Taps(net, x, ["layers.0.self_attn"])


# -- names


class Named(nn.Module):
    """Each line of forward is a case of the naming rule."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.part = nn.Sequential(nn.Linear(3, 3), nn.Identity())
        self.act = nn.ReLU()
        self.block = Block()
        self.body = nn.Sequential(Outer(), Leaf())

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc(x))
        x = self.act(self.fc(x))  # shared weights
        x = torch.tanh(torch.tanh(x))  # acts on an activation's output, in no submodule
        x = torch.relu(self.part(x))  # returned by part.0, part.1 and part: the first
        x = self.act(x + 1)  # a functional sum in the root, by a module
        return self.block(self.body(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.swish = Swish()
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(x)
        h += x  # the very object that bn returned, but no longer its output
        return self.prelu(self.swish(h) + x)


class Outer(nn.Module):
    """Without weights, but more than an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x / 2)


class Leaf(nn.Module):
    """Without parts, but more than an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.weight)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


def test_the_naming_rule() -> None:
    taps = Taps(Named(), torch.randn(5, 3))
    assert taps.names == (
        *("fc", "fc#2", "tanh", "tanh#2", "part.0", "act"),
        *("body.0", "body.1", "block", "block#2"),
    )  # the output is block#2's: one layer, not two


def test_an_output_of_no_submodule_is_called_output() -> None:
    class Scaled(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert Taps(Scaled(), torch.randn(5, 4)).names == ("fc1", "fc2", "output")


def test_an_output_written_to_after_its_module_is_called_output() -> None:
    class Shifted(MLP):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            out += 1
            return out

    assert Taps(Shifted(), torch.randn(5, 4)).names == ("fc1", "fc2", "output")


def test_names_do_not_come_from_a_recycled_address() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                self.fc(x)  # dies at once; the next tensor tends to get its address
                x = F.relu(x * 1)
            return x

    assert Taps(Short(), torch.randn(5, 4)).names == (
        "relu",
        *(f"relu#{i}" for i in range(2, 21)),
    )


def test_submodules_can_be_asked_for() -> None:
    net, x = Named(), torch.randn(5, 3)
    taps = Taps(net, x, ["block", "part", "fc", "block.bn", "part"])
    seen, _ = features(taps, x)
    assert [(name, kind) for name, (_, _, kind) in seen.items()] == [
        ("fc", "activation"),
        ("part", "module"),
        ("block.bn", "module"),
        ("block", "activation"),
    ]
    everything, _ = features(Taps(net, x), x)
    assert torch.equal(seen["part"][0], everything["part.0"][0])
    assert torch.equal(seen["part"][0], seen["part"][1])
    assert torch.equal(seen["block"][1], everything["block"][1])
    with torch.no_grad():  # not what `h += x` made of it
        expected = net.block.bn.eval()(everything["body.1"][1])
    torch.testing.assert_close(seen["block.bn"][1], expected)


def test_a_module_called_twice_has_two_outputs() -> None:
    mlp = MLP(nn.ReLU())
    taps = Taps(mlp, torch.randn(5, 4), ["relu#2", "relu"])
    x = torch.randn(5, 4)
    seen, _ = features(taps, x)
    everything, _ = features(Taps(mlp, x), x)
    assert taps.names == ("relu", "relu#2")
    assert torch.equal(seen["relu#2"][1], everything["fc2"][1])


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"'fc22'.*did you mean 'fc2'.*fc1, fc2, fc3"):
        Taps(MLP(), x, ["fc1", "fc22"])
    with pytest.raises(ValueError, match=r"'fc1#2'"):
        Taps(MLP(), x, ["fc1#2"])
    with pytest.raises(TypeError, match="string"):
        Taps(MLP(), x, "fc1")


# -- what a run leaves behind: nothing


class Stop(Exception):
    pass


def _raise(layer: Layer) -> None:
    raise Stop


@pytest.mark.parametrize("layer", ["1", "3", "4.downsample", "7"])
def test_a_run_leaves_no_trace_even_when_it_fails(layer: str) -> None:
    net = resnet().train()
    net[3].eval()  # flags of its own
    net[7].register_forward_hook(lambda module, args, output: None)
    flags = [part.training for part in net.modules()]
    tensors = {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)

    taps = Taps(net, x, [layer])
    taps.run(x, lambda layer: None, other_state(net))
    for state in (None, other_state(net)):
        with pytest.raises(Stop):
            taps.run(x, _raise, state)

    assert n_hooks(net) == 1
    assert [part.training for part in net.modules()] == flags
    assert tensors == {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.overrides._get_current_function_mode_stack()


def test_the_input_is_not_written_to() -> None:
    class Centred(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1))

    x = torch.randn(5, 4)
    before = x.clone()
    net = Centred()
    taps = Taps(net, x)
    stitched = taps.stitch(x, "fc1", None, None)
    assert torch.equal(x, before)
    assert torch.equal(stitched, net(before))


def test_runs_nest_and_the_callback_s_own_activations_are_not_layers() -> None:
    net, x = Named(), torch.randn(5, 3)
    every = Taps(net, x)
    taps = Taps(net, x, [*every.names, "part"])
    expected, _ = features(taps, x)
    done: list[str] = []

    def on_layer(layer: Layer) -> None:
        F.relu(layer.pre)  # the tensor that the next site may act on
        net.act(layer.pre)
        features(every, x)
        assert torch.equal(layer.post, expected[layer.name][1])
        done.append(layer.name)  # last: in order only if no call came within another

    taps.run(x, on_layer)
    assert tuple(done) == taps.names


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_runs_in_every_grad_mode(mode: Callable[[], torch.autograd.grad_mode.no_grad]) -> None:
    net = Named()
    x = torch.randn(5, 3)
    names = Taps(net, x).names
    with mode():
        y = torch.randn(5, 3)
        taps = Taps(net, y)
        assert taps.names == names
        state = {name: value.clone() for name, value in net.state_dict().items()}
        assert torch.equal(taps.run(y, lambda layer: None, state), net.eval()(y))
        assert torch.equal(taps.stitch(y, "fc", state, None), net(y))
        assert taps.run(y, lambda layer: None).requires_grad == torch.is_grad_enabled()


def test_gradients_pass() -> None:
    net, x = MLP(_in_place), torch.randn(5, 4)
    state = {name: value.clone().requires_grad_() for name, value in net.state_dict().items()}
    Taps(net, x).run(x, lambda layer: None, state).sum().backward()
    net(x).sum().backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(state[name].grad, value.grad)


# -- other weights


def test_state_runs_the_network_with_other_weights() -> None:
    net, x = Named(), torch.randn(5, 3)
    state = other_state(net)
    taps = Taps(net, x)
    seen, output = features(taps, x, state)
    moved = with_state(net, state)
    expected, _ = features(Taps(moved, x), x)
    assert torch.equal(output, moved.eval()(x))
    assert not torch.equal(output, net.eval()(x))
    assert all(torch.equal(seen[name][0], expected[name][0]) for name in taps.names)


def test_a_submodule_with_two_names_gets_its_weights_back() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.again = self.first  # one module
            self.tied = nn.Linear(3, 3)
            self.tied.weight = self.first.weight  # one parameter

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(torch.relu(self.again(torch.relu(self.first(x)))))

    net, x = Shared(), torch.randn(5, 3)
    own = net.first.weight
    state = {name: value.detach().clone() + 1 for name, value in net.state_dict().items()}
    taps = Taps(net, x)
    assert taps.names == ("first", "first#2", "tied")
    output = taps.run(x, lambda layer: None, state)
    assert net.first.weight is net.again.weight is net.tied.weight is own
    assert torch.equal(output, with_state(net, state)(x))


def test_a_state_of_other_names_is_refused() -> None:
    net, x = Named(), torch.randn(5, 3)
    taps = Taps(net, x)
    params = dict(net.named_parameters())  # no statistics: would mix two networks silently
    with pytest.raises(ValueError, match=r"missing .*running_mean"):
        taps.run(x, lambda layer: None, params)
    with pytest.raises(ValueError, match=r"unknown \['head'\]"):
        taps.run(x, lambda layer: None, {**net.state_dict(), "head": torch.ones(1)})


# -- replacement and stitching


@pytest.mark.parametrize("relu", [F.relu, _in_place, nn.ReLU()])
@pytest.mark.parametrize("layer", ["fc1", "fc2", "fc3"])
def test_what_on_layer_returns_takes_the_place_of_post(
    relu: Callable[[Tensor], Tensor], layer: str
) -> None:
    net, x = MLP(relu), torch.randn(5, 4)
    taps = Taps(net, x)
    seen, _ = features(taps, x)
    other = torch.randn_like(seen[layer][1])
    later: dict[str, Tensor] = {}

    def on_layer(at: Layer) -> Tensor | None:
        later[at.name] = at.pre.clone()
        return other.clone() if at.name == layer else None

    output = taps.run(x, on_layer)
    after = {"fc1": [net.fc2, net.fc3], "fc2": [net.fc3], "fc3": []}[layer]
    expected = other
    for i, part in enumerate(after):
        expected = part(expected if i == 0 else expected.clamp(min=0))
    torch.testing.assert_close(output, expected)
    assert torch.equal(later[layer], seen[layer][0])


def test_replacement_of_a_submodule_s_output_keeps_the_names() -> None:
    net, x = Named(), torch.randn(5, 3)
    taps = Taps(net, x, ["part", "part.0", "block"])
    pre = torch.randn(5, 3)
    seen: dict[str, Tensor] = {}

    def on_layer(at: Layer) -> Tensor | None:
        seen[at.name] = at.pre.clone()
        return pre if at.name == "part" else None

    taps.run(x, on_layer)
    assert list(seen) == ["part", "part.0", "block"]
    assert torch.equal(seen["part.0"], pre)


def test_a_replacement_must_be_a_tensor_of_the_same_shape() -> None:
    taps = Taps(MLP(), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"'fc1': \(1, 6\) cannot replace \(5, 6\)"):
        taps.run(torch.randn(5, 4), lambda layer: layer.post[:1])
    with pytest.raises(TypeError, match="float"):
        taps.run(torch.randn(5, 4), lambda layer: 1.0)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("relu", [F.relu, _in_place])
def test_stitching_an_mlp_is_running_a_up_to_the_layer_and_b_from_there(
    relu: Callable[[Tensor], Tensor],
) -> None:
    net, x = MLP(relu), torch.randn(5, 4)
    a, b = other_state(net, 1), other_state(net, 2)
    taps = Taps(net, x)

    def by_hand(*states: dict[str, Tensor]) -> Tensor:
        h = x
        for i, state in enumerate(states, 1):
            h = h.clamp(min=0) if i > 1 else h
            h = h @ state[f"fc{i}.weight"].T + state[f"fc{i}.bias"]
        return h

    torch.testing.assert_close(taps.stitch(x, "fc1", a, b), by_hand(a, b, b))
    torch.testing.assert_close(taps.stitch(x, "fc2", a, b), by_hand(a, a, b))
    assert not torch.allclose(by_hand(a, b, b), by_hand(a, a, b))
    assert torch.equal(taps.stitch(x, "fc3", a, b), taps.run(x, lambda layer: None, a))


def test_stitching_hands_over_the_layer_before_the_network_writes_into_it() -> None:
    class Writes(MLP):
        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.fc1(x))
            h += 1
            return self.fc3(h)

    net, x = Writes(), torch.randn(5, 4)
    taps = Taps(net, x)
    runs: list[None] = []
    net.fc1.register_forward_hook(lambda module, args, output: runs.append(None))
    for expected in (3, 2):  # the first time also to see that no input goes round fc1
        runs.clear()
        stitched = taps.stitch(x, "fc1", None, None)
        assert len(runs) == expected
        assert torch.equal(stitched, net(x))


def test_the_trial_of_a_stitch_leaves_nothing_behind() -> None:
    """A network that writes to a buffer in eval mode, and reads it the next time."""

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("last", torch.zeros(()))
            self.last: Tensor

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(self.up(x).relu()) + self.last
            self.last.copy_(x.mean())
            return y

    net, x = Remembers(), torch.randn(4, 6)
    taps = Taps(net, x)
    for state in (None, other_state(net, 1)):
        assert bool(taps.stitch(x, "up", state, state).isfinite().all())
        assert float((net.state_dict() if state is None else state)["last"]) == float(x.mean())


def test_stitching_a_resnet() -> None:
    net, x = resnet(), torch.randn(2, 3, 8, 8)
    a, b = other_state(net, 1), other_state(net, 2)
    taps = Taps(net, x)
    whole = taps.run(x, lambda layer: None, a)
    for layer in ("1", "3", "4", "7"):
        assert torch.equal(taps.stitch(x, layer, a, a), whole)
    assert torch.equal(taps.stitch(x, "7", a, b), whole)

    seen, _ = features(taps, x, a)
    upper = with_state(net, b).eval()
    torch.testing.assert_close(taps.stitch(x, "3", a, b), upper[4:](seen["3"][1]))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'3.bn1': the input also goes round it"):
            taps.stitch(x, "3.bn1", a, b)
    with pytest.raises(ValueError, match=r"did you mean '3.bn1'"):
        taps.stitch(x, "3.bn2", a, b)


# -- networks that cannot be tapped


class Fickle(nn.Module):
    """Goes another way for positive inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return torch.relu(self.b(h)) + 0 if x.sum() > 0 else h + 0


@pytest.mark.parametrize("sign", [1, -1])
def test_control_flow_that_depends_on_data_is_found_out(sign: int) -> None:
    taps = Taps(Fickle(), sign * torch.ones(2, 3))
    assert len(taps.names) == (3 if sign > 0 else 2)
    taps.run(sign * torch.ones(2, 3), lambda layer: None)
    if sign > 0:
        with pytest.raises(RuntimeError, match=r"b was due, output came"):
            taps.run(-torch.ones(2, 3), lambda layer: None)
        short = Taps(Fickle(), torch.ones(2, 3), ["b"])
        with pytest.raises(RuntimeError, match=r"b was due, nothing came"):
            short.run(-torch.ones(2, 3), lambda layer: None)
    else:  # the further site is not among the tapped ones
        seen: list[str] = []
        taps.run(torch.ones(2, 3), lambda layer: seen.append(layer.name))
        assert seen == ["a", "output"]


def test_a_network_that_changes_from_run_to_run_is_refused() -> None:
    class Alternating(Fickle):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x if self.calls % 2 else -x)

    with pytest.raises(RuntimeError, match="differ"):
        Taps(Alternating(), torch.ones(2, 3))


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    class Two(MLP):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return x, super().forward(x)

    net = Two()
    with pytest.raises(TypeError, match="tuple"):
        Taps(net, torch.randn(5, 4))
    assert n_hooks(net) == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_networks_are_refused() -> None:
    x = torch.randn(5, 4)
    with pytest.raises(TypeError, match="submodule '1' is compiled"):
        Taps(nn.Sequential(nn.Linear(4, 4), torch.jit.trace(nn.ReLU(), x)), x)
    in_place = MLP()
    in_place.compile(backend="eager")
    with pytest.raises(TypeError, match="the module is compiled"):
        Taps(in_place, x)


# -- flatten


def test_flatten_makes_one_row_per_data_point() -> None:
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(flatten(x), torch.arange(24.0).reshape(2, 12))
    assert flatten(x[:0]).shape == (0, 12)
    assert flatten(torch.ones(5)).shape == (5, 1)
    assert flatten(torch.ones(5, 3)).shape == (5, 3)
    with pytest.raises(ValueError, match="data axis"):
        flatten(torch.tensor(1.0))
