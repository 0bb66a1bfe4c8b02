"""One streaming pass over the test set: all layers, all α, all that the claims ask for.

Features live for one batch. What is kept is a few float64 numbers per image, layer and α, so that
the claims can resample images. Everything comes from the same forward passes: A, B, θ_α for each
α, and B stitched onto A at each layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.classification import errors
from llfc_core.features import Layer, Taps, flatten
from llfc_core.metrics.commutativity import CommutativityAccumulator
from llfc_core.metrics.llfc import Dots, coef, dot, one_minus_cos
from llfc_core.metrics.low_rank import (
    GramAccumulator,
    rank_share,
    squared_singular_values,
    stable_rank,
)
from llfc_core.metrics.measurement import Measurement
from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_histogram
from llfc_core.numerics import ieee
from llfc_core.pairs import ModePair, interpolate

ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

# From this many coordinates on, Dist_σ by histogram: within 0.5% of the maximum, and guaranteed so.
HISTOGRAM_FROM = 4096

# Features of more coordinates than this have no Gram matrix kept (it would be 134 MB in float64).
GRAM_UP_TO = 4096


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
        No images, an α outside [0, 1], or a loss that is not finite.
    """
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"every α must lie in [0, 1], got {tuple(alphas)}")
    grid = tuple(sorted({0.0, 1.0, *map(float, alphas)}))
    device = torch.device(device)
    collected: list[dict[str, Tensor]] = []
    one_pass: _Pass | None = None
    with torch.no_grad(), ieee():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            if one_pass is None:
                one_pass = _Pass(pair, inputs[:2], layers, grid, device)
            collected.append(one_pass.batch(inputs, labels))
    if one_pass is None:
        raise ValueError("no images to measure on: the batches are empty")
    values = {k: torch.cat([c[k] for c in collected], dim=-1).numpy() for k in collected[0]}
    accumulators = one_pass.commutativity.values()
    values["commutativity"] = _stack([a.per_image.T.cpu() for a in accumulators], (6, 0))
    if not np.isfinite(values["loss"]).all():
        raise ValueError("the loss is not finite somewhere on the line from B to A")
    return Measurement(
        link=pair.link,
        layers=one_pass.taps.names,
        linear=tuple(one_pass.commutativity),
        alphas=grid,
        values=values,
        constants={
            "weights": _stack([a.weight_sums.cpu() for a in accumulators], (3,)),
            **one_pass.ranks(),
        },
        distance=weight_distance(one_pass.a, one_pass.b),
        classes=one_pass.classes,
    )


def weight_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """‖θ_A − θ_B‖ / ‖θ_A‖, float64, over all floating-point entries."""
    moved = sum(
        float((a[k].double() - b[k].double()).square().sum()) for k in a if a[k].is_floating_point()
    )
    size = sum(float(v.double().square().sum()) for v in a.values() if v.is_floating_point())
    return math.sqrt(moved / size) if size > 0 else math.inf


@dataclass(eq=False)
class _Features:
    """One mode's features on one batch; ``post`` in the network's shapes, ``pre`` flattened.

    ``inputs``: what goes into the linear maps.
    """

    pre: dict[str, Tensor]
    post: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Tensor


