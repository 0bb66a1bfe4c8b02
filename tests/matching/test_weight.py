"""Weight matching: against brute force, a few-line reference, and planted permutations."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from llfc_core import kernels
from llfc_core.kernels import native
from llfc_core.matching import activation, weight
from llfc_core.matching.assignment import side_by_side
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec
from llfc_core.matching.weight import (
    Clock,
    Descent,
    find_trees,
    inner_product,
    match_weights,
    weight_names,
)

from .specs import NETWORKS, batches, cnn, equal, heads, mlp, noisy, randomised, residual

seeds = st.integers(0, 2**32 - 1)
networks = pytest.mark.parametrize("network", NETWORKS)
State = dict[str, Tensor]


def planted(network: str, seed: int, noise: float = 0.0) -> tuple[State, State, PermutationSpec]:
    """A, and π(A) plus noise."""
    module, spec = NETWORKS[network][0]()
    a = randomised(module, seed)
    b = noisy(spec.apply(a, drawn(spec, seed)), noise, seed) if noise else None
    return a, b or spec.apply(a, drawn(spec, seed)), spec


def unrelated(network: str, seed: int) -> tuple[State, State, PermutationSpec]:
    module, spec = NETWORKS[network][0]()
    return randomised(module, seed), randomised(module, seed + 1), spec


def drawn(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    return spec.random(torch.Generator().manual_seed(seed))


def reference(a: State, b: State) -> float:
    """⟨θ_A, θ_B⟩ without BatchNorm's statistics, one float64 vector each."""
    names = [k for k in a if "running" not in k and "num_batches" not in k]
    one, two = (torch.cat([s[k].double().flatten() for k in names]) for s in (a, b))
    return float(one @ two)


def check_trace(match: Match, a: State, b: State, start: dict[str, Tensor] | None = None) -> None:
    """It begins at the start, rises, and ends at what the permutation is worth."""
    start = match.spec.identity() if start is None else start
    begin = reference(a, match.spec.apply(b, start))
    end = reference(a, match.apply(b))
    scale = math.sqrt(reference(a, a) * reference(b, b))
    assert match.objective[0] == pytest.approx(begin, abs=1e-10 * scale)
    assert match.objective[-1] == pytest.approx(end, abs=1e-10 * scale)
    assert all(later > earlier for earlier, later in zip(match.objective, match.objective[1:]))
    assert end >= begin


# ---- planted permutations -----------------------------------------------------------------------


@networks
@settings(deadline=None, max_examples=6)
@given(seed=seeds)
def test_planted_permutation_is_undone(network: str, seed: int) -> None:
    a, b, spec = planted(network, seed)
    match = match_weights(a, b, spec, seed=seed % 100)
    check_trace(match, a, b)
    assert match.converged
    if not equal(match.apply(b), a):
        # A local optimum, which is rare: restarts find the way out.
        match = match_weights(a, b, spec, seed=seed % 100, restarts=10)
        assert match.objective[-1] == pytest.approx(reference(a, a))
        assert equal(match.apply(b), a)


@pytest.mark.parametrize(
    ("network", "noise", "at_least"),
    [
        # Of 20 planted pairs, how many come back exactly. Measured: all; 15, 18 in the last two.
        ("mlp", 0.1, 20),
        ("cnn", 0.1, 20),
        ("residual", 0.1, 20),
        ("square", 0.1, 20),
        ("residual", 0.5, 18),
        ("residual", 1.0, 18),
        ("mlp", 1.0, 12),
        ("blocks", 1.0, 15),
    ],
)
def test_rate_of_recovery_under_noise(network: str, noise: float, at_least: int) -> None:
    undone = 0
    for seed in range(20):
        a, b, spec = planted(network, seed, noise)
        match = match_weights(a, b, spec, seed=seed)
        planted_back = spec.inverse(drawn(spec, seed))
        undone += equal(match.permutations, planted_back)
        # At least as good as the planted one, or it is a local optimum.
        assert match.objective[-1] > match.objective[0]
    print(f"{network}, noise {noise}: {undone}/20")
    assert undone >= at_least


