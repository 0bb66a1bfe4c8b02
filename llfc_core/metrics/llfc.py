"""cosine_α and coef_α of Section 4 and Appendix B.2, from inner products alone.

With a = f⁽ℓ⁾(θ_A; x), b = f⁽ℓ⁾(θ_B; x), f = f⁽ℓ⁾(θ_α; x) and z = αa + (1−α)b,

    ⟨f, z⟩ = α⟨f, a⟩ + (1−α)⟨f, b⟩
    ‖z‖²   = α²⟨a, a⟩ + 2α(1−α)⟨a, b⟩ + (1−α)²⟨b, b⟩

so z is never built. `llfc_core.kernels.dots` takes the three products with f of all α in one read
of the features; in float64, in which they are exact, so that 1 − cos is right to some 1e-15 for any
number of coordinates (cosines taken in float32 are off by 0.4 of 1 − cos = 1e-5 at d = 65,536).

The paper's cosine is signed, so it is signed here.

**Undefined values** are NaN, and counted by `Measurement.undefined`: where a norm is zero, and
where αa and (1−α)b cancel so far (`CANCELLED`) that what is left of z is rounding, whose direction
means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llfc_core.kernels import pair_sums

# ‖z‖² below this share of ‖αa‖² + ‖(1−α)b‖² counts as 0. Features are float32, each entry with an
# error of some 2⁻²⁴ of itself: where ‖z‖ is 1e-6 of its parts, 6% of z is that error.
CANCELLED = 1e-12


@dataclass(frozen=True, eq=False)
class Dots:
    """⟨a,a⟩, ⟨a,b⟩, ⟨b,b⟩ per data point, float64 ``(n,)`` each: all that is kept of A and B."""

    aa: Tensor
    ab: Tensor
    bb: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Dots:
        """Those of features ``(n, d)``, however large: what is not finite is given as it is."""
        return cls(*pair_sums(a, b, check=False)[:, :3].unbind(1))

    def one_minus_cos_ab(self) -> Tensor:
        """1 − cosine_{A,B} ``(n,)``; NaN where a norm is zero."""
        return 1 - _defined(self.ab, self.aa * self.bb) / (self.aa * self.bb).sqrt()

    def zz(self, alpha: float) -> Tensor:
        """‖αa + (1−α)b‖² ``(n,)``; 0 where the two terms cancel (`CANCELLED`)."""
        rest = 1 - alpha
        parts = alpha**2 * self.aa + rest**2 * self.bb
        zz = parts + 2 * alpha * rest * self.ab
        return torch.where(zz <= CANCELLED * parts, 0.0, zz)


def one_minus_cos(ends: Dots, fa: Tensor, fb: Tensor, ff: Tensor, alpha: float) -> Tensor:
    """1 − cosine_α ``(n,)`` from ⟨f,a⟩, ⟨f,b⟩, ⟨f,f⟩; NaN where ‖f‖ is zero, or z is or cancels."""
    squares = ff * ends.zz(alpha)
    return 1 - _defined(alpha * fa + (1 - alpha) * fb, squares) / squares.sqrt()


def coef(ends: Dots, fa: Tensor, fb: Tensor, alpha: float) -> Tensor:
    """coef_α = ‖f‖ cosine_α / ‖z‖ = ⟨f,z⟩ / ‖z‖² ``(n,)``; NaN where ‖z‖ is zero or z cancels.

    It estimates 1/c of Definition 2, not c.
    """
    zz = ends.zz(alpha)
    return _defined(alpha * fa + (1 - alpha) * fb, zz) / zz


def _defined(numerator: Tensor, squares: Tensor) -> Tensor:
    """The numerator, NaN where a squared norm is zero (or below, by rounding)."""
    return torch.where(squares > 0, numerator, torch.nan)
