"""What the paper proves, in float64 and in its own letters: networks, conditions, bounds, QAPs.

Shapes are the paper's, one column per data point: W⁽ℓ⁾ (d_ℓ, d_{ℓ−1}), H⁽ℓ⁾ (d_ℓ, n). For trained
networks and streams of data see `llfc_core.metrics`.
"""

from llfc_core.theory.bound import LLFCBound, cosine_gap_bound, llfc_bound, unrolled_bound
from llfc_core.theory.qap import commutativity_residual
from llfc_core.theory.relu_net import (
    Break,
    Family,
    Features,
    ReluNet,
    Theorem1Pair,
    forward,
    interpolate,
    relu_net_of,
    theorem1_pair,
    weak_additivity_residual,
)

__all__ = [
    "Break",
    "Family",
    "Features",
    "LLFCBound",
    "ReluNet",
    "Theorem1Pair",
    "commutativity_residual",
    "cosine_gap_bound",
    "forward",
    "interpolate",
    "llfc_bound",
    "relu_net_of",
    "theorem1_pair",
    "unrolled_bound",
    "weak_additivity_residual",
]
