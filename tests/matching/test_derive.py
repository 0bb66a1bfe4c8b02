"""What `derive_spec` finds in small networks, by hand; that it is right, and that it is all."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.features import Taps
from llfc_core.matching.check import TOLERANCE, SpecError, check
from llfc_core.matching.derive import _trial_state, derive_spec
from llfc_core.matching.spec import Axis, PermutationSpec

from . import networks
from .networks import EXAMPLES, Example

examples = pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))


def derived(example: Example) -> tuple[nn.Module, PermutationSpec]:
    """A network and its spec: the bare derivation, which no check has mended."""
    model = example.network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model, derive_spec(model, example.inputs(), verify=False)


def _doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def output(model: nn.Module, state: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """In float64 and eval mode."""
    model.double().eval()
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            model.load_state_dict(state)
            return model(*doubled)
    finally:
        torch.set_default_dtype(default)


# ---- the groups, and that they are right --------------------------------------------------------


@examples
def test_groups_are_those_found_by_hand(example: Example) -> None:
    _, spec = derived(example)
    assert [group.shape for group in spec.groups.values()] == example.groups


@examples
def test_random_permutations_preserve_the_function(example: Example) -> None:
    model, spec = derived(example)
    generator = torch.Generator().manual_seed(3)
    for seed in range(2):
        gap = check(
            spec,
            model,
            example.inputs(),
            _trial_state(model),
            spec.random(generator),
            seed=seed,
        )
        assert gap < TOLERANCE


# Weights that make no difference at all: added to all keys alike, or taken off by the next norm.
IDLE = {"k.bias", "norm_k.bias", "whole.bias"}


@examples
def test_permuting_one_axis_alone_does_not(example: Example) -> None:
    """Else the test above could not fail: each axis of each tensor matters."""
    model, spec = derived(example)
    state = _doubled(_trial_state(model))
    perms = spec.random(torch.Generator().manual_seed(4))
    inputs = example.inputs()
    before = output(model, state, inputs)
    for i, (name, layout) in enumerate(spec.layouts.items()):
        if len(spec.layouts) > 100 and i % 3:
            continue  # a third of a deep network's tensors says as much
        for k, axis in enumerate(layout):
            if axis is None or axis.units.size > axis.units.shape[k] or name in IDLE:
                continue
            alone: list[Axis | None] = [None] * len(layout)
            alone[k] = axis
            only = replace(spec, layouts=spec.layouts | {name: tuple(alone)})
            moved = only.permuted({name: state[name]}, perms)
            if torch.equal(moved[name], state[name]):
                continue  # this draw moves none of it
            # tied weights are one tensor under two names
            same = {other: moved[name] for other in state if _tied(model, other, name)}
            after = output(model, state | same, inputs)
            assert not torch.allclose(before, after, rtol=1e-9, atol=1e-12), (name, k)


def _tied(model: nn.Module, one: str, other: str) -> bool:
    tensors = model.state_dict(keep_vars=True)
    return tensors[one] is tensors[other]


@examples
def test_features_move_as_their_layouts_say(example: Example) -> None:
    model, spec = derived(example)
    (x,) = example.inputs()
    state = _doubled(_trial_state(model))
    moved = spec.apply(state, perms := spec.random(torch.Generator().manual_seed(5)))
    model.double()
    x = x.double() if x.is_floating_point() else x
    torch.set_default_dtype(torch.float64)
    try:
        try:
            taps = Taps(model, x)
        except RuntimeError:
            pytest.skip("its layers cannot be tapped")
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            taps.run(x, lambda at: kept.__setitem__(at.name, at.post.clone()), state)
            found = 0
            after: dict[str, Tensor] = {}
            taps.run(x, lambda at: after.__setitem__(at.name, at.post.clone()), moved)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, feature in kept.items():
        if name in spec.features:
            found += 1
            expected = spec.apply_to_feature(name, feature, perms)
            torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-9)
    assert found


@pytest.mark.parametrize("name", ["vgg", "resnet20", "unet", "mlp", "gpt", "vit"])
def test_every_site_has_a_layout_and_the_hidden_ones_units(name: str) -> None:
    model, spec = derived(EXAMPLES[name])
    names = Taps(model, EXAMPLES[name].inputs()[0]).names
    assert set(names) <= set(spec.features)
    for site in names[:-1]:
        assert any(axis is not None for axis in spec.features[site])


@pytest.mark.parametrize("name", ["vgg", "vit", "unet", "grouped"])
def test_leaf_modules_have_layouts(name: str) -> None:
    model, spec = derived(EXAMPLES[name])
    x = EXAMPLES[name].inputs()[0].double()
    state = _doubled(_trial_state(model))
    moved = spec.apply(state, perms := spec.random(torch.Generator().manual_seed(5)))
    names = [n for n, part in model.named_modules() if n and not list(part.children())]
    model.double().eval()
    sites = set(Taps(model, x).names)
    outputs: dict[str, list[Tensor]] = {}
    for n in names:
        model.get_submodule(n).register_forward_hook(
            lambda m, args, out, n=n: outputs.setdefault(n, []).append(out.clone())
        )
    for weights in (state, moved):
        model.load_state_dict(weights)
        model(x)
    seen = 0
    for n in set(spec.features) - sites & set(outputs):
        if len(outputs.get(n, [])) == 2:
            expected = spec.apply_to_feature(n, outputs[n][0], perms)
            torch.testing.assert_close(outputs[n][1], expected, rtol=1e-9, atol=1e-9)
            seen += not torch.allclose(*outputs[n])
    assert seen


def test_deriving_twice_gives_the_same() -> None:
    for name in ("grouped", "gpt", "resnet20 A"):
        (_, a), (_, b) = derived(EXAMPLES[name]), derived(EXAMPLES[name])
        assert a.groups == b.groups
        for tensor, layout in a.layouts.items():
            for one, other in zip(layout, b.layouts[tensor]):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    assert (one.units == other.units).all()
                    assert (one.positions == other.positions).all()


# ---- that it is all -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "axes"),
    [
        (networks.PartlyPooled, [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]),
        (networks.PartlyActivated, [("up.weight", 0), ("up.bias", 0), None]),
        (networks.Indexed, [("up.weight", 0), ("up.bias", 0), None]),
        (lambda: networks.mlp((5, 6, 3)), [("1.weight", 0), ("1.bias", 0), ("3.weight", 1)]),
    ],
    ids=["partly pooled", "partly activated", "indexed", "mlp"],
)
def test_exactly_the_transpositions_that_preserve_the_function(
    build: Callable[[], nn.Module], axes: list[tuple[str, int] | None]
) -> None:
    """Every pair of rows of the hidden layer is swapped, and any two columns of the next."""
    torch.manual_seed(0)
    model = build()
    inputs = (torch.randn(64, 5, generator=torch.Generator().manual_seed(1)),)
    spec = derive_spec(model, inputs, verify=False)
    state = _doubled(model.state_dict())
    before = output(model, state, inputs)
    rows = [a for a in axes if a is not None]
    first = spec.layouts[rows[0][0]][0]
    size = state[rows[0][0]].shape[0]
    units = np.full(size, -1) if first is None else first.units.reshape(-1)
    group = {int(u): g for g, us in spec.units.items() for u in us.reshape(-1)}
    columns = list(itertools.combinations(range(size), 2))
    for i, j in itertools.combinations(range(size), 2):
        swapped = dict(state)
        for name, k in rows:
            order = torch.arange(size)
            order[[i, j]] = order[[j, i]]
            swapped[name] = state[name].index_select(k, order)
        preserved = False
        if None not in axes:
            preserved = torch.allclose(before, output(model, swapped, inputs), rtol=1e-9, atol=0)
        else:  # the next layer's columns are in another order: any two may go with rows i and j
            for p, q in columns:
                order = torch.arange(size)
                order[[p, q]] = order[[q, p]]
                weight = state["down.weight"].index_select(1, order)
                after = output(model, swapped | {"down.weight": weight}, inputs)
                preserved |= torch.allclose(before, after, rtol=1e-9, atol=0)
        a, b = int(units[i]), int(units[j])
        assert preserved == (min(a, b) >= 0 and group[a] == group[b]), (i, j)


@pytest.mark.parametrize(
    ("name", "free"),
    # weights that no permutation moves at all are few, and these:
    [
        ("mlp", {"7.bias"}),
        ("vgg", {"classifier.3.bias"}),
        ("functional", set()),
        ("decoder", {"last.bias"}),
        ("encoder", {"last.bias"}),
        ("gpt", set()),
    ],
)
def test_what_is_frozen(name: str, free: set[str]) -> None:
    model, spec = derived(EXAMPLES[name])
    parameters = dict(model.named_parameters())
    assert {n for n in spec.frozen if n in parameters} == free


# ---- reasons, names, text -----------------------------------------------------------------------


def test_explanations() -> None:
    _, spec = derived(EXAMPLES["vgg"])
    text = spec.explain("features.0.weight")
    assert "axis 0 (6): features.0.weight" in text
    assert "axis 1 (3): fixed: the network's input" in text
    assert "axis 2 (3): fixed: places in a kernel" in text
    assert "fixed: the network's output" in spec.explain("classifier.3.weight")
    assert spec.frozen["features.1.num_batches_tracked"] == "a counter"
    assert "features.8.weight" in spec.explain("classifier.0.weight").split("axis 1")[1]


def test_names_of_heads_and_of_what_is_in_them() -> None:
    _, spec = derived(EXAMPLES["vit"])
    prefix = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    assert list(spec.groups)[1:4] == [f"{prefix} heads", prefix, f"{prefix}#2"]
    assert spec.groups[prefix].parent == f"{prefix} heads"
    assert f"{prefix} (in each of {prefix} heads)" in spec.explain(prefix)


class Odd(nn.Module):
    """A hidden layer, something done to it, and an output."""

    def __init__(self, what: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.up, self.what = nn.Linear(5, width), what
        self.down = nn.Linear(width, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.what(F.relu(self.up(x))))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda h: torch.fft.rfft(h).abs().repeat(1, 2)[:, :6], "_fft_r2c is not followed"),
        (lambda h: h.cumsum(1), "cumsum depends on the order"),
        (lambda h: h.sort(dim=1).values, "sort depends on the order"),
        (lambda h: h * torch.arange(6), "a constant of the network"),
        (lambda h: h + h.argmax(1, keepdim=True), "argmax returns an index into it"),
        (lambda h: F.avg_pool1d(h[:, None], 3, 1, 1)[:, 0], "places, not units"),
        (lambda h: torch.einsum("ni,nj->nij", h, h).flatten(1)[:, :6], "flattened together"),
    ],
    ids=["fft", "cumsum", "sort", "arange", "argmax", "pool", "outer product"],
)
def test_what_cannot_be_followed_is_fixed_with_the_reason(
    what: Callable[[Tensor], Tensor], reason: str
) -> None:
    spec = derive_spec(Odd(what), torch.randn(4, 5))
    assert not spec.groups
    assert reason in spec.explain("up.weight")
    assert reason in spec.explain("up.bias")
    assert "not used in the forward pass" in spec.explain("unused.weight")


@pytest.mark.parametrize(
    "what",
    [
        lambda h: h.softmax(1),
        lambda h: F.layer_norm(h, (6,)),
        lambda h: F.normalize(h, dim=1),
        lambda h: h - h.mean(1, keepdim=True),
        lambda h: h.flip(1),
        lambda h: h.roll(2, 1),
        lambda h: h.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6),
        lambda h: torch.stack([h[:, :3], h[:, 3:]], 1).flatten(1),
        lambda h: torch.zeros(len(h), 6).copy_(h),
        lambda h: h.unsqueeze(2).expand(-1, -1, 4).mean(2),
        lambda h: h.T.contiguous().t_(),
        lambda h: h.clone().view(-1, 6, 1).squeeze_(2),
        lambda h: h + torch.zeros(6),
        lambda h: torch.where(h > 0, h, torch.full_like(h, 2.0)),
        lambda h: h.detach().requires_grad_(False) * 2,
        lambda h: h.data * 2,
        lambda h: torch.as_strided(h, h.shape, h.stride()),
        lambda h: h.max(1, keepdim=True).values.abs() + h if False else h.amax(1, True) + h,
        lambda h: F.dropout(h, training=False),
    ],
    ids=range(19),
)
def test_what_treats_units_alike_leaves_them_free(what: Callable[[Tensor], Tensor]) -> None:
    model = Odd(what)
    spec = derive_spec(model, torch.randn(4, 5), verify=False)
    assert [g.shape for g in spec.groups.values()] == [(6,)]
    perms = spec.random(torch.Generator().manual_seed(0))
    check(spec, model, torch.randn(4, 5), _trial_state(model), perms)


def _blocks_mean(h: Tensor) -> Tensor:
    return h.view(-1, 2, 3).softmax(2).view(-1, 6)


def _written(h: Tensor) -> Tensor:
    buffer = torch.zeros(len(h), 6)
    buffer[:, :2] = h[:, 4:]
    buffer[:, 2:4] += 1
    return buffer


def _written_view(h: Tensor) -> Tensor:
    buffer = torch.ones(6).expand(len(h), 6).clone()
    buffer.view(-1, 2, 3)[:, 0] *= 2
    return buffer + h


def _uneven(h: Tensor) -> Tensor:
    """Two units in each of the pieces, at the same numbers of places but not at the same ones."""
    wide = h[:, :, None].expand(-1, -1, 4).flatten(1) * torch.arange(24)
    return F.pad(wide[:, 2:8], (0, 0))


def _crossed(h: Tensor) -> Tensor:
    """Products of pairs; which one goes through the tanh differs."""
    a, b = h[:, [0, 3]], h[:, [2, 1]]
    return torch.cat([torch.relu(a) * torch.tanh(b), h[:, 4:], h[:, :2] * 0], 1)


@pytest.mark.parametrize(
    ("what", "groups"),
    [
        (_blocks_mean, [(2,), (2, 3)]),
        (_written, [(4,), (2,), (2,), (2,)]),  # units not read, read; ones, zeros in the buffer
        (_written_view, [(3,), (3,)]),
        (_crossed, [(2,)]),
        (_uneven, []),
        (lambda h: h.view(-1, 2, 3).mean(1).repeat(1, 2), [(3,)]),
        (lambda h: h.view(-1, 2, 3).mean(2).repeat(1, 3), [(2,), (2, 3)]),
        (lambda h: torch.cat([h[:, :2].softmax(1), h[:, 2:]], 1), [(4,), (2,)]),
        (lambda h: h + h.flip(1), [(3,)]),
        (lambda h: h[:, :3].repeat(1, 2), [(3,), (3,)]),
        (lambda h: h * torch.tensor([1.0, 2.0]).repeat_interleave(3), []),
        (lambda h: torch.cat([h, h], 1)[:, 2:8], [(2,), (4,)]),
        (lambda h: h * h[:, 2:3].sigmoid(), [(5,)]),
        (lambda h: h[:, torch.tensor([0, 1, 1, 0, 2, 3])], [(2,), (2,), (2,)]),
        (lambda h: h.view(-1, 2, 3).softmax(1).flatten(1), [(3,)]),
        (lambda h: F.group_norm(h[..., None], 2)[..., 0] * h[:, :1], [(2,), (3,)]),
        (lambda h: F.group_norm(F.group_norm(h[..., None], 2).relu(), 2)[..., 0], [(2,), (2, 3)]),
        (lambda h: F.group_norm(F.group_norm(h[..., None], 2), 3)[..., 0], [(2,), (2,)]),
    ],
    ids=[
        "softmax in blocks", "written", "written through a view", "crossed", "uneven",
        "tied blocks", "blocks", "partly", "mirrored", "repeated", "constant", "overlapping",
        "one gates all", "taken twice", "softmax over blocks", "one unit fixed in blocks",
        "the same blocks twice", "blocks that cross",
    ],
)  # fmt: skip
def test_units_told_apart(what: Callable[[Tensor], Tensor], groups: list[tuple[int, ...]]) -> None:
    model = Odd(what)
    spec = derive_spec(model, torch.randn(4, 5), verify=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        perms = spec.random(generator)
        check(spec, model, torch.randn(4, 5), _trial_state(model), perms)
    assert sorted(g.shape for g in spec.groups.values()) == sorted(groups)


def test_blocks_of_blocks_keep_the_inner_ones() -> None:
    def what(h: Tensor) -> Tensor:
        return F.group_norm(F.group_norm(h[..., None], 2), 4)[..., 0]

    model = Odd(what, 12)
    spec = derive_spec(model, torch.randn(4, 5), verify=False)
    # two fixed halves, each of two blocks of three
    assert [g.shape for g in spec.groups.values()] == [(2,), (2, 3), (2,), (2, 3)]
    perms = spec.random(torch.Generator().manual_seed(0))
    check(spec, model, torch.randn(4, 5), _trial_state(model), perms)


def _tied_then_normed(h: Tensor) -> Tensor:
    """Four units, each at three places, which lie in two groups of a norm as 2 + 1 or 1 + 2."""
    b = h.view(-1, 3, 4)
    return F.group_norm((b + b.mean(1, keepdim=True)).view(-1, 12, 1), 2)[..., 0]


def _tied_means_of_blocks(h: Tensor) -> Tensor:
    """Three blocks that an attention over their means mixes up: they stay, their units do not."""
    means = F.group_norm(h[..., None], 3).view(-1, 3, 4).mean(2).repeat(1, 2)
    return F.pad(h, (0, 6))[:, :12] + _attend(means.view(-1, 3, 2).transpose(1, 2)).repeat(1, 2)


@pytest.mark.parametrize(
    ("what", "groups"),
    [(_tied_then_normed, [(2,), (2,)]), (_tied_means_of_blocks, None)],
)
def test_units_tied_across_blocks(
    what: Callable[[Tensor], Tensor], groups: list[tuple[int, ...]] | None
) -> None:
    model = Odd(what, 12)
    spec = derive_spec(model, torch.randn(4, 5), verify=False)
    for seed in range(3):
        perms = spec.random(torch.Generator().manual_seed(seed))
        check(spec, model, torch.randn(4, 5), _trial_state(model), perms)
    if groups is not None:
        assert [g.shape for g in spec.groups.values()] == groups


# ---- random networks ---------------------------------------------------------------------------


class Weights:
    """Makes parameters of a module as they are asked for, and hands them out again."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._count = module, 0

    def __call__(self, *shape: int) -> Tensor:
        name = f"w{self._count}"
        self._count += 1
        if not hasattr(self._module, name):
            setattr(self._module, name, nn.Parameter(torch.randn(shape) / shape[-1] ** 0.5))
        return getattr(self._module, name)


