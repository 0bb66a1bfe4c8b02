"""Measurements of pairs and the intervals around them."""

from llfc_core.metrics.bootstrap import Estimate, estimate
from llfc_core.metrics.measure import ALPHAS, measure
from llfc_core.metrics.measurement import Measurement

__all__ = ["ALPHAS", "Estimate", "Measurement", "estimate", "measure"]
