"""Claims judged on planted numbers, and shown to notice metrics that are wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures.settings import replicate
from llfc_core import claims
from llfc_core.claims import Claim, Verdict, judge, vacuous
from llfc_core.data import load_dataset
from llfc_core.metrics import ALPHAS, Measurement, measure
from llfc_core.nets import build
from llfc_core.pairs import ModePair, shuffled_difference
from llfc_core.store import Store
from llfc_core.training import ensure
from tests.planted import bump, measurement
from tests.suite.tiny import TINY

N = 200
HALF = ALPHAS.index(0.5)
GOOD = measurement()


# ---- a pair, and an independent one, on which a claim's number is known -------------------------


def at(layer: int, value: float, others: float, depth: int = 3) -> np.ndarray:
    """``(L, 1)``."""
    return np.array([[value if i == layer else others] for i in range(depth)])


def sums(dist_com: float) -> np.ndarray:
    """``(6, 1)`` commutativity sums with that Dist_com, and Dist_H = 0.1."""
    return np.array([[4 * dist_com / (4 - dist_com), 0.0, 4.0, 0.1, 1.0, 1.0]]).T


ALIKE = [sums(1e-4), sums(1e-3)]  # of the first two maps


def errors_of(rate: float) -> np.ndarray:
    return np.full(N, rate)


# Claim → what to plant in the pair, or in the independent one, for its number to be v.
PLANTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "lmc-error": lambda v: {"error": 0.05 + v / 100 * bump()},
    "lmc-loss": lambda v: {"loss": 0.2 + v * bump()},
    "llfc-cosine": lambda v: {"one_minus_cos": at(1, v, 0.001)[:, None]},
    "llfc-contrast": lambda v: {"one_minus_cos": at(1, v * 0.3, 0.001)[:, None]},
    "llfc-apart": lambda v: {"one_minus_cos_ab": at(1, v, 0.3)},
    "llfc-apart-output": lambda v: {"one_minus_cos_ab": at(2, v, 0.3)},
    "llfc-coef": lambda v: {"coef": 1 - at(1, v, 0.0)[:, None] * bump()[None]},
    "additivity": lambda v: {"dist_sigma": [[0.01], [v], [np.nan]]},
    "commutativity": lambda v: {"commutativity": [*ALIKE, sums(0.1 * v)]},
    "commutativity-rho": lambda v: {"commutativity": [*ALIKE, sums(v * 0.1 * 0.1 / 4)]},
    "stitching": lambda v: {
        "error": 0.05,
        "stitched_error": [[[0.05]] * 2, [[0.05], [0.05 + v / 100]], [[np.nan]] * 2],
    },
    "lemma1": lambda v: {"error": 0.05 + 0.05 * (2 * v - 1) * bump()},
}
PLANTED_INDEPENDENT: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llfc-co-occurrence": lambda v: {"one_minus_cos": at(1, v * 0.001, 0.1)[:, None]},
    "additivity-co-occurrence": lambda v: {"dist_sigma": [[1.0], [v * 0.01], [np.nan]]},
    # The good pair's Dist_com, to its last digit.
    "commutativity-co-occurrence": lambda v: {
        "commutativity": [*ALIKE, sums(v * 4e-4 / (4 + 1e-4))]
    },
}

JUDGED = [c for c in claims.ALL if c.name in PLANTED | PLANTED_INDEPENDENT]
every_claim = pytest.mark.parametrize("claim", JUDGED, ids=lambda c: c.name)
# Those whose number is a mean over images that can be given a spread.
SPREAD = ("lmc-loss", "llfc-cosine", "llfc-apart", "llfc-apart-output", "additivity")


def judged(claim: Claim, *values: Any) -> Verdict:
    """The verdict on pairs, one for each value planted."""
    if claim.name in PLANTED:
        pairs = [measurement(**PLANTED[claim.name](v)) for v in values]
        return judge(claim, pairs, [GOOD])
    independent = [measurement(**PLANTED_INDEPENDENT[claim.name](v)) for v in values]
    return judge(claim, [GOOD] * len(values), independent)


def beyond(claim: Claim, factor: float) -> float:
    """A value ``factor`` of the way from 0 past the bound, on its bad side for factor > 1."""
    return claim.bound * factor if claim.at_most else claim.bound / factor


def test_every_claim_of_lmc_and_llfc_is_planted_here() -> None:
    assert {c.name for c in claims.LMC + claims.LLFC} <= {c.name for c in JUDGED}


@every_claim
@pytest.mark.parametrize(("factor", "status"), [(0.99, "holds"), (1.01, "rejected")])
def test_judge_at_the_bound(claim: Claim, factor: float, status: str) -> None:
    value = beyond(claim, factor)
    verdict = judged(claim, value)
    assert (verdict.status, verdict.note) == (status, ""), verdict.explain(claim)
    assert verdict.holds == (status == "holds")
    assert verdict.value == pytest.approx(value, rel=1e-6)
    assert verdict.low == pytest.approx(value, rel=1e-6)
    assert verdict.high == pytest.approx(value, rel=1e-6)
    assert (verdict.claim, verdict.bound, verdict.at_most) == (
        claim.name,
        claim.bound,
        claim.at_most,
    )
    assert verdict.layer in verdict.layers
    assert verdict.layers[verdict.layer] == (verdict.value, verdict.low, verdict.high)


@every_claim
def test_judge_takes_the_unfavourable_end(claim: Claim) -> None:
    """Three pairs that differ: their mean is on the good side, the worst of them is not."""
    good, bad = beyond(claim, 0.5), beyond(claim, 1.2)
    verdict = judged(claim, good, good, bad)
    middle = (2 * good + bad) / 3
    assert verdict.value == pytest.approx(middle)
    assert middle < claim.bound if claim.at_most else middle > claim.bound
    assert verdict.status == "rejected"
    assert (verdict.high if claim.at_most else verdict.low) == pytest.approx(bad)
    # … and a pair as far on the good side does not make a bad mean good.
    best, bad = beyond(claim, 0.2), beyond(claim, 2.2)
    assert judged(claim, bad, bad, best).status == "rejected"


@pytest.mark.parametrize("name", SPREAD)
def test_judge_takes_the_unfavourable_end_of_few_images(name: str) -> None:
    """One pair: images spread about a mean just on the good side leave it undecided."""
    claim = next(c for c in JUDGED if c.name == name)
    spread = 1 + 0.5 * np.where(np.arange(N) % 2, 1, -1)
    planted = PLANTED[name](1.0)
    close, clear = (
        {k: spread_about(v, beyond(claim, f) * spread) for k, v in planted.items()}
        for f in (0.98, 0.8)
    )
    verdict = judge(claim, [measurement(**close)])
    assert verdict.value < claim.bound if claim.at_most else verdict.value > claim.bound
    assert verdict.status == "rejected"
    assert judge(claim, [measurement(**clear)]).status == "holds"


def spread_about(planted: Any, values: np.ndarray) -> Any:
    """What was planted as 1 (plus a background) becomes ``values`` over the images."""
    array = np.asarray(planted, dtype=float)
    if array.ndim == 2 and len(array) == len(ALPHAS):  # a curve: 0.2 and a bump of height 1
        return 0.2 + (array - 0.2) * values
    return np.where(array == 1, values, array)


@every_claim
def test_judge_undefined_is_worst(claim: Claim) -> None:
    """NaN in the layer planted, in its number or only in its interval: not passed over."""
    verdict = judged(claim, np.nan)
    assert not verdict.holds
    if claim.name not in ("llfc-apart", "lmc-error", "lemma1"):  # these say so in other words
        healthy = judged(claim, beyond(claim, 0.5))
        if len(healthy.layers) > 1:
            assert verdict.layer == judged(claim, beyond(claim, 1.5)).layer
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_judge_an_undefined_interval_is_worst_too() -> None:
    """Few images have a number: a resample may have none of them, whatever their mean is."""
    sigma = np.full((3, N), 0.01)
    sigma[1, 1:] = np.nan
    sigma[2] = np.nan
    verdict = judge(claims.WEAK_ADDITIVITY, [measurement(dist_sigma=sigma)])
    assert verdict.layer == "fc2"
    assert not verdict.holds


def test_judge_selects_layers() -> None:
    bad_everywhere = measurement(one_minus_cos_ab=0.06)
    output = judge(claims.NOT_ALIGNED_OUTPUT, [bad_everywhere])
    assert list(output.layers) == ["fc3"]
    assert list(judge(claims.NOT_ALIGNED, [bad_everywhere]).layers) == ["fc1", "fc2"]
    assert list(judge(claims.LLFC_COSINE, [bad_everywhere]).layers) == ["fc1", "fc2", "fc3"]
    assert list(judge(claims.LMC_ERROR, [bad_everywhere]).layers) == ["network"]
    # The output is not judged as hidden, nor the hidden layers as output.
    only_output = measurement(one_minus_cos_ab=at(2, 0.0001, 0.3))
    assert judge(claims.NOT_ALIGNED, [only_output]).holds
    assert not judge(claims.NOT_ALIGNED_OUTPUT, [only_output]).holds
    only_hidden = measurement(one_minus_cos_ab=at(0, 0.0001, 0.3))
    assert not judge(claims.NOT_ALIGNED, [only_hidden]).holds
    assert judge(claims.NOT_ALIGNED_OUTPUT, [only_hidden]).holds


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_judge_the_worst_layer_decides(layer: int) -> None:
    high = judge(claims.LLFC_COSINE, [measurement(one_minus_cos=at(layer, 0.05, 0.03)[:, None])])
    assert (high.layer, high.status) == (f"fc{layer + 1}", "rejected")
    independent = measurement(one_minus_cos=at(layer, 0.002, 0.1)[:, None])
    low = judge(claims.CO_OCCURRENCE, [GOOD], [independent])
    assert (low.layer, low.status) == (f"fc{layer + 1}", "rejected")
    assert low.value == pytest.approx(2)


@pytest.mark.parametrize("k", range(1, len(ALPHAS) - 1))
def test_llfc_cosine_takes_the_worst_alpha(k: int) -> None:
    curve = np.full(len(ALPHAS), 0.001)
    curve[k] = 0.05
    verdict = judge(claims.LLFC_COSINE, [measurement(one_minus_cos=curve[None, :, None])])
    assert verdict.value == pytest.approx(0.05)


def test_llfc_co_occurrence_is_at_one_half() -> None:
    """Fig. 4 is drawn for α = 0.5."""
    curve = np.full(len(ALPHAS), 0.001)
    curve[HALF] = 0.007
    apart = measurement(one_minus_cos=curve[None, :, None])
    assert judge(claims.CO_OCCURRENCE, [GOOD], [apart]).value == pytest.approx(7)
    assert judge(claims.CO_OCCURRENCE, [GOOD], [GOOD]).value == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("coef", [0.7, 1.3])
def test_llfc_coef_is_close_to_1_from_either_side(alpha: float, coef: float) -> None:
    curve = np.ones(len(ALPHAS))
    curve[ALPHAS.index(alpha)] = coef
    verdict = judge(claims.LLFC_COEF, [measurement(coef=curve[None, :, None])])
    assert verdict.value == pytest.approx(0.3)
    assert verdict.status == "rejected"


def test_llfc_coef_is_that_of_the_mean_over_images() -> None:
    """Fig. 8 plots E[coef_α]: images on either side of 1 may cancel."""
    coef = np.where(np.arange(N) % 2, 0.5, 1.5)
    verdict = judge(claims.LLFC_COEF, [measurement(coef=coef)])
    assert verdict.value == pytest.approx(0)
    assert verdict.holds


def test_llfc_cosine_counts_a_flipped_sign() -> None:
    """1 − cos of a feature that points the wrong way is 2, and no small number."""
    verdict = judge(claims.LLFC_COSINE, [measurement(one_minus_cos=at(2, 2.0, 0.0)[:, None])])
    assert (verdict.value, verdict.status) == (2, "rejected")


# ---- the barrier --------------------------------------------------------------------------------


def barrier_by_hand(curve: np.ndarray, alphas: tuple[float, ...]) -> float:
    """Def. 1 on a grid: the height over the chord from B (first) to A (last), 0 at the ends."""
    heights = [
        curve[k] - (alpha * curve[-1] + (1 - alpha) * curve[0]) for k, alpha in enumerate(alphas)
    ]
    return max(heights)


@pytest.mark.parametrize("seed", range(20))
def test_barrier_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alphas = (0.0, *sorted(rng.random(5)), 1.0)
    curve = rng.random(7)
    error, loss = (
        judge(c, [measurement(n=20, alphas=alphas, error=curve[:, None], loss=curve[:, None])])
        for c in (claims.LMC_ERROR, claims.LMC_LOSS)
    )
    want = barrier_by_hand(curve, alphas)
    assert want >= 0
    assert error.value == pytest.approx(100 * want)
    assert loss.value == pytest.approx(want)


@pytest.mark.parametrize("claim", claims.LMC, ids=lambda c: c.name)
def test_barrier_of_a_dip_is_0(claim: Claim) -> None:
    verdict = judge(claim, [measurement(error=0.2 - 0.1 * bump(), loss=2 - bump())])
    assert (verdict.value, verdict.low, verdict.high, verdict.status) == (0, 0, 0, "holds")


@pytest.mark.parametrize("claim", claims.LMC, ids=lambda c: c.name)
def test_barrier_is_over_the_chord_not_over_an_end(claim: Claim) -> None:
    """A is worse than B: a straight line between them is no barrier, whichever end α = 1 is."""
    alpha = np.array(ALPHAS)[:, None]
    straight = 0.1 + 0.2 * alpha
    verdict = judge(claim, [measurement(error=straight, loss=straight)])
    assert verdict.value == pytest.approx(0)
    # With the ends swapped in the chord, the end itself would stand 0.2 above it.
    raised = straight + 0.02 * bump()
    assert judge(claim, [measurement(error=raised, loss=raised)]).value == pytest.approx(
        2 if claim is claims.LMC_ERROR else 0.02
    )


# ---- vacuous ------------------------------------------------------------------------------------

DEAD = np.where(np.arange(N) < 5, np.nan, 0.001)  # 2.5% of the images
VACUOUS = {
    "A and B are the same network": measurement(distance=0.0),
    "hardly moved apart": measurement(one_minus_cos_ab=at(2, 2.0, 0.049)),
    "a mode has 60% error, and guessing has 90%": measurement(error=errors_of(0.6)),
    "a mode has 46% error": measurement(error=np.linspace(0.46, 0.05, len(ALPHAS))[:, None]),
    "a mode has 47% error": measurement(error=np.linspace(0.05, 0.47, len(ALPHAS))[:, None]),
    "fc2": measurement(one_minus_cos=np.stack([[[0.001] * N], [DEAD], [[0.001] * N]])),
}


@every_claim
@pytest.mark.parametrize("reason", VACUOUS)
def test_judge_vacuous(claim: Claim, reason: str) -> None:
    """Whatever else is there, one vacuous pair is one too many."""
    verdict = judge(claim, [GOOD, VACUOUS[reason], GOOD], [GOOD])
    assert verdict.status == "vacuous"
    assert not verdict.holds
    assert reason in verdict.note
    assert reason in verdict.explain(claim)


@pytest.mark.parametrize(
    "pair",
    [
        measurement(one_minus_cos_ab=at(2, 0.0, 0.051)),
        measurement(error=0.44),
        measurement(error=0.24, classes=2, loss=0.5),
        measurement(one_minus_cos=np.where(np.arange(N) < 2, np.nan, 0.001)),
        measurement(distance=1e-9),
    ],
    ids=["moved", "accurate", "accurate-of-2", "alive", "differ"],
)
def test_judge_not_quite_vacuous(pair: Measurement) -> None:
    assert vacuous([pair]) == ""
    assert judge(claims.LLFC_COSINE, [pair]).holds


def test_vacuous_undefined_features_are_not_moved_apart() -> None:
    assert "hardly moved apart" in vacuous([measurement(one_minus_cos_ab=np.nan)])


def test_vacuous_error_counts_against_guessing() -> None:
    assert "guessing has 50%" in vacuous([measurement(error=0.3, classes=2)])
    assert vacuous([measurement(error=0.3, classes=10)]) == ""


# ---- what a verdict says ------------------------------------------------------------------------


@every_claim
def test_explain_prints_claim_values_layer_and_where_to_look(claim: Claim) -> None:
    verdict = judged(claim, beyond(claim, 1.5))
    text = verdict.explain(claim)
    for part in (claim.name, claim.source, claim.statement, claim.reason, claim.look_at):
        assert part in text
    for name, (value, low, high) in verdict.layers.items():
        line = next(x for x in text.splitlines() if re.match(rf"  (→| ) {re.escape(name)} ", x))
        assert ("→" in line) == (name == verdict.layer)
        numbers = [float(x) for x in re.findall(r"[-+.\de]+", line.split(name, 1)[1])]
        assert numbers == pytest.approx([value, low, high], rel=1e-3)
    assert "look at" not in judged(claim, beyond(claim, 0.5)).explain(claim)


@every_claim
def test_verdict_travels_as_plain_json(claim: Claim) -> None:
    for value in (beyond(claim, 0.5), np.nan):
        record = judged(claim, value).to_dict()
        back = json.loads(json.dumps(record, allow_nan=False))
        assert back == json.loads(json.dumps(record))
        assert back["claim"] == claim.name
        assert_plain(record)


def assert_plain(value: Any) -> None:
    """Exactly the types that pass between pytest-xdist's processes: no numpy scalars."""
    assert type(value) in (dict, list, str, int, float, bool, type(None))
    for inner in (
        value.values() if isinstance(value, dict) else value if type(value) is list else ()
    ):
        assert_plain(inner)


