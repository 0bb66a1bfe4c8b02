"""Layerwise Linear Feature Connectivity: train, measure and judge pairs of networks."""

from llfc_core.check import Verdicts, check_pair
from llfc_core.own import OwnPair, OwnPairError

__all__ = ["OwnPair", "OwnPairError", "Verdicts", "check_pair"]
