"""Commutativity matching: against residuals of really permuted networks, brute force, planting."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.func import functional_call

from llfc_core.features import inputs_of
from llfc_core.matching import PermutationSpec, derive_spec, residuals
from llfc_core.matching.activation import match_activations
from llfc_core.matching.commutativity import STARTS, VARIANTS, best_step, match_commutativity
from llfc_core.matching.residuals import Objective, commutativity_objective
from llfc_core.matching.weight import match_weights
from llfc_core.metrics.commutativity import SUMS, CommutativityAccumulator, apply_without_bias
from llfc_core.nets import Net, build

from .specs import NETWORKS, batches, equal, mlp, noisy, randomised

State = dict[str, Tensor]
seeds = st.integers(0, 2**31)


class Padded(nn.Module):
    """Convolutions of every kind of padding, stride and dilation, and in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding="valid")
        self.two = nn.Conv2d(4, 6, 4, padding="same", dilation=2)
        self.three = nn.Conv2d(6, 4, 3, stride=2, padding=(1, 2), padding_mode="circular", groups=2)
        self.four = nn.Conv2d(4, 3, (2, 3), padding=(0, 1), padding_mode="reflect", bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (n, 2, 11, 7)
        for layer in (self.one, self.two, self.three):
            x = layer(x).relu()
        return self.four(x).mean((2, 3))


class Mixer(nn.Module):
    """Tokens are mixed by a map on whose inputs channels, which may be permuted, lie along too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.tokens = nn.Linear(5, 4)
        self.back = nn.Linear(4, 5)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:  # (n, 5, 3)
        h = self.embed(x).relu()
        h = h + self.back(self.tokens(h.transpose(1, 2)).relu()).transpose(1, 2)
        return self.head(h.mean(1))


def derived(module: nn.Module, *shape: int) -> tuple[nn.Module, PermutationSpec]:
    return module, derive_spec(module.eval(), torch.randn(2, *shape))


CASES: dict[str, tuple[Any, tuple[int, ...]]] = NETWORKS | {
    "padded": (lambda: derived(Padded(), 2, 11, 7), (2, 11, 7)),
    "mixer": (lambda: derived(Mixer(), 5, 3), (5, 3)),
    "resnet20": (
        lambda: derived(
            build(Net("resnet20", (2, 3, 4), norm="layer", shortcut="conv3x3"), (1, 8, 8), 4),
            *(1, 8, 8),
        ),
        (1, 8, 8),
    ),
}
MAPS = {"mlp": 3, "cnn": 3, "residual": 7, "square": 4, "blocks": 2, "heads": 1, "padded": 3}
MAPS |= {"mixer": 1, "resnet20": 21}


def case(name: str, seed: int) -> tuple[nn.Module, PermutationSpec, State, State, list[Any]]:
    make, shape = CASES[name]
    module, its_spec = make()
    data = batches(shape, 24, seed)
    return module, its_spec, randomised(module, seed), randomised(module, seed + 1), data


def inputs(module: nn.Module, state: State, x: Tensor) -> dict[str, Tensor]:
    """What goes into the linear maps, kept whole in float64."""
    maps = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    seen: dict[str, Tensor] = {}
    exact = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    with inputs_of(maps, lambda name, h: seen.update({name: h.clone()})), torch.no_grad():
        functional_call(module.double().eval(), exact, (x.double(),))
    module.float()
    return seen


def naive(module: nn.Module, a: State, b: State, x: Tensor) -> dict[str, float]:
    """‖R‖²/ν of each map as the metric measures it, ν by applying each weight."""
    of_a, of_b = inputs(module, a, x), inputs(module, b, x)
    found = {}
    for name, h in of_a.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        w_a, w_b = a[f"{name}.weight"].double(), b[f"{name}.weight"].double()
        metric = CommutativityAccumulator(layer, w_a, w_b)
        metric.update(h, of_b[name])
        own = (apply_without_bias(layer, w_a, h), apply_without_bias(layer, w_b, of_b[name]))
        norm = 2 * sum(float(y.square().sum()) for y in own)
        found[name] = metric.result().sums[SUMS.index("DD")] / norm
    return found


def matrices(objective: Objective, seed: int) -> dict[str, Tensor]:
    """Any matrices: the extension is a polynomial everywhere."""
    g = torch.Generator().manual_seed(seed)
    sizes = {k: p.numel() for k, p in objective.moves(objective.spec.identity()).items()}
    return {k: torch.randn(n, n, generator=g, dtype=torch.float64) for k, n in sizes.items()}


# ---- the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_objective_is_the_metric_s_on_permuted_networks(name: str) -> None:
    module, its_spec, a, b, data = case(name, 0)
    x = torch.cat([x for x, _ in data])
    objective = commutativity_objective(a, b, its_spec, module, data)
    assert len(objective.terms) == MAPS[name]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        perms = its_spec.random(generator)
        want = naive(module, a, its_spec.apply(b, perms), x)
        got = objective.by_map(perms)
        assert got == pytest.approx({k: want[k] for k in got}, rel=1e-5, abs=2e-6)
        assert objective.value(perms) == pytest.approx(sum(want[k] for k in got), abs=1e-5)
        # Where a map reads the data there is nothing to commute. (A mixer's are left out.)
        if name != "mixer":
            assert all(want[k] == 0 for k in want.keys() - got.keys())


@pytest.mark.parametrize("name", CASES)
def test_extension_agrees_with_residuals_on_permutations(name: str) -> None:
    module, its_spec, a, b, data = case(name, 1)
    objective = commutativity_objective(a, b, its_spec, module, data)
    slots = objective.moves(its_spec.random(torch.Generator().manual_seed(1)))
    square = {k: torch.eye(len(p), dtype=torch.float64)[p] for k, p in slots.items()}
    for term in objective.terms.values():
        want = float(term.residual(slots))
        for moves in (slots, square):
            assert term.value(term.products(moves), moves) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_autograd_s(name: str) -> None:
    module, its_spec, a, b, data = case(name, 2)
    objective = commutativity_objective(a, b, its_spec, module, data)
    moves = {k: v.requires_grad_() for k, v in matrices(objective, 2).items()}
    for term in objective.terms.values():
        here = {k: moves[k] for k in dict.fromkeys(term.groups)}
        products = term.products(moves)
        want = torch.autograd.grad(torch.tensor(0.0) + extended(term, moves), list(here.values()))
        got = term.gradient(products, moves)
        assert got.keys() == here.keys()
        for group, gradient in zip(here, want, strict=True):
            torch.testing.assert_close(got[group], gradient, rtol=1e-9, atol=1e-9)


def extended(term: Any, moves: dict[str, Tensor]) -> Tensor:
    """A.3 with the right sign, its QᵀQ and PᵀP left out, in traces of matrices made whole."""
    w_a, w_b = term.a.T, term.b.T

    def whole(side: Any) -> Tensor:
        result = torch.eye(len(side.index), dtype=torch.float64)
        for group, entries in side.entries.items():
            for p in range(entries.shape[1]):
                at = entries[:, p]
                result = result.index_put((at[:, None], at[None]), moves[group])
        return result

    P, Q = whole(term.rows), whole(term.columns)
    k_a, k_b = w_a.T @ w_a, w_b.T @ w_b
    first = k_a @ (term.AA - 2 * term.AB @ Q.T + Q @ term.BB @ Q.T)
    second = k_b @ (Q.T @ term.AA @ Q - 2 * Q.T @ term.AB + term.BB)
    S = term.AA @ Q - term.AB - Q @ term.AB.T @ Q + Q @ term.BB
    return torch.trace(first) + torch.trace(second) - 2 * (P * (w_a @ S @ w_b.T)).sum()


@pytest.mark.parametrize("name", CASES)
def test_extension_is_a_3_and_a_cubic_along_a_segment(name: str) -> None:
    module, its_spec, a, b, data = case(name, 3)
    objective = commutativity_objective(a, b, its_spec, module, data)
    x, y = matrices(objective, 0), matrices(objective, 1)
    for term in objective.terms.values():
        values = []
        for s in (0.0, 1.0, 2.0, 3.0):
            moves = {k: torch.lerp(x[k], y[k], s) for k in x}
            values.append(term.value(term.products(moves), moves))
            assert values[-1] == pytest.approx(float(extended(term, moves)), rel=1e-9, abs=1e-9)
        cube = np.polyfit([0, 1, 2, 3], values, 3)[0]
        found = term.cube(term.products(x), term.products(y), x, y)
        assert found == pytest.approx(cube, rel=1e-7, abs=1e-7 * max(map(abs, values)))
    # What Frank-Wolfe carries along is linear in Q.
    term = next(iter(objective.terms.values()))
    half = {k: torch.lerp(x[k], y[k], 0.5) for k in x}
    torch.testing.assert_close(
        term.products(half), torch.lerp(term.products(x), term.products(y), 0.5)
    )


@pytest.mark.parametrize("name", ["mlp", "cnn", "padded"])
def test_batches_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not their sizes, nor how many windows are unfolded at a time; and all of them count."""
    module, its_spec, a, b, data = case(name, 4)
    x = torch.cat([x for x, _ in data])
    perms = its_spec.random(torch.Generator().manual_seed(4))

    def value(data: Any) -> float:
        return commutativity_objective(a, b, its_spec, module, data).value(perms)

    want = value([x])
    assert value(iter(x.split(7))) == pytest.approx(want, rel=1e-5)
    monkeypatch.setattr(residuals, "UNFOLD", 1)
    assert value([x[:0], x]) == pytest.approx(want, rel=1e-5)
    assert value([x[:-8]]) != pytest.approx(want, rel=1e-3)


def test_maps_that_gram_matrices_cannot_speak_of_are_left_out() -> None:
    module, its_spec, a, b, data = case("mixer", 0)
    objective = commutativity_objective(a, b, its_spec, module, data)
    assert list(objective.terms) == ["head"]
    found = match_commutativity(a, b, its_spec, module, data)
    assert found.unmatched.keys() == {"tokens.weight"}
    weights = match_weights(a, b, its_spec, seed=0)
    assert torch.equal(found.permutations["tokens.weight"], weights.permutations["tokens.weight"])


def test_features_that_are_not_finite_are_refused() -> None:
    module, its_spec, a, b, data = case("mlp", 0)
    for bad in (torch.nan, torch.inf):
        x = data[1][0].clone()
        x[3, 2] = bad
        with pytest.raises(ValueError, match="not finite"):
            match_commutativity(a, b, its_spec, module, [data[0], (x, data[1][1])])


# ---- the search ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.tuples(*[st.floats(-10, 10)] * 3))
def test_best_step_against_a_grid(coefficients: tuple[float, float, float]) -> None:
    def f(s: Any) -> Any:
        slope, square, cube = coefficients
        return slope * s + square * s**2 + cube * s**3

    step = best_step(*coefficients)
    assert 0 <= step <= 1
    assert f(step) <= f(np.linspace(0, 1, 2001)).min() + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_no_permutation_is_better(seed: int) -> None:
    """None of the 3!·4!·3! of a network, the best of which is really permuted and run."""
    module, its_spec = mlp(3, 3, 4, 3, 2)
    a, b = randomised(module, seed), randomised(module, seed + 1)
    data = batches((3,), 20, seed)
    objective = commutativity_objective(a, b, its_spec, module, data)
    each = [
        [torch.tensor(p) for p in permutations(range(g.size))] for g in its_spec.groups.values()
    ]
    every = [dict(zip(its_spec.groups, p)) for p in product(*each)]
    best = min(every, key=objective.value)
    x = torch.cat([x for x, _ in data])
    assert objective.value(best) == pytest.approx(
        sum(naive(module, a, its_spec.apply(b, best), x).values()), abs=1e-6
    )
    found = match_commutativity(a, b, its_spec, module, data, seed=seed, restarts=10)
    assert found.objective[-1] <= objective.value(best) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, "both") for name in CASES] + [("residual", v) for v in VARIANTS if v != "both"],
)
def test_never_worse_than_any_start(name: str, variant: Any) -> None:
    module, its_spec, a, b, data = case(name, 5)
    run: dict[str, Any] = {"seed": 5, "restarts": 1, "variant": variant, "max_iterations": 2}
    start = its_spec.random(torch.Generator().manual_seed(5))
    found = match_commutativity(a, b, its_spec, module, data, start=start, **run)
    objective = commutativity_objective(a, b, its_spec, module, data)
    assert found.objective[0] == objective.value(start)
    assert found.objective[-1] == objective.value(found.permutations) == min(found.restarts)
    assert list(found.objective) == sorted(found.objective, reverse=True)
    assert len(found.restarts) == 4
    weights = match_weights(a, b, its_spec, seed=5)
    for k, name in enumerate(STARTS):
        alone = match_commutativity(
            a, b, its_spec, module, data, **{**run, "start": start, "starts": [name], "restarts": 0}
        )
        assert found.restarts[k] <= alone.objective[0] * (1 + 1e-9)
        if name == "weight":
            assert alone.objective[0] == objective.value(weights.permutations)
    assert found.converged
    again = match_commutativity(a, b, its_spec, module, data, start=start, **run)
    assert equal(found.permutations, again.permutations)
    assert found.objective == again.objective


