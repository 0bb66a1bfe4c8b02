"""Eq. 9 read as a test: what permutation matching does to the two factors of commutativity.

    (W_A − P_ℓ W_B P_{ℓ−1}ᵀ)(H_A − P_{ℓ−1} H_B) = 0                                       (eq. 9)

Weight matching lowers the first factor, activation matching the second; each lowers the other too,
and through both Dist_com. Permuting at random lowers nothing.
"""

import pytest

from llfc_core import claims

pytestmark = pytest.mark.matched


@pytest.mark.parametrize("claim", claims.MATCHING[:2], ids=lambda c: c.name)
def test_matching_lowers(claim, assert_claim):
    assert_claim(claim)


@pytest.mark.parametrize("claim", claims.CONTROLS["random"], ids=lambda c: c.name)
def test_matching_at_random_does_not(claim, assert_rejected):
    assert_rejected(claim, "random")
