"""The approximate Theorem 1 on trained pairs: residuals below a layer bound its LLFC error.

The paper leaves open what follows if weak additivity and commutativity hold only roughly. The
bound (docs/approximate-theorem1.md) is a theorem, so it must hold on every image, for linked and
independent pairs alike; how tight it is, is what the trained pairs tell.
"""

import pytest
import torch

from llfc_core.theory import ReluNet
from llfc_core.theory.bound import LLFCBound, llfc_bound

ALPHAS = (0.25, 0.5)
IMAGES = 200  # of the test set: the bound is per image, and this is float64
ROUNDING = 1 + 1e-9  # float64, 784 terms a sum


def relu_net(weights, depth):
    return ReluNet(
        tuple(weights[f"fc{i}.weight"].double() for i in range(1, depth + 1)),
        tuple(weights[f"fc{i}.bias"].double() for i in range(1, depth + 1)),
    )


@pytest.fixture(scope="session")
def bounds(setting, modes, links, dataset) -> dict[str, list[LLFCBound]]:
    """Bounds per image of every pair and α, by link."""
    if setting.recipe.net.name != "mlp":
        pytest.skip(f"{setting.id}: the bound is written for MLPs")
    depth = len(setting.recipe.net.widths) + 1
    x = dataset.normalise(dataset.test.images[:IMAGES]).flatten(1).double().T
    pairs = {
        "linked": [(m.a.weights, link.b) for m, link in zip(modes, links, strict=True)],
        "independent": [(m.c.weights, m.d.weights) for m in modes],
    }
    return {
        link: [
            llfc_bound(relu_net(a, depth), relu_net(b, depth), x, alpha, per_point=True)
            for a, b in chosen
            for alpha in ALPHAS
        ]
        for link, chosen in pairs.items()
    }


@pytest.mark.parametrize("link", ["linked", "independent"])
def test_theorem1_bound_holds(bounds, link, record_numbers):
    for bound in bounds[link]:
        assert bool((bound.error <= bound.one_step * ROUNDING).all())
        assert bool((bound.one_step <= bound.unrolled * ROUNDING).all())
    # How tight: norms over the images, the mean over pairs and α, per layer.
    ratios = {
        name: torch.stack(
            [getattr(b, name).norm(dim=1) / b.error.norm(dim=1) for b in bounds[link]]
        ).mean(0)
        for name in ("one_step", "unrolled")
    }
    record_numbers(f"theorem1 bound / error, {link}", {k: v.tolist() for k, v in ratios.items()})


@pytest.mark.parametrize("dropped", ["additivity", "commutativity"])
def test_theorem1_bound_needs_both_conditions(bounds, dropped):
    """Without either residual it is no bound: some image of some pair exceeds it."""
    assert any(
        bool((b.error > (b.one_step - getattr(b, dropped)) * ROUNDING).any())
        for b in bounds["independent"]
    )
