"""Straight-through matching: the gradient, the selection on held-out data, the start."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.matching import ste
from llfc_core.matching.ste import match_straight_through, midpoint
from llfc_core.matching.weight import match_weights
from llfc_core.pairs import interpolate

from .specs import NETWORKS, batches, cnn, equal, mlp, noisy, randomised

networks = pytest.mark.parametrize("network", NETWORKS)
State = dict[str, Tensor]


def loss_halfway(module: nn.Module, a: State, b: State, data: list[tuple[Tensor, Tensor]]) -> float:
    """The mean loss of ½(A + B) in eval mode, one input at a time."""
    module.eval()
    middle = interpolate(a, b, 0.5)
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(torch.func.functional_call(module, middle, (x[None],)), y[None]))
            for xs, ys in data
            for x, y in zip(xs, ys)
        ]
    return sum(losses) / len(losses)


# ---- straight through ---------------------------------------------------------------------------


def test_gradient_goes_straight_through() -> None:
    """½(A + θ̂ₛₜ): the value of ½(A + π(B)), the gradient half of the loss's there."""
    module, spec = mlp(4, 6, 5, 3)
    module.double()
    a, b, free = (randomised(module, s, torch.float64) for s in range(3))
    permuted = spec.apply(b, spec.random(torch.Generator().manual_seed(0)))
    free = {k: v.requires_grad_() for k, v in free.items()}
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))

    middle = midpoint(a, permuted, free)
    for name, value in interpolate(a, permuted, 0.5).items():
        torch.testing.assert_close(middle[name], value, rtol=1e-14, atol=1e-14)
    F.cross_entropy(torch.func.functional_call(module, middle, (x,)), y).backward()

    leaf = {k: v.detach().clone().requires_grad_() for k, v in middle.items()}
    F.cross_entropy(torch.func.functional_call(module, leaf, (x,)), y).backward()
    for name in a:
        torch.testing.assert_close(free[name].grad, leaf[name].grad / 2)
    assert any(v.grad.abs().max() > 1e-3 for v in free.values() if v.grad is not None)


def test_what_is_not_matched_gets_no_gradient() -> None:
    module, _ = cnn()
    a, b = randomised(module, 0), randomised(module, 1)
    a["bn1.num_batches_tracked"] = torch.tensor(3)
    free = {"fc1.bias": a["fc1.bias"].clone().requires_grad_()}
    middle = midpoint(a, b, free)
    assert middle["fc1.bias"].requires_grad
    assert not middle["bn1.running_var"].requires_grad
    want = (a["bn1.running_var"] + b["bn1.running_var"]) / 2
    torch.testing.assert_close(middle["bn1.running_var"], want)
    assert middle["bn1.num_batches_tracked"] == 3