def test_beginning_at_the_fixed_axes_helps() -> None:
    """Deep, under noise as large as the weights. Measured: 6 and 3 of 8, in 31 and 43 sweeps."""
    module, spec = mlp(4, 32, 32, 32, 32, 4)
    home, worth, sweeps = [0, 0], [0.0, 0.0], [0, 0]
    for seed in range(8):
        a = randomised(module, seed)
        b = noisy(spec.apply(a, drawn(spec, seed)), 1.0, seed)
        back = spec.inverse(drawn(spec, seed))
        for i, start in enumerate((None, spec.identity())):
            match = match_weights(a, b, spec, seed=seed, start=start)
            home[i] += equal(match.permutations, back)
            worth[i] += match.objective[-1] / reference(a, spec.apply(b, back)) / 8
            sweeps[i] += match.sweeps
    print(f"anchored, from the identity: {home}/8, {worth} of the planted objective, {sweeps}")
    assert worth[0] > 0.99
    assert worth[0] > worth[1] + 0.02
    assert home[0] > home[1]
    assert sweeps[0] < sweeps[1]


def test_modes_that_are_matched_stay_as_they_are() -> None:
    a, _, spec = planted("cnn", 0)
    match = match_weights(a, a, spec)
    assert equal(match.permutations, spec.identity())
    assert len(match.objective) == 1
    assert match.sweeps == 1


# ---- the objective ------------------------------------------------------------------------------


@networks
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_objective_rises_and_is_what_it_says(network: str, seed: int) -> None:
    a, b, spec = unrelated(network, seed)
    check_trace(match_weights(a, b, spec, seed=seed), a, b)
    assert inner_product(a, b) == pytest.approx(reference(a, b), rel=1e-12)
    start = drawn(spec, seed + 7)
    check_trace(match_weights(a, b, spec, seed=seed, start=start), a, b, start)
    check_trace(match_weights(a, b, spec, seed=seed, start=start, restarts=2), a, b, start)


def test_eq_3_is_the_same_objective() -> None:
    """‖A − π(B)‖² = ‖A‖² + ‖B‖² − 2⟨A, π(B)⟩, the paper's form."""
    a, b, spec = unrelated("mlp", 0)
    match = match_weights(a, b, spec)
    distance = sum(
        float((a[k].double() - v.double()).square().sum()) for k, v in match.apply(b).items()
    )
    norms = reference(a, a) + reference(b, b)
    assert distance == pytest.approx(norms - 2 * match.objective[-1], rel=1e-10)


def test_biases_and_norms_count_but_statistics_do_not() -> None:
    """Units that differ in one tensor alone are matched by it."""
    module, spec = cnn()
    # ±1, powers of two and so on: every unit's own, and the rest zero.
    for name, counts in [
        ("conv1.bias", True),
        ("bn1.weight", True),
        ("bn1.bias", True),
        ("bn1.running_mean", False),
        ("bn1.running_var", False),
    ]:
        a = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
        a[name] = torch.arange(1.0, 7.0)
        b = spec.apply(a, spec.identity() | {"conv1.weight": torch.tensor([3, 0, 5, 1, 2, 4])})
        moved = match_weights(a, b, spec).apply(b)
        assert torch.equal(moved[name], a[name]) == counts, name


def test_weights_can_be_named() -> None:
    a, b, spec = unrelated("mlp", 0)
    only = ["fc1.weight", "fc2.bias"]
    match = match_weights(a, b, spec, weights=only)
    moved = match.apply(b)
    want = sum(float((a[k].double() * moved[k].double()).sum()) for k in only)
    assert match.objective[-1] == pytest.approx(want, rel=1e-12)
    assert set(match.unmatched) == {"fc3.weight"}
    assert torch.equal(match.permutations["fc3.weight"], torch.arange(8))
    assert weight_names(a, only) == ("fc1.weight", "fc2.bias")


def test_the_scale_of_the_weights_does_not_matter() -> None:
    a, b, spec = unrelated("residual", 3)
    want = match_weights(a, b, spec)
    for scale in (1e-12, 1e12):
        scaled = {k: v.double() * scale for k, v in b.items()}
        got = match_weights({k: v.double() for k, v in a.items()}, scaled, spec)
        assert equal(got.permutations, want.permutations)


@networks
def test_relabelling_b_changes_nothing(network: str) -> None:
    """match(A, ρ(B)) gives the same π(B), if it begins at the same place."""
    a, b, spec = unrelated(network, 5)
    rho = drawn(spec, 1)
    match = match_weights(a, b, spec, start=spec.identity())
    other = match_weights(a, spec.apply(b, rho), spec, start=spec.inverse(rho))
    assert other.objective == pytest.approx(match.objective)
    assert equal(other.apply(spec.apply(b, rho)), match.apply(b))


# ---- optimality ---------------------------------------------------------------------------------