def test_judge_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    pairs = [measurement(one_minus_cos=0.01 * rng.random((3, len(ALPHAS), N))) for _ in range(3)]
    first, again = (judge(claims.LLFC_COSINE, pairs) for _ in range(2))
    assert first == again
    assert first != judge(claims.LLFC_COSINE, pairs, seed=1)


def test_judge_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="no pairs to judge 'lmc-error' on"):
        judge(claims.LMC_ERROR, [])
    with pytest.raises(ValueError, match="no pairs"):
        judge(claims.CO_OCCURRENCE, [GOOD])


# ---- one way of matching against others ---------------------------------------------------------


def matched(objective: float, held_out: float = 1.0, loss: float = 0.0) -> Measurement:
    m = measurement(loss=0.2 + loss * bump())
    return dataclasses.replace(
        m, constants={**m.constants, "objective": np.array([objective, held_out])}
    )


def against(claim: Claim, own: Measurement, **rivals: Measurement) -> Verdict:
    return judge(claim, [own] * 2, rivals={name: [m] * 2 for name, m in rivals.items()})


def test_judge_against_methods_the_nearest_of_them_decides() -> None:
    own, far, near = matched(1.0), matched(3.0), matched(1.2)
    verdict = against(claims.MATCHER_OBJECTIVE, own, weight=far, activation=near, ste=far)
    assert (verdict.status, verdict.layer) == ("holds", "against activation")
    assert verdict.value == pytest.approx(1.2)
    assert list(verdict.layers) == [f"against {k}" for k in ("weight", "activation", "ste")]
    # Of other methods than those named nothing is asked.
    assert verdict == against(
        claims.MATCHER_OBJECTIVE, own, weight=far, activation=near, ste=far, random=matched(0.1)
    )
    worse = against(claims.MATCHER_OBJECTIVE, own, weight=far, activation=far, ste=matched(0.9))
    assert (worse.status, worse.layer) == ("rejected", "against ste")
    assert "against ste" in worse.explain(claims.MATCHER_OBJECTIVE)


