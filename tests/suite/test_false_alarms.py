"""How often the claims err: twenty fresh replicates, each judged alone.

    pytest tests/suite/test_false_alarms.py -m slow -s

prints, per claim, how often it fails on linked pairs (false alarms) and how often it passes on
independent ones (misses). It trains 60 networks: some minutes on two cores.
"""

from collections import Counter

import pytest
import torch

from fixtures.links import link_replicates
from fixtures.measurements import pairs_of
from fixtures.modes import train_replicates
from fixtures.settings import MLP_MNIST_SPAWN_QUICK, replicate
from llfc_core import claims
from llfc_core.data import load_dataset
from llfc_core.evidence import measure_pairs
from llfc_core.machine import cores
from llfc_core.store import Store
from llfc_core.training import Progress, cache_dir

FRESH = range(100, 120)  # seeds that neither the suite nor its margins have seen
SETTING = MLP_MNIST_SPAWN_QUICK


@pytest.mark.slow
def test_false_alarms_and_misses():
    data, device = load_dataset(SETTING.recipe.data), torch.device("cpu")
    modes = train_replicates(
        [replicate(SETTING, i) for i in FRESH],
        data,
        Store(cache_dir()),
        device,
        progress=Progress,
    )
    links = link_replicates(SETTING, modes, data, Store(cache_dir() / "matches"), device, cores())
    pairs = measure_pairs(
        pairs_of(SETTING, modes, links, data), alphas=SETTING.alphas, threads=cores()
    )
    alarms, misses = Counter(), Counter()
    for i in range(len(FRESH)):
        one = {name: group[i : i + 1] for name, group in pairs.items()}
        for claim in claims.ALL:
            verdict = claims.judge(claim, one[claim.pairs], one["independent"])
            alarms[claim.name] += not verdict.holds
            if claim.pairs == "linked":
                verdict = claims.judge(claim, one["independent"], one["independent"])
                misses[claim.name] += verdict.holds
    print(f"\n{'claim':<30} false alarms  misses, of {len(FRESH)}")
    for claim in claims.ALL:
        miss = f"{misses[claim.name]:6}" if claim.pairs == "linked" else "      "
        print(f"{claim.name:<30} {alarms[claim.name]:12}  {miss}")
    # A single pair has less to say than three: the rates are those of the weakest evidence there
    # can be. Lemma 1's bound of twice the error is so wide that one independent pair in ten kept
    # to it (2 of 20), every other claim was missed by none.
    for claim in claims.ALL:
        if claim.name in SETTING.findings:
            assert alarms[claim.name] >= 0.75 * len(FRESH), claim.name
        else:
            assert alarms[claim.name] <= 0.1 * len(FRESH), claim.name
        if claim not in (claims.NOT_ALIGNED, claims.NOT_ALIGNED_OUTPUT):
            assert misses[claim.name] <= 0.3 * len(FRESH), claim.name
