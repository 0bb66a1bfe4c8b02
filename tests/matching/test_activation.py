"""Activation matching: against materialised features, brute force, and planted permutations."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from llfc_core.features import Taps
from llfc_core.matching.activation import STATISTICS, match_activations, peek
from llfc_core.matching.spec import PermutationSpec

from .specs import (
    NETWORKS,
    Numbers,
    axis,
    batches,
    blocks,
    cnn,
    equal,
    heads,
    mlp,
    noisy,
    randomised,
    spec,
)

seeds = st.integers(0, 2**32 - 1)
networks = pytest.mark.parametrize("network", NETWORKS)
statistics = pytest.mark.parametrize("statistic", STATISTICS)
State = dict[str, Tensor]


def drawn(its_spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    return its_spec.random(torch.Generator().manual_seed(seed))


def posts(module: nn.Module, state: State, x: Tensor) -> dict[str, Tensor]:
    """All features at activation sites, in float64."""
    seen: dict[str, Tensor] = {}

    def keep(layer: Any) -> None:
        seen[layer.name] = layer.post.clone().double()

    with torch.no_grad():
        Taps(module, x[:2]).run(x, keep, state)
    return seen


def materialised(module: nn.Module, a: State, b: State, x: Tensor, statistic: str) -> float:
    """The objective of A and B as they are: a sum over sites of cosines, or mean correlations."""
    total = 0.0
    of_a, of_b = posts(module, a, x), posts(module, b, x)
    for name in list(of_a)[:-1]:  # the last is the output
        one, two = of_a[name], of_b[name]
        if statistic == "product":
            total += float((one * two).sum() / max(one.norm() * two.norm(), torch.tensor(1e-30)))
            continue
        one, two = (f.transpose(0, 1).flatten(1) for f in (one, two))
        correlations = [
            float(torch.corrcoef(torch.stack([u, v]))[0, 1])
            if u.std() > 1e-6 and v.std() > 1e-6
            else 0.0
            for u, v in zip(one, two)
        ]
        total += sum(correlations) / len(correlations)
    return total


@networks
@statistics
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**31))
def test_objective_is_that_of_all_features(network: str, statistic: str, seed: int) -> None:
    build, shape = NETWORKS[network]
    module, its_spec = build()
    a, b = randomised(module, seed), randomised(module, seed + 1)
    data = batches(shape, 30, seed)
    x = torch.cat([x for x, _ in data])
    start = drawn(its_spec, seed)
    match = match_activations(a, b, its_spec, module, data, statistic=statistic, start=start)
    before, after = (
        materialised(module, a, s, x, statistic) for s in (its_spec.apply(b, start), match.apply(b))
    )
    assert match.objective[0] == pytest.approx(before, rel=1e-5, abs=1e-5)
    assert match.objective[-1] == pytest.approx(after, rel=1e-5, abs=1e-5)
    assert list(match.objective) == sorted(match.objective)
    assert match.converged


@statistics
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_no_permutation_is_better(statistic: str, seed: int) -> None:
    """All 3!·4! of a network, each run on the data."""
    module, its_spec = mlp(3, 3, 4, 2)
    a, b = randomised(module, seed), randomised(module, seed + 1)
    data = batches((3,), 20, seed)
    x = torch.cat([x for x, _ in data])
    match = match_activations(a, b, its_spec, module, data, statistic=statistic)
    each = [
        [torch.tensor(p) for p in permutations(range(g.size))] for g in its_spec.groups.values()
    ]
    best = max(
        materialised(module, a, its_spec.apply(b, dict(zip(its_spec.groups, p))), x, statistic)
        for p in list(product(*each))[:: 1 if seed % 8 == 0 else 7]
    )
    assert match.objective[-1] >= best - 1e-5


@networks
@statistics
def test_planted_permutation_is_undone(network: str, statistic: str) -> None:
    build, shape = NETWORKS[network]
    for seed in range(4):
        module, its_spec = build()
        a = randomised(module, seed)
        b = its_spec.apply(a, drawn(its_spec, seed))
        data = batches(shape, 40, seed)
        match = match_activations(a, b, its_spec, module, data, statistic=statistic)
        again = match_activations(a, a, its_spec, module, data, statistic=statistic)
        assert match.objective[-1] == pytest.approx(again.objective[0], abs=1e-5)
        # Dead units may go anywhere, so weights need not agree; features must.
        x = data[0][0]
        want = posts(module, a, x)
        for name, feature in posts(module, match.apply(b), x).items():
            torch.testing.assert_close(feature, want[name], rtol=1e-4, atol=1e-5)


@statistics
def test_planted_permutation_is_undone_in_noise(statistic: str) -> None:
    """The share of units that come home, dead ones included."""
    module, its_spec = mlp(8, 64, 64, 4)
    shares = []
    for noise in (0.1, 0.5):
        home = []
        for seed in range(3):
            a = randomised(module, seed)
            p = drawn(its_spec, seed)
            b = noisy(its_spec.apply(a, p), noise, seed)
            data = batches((8,), 400, seed, size=100)
            match = match_activations(a, b, its_spec, module, data, statistic=statistic)
            back = its_spec.inverse(p)
            home += [(match.permutations[k] == back[k]).float().mean() for k in back]
        shares.append(float(torch.stack(home).mean()))
    print(f"{statistic}: {shares[0]:.2f} at noise 0.1, {shares[1]:.2f} at noise 0.5")
    assert shares[0] > 0.9
    assert shares[1] > 0.3, "at random it is 0.016"


@networks
@statistics
def test_batches_do_not_matter(network: str, statistic: str) -> None:
    """Not their sizes, nor their order; and all of them count."""
    build, shape = NETWORKS[network]
    module, its_spec = build()
    a, b = randomised(module, 0), randomised(module, 1)
    whole = batches(shape, 60, size=60)
    x = whole[0][0]

    def objective(data: list[Tensor]) -> tuple[float, ...]:
        match = match_activations(a, b, its_spec, module, data, statistic=statistic)
        return match.objective[0], match.objective[-1]

    want = objective([x])
    for data in (
        list(x.split(7)),
        list(x.flip(0).split(13)),
        list(x[torch.randperm(60, generator=torch.Generator().manual_seed(0))].split(20)),
        [x[:0], x[:59], x[:0], x[59:]],
    ):
        assert objective(data) == pytest.approx(want, abs=2e-6)
    assert objective([x[-7:]]) != pytest.approx(want, abs=1e-3)
    assert objective([x[:7]]) != pytest.approx(want, abs=1e-3)


def test_every_batch_counts() -> None:
    """Each batch shows one unit alone; without any one of them a unit would be anybody's."""
    module, its_spec = mlp(5, 5, 2)
    a = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    a["fc1.weight"] = torch.eye(5)
    p = {"fc1.weight": torch.tensor([3, 0, 4, 1, 2])}
    b = its_spec.apply(a, p)
    data = [torch.eye(5)[i : i + 1] for i in range(5)]
    match = match_activations(a, b, its_spec, module, data)
    assert match.objective[-1] == pytest.approx(1)
    assert equal(match.apply(b), a)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_correlation_does_not_depend_on_units_scale_or_level(seed: int) -> None:
    """Pearson's r: a pre-activation net (no ReLU) whose units are rescaled and shifted."""
    module, its_spec, a, b = linear(seed)
    g = torch.Generator().manual_seed(seed)
    scale, shift = torch.rand(6, generator=g) * 5 + 0.2, 10 * torch.randn(6, generator=g)
    c = {**b, "0.weight": b["0.weight"] * scale[:, None], "0.bias": b["0.bias"] * scale + shift}
    data = batches((4,), 50, seed)
    one, two = (
        match_activations(a, s, its_spec, module, data, statistic="correlation") for s in (b, c)
    )
    assert equal(one.permutations, two.permutations)
    assert one.objective == pytest.approx(two.objective, abs=1e-4)
    products = [match_activations(a, s, its_spec, module, data).objective[0] for s in (b, c)]
    assert products[0] != pytest.approx(products[1], abs=1e-6), "un-centred, it does depend"