def test_objectives_on_training_and_test_images_are_told_apart() -> None:
    own, other = matched(1.0, 1.0), matched(2.0, 1.0)
    rivals = {"weight": other, "activation": other, "ste": other}
    assert against(claims.MATCHER_OBJECTIVE, own, **rivals).holds
    assert not against(claims.MATCHER_OBJECTIVE_HELD_OUT, own, **rivals).holds


@pytest.mark.parametrize(
    ("more", "holds"), [(-0.1, True), (0.0, True), (0.02, True), (0.03, False)]
)
def test_at_least_as_well_within_a_margin(more: float, holds: bool) -> None:
    """0.1 nats by the others, and so much more by commutativity matching."""
    other = matched(1.0, loss=0.1)
    verdict = against(
        claims.MATCHER_LMC_LOSS,
        matched(1.0, loss=0.1 + more),
        weight=other,
        activation=other,
        ste=other,
    )
    assert verdict.value == pytest.approx(-more)
    assert verdict.holds == holds


def test_judge_against_methods_needs_them() -> None:
    with pytest.raises(ValueError, match="needs the pairs of 'ste' matching"):
        against(claims.MATCHER_OBJECTIVE, GOOD, weight=GOOD, activation=GOOD)


# ---- the claims themselves ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim", [*claims.ALL, *claims.MATCHERS, claims.MATCHER_BARRIER], ids=lambda c: c.name
)
def test_claims_are_complete(claim: Claim) -> None:
    for text in (claim.name, claim.source, claim.statement, claim.reason, claim.look_at):
        assert text.strip()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.name), "must serve in a test id and -k"
    assert np.isfinite(claim.bound)


