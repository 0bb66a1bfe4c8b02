"""Singular values of weights and features of a trained mode (Fig. 20, 21), two ways.

Exact, so apart from the phenomena: the values from streamed Gram matrices, which the claims use,
must be those of a direct SVD of W⁽ℓ⁾ and of H⁽ℓ⁾ over the test set. They go into results.json.
"""

import copy

import pytest
import torch

from llfc_core.features import Taps, flatten
from llfc_core.metrics.low_rank import GramAccumulator, squared_singular_values

POINTS = 2000  # of the test set, kept whole
BATCH = 300
LARGEST = 1024  # coordinates: a direct SVD of more takes too long here


@pytest.fixture(scope="session")
def tapped(networks, run):
    """Mode A of the first replicate with its layers tapped, and test images."""
    first = networks.of("linked")[0]
    module = copy.deepcopy(first.pair.module).to(run.device)
    module.load_state_dict(first.pair.a)
    x = first.inputs(POINTS).to(run.device)
    return module, Taps(module, x[:2]), x


def agree(squares: torch.Tensor, direct: torch.Tensor) -> list[float]:
    """Assert that squared singular values are the squares of ``direct``; give them, rounded."""
    expected = torch.zeros_like(squares)
    expected[: len(direct)] = direct.square()
    # An eigenvalue's error is relative to the largest one.
    torch.testing.assert_close(squares, expected, rtol=1e-9, atol=1e-11 * float(expected[0]))
    return [float(f"{v:.4g}") for v in direct]


def test_low_rank_spectra_of_weights(tapped, record_numbers):
    module, _, _ = tapped
    weights = {k: v.detach() for k, v in module.named_parameters() if v.dim() > 1}
    spectra = {
        name: agree(
            squared_singular_values(w).cpu(), torch.linalg.svdvals(w.flatten(1).double()).cpu()
        )
        for name, w in weights.items()
    }
    assert spectra
    record_numbers("singular values of W, mode A", spectra)


def test_low_rank_spectra_of_features(tapped, record_numbers):
    _, taps, x = tapped
    grams, kept = {}, {}

    def on_layer(layer):
        h = flatten(layer.post).detach()
        if h.shape[1] <= LARGEST:
            grams.setdefault(layer.name, GramAccumulator()).update(h)
            kept.setdefault(layer.name, []).append(h.double())

    for batch in x.split(BATCH):
        taps.run(batch, on_layer)
    spectra = {
        name: agree(
            gram.squared_singular_values().cpu(), torch.linalg.svdvals(torch.cat(kept[name])).cpu()
        )
        for name, gram in grams.items()
    }
    assert spectra
    record_numbers("singular values of H, mode A", spectra)
