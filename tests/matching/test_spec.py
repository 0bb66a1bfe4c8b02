"""Permutations form a group that acts on states and features, and leaves the function alone."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from llfc_core.features import Taps
from llfc_core.matching.spec import Axis, Group, PermutationSpec

from .specs import MLP, NETWORKS, Numbers, axis, blocks, cnn, equal, heads, mlp, randomised, spec

seeds = st.integers(0, 2**32 - 1)
networks = pytest.mark.parametrize("network", NETWORKS)


def made(network: str, seed: int) -> tuple[nn.Module, PermutationSpec, dict[str, Tensor], Tensor]:
    """A network in float64 with its spec, weights and inputs."""
    build, shape = NETWORKS[network]
    module, its_spec = build()
    module.double().eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return module, its_spec, randomised(module, seed, torch.float64), x


def drawn(its_spec: PermutationSpec, count: int, seed: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [its_spec.random(g) for _ in range(count)]


def same(p: dict[str, Tensor], q: dict[str, Tensor]) -> bool:
    return equal(p, q)


@networks
@settings(deadline=None, max_examples=8)
@given(seed=seeds)
def test_function_is_left_alone(network: str, seed: int) -> None:
    module, its_spec, state, x = made(network, seed)
    (p,) = drawn(its_spec, 1, seed)
    permuted = its_spec.apply(state, p)
    assert not equal(permuted, state) or same(p, its_spec.identity())
    with torch.no_grad():
        want = torch.func.functional_call(module, state, (x,))
        got = torch.func.functional_call(module, permuted, (x,))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@networks
@settings(deadline=None, max_examples=8)
@given(seed=seeds)
def test_permutations_are_a_group(network: str, seed: int) -> None:
    _, its_spec, state, _ = made(network, seed)
    p, q, r = drawn(its_spec, 3, seed)
    one = its_spec.identity()
    assert equal(its_spec.apply(state, one), state)
    assert same(its_spec.compose(p, one), p)
    assert same(its_spec.compose(one, p), p)
    assert same(its_spec.compose(p, its_spec.inverse(p)), one)
    assert same(its_spec.compose(its_spec.inverse(p), p), one)
    pq_r = its_spec.compose(its_spec.compose(p, q), r)
    assert same(pq_r, its_spec.compose(p, its_spec.compose(q, r)))
    # and act as one: first p, then q
    one_by_one = its_spec.apply(its_spec.apply(state, p), q)
    assert equal(one_by_one, its_spec.apply(state, its_spec.compose(p, q)))


@networks
def test_features_move_as_the_spec_says(network: str) -> None:
    module, its_spec, state, x = made(network, 1)
    (p,) = drawn(its_spec, 1, 2)
    taps = Taps(module, x, tuple(its_spec.features))
    seen: dict[str, list[Tensor]] = {name: [] for name in its_spec.features}
    with torch.no_grad():
        for weights in (state, its_spec.apply(state, p)):
            taps.run(x, lambda layer: seen[layer.name].append(layer.post.clone()), weights)
    for name, (of_b, of_permuted) in seen.items():
        torch.testing.assert_close(its_spec.apply_to_feature(name, of_b, p), of_permuted)


@networks
def test_uses_hold_every_entry_of_a_unit_once_and_in_one_order(network: str) -> None:
    """Exchanging two units exchanges their rows, whichever tensor and axis they are in."""
    _, its_spec, state, _ = made(network, 0)
    for group, g in its_spec.groups.items():
        uses = its_spec.uses(group)
        assert uses
        if g.size < 2:
            continue
        p = its_spec.identity()
        p[group][..., :2] = p[group][..., [1, 0]]  # in each block
        order = torch.arange(g.blocks * g.size).reshape(g.blocks, g.size)
        order[:, :2] = order[:, [1, 0]]
        moved = its_spec.apply(state, p)
        for use in uses:
            before, after = use.rows(state[use.tensor]), use.rows(moved[use.tensor])
            assert len(before) == g.blocks * g.size
            other = [u for u in uses if u.tensor == use.tensor]
            if len(other) == 1:  # else the other axis moves, too
                assert torch.equal(after, before[order.flatten()])


def test_rows_of_a_flattened_axis_are_channels() -> None:
    """C×H×W in a linear layer: unit c has the columns of all its pixels, outputs last."""
    _, its_spec = cnn(6, 5, 7)
    weight = torch.randn(7, 5 * 9)
    (use,) = [u for u in its_spec.uses("conv2.weight") if u.tensor == "fc1.weight"]
    want = weight.reshape(7, 5, 9).permute(1, 2, 0).reshape(5, -1)
    assert torch.equal(use.rows(weight), want)


def test_rows_of_a_feature_map_are_channels() -> None:
    _, its_spec = cnn(6, 5, 7)
    feature = torch.randn(4, 6, 3, 3)
    (use,) = its_spec.feature_uses("conv1.weight")
    assert use.tensor == "bn1"
    assert torch.equal(use.rows(feature), feature.transpose(0, 1).reshape(6, -1))


def test_rows_of_a_grouped_convolution() -> None:
    """Input unit u of group g has the weights of the m outputs of group g."""
    b, n, m = 3, 4, 2
    _, its_spec = blocks(b, n, m)
    weight = torch.randn(b * m, n, 3, 3)
    (use,) = [u for u in its_spec.uses("wide.weight") if u.tensor == "grouped.weight"]
    want = weight.reshape(b, m, n, 9).transpose(1, 2).reshape(b * n, -1)
    assert torch.equal(use.rows(weight), want)
    (use,) = [u for u in its_spec.uses("grouped.weight") if u.tensor == "grouped.weight"]
    assert torch.equal(use.rows(weight), weight.reshape(b * m, -1))


def test_a_grouped_convolution_by_hand() -> None:
    b, n, m = 2, 3, 2
    module, its_spec = blocks(b, n, m)
    state = randomised(module, 0)
    p = {
        "groups": torch.tensor([1, 0]),
        "wide.weight": torch.tensor([[2, 0, 1], [0, 2, 1]]),
        "grouped.weight": torch.tensor([[0, 1], [1, 0]]),
    }
    moved = its_spec.apply(state, p)["grouped.weight"].reshape(b, m, n, 3, 3)
    old = state["grouped.weight"].reshape(b, m, n, 3, 3)
    for block in range(b):
        of = int(p["groups"][block])
        outs, ins = p["grouped.weight"][block], p["wide.weight"][block]
        assert torch.equal(moved[block], old[of][outs][:, ins])


def test_row_of_a_child_permutes_the_block_that_goes_into_the_slot() -> None:
    module, its_spec = heads(2, 3)
    state = randomised(module, 0)
    p = {"gate.weight": torch.tensor([1, 0]), "up.weight": torch.tensor([[2, 1, 0], [0, 1, 2]])}
    up = state["up.bias"].reshape(2, 3)
    moved = its_spec.apply(state, p)["up.bias"].reshape(2, 3)
    assert torch.equal(moved, torch.stack([up[1].flip(0), up[0]]))


def test_part_of_an_axis_may_be_fixed() -> None:
    """A concatenation of a feature that may move with one that may not."""
    module, numbers = nn.Linear(5, 2), Numbers()
    unit = numbers.group("g", 3)
    mixed = Axis(
        np.concatenate([[-1], unit[0], [-1]])[None], np.array([[0, 0, 0, 0, 4]], dtype=np.int64)
    )
    its_spec = spec(module, numbers, {"weight": (None, mixed)}, {})
    w = module.weight.detach()
    moved = its_spec.apply({"weight": w, "bias": torch.zeros(2)}, {"g": torch.tensor([2, 0, 1])})
    assert torch.equal(moved["weight"], w[:, [0, 3, 1, 2, 4]])
    (use,) = its_spec.uses("g")
    assert torch.equal(use.rows(w), w[:, 1:4].T)
    assert "fixed" in its_spec.explain("weight")


def test_positions_tell_the_indices_of_a_unit_apart() -> None:
    """Two units of two positions each, the second unit's the other way round."""
    module, numbers = nn.Linear(4, 2), Numbers()
    ((one, two),) = numbers.group("g", 2)
    mixed = Axis(np.array([[one, one, two, two]]), np.array([[0, 1, 1, 0]]))
    its_spec = spec(module, numbers, {"weight": (None, mixed)}, {})
    w = module.weight.detach()
    (use,) = its_spec.uses("g")
    assert torch.equal(use.rows(w), torch.stack([w.T[[0, 1]], w.T[[3, 2]]]).flatten(1))
    moved = its_spec.apply({"weight": w, "bias": torch.zeros(2)}, {"g": torch.tensor([1, 0])})
    assert torch.equal(moved["weight"], w[:, [3, 2, 1, 0]])


