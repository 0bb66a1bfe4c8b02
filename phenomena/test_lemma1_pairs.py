"""Lemma 1 on trained pairs: Err(θ_α) ≤ 2ε, where LLFC holds only approximately."""

from llfc_core import claims


def test_lemma1_pairs(assert_claim):
    assert_claim(claims.LEMMA1, premise=claims.LMC)
