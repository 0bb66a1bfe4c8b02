"""The examples of docs/own-networks.md: networks trained by plain PyTorch, and what is found."""

from __future__ import annotations

import pytest

from llfc_core.check import check_row
from llfc_core.targets import own_rows
from tests.suite.running import ROOT

CONNECTED = ("lmc-loss", "llfc-cosine", "llfc-co-occurrence")


@pytest.mark.parametrize(
    ("name", "not_run"),
    [
        ("tabular", set()),
        ("regression", {"lmc-error", "lemma1", "stitching", "llfc-apart-output"}),
        pytest.param("transformer", {"stitching"}, marks=pytest.mark.slow),
        pytest.param("resnet18", set(), marks=pytest.mark.slow),
    ],
)
def test_example(name: str, not_run: set[str]) -> None:
    """Linked and independent pairs are told apart. Rounding decides what comes near a bound."""
    [row] = own_rows([f"examples/{name}.py:pair"], folder=ROOT)
    found = check_row(row)
    ranks = {"low-rank-weights", "low-rank-features", "low-rank-stable-rank"}
    assert {v.claim for v in found if v.status == "not run"} == not_run | ranks
    for claim in CONNECTED:
        assert found[claim].within, found.explain(claim)
        assert not found[f"{claim} on independent"].within
    assert "vacuous" not in {v.status for v in found}
