"""Layerwise linear feature connectivity (Definition 2; Fig. 2, 4, 8; Appendix B.2).

    c f⁽ℓ⁾(αθ_A + (1−α)θ_B) = αf⁽ℓ⁾(θ_A) + (1−α)f⁽ℓ⁾(θ_B),

by the cosine between the two sides, cosine_α, against that between A and B, cosine_{A,B}; and by
coef_α, the projection of the left side's feature on the right side, which estimates 1/c.
"""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.LLFC, ids=lambda c: c.name)
def test_llfc(claim, assert_claim):
    assert_claim(claim)