def test_claims_have_unique_names() -> None:
    names = [c.name for c in (*claims.ALL, *claims.MATCHERS, claims.MATCHER_BARRIER)]
    assert len(set(names)) == len(names)
    assert set(claims.LMC + claims.LLFC) <= set(claims.ALL)


# ---- mutations: a trained pair under metrics that are wrong -------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Measurement]]:
    """A spawned, an independent and a shuffled pair, each to be measured at will."""
    data = load_dataset("mnist5k")
    r = replicate(TINY, 0)
    store = Store(tmp_path_factory.mktemp("store"))
    a, b, c = (m.weights for m in ensure([r.a, r.b, r.c], data, store))
    x, y = data.normalise(data.test.images[:400]), data.test.labels[:400]

    def measured(link: str, one: Any, other: Any) -> Callable[[], Measurement]:
        module = build(TINY.recipe.net, data.shape, data.classes)
        return lambda: measure(ModePair(link, module, one, other), [(x, y)])

    return {
        "linked": measured("spawned", a, b),
        "independent": measured("independent", a, c),
        "shuffled": measured("shuffled", a, shuffled_difference(a, b, 0)),
    }


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def verdicts(trained: dict[str, Callable[[], Measurement]]) -> dict[str, str]:
    """Claim → its verdict on the linked pair."""
    linked, independent = trained["linked"](), trained["independent"]()
    return {c.name: judge(c, [linked], [independent]).status for c in claims.LMC + claims.LLFC}


