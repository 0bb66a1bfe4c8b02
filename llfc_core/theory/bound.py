"""Approximate Theorem 1: a bound of the LLFC error by the residuals of its two conditions.

Theorem 1 says that LLFC holds with c = 1 if weak additivity and commutativity hold exactly; the
paper leaves open what follows if they hold roughly. With H_A, H_B the features of A and B and
z = alpha H_A + (1 - alpha) H_B, the LLFC error of layer l is E_l = |f^(l)(theta_alpha) - z^(l)| and

    E_l <= a_l + c_l + |W_alpha (f^(l-1)(theta_alpha) - z^(l-1))|       (one step)
        <= a_l + c_l + |W_alpha|_2 E_{l-1},    E_0 = 0                   (unrolled)

    a_l = |s(alpha p_A + (1 - alpha) p_B) - alpha s(p_A) - (1 - alpha) s(p_B)|   weak additivity
    c_l = alpha (1 - alpha) |(W_A - W_B)(H_A^(l-1) - H_B^(l-1))|                 commutativity

with p the pre-activations and s the ReLU. Norms are Frobenius norms over the data or, per data
point, Euclidean norms of columns; |W_alpha|_2 is the largest singular value. Proof, relative form
and how tight it is: docs/approximate-theorem1.md.

Letters and shapes are the paper's, as in `llfc_core.theory`: one column per data point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llfc_core.metrics.low_rank import squared_singular_values
from llfc_core.theory.qap import commutativity_residual
from llfc_core.theory.relu_net import ReluNet, forward, interpolate, weak_additivity_residual


@dataclass(frozen=True)
class LLFCBound:
    """Layers l = 1 ... L along the first axis: (L,) over the data, (L, n) per data point."""

    error: Tensor
    """E_l, measured."""
    additivity: Tensor
    """a_l; 0 for a last layer without ReLU."""
    commutativity: Tensor
    """c_l, the factor alpha (1 - alpha) included; 0 in the first layer."""
    one_step: Tensor
    """The bound of E_l that measures what the layer before hands on. Never above `unrolled`."""
    unrolled: Tensor
    """The bound of E_l by the residuals of layers 1 ... l and spectral norms alone."""
    target: Tensor
    """|z_l|, for the relative error E_l / |z_l|."""


def llfc_bound(
    a: ReluNet, b: ReluNet, x: Tensor, alpha: float, *, per_point: bool = False
) -> LLFCBound:
    """Measures E_l and both its bounds on the data x (d_0, n), in the networks' precision.

    The inequalities hold to rounding of that precision; use float64 networks to assert them.
    """
    f_a, f_b = forward(a, x), forward(b, x)
    mid = interpolate(a, b, alpha)
    f = forward(mid, x)

    def norm(t: Tensor) -> Tensor:
        return t.norm(dim=0) if per_point else t.norm()

    errors = [p - (alpha * q + (1 - alpha) * r) for p, q, r in zip(f.post, f_a.post, f_b.post)]
    additivity, commutativity, handed_on, spectral = [], [], [], []
    for layer in range(a.depth):
        residual = weak_additivity_residual(f_a.pre[layer], f_b.pre[layer], alpha)
        additivity.append(norm(residual if a.has_relu(layer + 1) else torch.zeros_like(residual)))
        defect = commutativity_residual(
            a.weights[layer], b.weights[layer], f_a.post[layer], f_b.post[layer]
        )
        commutativity.append(alpha * (1 - alpha) * norm(defect))
        handed_on.append(norm(mid.weights[layer] @ errors[layer]))
        spectral.append(squared_singular_values(mid.weights[layer])[0].sqrt())
    a_l, c_l = torch.stack(additivity), torch.stack(commutativity)
    return LLFCBound(
        error=torch.stack([norm(e) for e in errors[1:]]),
        additivity=a_l,
        commutativity=c_l,
        one_step=a_l + c_l + torch.stack(handed_on),
        unrolled=unrolled_bound(a_l, c_l, spectral),
        target=torch.stack(
            [norm(alpha * q + (1 - alpha) * r) for q, r in zip(f_a.post[1:], f_b.post[1:])]
        ),
    )


def unrolled_bound(
    additivity: Tensor, commutativity: Tensor, spectral: Sequence[Tensor | float]
) -> Tensor:
    """B_l = a_l + c_l + |W_alpha^(l)|_2 B_{l-1}, B_0 = 0: a sum over the layers up to l.

    additivity, commutativity: (L, ...) residual norms a_l and c_l (alpha (1 - alpha) included);
    spectral: L operator norms of the layers at theta_alpha. Convolutions, or whatever is linear,
    enter by theirs. Returns (L, ...).
    """
    bounds: list[Tensor] = []
    below = torch.zeros_like(additivity[0])
    for a_l, c_l, gain in zip(additivity, commutativity, spectral, strict=True):
        below = a_l + c_l + gain * below
        bounds.append(below)
    return torch.stack(bounds)


def cosine_gap_bound(relative_error: Tensor) -> Tensor:
    """The largest 1 - cos(f, z) that |f - z| <= e |z| allows: 1 - sqrt(1 - e^2) for e <= 1.

    relative_error: e = E_l / |z_l|, any shape. Attained: f tangent to the ball of radius e |z|
    around z. For e > 1 the ball contains the origin and every direction: 2.
    """
    e2 = relative_error.square()
    # 1 - sqrt(1 - e^2) written without its cancellation for small e.
    inside = e2 / (1 + (1 - e2).clamp_min(0).sqrt())
    return torch.where(relative_error <= 1, inside, 2.0)
