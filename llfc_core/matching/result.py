"""What matching two modes gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from llfc_core.matching.spec import PermutationSpec, State


@dataclass(frozen=True, eq=False)
class Match:
    """A permutation π of B's units that brings B close to A, and how it was found.

    Attributes
    ----------
    method
        "weight", "activation", "ste" or "commutativity".
    spec
        What may be permuted.
    permutations
        π, by group, on the CPU, as `PermutationSpec` has them: perm[i] = j puts B's unit j into
        slot i.
    objective
        Its value at the start and after each accepted step, float64. Weight: Σ⟨A, π(B)⟩, rising.
        Activation: the similarity of A's and π(B)'s features, rising. STE: held-out loss halfway
        between A and π(B), falling. Commutativity: Σ_ℓ ‖R_ℓ‖²/ν_ℓ (eq. 9), falling.
    seconds
        Where the time went: "similarity" (products of weights or features), "assignment", "total";
        "features" (forward passes), "gradient" and "selection" where there are such.
    sweeps
        Passes over the groups in the run that was kept (STE: minibatches).
    restarts
        Final objective of each run, the one from the start first (commutativity: in the order of
        its ``starts``, then the random ones).
    converged
        The search ended by itself: no group can be improved (STE: the permutation had settled).
    unmatched
        Groups left as they were for want of anything to compare, with the reason.
    """

    method: str
    spec: PermutationSpec
    permutations: dict[str, Tensor]
    objective: tuple[float, ...]
    seconds: Mapping[str, float]
    sweeps: int
    restarts: tuple[float, ...]
    converged: bool
    unmatched: Mapping[str, str] = field(default_factory=dict)

    def apply(self, state: State) -> dict[str, Tensor]:
        """π(θ): ``match.apply(b)`` is the mode that was matched to A."""
        return self.spec.apply(state, self.permutations)