def test_activation_s_start_is_activation_matching_on_an_mlp() -> None:
    """There the inputs of the maps are the features behind the activations."""
    module, its_spec, a, b, data = case("mlp", 6)
    alone = match_commutativity(a, b, its_spec, module, data, starts=["activation"], restarts=0)
    want = match_activations(a, b, its_spec, module, data).permutations
    objective = commutativity_objective(a, b, its_spec, module, data)
    assert alone.objective[0] == pytest.approx(objective.value(want), rel=1e-5)


@settings(deadline=None, max_examples=4)
@given(seed=seeds)
def test_relabelling_either_network_changes_nothing(seed: int) -> None:
    """From the same start, in the new labels: the same pair of networks, relabelled as A is."""
    module, its_spec = mlp(5, 7, 6, 4)
    a, b = randomised(module, seed), randomised(module, seed + 1)
    data = batches((5,), 60, seed)
    g = torch.Generator().manual_seed(seed)
    start, rho, sigma = (its_spec.random(g) for _ in range(3))

    def run(a: State, b: State, start: Any) -> Any:
        return match_commutativity(
            a, b, its_spec, module, data, seed=seed, start=start, starts=["identity"], restarts=0
        )

    plain = run(a, b, start)
    # π on B is π∘σ⁻¹ on σ(B), and ρ∘π where A is ρ(A).
    moved = its_spec.compose(its_spec.inverse(sigma), its_spec.compose(start, rho))
    other = run(its_spec.apply(a, rho), its_spec.apply(b, sigma), moved)
    assert other.objective[0] == pytest.approx(plain.objective[0], rel=1e-5)
    assert other.objective[-1] == pytest.approx(plain.objective[-1], rel=1e-5)
    got = other.apply(its_spec.apply(b, sigma))
    assert equal(got, its_spec.apply(plain.apply(b), rho))


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "resnet20", "blocks"])
def test_planted_permutations_are_undone(name: str) -> None:
    for seed in range(1 if name == "resnet20" else 2):
        module, its_spec, a, _, data = case(name, seed)
        planted = its_spec.random(torch.Generator().manual_seed(seed))
        b = its_spec.apply(a, planted)
        found = match_commutativity(a, b, its_spec, module, data, max_iterations=5, restarts=0)
        assert found.objective[-1] == pytest.approx(0, abs=1e-6)
        # Dead units may go anywhere, so weights need not agree; what the maps read must.
        x, moved = data[0][0], inputs(module, found.apply(b), data[0][0])
        for name_, h in inputs(module, a, x).items():
            torch.testing.assert_close(moved[name_], h, rtol=1e-4, atol=1e-5)


