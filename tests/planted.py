"""Measurements with planted numbers, so that a verdict is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llfc_core.metrics import ALPHAS, Measurement


def measurement(
    *,
    n: int = 200,
    layers: Sequence[str] = ("fc1", "fc2", "fc3"),
    alphas: Sequence[float] = ALPHAS,
    link: str = "spawned",
    distance: float = 0.5,
    classes: int = 10,
    **values: Any,
) -> Measurement:
    """A good pair but for ``values``, which broadcast to ``(K, n)``, ``(L, K, n)`` or ``(L, n)``.

    Good: 5% error and 0.2 nats along the line, features that are interpolated exactly and differ
    between A and B.
    """
    depth, k = len(layers), len(alphas)
    wrong = (np.arange(n) < 0.05 * n).astype(float)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "error": ((k, n), wrong),
        "mixture_error": ((k, n), wrong),
        "loss": ((k, n), 0.2),
        "one_minus_cos": ((depth, k, n), 0.001),
        "coef": ((depth, k, n), 1.0),
        "one_minus_cos_ab": ((depth, n), 0.3),
        "dist_sigma": ((depth, n), [[0.01]] * (depth - 1) + [[np.nan]]),
        "stitched_error": (
            (depth, 2, n),
            np.stack([[wrong] * 2] * (depth - 1) + [np.full((2, n), np.nan)]),
        ),
        "commutativity": (
            (depth, 6, n),
            np.array([1e-4, 0.0, 4.0, 0.1, 1.0, 1.0])[:, None],
        ),
    }
    filled = {
        name: np.broadcast_to(np.asarray(values.pop(name, default), dtype=float), shape).copy()
        for name, (shape, default) in shapes.items()
    }
    assert not values, f"no such numbers: {sorted(values)}"
    ranks = {"weight_rank": np.full((depth, 2), 0.1), "feature_rank": np.full(depth, 0.1)}
    constants = {
        "guessing": np.log([classes]),
        "weights": np.tile([0.1, 1.0, 1.0], (depth, 1)),
        "stable_rank": np.tile([5.0, 10.0], (depth, 1)),
        **ranks,
    }
    return Measurement(
        link=link,
        layers=tuple(layers),
        linear=tuple(layers),
        alphas=tuple(alphas),
        values=filled,
        constants=constants,
        distance=distance,
        classes=classes,
        relus=tuple(layers[:-1]),
        dims=(16,) * depth,
    )


def bump(alphas: Sequence[float] = ALPHAS) -> np.ndarray:
    """``(K, 1)``: 0 at both ends and 1 at α = ½."""
    return np.array([4 * a * (1 - a) for a in alphas])[:, None]
