"""Pairs on which the same predicates must not hold.

``independent``: A and C, trained apart from different initialisations, are not linearly connected.
``shuffled``: A and A plus the entries of B − A in random order are as far apart in weights as the
pair, but in no learned direction; their features hardly differ, so nothing is left to interpolate.
(MLPs, spawned: longer steps do move the features, and BatchNorm magnifies short ones.)
``untrained``: a network before its first step, against itself after an epoch.
"""

import pytest

from llfc_core import claims


@pytest.mark.independent
@pytest.mark.parametrize("claim", claims.CONTROLS["independent"], ids=lambda c: c.name)
def test_independent(claim, assert_rejected):
    assert_rejected(claim, "independent")


@pytest.mark.batchnorm
@pytest.mark.independent
@pytest.mark.parametrize("claim", claims.CONTROLS["independent re-estimated"], ids=lambda c: c.name)
def test_independent_reestimated(claim, assert_rejected):
    assert_rejected(claim, "independent re-estimated")


@pytest.mark.shuffled
@pytest.mark.parametrize("claim", claims.CONTROLS["shuffled"], ids=lambda c: c.name)
def test_shuffled(claim, assert_rejected):
    assert_rejected(claim, "shuffled")


@pytest.mark.untrained
@pytest.mark.parametrize("claim", claims.CONTROLS["untrained"], ids=lambda c: c.name)
def test_untrained(claim, assert_rejected):
    assert_rejected(claim, "untrained")
