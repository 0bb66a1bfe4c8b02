"""A plugin, ``-p tests.suite.tiny``: the quick scale becomes one setting that trains in seconds.

Nothing else changes: the same fixtures, claims and bounds judge a network a third as wide after a
quarter of the epochs. Trainings are logged, a line each, to the file that LLFC_TRAINED names.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures import settings
from llfc_core.nets import Net
from llfc_core.training import Optimiser, modes

TINY = replace(
    settings.MLP_MNIST_SPAWN_QUICK,
    id="tiny-spawn",
    title="A small MLP on 5,000 digits of MNIST, spawning",
    recipe=replace(
        settings.MLP_MNIST_SPAWN_QUICK.recipe,
        net=Net("mlp", (192, 192, 192)),
        epochs=4,
        optimiser=Optimiser("adam", lr=6e-4),
        max_test_error=15.0,
    ),
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    settings.SETTINGS["quick"] = (TINY,)
    settings.COMPARED["quick"] = ()
    if "LLFC_TRAINED" in os.environ:
        _log_trainings(Path(os.environ["LLFC_TRAINED"]))


def _log_trainings(log: Path) -> None:
    train = modes.train

    def logged(recipes: Any, *args: Any, **kwargs: Any) -> Any:
        states = train(recipes, *args, **kwargs)
        with log.open("a") as file:  # one short write: lines of two workers do not mix
            file.write("".join(f"{recipe.key()}\n" for recipe in recipes))
        return states

    modes.train = logged
