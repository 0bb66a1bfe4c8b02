"""The paper's claims as predicates over measurements.

A `Claim` names its source, the number it speaks of, and a bound fixed beforehand, on other seeds,
with the reason for it. `judge` compares the unfavourable end of a bootstrap interval with that
bound: a claim that something is near zero must keep its *upper* end below. Pairs on which a claim
would hold for want of anything to test are refused as vacuous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from llfc_core.metrics.bootstrap import Estimate, Means, Statistic, compare, estimate
from llfc_core.metrics.commutativity import Distances, distances
from llfc_core.metrics.measurement import Measurement

Status = Literal["holds", "rejected", "vacuous", "no premise", "not run"]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that measurements can contradict.

    Attributes
    ----------
    name
        As in test names and tables.
    statistic
        The number judged, per layer; a network-wide number has one entry.
    bound, at_most
        The number must stay at or below the bound, or at or above it.
    reason
        Why the bound is where it is. Chosen on trial pairs, of other seeds than those judged.
    judged
        What the statistic's last axis runs over: "layers", of which all, the "hidden" ones or the
        "output" are judged, or of the hidden ones those that end in a "ReLU", "cut" the network in
        two or are narrow enough to be "ranked"; the "linear" maps, of which the first is left out
        as its input is the data (Appendix B.3); the "weights" of all maps but the last; or one
        number for the "network".
    pairs
        Which pairs of a setting it speaks of: the linked ones, those with BatchNorm's statistics
        estimated anew between A and B, or a mode and itself earlier in its training.
    against_independent
        The number is the ratio of the statistic on independent pairs to that on linked ones.
    against, by
        The number is the ratio of the statistic on the same modes matched by another method to that
        on the linked pairs, or their difference: one for each method named.
    look_at
        What to look at first when it is rejected.
    premise
        Claims that must hold on the pairs for this one to mean anything.
    """

    name: str
    source: str
    statement: str
    statistic: Statistic
    bound: float
    at_most: bool
    unit: str
    reason: str
    look_at: str
    judged: Literal[
        "layers", "hidden", "ReLU", "cut", "ranked", "output", "linear", "weights", "network"
    ] = "layers"
    pairs: Literal["linked", "re-estimated", "training"] = "linked"
    against_independent: bool = False
    against: tuple[str, ...] = ()
    by: Literal["ratio", "difference"] = "ratio"
    premise: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of a claim on some pairs. Plain numbers only: it travels as JSON.

    ``value``, ``low``, ``high`` are those of the worst layer, the one that decides; ``layers``
    has them all.
    """

    claim: str
    source: str
    link: str
    status: Status
    value: float
    low: float
    high: float
    bound: float
    at_most: bool
    unit: str
    layer: str
    layers: dict[str, tuple[float, float, float]]
    pairs: int
    note: str

    @property
    def holds(self) -> bool:
        return self.status == "holds"

    @property
    def within(self) -> bool:
        """Whether the unfavourable end of the interval keeps to the bound, vacuous or not."""
        return self.high <= self.bound if self.at_most else self.low >= self.bound

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become None."""
        return _plain(asdict(self))

    def explain(self, claim: Claim) -> str:
        """The verdict in full: what was claimed, every layer's number, and where to look."""
        sign = "≤" if self.at_most else "≥"
        lines = [
            f"{self.claim} ({self.source}), {self.pairs} {self.link} pair(s): {self.status}",
            f"  claim: {claim.statement}",
            f"  bound: {sign} {self.bound:.3g} {self.unit}".rstrip() + f". {claim.reason}",
        ]
        if self.note:
            lines.append(f"  note: {self.note}")
        for name, (value, low, high) in self.layers.items():
            mark = "→" if name == self.layer else " "
            lines.append(f"  {mark} {name:<16} {value:10.4g}   [{low:.4g}, {high:.4g}]")
        if self.status == "rejected":
            lines.append(f"  look at: {claim.look_at}")
        return "\n".join(lines)


# ---- statistics: Means of one pair, leading axis of resamples → (…, L) --------------------------


def barrier(means: Means, alphas: tuple[float, ...], of: str) -> np.ndarray:
    """max_α of the curve's height over the chord between its ends: ``(…, 1)``; 0 at least."""
    curve = means[of]
    a, b = curve[..., -1:], curve[..., :1]  # α = 1 is A
    alpha = np.asarray(alphas)
    return (curve - (alpha * a + (1 - alpha) * b)).max(axis=-1, keepdims=True)


