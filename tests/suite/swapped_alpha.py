"""A plugin, ``-p tests.suite.swapped_alpha``: a bug in the metric, α for 1 − α in z."""

from __future__ import annotations

import importlib
from typing import Any

_measure: Any = importlib.import_module("llfc_core.metrics.measure")
_right = _measure.one_minus_cos
_measure.one_minus_cos = lambda ends, fa, fb, ff, alpha: _right(ends, fa, fb, ff, 1 - alpha)