def every(spec: PermutationSpec) -> list[dict[str, Tensor]]:
    """All permutations of a spec without blocks."""
    each = [[torch.tensor(p) for p in permutations(range(g.size))] for g in spec.groups.values()]
    return [dict(zip(spec.groups, choice)) for choice in product(*each)]


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(2, 4), st.integers(2, 4))
def test_no_single_group_can_be_improved(seed: int, n1: int, n2: int) -> None:
    module, spec = mlp(3, n1, n2, 2)
    a, b = randomised(module, seed), randomised(module, seed + 1)
    match = match_weights(a, b, spec, seed=seed % 7)
    for group, g in spec.groups.items():
        for p in permutations(range(g.size)):
            other = match.permutations | {group: torch.tensor(p)}
            assert reference(a, spec.apply(b, other)) <= match.objective[-1] + 1e-9


def test_restarts_find_the_global_optimum_of_small_networks() -> None:
    once = restarted = 0
    for seed in range(12):
        module, spec = mlp(2, 4, 4, 2)
        a, b = randomised(module, seed), randomised(module, 100 + seed)
        best = max(reference(a, spec.apply(b, p)) for p in every(spec))
        once += match_weights(a, b, spec).objective[-1] > best - 1e-9
        match = match_weights(a, b, spec, restarts=12)
        check_trace(match, a, b)
        assert len(match.restarts) == 13
        assert max(match.restarts) == pytest.approx(match.objective[-1])
        restarted += match.objective[-1] > best - 1e-9
    print(f"global optimum: {once}/12 at once, {restarted}/12 with 12 restarts")
    assert restarted >= 11
    assert restarted >= once


def test_blocks_and_their_units_are_solved_together() -> None:
    """No tensor holds both: one step is the global optimum over 2!·3!² permutations."""
    module, spec = heads(2, 3)
    for seed in range(10):
        a, b = randomised(module, seed), randomised(module, seed + 50)
        match = match_weights(a, b, spec)
        inner = [torch.tensor(p) for p in permutations(range(3))]
        best = max(
            reference(
                a,
                spec.apply(
                    b, {"gate.weight": torch.tensor(o), "up.weight": torch.stack([one, two])}
                ),
            )
            for o in [(0, 1), (1, 0)]
            for one in inner
            for two in inner
        )
        assert match.objective[-1] == pytest.approx(best, rel=1e-9)
        assert match.converged


def test_a_square_weight_on_the_stream_is_quadratic() -> None:
    """The linearised step may be worse than none; it is then not taken."""
    module, spec = residual(d=5, blocks=2, square=True, inputs=2)
    (tree,) = find_trees(spec, weight_names(module.state_dict()))
    assert tree.quadratic == {"blocks.0.up.weight", "blocks.1.up.weight"}
    for seed in range(20):
        a, b = randomised(module, seed), randomised(module, seed + 99)
        start = drawn(spec, seed)
        check_trace(match_weights(a, b, spec, start=start), a, b, start)
        match = match_weights(a, b, spec, restarts=8)
        check_trace(match, a, b)
        best = max(reference(a, spec.apply(b, p)) for p in every(spec))
        assert match.objective[-1] <= best + 1e-9


def test_trees_of_a_plain_network_are_linear() -> None:
    for network in ("mlp", "cnn", "residual", "heads"):
        module, spec = NETWORKS[network][0]()
        for i, tree in enumerate(find_trees(spec, weight_names(module.state_dict()))):
            assert not tree.quadratic
            assert i not in tree.neighbours
    module, spec = NETWORKS["blocks"][0]()
    (tree,) = find_trees(spec, weight_names(module.state_dict()))
    assert list(tree.uses) == ["groups", "wide.weight", "grouped.weight"]
    assert tree.quadratic == {"grouped.weight"}


@networks
def test_the_end_is_where_a_fresh_run_takes_no_step(network: str) -> None:
    """What is kept up to date between steps is what would be computed anew.

    Half of the weights are zero, so that rows and columns change in some entries only.
    """
    for seed in range(6):
        a, b, spec = unrelated(network, 20 * seed)
        g = torch.Generator().manual_seed(seed)
        for value in (*a.values(), *b.values()):
            value *= torch.rand(value.shape, generator=g) > 0.5
        found = match_weights(a, b, spec, seed=seed, start=spec.identity())
        assert found.converged
        again = match_weights(a, b, spec, start=found.permutations)
        assert len(again.objective) == 1
        assert equal(again.permutations, found.permutations)


