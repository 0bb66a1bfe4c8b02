"""The rows of the paper as data: recipes of a replicate, bounds of a setting."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.paper import STITCHING
from fixtures.settings import COMPARED, SETTINGS, Matched, Setting, Spawned, replicate
from llfc_core import claims
from llfc_core.features import Taps
from llfc_core.nets import build
from llfc_core.training import Point

CONTROLS = ("independent", "shuffled", "random", "untrained")
ALL = [
    pytest.param(setting, id=f"{scale}-{setting.id}")
    for scale in SETTINGS
    for setting in SETTINGS[scale] + COMPARED[scale]
]


@pytest.mark.parametrize("scale", SETTINGS)
def test_ids_are_unique(scale: str) -> None:
    ids = [setting.id for setting in SETTINGS[scale] + COMPARED[scale]]
    assert len(set(ids)) == len(ids)


def test_every_setting_of_the_paper_has_a_quick_row() -> None:
    kinds = {(s.recipe.net.name, type(s.link), s.link.name) for s in SETTINGS["paper"]}
    quick = {(s.recipe.net.name, type(s.link), s.link.name) for s in SETTINGS["quick"]}
    assert kinds <= quick


@pytest.mark.parametrize("row", ALL)
def test_pairs_that_are_matched_or_independent_share_no_seed(row: Setting) -> None:
    for r in (replicate(row, 0), replicate(row, 1)):
        assert r.c.parent is None
        assert r.c.seeds.init != r.a.seeds.init
        assert r.c.seeds.order not in (r.a.seeds.order, (r.a.parent or r.a).seeds.order)
        if isinstance(row.link, Matched):
            assert r.b == r.c
            assert r.a.parent is None
        else:
            assert r.a.seeds.order != r.b.seeds.order
            assert r.a.seeds.init == r.b.seeds.init
            assert (r.a.parent is None) == (row.link.at == Point())
            assert r.a.parent == r.b.parent


@pytest.mark.parametrize("row", ALL)
def test_replicates_have_no_mode_in_common(row: Setting) -> None:
    modes = [set(vars(replicate(row, i)).values()) for i in range(4)]
    assert all(x.isdisjoint(y) for x, y in itertools.combinations(modes, 2))


@pytest.mark.parametrize("row", ALL)
def test_early_and_initial_are_on_the_line_of_a(row: Setting) -> None:
    r = replicate(row, 0)
    line = r.a.parent or r.a
    assert replace(r.early, stop=None) == replace(line, stop=None) == replace(r.initial, stop=None)
    assert (r.early.stop, r.initial.stop) == (Point(epochs=1), Point())


@pytest.mark.parametrize("row", ALL)
def test_findings_and_bounds_speak_of_claims_that_exist(row: Setting) -> None:
    own = (*claims.MATCHERS, claims.MATCHER_BARRIER) if row.rivals else claims.MATCHING
    names = {c.name for c in (*claims.ALL, *own)}
    controls = {f"{name} on {c}" for name in names for c in CONTROLS}
    assert row.findings.keys() <= names | controls
    assert row.bounds.keys() <= names
    assert all(row.findings.values())


def test_a_setting_s_own_bound_replaces_the_claim_s_and_brings_its_reason() -> None:
    setting = replace(SETTINGS["quick"][0], bounds={claims.LLFC_COSINE.name: (0.5, "because")})
    own = setting.claim(claims.LLFC_COSINE)
    assert (own.bound, own.reason) == (0.5, "because")
    assert replace(own, bound=claims.LLFC_COSINE.bound, reason=claims.LLFC_COSINE.reason) == (
        claims.LLFC_COSINE
    )
    assert setting.claim(claims.LLFC_COEF) is claims.LLFC_COEF
    assert isinstance(setting.link, Spawned)


@pytest.mark.parametrize("id", STITCHING)
def test_the_paper_s_tables_have_our_layers(id: str) -> None:
    """Each layer of Tables 1-3 is an activation of the network at paper scale."""
    (row,) = (s for s in SETTINGS["paper"] if s.id == id)
    channels = 1 if row.recipe.data == "mnist" else 3
    side = 28 if channels == 1 else 32
    module = build(row.recipe.net, (channels, side, side), 10)
    names = Taps(module, torch.zeros(2, channels, side, side)).names
    assert set(STITCHING[id].stitched) <= set(names)


def test_on_other_data_nothing_is_known_beforehand() -> None:
    row = SETTINGS["quick"][0].on("fashion-mnist")
    assert (row.recipe.data, row.findings) == ("fashion-mnist", {})
    assert "fashion-mnist" in row.title
    assert replicate(row, 0).c.data == "fashion-mnist"


PAGE = {
    "mlp_mnist_spawn": "mlp-mnist-spawn",
    "vgg16_cifar10_spawn": "vgg16-cifar10-spawn",
    "resnet20_cifar10_spawn": "resnet20-cifar10-spawn",
    "resnet50_tiny_imagenet_spawn": "resnet50-tiny-imagenet-spawn",
    "mlp_mnist_permutation": "mlp-mnist-weight",
    "mlp_cifar10_permutation": "mlp-cifar10-weight",
    "resnet20_cifar10_permutation": "resnet20-cifar10-weight",
}


@pytest.mark.parametrize("name", PAGE)
def test_the_page_of_recipes_says_what_the_settings_are(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    (row,) = (s for s in SETTINGS["paper"] if s.id == PAGE[name])
    assert found[name] == replace(row.recipe, max_test_error=100.0)
    if isinstance(row.link, Spawned):
        at = re.search(rf"^{name} = .*# spawned at (.*)$", page, flags=re.MULTILINE)
        assert at is not None
        assert eval(at[1], found) == row.link.at