def linear(seed: int) -> tuple[nn.Module, PermutationSpec, State, State]:
    """Two linear maps: the hidden units are seen at a module's output, there being no site."""
    module, numbers = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), Numbers()
    units = axis(numbers.group("0.weight", 6))
    its_spec = spec(
        module,
        numbers,
        {"0.weight": (units, None), "0.bias": (units,), "1.weight": (None, units)},
        {"0": (None, units)},
    )
    return module, its_spec, randomised(module, seed), randomised(module, seed + 1)


def test_module_outputs_serve_where_there_is_no_activation() -> None:
    module, its_spec, a, _ = linear(0)
    b = its_spec.apply(a, drawn(its_spec, 0))
    match = match_activations(a, b, its_spec, module, batches((4,), 30))
    assert equal(match.apply(b), a)
    assert match.unmatched == {}


def test_activations_are_preferred_to_module_outputs() -> None:
    """fc1's output is seen before and after its ReLU: only after counts."""
    module, numbers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), Numbers()
    units = axis(numbers.group("0.weight", 6))
    layouts: Any = {"0.weight": (units, None), "0.bias": (units,), "2.weight": (None, units)}
    both = spec(module, numbers, layouts, {"1": (None, units), "0": (None, units)})
    site = spec(module, numbers, layouts, {"0": (None, units)})
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches((4,), 30)
    one, two = (match_activations(a, b, s, module, data) for s in (both, site))
    assert one.objective == two.objective
    assert one.objective[-1] <= 1


