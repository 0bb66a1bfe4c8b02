"""Linear mode connectivity (Definition 1): the premise of everything else."""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.LMC, ids=lambda c: c.name)
def test_lmc(claim, assert_claim):
    assert_claim(claim)
