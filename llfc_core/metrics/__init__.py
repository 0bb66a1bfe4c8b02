"""Measurements of pairs and the intervals around them."""

from llfc_core.metrics.bootstrap import Estimate, estimate
from llfc_core.metrics.measure import ALPHAS, PARTS, Part, measure
from llfc_core.metrics.measurement import Measurement

__all__ = ["ALPHAS", "PARTS", "Estimate", "Measurement", "Part", "estimate", "measure"]
