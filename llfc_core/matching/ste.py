"""Straight-through estimator matching: choose the permutation by the loss halfway to A.

Git Re-Basin's third method (Ainsworth et al. 2023, Section 3.3) minimises L(½(θ_A + π(θ_B))) over
permutations. It keeps weights θ̂ that are free to move; forwards, each step uses the projection
of θ̂ to the permutations of B, π = the weight matching of θ̂ and B; backwards, the gradient goes
to θ̂ as if there were no projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.features import Layer, Taps
from llfc_core.matching.activation import device_of, make_taps
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec, State
from llfc_core.matching.weight import Clock, Descent, find_trees, match_weights, weight_names
from llfc_core.numerics import ieee
from llfc_core.pairs import interpolate

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]

HELD_OUT = 0.1  # share of the data, where no held-out data is given


def match_straight_through(
    a: State,
    b: State,
    spec: PermutationSpec,
    module: nn.Module,
    data: Iterable[Any],
    held_out: Iterable[Any] | None = None,
    *,
    seed: int = 0,
    weights: Collection[str] | None = None,
    start: Mapping[str, Tensor] | None = None,
    loss: Loss = F.cross_entropy,
    lr: float = 1e-2,
    momentum: float = 0.9,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    every: int = 10,
    sweeps: int = 3,
) -> Match:
    """Descend in θ̂, and keep the permutation that does best halfway on held-out data.

    Git Re-Basin keeps that of the lowest minibatch loss, which is as much a choice of the
    minibatch. The permutations of weight matching and of ``start`` are among the candidates, so
    the result is no worse than they are on the held-out data.

    The network runs in eval mode; BatchNorm's running statistics halfway are the mean of A's and
    π(B)'s (Git Re-Basin's networks have none), and get no gradient.

    Parameters
    ----------
    a, b
        States that fit ``spec`` and ``module``, on one device; batches are moved there.
    data, held_out
        Batches ``(inputs, labels)``. They are kept in memory. Without ``held_out``, a tenth of
        ``data``, drawn by the seed, is held out and not trained on.
    weights
        Tensors that are matched and get gradients; None: see `weight_names`.
    start
        Where the first weight matching begins; None: as `match_weights` begins.
    loss
        Of outputs and labels, a mean over the batch.
    lr, momentum
        Of the SGD on θ̂.
    epochs, steps
        How long, one of the two; 5 epochs by default. The order of the data is the seed's.
    batch_size
        None: the size of the first batch of ``data``.
    every
        Steps from one look at the held-out loss to the next; permutations seen are not looked at
        again.
    sweeps
        At most so many in the weight matching of a step, which begins at the last permutation.

    Raises
    ------
    ValueError
        Too little data to hold some out, both ``epochs`` and ``steps``, numbers out of range, or
        a loss that is not finite.
    """
    _check_numbers(lr, momentum, epochs, steps, batch_size, every, sweeps)
    clock = Clock()
    generator = torch.Generator().manual_seed(seed)
    names = weight_names(a, weights)
    with clock.timing("total"), ieee():
        train, held, size = _split(data, held_out, batch_size, generator, device_of(a))
        if steps is None:
            steps = (5 if epochs is None else epochs) * math.ceil(len(train[1]) / size)
        taps = make_taps(module, train[0], ())

        def held_out_loss(permutations: Mapping[str, Tensor]) -> float:
            return _mean_loss(taps, interpolate(a, spec.apply(b, permutations), 0.5), held, loss)

        matched = match_weights(a, b, spec, seed=seed, weights=weights, start=start)
        for what in ("similarity", "assignment"):
            clock[what] += matched.seconds[what]
        with clock.timing("selection"):
            best = matched.permutations if start is None else spec.checked(start)
            trace = [held_out_loss(best)]
            seen = {_digest(best)}

        trees = find_trees(spec, names)
        free = {name: a[name].detach().clone().requires_grad_() for name in names}
        optimiser = torch.optim.SGD(list(free.values()), lr=lr, momentum=momentum)
        permutations = looked = matched.permutations
        prices: dict[str, Tensor] = {}
        settled = False
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps + 1):
            if step:  # the first look is at the start's weight matching
                if not len(order):
                    order = torch.randperm(len(train[1]), generator=generator)
                here, order = order[:size].to(train[1].device), order[size:]
                descent = Descent(trees, free, b, spec, permutations, names, clock, prices)
                descent.run(generator, sweeps)
                permutations, prices = descent.permutations, descent.prices
                with clock.timing("gradient"):
                    middle = midpoint(a, spec.apply(b, permutations), free)
                    value = loss(_run(taps, train[0][here], middle), train[1][here])
                    _check_finite(float(value.detach()))
                    optimiser.zero_grad()
                    value.backward()
                    optimiser.step()
            if step % every == 0 or step == steps:
                settled = _digest(permutations) == _digest(looked)
                looked = permutations
                if _digest(permutations) not in seen:
                    seen.add(_digest(permutations))
                    with clock.timing("selection"):
                        value_there = held_out_loss(permutations)
                    if value_there < trace[-1]:
                        best = permutations
                        trace.append(value_there)
    return Match(
        method="ste",
        spec=spec,
        permutations=best,
        objective=tuple(trace),
        seconds=dict(clock),
        sweeps=steps,
        restarts=(trace[-1],),
        converged=settled,
        unmatched=matched.unmatched,
    )


def midpoint(a: State, permuted: State, free: State) -> dict[str, Tensor]:
    """½(θ_A + π(θ_B)) in value, with the gradient of ½(θ_A + θ̂) by θ̂ (``free``).

    ``free`` has the tensors that get gradients; the others, BatchNorm's statistics among them,
    are halfway without.
    """
    straight = {
        name: value + (free[name] - free[name].detach()) if name in free else value
        for name, value in permuted.items()
    }
    return interpolate(a, straight, 0.5)


def _run(taps: Taps, x: Tensor, state: State) -> Tensor:
    def nothing(layer: Layer) -> None: ...

    return taps.run(x, nothing, state)


def _mean_loss(taps: Taps, state: State, batches: Sequence[Batch], loss: Loss) -> float:
    with torch.no_grad():
        losses = [float(loss(_run(taps, x, state), y)) * len(y) for x, y in batches]
    mean = math.fsum(losses) / sum(len(y) for _, y in batches)
    _check_finite(mean)
    return mean


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"the loss halfway between A and π(B) is {value}: a smaller lr may help")


def _split(
    data: Iterable[Any],
    held_out: Iterable[Any] | None,
    batch_size: int | None,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Batch, list[Batch], int]:
    """What is trained on, what is held out in batches, and the size of a batch."""
    (x, y), first = _gathered(data, device)
    size = first if batch_size is None else batch_size
    if held_out is not None:
        held = _gathered(held_out, device)[0]
    else:
        if len(y) < 2:
            raise ValueError("one data point cannot be trained on and held out: give held_out")
        order = torch.randperm(len(y), generator=generator).to(y.device)
        count = max(1, round(HELD_OUT * len(y)))
        held = x[order[:count]], y[order[:count]]
        x, y = x[order[count:]], y[order[count:]]
    return (x, y), list(zip(held[0].split(size), held[1].split(size), strict=True)), size


def _gathered(data: Iterable[Any], device: torch.device) -> tuple[Batch, int]:
    """All batches as one, and the size of the first."""
    inputs, labels = [], []
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError("straight-through matching needs batches (inputs, labels)")
        if len(batch[0]) != len(batch[1]):
            raise ValueError(f"{len(batch[0])} inputs with {len(batch[1])} labels")
        inputs.append(batch[0].to(device))
        labels.append(batch[1].to(device))
    if not sum(map(len, labels)):
        raise ValueError("no data: matching needs at least one input")
    return (torch.cat(inputs), torch.cat(labels)), max(1, len(labels[0]))


def _digest(permutations: Mapping[str, Tensor]) -> bytes:
    return b"".join(permutations[group].numpy().tobytes() for group in sorted(permutations))


def _check_numbers(
    lr: float,
    momentum: float,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    every: int,
    sweeps: int,
) -> None:
    if epochs is not None and steps is not None:
        raise ValueError("epochs or steps, not both")
    for what, value in (
        ("epochs", epochs),
        ("steps", steps),
        ("batch_size", batch_size),
        ("every", every),
        ("sweeps", sweeps),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{what} must be at least 1, not {value}")
    if not (lr > 0 and 0 <= momentum < 1):
        raise ValueError(f"lr > 0 and 0 ≤ momentum < 1, not {lr} and {momentum}")
