"""One interface: what it hands on, what it refuses, what it checks."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llfc_core.matching.check import SpecError
from llfc_core.matching.derive import derive_spec
from llfc_core.matching.match import METHODS, match
from llfc_core.matching.weight import match_weights

from .specs import NETWORKS, batches, cnn, equal, mlp, noisy, randomised

methods = pytest.mark.parametrize("method", METHODS)
OPTIONS: dict[str, dict[str, Any]] = {
    "weight": {},
    "activation": {},
    "ste": {"steps": 3},
    "commutativity": {"max_iterations": 5},
}


@methods
@pytest.mark.parametrize("network", NETWORKS)
def test_every_method_brings_b_to_a(network: str, method: Any) -> None:
    build, shape = NETWORKS[network]
    module, spec = build()
    a = randomised(module, 0)
    b = spec.apply(a, spec.random(torch.Generator().manual_seed(0)))
    data = batches(shape, 40)
    found = match(a, b, spec, method, module=module, data=data, **OPTIONS[method])
    assert found.method == method
    assert found.spec is spec
    assert equal(found.apply(b), spec.apply(b, found.permutations))
    assert all(
        p.device.type == "cpu" and p.dtype == torch.int64 for p in found.permutations.values()
    )
    if method in ("weight", "ste"):  # to the others dead units are all alike
        assert equal(found.apply(b), a)
    with torch.no_grad():
        x = data[0][0]
        module.eval()
        want, got = (torch.func.functional_call(module, s, (x,)) for s in (a, found.apply(b)))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@methods
def test_modules_give_their_states(method: Any) -> None:
    one, spec = cnn()
    two, _ = cnn()
    one.load_state_dict(randomised(one, 0))
    two.load_state_dict(randomised(two, 1))
    data = batches((1, 6, 6), 30)
    from_modules = match(one, two, spec, method, data=data, **OPTIONS[method])
    from_states = match(
        one.state_dict(), two.state_dict(), spec, method, module=two, data=data, **OPTIONS[method]
    )
    assert equal(from_modules.permutations, from_states.permutations)


def test_weight_matching_needs_neither_module_nor_data() -> None:
    module, spec = mlp(4, 6, 2)
    a, b = randomised(module, 0), randomised(module, 1)
    found = match(a, b, spec, seed=3, restarts=2)
    assert equal(found.permutations, match_weights(a, b, spec, seed=3, restarts=2).permutations)


@methods
def test_data_may_be_gone_through_once(method: Any) -> None:
    """The look at the first inputs loses no batch."""
    module, spec = mlp(4, 6, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    data = [(torch.zeros(0, 4), torch.zeros(0).long()), *batches((4,), 30)]
    one, two = (
        match(a, b, spec, method, module=module, data=d, **OPTIONS[method])
        for d in (data, iter(data))
    )
    assert one.objective == two.objective
    assert equal(one.permutations, two.permutations)
    if method != "weight":
        direct = METHODS[method](a, b, spec, module, data, **OPTIONS[method])
        assert one.objective == direct.objective


def test_held_out_reaches_ste() -> None:
    module, spec = mlp(4, 6, 4)
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches((4,), 30)
    one, two = (
        match(a, b, spec, "ste", module=module, data=data, held_out=batches((4,), 20, s), steps=2)
        for s in (1, 2)
    )
    assert one.objective[0] != two.objective[0]


# ---- the check ----------------------------------------------------------------------------------


def wrong_spec() -> Any:
    """fc1's bias is left behind."""
    module, spec = mlp(4, 6, 2)
    return module, replace(spec, layouts={**spec.layouts, "fc1.bias": (None,)})


@methods
def test_a_wrong_spec_is_found_out(method: Any) -> None:
    module, spec = wrong_spec()
    a, b = randomised(module, 0), randomised(module, 1)
    run = {"module": module, "data": batches((4,), 30), **OPTIONS[method]}
    if method == "ste":
        run["data"] = [(x, y % 2) for x, y in run["data"]]
    with pytest.raises(SpecError):
        match(a, b, spec, method, **run)
    match(a, b, spec, method, check=False, **run)


def test_without_a_module_or_inputs_nothing_can_be_checked() -> None:
    module, spec = wrong_spec()
    a, b = randomised(module, 0), randomised(module, 1)
    match(a, b, spec)
    match(a, b, spec, module=module)


def test_the_spec_s_example_is_enough_to_check() -> None:
    """Two modules and a derived spec: no data needed."""
    module, spec = wrong_spec()
    derived = derive_spec(module, torch.randn(3, 4))
    wrong = replace(derived, layouts=spec.layouts)
    a, b = randomised(module, 0), randomised(module, 1)
    match(a, b, derived, module=module)
    with pytest.raises(SpecError):
        match(a, b, wrong, module=module)
    match(a, b, wrong)