def test_a_run_against_the_loop_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps written out: match θ̂ and B, step along the gradient at the midpoint."""
    module, spec = mlp(4, 6, 5, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    data, held = batches((4,), 48, size=8), batches((4,), 16, seed=1)
    path: list[tuple[State, State]] = []

    def recorded(a: State, permuted: State, free: State) -> State:
        path.append((permuted, {k: v.detach().clone() for k, v in free.items()}))
        return midpoint(a, permuted, free)

    monkeypatch.setattr(ste, "midpoint", recorded)
    match = match_straight_through(
        a, b, spec, module, data, held, lr=5.0, momentum=0.9, steps=6, every=1, sweeps=50, seed=5
    )

    x, y = (torch.cat(part) for part in zip(*data))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(5))
    start = match_weights(a, b, spec, seed=5).permutations
    free = {k: v.clone() for k, v in a.items()}
    velocity = {k: torch.zeros_like(v) for k, v in a.items()}
    candidates, perms = [start], start
    for here, (permuted, at_step) in zip(order.split(8), path, strict=True):
        perms = match_weights(free, b, spec, start=perms).permutations
        candidates.append(perms)
        assert equal(permuted, spec.apply(b, perms))
        torch.testing.assert_close(at_step, free)
        at = {k: v.clone().requires_grad_() for k, v in interpolate(a, permuted, 0.5).items()}
        F.cross_entropy(torch.func.functional_call(module, at, (x[here],)), y[here]).backward()
        for k, v in at.items():
            assert v.grad is not None
            velocity[k] = 0.9 * velocity[k] + v.grad / 2
            free[k] = free[k] - 5.0 * velocity[k]
    losses = [loss_halfway(module, a, spec.apply(b, p), held) for p in candidates]
    assert match.objective[0] == pytest.approx(losses[0], rel=1e-5)
    assert match.objective[-1] == pytest.approx(min(losses), rel=1e-5)
    assert len({round(v, 6) for v in losses}) > 2, "the loop must get somewhere else"


# ---- selection ----------------------------------------------------------------------------------


@networks
def test_never_worse_on_held_out_data_than_weight_matching(network: str) -> None:
    build, shape = NETWORKS[network]
    improved = 0
    for seed in range(3):
        module, spec = build()
        a = randomised(module, seed)
        p = spec.random(torch.Generator().manual_seed(seed))
        b = noisy(spec.apply(a, p), 1.0, seed)
        data, held = batches(shape, 48, seed), batches(shape, 30, seed + 100)
        match = match_straight_through(
            a, b, spec, module, data, held, steps=15, every=3, lr=0.1, seed=seed
        )
        weight = match_weights(a, b, spec, seed=seed)
        start = loss_halfway(module, a, weight.apply(b), held)
        end = loss_halfway(module, a, match.apply(b), held)
        assert match.objective[0] == pytest.approx(start, rel=1e-5)
        assert match.objective[-1] == pytest.approx(end, rel=1e-5)
        assert end <= start * (1 + 1e-6)
        falls = itertools.pairwise(match.objective)
        assert all(later < earlier for earlier, later in falls)
        improved += len(match.objective) > 1
    print(f"{network}: better than weight matching in {improved}/3")


def test_planted_permutation_is_undone() -> None:
    module, spec = mlp(5, 12, 10, 4)
    a = randomised(module, 0)
    b = spec.apply(a, spec.random(torch.Generator().manual_seed(1)))
    data = batches((5,), 40)
    match = match_straight_through(a, b, spec, module, data, steps=5)
    assert equal(match.apply(b), a)


def test_held_out_data_chooses() -> None:
    """Two sets with opposite labels: what is chosen is best on the one held out."""
    module, spec = mlp(4, 10, 10, 4)
    chosen = set()
    for seed in range(6):
        a, b = randomised(module, seed), randomised(module, seed + 50)
        data, held = batches((4,), 40, seed), batches((4,), 40, seed + 1)
        other = [(x, (y + 1) % 4) for x, y in held]
        options = {"steps": 30, "every": 1, "lr": 0.5, "seed": seed}
        one = match_straight_through(a, b, spec, module, data, held, **options)  # type: ignore[arg-type]
        two = match_straight_through(a, b, spec, module, data, other, **options)  # type: ignore[arg-type]
        # Both went the same way and saw the same permutations.
        for match, where in ((one, held), (two, other)):
            mine = loss_halfway(module, a, match.apply(b), where)
            for rival in (one, two):
                assert mine <= loss_halfway(module, a, rival.apply(b), where) + 1e-5
        chosen.add(equal(one.permutations, two.permutations))
    assert False in chosen, "somewhere the choice must depend on the data held out"


def test_a_tenth_is_held_out_by_default() -> None:
    """It is not trained on, it is the seed's, and it is a tenth."""
    data = batches((4,), 50, size=20)
    seen = {}
    for seed in (0, 0, 1):
        (train, held, size) = ste._split(
            data, None, None, torch.Generator().manual_seed(seed), torch.device("cpu")
        )
        assert size == 20
        assert len(train[1]) == 45
        assert sum(len(y) for _, y in held) == 5
        rows = [tuple(row.tolist()) for x in (train[0], *(x for x, _ in held)) for row in x]
        assert sorted(rows) == sorted(tuple(r.tolist()) for x, _ in data for r in x)
        seen.setdefault(seed, held[0][0])
        assert torch.equal(seen[seed], held[0][0])
    assert not torch.equal(seen[0], seen[1])


