"""Commutativity (Definition 4, Fig. 7 and 16-19): Dist_com, Dist_W, Dist_H and rho of one layer.

Definition 4 asks W_A H_A + W_B H_B (LHS) to equal W_A H_B + W_B H_A (RHS). Dist_com, which is
dist(LHS, RHS) with dist(x, y) = |x - y|^2 / (|x| |y|), measures by how much it does not. Two
identities save half of the work and all of the digits:

    D = (W_A - W_B)(H_A - H_B) = LHS - RHS,      S = (W_A + W_B)(H_A + H_B) = LHS + RHS,

so |LHS|^2 and |RHS|^2 are (|S|^2 +- 2<S, D> + |D|^2) / 4 and |LHS - RHS|^2 is |D|^2. Forming LHS
and RHS and subtracting loses digits in float32 when the modes differ by 1e-3, and all of them soon
after; D, a product of differences, keeps them. The bias is in both sides and cancels: it is left
out.

**Null values.** Dist_com is small whenever Dist_W and Dist_H are, so "Dist_com is negligible beside
them" says little by itself. rho = 4 Dist_com / (Dist_W Dist_H) takes that away. With W zero-mean
and without structure:

- small differences unrelated to W and H: |D|^2 = |dW|^2 |dH|^2 / d_in and |LHS|^2 = |RHS|^2 =
  4 |W|^2 |H|^2 / d_in on average, so rho is about 1 (`RHO_SMALL_UNSTRUCTURED`);
- unrelated modes: W_A, W_B independent of equal norm give Dist_W = 2, and |D|^2 = 2 |dH|^2,
  |LHS|^2 = |RHS|^2 = |H_A|^2 + |H_B|^2 per output on average, hence Dist_com = Dist_H for features
  of equal norm and rho = 2 (`RHO_UNRELATED`). For independent ReLUs of Gaussians Dist_H is
  2 - 2/pi = 1.36.

Commutativity beyond the null therefore means rho well below 1.

Library shapes: features are (n, d_in), the transpose of the paper's H (d_in, n).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.kernels import pair_sums

SUMS = ("DD", "SD", "SS", "dH_dH", "HA_HA", "HB_HB")
"""What the columns of the per-image sums are: |D|^2, <S, D>, |S|^2, |dH|^2, |H_A|^2, |H_B|^2."""

RHO_SMALL_UNSTRUCTURED = 1.0
RHO_UNRELATED = 2.0


class Distances(NamedTuple):
    """The four numbers of a layer, float64 tensors of the leading shape of the sums."""

    dist_com: Tensor
    dist_w: Tensor
    dist_h: Tensor
    rho: Tensor


@dataclass(frozen=True)
class Commutativity:
    """The four numbers of one layer over a data set, and the float64 sums they come from."""

    dist_com: float
    dist_w: float
    dist_h: float
    rho: float
    """4 Dist_com / (Dist_W Dist_H); NaN where that is undefined (see `distances`)."""
    sums: tuple[float, ...]
    """Totals over the images, in the order of `SUMS`."""
    weight_sums: tuple[float, ...]
    """|W_A - W_B|^2, |W_A|^2, |W_B|^2."""
    n: int
    """Images seen."""


def weight_sums(weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """|W_A - W_B|^2, |W_A|^2, |W_B|^2 as a float64 tensor (3,). The bias is not part of W."""
    a, b = weight_a.detach().double(), weight_b.detach().double()
    return torch.stack([(a - b).square().sum(), a.square().sum(), b.square().sum()])


def distances(sums: Tensor, weights: Tensor) -> Distances:
    """Dist_com, Dist_W, Dist_H and rho from sums over images. Pure, so a bootstrap can re-weight.

    Args:
        sums: (..., 6) float64, totals over images in the order of `SUMS`. For a bootstrap over the
            n images with multiplicities m (r, n), pass m @ per_image.
        weights: (..., 3) float64 from `weight_sums`, broadcast against the leading shape of `sums`.

    Zero norms: dist(0, 0) = 0, the two sides agree; dist(0, y) = inf for y != 0. rho is NaN, which
    passes no comparison, where Dist_W or Dist_H is 0 (nothing differs, so nothing can commute
    better than by chance) or infinite. NaN in the sums stays NaN.
    """
    if sums.shape[-1:] != (6,) or weights.shape[-1:] != (3,):
        raise ValueError(f"sums (..., 6) and weights (..., 3), not {sums.shape}, {weights.shape}")
    dd, sd, ss, dh, ha, hb = sums.double().unbind(-1)
    dw, wa, wb = weights.to(sums.device).double().unbind(-1)
    # Squared norms of LHS and RHS: not below zero but for rounding, when one of them vanishes.
    lhs = ((ss + 2 * sd + dd) / 4).clamp_min(0)
    rhs = ((ss - 2 * sd + dd) / 4).clamp_min(0)
    dist_com, dist_w, dist_h = _dist(dd, lhs, rhs), _dist(dw, wa, wb), _dist(dh, ha, hb)
    dist_com, dist_w, dist_h = torch.broadcast_tensors(dist_com, dist_w, dist_h)
    scale = dist_w * dist_h
    defined = torch.isfinite(scale) & (scale > 0)
    rho = torch.where(defined, 4 * dist_com / torch.where(defined, scale, 1.0), torch.nan)
    return Distances(dist_com, dist_w, dist_h, rho)


def _dist(difference: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """dist from the squared norms |x - y|^2, |x|^2, |y|^2; 0 where the difference is exactly 0."""
    return torch.where(difference == 0, 0.0, difference / (x.sqrt() * y.sqrt()))


class CommutativityAccumulator:
    """Streams the inputs of one layer and keeps six float64 sums per image.

    Give it the layer (for its kind and its stride, padding, padding_mode, dilation and groups; its
    own parameters are not read), the two modes' weights, then the two modes' inputs of that layer
    batch by batch. A layer whose inputs are the data itself has D = 0: the paper leaves the first
    layer out.

    For a convolution W H is the layer applied to the feature map, without bias, and every padding
    mode is linear in the feature map, so the factored form holds as it stands. H in Dist_H is the
    feature map itself, each entry counted once, not its unfolding, which would count an entry as
    often as windows see it.

    The layer is applied in the inputs' precision (at least float32, autocast off); squares and
    products are taken and summed in float64. The relative error of D is that of one layer
    application, however small the differences: 1e-6 in float32, about 1e-3 if the caller leaves
    TF32 on.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, weight_a: Tensor, weight_b: Tensor) -> None:
        """weight_a, weight_b: of the layer's weight shape; the shapes are checked (ValueError)."""
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise TypeError(f"commutativity is for Linear and Conv2d, not {type(layer).__name__}")
        for weight in (weight_a, weight_b):
            if weight.shape != layer.weight.shape:
                raise ValueError(
                    f"a weight is {tuple(weight.shape)}, the layer's {tuple(layer.weight.shape)}"
                )
        self.layer = layer
        self.weight_sums = weight_sums(weight_a, weight_b)
        a, b = weight_a.detach(), weight_b.detach()
        self._dtype = torch.promote_types(a.dtype, torch.float32)
        # Taken in float64, then rounded once: a difference of two float32 is then right to the ulp.
        self._difference = (a.double() - b.double()).to(self._dtype)
        self._sum = (a.double() + b.double()).to(self._dtype)
        self._batches: list[Tensor] = []

    @torch.no_grad()
    def update(self, h_a: Tensor, h_b: Tensor) -> None:
        """Adds a batch of this layer's inputs under A and under B, row i from the same image i.

        h_a, h_b: (n, d_in) or (n, ..., d_in) for a linear layer, (n, C, H, W) for a convolution.
        Raises ValueError if the shapes differ or are not these.
        """
        if h_a.shape != h_b.shape:
            raise ValueError(f"the inputs differ in shape: {h_a.shape} and {h_b.shape}")
        if isinstance(self.layer, nn.Conv2d):
            if h_a.ndim != 4:
                raise ValueError(f"a convolution's inputs are (n, C, H, W), not {h_a.shape}")
        elif h_a.ndim < 2:
            raise ValueError(f"a linear layer's inputs are (n, ..., d_in), not {h_a.shape}")
        dtype = torch.promote_types(h_a.dtype, self._dtype)
        a, b = h_a.to(dtype), h_b.to(dtype)
        with torch.autocast(a.device.type, enabled=False):
            dh = a - b
            d = apply_without_bias(self.layer, self._difference.to(dtype), dh)
            s = apply_without_bias(self.layer, self._sum.to(dtype), a + b)
        of_maps = pair_sums(d.flatten(1), s.flatten(1), check=False)
        of_features = pair_sums(a.flatten(1), b.flatten(1), check=False)
        # |dH|^2 from differences in float64: the layer had theirs rounded, which D answers for.
        order = (of_features[:, 3], of_features[:, 0], of_features[:, 2])
        self._batches.append(torch.cat([of_maps[:, :3], torch.stack(order, dim=1)], dim=1))

    @property
    def per_image(self) -> Tensor:
        """(n, 6) float64, the sums of each image so far in the order of `SUMS`, on its device."""
        if not self._batches:
            return torch.zeros(0, 6, dtype=torch.float64)
        if len(self._batches) > 1:
            self._batches = [torch.cat(self._batches)]
        return self._batches[0]

    def result(self, weights: Tensor | None = None) -> Commutativity:
        """The distances over all images seen, or with image i counted weights[i] times.

        weights: (n,), non-negative, any dtype. Raises ValueError before the first image or if the
        length is not n.
        """
        per_image = self.per_image
        n = len(per_image)
        if n == 0:
            raise ValueError("no image has been seen")
        if weights is None:
            totals = per_image.sum(0)
        elif weights.shape != (n,):
            raise ValueError(f"weights must be ({n},), not {tuple(weights.shape)}")
        else:
            totals = weights.to(per_image) @ per_image
        values = distances(totals, self.weight_sums)
        return Commutativity(
            dist_com=float(values.dist_com),
            dist_w=float(values.dist_w),
            dist_h=float(values.dist_h),
            rho=float(values.rho),
            sums=tuple(totals.tolist()),
            weight_sums=tuple(self.weight_sums.tolist()),
            n=n,
        )


def apply_without_bias(layer: nn.Linear | nn.Conv2d, weight: Tensor, h: Tensor) -> Tensor:
    """W H: `layer`'s linear map with `weight` (of the layer's weight shape) and no bias, on h."""
    if isinstance(layer, nn.Linear):
        return F.linear(h, weight)
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        h = F.pad(h, pads(layer), mode=layer.padding_mode)
        padding = (0, 0)
    return F.conv2d(h, weight, None, layer.stride, padding, layer.dilation, layer.groups)


def pads(layer: nn.Conv2d) -> list[int]:
    """The layer's padding as F.pad wants it: (left, right, top, bottom)."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    sides: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            # An odd total leaves its extra column on the far side, as F.conv2d(padding="same").
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(layer.padding[axis])] * 2
    return sides
