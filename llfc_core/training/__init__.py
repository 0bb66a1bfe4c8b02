"""Recipes, modes, and the engine and fleet that turn the one into the other."""

from llfc_core.training.engine import ENGINE_VERSION, TrainingFailed, evaluate
from llfc_core.training.modes import (
    Mode,
    cache_dir,
    ensure,
    expected_seconds,
    missing,
    mode_key,
)
from llfc_core.training.progress import Progress
from llfc_core.training.recipe import Optimiser, Point, Recipe, Schedule, Seeds, spawn

__all__ = [
    "ENGINE_VERSION",
    "Mode",
    "Optimiser",
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
    "missing",
    "mode_key",
    "spawn",
]
