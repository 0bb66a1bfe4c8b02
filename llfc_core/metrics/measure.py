"""One streaming pass over the test set: all layers, all α, all that the claims ask for.

Features live for one batch. What is kept is a few float64 numbers per image, layer and α, so that
the claims can resample images. LMC and LLFC come from the same forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llfc_core.features import Layer, Taps, flatten
from llfc_core.metrics.llfc import Dots, coef, dot, one_minus_cos
from llfc_core.numerics import ieee
from llfc_core.pairs import ModePair, interpolate
from llfc_core.training.engine import errors

ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Numbers of one pair, image by image.

    Attributes
    ----------
    layers
        Names of the L tapped layers, the network's output last.
    alphas
        The K values of α, with both ends.
    values
        float64 arrays whose last axis runs over the n images:

        ``error`` (K, n)
            1 where θ_α is wrong (ties count as wrong), else 0.
        ``loss`` (K, n)
            Cross-entropy of θ_α in nats.
        ``one_minus_cos`` (L, K, n)
            1 − cosine_α of the post-activations (Fig. 2); signed; NaN where a norm is zero.
        ``coef`` (L, K, n)
            coef_α (Appendix B.2); NaN where a norm is zero.
        ``one_minus_cos_ab`` (L, n)
            1 − cosine_{A,B}; NaN where a norm is zero.
    distance
        ‖θ_A − θ_B‖ / ‖θ_A‖ over parameters and buffers.
    classes
        The number of logits.
    """

    link: str
    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    values: dict[str, np.ndarray]
    distance: float
    classes: int

    @property
    def n(self) -> int:
        """The number of images."""
        return self.values["error"].shape[-1]

    @cached_property
    def undefined(self) -> np.ndarray:
        """Share of (image, α) whose cosine a zero norm leaves undefined, per layer ``(L,)``."""
        return np.isnan(self.values["one_minus_cos"]).mean(axis=(1, 2))

    def means(self) -> dict[str, np.ndarray]:
        """``values`` averaged over images where defined, with a leading axis of length 1."""
        return {k: masked_mean(v)[None] for k, v in self.values.items()}

    def summary(self) -> dict[str, Any]:
        """JSON-able: mean and standard deviation over images of every number, and the counts."""
        out: dict[str, Any] = {
            "link": self.link,
            "layers": list(self.layers),
            "alphas": list(self.alphas),
            "images": self.n,
            "weight_distance": self.distance,
            "undefined_cosines": self.undefined.tolist(),
        }
        for name, value in self.values.items():
            mean = masked_mean(value)
            spread = np.sqrt(masked_mean((value - mean[..., None]) ** 2))
            out[name] = {"mean": mean.tolist(), "std": spread.tolist()}
        return out


def masked_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=-1) / defined.sum(axis=-1)


def measure(
    pair: ModePair,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    alphas: Sequence[float] = ALPHAS,
    layers: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Measurement:
    """Measure a pair in one pass over ``batches``.

    Parameters
    ----------
    batches
        ``(inputs, labels)``: what the network takes, and int64 labels ``(n,)``. Read once.
    alphas
        Values of α in [0, 1]; 0, 1 are added if missing.
    layers
        Names as in `Taps`; by default every activation and the output.

    Raises
    ------
    ValueError
        No images, an α outside [0, 1], or logits that are not finite.
    """
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"every α must lie in [0, 1], got {tuple(alphas)}")
    grid = tuple(sorted({0.0, 1.0, *map(float, alphas)}))
    device = torch.device(device)
    module = pair.module.to(device)
    a = {k: v.to(device) for k, v in pair.a.items()}
    b = {k: v.to(device) for k, v in pair.b.items()}
    collected: list[dict[str, Tensor]] = []
    taps: Taps | None = None
    with torch.no_grad(), ieee():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            if taps is None:
                taps = Taps(module, inputs[:2], layers)
                classes = taps.run(inputs[:2], lambda layer: None, a).shape[1]
            collected.append(_measure_batch(taps, a, b, inputs, labels, grid))
    if taps is None:
        raise ValueError("no images to measure on: the batches are empty")
    values = {
        name: torch.cat([batch[name] for batch in collected], dim=-1).numpy()
        for name in collected[0]
    }
    if not np.isfinite(values["loss"]).all():
        raise ValueError("the loss is not finite somewhere on the line from B to A")
    return Measurement(pair.link, taps.names, grid, values, weight_distance(a, b), classes)


def weight_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖θ_A − θ_B‖ / ‖θ_A‖, float64, over all floating-point entries."""
    moved = sum(
        float((a[k].double() - b[k].double()).square().sum()) for k in a if a[k].is_floating_point()
    )
    size = sum(float(v.double().square().sum()) for v in a.values() if v.is_floating_point())
    return math.sqrt(moved / size) if size > 0 else math.inf


def _measure_batch(
    taps: Taps,
    a: dict[str, Tensor],
    b: dict[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    grid: tuple[float, ...],
) -> dict[str, Tensor]:
    features_a, features_b = _collect(taps, inputs, a), _collect(taps, inputs, b)
    ends = {
        name: Dots(
            dot(features_a[name], features_a[name]),
            dot(features_a[name], features_b[name]),
            dot(features_b[name], features_b[name]),
        )
        for name in taps.names
    }
    per_alpha = []
    for alpha in grid:
        cosines: dict[str, Tensor] = {}
        coefs: dict[str, Tensor] = {}

        def on_layer(
            layer: Layer,
            alpha: float = alpha,
            cosines: dict[str, Tensor] = cosines,
            coefs: dict[str, Tensor] = coefs,
        ) -> None:
            f, name = flatten(layer.post), layer.name
            fa, fb = dot(f, features_a[name]), dot(f, features_b[name])
            ff = dot(f, f)
            cosines[name] = one_minus_cos(ends[name], fa, fb, ff, alpha)
            coefs[name] = coef(ends[name], fa, fb, alpha)

        logits = taps.run(inputs, on_layer, interpolate(a, b, alpha))
        per_alpha.append((logits, cosines, coefs))
    # Numbers leave the device once a batch.
    return {
        "error": torch.stack([errors(z, labels) for z, _, _ in per_alpha]).double().cpu(),
        "loss": torch.stack(
            [F.cross_entropy(z.double(), labels, reduction="none") for z, _, _ in per_alpha]
        ).cpu(),
        "one_minus_cos": _by_layer(taps.names, [c for _, c, _ in per_alpha]),
        "coef": _by_layer(taps.names, [c for _, _, c in per_alpha]),
        "one_minus_cos_ab": torch.stack([ends[n].one_minus_cos_ab() for n in taps.names]).cpu(),
    }


def _by_layer(names: Sequence[str], per_alpha: Sequence[dict[str, Tensor]]) -> Tensor:
    return torch.stack([torch.stack([c[name] for c in per_alpha]) for name in names]).cpu()


def _collect(taps: Taps, inputs: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The post-activations ``(n, d)`` of every layer: copies, for networks work in place."""
    kept: dict[str, Tensor] = {}

    def keep(layer: Layer) -> None:
        kept[layer.name] = flatten(layer.post).clone()

    taps.run(inputs, keep, state)
    return kept