@networks
@pytest.mark.parametrize("restarts", [0, 2])
def test_never_worse_than_the_start(network: str, restarts: int) -> None:
    a, b, spec = unrelated(network, 11)
    good = match_weights(a, b, spec, restarts=5)
    again = match_weights(a, b, spec, start=good.permutations, restarts=restarts)
    assert again.objective[0] == pytest.approx(good.objective[-1])
    assert again.objective[-1] >= again.objective[0]


def test_sweeps_are_limited() -> None:
    a, b, spec = unrelated("residual", 2)
    full = match_weights(a, b, spec, start=spec.identity())
    assert full.converged
    assert full.sweeps > 1
    short = match_weights(a, b, spec, start=spec.identity(), max_sweeps=1)
    assert not short.converged
    assert short.sweeps == 1
    check_trace(short, a, b)


# ---- ties, precision, determinism ---------------------------------------------------------------


def test_ties_and_dead_units() -> None:
    """Dead units can go anywhere: objectives agree, permutations need not."""
    module, spec = mlp(4, 8, 6, 3)
    a = randomised(module, 0)
    for name in ("fc1.weight", "fc1.bias"):
        a[name][:3] = 0
    a["fc2.weight"][:, :3] = 0
    a["fc2.weight"][1] = a["fc2.weight"][0]  # twins
    a["fc2.bias"][1] = a["fc2.bias"][0]
    a["fc3.weight"][:, 1] = a["fc3.weight"][:, 0]
    b = spec.apply(a, drawn(spec, 0))
    match = match_weights(a, b, spec)
    assert match.objective[-1] == pytest.approx(reference(a, a))
    assert match.converged
    assert equal(match.apply(b), a)


def test_all_zero_and_all_equal_weights_settle() -> None:
    module, spec = mlp(3, 4, 4, 2)
    for value in (0.0, 1.0):
        a = {k: torch.full_like(v, value) for k, v in module.state_dict().items()}
        match = match_weights(a, a, spec, restarts=2)
        assert match.converged
        assert len(match.objective) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_compared_in_float64(dtype: torch.dtype) -> None:
    module, spec = cnn()
    a = randomised(module, 0, dtype)
    b = spec.apply(a, drawn(spec, 0))
    match = match_weights(a, b, spec)
    assert match.apply(b)["fc1.weight"].dtype == dtype
    assert equal(match.apply(b), a)
    check_trace(match, a, b)


@networks
def test_deterministic_whatever_the_threads(network: str) -> None:
    a, b, spec = unrelated(network, 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = match_weights(a, b, spec, seed=3, restarts=2)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not touched"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = match_weights(a, b, spec, seed=3, restarts=2)
    finally:
        torch.set_num_threads(threads)
    assert equal(first.permutations, again.permutations)
    assert first.objective == pytest.approx(again.objective, rel=1e-13)


def test_modes_are_not_changed_and_may_need_gradients() -> None:
    a, b, spec = unrelated("cnn", 0)
    copies = [{k: v.clone() for k, v in s.items()} for s in (a, b)]
    for state in (a, b):
        for value in state.values():
            if value.is_floating_point():
                value.requires_grad_()
    match_weights(a, b, spec, restarts=1)
    for state, copy in zip((a, b), copies):
        assert equal(state, copy)


# ---- side by side -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """As many as there were, after tests that change them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def descent(spec: PermutationSpec, a: State, b: State, start: State | None = None) -> Descent:
    names = weight_names(a)
    return Descent(find_trees(spec, names), a, b, spec, start or spec.identity(), names, Clock())


@pytest.mark.parametrize("network", [*NETWORKS, "deep", "wide"])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_the_same_on_any_number_of_threads(network: str, seed: int) -> None:
    build = {
        "deep": lambda: mlp(5, *[9] * 8, 4),
        "wide": lambda: residual(d=6, inner=9, blocks=8),
    }
    module, spec = build[network]() if network in build else NETWORKS[network][0]()
    a, b = randomised(module, seed), randomised(module, seed + 1)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(match_weights(a, b, spec, seed=seed % 100, restarts=1))
        assert torch.get_num_threads() == threads
    for other in found[1:]:
        assert equal(other.permutations, found[0].permutations)
        assert other.objective == pytest.approx(found[0].objective, rel=1e-13)
        assert (other.sweeps, other.restarts) == (found[0].sweeps, found[0].restarts)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, threads=st.sampled_from([1, 2, 5]))
