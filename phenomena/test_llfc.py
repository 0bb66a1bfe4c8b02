"""Layerwise linear feature connectivity (Definition 2; Fig. 2, 4, 8; Appendix B.2)."""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.LLFC, ids=lambda c: c.name)
def test_llfc(claim, assert_claim):
    assert_claim(claim, premise=claims.LMC)