def test_random_is_uniform_and_a_function_of_the_generator() -> None:
    _, its_spec = mlp(2, 3, 2)
    g = torch.Generator().manual_seed(0)
    seen = [tuple(its_spec.random(g)["fc1.weight"].tolist()) for _ in range(1200)]
    counts = [seen.count(p) for p in sorted(set(seen))]
    assert len(counts) == 6
    assert min(counts) > 150, "200 each are expected, with a spread of 13"
    again = torch.Generator().manual_seed(0)
    assert tuple(its_spec.random(again)["fc1.weight"].tolist()) == seen[0]


def test_blocks_are_permuted_each_in_its_own_way() -> None:
    _, its_spec = heads(6, 5)
    (p,) = drawn(its_spec, 1, 0)
    assert len({tuple(row) for row in p["up.weight"].tolist()}) > 1


def test_counters_and_statistics_move_with_their_units() -> None:
    module, its_spec = cnn()
    state = randomised(module, 0)
    (p,) = drawn(its_spec, 1, 0)
    moved = its_spec.apply(state, p)
    perm = p["conv1.weight"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(moved[f"bn1.{name}"], state[f"bn1.{name}"][perm])
    assert moved["bn1.num_batches_tracked"] == state["bn1.num_batches_tracked"]


@networks
def test_state_is_not_changed(network: str) -> None:
    _, its_spec, state, _ = made(network, 0)
    copy = {k: v.clone() for k, v in state.items()}
    (p,) = drawn(its_spec, 1, 0)
    its_spec.apply(state, p)
    assert equal(state, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1.weight": torch.tensor([0, 1, 1])}, "not a permutation of 0 … 2"),
        ({"fc1.weight": torch.tensor([0, 1, 3])}, "not a permutation of 0 … 2"),
        ({"fc1.weight": torch.tensor([0, 1])}, r"shape \(2,\), not \(3,\)"),
        ({"fc9.weight": torch.tensor([0])}, "do not fit the spec: 'fc9.weight'"),
        ({"fc1.weight": None}, "do not fit the spec: 'fc1.weight'"),
    ],
)
def test_not_a_permutation(change: dict[str, Tensor | None], message: str) -> None:
    _, its_spec = mlp(2, 3, 2)
    perms = {k: v for k, v in (its_spec.identity() | change).items() if v is not None}
    for use in (its_spec.checked, its_spec.inverse):
        with pytest.raises(ValueError, match=message):
            use(perms)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1.bias": None}, "lacks 'fc1.bias'"),
        ({"fc9.bias": torch.zeros(1)}, "has 'fc9.bias'"),
        ({"fc1.bias": torch.zeros(4)}, r"'fc1.bias' has shape \(4,\), not \(3,\)"),
    ],
)
def test_not_a_state_of_the_network(change: dict[str, Tensor | None], message: str) -> None:
    module, its_spec = mlp(2, 3, 2)
    state = {k: v for k, v in (module.state_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        its_spec.apply(state, its_spec.identity())


def test_unknown_names() -> None:
    _, its_spec = mlp(2, 3, 2)
    with pytest.raises(ValueError, match="no feature 'fc7'"):
        its_spec.apply_to_feature("fc7", torch.zeros(1, 3), its_spec.identity())
    with pytest.raises(ValueError, match=r"did you mean 'fc1\.weight'"):
        its_spec.explain("fc1.weigth")


def test_it_says_what_it_permutes_and_what_not() -> None:
    _, its_spec = cnn()
    text = str(its_spec)
    assert "3 groups" in text
    assert "conv1.weight" in text
    assert "fc2.bias" in its_spec.frozen
    assert "conv2.weight" in its_spec.explain("fc1.weight")
    its_spec = replace(its_spec, reasons={"fc2.bias": {0: "classes"}})
    assert its_spec.frozen["fc2.bias"] == "classes"
    assert "4 in each of groups" in str(blocks()[1]).replace("3 × ", "")


def test_shapes_of_permutations() -> None:
    assert Group("g", 4).shape == (4,)
    assert Group("u", 4, "g", 3).shape == (3, 4)
    with pytest.raises(ValueError, match="one shape"):
        Axis(np.zeros(2, dtype=np.int64), np.zeros(3, dtype=np.int64))


def test_a_network_without_hidden_units() -> None:
    its_spec = spec(MLP(3, 2), Numbers(), {}, {})
    state = MLP(3, 2).state_dict()
    assert its_spec.identity() == {}
    assert equal(its_spec.apply(state, {}), state)
    assert set(its_spec.frozen) == set(state)


def test_axis_helper() -> None:
    a = axis(np.array([[4, 5]]), 2)
    assert a.units.tolist() == [4, 4, 5, 5]
    assert a.positions.tolist() == [0, 1, 0, 1]
