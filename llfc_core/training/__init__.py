"""Recipes, modes, and the engine and fleet that turn the one into the other."""

from llfc_core.training.cost import Costs, expected_seconds
from llfc_core.training.engine import ENGINE_VERSION, TrainingFailed, evaluate
from llfc_core.training.modes import (
    Mode,
    cache_dir,
    ensure,
    missing,
    mode_key,
)
from llfc_core.training.plan import Plan, make_plan
from llfc_core.training.progress import Progress
from llfc_core.training.recipe import (
    Optimiser,
    Point,
    Recipe,
    Schedule,
    Seeds,
    spawn,
    with_parents,
)

__all__ = [
    "ENGINE_VERSION",
    "Costs",
    "Mode",
    "Optimiser",
    "Plan",
    "Point",
    "Progress",
    "Recipe",
    "Schedule",
    "Seeds",
    "TrainingFailed",
    "cache_dir",
    "ensure",
    "evaluate",
    "expected_seconds",
    "make_plan",
    "missing",
    "mode_key",
    "spawn",
    "with_parents",
]
