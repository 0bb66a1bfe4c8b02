"""Matching against width: MLPs with three hidden layers, B = a permuted A plus noise.

    pytest benchmarks/test_matching.py

``extra_info`` splits the time into similarities (matrix products) and assignments, which grow
alike: as n³. Compare the rows of one run; single times on a shared machine mean little.
Commutativity matching is timed from one start of its four.
"""

import pytest
import torch

from llfc_core.matching.derive import derive_spec
from llfc_core.matching.match import match
from llfc_core.nets import Net, build

IMAGES = 500

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
