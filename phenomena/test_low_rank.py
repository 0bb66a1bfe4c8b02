"""Low rank of weights and features (Appendix B.5; Fig. 20, 21, 22).

    srnk(W) = ‖W‖²_F / ‖W‖²₂,        after one epoch against the end of training (Fig. 22);

the share of singular values of W⁽ℓ⁾ (Fig. 20) and of H⁽ℓ⁾ over the test set (Fig. 21) that hold 95%
of the squared norm.
"""

import pytest

from llfc_core import claims


@pytest.mark.parametrize("claim", claims.LOW_RANK, ids=lambda c: c.name)
def test_low_rank(claim, assert_claim):
    assert_claim(claim)
