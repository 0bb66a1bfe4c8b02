"""Every metric kernel beside the straightforward way, at the sizes of the paper's layers.

    pytest benchmarks/test_kernels.py

One thread, its processor time, best of several: compare the rows of one group. ``extra_info`` has
the bytes a kernel cannot do without moving (features read once) and the fraction of the measured
copy bandwidth that this comes to.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core import kernels
from llfc_core.kernels import native, reference
from llfc_core.metrics.commutativity import CommutativityAccumulator
from llfc_core.metrics.llfc import Dots, coef, one_minus_cos
from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_histogram

pytestmark = pytest.mark.benchmark(timer=time.process_time, disable_gc=True)

# Images and coordinates: as many images as make some 4 MB a tensor.
LAYERS = {
    "MLP, 512": (2000, 512),
    "VGG conv1, 64×32×32": (16, 64 * 32 * 32),
    "ResNet-20 ×32, 512×32×32": (2, 512 * 32 * 32),
}
VGG = LAYERS["VGG conv1, 64×32×32"]
PATHS = ["native", "eager"]

if native.library() is None:
    PATHS.remove("native")


def features(n: int, d: int, k: int = 1) -> tuple[list[Tensor], Tensor, Tensor, list[float]]:
    """f of k values of α, a and b ``(n, d)``, as alike as linked modes are; and those values."""
    g = torch.Generator().manual_seed(0)
    a, other = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    b = 0.9 * a + 0.19**0.5 * other
    alphas = [(i + 1) / (k + 1) for i in range(k)]
    return [alpha * a + (1 - alpha) * b for alpha in alphas], a, b, alphas


def llfc(f: list[Tensor], a: Tensor, b: Tensor, alphas: list[float]) -> list[tuple[Tensor, Tensor]]:
    ends, sums = Dots.of(a, b), kernels.dots(f, a, b)
    found = []
    for k, alpha in enumerate(alphas):
        fa, fb, ff = sums[k].unbind(1)
        found.append((one_minus_cos(ends, fa, fb, ff, alpha), coef(ends, fa, fb, alpha)))
    return found


@pytest.mark.parametrize("path", [*PATHS, "reference"])
@pytest.mark.parametrize("k", [3, 21])
@pytest.mark.parametrize("layer", LAYERS)
def test_llfc(benchmark, row, layer, k, path):
    """1 − cos_α and coef_α for k values of α, from features to numbers."""
    benchmark.group = f"LLFC, K = {k}, {layer}"
    n, d = LAYERS[layer]
    f, a, b, alphas = features(n, d, k)
    moved = (k + 2) * n * d * 4
    if path == "reference":
        row(lambda: reference.cosines(f, a, b, alphas), rounds=2, row=path)
        return
    with kernels.using(path):
        found = row(lambda: llfc(f, a, b, alphas), moved=moved, row=path, against="reference")
    assert all(float(defect.abs().max()) < 1e-6 for defect, _ in found)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [3, 21])
def test_llfc_dots(benchmark, row, k, path):
    """The kernel alone, on the widest of VGG-16's layers."""
    benchmark.group = f"dots alone, K = {k}, VGG conv1, 64×32×32"
    n, d = VGG
    f, a, b, _ = features(n, d, k)
    with kernels.using(path):
        other = {"against": "eager"} if path == "native" else {}
        row(lambda: kernels.dots(f, a, b), moved=(k + 2) * n * d * 4, row=path, **other)


