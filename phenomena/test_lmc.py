"""Linear mode connectivity (Definition 1): the premise of everything else.

    Err(αθ_A + (1−α)θ_B) ≈ Err(θ_A) for all α in [0, 1],

judged by the barrier: the largest height of the curve of test errors, and of test losses, over the
chord between its ends.
"""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.LMC, ids=lambda c: c.name)
def test_lmc(claim, assert_claim):
    assert_claim(claim)


@pytest.mark.batchnorm
@pytest.mark.parametrize("claim", claims.LMC_REESTIMATED, ids=lambda c: c.name)
def test_lmc_reestimated(claim, assert_claim):
    """With BatchNorm's statistics estimated on the training data between A and B.

    The claims of the other files are judged with interpolated statistics, as the paper's code has
    them.
    """
    assert_claim(claim)