def error_barrier(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Error barrier in percentage points."""
    return 100 * barrier(means, alphas, "error")


def loss_barrier(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Loss barrier in nats (Frankle et al. 2020)."""
    return barrier(means, alphas, "loss")


def loss_barrier_share(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Loss barrier over what A and B gain on guessing: ``(…, 1)``, of any loss; NaN for no gain."""
    gain = means["guessing"] - (means["loss"][..., :1] + means["loss"][..., -1:]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gain > 0, loss_barrier(means, alphas) / gain, np.nan)


def worst_cosine(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """max over α of E[1 − cosine_α], per layer."""
    return means["one_minus_cos"].max(axis=-1)


def cosine_at_half(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """E[1 − cosine_½], per layer (Fig. 4)."""
    return means["one_minus_cos"][..., alphas.index(0.5)]


def cosine_ab(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """E[1 − cosine_{A,B}], per layer (Fig. 2)."""
    return means["one_minus_cos_ab"]


def cosine_contrast(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """max over α of E[1 − cosine_α] / E[1 − cosine_{A,B}], per layer."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return worst_cosine(means, alphas) / means["one_minus_cos_ab"]


def worst_coef(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """max over α ∈ {¼, ½, ¾} of |1 − E[coef_α]|, per layer (Fig. 8)."""
    picked = means["coef"][..., [alphas.index(x) for x in (0.25, 0.5, 0.75)]]
    return np.abs(1 - picked).max(axis=-1)


def weak_additivity(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """E[Dist_σ], per layer (Fig. 5)."""
    return means["dist_sigma"]


def commutativity(means: Means) -> Distances:
    """Dist_com, Dist_W, Dist_H and ρ over the data set, ``(…, M)`` each (Fig. 7)."""
    return distances(torch.from_numpy(means["commutativity"]), torch.from_numpy(means["weights"]))


def dist_com(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Dist_com, per linear map."""
    return commutativity(means).dist_com.numpy()


def dist_w(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Dist_W, per linear map."""
    return commutativity(means).dist_w.numpy()


def dist_h(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Dist_H of its input, per linear map."""
    return commutativity(means).dist_h.numpy()


def dist_com_share(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Dist_com / min(Dist_W, Dist_H), per linear map."""
    d = commutativity(means)
    return (d.dist_com / torch.minimum(d.dist_w, d.dist_h)).numpy()


def rho(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """ρ = 4 Dist_com / (Dist_W Dist_H), per linear map."""
    return commutativity(means).rho.numpy()


def stitching_penalty(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """The worse of Err(B_{>ℓ} ∘ A_{≤ℓ}) and Err(A_{>ℓ} ∘ B_{≤ℓ}), less the larger of A's and B's
    errors: percentage points per layer (Table 1)."""
    ends = np.maximum(means["error"][..., :1], means["error"][..., -1:])
    return 100 * (means["stitched_error"].max(axis=-1) - ends)


def stable_rank_ratio(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """srnk(W_A) / srnk(W_B), per linear map; B is A earlier in its training (Fig. 22)."""
    return means["stable_rank"][..., 0] / means["stable_rank"][..., 1]


def weight_rank(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Share of singular values that hold 95% of ‖W_A‖²_F, per linear map (Fig. 20)."""
    return means["weight_rank"][..., 0]


def feature_rank(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Share of singular values that hold 95% of ‖H_A‖²_F, per layer (Fig. 21)."""
    return means["feature_rank"]


def objective(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Σ_ℓ ‖R_ℓ‖²/ν_ℓ (eq. 9) on the training images: ``(…, 1)``."""
    return means["objective"][..., :1]


def objective_held_out(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """Σ_ℓ ‖R_ℓ‖²/ν_ℓ (eq. 9) on the test images: ``(…, 1)``."""
    return means["objective"][..., 1:]


def farthest_from_llfc(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """max over layers and α of E[1 − cosine_α]: ``(…, 1)``."""
    return worst_cosine(means, alphas).max(axis=-1, keepdims=True)


def lemma1_ratio(means: Means, alphas: tuple[float, ...]) -> np.ndarray:
    """max_α Err(θ_α) / 2ε with ε the larger of A's and B's errors: ``(…, 1)`` (Lemma 1).

    ½ where there is no error at all, as for any flat one.
    """
    ends = np.maximum(means["error"][..., :1], means["error"][..., -1:])
    worst = means["error"].max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(worst == 0, 0.5, worst / (2 * ends))


# ---- the claims ---------------------------------------------------------------------------------

LMC_ERROR = Claim(
    name="lmc-error",
    source="Def. 1",
    statement="the test error along the line between A and B is nearly constant",
    statistic=error_barrier,
    judged="network",
    bound=1.5,
    at_most=True,
    unit="pp",
    reason=(
        "On 1,000 test images an error of 5% has a standard error of 0.7 points, so 1.5 points "
        "cannot be told from none; trial pairs trained apart had 3 or more."
    ),
    look_at="the learning rate and the spawning point: later spawning lowers the barrier",
)

LMC_LOSS = Claim(
    name="lmc-loss",
    source="Def. 1; Frankle et al. 2020",
    statement="the test loss along the line between A and B is nearly constant",
    statistic=loss_barrier,
    judged="network",
    bound=0.05,
    at_most=True,
    unit="nats",
    reason=(
        "Trial pairs trained apart had 0.34 nats or more, even where the error barrier is low; "
        "spawned ones 0.01 or less."
    ),
    look_at="the learning rate and the spawning point: later spawning lowers the barrier",
)

LMC_REESTIMATED = tuple(
    replace(
        claim,
        name=f"{claim.name}-re-estimated",
        source=f"{claim.source}; Jordan et al. 2023",
        statement=f"{claim.statement}, BatchNorm's statistics being estimated anew in between",
        pairs="re-estimated",
    )
    for claim in (LMC_ERROR, LMC_LOSS)
)

LMC = (LMC_ERROR, LMC_LOSS)

LLFC_COSINE = Claim(
    name="llfc-cosine",
    source="Def. 2, Fig. 2, 8",
    statement="E[1 − cosine_α] is close to 0 in every layer for every α",
    statistic=worst_cosine,
    bound=0.04,
    at_most=True,
    unit="",
    reason=(
        "Spawned trial pairs on digits and on Fashion-MNIST, at two learning rates, stayed at or "
        "below 0.025."
    ),
    look_at="the layer marked, its coef_α, and whether the pair is linearly connected at all",
    premise=LMC,
)

LLFC_CONTRAST = Claim(
    name="llfc-contrast",
    source="Fig. 2, 8",
    statement="E[1 − cosine_α] is small against E[1 − cosine_{A,B}] in every layer",
    statistic=cosine_contrast,
    bound=0.5,
    at_most=True,
    unit="",
    reason=(
        "A network that kept A's features along the whole line would have 1. Trial pairs had up "
        "to 0.4, at the logits, where A and B are nearly aligned; pairs trained apart had 2.9 "
        "there at least."
    ),
    look_at="the layer marked; E[1 − cosine_{A,B}] near 0 there means there is nothing to compare",
    premise=LMC,
)

NOT_ALIGNED = Claim(
    name="llfc-apart",
    source="Fig. 2",
    statement="E[1 − cosine_{A,B}] is not close to 0 in the hidden layers",
    statistic=cosine_ab,
    bound=0.05,
    at_most=False,
    unit="",
    reason=(
        "Shuffled steps of the same size moved the features of trial modes by 0.021 or less, and "
        "spawned pairs by 0.087 or more at this learning rate; at a quarter of it by 0.023 only."
    ),
    look_at="the learning rate and the number of steps: the pair has hardly moved apart",
    judged="hidden",
    premise=LMC,
)

NOT_ALIGNED_OUTPUT = replace(
    NOT_ALIGNED,
    name="llfc-apart-output",
    statement="E[1 − cosine_{A,B}] is not close to 0 at the output",
    look_at="nothing: two accurate classifiers give logits of nearly one direction",
    judged="output",
)

LLFC_COEF = Claim(
    name="llfc-coef",
    source="App. B.2, Fig. 8",
    statement="E[coef_α] is close to 1 in every layer for α ∈ {¼, ½, ¾}",
    statistic=worst_coef,
    bound=0.25,
    at_most=True,
    unit="",
    reason=(
        "Halfway to ½, which is what f⁽ℓ⁾(θ_½) = 2^(1−ℓ)·(its interpolation) gives from the "
        "second layer on, the other known way to LMC (arXiv 2510.08023)."
    ),
    look_at="whether coef_½ falls as 2^(1−ℓ) with depth",
    premise=LMC,
)

CO_OCCURRENCE = Claim(
    name="llfc-co-occurrence",
    source="Fig. 4",
    statement="E[1 − cosine_½] of linked pairs is negligible against that of independent pairs",
    statistic=cosine_at_half,
    bound=3.0,
    at_most=False,
    unit="×",
    reason="Trial pairs: 5 or more in every layer; the first layer, nearest to the data, is least.",
    look_at="the first layer: it differs least between linked and independent pairs",
    against_independent=True,
    premise=LMC,
)

WEAK_ADDITIVITY = Claim(
    name="additivity",
    source="Def. 3, Fig. 5",
    statement="E[Dist_σ] is negligible in every hidden layer",
    statistic=weak_additivity,
    bound=0.06,
    at_most=True,
    unit="",
    reason=(
        "Trial pairs of two data sets had 0.042 or less in every layer; pairs trained apart had "
        "0.13 or more in their first."
    ),
    look_at="the layer marked: the share of units whose pre-activations differ in sign",
    judged="ReLU",
    premise=LMC,
)

WEAK_ADDITIVITY_CO_OCCURRENCE = replace(
    WEAK_ADDITIVITY,
    name="additivity-co-occurrence",
    source="Fig. 5",
    statement="E[Dist_σ] of linked pairs is much smaller than that of independent pairs",
    bound=3.0,
    at_most=False,
    unit="×",
    reason="Trial pairs: 5 or more in every layer, least in the last hidden one.",
    against_independent=True,
)

COMMUTATIVITY = Claim(
    name="commutativity",
    source="Def. 4, Fig. 7, 16-18",
    statement="Dist_com is negligible compared with Dist_W and Dist_H, the smaller of them",
    statistic=dist_com_share,
    bound=1 / 3,
    at_most=True,
    unit="",
    reason=(
        "Between the 0.17 that trial pairs reached at most and the 0.67 that pairs trained apart "
        "had at least, midway in ratio."
    ),
    look_at="ρ, which says how much of it is owed to small differences alone",
    judged="linear",
    premise=LMC,
)

COMMUTATIVITY_CO_OCCURRENCE = Claim(
    name="commutativity-co-occurrence",
    source="Fig. 19",
    statement="Dist_com of linked pairs is negligible compared with that of independent pairs",
    statistic=dist_com,
    bound=8.0,
    at_most=False,
    unit="×",
    reason="Trial pairs: 30 or more in every layer.",
    look_at="Dist_W and Dist_H of both: Dist_com of unrelated modes is about Dist_H",
    judged="linear",
    against_independent=True,
    premise=LMC,
)

COMMUTATIVITY_RHO = Claim(
    name="commutativity-rho",
    source="Def. 4, Fig. 7; not in the paper",
    statement=(
        "ρ = 4 Dist_com / (Dist_W Dist_H) is below the 1 of small differences without structure: "
        "the modes commute better than for being close"
    ),
    statistic=rho,
    bound=1.0,
    at_most=True,
    unit="",
    reason="1 is the value for ΔW and ΔH unrelated to W, H and each other; unrelated modes have 2.",
    look_at="the alignment of ΔW's rows with ΔH: above 1 they have grown towards each other",
    judged="linear",
    premise=LMC,
)

MATCHING_W = Claim(
    name="matching-dist-w",
    source="Eq. 9",
    statement="matching lowers Dist_W, the first factor of commutativity, in every linear map",
    statistic=dist_w,
    bound=1.06,
    at_most=False,
    unit="×",
    reason=(
        "Midway between random permutations, 1.02 at most on trial pairs, and activation matching, "
        "which does not look at weights, with 1.11 at least; weight matching had 1.2."
    ),
    look_at="the objective of the match by step",
    judged="linear",
    against_independent=True,
)

MATCHING_H = replace(
    MATCHING_W,
    name="matching-dist-h",
    statement="matching lowers Dist_H, the second factor of commutativity, in every linear map",
    statistic=dist_h,
    bound=1.5,
    reason=(
        "Midway between random permutations, 1.03 at most on trial pairs, and weight matching, "
        "which does not look at features, with 1.9 at least; activation matching had 3.1."
    ),
)

_METHODS = ("weight", "activation", "ste")
MATCHER_OBJECTIVE = Claim(
    name="matcher-objective",
    source="Section 6; Eq. 9",
    statement=(
        "commutativity matching leaves a lower Σ‖R‖²/ν than any other method, on the data it saw"
    ),
    statistic=objective,
    bound=1.1,
    at_most=False,
    unit="×",
    reason=(
        "Trial pairs: 1.2 times against the nearest method, activation matching, on the ResNet-20, "
        "1.3 to 1.4 on the MLPs; the unfavourable end was 1.17 at least."
    ),
    look_at="the objective of each start (`Match.restarts`)",
    judged="network",
    against=_METHODS,
)

MATCHER_OBJECTIVE_HELD_OUT = replace(
    MATCHER_OBJECTIVE,
    name="matcher-objective-held-out",
    statement=(
        "commutativity matching leaves a lower Σ‖R‖²/ν than any other method, on data not seen"
    ),
    statistic=objective_held_out,
    look_at="the number of images that Gram matrices are taken over",
)

MATCHER_LLFC = Claim(
    name="matcher-llfc",
    source="Section 6; Def. 2",
    statement=(
        "LLFC holds at least as well as by any other method: the others' largest E[1 − cosine_α] "
        "minus that by commutativity matching"
    ),
    statistic=farthest_from_llfc,
    bound=-0.01,
    at_most=False,
    unit="",
    reason="A quarter of what LLFC is held to (llfc-cosine).",
    look_at="the layer where 1 − cosine_α is largest, by method",
    judged="network",
    against=_METHODS,
    by="difference",
)

MATCHER_LMC_LOSS = replace(
    MATCHER_LLFC,
    name="matcher-lmc-loss",
    source="Section 6; Def. 1",
    statement=(
        "LMC holds at least as well as by any other method: the others' loss barrier minus that by "
        "commutativity matching"
    ),
    statistic=loss_barrier,
    bound=-0.025,
    unit="nats",
    reason="Half of what LMC is held to (lmc-loss).",
    look_at="the pairs whose barrier is higher",
)

MATCHER_LMC_ERROR = replace(
    MATCHER_LMC_LOSS,
    name="matcher-lmc-error",
    statement=(
        "LMC holds at least as well as by any other method: the others' error barrier minus that "
        "by commutativity matching"
    ),
    statistic=error_barrier,
    bound=-1.5,
    unit="pp",
    reason="What LMC is held to: on 1,000 images it cannot be told from none (lmc-error).",
)

MATCHER_BARRIER = replace(
    MATCHER_LMC_ERROR,
    name="matcher-barrier",
    statement=(
        "where the network is narrow or deep, commutativity matching lowers the error barrier that "
        "weight and activation matching, which look at one factor each, leave: by so much"
    ),
    bound=0.0,
    reason=(
        "Any gain that is the same pair by pair. Trial pairs: 0.6 points of 1.4 in six layers of "
        "128, 1.3 of 3.4 and 5.7 of 15 at widths 64 and 32, at least."
    ),
    look_at="the objective: where it is hardly lower than activation matching's, nothing can fall",
    against=("weight", "activation"),
)

STITCHING = Claim(
    name="stitching",
    source="App. B.4, Table 1",
    statement="B on top of A's features, at any layer, errs hardly more than A or B",
    statistic=stitching_penalty,
    bound=3.0,
    at_most=True,
    unit="pp",
    reason="Trial pairs: 1.7 points or less; pairs trained apart, 65 points or more.",
    look_at="the layer marked; early layers are stitched with the largest penalty",
    judged="cut",
    premise=LMC,
)

LEMMA1 = Claim(
    name="lemma1",
    source="Lemma 1",
    statement="Err(θ_α) ≤ 2ε for every α, ε the larger of A's and B's errors: their ratio",
    statistic=lemma1_ratio,
    bound=1.0,
    at_most=True,
    unit="",
    reason="The lemma's own bound. ½ is a flat error.",
    look_at="llfc-cosine at the output: the lemma speaks of pairs whose logits interpolate",
    judged="network",
    premise=LMC,
)

STABLE_RANK = Claim(
    name="low-rank-stable-rank",
    source="App. B.5, Fig. 22",
    statement="the stable rank of every weight matrix is smaller at the end than after an epoch",
    statistic=stable_rank_ratio,
    bound=0.8,
    at_most=True,
    unit="×",
    reason="Trial modes: 0.63 or less in every layer but the last, which has ten rows.",
    look_at="the number of steps after the first epoch",
    judged="weights",
    pairs="training",
)

LOW_RANK_WEIGHTS = Claim(
    name="low-rank-weights",
    source="App. B.5, Fig. 20",
    statement="weights are approximately low-rank: few singular values hold 95% of ‖W‖²",
    statistic=weight_rank,
    bound=0.5,
    at_most=True,
    unit="",
    reason="Gaussian matrices of these shapes, the networks at initialisation, have 0.61 to 0.72.",
    look_at="low-rank-stable-rank: the bulk of the initial weights outweighs what was learned",
    judged="weights",
    pairs="training",
)

LOW_RANK_FEATURES = Claim(
    name="low-rank-features",
    source="App. B.5, Fig. 21",
    statement="features are approximately low-rank: few singular values hold 95% of ‖H‖²",
    statistic=feature_rank,
    bound=0.2,
    at_most=True,
    unit="",
    reason="Trial modes: 0.14 or less; networks at initialisation have 0.27 or more at first.",
    look_at="the layer marked; the first one is nearest to the data",
    judged="ranked",
    pairs="training",
)

LLFC = (
    LLFC_COSINE,
    LLFC_CONTRAST,
    NOT_ALIGNED,
    NOT_ALIGNED_OUTPUT,
    LLFC_COEF,
    CO_OCCURRENCE,
)
ADDITIVITY = (WEAK_ADDITIVITY, WEAK_ADDITIVITY_CO_OCCURRENCE)
COMMUTATION = (COMMUTATIVITY, COMMUTATIVITY_CO_OCCURRENCE, COMMUTATIVITY_RHO)
LOW_RANK = (STABLE_RANK, LOW_RANK_WEIGHTS, LOW_RANK_FEATURES)
# Of matched pairs alone, against the same modes unmatched; Dist_com's ratio is co-occurrence.
MATCHING = (MATCHING_W, MATCHING_H, COMMUTATIVITY_CO_OCCURRENCE)
# Of the settings on which matching methods are compared.
MATCHERS = (
    MATCHER_OBJECTIVE,
    MATCHER_OBJECTIVE_HELD_OUT,
    MATCHER_LLFC,
    MATCHER_LMC_LOSS,
    MATCHER_LMC_ERROR,
)
ALL = (*LMC, *LLFC, *ADDITIVITY, *COMMUTATION, STITCHING, LEMMA1, *LOW_RANK)

_OF_LINKED = tuple(c for c in ALL if c.pairs == "linked")
# By control, the claims that must be rejected on it. Pairs trained apart differ even more than
# linked ones: they are no control for "A and B differ".
CONTROLS: dict[str, tuple[Claim, ...]] = {
    "independent": tuple(c for c in _OF_LINKED if c not in (NOT_ALIGNED, NOT_ALIGNED_OUTPUT)),
    "independent re-estimated": LMC_REESTIMATED,
    "shuffled": _OF_LINKED,
    "random": MATCHING,
    "untrained": LOW_RANK,
}

# In place of LMC_LOSS where the loss is not cross-entropy, and its unit says nothing.
LMC_OWN_LOSS = replace(
    LMC_LOSS,
    statement="the test loss along the line between A and B is nearly constant, as a share of what "
    "they gain on guessing",
    statistic=loss_barrier_share,
    bound=0.02,
    unit="of the gain",
    reason=(
        "The bound of cross-entropy, 0.05 nats, is 2% of the 2.3 nats that guessing one of ten "
        "classes has."
    ),
)

# Below this mean over hidden layers of E[1 − cosine_{A,B}] a pair has hardly moved apart: three
# times what shuffled steps do, a third of what trial pairs did.
MOVED_APART = 0.05
# A mode must do away with this share of the error of guessing.
ACCURATE = 0.5
# Share of images whose cosine a zero norm may leave undefined in a layer.
DEAD = 0.01


def judge(
    claim: Claim,
    pairs: Sequence[Measurement],
    independent: Sequence[Measurement] = (),
    seed: int = 0,
    rivals: Mapping[str, Sequence[Measurement]] | None = None,
) -> Verdict:
    """Judge a claim on pairs of one link.

    Parameters
    ----------
    independent
        Pairs trained apart; needed by a claim that is ``against_independent``.
    rivals
        By method, the same modes matched otherwise; needed by a claim that is ``against`` some.
    """
    if not pairs:
        raise ValueError(f"no pairs to judge {claim.name!r} on")
    if claim.against:
        e = _against(claim, pairs, rivals or {}, seed)
        names = tuple(f"against {rival}" for rival in claim.against)
        judged = list(range(len(names)))
    else:
        against = independent if claim.against_independent else None
        e = estimate(pairs, claim.statistic, against, seed=seed)
        names, judged = _judged(claim, pairs[0])
    # The layer whose unfavourable end is worst decides; what is undefined is worse than anything.
    unfavourable = e.high if claim.at_most else -e.low
    undefined = np.isnan(e.value) | np.isnan(unfavourable)
    worst = max(judged, key=lambda i: math.inf if undefined[i] else unfavourable[i])
    note = vacuous(pairs, claim.pairs)
    if not note and claim.against_independent:
        note = vacuous(independent)
    verdict = Verdict(
        claim=claim.name,
        source=claim.source,
        link=pairs[0].link,
        status="vacuous" if note else "rejected",
        value=float(e.value[worst]),
        low=float(e.low[worst]),
        high=float(e.high[worst]),
        bound=claim.bound,
        at_most=claim.at_most,
        unit=claim.unit,
        layer=names[worst],
        layers={
            name: (float(e.value[i]), float(e.low[i]), float(e.high[i]))
            for i, name in enumerate(names)
            if i in judged
        },
        pairs=len(pairs),
        note=note,
    )
    return replace(verdict, status="holds") if verdict.within and not note else verdict


def _against(
    claim: Claim,
    pairs: Sequence[Measurement],
    rivals: Mapping[str, Sequence[Measurement]],
    seed: int,
) -> Estimate:
    """The claim's number against each other method: ``(methods,)``."""
    if missing := [name for name in claim.against if name not in rivals]:
        raise ValueError(f"{claim.name!r} needs the pairs of {missing[0]!r} matching")
    found = [
        compare(pairs, rivals[name], claim.statistic, claim.by, seed=seed) for name in claim.against
    ]
    return Estimate(
        *(
            np.array([v[0] for v in ends])
            for ends in zip(*((e.value, e.low, e.high) for e in found))
        )
    )


class Row(Protocol):
    """What is known beforehand of the networks that claims are judged on.

    ``findings``: claims known not to hold there, with the explanation; "<claim> on <control>" for a
    control that cannot reject it. ``claim``: a claim with the bound that it has there.
    """

    @property
    def findings(self) -> Mapping[str, str]: ...

    def claim(self, claim: Claim) -> Claim: ...


@dataclass(frozen=True)
class Judged:
    """A claim as a row has it, its verdict, and what was known of it beforehand.

    ``failing``: the premise that does not hold, as the row has it, and its verdict.
    """

    claim: Claim
    verdict: Verdict
    finding: str = ""
    failing: tuple[Claim, Verdict] | None = None


def judge_row(
    row: Row, pairs: Mapping[str, Sequence[Measurement]], claim: Claim, control: str = ""
) -> Judged:
    """Judge a claim on a row's pairs, by name, or on the pairs that are its ``control``.

    Without a verdict ("not run") where something is `lacking`; and ("no premise") where a claim
    does not hold that this one presupposes. Premises that cannot be judged do not count.
    """
    claim = row.claim(claim)
    on = {**pairs, claim.pairs: pairs[control]} if control else pairs
    if missing := lacking(claim, on):
        return Judged(claim, _not_run(claim, missing))
    if control:
        verdict = judge(claim, pairs[control], pairs.get("independent", ()), rivals=pairs)
        return Judged(claim, verdict, row.findings.get(f"{claim.name} on {control}", ""))
    verdict = judge(claim, pairs[claim.pairs], pairs.get("independent", ()), rivals=pairs)
    for required in map(row.claim, claim.premise):
        if not lacking(required, pairs):
            first = judge(required, pairs["linked"], pairs.get("independent", ()))
            if not first.holds:
                verdict = replace(verdict, status="no premise")
                known = row.findings.get(required.name, "")
                return Judged(claim, verdict, known, (required, first))
    return Judged(claim, verdict, row.findings.get(claim.name, ""))


def _not_run(claim: Claim, why: str) -> Verdict:
    return Verdict(
        claim=claim.name,
        source=claim.source,
        link="",
        status="not run",
        value=math.nan,
        low=math.nan,
        high=math.nan,
        bound=claim.bound,
        at_most=claim.at_most,
        unit=claim.unit,
        layer="",
        layers={},
        pairs=0,
        note=why,
    )


def _judged(claim: Claim, measurement: Measurement) -> tuple[tuple[str, ...], list[int]]:
    """Names along the statistic's last axis, and the indices of those that are judged."""
    if claim.judged == "network":
        return ("network",), [0]
    maps = claim.judged in ("linear", "weights")
    names = measurement.linear if maps else measurement.layers
    indices = list(range(len(names)))
    if claim.judged in ("hidden", "ReLU", "cut", "ranked", "weights"):
        indices = indices[:-1]
    # What the network's shape leaves undefined is no failing of the pair.
    if claim.judged == "cut":
        indices = [
            i for i in indices if not np.isnan(measurement.values["stitched_error"][i]).all()
        ]
    elif claim.judged == "ReLU":
        indices = [i for i in indices if names[i] in measurement.relus]
    elif claim.judged == "ranked":
        indices = [i for i in indices if not np.isnan(measurement.constants["feature_rank"][i])]
    if claim.judged == "output":
        indices = indices[-1:]
    elif claim.judged == "linear":
        indices = indices[1:]
    if claim.statistic in _OF_FEATURES:  # of single numbers: signs, and ratios of what may be 0
        indices = [i for i in indices if measurement.dims[i] > 1]
    if not indices:
        raise ValueError(f"the network has no {claim.judged} layers to judge {claim.name!r} on")
    return names, indices


def lacking(claim: Claim, pairs: Mapping[str, Sequence[Measurement]]) -> str:
    """What is missing for a claim to be judged on ``pairs``, in a few words; empty if nothing is.

    ``pairs``: measurements by the names that `Claim.pairs` has, and "independent".
    """
    if not pairs.get(claim.pairs):
        return _MISSING[claim.pairs]
    if claim.against_independent and not pairs.get("independent"):
        return _MISSING["independent"]
    if missing := [name for name in claim.against if not pairs.get(name)]:
        return f"no pair matched by {missing[0]}"
    measured = pairs[claim.pairs][0]
    if claim.statistic in _OF_ERRORS and np.isnan(measured.values["error"]).all():
        return "no classification"
    try:
        _judged(claim, measured)
    except ValueError:
        which = {"cut": "layer that cuts the network in two", "ranked": "layer narrow enough"}
        which |= {"linear": "linear map behind the first", "ReLU": "hidden layer with a ReLU"}
        which |= {"output": "output of several numbers"}
        return f"no {which.get(claim.judged, f'{claim.judged} layer')}"
    return ""


_OF_ERRORS = (error_barrier, stitching_penalty, lemma1_ratio)
_OF_FEATURES = (worst_cosine, cosine_at_half, cosine_ab, cosine_contrast, worst_coef)
_MISSING = {
    "linked": "no pair",
    "re-estimated": "no running statistics",
    "training": "no earlier checkpoint of A",
    "independent": "no independent pair",
}


def vacuous(
    pairs: Sequence[Measurement], of: Literal["linked", "re-estimated", "training"] = "linked"
) -> str:
    """Why nothing can be learned from pairs, or an empty string if something can.

    A and B must differ, have moved apart in their hidden features, be accurate, and have features
    that are not dead. ``of="training"``: B is A earlier in its training, and only A is asked to be
    accurate.
    """
    for m in pairs:
        means = m.means()
        if m.classes:
            guessing = 1 - 1 / m.classes
            error = float(means["error"][0, -1])
            if of != "training":
                error = max(error, float(means["error"][0, 0]))
            if error > (1 - ACCURATE) * guessing:
                shares = f"{100 * error:.0f}% error, and guessing has {100 * guessing:.0f}%"
                return f"a mode has {shares}"
        elif of != "training":
            loss, guessing = float(means["loss"][0, [0, -1]].max()), float(means["guessing"][0, 0])
            if loss >= guessing:
                return f"a mode's loss is {loss:.3g}, and that of guessing {guessing:.3g}"
        if of == "training":
            continue
        if m.distance == 0:
            return "A and B are the same network"
        if len(m.layers) == 1:
            continue  # measured at the output alone: what moved is judged elsewhere
        moved = float(np.mean(means["one_minus_cos_ab"][0, :-1]))
        if not moved >= MOVED_APART:
            return (
                f"A and B hardly moved apart: the mean of E[1 − cosine_A,B] over hidden layers "
                f"is {moved:.2g}, and {MOVED_APART:g} is asked for"
            )
        for number, share in m.undefined.items():
            # All of a layer: it has no activation, and so no Dist_σ.
            dead = np.where(share < 1, share, 0.0) if number == "dist_sigma" else share
            if dead.max() > DEAD:
                layer = m.layers[int(dead.argmax())]
                return f"{100 * dead.max():.0f}% of the images have no {number} at {layer}"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
