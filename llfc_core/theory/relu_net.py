"""Theorem 1 on networks built for it: ReLU MLPs, the two conditions, pairs that satisfy them.

The letters and shapes are the paper's, one column per data point: W^(l) (d_l, d_{l-1}), b^(l)
(d_l,), H^(l) (d_l, n), H^(0) = X. Everything drawn here is float64 and small; for trained networks
and streams of data see `llfc_core.metrics`.

Two remarks on the paper. Definition 3 is stated for all alpha in the text and as
s(H_A + H_B) = s(H_A) + s(H_B) in the appendix (s the ReLU): the two are the same condition, either
holds exactly where the pre-activations of A and B have no opposite signs (ab >= 0). And the ones
of the bias term b 1^T run over the n data points, not over the d_l units.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ReluNet:
    """An MLP: the parameters of its L layers, and whether a ReLU follows the last one too."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    relu_last: bool = False

    @property
    def depth(self) -> int:
        """L."""
        return len(self.weights)

    def has_relu(self, layer: int) -> bool:
        """Whether a ReLU follows layer l = 1 ... L."""
        return layer < self.depth or self.relu_last


@dataclass(frozen=True)
class Features:
    """Pre-activations of layers 1 ... L and features of layers 0 ... L (the data first), (d, n)."""

    pre: tuple[Tensor, ...]
    post: tuple[Tensor, ...]


def forward(net: ReluNet, x: Tensor) -> Features:
    """All features of `net` on the data x (d_0, n)."""
    pre: list[Tensor] = []
    post = [x]
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases), 1):
        pre.append(weight @ post[-1] + bias[:, None])
        post.append(pre[-1].relu() if net.has_relu(layer) else pre[-1])
    return Features(tuple(pre), tuple(post))


def relu_net_of(module: nn.Module, state: Mapping[str, Tensor], x: Tensor) -> ReluNet | None:
    """The MLP that `module` with the weights `state` is, in float64 on the CPU, or None.

    x (n, ...) are inputs, flattened by the network. Linear layers in the order they run are taken
    to be the network, and are believed if they give its outputs on x. It is not changed.
    """
    if not x.is_floating_point():
        return None
    twin = copy.deepcopy(module).double().cpu().eval()
    twin.load_state_dict(dict(state))
    ran: list[nn.Linear] = []
    for part in twin.modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda layer, args, output: ran.append(layer))
    x = x.double().cpu()
    with torch.no_grad():
        output = twin(x.clone())
        biases = (m.bias if m.bias is not None else m.weight.new_zeros(len(m.weight)) for m in ran)
        net = ReluNet(tuple(m.weight.detach() for m in ran), tuple(b.detach() for b in biases))
        widths = [x.flatten(1).shape[1], *(len(w) for w in net.weights)]
        if not ran or [w.shape[1] for w in net.weights] != widths[:-1]:
            return None
        ours = forward(net, x.flatten(1).T).post[-1].T
    return net if ours.shape == output.shape and torch.allclose(ours, output) else None