# ---- refusals -----------------------------------------------------------------------------------


def spoilt(**change: Tensor | None) -> dict[str, Tensor]:
    module, _ = mlp(4, 6, 2)
    state = randomised(module, 0) | {k.replace("__", "."): v for k, v in change.items()}
    return {k: v for k, v in state.items() if v is not None}


@methods
@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc1__bias": None}, "mode {}: the state lacks 'fc1.bias'"),
        ({"fc9__bias": torch.zeros(1)}, "mode {}: the state has 'fc9.bias'"),
        ({"fc1__bias": torch.zeros(7)}, "mode {}: 'fc1.bias' has shape"),
        ({"fc1__weight": torch.full((6, 4), torch.nan)}, "mode {}: 'fc1.weight' has values"),
        ({"fc1__weight": torch.full((6, 4), -torch.inf)}, "mode {}: 'fc1.weight' has values"),
        ({"fc1__bias": torch.zeros(6, dtype=torch.float64)}, "'fc1.bias' is torch.float"),
    ],
)
def test_modes_that_do_not_fit(
    method: Any, which: str, change: dict[str, Tensor | None], message: str
) -> None:
    module, spec = mlp(4, 6, 2)
    modes = {"A": spoilt(), "B": spoilt(), which: spoilt(**change)}
    with pytest.raises(ValueError, match="fc") as caught:
        match(modes["A"], modes["B"], spec, method, module=module, data=batches((4,), 9))
    assert message.format(which) in str(caught.value)


def test_another_network() -> None:
    module, spec = mlp(4, 6, 2)
    a = randomised(module, 0)
    other, _ = mlp(4, 7, 2)
    with pytest.raises(ValueError, match="shape"):
        match(a, a, spec, "activation", module=other, data=batches((4,), 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "weights"}, "no method 'weights'; there are weight, activation, ste, comm"),
        ({"method": "activation"}, "give a module and data"),
        ({"method": "ste", "data": [(torch.zeros(1, 4), torch.zeros(1))]}, "give a module"),
        ({"statistic": "product"}, "'weight' has no option 'statistic'; its own: weights, start"),
        ({"method": "activation", "restarts": 2}, "'activation' has no option 'restarts'"),
        ({"method": "ste", "max_sweeps": 2}, "'ste' has no option 'max_sweeps'"),
        ({"method": "commutativity", "lr": 1.0}, "'commutativity' has no option 'lr'"),
        ({"method": "commutativity", "held_out": []}, "'commutativity' does not use held_out"),
        ({"held_out": []}, "'weight' does not use held_out"),
        ({"restarts": -2}, "restarts ≥ 0"),
    ],
)
def test_arguments_that_do_not_belong(arguments: dict[str, Any], message: str) -> None:
    module, spec = mlp(4, 6, 2)
    a = randomised(module, 0)
    with pytest.raises(ValueError, match=message):
        match(a, a, spec, **arguments)


@methods
def test_no_data(method: Any) -> None:
    module, spec = mlp(4, 6, 2)
    a = randomised(module, 0)
    for nothing in ([], [torch.zeros(0, 4)]):
        with pytest.raises(ValueError, match="no data"):
            match(a, a, spec, method, module=module, data=nothing)


def test_a_match_is_frozen() -> None:
    module, spec = mlp(4, 6, 2)
    a = randomised(module, 0)
    found = match(a, noisy(a, 0.1, 0), spec)
    with pytest.raises(FrozenInstanceError):
        found.method = "other"  # type: ignore[misc]


@methods
@pytest.mark.parametrize("network", ["mlp", "cnn", "residual", "square", "blocks"])
def test_derived_specs_serve_as_well_as_written_ones(network: str, method: Any) -> None:
    build, shape = NETWORKS[network]
    module, written = build()
    derived = derive_spec(module.eval(), torch.randn(2, *shape))
    a, b = randomised(module, 0), randomised(module, 1)
    data = batches(shape, 40)
    run = {"module": module, "data": data, **OPTIONS[method]}
    planted = match(a, derived.apply(a, derived.random(torch.Generator())), derived, method, **run)
    assert planted.objective[-1] == pytest.approx(
        match(a, a, derived, method, **run).objective[0], abs=1e-5
    )
    if network != "blocks" and method != "ste":  # the written one permutes less of the blocks
        one, two = (match(a, b, spec, method, **run) for spec in (written, derived))
        assert one.objective[0] == pytest.approx(two.objective[0], rel=1e-5)
        assert two.unmatched == {}