@pytest.mark.slow  # its compiler takes up to a minute
@pytest.mark.parametrize("k", [3, 21])
def test_llfc_dots_by_torch_compile(benchmark, row, k):
    """What a compiler makes of the same sums, compiling not counted."""
    benchmark.group = f"dots alone, K = {k}, VGG conv1, 64×32×32"
    n, d = VGG
    f, a, b, _ = features(n, d, k)

    @torch.compile
    def dots(f: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
        a, b, wide = a.double(), b.double(), [x.double() for x in f]
        sums = [torch.stack([(x * y).sum(1) for y in (a, b, x)], dim=1) for x in wide]
        return torch.stack(sums)

    found = row(lambda: dots(f, a, b), moved=(k + 2) * n * d * 4, row="torch.compile")
    torch.testing.assert_close(found, kernels.dots(f, a, b), rtol=1e-12, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["exact", "histogram"])
@pytest.mark.parametrize("layer", LAYERS)
def test_dist_sigma(benchmark, row, layer, kind, path):
    """The maximum over all α, against the maximum over 21 values of it."""
    benchmark.group = f"Dist_σ, {layer}"
    n, d = LAYERS[layer]
    _, a, b, _ = features(n, d)
    kernel = {"exact": dist_sigma, "histogram": dist_sigma_histogram}[kind]
    with kernels.using(path):
        found = row(
            lambda: kernel(a, b).distance,
            moved=2 * n * d * 4,
            rounds=7 if path == "native" else 3,
            row=f"{kind}, {path}",
            against="grid of 21 (reference)",
        )
    assert bool((found > 0).all())


@pytest.mark.parametrize("points", [3, 21])
@pytest.mark.parametrize("layer", LAYERS)
def test_dist_sigma_reference(benchmark, row, layer, points):
    benchmark.group = f"Dist_σ, {layer}"
    _, a, b, _ = features(*LAYERS[layer])
    row(lambda: reference.dist_sigma(a, b, points), rounds=2, row=f"grid of {points} (reference)")


@pytest.mark.parametrize("way", ["factored", "four products (reference)"])
@pytest.mark.parametrize("kind", ["linear 512 → 512", "convolution 64 → 64 at 32×32"])
def test_commutativity(benchmark, row, kind, way):
    benchmark.group = f"commutativity, {kind}"
    if kind.startswith("linear"):
        layer: nn.Linear | nn.Conv2d = nn.Linear(512, 512)
        apply, shape = F.linear, (2000, 512)
    else:
        layer = nn.Conv2d(64, 64, 3, padding=1)
        apply, shape = functools.partial(F.conv2d, padding=1), (8, 64, 32, 32)
    g = torch.Generator().manual_seed(0)
    w_a, w_b = (torch.randn(layer.weight.shape, generator=g) for _ in range(2))
    h_a, h_b = (torch.randn(shape, generator=g).relu() for _ in range(2))
    if way == "factored":

        def run() -> float:
            accumulator = CommutativityAccumulator(layer, w_a, w_b)
            accumulator.update(h_a, h_b)
            return accumulator.result().dist_com

        row(run, row=way, against="four products (reference)")
    else:
        row(
            lambda: reference.commutativity(lambda w, h: apply(h, w), w_a, w_b, h_a, h_b),
            rounds=2,
            row=way,
        )


@pytest.mark.parametrize("way", ["kernel", "reference"])
@pytest.mark.parametrize("kind", ["Gram", "cross-Gram"])
def test_gram(benchmark, row, kind, way):
    """Of 500 images and 2048 coordinates: bound by arithmetic, not by memory."""
    benchmark.group = f"{kind}, 500 × 2048"
    _, a, b, _ = features(500, 2048)
    total = torch.zeros(2048, 2048, dtype=torch.float64)
    if way == "kernel":
        blocks: list[Tensor] = []
        run = {
            "Gram": lambda: kernels.add_gram(blocks, a),
            "cross-Gram": lambda: kernels.add_cross_gram(total, a, b),
        }[kind]
        row(run, rounds=3, row=way, against="reference")
    else:
        other = a if kind == "Gram" else b
        row(lambda: total + a.double().T @ other.double(), rounds=3, row=way)


@pytest.mark.parametrize("way", ["kernel", "reference"])
def test_lmc(benchmark, row, way):
    benchmark.group = "LMC, 9 α, 2000 × 10 logits"
    logits = torch.randn(9, 2000, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2000) % 10
    if way == "kernel":
        row(lambda: kernels.lmc(logits, labels), row=way, against="reference")
    else:
        row(lambda: reference.lmc(list(logits), labels), row=way)


# ---- growth: powers of two, each round after the caches have been filled with something else ----

GROWTH = {
    "n": [(3, n, 65_536) for n in (32, 64, 128, 256)],
    "d": [(3, 8, d) for d in (2**18, 2**19, 2**20, 2**21)],
    "K": [(k, 8, 65_536) for k in (12, 24, 48, 96)],
}
GROWTH_OF_DIST_SIGMA = {
    "n": [(n, 65_536) for n in (32, 64, 128, 256)],
    "d": [(256, d) for d in (2**13, 2**14, 2**15, 2**16)],
}


@pytest.fixture(scope="module")
def cold() -> Callable[[], None]:
    """Reads 256 MB: what was in the caches is there no more."""
    other = torch.ones(2**26)
    return lambda: float(other.sum()) and None


@pytest.mark.parametrize(
    ("along", "size"), [(along, size) for along, sizes in GROWTH.items() for size in sizes]
)
def test_growth_of_llfc(benchmark, row, cold, along, size):
    k, n, d = size
    f, a, b, _ = features(n, d, k)
    benchmark.group = f"growth of the LLFC dots with {along}"
    x = {"n": n, "d": d, "K": k}[along]
    info = {"row": f"{along} = {x}", "along": along, "x": x, "what": "dots"}
    row(lambda: kernels.dots(f, a, b), setup=cold, rounds=5, **info)


@pytest.mark.parametrize("kind", ["exact", "histogram"])
@pytest.mark.parametrize(
    ("along", "size"),
    [(along, size) for along, sizes in GROWTH_OF_DIST_SIGMA.items() for size in sizes],
)
def test_growth_of_dist_sigma(benchmark, row, cold, along, size, kind):
    n, d = size
    _, a, b, _ = features(n, d)
    kernel = {"exact": dist_sigma, "histogram": dist_sigma_histogram}[kind]
    benchmark.group = f"growth of Dist_σ, {kind}, with {along}"
    x = {"n": n, "d": d}[along]
    info = {"row": f"{along} = {x}", "along": along, "x": x, "what": f"Dist_σ, {kind}"}
    row(lambda: kernel(a, b), setup=cold, rounds=5, **info)