def interpolate(a: ReluNet, b: ReluNet, alpha: float) -> ReluNet:
    """theta_alpha = alpha theta_A + (1 - alpha) theta_B."""

    def mix(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(alpha * p + (1 - alpha) * q for p, q in zip(ours, theirs))

    return ReluNet(mix(a.weights, b.weights), mix(a.biases, b.biases), a.relu_last)


def weak_additivity_residual(pre_a: Tensor, pre_b: Tensor, alpha: float) -> Tensor:
    """s(alpha a + (1 - alpha) b) - (alpha s(a) + (1 - alpha) s(b)), elementwise (Definition 3).

    Never positive (the ReLU is convex); zero at alpha 0 and 1, and at any alpha where ab >= 0.
    """
    z = alpha * pre_a + (1 - alpha) * pre_b
    return z.relu() - (alpha * pre_a.relu() + (1 - alpha) * pre_b.relu())


Family = Literal["null_space", "disjoint_support"]
Break = Literal["commutativity", "additivity"]


@dataclass(frozen=True)
class Theorem1Pair:
    """Two networks and the data on which they satisfy (or, if asked, just miss) Theorem 1."""

    a: ReluNet
    b: ReluNet
    x: Tensor


def theorem1_pair(
    generator: torch.Generator,
    widths: Sequence[int],
    n: int,
    family: Family,
    *,
    relu_last: bool = False,
    size: float = 0.3,
    broken: Break | None = None,
    broken_layer: int = 1,
) -> Theorem1Pair:
    """Draws a pair that satisfies both conditions of Theorem 1 on its data, without being trivial.

    The networks are built layer by layer, from the features H_A, H_B that the layers before have
    given on the data x ~ N(0, 1).

    **Commutativity**, dW dH = 0 with dW = W_A - W_B and dH = H_A - H_B, by one of two families:

    - `null_space`: dW = M (I - Q Q^T), Q an orthonormal basis of the columns of dH. Every row of dW
      is orthogonal to every column of dH, so the product is zero up to rounding. dW is dense; it is
      zero itself in a layer after the first where dH has full row rank, as it has when n >= d.
    - `disjoint_support`: half of each layer's units are *shared*, equal in A and B on the data; dH
      lives on the other, *free* units. dW is zero on the free units' columns, so each product is a
      sum of exact zeros, whatever n is. A shared unit stays shared because it has equal weights and
      biases in A and B and reads shared units only.

    In the first layer dH = 0, so there dW is free (on the rows that are not shared).

    **Weak additivity**, no opposite signs among the pre-activations of A and B, by the biases. For
    each unit let p, q (n,) be its pre-activations under A and B before the bias. Where for some
    0 < k < n the k data points of largest p are also those of largest q, b_A is put into the gap of
    p between its k-th and (k+1)-th value, b_B into that of q: the unit is active on the same k
    points in both and inactive on the others, with different biases. k is drawn among those
    possible; if there is none the unit is made active everywhere. No weight is touched by this, so
    the conditions do not disturb each other. A last layer without ReLU needs no such bias.

    Args:
        widths: d_0 ... d_L, hence L layers.
        n: data points.
        size: scale of dW relative to W.
        broken: break exactly one condition at layer `broken_layer` (1-based) and leave the other
            intact everywhere: "commutativity" draws dW dense there (nothing to break in layer 1);
            "additivity" gives one unit other active points in A than in B (layers with a ReLU).
    """
    if len(widths) < 2 or n < 2:
        raise ValueError("at least one layer and two data points")
    depth = len(widths) - 1
    if broken == "commutativity" and broken_layer == 1:
        raise ValueError("layer 1 always commutes: its inputs are the data in both networks")
    if broken == "additivity" and broken_layer == depth and not relu_last:
        raise ValueError("the last layer has no ReLU to break additivity at")
    x = _normal(generator, widths[0], n)
    h_a = h_b = x
    shared_in = torch.ones(widths[0], dtype=torch.bool)  # the data is the same in A and B
    layers: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for layer, (d_in, d_out) in enumerate(pairwise(widths), 1):
        weight = _normal(generator, d_out, d_in) * (2 / d_in) ** 0.5
        change = size * _normal(generator, d_out, d_in) * (2 / d_in) ** 0.5
        shared_out = torch.zeros(d_out, dtype=torch.bool)
        commutes = not (broken == "commutativity" and layer == broken_layer)
        if family == "disjoint_support":
            # A network's outputs need no shared units, nothing comes after them.
            shared_out[: d_out // 2 if layer < depth else 0] = True
            weight[shared_out[:, None] & ~shared_in] = 0
            change[shared_out] = 0
            if commutes:
                change[:, ~shared_in] = 0
        elif commutes:
            change = _orthogonal_to_columns(change, h_a - h_b)
        weight_b = weight - change
        p, q = weight @ h_a, weight_b @ h_b
        if layer < depth or relu_last:
            disagree = broken == "additivity" and layer == broken_layer
            bias_a, bias_b = _biases_that_agree(generator, p, q, shared_out, disagree)
        else:
            bias_a, bias_b = _normal(generator, d_out), _normal(generator, d_out)
            bias_b = torch.where(shared_out, bias_a, bias_b)
        h_a, h_b = (p + bias_a[:, None]).relu(), (q + bias_b[:, None]).relu()
        shared_in = shared_out
        layers.append((weight, bias_a, weight_b, bias_b))
    weights_a, biases_a, weights_b, biases_b = zip(*layers)
    return Theorem1Pair(
        ReluNet(weights_a, biases_a, relu_last), ReluNet(weights_b, biases_b, relu_last), x
    )


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _orthogonal_to_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """`rows` (m, d) minus their part in the span of `columns` (d, n)."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    q = u[:, s > 1e-12 * s.max().clamp_min(1e-300)]
    # Twice: the second pass takes out what rounding left of the first.
    for _ in range(2):
        rows = rows - (rows @ q) @ q.T
    return rows


def _biases_that_agree(
    generator: torch.Generator, p: Tensor, q: Tensor, shared: Tensor, disagree: bool
) -> tuple[Tensor, Tensor]:
    """Biases (d,), (d,) with p + b_A and q + b_B (d, n) of equal sign everywhere.

    Shared units get one bias for both. With `disagree`, the first unit that is not shared is on for
    every point under A and off for some (all, if its q is constant) under B.
    """
    biases: list[tuple[float, float]] = []
    pending = disagree
    for unit in range(len(p)):
        ascending_p, ascending_q = p[unit].sort().values, q[unit].sort().values
        splits = _common_splits(p[unit], q[unit])
        if pending and not shared[unit]:
            bias = _above_all(ascending_p), _inside_widest_gap(generator, ascending_q)
            pending = False
        elif splits:
            k = splits[int(torch.randint(len(splits), (), generator=generator))]
            bias = _inside_gap(generator, ascending_p, k), _inside_gap(generator, ascending_q, k)
        else:
            bias = _above_all(ascending_p), _above_all(ascending_q)
        biases.append((bias[0], bias[0]) if shared[unit] else bias)
    both = torch.tensor(biases, dtype=torch.float64)
    return both[:, 0], both[:, 1]


def _common_splits(p: Tensor, q: Tensor, gap: float = 1e-3) -> list[int]:
    """The 0 < k < n for which p and q (n,) have the same k smallest points, with a gap above."""
    order_p, order_q = p.argsort(), q.argsort()
    splits = []
    for k in range(1, len(p)):
        same = set(order_p[:k].tolist()) == set(order_q[:k].tolist())
        wide = all(
            float(v[order[k]] - v[order[k - 1]]) > gap for v, order in ((p, order_p), (q, order_q))
        )
        if same and wide:
            splits.append(k)
    return splits


def _inside_gap(generator: torch.Generator, ascending: Tensor, k: int) -> float:
    """Minus a value well between the k-th and (k+1)-th smallest."""
    t = 0.25 + 0.5 * float(torch.rand((), generator=generator))
    low, high = float(ascending[k - 1]), float(ascending[k])
    return -(low + t * (high - low))


def _inside_widest_gap(generator: torch.Generator, ascending: Tensor) -> float:
    """Off for the points below the widest gap, on above; off for all if there is no gap."""
    gaps = ascending.diff()
    if float(gaps.max()) < 1e-3:
        return -float(ascending[-1]) - 0.1
    return _inside_gap(generator, ascending, int(gaps.argmax()) + 1)


def _above_all(ascending: Tensor) -> float:
    """Minus a value below the smallest: active on every point."""
    return 0.1 - float(ascending[0])
