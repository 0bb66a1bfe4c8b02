"""Measurements of pairs and the intervals around them."""

from llfc_core.metrics.bootstrap import Estimate, estimate
from llfc_core.metrics.measure import ALPHAS, Measurement, measure

__all__ = ["ALPHAS", "Estimate", "Measurement", "estimate", "measure"]
