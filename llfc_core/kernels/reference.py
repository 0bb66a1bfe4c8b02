"""The straightforward way: every tensor built, in float64, one α after the other.

Oracles of the tests, and what the benchmarks set beside the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def llfc(
    features: Sequence[Tensor], a: Tensor, b: Tensor, alphas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """1 − cosine_α and coef_α ``(K, n)`` of the K features ``(n, d)`` by their definitions.

    1 − cos as ‖f/‖f‖ − z/‖z‖‖²/2, which loses no digits however small it is.
    """
    defects, slopes = [], []
    for feature, alpha in zip(features, alphas, strict=True):
        f, z = feature.double(), alpha * a.double() + (1 - alpha) * b.double()
        f_norm, z_norm = f.norm(dim=1), z.norm(dim=1)
        cosine = (f * z).sum(dim=1) / (f_norm * z_norm)
        difference = f / f_norm[:, None] - z / z_norm[:, None]
        defects.append(difference.square().sum(dim=1) / 2)
        slopes.append(f_norm * cosine / z_norm)
    return torch.stack(defects), torch.stack(slopes)


def cosines(
    features: Sequence[Tensor], a: Tensor, b: Tensor, alphas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The same as one would write it first: cosines and norms, in float64."""
    defects, slopes = [], []
    for feature, alpha in zip(features, alphas, strict=True):
        f, z = feature.double(), alpha * a.double() + (1 - alpha) * b.double()
        cosine = torch.cosine_similarity(f, z, dim=1)
        defects.append(1 - cosine)
        slopes.append(f.norm(dim=1) * cosine / z.norm(dim=1))
    return torch.stack(defects), torch.stack(slopes)


def dist_sigma(a: Tensor, b: Tensor, points: int = 21) -> Tensor:
    """Dist_σ ``(n,)`` as the largest of its values at ``points`` values of α in [0, 1]."""
    a, b = a.double(), b.double()
    best = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for i in range(1, points - 1):
        alpha = i / (points - 1)
        u = (alpha * a + (1 - alpha) * b).relu()
        v = alpha * a.relu() + (1 - alpha) * b.relu()
        distance = (u - v).square().sum(dim=1) / (u.norm(dim=1) * v.norm(dim=1))
        best = torch.maximum(best, distance.nan_to_num(0.0))
    return best


def commutativity(
    apply: torch.nn.Module | object, w_a: Tensor, w_b: Tensor, h_a: Tensor, h_b: Tensor
) -> Tensor:
    """dist(W_A H_A + W_B H_B, W_A H_B + W_B H_A): the four products of Definition 4, float64.

    ``apply(w, h)`` is the layer's linear map.
    """
    w_a, w_b, h_a, h_b = (t.double() for t in (w_a, w_b, h_a, h_b))
    left = apply(w_a, h_a) + apply(w_b, h_b)  # type: ignore[operator]
    right = apply(w_a, h_b) + apply(w_b, h_a)  # type: ignore[operator]
    return (left - right).square().sum() / (left.norm() * right.norm())


def lmc(logits: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and error ``(K, n)`` of K logits ``(n, classes)``, float64."""
    losses, wrong = [], []
    for z in logits:
        log_p = torch.log_softmax(z.double(), dim=1)
        own = z.gather(1, labels[:, None])
        others = z.scatter(1, labels[:, None], -torch.inf)
        losses.append(-log_p.gather(1, labels[:, None])[:, 0])
        wrong.append((own <= others).any(dim=1).double())
    return torch.stack(losses), torch.stack(wrong)
