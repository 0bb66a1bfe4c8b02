"""One streaming pass over the test set: all layers, all α, all that the claims ask for.

Features live for one batch, on their device. What is kept is a few float64 numbers per image, layer
and α, so that the claims can resample images. Everything comes from the same forward passes: A, B,
θ_α for each α, and B stitched onto A at each layer.

Of a batch, A's pre- and post-activations and the inputs of its linear maps wait for B's pass, which
uses them up layer by layer (Dist_σ, Gram matrices, commutativity); after it only the two modes'
post-activations are left, for the passes that follow. A stitched network does not compute the
linear maps and norms below the layer it is stitched at, whose results nothing would see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from llfc_core import kernels
from llfc_core.features import Layer, Taps, flatten, inputs_of
from llfc_core.metrics.commutativity import CommutativityAccumulator
from llfc_core.metrics.llfc import Dots, coef, one_minus_cos
from llfc_core.metrics.low_rank import (
    GramAccumulator,
    rank_share,
    squared_singular_values,
    stable_rank,
)
from llfc_core.metrics.measurement import Measurement
from llfc_core.metrics.points import Points
from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_histogram
from llfc_core.numerics import ieee
from llfc_core.pairs import ModePair, interpolate

ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

# From this many coordinates on, Dist_σ by histogram: within 0.5% of the maximum, and guaranteed so.
HISTOGRAM_FROM = 4096

# States θ_α are kept from batch to batch if all of them together are no larger, in bytes.
KEEP_STATES = 2**28

# Features of more coordinates than this have no Gram matrix kept (it would be 134 MB in float64).
GRAM_UP_TO = 4096


Loss = Callable[[Tensor, Tensor], Tensor]
Part = Literal["additivity", "commutativity", "ranks", "stitching"]
PARTS: tuple[Part, ...] = ("additivity", "commutativity", "ranks", "stitching")


def measure(
    pair: ModePair,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss: Loss | None = None,
    guessing: float = math.nan,
    alphas: Sequence[float] = ALPHAS,
    layers: Sequence[str] | None = None,
    parts: Collection[Part] = PARTS,
    device: torch.device | str = "cpu",
) -> Measurement:
    """Measure a pair in one pass over ``batches``.

    Parameters
    ----------
    batches
        ``(inputs, labels)``: what the network takes, and int64 labels: ``(n,)``, or ``(n, …)`` for
        sequences and the like, as `Points` has them. Read once.
    loss
        In place of cross-entropy, for what is no classification: given the outputs of a batch and
        its labels, which may then be any tensor, the loss of each data point ``(n,)``, or
        ``(n, …)`` to be averaged. Errors, and those of stitched networks, are NaN then.
    guessing
        What ``loss`` is of outputs that know nothing of the inputs.
    alphas
        Values of α in [0, 1]; 0, 1 are added if missing.
    layers
        Names as in `Taps`; by default every activation and the output.
    parts
        What to measure besides errors, losses, cosines and coefficients: Dist_σ, the sums behind
        Dist_com, Dist_W and Dist_H, the ranks, stitching. What is left out is NaN.

    Raises
    ------
    ValueError
        A part that does not exist, no images, an α outside [0, 1], a loss or a feature that is not
        finite, outputs and labels that do not fit, or a layer without a data axis in front.
    """
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"every α must lie in [0, 1], got {tuple(alphas)}")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    grid = tuple(sorted({0.0, 1.0, *map(float, alphas)}))
    device = torch.device(device)
    collected: list[dict[str, Tensor]] = []
    one_pass: _Pass | None = None
    with torch.no_grad(), ieee():
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            if one_pass is None:
                one_pass = _Pass(pair, inputs[:2], layers, grid, frozenset(parts), device, loss)
            collected.append(one_pass.batch(inputs, labels))
    if one_pass is None:
        raise ValueError("no images to measure on: the batches are empty")
    # Taken from the batches as they are joined, lest all numbers be there twice.
    values = {k: torch.cat([c.pop(k) for c in collected], dim=-1).numpy() for k in [*collected[0]]}
    accumulators = one_pass.commutativity.values()
    maps, images = len(one_pass.linear), values["error"].shape[-1]
    sums, weights = np.full((maps, 6, images), np.nan), np.full((maps, 3), np.nan)
    if accumulators:
        sums = _stack([a.per_image.T.cpu() for a in accumulators], (6, 0))
        weights = _stack([a.weight_sums.cpu() for a in accumulators], (3,))
    values["commutativity"] = sums
    if not np.isfinite(values["loss"]).all():
        raise ValueError("the loss is not finite somewhere on the line from B to A")
    if not bool(one_pass.finite):
        raise ValueError("a feature is not finite somewhere on the line from B to A")
    return Measurement(
        link=pair.link,
        layers=one_pass.taps.names,
        linear=tuple(one_pass.linear),
        alphas=grid,
        values=values,
        constants={
            "weights": weights,
            "guessing": np.array(
                [math.log(one_pass.classes) if loss is None else guessing], dtype=np.float64
            ),
            **one_pass.ranks(),
        },
        distance=weight_distance(one_pass.a, one_pass.b),
        classes=one_pass.classes,
        relus=tuple(name for name in one_pass.taps.names if name in one_pass.relus),
        dims=tuple(one_pass.dims[name] for name in one_pass.taps.names),
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

    ``inputs``: what goes into the linear maps. ``pre`` and ``inputs`` are for B's pass to use up.
    """

    pre: dict[str, Tensor]
    post: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Tensor


