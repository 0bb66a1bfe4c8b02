"""Weak additivity for ReLU activations on trained pairs (Definition 3; Fig. 5).

    σ(αh̃_A + (1−α)h̃_B) = ασ(h̃_A) + (1−α)σ(h̃_B),

by Dist_σ per image: the normalised distance of the two sides at the worst α of all of [0, 1].
"""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.ADDITIVITY, ids=lambda c: c.name)
def test_weak_additivity(claim, assert_claim):
    assert_claim(claim)
