"""Commutativity on trained pairs (Definition 4; Fig. 7, 16-19)."""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.COMMUTATION, ids=lambda c: c.name)
def test_commutativity(claim, assert_claim):
    assert_claim(claim, premise=claims.LMC)
