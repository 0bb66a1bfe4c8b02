"""Dist_σ: how far a ReLU layer is from being additive along the path between two modes.

Definition 3 asks, for pre-activations a = h̃_A and b = h̃_B of one data point and every α in [0, 1],

    σ(αa + (1−α)b) = ασ(a) + (1−α)σ(b),        σ = ReLU.                                (7)

Write U for its left side, V for its right side and dist(x, y) = ‖x − y‖² / (‖x‖·‖y‖). §5.1 measures

    Dist_σ(a, b) = max_{α ∈ [0, 1]} dist(U(α), V(α)),

the maximum itself, not its value at α = ½ (which is what the paper's published code computes).

* `dist_sigma`            the exact maximum, O(d log d) a point.
* `dist_sigma_histogram`  lower and upper bounds in one O(d + bins) pass, for large d.
* `dist_sigma_at`         the definition at one given α, spelled out.

On a CPU with a compiler the first two run in C (`llfc_core/kernels/kernels.c`), the same algorithm
point by point; what is written here in eager torch serves all other devices, and is its oracle.

**Zero norms.** At α = 0 and α = 1 the two sides are the same vector and the distance is 0 by
definition. Where U = V it is 0 as well, also when both are zero. V vanishes inside (0, 1) only if
a, b ≤ 0, and then U does too. So what is left is U = 0 ≠ V: e.g. a = (1, −1), b = (−1, 1), α = ½.
The ratio is unbounded there, whether U vanishes on an interval or at one α only, and Dist_σ does
not exist: the point gets `distance = inf` and `undefined = True`, so that a mean taken over it
cannot pass for a number. Leave such points out and report how many there were. A norm is zero if
rounding cannot tell it from zero (‖U‖ ≤ 2e-15·‖U − V‖, that is, beyond a distance of about 5e14).

**Three facts that the algorithms rest on.**

1. *Only sign disagreements count.* Where a_j·b_j ≥ 0 the two sides agree. Elsewhere they differ by
   min(α|a_j|, (1−α)|b_j|), with its kink at τ_j = |b_j| / (|a_j| + |b_j|), where coordinate j of
   αa + (1−α)b changes sign. Between neighbouring kinks N = ‖U − V‖², Q = ‖U‖² and P = ‖V‖² are
   quadratics in α. Before the first kink and after the last one dist is monotone, so the maximum
   lies between them.
2. *Dist_σ(s·a, t·b) = Dist_σ(a, b) for s, t > 0.* U and V are homogeneous in (p, q) = (α, 1−α), so
   scaling a or b only moves the α at which things happen. a and b are brought to a common scale
   first: overflow and networks of unlike scale are then no concern.
3. *Nothing is subtracted.* On a segment each of N, Q, P is a sum of squares of linear functions
   that keep their sign there, so its three Bernstein coefficients are sums of non-negative terms,
   moved from kink to kink by recurrences with positive terms. Hence no cancellation where ‖U‖ gets
   small, and, for F² = N² / (QP) with quartic Bernstein coefficients c_i of N² and d_i of QP, a
   bound: F² is a weighted mean of the c_i/d_i, so F² ≤ max_i c_i/d_i. Its error is quadratic in the
   length of the segment, so that branch and bound needs few halvings, and no quartic is solved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink, pad

from llfc_core import kernels
from llfc_core.kernels import native

__all__ = ["WeakAdditivity", "dist_sigma", "dist_sigma_at", "dist_sigma_histogram"]

_CHUNK = 2**16  # coordinates worked on at a time by a CPU: what its caches hold
_ACCELERATED = 8  # times as many elsewhere, where launches cost: temporaries stay below 256 MB

_TOLERANCE = 1e-13  # relative, on Dist_σ: the search ends when nothing can exceed the best by more
_ZERO_NORM = (8 * torch.finfo(torch.float64).eps) ** 2
_NEGLIGIBLE = 1e-60  # relative to the largest entry of a vector: keeps N² and QP in float64's range

Quadratic = tuple[Tensor, Tensor, Tensor]
"""Bernstein coefficients of a quadratic on a segment: its ends are the outer two."""


@dataclass(frozen=True, eq=False)
class WeakAdditivity:
    """Dist_σ of n data points; every tensor is `(n,)`, on the device of the pre-activations.

    distance: float64 ≥ 0, never NaN; inf where undefined.
    alpha: float64 in [0, 1]. An α where `distance` is taken on, rounded to float64; the α at which
        U vanishes where undefined; 0 where distance is 0 (any α would do).
    undefined: bool. Dist_σ does not exist by the zero-norm policy (see the module).
    upper: float64. distance ≤ Dist_σ ≤ upper. Equal to `distance` for the exact maximum.
    """

    distance: Tensor
    alpha: Tensor
    undefined: Tensor
    upper: Tensor


def dist_sigma(a: Tensor, b: Tensor) -> WeakAdditivity:
    """Dist_σ(a, b), the exact maximum over α ∈ [0, 1], for each of n data points (§5.1).

    a, b: `(n, d)`, floating point, the pre-activations of modes A and B. Everything is done in
    float64; half precision and float32 are exact in it.

    The result is the maximum to a relative 1e-13 plus rounding, which is some 1e-15·(1 + Dist_σ)
    relative (where ‖U‖ ≪ ‖V‖, U itself is known no better). `alpha` is the caller's α; where a and
    b are of very unlike scale it lies so near to 0 or 1 that the last digits of α itself limit what
    `dist_sigma_at` can reproduce. Entries below 1e-60 of their vector's largest count as 0.

    Working memory: compiled (`llfc_core.kernels.native`) some 100·d bytes a thread; in eager torch
    points are taken in chunks, below 256 MB (on a CPU 32 MB) for any n, and a point takes 300·d.
    Raises ValueError for unlike shapes or devices, tensors that are not 2-D, and entries that are
    not finite; TypeError for anything but real floating point.
    """
    return _in_chunks(_exact, a, b, bins=0)


def dist_sigma_histogram(
    a: Tensor, b: Tensor, bins: int = 128, rtol: float = 5e-3
) -> WeakAdditivity:
    """Dist_σ(a, b) between bounds, in one O(d + bins) pass a point: for d in the ten thousands.

    a, b: as for `dist_sigma`. bins ≥ 2: N, Q, P are exact at bins + 1 values of α, uniform in
    β = α‖a‖ / (α‖a‖ + (1−α)‖b‖) (so β = α for ‖a‖ = ‖b‖). `distance` is the largest value there;
    `upper` bounds what may happen in between: a coordinate whose kink lies inside a cell is given
    its larger branch in N and is left out of Q. Both are off by O(1/bins²); for Gaussian
    pre-activations, d = 65,536 and 128 bins, `distance` by 0.02 % and `upper` by 0.1 % at the worst
    of a few hundred points.

    Points with upper > (1 + rtol)·distance (sparse or short vectors, ‖U‖ near 0, undefined points
    whose U is not 0 on the grid) are handed to `dist_sigma`, so that the result always satisfies
    distance ≤ Dist_σ ≤ upper ≤ (1 + rtol)·distance, and `undefined` is that of `dist_sigma`.
    rtol = inf keeps the one pass: an undefined point may then show by a large `upper` only.

    Memory and errors: as for `dist_sigma`, and ValueError for bins < 2 or rtol < 0.
    """
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    if not rtol >= 0:
        raise ValueError(f"rtol must be at least 0, got {rtol}")

    result = _in_chunks(partial(_histogram, bins=bins), a, b, bins=bins)
    loose = result.upper > (1 + rtol) * result.distance
    if rtol < float("inf") and bool(loose.any()):
        exact = dist_sigma(a[loose], b[loose])
        for ours, theirs in zip(_fields(result), _fields(exact), strict=True):
            ours[loose] = theirs
    return result


def dist_sigma_at(a: Tensor, b: Tensor, alpha: float | Tensor) -> Tensor:
    """dist(σ(αa + (1−α)b), ασ(a) + (1−α)σ(b)), both sides built in float64: `(n,)` float64.

    a, b: as for `dist_sigma`. alpha: a number or `(n,)`, one per point, in [0, 1]. The zero-norm
    policy: 0 where the two sides are equal, inf where only one of them is zero.

    Takes memory of several (n, d) tensors in float64. Errors: as for `dist_sigma`, and ValueError
    for an α outside [0, 1] or of another shape.
    """
    a, b = _checked(a, b)
    α = torch.as_tensor(alpha, dtype=torch.float64, device=a.device).detach()
    if α.dim() > 1 or (α.dim() == 1 and α.shape != a.shape[:1]):
        raise ValueError(f"alpha must be a number or one per point ({len(a)}), got {(*α.shape,)}")
    if not bool(((α >= 0) & (α <= 1)).all()):
        raise ValueError("alpha must lie in [0, 1]")
    if a.numel() == 0:
        return _zero(a).distance
    α = α.reshape(-1, 1)
    # One power of two for both: it leaves the ratio as it is and its squares within range.
    scale = torch.maximum(_power_of_two(a.double()), _power_of_two(b.double()))
    a, b = a.double() / scale, b.double() / scale
    u = (α * a + (1 - α) * b).relu()
    v = α * a.relu() + (1 - α) * b.relu()
    return _ratio((u - v).square().sum(1), u.norm(dim=1) * v.norm(dim=1))


# ------------------------------------------------------------------------------- inputs and chunks


def _fields(result: WeakAdditivity) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return result.distance, result.alpha, result.undefined, result.upper


def _zero(a: Tensor) -> WeakAdditivity:
    zero = a.new_zeros(len(a), dtype=torch.float64)
    return WeakAdditivity(zero, zero.clone(), zero > 0, zero.clone())


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.dim() != 2:
        raise ValueError(
            f"pre-activations must both be (n, d): got {(*a.shape,)} and {(*b.shape,)}"
        )
    if a.device != b.device:
        raise ValueError(f"pre-activations must be on one device: got {a.device} and {b.device}")
    for x in (a, b):
        if not x.is_floating_point():
            raise TypeError(f"pre-activations must be real floating point, got {x.dtype}")
    return a.detach(), b.detach()


def _in_chunks(
    kernel: Callable[[Tensor, Tensor], WeakAdditivity], a: Tensor, b: Tensor, bins: int
) -> WeakAdditivity:
    """The compiled kernel where there is one; else ``kernel`` on `_CHUNK` coordinates at a time.

    bins: of the histogram, 0 for the exact maximum. A point counts for 8·bins coordinates or more.
    """
    a, b = _checked(a, b)
    n, d = a.shape
    if n == 0 or d == 0:  # no coordinate, no disagreement
        return _zero(a)
    if kernels.path(a) == "native":
        distance, alpha, upper = native.dist_sigma(a, b, bins).unbind(1)
        return WeakAdditivity(distance, alpha, distance.isinf(), upper)
    size = _CHUNK if a.device.type == "cpu" else _CHUNK * _ACCELERATED
    size = max(1, size // max(d, 8 * bins))
    parts = [
        _fields(kernel(rows_a.double().contiguous(), rows_b.double().contiguous()))
        for rows_a, rows_b in zip(a.split(size), b.split(size), strict=True)
    ]
    distance, alpha, undefined, upper = (torch.cat(column) for column in zip(*parts, strict=True))
    return WeakAdditivity(distance, alpha, undefined, upper)


def _power_of_two(x: Tensor) -> Tensor:
    """The power of two just below the largest |entry| of each row of x `(n, d)`, d > 0: `(n, 1)`.

    Dividing by it is exact, so that coordinates with one and the same ratio b_j / a_j keep it, and
    with it their common kink. Rows of zeros get 1. Raises ValueError if an entry is not finite.
    """
    top = x.abs().amax(dim=1, keepdim=True)
    if not bool(top.isfinite().all()):
        raise ValueError("pre-activations must be finite: found inf or NaN")
    mantissa, _ = torch.frexp(top)  # in [½, 1)
    return torch.where(top > 0, top / (2 * mantissa), 1.0)


def _rescaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """x over its rows' powers of two, without the negligible entries; and those powers `(n, 1)`."""
    scale = _power_of_two(x)
    return hardshrink(x / scale, _NEGLIGIBLE), scale