def test_planted_permutations_are_undone_in_noise() -> None:
    """From a random start alone: the share of units that come home."""
    module, its_spec = mlp(8, 24, 24, 24, 4)
    home = []
    for seed in range(3):
        a = randomised(module, seed)
        planted = its_spec.random(torch.Generator().manual_seed(seed))
        b = noisy(its_spec.apply(a, planted), 0.1, seed)
        data = batches((8,), 300, seed, size=100)
        found = match_commutativity(a, b, its_spec, module, data, starts=[], restarts=4)
        back = its_spec.inverse(planted)
        home += [(found.permutations[k] == back[k]).float().mean() for k in back]
    share = float(torch.stack(home).mean())
    print(f"{share:.2f} of the units come home")
    assert share > 0.8, "at random it is 0.04"


def test_it_lowers_what_the_others_lower_by_a_factor_only() -> None:
    module, its_spec = mlp(6, 16, 16, 16, 4)
    for seed in range(2):
        a, b = randomised(module, seed), randomised(module, seed + 9)
        data = batches((6,), 200, seed, size=100)
        objective = commutativity_objective(a, b, its_spec, module, data)
        found = match_commutativity(a, b, its_spec, module, data, starts=["activation"])
        by_weight = match_weights(a, b, its_spec, seed=seed).permutations
        by_activation = match_activations(a, b, its_spec, module, data).permutations
        least = min(map(objective.value, (by_weight, by_activation)))
        assert found.objective[-1] < 0.9 * least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "all"}, "no variant 'all'; there are both, joint, layers"),
        ({"starts": ["weights"]}, "starts: a collection of identity, weight, activation"),
        ({"starts": "weight"}, "starts: a collection"),
        ({"starts": [], "restarts": 0}, "no start"),
        ({"restarts": -1}, "restarts, tolerance ≥ 0"),
        ({"tolerance": -1.0}, "restarts, tolerance ≥ 0"),
        ({"max_iterations": 0}, "max_iterations, max_sweeps ≥ 1"),
        ({"start": {}}, "permutations do not fit"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    module, its_spec, a, b, data = case("mlp", 0)
    with pytest.raises(ValueError, match=message):
        match_commutativity(a, b, its_spec, module, data, **arguments)


def test_a_network_without_anything_to_commute() -> None:
    module, its_spec = derived(nn.Sequential(nn.Linear(3, 2)), 3)
    a, b = randomised(module, 0), randomised(module, 1)
    found = match_commutativity(a, b, its_spec, module, batches((3,), 8))
    assert found.objective == (0.0,)
    assert found.permutations == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_but_the_assignments_is_on_the_device_of_the_states() -> None:
    module, its_spec, a, b, data = case("resnet20", 0)
    here = match_commutativity(a, b, its_spec, module, data)
    device = torch.device("cuda")
    a, b = ({k: v.to(device) for k, v in s.items()} for s in (a, b))
    there = match_commutativity(a, b, its_spec, module.to(device), data)
    assert there.objective[-1] == pytest.approx(here.objective[-1], rel=0.05)
    assert all(p.device.type == "cpu" for p in there.permutations.values())
