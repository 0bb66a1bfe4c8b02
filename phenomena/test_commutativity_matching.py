"""The paper's open question (Section 6): what a permutation that enforces commutativity buys.

    min_π Σ_ℓ ‖(W_A − P_ℓ W_B P_{ℓ−1}ᵀ)(H_A − P_{ℓ−1} H_B)‖²                                (eq. 9)

Weight matching and activation matching lower one factor each. The same pairs of independent modes
are matched by both, by STE and by commutativity matching, which lowers the product itself; claims
compare them pair by pair.
"""

from dataclasses import replace

import numpy as np
import pytest

from fixtures.links import link_setting
from fixtures.measurements import gather_compared
from llfc_core import claims

pytestmark = pytest.mark.compared

NUMBERS = {
    "objective": claims.objective,
    "objective, held out": claims.objective_held_out,
    "Dist_com": lambda m, alphas: claims.dist_com(m, alphas)[..., 1:].mean(-1),
    "rho": lambda m, alphas: claims.rho(m, alphas)[..., 1:].mean(-1),
    "loss barrier": claims.loss_barrier,
    "error barrier": claims.error_barrier,
    "1 - cos": claims.farthest_from_llfc,
    "coef at the output": lambda m, alphas: m["coef"][..., -1, alphas.index(0.5)],
}


@pytest.fixture(scope="session")
def linked(setting, modes, links, dataset, run):
    """The links of every method, the setting's own first."""
    others = {
        how.method: link_setting(replace(setting, link=how), modes, dataset, run)
        for how in setting.rivals
    }
    return {setting.link.method: links, **others}


@pytest.fixture(scope="session")
def evidence(setting, modes, linked, dataset, run):
    """The same modes as every method matches them."""
    return gather_compared(setting, modes, linked, dataset, run.device, run.threads)


def test_every_method_has_the_same_modes(setting, evidence, linked, record_numbers):
    """However they are permuted, A and B err on the same images."""
    table = {}
    for name, pairs in evidence.pairs.items():
        table[name] = {
            what: [float(np.ravel(number(m.means(), m.alphas))[0]) for m in pairs]
            for what, number in NUMBERS.items()
        }
        method = setting.link.method if name == "linked" else name
        table[name]["seconds"] = [link.facts["seconds"]["total"] for link in linked.get(method, ())]
        for m, own in zip(pairs, evidence.pairs["linked"], strict=True):
            assert (m.values["error"][[0, -1]] == own.values["error"][[0, -1]]).mean() > 0.999
    record_numbers("by matching method", table)


@pytest.mark.parametrize("claim", claims.MATCHERS, ids=lambda c: c.name)
def test_commutativity_matching(claim, assert_claim):
    assert_claim(claim)


@pytest.mark.narrow
def test_commutativity_matching_lowers_the_barrier(assert_claim):
    assert_claim(claims.MATCHER_BARRIER)


@pytest.mark.parametrize("claim", claims.MATCHERS, ids=lambda c: c.name)
def test_matching_at_random_does_not(claim, assert_rejected):
    assert_rejected(claim, "random")
