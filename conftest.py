"""Loads the suite's plugins; everything is in ``fixtures/``."""

pytest_plugins = [
    "fixtures.options",
    "fixtures.modes",
    "fixtures.measurements",
    "fixtures.reporting",
    "fixtures.scheduling",
]
