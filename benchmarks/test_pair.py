"""Measuring a whole pair: one streaming pass, against three models' feature maps kept in memory.

    pytest benchmarks/test_pair.py

VGG-16 of an eighth of the width at 28 × 28, for all images at 32 × 32 through the full one take an
hour on two cores. Both give the same numbers: LLFC, LMC, Dist_σ, commutativity and stitching of
every layer, and ranks; Dist_σ a little larger, as the straightforward way has the largest of 21
values. ``-m slow`` runs both on 10,000 images.

``memory_ratio`` is that of the peaks of live tensors, counted on fewer images. The straightforward
one is linear in their number, the streaming one does not depend on it: ``memory_ratio_10000`` is
what that makes for 10,000 images in the same batches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.features import Layer, Taps
from llfc_core.kernels import reference
from llfc_core.metrics import measure
from llfc_core.metrics.low_rank import rank_share
from llfc_core.metrics.measure import GRAM_UP_TO
from llfc_core.nets import Net, build
from llfc_core.pairs import ModePair, interpolate
from tests.metrics.memory import LiveBytes

IMAGES, BATCH, ALPHAS = 800, 200, (0.25, 0.5, 0.75)
FEW = 200  # images, for counting memory and comparing numbers
GROUP = f"VGG-16 / 8, {IMAGES} images, {len(ALPHAS)} α"

pytestmark = pytest.mark.benchmark(group=GROUP, timer=time.process_time)


@pytest.fixture(scope="module")
def pair() -> ModePair:
    """Two initialisations, the second moved towards the first; all layers alive."""
    net = Net("vgg16").times(1 / 8)
    a, other = (build(net, (1, 28, 28), 10, seed).state_dict() for seed in (0, 1))
    b = {k: v + 0.3 * (other[k] - v) if v.is_floating_point() else v for k, v in a.items()}
    return ModePair("moved", build(net, (1, 28, 28), 10), a, b)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, 1, 28, 28, generator=g), torch.randint(10, (IMAGES,), generator=g)


def streaming(pair: ModePair, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    return measure(pair, zip(x.split(BATCH), y.split(BATCH)), alphas=ALPHAS).values


@torch.no_grad()
def straightforward(pair: ModePair, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """Feature maps of A, B and θ_α on all images; then every definition on them, in float64."""
    taps = Taps(pair.module, x[:2])
    linear = {k: m for k, m in pair.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def all_features(state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        pre, post, inputs = {}, {}, {}

        def keep(layer: Layer) -> None:
            pre[layer.name], post[layer.name] = layer.pre.flatten(1), layer.post.flatten(1)

        def keep_input(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0]

        handles = [
            m.register_forward_pre_hook(functools.partial(keep_input, name))
            for name, m in linear.items()
        ]
        taps.run(x, keep, state)
        for handle in handles:
            handle.remove()
        return pre, post, inputs

    a, b = all_features(pair.a), all_features(pair.b)
    layers, cosines, coefs, logits = taps.names, [], [], []
    for alpha in ALPHAS:
        f = all_features(interpolate(pair.a, pair.b, alpha))[1]
        at = [reference.cosines([f[k]], a[1][k], b[1][k], [alpha]) for k in layers]
        cosines.append(torch.cat([c for c, _ in at]))
        coefs.append(torch.cat([c for _, c in at]))
        logits.append(f[layers[-1]])
    loss, error = reference.lmc(logits, y)
    commutativity = []
    for name, module in linear.items():
        apply: Callable[..., Tensor] = F.linear
        if isinstance(module, nn.Conv2d):
            apply = functools.partial(F.conv2d, stride=module.stride, padding=module.padding)
        weights = pair.a[f"{name}.weight"], pair.b[f"{name}.weight"]
        commutativity.append(
            reference.commutativity(
                lambda w, h, apply=apply: apply(h, w), *weights, a[2][name], b[2][name]
            )
        )
    ranks = [
        rank_share(torch.linalg.svdvals(a[1][k].double()).square())
        for k in layers
        if a[1][k].shape[1] <= GRAM_UP_TO
    ]
    for state in (pair.a, pair.b):
        weights = [state[f"{name}.weight"].flatten(1).double() for name in linear]
        ranks += [rank_share(torch.linalg.svdvals(w).square()) for w in weights]
    sigma = torch.stack([reference.dist_sigma(a[0][k], b[0][k]) for k in layers[:-1]])
    stitched = []
    for name in layers[:-1]:
        sides = [taps.stitch(x, name, *s) for s in ((pair.a, pair.b), (pair.b, pair.a))]
        stitched.append(reference.lmc(sides, y)[1])
    found = {
        "one_minus_cos": torch.stack(cosines, dim=1),
        "coef": torch.stack(coefs, dim=1),
        "loss": loss,
        "error": error,
        "dist_sigma": sigma,
        "stitched_error": torch.stack(stitched),
        "dist_com": torch.stack(commutativity),
        "ranks": torch.stack(ranks),
    }
    return {k: v.numpy() for k, v in found.items()}


@pytest.fixture(scope="module")
def peaks(pair, images) -> dict[str, int]:
    found = {}
    for run in (streaming, straightforward):
        with LiveBytes() as live:
            run(pair, *(t[:FEW] for t in images))
        found[run.__name__] = live.peak
    return found


def test_streaming(row, pair, images, peaks):
    ratio = peaks["straightforward"] / peaks["streaming"]
    row(
        lambda: streaming(pair, *images),
        rounds=2,
        warmup=0,
        row="one pass",
        against="all features kept",
        memory_ratio=ratio,
        memory_ratio_10000=ratio * 10_000 / FEW,
        peak_bytes=peaks["streaming"],
    )


def test_straightforward(row, pair, images, peaks):
    row(
        lambda: straightforward(pair, *images),
        rounds=1,
        warmup=0,
        row="all features kept",
        peak_bytes=peaks["straightforward"],
    )


@pytest.mark.slow  # ten minutes, ten gigabytes
@pytest.mark.parametrize("way", [streaming, straightforward], ids=lambda f: f.__name__)
def test_ten_thousand_images(benchmark, row, pair, way):
    """Nothing scaled: time and peak of both ways in one run."""
    benchmark.group = "VGG-16 / 8, 10000 images, 3 α"
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(10_000, 1, 28, 28, generator=g), torch.randint(10, (10_000,), generator=g)
    live = LiveBytes()

    def counted() -> None:
        with live:
            way(pair, x, y)

    names = {streaming: "one pass", straightforward: "all features kept"}
    against = {"against": names[straightforward]} if way is streaming else {}
    row(counted, rounds=1, warmup=0, row=names[way], **against)
    benchmark.extra_info["peak_bytes"] = live.peak


def test_the_numbers_are_the_same(one_thread, pair, images):
    from llfc_core.claims import commutativity

    images = tuple(t[:FEW] for t in images)
    m = measure(pair, [images], alphas=ALPHAS)
    want, inner = straightforward(pair, *images), slice(1, -1)
    for name in ("one_minus_cos", "coef"):
        np.testing.assert_allclose(m.values[name][:, inner], want[name], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(m.values["loss"][inner], want["loss"], rtol=1e-5)
    np.testing.assert_array_equal(m.values["error"][inner], want["error"])
    np.testing.assert_array_equal(m.values["stitched_error"][:-1], want["stitched_error"])
    sigma = m.values["dist_sigma"][:-1]
    known = np.isfinite(sigma)
    assert (sigma >= want["dist_sigma"] * (1 - 1e-3))[known].all()  # the maximum; a grid's is less
    np.testing.assert_allclose(sigma[:7], want["dist_sigma"][:7], rtol=0.1)
    found = commutativity(m.means()).dist_com[0][1:].numpy()
    np.testing.assert_allclose(found, want["dist_com"][1:], rtol=1e-4)
