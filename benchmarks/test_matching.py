"""Matching against width: MLPs with three hidden layers, B = a permuted A plus noise.

    pytest benchmarks/test_matching.py

``extra_info`` splits the time into similarities (matrix products) and assignments, which grow
alike: as n³. Compare the rows of one run; single times on a shared machine mean little.
Commutativity matching is timed from one start of its four.

Then the parts: assignments in C beside scipy's, from nothing and from the last one's prices, one
after the other and side by side; and whole matchings, one group after the other and side by side,
which need as many idle cores as threads.
"""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from torchvision.models import resnet50

from llfc_core import kernels
from llfc_core.kernels import native
from llfc_core.matching import weight
from llfc_core.matching.assignment import assign
from llfc_core.matching.derive import derive_spec
from llfc_core.matching.match import match
from llfc_core.nets import Net, build

IMAGES = 500
needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")

# So much that it takes several sweeps and assignments are not read off the largest entries, as
# between trained networks.
NOISE = 8.0
RANK = 32  # of most of the weights' energy, as after training (Appendix B.5)


def pair(width: int):
    """A with nearly low-rank weights, and π(A) plus noise."""
    module = build(Net("mlp", (width, width, width)), (1, 28, 28), 10, 0)
    spec = derive_spec(module, torch.zeros(2, 1, 28, 28))
    g = torch.Generator().manual_seed(0)
    a = {}
    for name, w in module.state_dict().items():
        a[name] = w.clone()
        if w.ndim == 2:
            u, v = (torch.randn(n, RANK, generator=g) for n in w.shape)
            a[name] += 2 * w.std() * (u @ v.T) / RANK**0.5
    b = {
        name: value + NOISE * value.std() * torch.randn(value.shape, generator=g)
        for name, value in spec.apply(a, spec.random(g)).items()
    }
    return a, b, spec


def images():
    return [torch.randn(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(1))]


@pytest.mark.benchmark(group="weight matching")
@pytest.mark.parametrize("width", [128, 256, 512, 1024, 2048])
def test_width(benchmark, width):
    a, b, spec = pair(width)
    found = benchmark.pedantic(
        lambda: match(a, b, spec), rounds=3 if width < 1024 else 1, warmup_rounds=int(width < 1024)
    )
    assert found.converged
    assert found.objective[-1] > 2 * abs(found.objective[0])
    benchmark.extra_info |= {k: round(v, 4) for k, v in found.seconds.items()}
    benchmark.extra_info |= {"sweeps": found.sweeps, "steps": len(found.objective) - 1}


@pytest.mark.benchmark(group="matching methods")
@pytest.mark.parametrize("method", ["weight", "activation", "commutativity"])
@pytest.mark.parametrize("width", [64, 128, 256, 512])
def test_methods(benchmark, method, width):
    a, b, spec = pair(width)
    module = build(Net("mlp", (width, width, width)), (1, 28, 28), 10, 0)
    data = {} if method == "weight" else {"data": images()}
    start = {"starts": ["activation"], "restarts": 0} if method == "commutativity" else {}
    found = benchmark.pedantic(
        lambda: match(a, b, spec, method, module=module, check=False, **data, **start),
        rounds=3 if width < 512 else 1,
        warmup_rounds=int(width < 512),
    )
    assert found.converged
    benchmark.extra_info |= {k: round(v, 4) for k, v in found.seconds.items()}
    benchmark.extra_info |= {"sweeps": found.sweeps, "steps": len(found.objective) - 1}


# ---- assignments --------------------------------------------------------------------------------


@functools.cache
def assignments(width):
    """What one weight matching solves: ``[(similarity, prices it begins with), …]``."""
    met = []
    assign_tree = weight.assign_tree

    def seen(own, children, prices):
        met.append((own.clone(), prices.clone()))
        return assign_tree(own, children, prices)

    a, b, spec = pair(width)
    with mock.patch.object(weight, "assign_tree", seen):
        match(a, b, spec)
    return met


@needs_compiler
@pytest.mark.benchmark(timer=time.process_time, disable_gc=True)
@pytest.mark.parametrize("how", ["scipy", "C", "C, warm"])
@pytest.mark.parametrize("width", [128, 512, 1024, 2048])
def test_assignments(benchmark, row, width, how):
    """All those of one matching; "warm": from the prices at which the group's last one ended."""
    benchmark.group = f"assignments, {width} units"
    met = assignments(width)

    def solve():
        for similarity, prices in met:
            assign(similarity, prices.clone() if how == "C, warm" else None)

    other = {} if how == "scipy" else {"against": "scipy"}
    with kernels.using("eager" if how == "scipy" else "native"):
        row(solve, rounds=3, row=how, **other)


@needs_compiler
@pytest.mark.parametrize("how", ["scipy", "C"])
@pytest.mark.parametrize("threads", [1, 2])
def test_two_assignments(benchmark, row, how, threads):
    """In two threads, where the interpreter's lock lets them."""
    benchmark.group = f"two assignments of 1024 units, {how}"
    similarity = [met[0] for met in assignments(1024)[1:3]]

    def solve(s):
        with kernels.using("eager" if how == "scipy" else "native"):
            assign(s)

    with ThreadPoolExecutor(threads) as pool:
        label = "side by side" if threads == 2 else "one after the other"
        other = {"against": "one after the other"} if threads == 2 else {}
        row(lambda: list(pool.map(solve, similarity)), rounds=15, row=label, **other)


# ---- groups side by side ------------------------------------------------------------------------


@functools.cache
def networks(name):
    if name != "ResNet-50":
        return pair(int(name.removeprefix("MLP, ")))
    torch.manual_seed(0)
    a, b = resnet50(), resnet50()
    return a.state_dict(), b.state_dict(), derive_spec(a, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("how", ["one thread", "products in two threads", "groups side by side"])
@pytest.mark.parametrize("network", ["MLP, 512", "ResNet-50"])
def test_side_by_side(benchmark, network, how):
    benchmark.group = f"two threads, {network}"
    a, b, spec = networks(network)
    sweep = weight.Descent._sweep

    def alone(self, order, due, submit, threads):
        return sweep(self, order, due, submit, 1)

    before = torch.get_num_threads()
    torch.set_num_threads(1 if how == "one thread" else 2)
    try:
        with mock.patch.object(
            weight.Descent, "_sweep", sweep if how == "groups side by side" else alone
        ):
            benchmark.pedantic(lambda: match(a, b, spec), rounds=1 if network == "ResNet-50" else 5)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info |= {"row": how}
    if how != "one thread":
        benchmark.extra_info |= {"against": "one thread"}