def test_what_is_not_seen_stays_and_is_named() -> None:
    module, its_spec = mlp(4, 5, 6, 2)
    numbers, layouts = Numbers(), dict(its_spec.layouts)
    numbers.groups, numbers.units = dict(its_spec.groups), dict(its_spec.units)
    blind = spec(module, numbers, layouts, {"fc1": its_spec.features["fc1"]})
    a, b = randomised(module, 0), randomised(module, 1)
    start = drawn(blind, 3)
    match = match_activations(a, b, blind, module, batches((4,), 20), start=start)
    assert match.unmatched == {"fc2.weight": "its units are in no feature"}
    assert torch.equal(match.permutations["fc2.weight"], start["fc2.weight"])
    assert not torch.equal(match.permutations["fc1.weight"], start["fc1.weight"])


def test_units_that_are_not_seen_go_with_their_block() -> None:
    """Inputs of a grouped convolution are seen, its outputs are not: these keep their order."""
    module, its_spec = blocks()
    numbers = Numbers()
    numbers.groups, numbers.units = dict(its_spec.groups), dict(its_spec.units)
    blind = spec(module, numbers, dict(its_spec.layouts), {"wide": its_spec.features["wide"]})
    a = randomised(module, 0)
    p = drawn(blind, 0) | {"grouped.weight": blind.identity()["grouped.weight"]}
    b = blind.apply(a, p)
    start = blind.identity() | {"groups": torch.tensor([2, 1, 0])}
    match = match_activations(a, b, blind, module, batches((3, 4, 4), 30), start=start)
    assert match.unmatched == {"grouped.weight": "its units are in no feature"}
    assert equal(match.apply(b), a)


@statistics
def test_dead_units_are_worth_nothing(statistic: str) -> None:
    """Constant units: correlation 0, not NaN, and no place taken from a living one."""
    module, its_spec = mlp(4, 8, 2)
    a = randomised(module, 0)
    a["fc1.weight"][:3] = 0
    a["fc1.bias"][:3] = torch.tensor([-1.0, 0.3, 0.7])  # dead, and two that never change
    a["fc1.bias"][3:] = 0.5
    b = its_spec.apply(a, drawn(its_spec, 1))
    data = batches((4,), 50)
    match = match_activations(a, b, its_spec, module, data, statistic=statistic)
    again = match_activations(a, a, its_spec, module, data, statistic=statistic)
    assert match.objective[-1] == pytest.approx(again.objective[0], abs=1e-6)
    if statistic == "correlation":
        assert again.objective[0] == pytest.approx(5 / 8, abs=1e-6)
    living = match.apply(b)["fc1.weight"][3:]
    assert torch.equal(living, a["fc1.weight"][3:])