def _attend(x: Tensor) -> Tensor:
    return (x @ x.transpose(1, 2) @ x).flatten(1)


def _doubled_in_part(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] *= 2
    return y


def _every_other(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape)
    y[:, ::2] = x[:, ::2]
    return y


# x (n, d), the same split into g blocks (n, g, d / g), g, weights
STEPS: list[Callable[[Tensor, Tensor, int, Weights], Tensor]] = [
    lambda x, b, g, w: x.flip(1),
    lambda x, b, g, w: x.roll(1, 1),
    lambda x, b, g, w: x * w(x.shape[1]),
    lambda x, b, g, w: x @ w(x.shape[1], x.shape[1]),
    lambda x, b, g, w: x + x.relu() @ w(x.shape[1], x.shape[1]),
    lambda x, b, g, w: torch.cat([b[:, 0].relu(), b[:, 1:].flatten(1).tanh()], 1),
    lambda x, b, g, w: torch.cat([b[:, 0] * b[:, -1].tanh(), b[:, 1:].flatten(1)], 1),
    lambda x, b, g, w: torch.cat([x, x[:, :2]], 1)[:, :12],
    lambda x, b, g, w: F.pad(x[:, 1:], (1, 1)) if x.shape[1] < 10 else x[:, 1:-1],
    lambda x, b, g, w: x + x.mean(1, keepdim=True),
    lambda x, b, g, w: x * x[:, 1:2].sigmoid(),
    lambda x, b, g, w: _doubled_in_part(x),
    lambda x, b, g, w: _every_other(x),
    lambda x, b, g, w: torch.stack([x, x.tanh()], 1).mean(1),
    lambda x, b, g, w: torch.stack([x, x.tanh()], 1).flatten(1)[:, : x.shape[1]],
    lambda x, b, g, w: torch.stack([x, x.tanh()], 2).flatten(1)[:, : x.shape[1]],
    lambda x, b, g, w: x[:, :, None].expand(-1, -1, 2).flatten(1)[:, :12],
    lambda x, b, g, w: b.transpose(1, 2).reshape(x.shape),
    lambda x, b, g, w: b.softmax(1).flatten(1),
    lambda x, b, g, w: b.softmax(2).flatten(1),
    lambda x, b, g, w: b.mean(1).repeat(1, g),
    lambda x, b, g, w: b.mean(2).repeat(1, x.shape[1] // g),
    lambda x, b, g, w: b[:, 0].repeat(1, g),
    lambda x, b, g, w: (b * w(b.shape[2])).flatten(1),
    lambda x, b, g, w: (b * w(g)[:, None]).flatten(1),
    lambda x, b, g, w: (b * torch.arange(1, g + 1)[:, None]).flatten(1),
    lambda x, b, g, w: _attend(b),
    lambda x, b, g, w: _attend(b.transpose(1, 2)),
    lambda x, b, g, w: F.layer_norm(x, x.shape[1:]),
    lambda x, b, g, w: F.group_norm(x[..., None], g).flatten(1),
    lambda x, b, g, w: F.conv1d(b, w(g, g, 1)).flatten(1),
    lambda x, b, g, w: F.conv1d(x[..., None], w(x.shape[1], x.shape[1] // g, 1), groups=g)[..., 0],
]


class Program(nn.Module):
    """Up to five random steps between two linear layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.steps = [
            (draw.choice(STEPS), draw.choice([2, 3, 4])) for _ in range(draw.randint(1, 5))
        ]
        self.up = nn.Linear(5, draw.choice([4, 6, 8, 12]))

    def forward(self, x: Tensor) -> Tensor:
        weights = Weights(self)
        h = self.up(x).sigmoid()
        for step, g in self.steps:
            g = next(k for k in (g, 2, 3, 5, 7, 11, 1) if h.shape[1] % k == 0)
            h = 0.1 + step(h, h.view(len(h), g, -1), g, weights)
        return h @ weights(h.shape[1], 3)


def assert_programs(seeds: range) -> None:
    groups = 0
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for seed in seeds:
        torch.manual_seed(seed)
        model = Program(seed)
        model(x)
        spec = derive_spec(model, x, verify=False)
        groups += len(spec.groups)
        perms = spec.random(torch.Generator().manual_seed(seed))
        try:
            check(spec, model, x, _trial_state(model), perms)
        except SpecError as error:
            raise AssertionError(f"program {seed}: {error}\n{spec}") from error
    assert groups > len(seeds)  # freezing everything would be right too


def test_random_networks() -> None:
    assert_programs(range(120))


@pytest.mark.slow
def test_many_random_networks() -> None:
    assert_programs(range(1000, 6000))


# ---- weights used in unusual ways ---------------------------------------------------------------


class Auxiliary(nn.Module):
    """A head that runs in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)
        self.head = nn.Linear(6, 2)
        self.hidden = nn.Linear(6, 4)
        self.head2 = nn.Linear(4, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        h = F.dropout(self.drop(F.relu(self.up(x))), training=self.training)
        if self.training:
            return self.down(h), self.head(h), self.head2(self.hidden(h))
        return self.down(h)


def test_what_runs_in_train_mode_alone_is_followed() -> None:
    spec = derive_spec(Auxiliary(), torch.randn(4, 5))
    assert [g.shape for g in spec.groups.values()] == [(6,), (4,)]
    assert "up.weight" in spec.explain("head.weight")


def test_neither_the_model_nor_torchs_settings_change() -> None:
    model = networks.VGG().train()
    model.features[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    settings = (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )
    x = torch.randn(3, 3, 16, 16)
    kept = x.clone()
    derive_spec(model, x)
    assert torch.equal(x, kept)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model._forward_hooks
    assert settings == (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


def test_functional_call_inside_a_network() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = networks.mlp((5, 6, 4, 3))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            scaled = {k: v * self.scale for k, v in self.inner.named_parameters()}
            return torch.func.functional_call(self.inner, scaled, (x,))

    spec = derive_spec(Outer(), torch.randn(2, 5))
    assert [g.shape for g in spec.groups.values()] == [(6,), (4,)]


def test_weights_that_share_memory_are_fixed() -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)
            self.register_buffer("view", self.up.bias.detach()[:3])

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu())

    spec = derive_spec(Shares(), torch.randn(2, 5), verify=False)
    assert not spec.groups
    assert "shares its memory" in spec.explain("up.bias")


def test_what_a_buffer_holds_is_not_permuted() -> None:
    """A grid of coordinates is read by a linear map, and is no layer."""

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", torch.randn(7, 4))
            self.register_buffer("scale", torch.rand(6))
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + self.down(self.scale * self.up(self.grid).relu()).sum(0)

    spec = derive_spec(Grid(), torch.randn(2, 5))
    assert list(spec.groups) == ["up.weight"]
    assert "fixed: read from a buffer" in spec.explain("grid")
    assert "up.weight" in spec.explain("scale")


def test_a_group_that_fails_the_check_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong: what sums over an axis fixes nothing, and neither does a constant."""
    from llfc_core.matching import rules

    monkeypatch.setitem(rules.RULES, "cumsum", rules.elementwise)
    model = Odd(lambda h: h.cumsum(1))
    with pytest.warns(UserWarning, match=r"fixed, the check failed: .*: up\.weight"):
        spec = derive_spec(model, torch.randn(4, 5))
    assert not spec.groups
    assert "the check failed" in spec.explain("up.weight")


# ---- errors -------------------------------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(5, 6), what

    def forward(self, x: Tensor) -> object:
        return self.what(self.layer(x))


def test_errors_at_the_door() -> None:
    x = torch.randn(2, 5)
    with pytest.raises(TypeError, match=r"model: an nn\.Module, not function"):
        derive_spec(F.relu, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compiled"):
        derive_spec(torch.compile(nn.Linear(5, 3)), x)
    with pytest.raises(TypeError, match="example_inputs: a tensor, or a tuple"):
        derive_spec(nn.Linear(5, 3), [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="with no tensor in it"):
        derive_spec(Returns(lambda h: None), x)


def test_random_numbers_and_control_flow_on_data_are_refused() -> None:
    x = torch.randn(2, 5)
    with pytest.raises(SpecError, match="draws random numbers in eval mode"):
        derive_spec(Returns(lambda h: h + torch.randn_like(h)), x)
    with pytest.raises(SpecError, match="control flow that depends on the data"):
        derive_spec(Returns(lambda h: h if h.sum() > 0 else -h), x)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            h = self.a(x) + self.b(y)
            return {"c": self.c(h.relu()), "norm": h.norm(dim=1)}

    spec = derive_spec(Two(), (torch.randn(2, 5), torch.randn(2, 4)))
    assert [g.shape for g in spec.groups.values()] == [(6,)]
    assert {"a", "b", "c"} <= set(spec.features)