def test_a_sweep_is_one_tree_after_the_other(seed: int, threads: int) -> None:
    """Each finds what its neighbours, and only they, have left: with steps made up."""
    module, spec = mlp(3, *[3] * 9, 2)
    whole = descent(spec, randomised(module, 0), randomised(module, 1))
    trees = whole.trees
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(trees), generator=g).tolist()
    chance = torch.rand(2, len(trees), generator=g)
    due = {i for i in range(len(trees)) if chance[0, i] < 0.7}

    def gain(i: int, state: list[int]) -> float:
        """Of the tree and its neighbours' numbers of steps; some are 0."""
        seen = sum(state[j] for j in trees[i].neighbours)
        return (seen + 1.0) * (chance[1, i].item() < 0.8)

    state, want, left = [0] * len(trees), [], set(due)
    for i in order:
        if i in left:
            left.discard(i)
            if value := gain(i, state):
                want.append(value)
                state[i] += 1
                left |= trees[i].neighbours

    now = [0] * len(trees)

    def improve(tree: weight.Tree) -> float:
        i = trees.index(tree)
        value = gain(i, now)
        now[i] += value > 0
        return value

    whole._improve = improve  # type: ignore[method-assign]
    with side_by_side(threads) as submit:
        assert whole._sweep(order, due, submit, threads) == want
    assert due == left
    assert now == state


def test_independent_trees_are_under_way_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches of a residual network, given its stream: each waits for the others to begin."""
    module, spec = residual(blocks=3)
    whole = descent(spec, randomised(module, 0), randomised(module, 1))
    together = threading.Barrier(3)
    threads_within = []

    def solve(*args: object) -> object:
        together.wait(timeout=60)
        threads_within.append(torch.get_num_threads())
        return assign_tree(*args)

    assign_tree = weight.assign_tree
    monkeypatch.setattr(weight, "assign_tree", solve)
    with side_by_side(3) as submit:
        whole._sweep([1, 2, 3], {1, 2, 3}, submit, 3)
    assert threads_within == [1, 1, 1]

    x = batches((8,), 20)
    together = threading.Barrier(len(spec.groups))
    monkeypatch.setattr(activation, "assign_tree", solve)
    torch.set_num_threads(len(spec.groups))
    a, b = randomised(module, 0), randomised(module, 1)
    activation.match_activations(a, b, spec, module, x)
    with ThreadPoolExecutor(1) as other:  # threads to come are as they would have been
        assert other.submit(torch.get_num_threads).result() == len(spec.groups)
    assert torch.get_num_threads() == len(spec.groups)


def test_with_one_thread_nothing_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, spec = unrelated("residual", 0)
    assign_tree, seen = weight.assign_tree, defaultdict(set)

    def solve(*args: object) -> object:
        seen[torch.get_num_threads()].add(threading.current_thread())
        return assign_tree(*args)

    monkeypatch.setattr(weight, "assign_tree", solve)
    torch.set_num_threads(1)
    match_weights(a, b, spec)
    assert seen == {1: {threading.current_thread()}}


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_a_thread_is_the_callers(threads: int) -> None:
    a, b, spec = unrelated("residual", 0)
    a["blocks.1.up.weight"][0] = torch.nan
    torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="not finite"):
        match_weights(a, b, spec, start=spec.identity())


@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
@pytest.mark.parametrize("network", ["mlp", "cnn", "residual"])
def test_prices_follow_their_units(network: str) -> None:
    """At the end they prove that no tree can be improved: each slot's unit suits it best."""
    for seed in range(5):
        a, b, spec = unrelated(network, 10 * seed)
        whole = descent(spec, a, b, drawn(spec, seed))
        with kernels.using("native"):
            whole.run(torch.Generator().manual_seed(seed), 100)
        for tree in whole.trees:
            value = whole._similarity[tree.root][0] - whole.prices[tree.root]
            assert torch.allclose(value.diagonal(), value.max(1).values, atol=1e-12)


def test_time_is_accounted_for() -> None:
    torch.set_num_threads(1)  # side by side, the parts' seconds may add up to more
    a, b, spec = unrelated("cnn", 0)
    seconds = match_weights(a, b, spec).seconds
    assert seconds["similarity"] > 0
    assert seconds["assignment"] > 0
    assert seconds["similarity"] + seconds["assignment"] <= seconds["total"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restarts": -1}, "restarts ≥ 0"),
        ({"max_sweeps": 0}, "max_sweeps ≥ 1"),
        ({"weights": ["fc9.weight"]}, "'fc9.weight' is no floating tensor"),
        ({"start": {}}, "do not fit the spec"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    a, b, spec = unrelated("mlp", 0)
    with pytest.raises(ValueError, match=message):
        match_weights(a, b, spec, **options)
    with pytest.raises(TypeError, match="not the string"):
        match_weights(a, b, spec, weights="fc1.weight")