class _Pass:
    """The pair on its device, and what is measured of it batch by batch."""

    def __init__(
        self,
        pair: ModePair,
        example: Tensor,
        layers: Sequence[str] | None,
        grid: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.module = pair.module.to(device)
        self.a = {k: v.to(device) for k, v in pair.a.items()}
        self.b = {k: v.to(device) for k, v in pair.b.items()}
        self.grid = grid
        self.taps = Taps(self.module, example)
        if layers is not None:  # the output is always among them, and last
            self.taps = Taps(self.module, example, [*layers, self.taps.names[-1]])
        logits = self.taps.run(example, lambda layer: None, self.a)
        if logits.dim() != 2:
            raise ValueError(f"logits must be (n, classes), the output is {tuple(logits.shape)}")
        self.classes = logits.shape[1]
        self.cuts = [name for name in self.taps.names[:-1] if self._cuts(name, example)]
        self.linear = _linear_modules(self.module, self.taps, example)
        self.commutativity = {
            name: CommutativityAccumulator(
                module, self.a[f"{name}.weight"], self.b[f"{name}.weight"]
            )
            for name, module in self.linear.items()
        }
        self.grams: dict[str, tuple[GramAccumulator, GramAccumulator]] = {}

    def batch(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """All numbers of a batch, the last axis over its images; they leave the device once."""
        a, b = self._collect(inputs, self.a), self._collect(inputs, self.b)
        for name, accumulator in self.commutativity.items():
            accumulator.update(a.inputs[name], b.inputs[name])
        flat_a = {k: flatten(v) for k, v in a.post.items()}
        flat_b = {k: flatten(v) for k, v in b.post.items()}
        for name, x in flat_a.items():
            if x.shape[1] <= GRAM_UP_TO:
                grams = self.grams.setdefault(name, (GramAccumulator(), GramAccumulator()))
                grams[0].update(x)
                grams[1].update(flat_b[name])
        ends = {
            k: Dots(dot(x, x), dot(x, flat_b[k]), dot(flat_b[k], flat_b[k]))
            for k, x in flat_a.items()
        }
        logits, cosines, coefs = [], [], []
        for alpha in self.grid:
            if alpha in (0, 1):  # B and A themselves
                z = (a if alpha == 1 else b).logits
                dots = {k: (e.aa, e.ab, e.aa) for k, e in ends.items()}
                if alpha == 0:
                    dots = {k: (e.ab, e.bb, e.bb) for k, e in ends.items()}
            else:
                z, dots = self._interpolated(inputs, alpha, flat_a, flat_b)
            at_alpha = [(ends[k], *dots[k]) for k in self.taps.names]
            logits.append(z)
            cosines.append(
                torch.stack([one_minus_cos(e, fa, fb, ff, alpha) for e, fa, fb, ff in at_alpha])
            )
            coefs.append(torch.stack([coef(e, fa, fb, alpha) for e, fa, fb, _ in at_alpha]))
        mixtures = [alpha * a.logits + (1 - alpha) * b.logits for alpha in self.grid]
        losses = [F.cross_entropy(z.double(), labels, reduction="none") for z in logits]
        numbers = {
            "error": torch.stack([errors(z, labels) for z in logits]),
            "mixture_error": torch.stack([errors(z, labels) for z in mixtures]),
            "loss": torch.stack(losses),
            "one_minus_cos": torch.stack(cosines, dim=1),
            "coef": torch.stack(coefs, dim=1),
            "one_minus_cos_ab": torch.stack([ends[k].one_minus_cos_ab() for k in self.taps.names]),
            "dist_sigma": torch.stack([self._dist_sigma(k, a, b) for k in self.taps.names]),
            "stitched_error": torch.stack(
                [self._stitched_errors(k, inputs, labels, a, b) for k in self.taps.names]
            ),
        }
        return {k: v.double().cpu() for k, v in numbers.items()}

    def _interpolated(
        self,
        inputs: Tensor,
        alpha: float,
        flat_a: Mapping[str, Tensor],
        flat_b: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]:
        """The logits of θ_α, and ⟨f,a⟩, ⟨f,b⟩, ⟨f,f⟩ of its features f, which are not kept."""
        dots = {}

        def on_layer(layer: Layer) -> None:
            f = flatten(layer.post)
            dots[layer.name] = dot(f, flat_a[layer.name]), dot(f, flat_b[layer.name]), dot(f, f)

        return self.taps.run(inputs, on_layer, interpolate(self.a, self.b, alpha)), dots

    def _collect(self, inputs: Tensor, state: Mapping[str, Tensor]) -> _Features:
        """The features of one mode: copies, for networks may write into them later."""
        found = _Features({}, {}, {}, inputs)

        def keep(layer: Layer) -> None:
            found.post[layer.name] = layer.post.clone()
            if layer.kind == "activation":
                found.pre[layer.name] = flatten(layer.pre).clone()

        with _inputs_of(self.linear, found.inputs):
            found.logits = self.taps.run(inputs, keep, state)
        return found

    def _dist_sigma(self, name: str, a: _Features, b: _Features) -> Tensor:
        if name not in a.pre:
            return torch.full((len(a.logits),), torch.nan, device=a.logits.device)
        x, y = a.pre[name], b.pre[name]
        found = dist_sigma(x, y) if x.shape[1] < HISTOGRAM_FROM else dist_sigma_histogram(x, y)
        return found.distance.masked_fill(found.undefined, torch.nan)

    def _stitched_errors(
        self, name: str, inputs: Tensor, labels: Tensor, a: _Features, b: _Features
    ) -> Tensor:
        """Errors of B_{>ℓ} ∘ A_{≤ℓ} and of A_{>ℓ} ∘ B_{≤ℓ} (Appendix B.4): ``(2, n)``.

        What is handed over is the post-activation; handing over the tensor that enters the
        activation gives the same network.
        """
        if name not in self.cuts:
            return torch.full((2, len(labels)), torch.nan, device=labels.device)

        def stitched(lower: _Features, upper: Mapping[str, Tensor]) -> Tensor:
            def substitute(layer: Layer) -> Tensor | None:
                return lower.post[name].clone() if layer.name == name else None

            return errors(self.taps.run(inputs, substitute, upper), labels).double()

        return torch.stack([stitched(a, self.b), stitched(b, self.a)])

    def ranks(self) -> dict[str, np.ndarray]:
        """The constants of `Measurement` that speak of rank."""
        squares = [
            [squared_singular_values(state[f"{name}.weight"]) for state in (self.a, self.b)]
            for name in self.linear
        ]
        undefined = torch.full((2,), torch.nan, dtype=torch.float64)
        features = [
            torch.stack([rank_share(g.squared_singular_values()) for g in self.grams[name]])
            if name in self.grams
            else undefined
            for name in self.taps.names
        ]
        return {
            "stable_rank": _stack(
                [torch.stack([stable_rank(s) for s in both]).cpu() for both in squares], (2,)
            ),
            "weight_rank": _stack(
                [torch.stack([rank_share(s) for s in both]) for both in squares], (2,)
            ),
            "feature_rank": torch.stack(features).numpy(),
        }

    def _cuts(self, name: str, example: Tensor) -> bool:
        """Whether a layer cuts the network in two, so that stitching there is defined."""
        try:
            self.taps.stitch(example, name, self.a, self.b)
        except ValueError:
            return False
        return True


def _linear_modules(
    module: nn.Module, taps: Taps, example: Tensor
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear maps that run, in order of execution."""
    candidates = {
        name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }
    ran: dict[str, Tensor] = {}
    with _inputs_of(candidates, ran):
        taps.run(example, lambda layer: None)
    return {name: candidates[name] for name in ran}


@contextmanager
def _inputs_of(modules: Mapping[str, nn.Module], found: dict[str, Tensor]) -> Iterator[None]:
    """Within, the input of each module's first call is put into ``found``."""

    def hook(name: str):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name not in found:
                found[name] = args[0].clone()

        return keep

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stack(tensors: Sequence[Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """Stacked along a first axis; an empty array of that shape if there are none."""
    if not tensors:
        return np.empty((0, *shape))
    return torch.stack(list(tensors)).double().numpy()
