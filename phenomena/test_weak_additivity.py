"""Weak additivity for ReLU activations on trained pairs (Definition 3; Fig. 5)."""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.ADDITIVITY, ids=lambda c: c.name)
def test_weak_additivity(claim, assert_claim):
    assert_claim(claim, premise=claims.LMC)
