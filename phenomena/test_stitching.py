"""Stitching without a stitching layer on trained pairs (Appendix B.4; Table 1).

Err(B_{>ℓ} ∘ A_{≤ℓ}) and Err(A_{>ℓ} ∘ B_{≤ℓ}) at every layer ℓ, against Err(A) and Err(B).
"""

from llfc_core import claims


def test_stitching(assert_claim):
    assert_claim(claims.STITCHING, premise=claims.LMC)
