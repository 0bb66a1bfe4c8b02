"""How a setting's pairs are linked: B as it is, or matched to A; found once and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures import links
from fixtures.links import Link, link_replicates
from fixtures.measurements import gather_compared, pairs_of
from fixtures.modes import Modes, train_replicates
from fixtures.settings import Matched, Setting, Spawned, replicate
from llfc_core import claims
from llfc_core.data import Dataset
from llfc_core.evidence import measure_pairs
from llfc_core.matching import METHODS
from llfc_core.metrics import Measurement
from llfc_core.nets import Net, build
from llfc_core.store import Store
from llfc_core.training import Point
from tests.helpers import identical, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
STE = Matched("ste", (("epochs", 1), ("batch_size", 100)))
NORMED = Net("resnet20", (2, 2, 2))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def trained(link: Spawned | Matched, dataset: Dataset, root: Path) -> tuple[Setting, list[Modes]]:
    setting = Setting("tiny", "tiny", tiny_recipe(), link)
    modes = train_replicates([replicate(setting, i) for i in range(2)], dataset, Store(root), CPU)
    return setting, modes


def test_spawned_modes_are_linked_as_they_are(dataset: Dataset, root: Path, tmp_path: Path) -> None:
    setting, modes = trained(Spawned(Point()), dataset, root)
    found = link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 1)
    assert [link.b for link in found] == [m.b.weights for m in modes]
    assert all(link.random is None for link in found)
    assert not Store(tmp_path).keys()


@pytest.mark.parametrize(
    "how", [Matched(name) for name in METHODS if name != "ste"] + [STE], ids=lambda h: h.method
)
def test_matched_modes_compute_what_b_computes(
    how: Matched, dataset: Dataset, root: Path, tmp_path: Path
) -> None:
    setting, modes = trained(how, dataset, root)
    found = link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 2)
    x = dataset.normalise(dataset.test.images).double()
    for m, link in zip(modes, found, strict=True):
        module = build(setting.recipe.net, dataset.shape, dataset.classes).double()
        module.load_state_dict(m.b.weights)
        want = module(x)
        for state in (link.b, link.random):
            assert state is not None
            assert not identical(m.b.weights, state)
            module.load_state_dict(state)
            torch.testing.assert_close(module(x), want, rtol=1e-6, atol=1e-6)
        assert link.facts["method"] == how.method
        assert link.facts["objective"]


def test_matching_brings_modes_closer_than_chance(
    dataset: Dataset, root: Path, tmp_path: Path
) -> None:
    setting, modes = trained(Matched("weight"), dataset, root)
    for m, link in zip(
        modes, link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 1), strict=True
    ):
        assert link.random is not None

        def gap(b: object, a: object = m.a.weights) -> float:
            return sum(float((a[k] - b[k]).square().sum()) for k in a)  # type: ignore[index,attr-defined]

        assert gap(link.b) < min(gap(m.b.weights), gap(link.random))


def test_a_match_is_found_once_and_kept(
    dataset: Dataset, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, modes = trained(Matched("weight"), dataset, root)
    first = link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 1)
    assert len(Store(tmp_path).keys()) == 2

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("matched again")

    monkeypatch.setattr(links, "match", refuse)
    again = link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 1)
    assert all(
        identical(x.b, y.b) and x.facts == y.facts for x, y in zip(first, again, strict=True)
    )
    # Another method, other options, another version: another match.
    monkeypatch.setattr(links, "MATCHING_VERSION", -1)
    with pytest.raises(AssertionError, match="matched again"):
        link_replicates(setting, modes, dataset, Store(tmp_path), CPU, 1)


def test_keys_tell_matches_apart() -> None:
    keys = [
        links._key(a, b, how)
        for a, b in (("a", "b"), ("b", "a"))
        for how in (
            Matched("weight"),
            Matched("activation"),
            Matched("weight", (("restarts", 1),)),
        )
    ]
    assert len(set(keys)) == len(keys)


def measured_of(setting: Setting, dataset: Dataset, root: Path) -> dict[str, list[Measurement]]:
    modes = train_replicates([replicate(setting, 0)], dataset, Store(root), CPU)
    found = link_replicates(setting, modes, dataset, Store(root / "matches"), CPU, 1)
    return measure_pairs(pairs_of(setting, modes, found, dataset), alphas=setting.alphas)


def test_pairs_measured_follow_from_the_link(dataset: Dataset, root: Path) -> None:
    always = {"linked", "independent", "training", "untrained"}
    spawned = Setting("tiny", "tiny", tiny_recipe(), Spawned(Point()))
    matched = Setting("tiny", "tiny", tiny_recipe(), Matched("weight"))
    normed = Setting(
        "tiny", "tiny", tiny_recipe(net=NORMED, epochs=2), Spawned(Point(epochs=1)), (0.0, 0.5, 1.0)
    )
    assert measured_of(spawned, dataset, root).keys() == always | {"shuffled"}
    assert measured_of(matched, dataset, root).keys() == always | {"random"}
    pairs = measured_of(normed, dataset, root)
    assert pairs.keys() == always | {"re-estimated", "independent re-estimated"}
    # The same ends, another middle; the output alone.
    plain, again = pairs["linked"][0], pairs["re-estimated"][0]
    assert again.layers == plain.layers[-1:]
    assert (again.means()["loss"][0, [0, -1]] == plain.means()["loss"][0, [0, -1]]).all()
    assert again.means()["loss"][0, 1] != plain.means()["loss"][0, 1]
    verdict = claims.judge(claims.LMC_REESTIMATED[0], [again])
    assert verdict.claim == "lmc-error-re-estimated"


def test_measurements_of_modes_alone_serve_several_settings(dataset: Dataset, root: Path) -> None:
    measured: dict[tuple[str, ...], Measurement] = {}
    seen = []
    for how in (Matched("weight"), Matched("activation")):
        setting, modes = trained(how, dataset, root)
        found: list[Link] = link_replicates(setting, modes, dataset, Store(root / "m"), CPU, 1)
        seen.append(measure_pairs(pairs_of(setting, modes, found, dataset), measured=measured))
    assert seen[0]["independent"][0] is seen[1]["independent"][0]
    assert seen[0]["linked"][0] is not seen[1]["linked"][0]


def test_the_same_modes_by_several_methods(dataset: Dataset, root: Path) -> None:
    """Claims of one method against others; the objective is that of the networks permuted."""
    setting, modes = trained(Matched("commutativity"), dataset, root)
    store = Store(root / "m")
    found = {
        how.method: link_replicates(replace(setting, link=how), modes, dataset, store, CPU, 1)
        for how in (Matched("commutativity"), Matched("weight"), Matched("activation"))
    }
    pairs = gather_compared(setting, modes, found, dataset, CPU, 1).pairs
    assert list(pairs) == ["linked", "weight", "activation", "independent", "random"]
    for measurements in pairs.values():
        ends = [m.means()["loss"][0, [0, -1]] for m in measurements]
        assert np.allclose(ends, [m.means()["loss"][0, [0, -1]] for m in pairs["linked"]])
    train, test = np.array([m.constants["objective"] for m in pairs["linked"]]).T
    assert list(train) == [link.facts["objective"][-1] for link in found["commutativity"]]
    for name in ("weight", "activation", "independent", "random"):
        others = np.array([m.constants["objective"] for m in pairs[name]])
        assert (others[:, 0] > train).all()
        assert (others[:, 1] != test).all()
    verdict = claims.judge(
        replace(claims.MATCHER_OBJECTIVE, against=("weight", "activation")),
        pairs["linked"],
        rivals=pairs,
    )
    assert verdict.link == "commutativity-matched"
    assert verdict.value > 1