def test_permutations_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, spec = mlp(4, 6, 5, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    looks = []
    plain = ste._mean_loss
    monkeypatch.setattr(ste, "_mean_loss", lambda *args: looks.append(0) or plain(*args))
    match_straight_through(a, b, spec, module, batches((4,), 40), steps=20, every=1, lr=1e-9)
    assert len(looks) == 1, "at so small a rate the permutation never changes"


def test_the_start_is_a_candidate() -> None:
    module, spec = mlp(4, 6, 5, 4)
    data, held = batches((4,), 40), batches((4,), 40, seed=1)
    for seed in range(4):
        a, b = randomised(module, seed), randomised(module, seed + 9)
        start = spec.random(torch.Generator().manual_seed(seed))
        match = match_straight_through(
            a, b, spec, module, data, held, steps=4, every=2, start=start
        )
        begin = loss_halfway(module, a, spec.apply(b, start), held)
        assert match.objective[0] == pytest.approx(begin, rel=1e-5)
        assert match.objective[-1] <= match.objective[0]


# ---- manners ------------------------------------------------------------------------------------


def test_deterministic_and_leaves_everything_alone() -> None:
    module, spec = cnn()
    module.train()
    a, b = randomised(module, 0), randomised(module, 1)
    copies = [{k: v.clone() for k, v in s.items()} for s in (a, b, module.state_dict())]
    data = batches((1, 6, 6), 40)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    runs = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            runs.append(match_straight_through(a, b, spec, module, data, steps=8, every=2, seed=4))
        finally:
            torch.set_num_threads(threads)
    one, two = runs
    assert equal(one.permutations, two.permutations)
    assert one.objective == pytest.approx(two.objective)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training
    for state, copy in zip((a, b, module.state_dict()), copies):
        assert equal(state, copy)
    assert all(p.grad is None for p in module.parameters())
    assert one.sweeps == 8
    assert {"similarity", "assignment", "gradient", "selection", "total"} == set(one.seconds)


def test_seed_orders_the_data() -> None:
    module, spec = mlp(4, 8, 8, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    held = batches((4,), 20, seed=1)
    results = {
        match_straight_through(
            a, b, spec, module, batches((4,), 64), held, steps=20, every=1, lr=1.0, seed=s
        ).objective[1:]
        for s in range(4)
    }
    assert len(results) > 1


def test_another_loss() -> None:
    module, spec = mlp(4, 6, 3)
    a, b = randomised(module, 0), randomised(module, 1)
    g = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 4, generator=g), torch.randn(8, 3, generator=g)) for _ in range(5)]
    match = match_straight_through(a, b, spec, module, data, data, loss=F.mse_loss, epochs=1)
    middle = interpolate(a, match.apply(b), 0.5)
    x, y = (torch.cat(part) for part in zip(*data))
    want = float(F.mse_loss(torch.func.functional_call(module, middle, (x,)), y))
    assert match.objective[-1] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1, "steps": 1}, "epochs or steps"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"momentum": 1.0}, "momentum < 1"),
        ({"loss": lambda out, labels: out.sum() * torch.nan}, "halfway between A and π.B. is nan"),
    ],
)
def test_refused_numbers(options: dict, message: str) -> None:
    module, spec = mlp(4, 6, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    with pytest.raises(ValueError, match=message):
        match_straight_through(a, b, spec, module, batches((4,), 20), **options)


def test_refused_data() -> None:
    module, spec = mlp(4, 6, 4)
    a = randomised(module, 0)
    run = (a, a, spec, module)
    with pytest.raises(ValueError, match="no data"):
        match_straight_through(*run, [])
    with pytest.raises(ValueError, match="no data"):
        match_straight_through(*run, batches((4,), 8), [])
    with pytest.raises(ValueError, match="give held_out"):
        match_straight_through(*run, batches((4,), 1))
    with pytest.raises(TypeError, match=r"batches \(inputs, labels\)"):
        match_straight_through(*run, [torch.zeros(3, 4)])
    with pytest.raises(ValueError, match="3 inputs with 2 labels"):
        match_straight_through(*run, [(torch.zeros(3, 4), torch.zeros(2).long())])
