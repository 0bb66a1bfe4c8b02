"""Dist_σ on trained pairs: the exact maximum over [0, 1] against a grid of 1,001 values of α.

    Dist_σ(a, b) = max_α ‖σ(αa + (1−α)b) − (ασ(a) + (1−α)σ(b))‖² / (‖·‖ ‖·‖)     (Section 5.1)

Exact, so it belongs beside the phenomena and not among them: no value on the grid may exceed the
maximum, and the maximum must be attained at the α that is said to attain it.
"""

import copy

import pytest
import torch

from llfc_core.features import Taps, flatten
from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_at

IMAGES = 25
COORDINATES = 50_000  # in all images and layers: wide and deep networks have fewer images
GRID = 1001
AT_ONCE = 16_000  # coordinates, over all values of α that are tried together
ROUNDING = 1e-9  # relative, float64


@pytest.mark.parametrize("link", ["linked", "independent"])
def test_weak_additivity_grid(networks, run, link, record_numbers):
    if not networks.of(link):
        pytest.skip(f"no {link} pair")
    first = networks.of(link)[0]
    module = copy.deepcopy(first.pair.module).to(run.device)
    x = first.inputs(IMAGES).to(run.device)
    taps = Taps(module, x[:2])
    pre = []
    for state in (first.pair.a, first.pair.b):
        kept = {}
        weights = {k: v.to(run.device) for k, v in state.items()}
        taps.run(x, lambda layer, kept=kept: kept.update({layer.name: layer.pre.clone()}), weights)
        pre.append(kept)
    gaps = {}
    for name in taps.names[:-1]:
        a, b = flatten(pre[0][name]).detach(), flatten(pre[1][name]).detach()
        few = max(1, min(IMAGES, COORDINATES // len(taps.names) // a.shape[1]))
        a, b = a[:few], b[:few]
        exact = dist_sigma(a, b)
        at_once = max(1, AT_ONCE // a.numel())
        grid = torch.zeros_like(exact.distance)
        for alphas in torch.linspace(0, 1, GRID, dtype=torch.float64).split(at_once):
            k = len(alphas)
            each = alphas.to(a.device).repeat_interleave(few)
            values = dist_sigma_at(a.repeat(k, 1), b.repeat(k, 1), each)
            grid = torch.maximum(grid, values.unflatten(0, (k, few)).amax(0))
        assert bool((exact.distance >= grid * (1 - ROUNDING)).all())
        attained = dist_sigma_at(a, b, exact.alpha)
        torch.testing.assert_close(attained, exact.distance, rtol=ROUNDING, atol=1e-15)
        gaps[name] = float(((exact.distance - grid) / exact.distance.clamp_min(1e-300)).max())
    record_numbers(f"Dist_σ, largest relative gap of a {GRID}-point grid, {link}", gaps)