def red(found: dict[str, str]) -> set[str]:
    return {name for name, status in found.items() if status != "holds"}


MEASURE = importlib.import_module("llfc_core.metrics.measure")


def swapped_alpha_in_z(patch: pytest.MonkeyPatch) -> None:
    cos, slope = MEASURE.one_minus_cos, MEASURE.coef
    patch.setattr(MEASURE, "one_minus_cos", lambda e, fa, fb, ff, a: cos(e, fa, fb, ff, 1 - a))
    patch.setattr(MEASURE, "coef", lambda e, fa, fb, a: slope(e, fa, fb, 1 - a))


def swapped_alpha_in_theta(patch: pytest.MonkeyPatch) -> None:
    line = MEASURE.interpolate
    patch.setattr(MEASURE, "interpolate", lambda a, b, alpha: line(a, b, 1 - alpha))


def z_without_its_square(patch: pytest.MonkeyPatch) -> None:
    """1 − ⟨f, z⟩/(‖f‖‖z‖²), a slip of the pen."""
    cos = MEASURE.one_minus_cos
    patch.setattr(
        MEASURE,
        "one_minus_cos",
        lambda e, fa, fb, ff, a: 1 - (1 - cos(e, fa, fb, ff, a)) / e.zz(a).sqrt(),
    )


