"""What works where the tensors are elsewhere than on the CPU, and gives what the CPU gives.

    pytest tests/on_second_device.py

Run by `test_second_device`, for the device is registered for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core import kernels
from llfc_core.batchnorm import reestimate_statistics
from llfc_core.data import Augmentation
from llfc_core.matching import check, derive_spec, match
from llfc_core.matching.qap import solve_qap
from llfc_core.metrics import measure
from llfc_core.metrics.weak_additivity import WeakAdditivity, dist_sigma, dist_sigma_histogram
from llfc_core.nets import Net, build
from llfc_core.pairs import ModePair, interpolate, loss_barrier, shuffled_difference
from llfc_core.store import Store
from llfc_core.training import engine, ensure, modes
from tests.helpers import tiny_dataset, tiny_recipe
from tests.matching.specs import NETWORKS, batches, equal, randomised
from tests.second_device import Elsewhere, register

SECOND = register()
State = dict[str, Tensor]


def there(state: Mapping[str, Tensor]) -> State:
    return {name: value.to(SECOND) for name, value in state.items()}


def here(state: Mapping[str, Tensor]) -> State:
    assert all(value.device == SECOND for value in state.values())
    return {name: value.cpu() for name, value in state.items()}


# ---- the device itself --------------------------------------------------------------------------


def test_it_computes_what_the_cpu_computes() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    y, v = x.to(SECOND), w.detach().to(SECOND).requires_grad_()
    (x @ w.T).relu().sum().backward()
    (y @ v.T).relu().sum().backward()
    assert isinstance(v.grad, Elsewhere)
    assert torch.equal(v.grad.cpu(), w.grad)
    y[1, :2] += 1
    assert y.cpu()[1, 0] == x[1, 0] + 1
    assert torch.arange(3, device=SECOND).tolist() == [0, 1, 2]
    assert torch.zeros(2, device=SECOND).device == SECOND


def test_it_refuses_what_cuda_refuses() -> None:
    x = torch.randn(3, 4).to(SECOND)
    for wrong in (
        lambda: x + torch.ones(3, 4),
        lambda: torch.cat([x, torch.ones(3, 4)]),
        lambda: x.index_select(0, torch.tensor([1])),
        lambda: torch.rand(3, device=SECOND, generator=torch.Generator()),
        lambda: x.numpy(),
        lambda: nn.Linear(4, 2)(x),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            wrong()
    assert torch.equal((x + torch.tensor(1.0)).cpu(), x.cpu() + 1)
    assert torch.equal(x[torch.tensor([2, 0])].cpu(), x.cpu()[[2, 0]])


# ---- matching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("weight", {"restarts": 1}),
        ("activation", {}),
        ("activation", {"statistic": "correlation"}),
        ("ste", {"epochs": 1, "every": 2}),
    ],
)
def test_match(network: str, method: str, options: dict) -> None:
    """With modes there, and data still here."""
    builder, shape = NETWORKS[network]
    module, spec = builder()
    a, b = randomised(module, 0), randomised(module, 1)
    data = None if method == "weight" else batches(shape, 40)
    want = match(a, b, spec, method, module=module, data=data, seed=3, **options)
    found = match(
        there(a), there(b), spec, method, module=module.to(SECOND), data=data, seed=3, **options
    )
    assert equal(found.permutations, want.permutations)
    assert found.objective == pytest.approx(want.objective, rel=1e-5, abs=1e-7)
    assert equal(here(found.apply(there(b))), want.apply(b))


def test_a_spec_derived_there_is_that_derived_here() -> None:
    module = build(Net("resnet20", (4, 4, 4)), (1, 8, 8), 4, 0)
    x = torch.randn(2, 1, 8, 8)
    want = derive_spec(module, x)
    module.to(SECOND)
    found = derive_spec(module, x.to(SECOND))
    assert str(found) == str(want)
    state = module.state_dict()
    perms = found.random(torch.Generator().manual_seed(0))
    assert equal(here(found.apply(state, perms)), want.apply(here(state), perms))
    assert check(found, module, x.to(SECOND), state, perms) < 1e-9


# ---- measuring ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "cnn", "residual"])
def test_measure_with_every_part(network: str) -> None:
    builder, shape = NETWORKS[network]
    module, _ = builder()
    pair = ModePair("independent", module, randomised(module, 0), randomised(module, 1))
    data = batches(shape, 6, size=4)
    want = measure(pair, data, alphas=[0.5])
    found = measure(pair, data, alphas=[0.5], device=SECOND)
    assert (found.layers, found.linear) == (want.layers, want.linear)
    assert found.distance == pytest.approx(want.distance, rel=1e-9)
    for kind in ("values", "constants"):
        for name, value in getattr(want, kind).items():
            got = getattr(found, kind)[name]
            np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kernel", [dist_sigma, dist_sigma_histogram])
def test_dist_sigma(kernel: Callable[..., WeakAdditivity]) -> None:
    x, y = torch.randn(2, 5, 300)
    with kernels.using("eager"):
        want = kernel(x, y)
    found = kernel(x.to(SECOND), y.to(SECOND))
    for one, other in zip(vars(found).values(), vars(want).values(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-9, atol=1e-12)


def test_quadratic_assignment() -> None:
    g = torch.Generator().manual_seed(0)
    A, B, C = (torch.rand(7, 7, generator=g, dtype=torch.float64) for _ in range(3))
    want = solve_qap([(A, B)], C)
    found = solve_qap([(A.to(SECOND), B.to(SECOND))], C.to(SECOND))
    assert torch.equal(found.permutation, want.permutation)
    assert found.value == pytest.approx(want.value)


def test_pairs_and_statistics() -> None:
    module = build(Net("resnet20", (2, 2, 2)), (1, 8, 8), 4, 0)
    a, b = randomised(module, 0), randomised(module, 1)
    x, y = batches((1, 8, 8), 16, size=16)[0]
    halfway = interpolate(a, b, 0.5)
    want = reestimate_statistics(module, halfway, [x])
    mixed = shuffled_difference(a, b, 0)
    barrier = loss_barrier(ModePair("x", module, a, b), lambda m: F.cross_entropy(m(x), y))
    module.to(SECOND)
    a, b, x, y = there(a), there(b), x.to(SECOND), y.to(SECOND)
    close(here(interpolate(a, b, 0.5)), halfway)
    close(here(reestimate_statistics(module, there(halfway), [x])), want)
    close(here(shuffled_difference(a, b, 0)), mixed)
    found = loss_barrier(ModePair("x", module, a, b), lambda m: F.cross_entropy(m(x), y))
    assert found == pytest.approx(barrier, rel=1e-5)


def close(found: State, want: State) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "stack"),
    [(Net("mlp", (16, 12)), 1), (Net("mlp", (16, 12)), 2), (Net("resnet20", (2, 2, 2)), 1)],
)
def test_training(net: Net, stack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset(60)
    moved = Augmentation(crop_padding=1, flip=True, zoom=(0.9, 1.1), rotation=10.0)
    recipes = [tiny_recipe(i, net=net, epochs=1, augmentation=moved) for i in range(stack)]
    monkeypatch.setattr(engine, "stack_size", lambda device, net: stack)
    monkeypatch.setattr(modes, "stack_size", lambda device, net: stack)
    want = ensure(recipes, dataset, Store(tmp_path / "here"))
    found = ensure(recipes, dataset, Store(tmp_path / "there"), SECOND)
    for one, other in zip(found, want, strict=True):
        close(dict(one.weights), dict(other.weights))
        assert one.test_error == pytest.approx(other.test_error, abs=0.02)