def _agreeing(a: Tensor, b: Tensor, kinked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """⟨σ(a), σ(a)⟩, ⟨σ(a), σ(b)⟩, ⟨σ(b), σ(b)⟩ over the coordinates without a kink: `(n, 1)`."""
    agreeing = ~kinked  # as a factor: a mask that follows no pattern is slow to branch on
    a, b = a.relu().mul_(agreeing), b.relu().mul_(agreeing)
    aa, ab, bb = (a * a).sum(1), (a * b).sum(1), (b * b).sum(1)
    return aa.unsqueeze(1), ab.unsqueeze(1), bb.unsqueeze(1)


def _to_alpha(p: Tensor, q: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """α of the caller's a, b from the weights p : q of the rescaled ones; p > 0."""
    return 1 / (1 + (q / p) * (scale_a / scale_b).squeeze(1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, both ≥ 0, under the zero-norm policy: 0/0 = 0, x/0 = inf."""
    return torch.where(numerator > 0, numerator / denominator, 0.0)


# ---------------------------------------------------------------- quadratics on a row of segments


def _blossoms(p: Tensor, q: Tensor, pp: Tensor, pq: Tensor | float, qq: Tensor) -> Quadratic:
    """pp·p² + 2·pq·p·q + qq·q² on the segments between neighbouring nodes (p_k, q_k).

    p, q: `(n or 1, m)`. pp, pq, qq ≥ 0: `(n, 1)`, or one value a segment, `(n, m−1)`.
    """
    p0, p1, q0, q1 = p[:, :-1], p[:, 1:], q[:, :-1], q[:, 1:]
    return (
        p0.square() * pp + 2 * p0 * q0 * pq + q0.square() * qq,
        p0 * p1 * pp + (p0 * q1 + p1 * q0) * pq + q0 * q1 * qq,
        p1.square() * pp + 2 * p1 * q1 * pq + q1.square() * qq,
    )


def _hinges(
    step: Tensor, m0: Tensor, m1: Tensor | float = 0.0, m2: Tensor | float = 0.0
) -> tuple[Tensor, Quadratic]:
    """Σ_j w_j²·(τ − τ_j)² over the hinges j that have opened, at each node and on each segment.

    step: `(n or 1, m−1)`, distances in τ of neighbouring nodes. m0, m1, m2: `(n, m)`, the sums of
    w_j², w_j²(t − τ_j) and w_j²(t − τ_j)² over the hinges that open between the previous node and
    node k (inclusive), with t the position of node k. Every term is ≥ 0.
    """
    w0 = m0.cumsum(1)
    opened = w0[:, :-1]
    w1 = (m1 + pad(step * opened, (1, 0))).cumsum(1)
    slope = w1[:, :-1]
    gained = step * (2 * slope + step * opened)
    w2 = (m2 + pad(gained, (1, 0))).cumsum(1)
    left = w2[:, :-1]
    return w2, (left, left + step * slope, left + gained)


def _mirrored(hinges: tuple[Tensor, Quadratic]) -> tuple[Tensor, Quadratic]:
    """What `_hinges` found on flipped nodes, for hinges that close as α grows."""
    at, (first, middle, last) = hinges
    return at.flip(1), (last.flip(1), middle.flip(1), first.flip(1))


def _sum(*terms: Quadratic) -> Quadratic:
    first, *rest = terms
    for term in rest:
        first = (first[0] + term[0], first[1] + term[1], first[2] + term[2])
    return first


def _inner_bound(n: Quadratic, q: Quadratic, p: Quadratic) -> Tensor:
    """max of c_i/d_i, i = 1, 2, 3, for F² = N²/(QP); i = 0 and 4 are the values at the ends."""
    n0, n1, n2 = n
    q0, q1, q2 = q
    p0, p1, p2 = p
    bound = _ratio(2 * n0 * n1, q0 * p1 + q1 * p0)
    bound = bound.maximum(_ratio(2 * (n0 * n2 + 2 * n1.square()), q0 * p2 + 4 * q1 * p1 + q2 * p0))
    return bound.maximum(_ratio(2 * n1 * n2, q1 * p2 + q2 * p1))


def _halves(f: Quadratic) -> tuple[Quadratic, Quadratic]:
    """The two halves of the segment, by de Casteljau."""
    left, right = (f[0] + f[1]) / 2, (f[1] + f[2]) / 2
    middle = (left + right) / 2
    return (f[0], left, middle), (middle, right, f[2])


def _pick(f: Quadratic, index: Tensor | tuple[Tensor, ...]) -> Quadratic:
    return f[0][index], f[1][index], f[2][index]


def _cat(f: Quadratic, g: Quadratic) -> Quadratic:
    return torch.cat((f[0], g[0])), torch.cat((f[1], g[1])), torch.cat((f[2], g[2]))


# --------------------------------------------------------------------------------- exact maximum


def _exact(a: Tensor, b: Tensor) -> WeakAdditivity:
    """`dist_sigma` on one chunk, float64 `(n, d)` with d > 0."""
    a, scale_a = _rescaled(a)
    b, scale_b = _rescaled(b)
    kinked = a * b < 0
    counts = kinked.sum(1)
    m = int(counts.max())
    if m == 0:
        return _zero(a)

    pp, pq, qq = _agreeing(a, b, kinked)

    # Kinks in order, by r = |b_j|/|a_j| = τ/(1−τ), as precise near τ = 1 as near τ = 0 and the same
    # float64 for the same ratio. All other coordinates sort behind; rows with fewer kinks than m
    # repeat their last one, with no weight.
    r = torch.where(kinked, b.abs() / a.abs(), torch.inf)
    r, order = r.sort(dim=1)
    r, order = r[:, :m], order[:, :m]
    real = r.isfinite()
    last = r.gather(1, (counts - 1).clamp_min(0).unsqueeze(1))
    last = torch.where(counts.unsqueeze(1) > 0, last, 1.0)
    r = torch.where(real, r, last)
    x = a.gather(1, order).mul_(real)
    y = b.gather(1, order).mul_(real).abs_()
    rising = x > 0  # U_j is 0 up to τ_j; else, falling, from τ_j on
    x = x.abs_()
    del a, b, order, real, kinked

    p, q = r / (1 + r), 1 / (1 + r)  # τ and 1 − τ
    step = (r[:, 1:] - r[:, :-1]) * q[:, 1:] * q[:, :-1]  # differences of τ, precise and ≥ 0
    del r

    weight = (x + y).square()
    up_at, up = _hinges(step, weight * rising)
    down_at, down = _mirrored(_hinges(step.flip(1), (weight * ~rising).flip(1)))
    q_at = up_at + down_at + p.square() * pp + 2 * p * q * pq + q.square() * qq
    q_on = _sum(up, down, _blossoms(p, q, pp, pq, qq))
    del weight, up, down, up_at, down_at

    x2, y2 = x.square(), y.square()
    pp = pp + (x2 * rising).sum(1, keepdim=True)
    qq = qq + (y2 * ~rising).sum(1, keepdim=True)
    p_at = p.square() * pp + 2 * p * q * pq + q.square() * qq
    p_on = _blossoms(p, q, pp, pq, qq)

    before = y2.cumsum(1)  # Σ b² over τ_j ≤ τ_k
    after = pad(x2.flip(1).cumsum(1).flip(1)[:, 1:], (0, 1))  # Σ a² over τ_j > τ_k, in order
    n_at = p.square() * after + q.square() * before
    n_on = _blossoms(p, q, after[:, :-1], 0.0, before[:, :-1])
    del x, y, x2, y2, rising, before, after, step

    q_at = q_at.masked_fill_(q_at <= _ZERO_NORM * n_at, 0.0)
    best, at = _ratio(n_at.square(), q_at * p_at).max(dim=1)
    at = at.unsqueeze(1)
    top = _search(
        best, p, q, p.gather(1, at).squeeze(1), q.gather(1, at).squeeze(1), n_on, q_on, p_on
    )
    best, p_best, q_best = top

    distance = best.sqrt()
    alpha = _to_alpha(p_best, q_best, scale_a, scale_b)
    alpha = torch.where(distance > 0, alpha, 0.0)
    return WeakAdditivity(distance, alpha, distance.isinf(), distance.clone())


def _search(
    best: Tensor,
    p: Tensor,
    q: Tensor,
    p_best: Tensor,
    q_best: Tensor,
    n_on: Quadratic,
    q_on: Quadratic,
    p_on: Quadratic,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raise `best` `(n,)`, the largest F² over the kinks, to the largest over the segments.

    Branch and bound: keep the segments whose bound is above the best value of their point, halve
    them, look at the middle, again. A segment's bound tends to its values, quadratically in its
    length, and the values at its ends and middle have entered `best`, so this ends.
    """
    slack = 1 + 2 * _TOLERANCE  # F² against Dist_σ
    keep = _inner_bound(n_on, q_on, p_on) > slack * best.unsqueeze(1)
    row, k = keep.nonzero(as_tuple=True)
    n_on, q_on, p_on = (_pick(f, (row, k)) for f in (n_on, q_on, p_on))
    p0, p1, q0, q1 = p[row, k], p[row, k + 1], q[row, k], q[row, k + 1]
    while len(row):
        p_mid, q_mid = (p0 + p1) / 2, (q0 + q1) / 2
        (n_l, n_r), (q_l, q_r), (p_l, p_r) = (_halves(f) for f in (n_on, q_on, p_on))

        value = _ratio(n_l[2].square(), q_l[2] * p_l[2])
        raised = best.scatter_reduce(0, row, value, "amax")
        hit = (value > best[row]) & (value == raised[row])
        p_best[row[hit]], q_best[row[hit]] = p_mid[hit], q_mid[hit]
        best = raised

        row = torch.cat((row, row))
        n_on, q_on, p_on = _cat(n_l, n_r), _cat(q_l, q_r), _cat(p_l, p_r)
        keep = _inner_bound(n_on, q_on, p_on) > slack * best[row]
        row = row[keep]
        n_on, q_on, p_on = (_pick(f, keep) for f in (n_on, q_on, p_on))
        p0, p1 = torch.cat((p0, p_mid))[keep], torch.cat((p_mid, p1))[keep]
        q0, q1 = torch.cat((q0, q_mid))[keep], torch.cat((q_mid, q1))[keep]
    return best, p_best, q_best


# ------------------------------------------------------------------------------------- histogram


def _histogram(a: Tensor, b: Tensor, bins: int) -> WeakAdditivity:
    """`dist_sigma_histogram` with rtol = inf on one chunk, float64 `(n, d)` with d > 0."""
    a, scale_a = _rescaled(a)
    b, scale_b = _rescaled(b)
    norm_a, norm_b = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (a, b))
    ratio = torch.where((norm_a > 0) & (norm_b > 0), norm_a / norm_b, 1.0)
    kinked = a * b < 0
    pp, pq, qq = _agreeing(a, b, kinked)
    # From here on b is ratio·b, as long as a.
    scale_b, pq, qq = scale_b / ratio, pq * ratio, qq * ratio.square()
    counts = kinked.sum(1)
    found = kinked.view(-1).nonzero().squeeze(1)
    x, y = a.view(-1)[found], b.view(-1)[found].abs_()
    del a, b, kinked, found
    y *= ratio.squeeze(1).repeat_interleave(counts)
    sums = _cell_sums(x, y, counts, bins)
    del x, y
    x2, y2, m0, m1, m2 = sums
    falls, rises = 0, 1

    p = torch.arange(bins + 1, dtype=torch.float64, device=m0.device).unsqueeze(0) / bins
    q = p.flip(1)
    step = m0.new_full((1, bins), 1 / bins)
    up_at, up = _hinges(step, *(pad(m[:, rises], (1, 0)) for m in (m0, m1, m2)))
    down_at, down = _mirrored(
        _hinges(step, *(pad(m[:, falls].flip(1), (1, 0)) for m in (m0, m1, m2)))
    )
    q_at = up_at + down_at + p.square() * pp + 2 * p * q * pq + q.square() * qq
    # On a cell: without the hinges inside it, a lower bound of Q.
    q_on = _sum(up, down, _blossoms(p, q, pp, pq, qq))
    pp = pp + x2[:, rises].sum(1, keepdim=True)
    qq = qq + y2[:, falls].sum(1, keepdim=True)
    p_at = p.square() * pp + 2 * p * q * pq + q.square() * qq
    p_on = _blossoms(p, q, pp, pq, qq)

    before = pad(y2.sum(1).cumsum(1), (1, 0))
    after = pad(x2.sum(1).flip(1).cumsum(1), (1, 0)).flip(1)
    n_at = p.square() * after + q.square() * before
    best, at = _ratio(n_at.square(), q_at * p_at).max(dim=1)

    # min(p|a_j|, q|b_j|) is at most either of the two, for the kinks inside a cell: two bounds.
    upper = torch.full_like(m0[:, 0], torch.inf)
    for i in (slice(None, -1), slice(1, None)):
        n_on = _blossoms(p, q, after[:, i], 0.0, before[:, i])
        bound = _inner_bound(n_on, q_on, p_on)
        for end in (0, 2):
            bound = bound.maximum(_ratio(n_on[end].square(), q_on[end] * p_on[end]))
        upper = upper.minimum(bound)

    distance = best.sqrt()
    alpha = _to_alpha(p[0, at], q[0, at], scale_a, scale_b)
    alpha = torch.where(distance > 0, alpha, 0.0)
    upper = upper.amax(1).sqrt().maximum(distance)
    return WeakAdditivity(distance, alpha, distance.isinf(), upper)


def _cell_sums(x: Tensor, y: Tensor, counts: Tensor, bins: int) -> list[Tensor]:
    """Sums over the kinked coordinates by point, direction (falling, rising) and cell of τ.

    x, y: a_j and |b_j| in one list, point after point. counts: `(n,)`, how many each point has.
    Returns five tensors `(n, 2, bins)`: the sums of a_j², b_j², w², w²s and w²s², w = |a_j| + |b_j|
    and s the distance in τ from the hinge to the edge of its cell on the open side: the right edge
    if it rises (a_j > 0), the left one if it falls.
    """
    n = len(counts)
    rising = x > 0
    width = x.abs() + y
    place = y / width * bins
    cell = place.floor().clamp_(max=bins - 1)
    place -= cell  # 0 to 1 in the cell
    reach = place.sub_(rising.double()).abs_().div_(bins)
    index = cell.long()
    index += (2 * torch.arange(n, device=x.device)).repeat_interleave(counts).add_(rising) * bins
    square, lever = width.square(), width * reach
    terms = (x.square(), y.square(), square, width * lever, lever.square())
    return [x.new_zeros(2 * bins * n).index_add_(0, index, t).view(n, 2, bins) for t in terms]