def flipped_sign(patch: pytest.MonkeyPatch) -> None:
    cos = MEASURE.one_minus_cos
    patch.setattr(MEASURE, "one_minus_cos", lambda *args: 2 - cos(*args))


def coef_of_a_alone(patch: pytest.MonkeyPatch) -> None:
    """⟨f, a⟩ / ‖z‖²: the second term forgotten."""
    patch.setattr(MEASURE, "coef", lambda e, fa, fb, a: a * fa / e.zz(a))


def similarity_for_difference(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MEASURE.Dots, "one_minus_cos_ab", lambda e: e.ab / (e.aa * e.bb).sqrt() - 1)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("mutation", "expected"),
    [
        (swapped_alpha_in_z, "llfc-cosine"),
        (swapped_alpha_in_theta, "llfc-cosine"),
        (z_without_its_square, "llfc-cosine"),
        (flipped_sign, "llfc-cosine"),
        (coef_of_a_alone, "llfc-coef"),
        (similarity_for_difference, "llfc-apart"),
    ],
)
def test_claims_turn_red_under_a_mutated_metric(
    trained: dict[str, Callable[[], Measurement]],
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
    expected: str,
) -> None:
    assert red(verdicts(trained)) == set(TINY.findings) & {c.name for c in claims.LLFC}
    mutation(monkeypatch)
    assert expected in red(verdicts(trained))


