"""The line between two modes, and the control that only looks like a pair."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from llfc_core.pairs import (
    ModePair,
    check_states,
    interpolate,
    loss_barrier,
    shuffled_difference,
)

seeds = st.integers(0, 2**32 - 1)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def states(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two states with counters of 3 and 7."""
    g = torch.Generator().manual_seed(seed)
    a, b = (
        {
            k: torch.randn(v.shape, generator=g) if v.is_floating_point() else torch.tensor(count)
            for k, v in net().state_dict().items()
        }
        for count in (3, 7)
    )
    return a, b


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0, 1))
def test_interpolate(seed: int, alpha: float) -> None:
    a, b = states(seed)
    at = interpolate(a, b, alpha)
    assert at.keys() == a.keys()
    for k, v in at.items():
        assert v.dtype == a[k].dtype
        if v.is_floating_point():
            want = alpha * a[k].double() + (1 - alpha) * b[k].double()
            torch.testing.assert_close(v.double(), want, rtol=1e-6, atol=1e-6)
        else:
            assert v.item() == 3, "counters are A's"


def test_interpolate_alpha_1_is_a_and_alpha_0_is_b() -> None:
    a, b = states(0)
    for k in a:
        assert torch.equal(interpolate(a, b, 1.0)[k], a[k])
        if a[k].is_floating_point():
            assert torch.equal(interpolate(a, b, 0.0)[k], b[k])
            assert not torch.equal(a[k], b[k])


def test_interpolate_leaves_the_modes_alone() -> None:
    a, b = states(0)
    before = {k: v.clone() for k, v in {**a, **{f"b.{k}": v for k, v in b.items()}}.items()}
    for v in interpolate(a, b, 0.5).values():
        if v.is_floating_point():
            v.zero_()
    for k, v in {**a, **{f"b.{k}": v for k, v in b.items()}}.items():
        assert torch.equal(v, before[k])


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(0, 1000))
def test_shuffled_difference_is_as_long_and_has_the_same_entries(seed: int, shuffle: int) -> None:
    # Multiples of 1/8 below 2^10: float32 adds and subtracts them without rounding.
    a, b = (
        {k: (8 * v).round() / 8 if v.is_floating_point() else v for k, v in s.items()}
        for s in states(seed)
    )
    moved = shuffled_difference(a, b, shuffle)
    assert moved.keys() == a.keys()
    for k, v in moved.items():
        if not v.is_floating_point() or "running" in k:
            assert torch.equal(v, a[k])  # counters, and BatchNorm's statistics
            continue
        step, want = (v - a[k]).flatten(), (b[k] - a[k]).flatten()
        assert torch.equal(step.sort().values, want.sort().values)
        assert torch.equal(step.square().sort().values.sum(), want.square().sort().values.sum())


def test_shuffled_difference_is_another_direction() -> None:
    a, b = states(1)
    moved = shuffled_difference(a, b, 0)
    for k in ("0.weight", "3.weight"):
        step, want = moved[k] - a[k], b[k] - a[k]
        assert not torch.equal(step, want)
        assert abs(float(torch.cosine_similarity(step.flatten(), want.flatten(), dim=0))) < 0.7
        assert moved[k].shape == a[k].shape


def test_shuffled_difference_is_a_function_of_its_seed() -> None:
    a, b = states(1)
    first, again, other = (shuffled_difference(a, b, s)["3.weight"] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shuffled_difference_of_a_mode_with_itself_is_the_mode() -> None:
    a, _ = states(1)
    for k, v in shuffled_difference(a, a, 0).items():
        assert torch.equal(v, a[k])


def test_check_states_accepts_two_states() -> None:
    a, b = states(0)
    check_states(net(), a, b)
    pair = ModePair("spawned", net(), a, b)
    assert pair.link == "spawned"


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("3.bias", None, "mode {} lacks '3.bias' (1 names missing)"),
        ("4.bias", torch.ones(1), "mode {} has '4.bias', which the network has not"),
        (
            "3.weight",
            torch.ones(12, 2),
            "mode {}: '3.weight' has shape (12, 2), the network's has (2, 12)",
        ),
        ("3.bias", torch.tensor([0, torch.nan]), "mode {}: '3.bias' has values that are not"),
        ("3.bias", torch.tensor([0, -torch.inf]), "mode {}: '3.bias' has values that are not"),
        ("1.running_var", torch.full((3,), torch.nan), "mode {}: '1.running_var' has values"),
    ],
)
def test_check_states_refuses(which: str, name: str, value: Tensor | None, message: str) -> None:
    pair = dict(zip("AB", states(0), strict=True))
    if value is None:
        del pair[which][name]
    else:
        pair[which][name] = value
    with pytest.raises(ValueError, match="mode ") as caught:
        check_states(net(), pair["A"], pair["B"])
    assert message.format(which) in str(caught.value)
    with pytest.raises(ValueError, match="mode "):
        ModePair("spawned", net(), pair["A"], pair["B"])


def test_check_states_refuses_unlike_types() -> None:
    a, b = states(0)
    b["3.bias"] = b["3.bias"].double()
    with pytest.raises(ValueError, match=r"'3\.bias' is torch\.float32 in A and torch\.float64"):
        check_states(net(), a, b)


def line(a: float, b: float) -> ModePair:
    """A pair of networks of one weight."""
    module = nn.Linear(1, 1, bias=False)
    return ModePair(
        "line", module, {"weight": torch.tensor([[a]])}, {"weight": torch.tensor([[b]])}
    )


def test_loss_barrier_of_a_hill_is_its_height_over_the_chord() -> None:
    """loss = 9 − w²: 8 at w = 1, 5 at w = −2, so 6.5 on the chord at α = ½, where w = −½."""

    def loss(net: nn.Module) -> Tensor:
        return 9 - net.weight.square().sum()  # type: ignore[union-attr,operator]

    assert loss_barrier(line(1.0, -2.0), loss, [0.5]) == pytest.approx(8.75 - 6.5)
    # α = 1 is A: at α = ¼, w = −1.25, and the chord is at 5.75.
    assert loss_barrier(line(1.0, -2.0), loss, [0.25]) == pytest.approx(9 - 1.5625 - 5.75)
    assert loss_barrier(line(1.0, -2.0), loss) == pytest.approx(2.25)


def test_loss_barrier_of_a_valley_is_zero() -> None:
    assert loss_barrier(line(1.0, -1.0), lambda net: float(net.weight.square().sum())) == 0  # type: ignore[union-attr,operator]


def test_loss_barrier_evaluates_in_eval_mode_and_leaves_the_module_alone() -> None:
    pair = line(1.0, 2.0)
    before = pair.module.weight.clone()  # type: ignore[operator,union-attr]
    seen = []
    loss_barrier(pair, lambda net: seen.append(net.training) or 0.0, [0.5])
    assert seen == [False] * 3
    assert pair.module.training
    assert torch.equal(pair.module.weight, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("alphas", [[], [1.5], [-0.1]])
def test_loss_barrier_refuses_alphas(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="α"):
        loss_barrier(line(1.0, 2.0), lambda net: 0.0, alphas)


def test_loss_barrier_refuses_a_loss_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="α = 0"):
        loss_barrier(line(1.0, 2.0), lambda net: float("nan"))