@dataclass(eq=False)
class _Both:
    """What B's pass finds beside A's features: per layer, Dist_σ ``(n,)`` and the products."""

    sigma: dict[str, Tensor]
    ends: dict[str, Dots]


class _Pass:
    """The pair on its device, and what is measured of it batch by batch."""

    def __init__(
        self,
        pair: ModePair,
        example: Tensor,
        layers: Sequence[str] | None,
        grid: tuple[float, ...],
        parts: frozenset[Part],
        device: torch.device,
        loss: Loss | None,
    ) -> None:
        self.parts = parts
        self.loss = loss
        self.classes = 0
        self.module = pair.module.to(device)
        self.a = {k: v.to(device) for k, v in pair.a.items()}
        self.b = {k: v.to(device) for k, v in pair.b.items()}
        self.between = pair.between
        self.grid = grid
        self.taps = Taps(self.module, example)
        if layers is not None:  # the output is always among them, and last
            self.taps = Taps(self.module, example, [*layers, self.taps.names[-1]])
        self.relus = _relus(self.taps, example, self.a)
        self.linear, self.below = _linear_modules(self.module, self.taps, example)
        # The layers that cut the network in two; whether one image will do for what is below.
        self.cuts: dict[str, bool] = {}
        if "stitching" in parts:
            self._find_cuts(example)
        self.commutativity = {
            name: CommutativityAccumulator(module, _weight(self.a, name), _weight(self.b, name))
            for name, module in self.linear.items()
            if "commutativity" in parts
        }
        self._commuting = {name: self.linear[name] for name in self.commutativity}
        self.dims: dict[str, int] = {}
        self.grams: dict[str, GramAccumulator] = {}
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self._states: dict[float, Mapping[str, Tensor]] = {}
        size = sum(v.numel() * v.element_size() for v in self.a.values())
        self._keep = size * len(grid) <= KEEP_STATES

    def batch(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """All numbers of a batch, the last axis over its images; they leave the device once."""
        a = self._collect(inputs)
        b, both = self._compare(inputs, a)
        ends = both.ends
        flat_a = {k: flatten(v) for k, v in a.post.items()}
        flat_b = {k: flatten(v) for k, v in b.post.items()}
        scores, cosines, coefs = [], [], []
        for alpha in self.grid:
            if alpha in (0, 1):  # B and A themselves
                z = (a if alpha == 1 else b).logits
                dots = {k: (e.aa, e.ab, e.aa) for k, e in ends.items()}
                if alpha == 0:
                    dots = {k: (e.ab, e.bb, e.bb) for k, e in ends.items()}
            else:
                z, dots = self._interpolated(inputs, alpha, flat_a, flat_b)
            at_alpha = [(ends[k], *dots[k]) for k in self.taps.names]
            scores.append(self._scores(z, labels))
            cosines.append(
                torch.stack([one_minus_cos(e, fa, fb, ff, alpha) for e, fa, fb, ff in at_alpha])
            )
            coefs.append(torch.stack([coef(e, fa, fb, alpha) for e, fa, fb, _ in at_alpha]))
        mixtures = (alpha * a.logits + (1 - alpha) * b.logits for alpha in self.grid)
        loss, error = (torch.stack(both) for both in zip(*scores, strict=True))
        numbers = {
            "error": error,
            "mixture_error": torch.stack([self._errors(z, labels) for z in mixtures]),
            "loss": loss,
            "one_minus_cos": torch.stack(cosines, dim=1),
            "coef": torch.stack(coefs, dim=1),
            "one_minus_cos_ab": torch.stack([ends[k].one_minus_cos_ab() for k in self.taps.names]),
            "dist_sigma": torch.stack([both.sigma[k] for k in self.taps.names]),
            "stitched_error": torch.stack(
                [self._stitched_errors(k, inputs, labels, a, b) for k in self.taps.names]
            ),
        }
        return {k: v.double().cpu() for k, v in numbers.items()}

    def _scores(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and error of each data point: float64 ``(n,)`` each."""
        if self.loss is None:
            points = Points.of(output, labels)
            self.classes = points.logits.shape[1]
            return points.losses_and_errors()
        loss = self.loss(output, labels)
        if loss.dim() == 0 or len(loss) != len(output):
            raise ValueError(
                f"the loss must give a number for each of {len(output)} data points, not a tensor "
                f"of shape {tuple(loss.shape)}: reduction='none'?"
            )
        per_point = flatten(loss).double().mean(dim=1)
        return per_point, torch.full_like(per_point, torch.nan)

    def _errors(self, output: Tensor, labels: Tensor) -> Tensor:
        """Error of each data point, float64 ``(n,)``; NaN where nothing is classified."""
        if self.loss is None:
            return Points.of(output, labels).errors()
        return output.new_full((len(output),), torch.nan, dtype=torch.float64)

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
            name = layer.name
            sums = kernels.dots([flatten(layer.post)], flat_a[name], flat_b[name], check=False)[0]
            self.finite &= sums.isfinite().all()
            fa, fb, ff = sums.unbind(1)
            dots[name] = fa, fb, ff

        return self.taps.run(inputs, on_layer, self._state(alpha, inputs.device)), dots

    def _state(self, alpha: float, device: torch.device) -> Mapping[str, Tensor]:
        """θ_α, made anew for every batch only where keeping all of them would cost memory."""
        if alpha in self._states:
            return self._states[alpha]
        if self.between is None:
            state: Mapping[str, Tensor] = interpolate(self.a, self.b, alpha)
        else:
            state = {k: v.to(device) for k, v in self.between(alpha).items()}
        if self._keep:
            self._states[alpha] = state
        return state

    def _collect(self, inputs: Tensor) -> _Features:
        """The features of A: copies, for networks may write into them later."""
        found = _Features({}, {}, {}, inputs)

        def keep(layer: Layer) -> None:
            found.post[layer.name] = layer.post.clone()
            if layer.name in self.relus and "additivity" in self.parts:
                found.pre[layer.name] = flatten(layer.pre).clone()

        def keep_input(name: str, x: Tensor) -> None:
            found.inputs[name] = x.clone()

        with inputs_of(self._commuting, keep_input):
            found.logits = self.taps.run(inputs, keep, self.a)
        return found

    def _compare(self, inputs: Tensor, a: _Features) -> tuple[_Features, _Both]:
        """B's post-activations, and what is known once B's features are beside A's."""
        found, both = _Features({}, {}, {}, inputs), _Both({}, {})

        def compare(layer: Layer) -> None:
            name = layer.name
            if len(layer.post) != len(inputs):
                raise ValueError(
                    f"layer {name!r} gives {tuple(layer.post.shape)} for {len(inputs)} data "
                    "points, which must be on the first axis: choose other layers"
                )
            found.post[name] = layer.post.clone()
            x, y = flatten(a.post[name]), flatten(layer.post)
            self.dims[name] = y.shape[1]
            ends = both.ends[name] = Dots.of(x, y)
            self.finite &= (ends.aa + ends.bb).isfinite().all()
            if "ranks" in self.parts and x.shape[1] <= GRAM_UP_TO:
                self.grams.setdefault(name, GramAccumulator()).update(x)
            if name in a.pre:
                both.sigma[name] = _dist_sigma(a.pre.pop(name), flatten(layer.pre))
            else:  # no ReLU, or not asked for
                both.sigma[name] = torch.full_like(ends.aa, torch.nan)

        def commute(name: str, x: Tensor) -> None:
            self.commutativity[name].update(a.inputs.pop(name), x)

        with inputs_of(self._commuting, commute):
            found.logits = self.taps.run(inputs, compare, self.b)
        return found, both

    def _stitched_errors(
        self, name: str, inputs: Tensor, labels: Tensor, a: _Features, b: _Features
    ) -> Tensor:
        """Errors of B_{>ℓ} ∘ A_{≤ℓ} and of A_{>ℓ} ∘ B_{≤ℓ} (Appendix B.4): ``(2, n)``.

        What is handed over is the post-activation; handing over the tensor that enters the
        activation gives the same network.
        """
        if name not in self.cuts or self.loss is not None:
            nothing = torch.full((2, len(inputs)), torch.nan, dtype=torch.float64)
            return nothing.to(inputs.device)

        def stitched(lower: _Features, upper: Mapping[str, Tensor]) -> Tensor:
            return self._errors(self._stitch(inputs, name, lower.post[name], upper), labels)

        return torch.stack([stitched(a, self.b), stitched(b, self.a)])

    def _stitch(
        self, inputs: Tensor, name: str, post: Tensor, upper: Mapping[str, Tensor]
    ) -> Tensor:
        """The logits of the upper network with ``post`` for its own post-activation of a layer."""

        def substitute(layer: Layer) -> Tensor | None:
            return post.clone() if layer.name == name else None

        if self.cuts[name]:
            with _skipped(self.below[name], len(inputs)):
                return self.taps.run(inputs[:1], substitute, upper)
        with _skipped(self.below[name], None):
            return self.taps.run(inputs, substitute, upper)

    def ranks(self) -> dict[str, np.ndarray]:
        """The constants of `Measurement` that speak of rank."""
        if "ranks" not in self.parts:
            maps, layers = np.full((len(self.linear), 2), np.nan), len(self.taps.names)
            return {
                "stable_rank": maps,
                "weight_rank": maps,
                "feature_rank": np.full(layers, np.nan),
            }
        squares = [
            [squared_singular_values(_weight(state, name)) for state in (self.a, self.b)]
            for name in self.linear
        ]
        features = np.full(len(self.taps.names), np.nan)
        # The narrow layers first: their matrices are gone when the wide ones need room.
        for name in sorted(self.grams, key=lambda name: self.grams[name].width):
            features[self.taps.names.index(name)] = float(self.grams.pop(name).rank_share())
        return {
            "stable_rank": _stack(
                [torch.stack([stable_rank(s) for s in both]).cpu() for both in squares], (2,)
            ),
            "weight_rank": _stack(
                [torch.stack([rank_share(s) for s in both]) for both in squares], (2,)
            ),
            "feature_rank": features,
        }

    def _find_cuts(self, example: Tensor) -> None:
        """Enter into ``cuts`` the layers at which stitching is defined."""
        if len(example) == 1:  # one image cannot tell whether one image will do
            example = torch.cat([example, example])
        kept: dict[str, Tensor] = {}

        def keep(layer: Layer) -> None:
            kept[layer.name] = layer.post.clone()

        self.taps.run(example, keep, self.a)
        for name in self.taps.names[:-1]:
            try:
                want = self.taps.hand_over(example, name, kept[name], self.b)
            except ValueError:
                continue
            self.cuts[name] = True
            try:
                same = torch.equal(self._stitch(example, name, kept[name], self.b), want)
            except (RuntimeError, ValueError):
                same = False  # images are put side by side below the layer, for one
            self.cuts[name] = same


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Of a linear map, which may be the whole network: then it has no name."""
    return state[f"{name}.weight" if name else "weight"]


def _relus(taps: Taps, example: Tensor, state: Mapping[str, Tensor]) -> set[str]:
    """The layers whose activation is a ReLU, which is what Definition 3 speaks of."""
    found = set()

    def look(layer: Layer) -> None:
        if layer.kind == "activation" and torch.equal(layer.post, layer.pre.clamp_min(0)):
            found.add(layer.name)

    taps.run(example, look, state)
    return found


def _dist_sigma(x: Tensor, y: Tensor) -> Tensor:
    """Dist_σ of pre-activations x of A and y of B, ``(n, d)``: ``(n,)``, NaN where undefined."""
    found = dist_sigma(x, y) if x.shape[1] < HISTOGRAM_FROM else dist_sigma_histogram(x, y)
    return found.distance.masked_fill(found.undefined, torch.nan)


Linear = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm


def _linear_modules(
    module: nn.Module, taps: Taps, example: Tensor
) -> tuple[dict[str, Linear], dict[str, list[tuple[nn.Module, torch.Size]]]]:
    """The linear maps that run, in order of execution; and for each layer what is below it.

    That is the linear maps and norms that ran before the layer, and not again after it, each with
    the shape of one image's result.
    """
    candidates = {n: m for n, m in module.named_modules() if isinstance(m, Linear | Norm)}
    ran: list[str] = []
    ran_before: dict[str, list[str]] = {}
    shapes: dict[str, torch.Size] = {}
    regrouped: set[str] = set()  # maps of what is no longer (n, …), windows say

    def on_layer(layer: Layer) -> None:
        ran_before[layer.name] = list(ran)

    def after(name: str):  # type: ignore[no-untyped-def]
        def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            ran.append(name)
            shapes[name] = output.shape[1:]
            if len(output) != len(example):
                regrouped.add(name)

        return see

    handles = [m.register_forward_hook(after(name)) for name, m in candidates.items()]
    try:
        taps.run(example, on_layer)
    finally:
        for handle in handles:
            handle.remove()
    below: dict[str, list[tuple[nn.Module, torch.Size]]] = {
        layer: [
            (candidates[name], shapes[name])
            for name in dict.fromkeys(before)
            if before.count(name) == ran.count(name)
        ]
        for layer, before in ran_before.items()
    }
    used = (n for n in dict.fromkeys(ran) if n not in regrouped)
    linear = {n: m for n in used if isinstance(m := candidates[n], Linear)}
    return linear, below


@contextmanager
def _skipped(modules: Sequence[tuple[nn.Module, torch.Size]], images: int | None) -> Iterator[None]:
    """Within, these modules give a tensor of the right shape and compute nothing.

    What is in it does not matter, not even NaN: `Taps.stitch` has shown that the output does not
    depend on it. images: how many the last of them makes of one image, which spares what runs in
    between the others (pooling, activations); None: as many as come in.
    """

    def nothing(shape: torch.Size, images: int | None):  # type: ignore[no-untyped-def]
        return lambda x: x.new_empty(len(x) if images is None else images, *shape)

    own = [module.__dict__.get("forward") for module, _ in modules]
    for i, (module, shape) in enumerate(modules):
        last = i == len(modules) - 1
        # on the instance: found before the class's
        module.__dict__["forward"] = nothing(shape, images if last else None)
    try:
        yield
    finally:
        for (module, _), forward in zip(modules, own, strict=True):
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _stack(tensors: Sequence[Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """Stacked along a first axis; an empty array of that shape if there are none."""
    if not tensors:
        return np.empty((0, *shape))
    return torch.stack(list(tensors)).double().numpy()
