"""Stitching without a stitching layer on trained pairs (Appendix B.4; Tables 1-3).

Err(B_{>ℓ} ∘ A_{≤ℓ}) and Err(A_{>ℓ} ∘ B_{≤ℓ}) at every layer ℓ that cuts the network in two, against
Err(A) and Err(B).
"""

import numpy as np

from fixtures.paper import STITCHING
from llfc_core import claims


def test_stitching(assert_claim):
    assert_claim(claims.STITCHING)


def test_stitching_tables(evidence, run, record_numbers):
    """Tables 1 to 3 from our pairs, in per cent, beside the paper's at its own scale."""
    pairs = evidence.pairs["linked"]
    means = [m.means() for m in pairs]
    stitched = 100 * np.mean([m["stitched_error"][0, :, 0] for m in means], axis=0)
    ends = 100 * np.mean([m["error"][0, [-1, 0]] for m in means], axis=0)
    ours = {name: float(error) for name, error in zip(pairs[0].layers, stitched) if error == error}
    assert ours
    table = {"A": float(ends[0]), "B": float(ends[1]), "B on A's features": ours}
    paper = STITCHING.get(evidence.setting.id) if run.scale == "paper" else None
    if paper is not None:
        assert paper.stitched.keys() <= ours.keys(), "a layer of the paper's table is missing"
        table["paper"] = {"table": paper.source, "A": paper.a, "B": paper.b, **paper.stitched}
    record_numbers("stitching, test error in per cent", table)