@pytest.mark.usefixtures("one_thread")
def test_claims_reject_a_dropped_sign(
    trained: dict[str, Callable[[], Measurement]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """|cos| hides a network whose features point the wrong way along the line.

    Planted: θ_α's output layer with its sign flipped but at the ends. The true metric sees it; with
    |cos| the claim would hold, so it is the claim's verdict that tells the metrics apart.
    """
    line = MEASURE.interpolate

    def flip(a: Any, b: Any, alpha: float) -> Any:
        at = line(a, b, alpha)
        ends = alpha in (0, 1)
        return {k: v if ends or not k.startswith("fc4") else -v for k, v in at.items()}

    monkeypatch.setattr(MEASURE, "interpolate", flip)
    cosine = judge(claims.LLFC_COSINE, [trained["linked"]()])
    assert (cosine.status, cosine.layer) == ("rejected", "fc4")
    assert cosine.value > 1.9
    cos = MEASURE.one_minus_cos
    monkeypatch.setattr(MEASURE, "one_minus_cos", lambda *args: 1 - (1 - cos(*args)).abs())
    assert judge(claims.LLFC_COSINE, [trained["linked"]()]).holds


@pytest.mark.usefixtures("one_thread")
def test_claims_reject_the_controls(trained: dict[str, Callable[[], Measurement]]) -> None:
    """Independent: rejected for their numbers, not as vacuous. Shuffled: vacuous."""
    independent, shuffled = trained["independent"](), trained["shuffled"]()
    for claim in claims.LMC + claims.LLFC:
        if claim not in (claims.NOT_ALIGNED, claims.NOT_ALIGNED_OUTPUT):
            assert judge(claim, [independent], [independent]).status == "rejected", claim.name
        assert judge(claim, [shuffled], [independent]).status == "vacuous", claim.name
    # A bare bound would have let the shuffled pair pass.
    assert judge(claims.LLFC_COSINE, [shuffled]).high <= claims.LLFC_COSINE.bound


def test_claims_reject_modes_on_disjoint_units() -> None:
    """f⁽ℓ⁾(θ_½) = 2^(1−ℓ)·z: cos_½ is 1, coef is not, which is what llfc-coef is for."""
    alpha = np.array(ALPHAS)
    curves = []
    for layer in (1, 2, 3):
        a, b = alpha**layer, (1 - alpha) ** layer  # f = a f_A + b f_B with f_A ⊥ f_B of length 1
        dot, zz = a * alpha + b * (1 - alpha), alpha**2 + (1 - alpha) ** 2
        curves.append((1 - dot / np.sqrt((a**2 + b**2) * zz), dot / zz))
    cosine, coef = (np.array(c)[..., None] for c in zip(*curves, strict=True))
    pair = measurement(one_minus_cos=cosine, coef=coef, one_minus_cos_ab=1.0)
    assert pair.values["one_minus_cos"][:, HALF].max() < 1e-12
    verdict = judge(claims.LLFC_COEF, [pair])
    assert (verdict.status, verdict.layer) == ("rejected", "fc3")
    # ¼, ½, ¾: the largest of |1 − coef| in the third layer, ¾ at ½.
    assert verdict.value == pytest.approx(0.75)
    assert judge(claims.LLFC_COSINE, [pair]).status == "rejected"  # for α = ¼


def test_claims_need_no_pytest() -> None:
    """Nothing in `llfc_core` imports pytest or the suite."""
    code = (
        "import sys, llfc_core.claims; "
        "print([m for m in ('pytest', 'fixtures', '_pytest') if m in sys.modules])"
    )
    root = Path(claims.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- what was refused or passed for the wrong reason once -------------------------------------


def test_claims_of_training_ask_only_a_to_be_accurate_and_not_that_it_moved():
    """B is a network after an epoch: it may be bad, and near A."""
    still = measurement(one_minus_cos_ab=0.001)
    assert claims.vacuous([still])
    assert not claims.vacuous([still], "training")
    untrained_a = measurement(error=1.0)
    assert "guessing" in claims.vacuous([untrained_a], "training")


def test_independent_pairs_that_show_nothing_make_a_comparison_vacuous():
    good, same = measurement(), measurement(distance=0.0)
    verdict = claims.judge(claims.CO_OCCURRENCE, [good], [same])
    assert verdict.status == "vacuous"
    assert "same network" in verdict.note


@pytest.mark.parametrize(
    ("low", "high", "at_most", "within"),
    [
        (0.0, 1.0, True, True),
        (0.0, 1.1, True, False),
        (1.0, 2.0, False, True),
        (0.9, 2.0, False, False),
    ],
)
def test_within_looks_at_the_unfavourable_end(low, high, at_most, within):
    verdict = claims.judge(claims.LLFC_COSINE, [measurement()])
    changed = dataclasses.replace(verdict, low=low, high=high, bound=1.0, at_most=at_most)
    assert changed.within is within


def test_layers_inside_a_residual_block_are_not_judged_by_stitching() -> None:
    """The input goes round them: there B on A's features is no network."""
    stitched = np.full((3, 2, 200), 0.0)
    stitched[0] = np.nan  # a layer that does not cut the network
    stitched[1, :, :30] = 1.0  # 15% against 5%
    stitched[2] = np.nan  # the output
    verdict = judge(claims.STITCHING, [measurement(stitched_error=stitched)])
    assert list(verdict.layers) == ["fc2"]
    assert verdict.value == pytest.approx(10.0)
    assert verdict.status == "rejected"


def test_features_too_wide_for_a_gram_matrix_are_not_judged_by_rank() -> None:
    m = measurement()
    m.constants["feature_rank"][0] = np.nan
    verdict = judge(claims.LOW_RANK_FEATURES, [m])
    assert list(verdict.layers) == ["fc2"]
    assert verdict.holds
    m.constants["feature_rank"][1] = np.nan
    with pytest.raises(ValueError, match="no ranked layers"):
        judge(claims.LOW_RANK_FEATURES, [m])


def test_re_estimated_pairs_are_measured_at_the_output_alone() -> None:
    """Whether features moved apart is judged on the linked ones; the rest of vacuity stays."""
    values = {"one_minus_cos_ab": 0.001, "dist_sigma": np.nan, "stitched_error": np.nan}
    pair = measurement(layers=("fc3",), **values)
    assert judge(claims.LMC_REESTIMATED[0], [pair]).holds
    hill = measurement(layers=("fc3",), error=0.05 + 0.3 * bump(), **values)
    assert judge(claims.LMC_REESTIMATED[0], [hill]).status == "rejected"
    same = measurement(layers=("fc3",), distance=0.0, **values)
    assert judge(claims.LMC_REESTIMATED[0], [same]).status == "vacuous"
    bad = measurement(layers=("fc3",), error=0.8, **values)
    assert judge(claims.LMC_REESTIMATED[0], [bad]).status == "vacuous"
