"""Stitching without a stitching layer on trained pairs (Appendix B.4; Table 1)."""

from llfc_core import claims


def test_stitching(assert_claim):
    assert_claim(claims.STITCHING, premise=claims.LMC)
