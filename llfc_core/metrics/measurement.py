"""What is known of one pair: numbers per image, layer and α, and their averages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from llfc_core.metrics.commutativity import distances

# Enough of them to draw a distribution by (Fig. 5, 6).
QUANTILES = (0.0, 0.01, *(i / 40 for i in range(1, 40)), 0.99, 1.0)
DIGITS = 6  # significant ones, of what `Measurement.summary` tells


@dataclass(frozen=True, eq=False)
class Measurement:
    """Numbers of one pair, image by image.

    Attributes
    ----------
    link
        As in `ModePair`.
    layers
        Names of the L tapped layers, the network's output last.
    linear
        Names of the M linear maps W⁽ℓ⁾ (linear layers and convolutions), in order of execution.
    alphas
        The K values of α, with both ends; α = 1 is A.
    values
        float64 arrays whose last axis runs over the n images:

        ``error``, ``mixture_error`` (K, n)
            1 where θ_α, or the mixture αf(θ_A) + (1−α)f(θ_B) of logits, is wrong (ties count as
            wrong), else 0; of a sequence, the share of wrong places. NaN without classification.
        ``loss`` (K, n)
            Cross-entropy of θ_α in nats, or the loss that was given.
        ``one_minus_cos`` (L, K, n)
            1 − cosine_α of the post-activations (Fig. 2); signed; NaN where a norm is zero.
        ``coef`` (L, K, n)
            coef_α (Appendix B.2); NaN where the interpolated feature is zero.
        ``one_minus_cos_ab`` (L, n)
            1 − cosine_{A,B}; NaN where a norm is zero.
        ``dist_sigma`` (L, n)
            Dist_σ of the pre-activations, the maximum over all of [0, 1] (Fig. 5); NaN where it is
            undefined, and for layers that end in no ReLU, like the output.
        ``stitched_error`` (L, 2, n)
            1 where B after the layer on A's features is wrong (Table 1), and A on B's; NaN where
            the layer does not cut the network in two, and for the output.
        ``commutativity`` (M, 6, n)
            The sums behind Dist_com and Dist_H (`llfc_core.metrics.commutativity.SUMS`). 0 for D in
            the first map, whose input is the data.
    constants
        float64 arrays that are not averages over images:

        ``weights`` (M, 3)
            The sums behind Dist_W.
        ``guessing`` (1,)
            The loss of guessing: ln classes, or what was given with the loss.
        ``stable_rank``, ``weight_rank`` (M, 2)
            Stable rank of W⁽ℓ⁾, and `rank_share` of its singular values, of A and of B.
        ``feature_rank`` (L,)
            `rank_share` of A's H⁽ℓ⁾ over the images; NaN for features too wide for a Gram matrix.
    distance
        ‖θ_A − θ_B‖ / ‖θ_A‖ over parameters and buffers.
    classes
        The number of logits; 0 without classification.
    relus
        The layers that end in a ReLU.
    dims
        How many coordinates each of the ``layers`` has for a data point.
    """

    link: str
    layers: tuple[str, ...]
    linear: tuple[str, ...]
    alphas: tuple[float, ...]
    values: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    distance: float
    classes: int
    relus: tuple[str, ...]
    dims: tuple[int, ...]

    @property
    def n(self) -> int:
        """The number of images."""
        return self.values["loss"].shape[-1]

    @cached_property
    def undefined(self) -> dict[str, np.ndarray]:
        """Per layer ``(L,)``, the share of images that a zero norm leaves without a number.

        ``cosine``: for any α. ``dist_sigma``: 1 too where the layer has no ReLU.
        """
        return {
            "cosine": np.isnan(self.values["one_minus_cos"]).any(axis=1).mean(axis=-1),
            "dist_sigma": np.isnan(self.values["dist_sigma"]).mean(axis=-1),
        }

    def means(self) -> dict[str, np.ndarray]:
        """``values`` averaged over images where defined, and ``constants``; a leading axis of 1."""
        means = {k: masked_mean(v)[None] for k, v in self.values.items()}
        return means | {k: v[None] for k, v in self.constants.items()}

    def summary(self) -> dict[str, Any]:
        """JSON-able: mean and standard deviation over images of every number, and the counts.

        Besides them Dist_com, Dist_W, Dist_H and ρ over the images, ``(M,)`` each (Fig. 7), and of
        Dist_σ the `QUANTILES` of every layer ``(L, len(QUANTILES))`` (Fig. 5). Six significant
        digits.
        """
        out: dict[str, Any] = {
            "link": self.link,
            "layers": list(self.layers),
            "linear": list(self.linear),
            "alphas": list(self.alphas),
            "images": self.n,
            "weight_distance": self.distance,
            "undefined": {k: _jsonable(v) for k, v in self.undefined.items()},
            **{k: _jsonable(v) for k, v in self.constants.items()},
        }
        for name, value in self.values.items():
            mean = masked_mean(value)
            spread = np.sqrt(masked_mean((value - mean[..., None]) ** 2))
            out[name] = {"mean": _jsonable(mean), "std": _jsonable(spread)}
        out["dist_sigma"]["at"] = list(QUANTILES)
        out["dist_sigma"]["quantiles"] = _jsonable(quantiles(self.values["dist_sigma"]))
        sums, weights = masked_mean(self.values["commutativity"]), self.constants["weights"]
        found = distances(torch.from_numpy(sums), torch.from_numpy(weights))
        return out | {k: _jsonable(v.numpy()) for k, v in found._asdict().items()}


def masked_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=-1) / defined.sum(axis=-1)


def quantiles(values: np.ndarray) -> np.ndarray:
    """The `QUANTILES` over the last axis of what is not NaN; NaN where nothing is left."""
    flat = values.reshape(-1, values.shape[-1])
    found = [
        np.quantile(row[~np.isnan(row)], QUANTILES)
        if (~np.isnan(row)).any()
        else np.full(len(QUANTILES), np.nan)
        for row in flat
    ]
    return np.array(found).reshape(*values.shape[:-1], len(QUANTILES))


def _jsonable(array: np.ndarray) -> Any:
    """Nested lists, rounded, with None for what is not finite: JSON has no word for it."""
    flat = [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in array.ravel().tolist()]
    boxed = np.empty(len(flat), dtype=object)
    boxed[:] = flat
    return boxed.reshape(array.shape).tolist()
