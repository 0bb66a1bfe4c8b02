"""Lemma 1 on trained pairs, where LLFC holds only approximately.

Err(θ_α) ≤ 2ε for all α, with ε = max(Err(θ_A), Err(θ_B)).
"""

from llfc_core import claims


def test_lemma1_pairs(assert_claim):
    assert_claim(claims.LEMMA1)
