"""Permutations that leave a network as it is, and how to choose one that brings B close to A."""

from llfc_core.matching.check import SpecError, check
from llfc_core.matching.derive import derive_spec
from llfc_core.matching.match import METHODS, Match, match
from llfc_core.matching.spec import Group, PermutationSpec

# Part of the key of a stored match. Raise it whenever a change here changes what is found.
MATCHING_VERSION = 3

__all__ = [
    "MATCHING_VERSION",
    "METHODS",
    "Group",
    "Match",
    "PermutationSpec",
    "SpecError",
    "check",
    "derive_spec",
    "match",
]
