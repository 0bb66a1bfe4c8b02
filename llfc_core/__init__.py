"""Layerwise Linear Feature Connectivity: train, measure and judge pairs of networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llfc_core.check import Verdicts, check_pair
    from llfc_core.own import OwnPair, OwnPairError

__all__ = ["OwnPair", "OwnPairError", "Verdicts", "check_pair"]

_FROM = {"OwnPair": "own", "OwnPairError": "own", "Verdicts": "check", "check_pair": "check"}


def __getattr__(name: str) -> Any:
    # On first use: a process that only waits for a cluster's job is to start without torch.
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