def test_all_features_dead() -> None:
    module, its_spec = mlp(4, 5, 2)
    a = {k: -torch.ones_like(v) for k, v in module.state_dict().items()}
    for statistic in STATISTICS:
        match = match_activations(a, a, its_spec, module, [torch.ones(3, 4)], statistic=statistic)
        assert equal(match.permutations, its_spec.identity())
        assert match.objective == (0.0,)


@networks
@statistics
def test_relabelling_b_changes_nothing(network: str, statistic: str) -> None:
    build, shape = NETWORKS[network]
    module, its_spec = build()
    a, b = randomised(module, 0), randomised(module, 1)
    relabelled = its_spec.apply(b, drawn(its_spec, 2))
    data = batches(shape, 40)
    one, two = (
        match_activations(a, s, its_spec, module, data, statistic=statistic)
        for s in (b, relabelled)
    )
    assert one.objective[-1] == pytest.approx(two.objective[-1], abs=2e-6)


@networks
def test_never_worse_than_the_start_and_kept_where_equal(network: str) -> None:
    build, shape = NETWORKS[network]
    module, its_spec = build()
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches(shape, 40)
    best = match_activations(a, b, its_spec, module, data)
    again = match_activations(a, b, its_spec, module, data, start=best.permutations)
    assert equal(again.permutations, best.permutations)
    assert len(again.objective) == 1


def test_cross_correlation_is_not_confused_by_a_large_mean() -> None:
    """Units at 1e4 ± 1, in float32: uncentred sums would leave nothing of the variance."""
    module, its_spec, a, _ = linear(0)
    a["0.bias"] = torch.full((6,), 1e4)
    b = its_spec.apply(a, drawn(its_spec, 4))
    data = batches((4,), 400, size=16)
    match = match_activations(a, b, its_spec, module, data, statistic="correlation")
    assert equal(match.apply(b), a)
    assert match.objective[-1] == pytest.approx(1, abs=1e-4)


def test_the_network_runs_in_eval_mode_and_is_left_as_it_was() -> None:
    module, its_spec = cnn()
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches((1, 6, 6), 20)
    one = match_activations(a, b, its_spec, module, data)
    assert module.training
    assert equal(module.state_dict(), before)
    module.eval()
    two = match_activations(a, b, its_spec, module, data)
    assert one.objective == two.objective


def test_data_can_be_gone_through_once() -> None:
    module, its_spec = heads()
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches((5,), 30)
    one = match_activations(a, b, its_spec, module, iter(data))
    two = match_activations(a, b, its_spec, module, [x for x, _ in data])
    assert one.objective == two.objective


def test_deterministic_whatever_the_threads() -> None:
    module, its_spec = cnn()
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches((1, 6, 6), 40)
    first = match_activations(a, b, its_spec, module, data)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = match_activations(a, b, its_spec, module, data)
    finally:
        torch.set_num_threads(threads)
    assert equal(first.permutations, again.permutations)
    assert set(first.seconds) == {"similarity", "assignment", "features", "total"}
    parts = sum(v for k, v in first.seconds.items() if k != "total")
    assert parts <= first.seconds["total"]


def test_refusals() -> None:
    module, its_spec = mlp(4, 5, 2)
    a = randomised(module, 0)
    run = (a, a, its_spec, module)
    for nothing in ([], [torch.zeros(0, 4)], iter(())):
        with pytest.raises(ValueError, match="no data"):
            match_activations(*run, nothing)
    with pytest.raises(ValueError, match="no statistic 'pearson'; there are product, corr"):
        match_activations(*run, [torch.zeros(2, 4)], statistic="pearson")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not one tensor"):
        match_activations(*run, torch.zeros(2, 4))
    with pytest.raises(TypeError, match="not a dict"):
        match_activations(*run, [{"x": torch.zeros(2, 4)}])
    with pytest.raises(ValueError, match="not finite"):
        match_activations(*run, [torch.full((2, 4), torch.inf)])


def test_peek_loses_nothing() -> None:
    data = [torch.zeros(0, 2), torch.ones(3, 2), (torch.ones(1, 2), torch.ones(1))]
    first, every = peek(data)
    assert len(first) == 3
    assert [len(x) for x in every] == [3, 1]
