"""LMC by permutation improves with width (Ainsworth et al. 2023; the paper's 32×, Appendix B.1.2).

The same recipe at several widths: the error barrier of matched pairs falls as the network gets
wider, and at the narrowest they are not linearly connected.
"""

import pytest

from fixtures.links import link_setting
from fixtures.modes import train_setting
from llfc_core import claims
from llfc_core.nets import build
from llfc_core.pairs import ModePair, loss_barrier
from llfc_core.training import evaluate

pytestmark = pytest.mark.narrower


@pytest.fixture(scope="session")
def barriers(setting, modes, links, dataset, run, pytestconfig) -> dict[str, list[float]]:
    """Error barriers of the replicates in points, by network, the narrowest first."""

    def test_error(network):
        return evaluate(network, dataset.test, dataset)[0]

    rows = []
    for row in setting.narrower_ones():
        trained = train_setting(row, dataset, run, pytestconfig)
        rows.append((row, trained, link_setting(row, trained, dataset, run)))
    found = {}
    for row, trained, linked in (*rows, (setting, modes, links)):
        net = row.recipe.net
        found[f"{net.name} {net.widths}"] = []
        for m, link in zip(trained, linked, strict=True):
            module = build(net, dataset.shape, dataset.classes).to(dataset.device)
            a, b = ({k: v.to(dataset.device) for k, v in s.items()} for s in (m.a.weights, link.b))
            barrier = loss_barrier(
                ModePair(row.link.name, module, a, b), test_error, setting.alphas
            )
            found[f"{net.name} {net.widths}"].append(barrier)
    return found


def test_width_lowers_the_barrier(barriers, record_numbers):
    record_numbers("error barrier by width, percentage points", barriers)
    means = [sum(values) / len(values) for values in barriers.values()]
    assert means == sorted(means, reverse=True), barriers


def test_narrowest_is_not_linearly_connected(setting, barriers):
    assert min(next(iter(barriers.values()))) > setting.claim(claims.LMC_ERROR).bound, barriers
