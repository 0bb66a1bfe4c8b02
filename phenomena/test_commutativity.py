"""Commutativity on trained pairs (Definition 4; Fig. 7, 16-19).

    W_A H_A + W_B H_B = W_A H_B + W_B H_A, that is (W_A − W_B)(H_A − H_B) = 0,

by Dist_com, the normalised distance of the two sides, against Dist_W and Dist_H, those of weights
and features; and by ρ = 4 Dist_com / (Dist_W Dist_H), which is 1 for small differences without
structure and 2 for unrelated modes.
"""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.COMMUTATION, ids=lambda c: c.name)
def test_commutativity(claim, assert_claim):
    assert_claim(claim)
