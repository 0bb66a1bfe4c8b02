"""The approximate Theorem 1 on trained pairs: residuals below a layer bound its LLFC error.

The paper leaves open what follows if weak additivity and commutativity hold only roughly. The
bound (docs/approximate-theorem1.md) is a theorem, so it must hold on every image, for linked and
independent pairs alike; how tight it is, is what the trained pairs tell.
"""

import pytest
import torch

from llfc_core.theory import relu_net_of
from llfc_core.theory.bound import LLFCBound, llfc_bound

ALPHAS = (0.25, 0.5)
IMAGES = 200  # of the test set: the bound is per image, and this is float64
ROUNDING = 1 + 1e-9  # float64, 784 terms a sum


@pytest.fixture(scope="session")
def bounds(setting, networks) -> dict[str, list[LLFCBound]]:
    """Bounds per image of every pair and α, by link."""
    found = {}
    for link in ("linked", "independent"):
        found[link] = []
        for named in networks.of(link):
            x, module = named.inputs(IMAGES), named.pair.module
            a, b = (relu_net_of(module, state, x) for state in (named.pair.a, named.pair.b))
            if a is None or b is None:
                pytest.skip(f"{setting.id}: the bound is written for ReLU MLPs")
            columns = x.flatten(1).double().T
            found[link] += [llfc_bound(a, b, columns, alpha, per_point=True) for alpha in ALPHAS]
    return found


@pytest.mark.parametrize("link", ["linked", "independent"])
def test_theorem1_bound_holds(bounds, link, record_numbers):
    if not bounds[link]:
        pytest.skip(f"no {link} pair")
    for bound in bounds[link]:
        # Where no unit changes its sign the bound of the first layer is exactly 0.
        slack = (ROUNDING - 1) * bound.target
        assert bool((bound.error <= bound.one_step * ROUNDING + slack).all())
        assert bool((bound.one_step <= bound.unrolled * ROUNDING + slack).all())
    # How tight: norms over the images, the mean over pairs and α, per layer.
    ratios = {
        name: torch.stack(
            [getattr(b, name).norm(dim=1) / b.error.norm(dim=1) for b in bounds[link]]
        ).mean(0)
        for name in ("one_step", "unrolled")
    }
    record_numbers(f"theorem1 bound / error, {link}", {k: v.tolist() for k, v in ratios.items()})


@pytest.mark.independent
@pytest.mark.parametrize("dropped", ["additivity", "commutativity"])
def test_theorem1_bound_needs_both_conditions(bounds, dropped):
    """Without either residual it is no bound: some image of some pair exceeds it."""
    assert any(
        bool((b.error > (b.one_step - getattr(b, dropped)) * ROUNDING).any())
        for b in bounds["independent"]
    )
