"""Loads the suite's plugins; everything is in ``fixtures/``."""

pytest_plugins = [
    "fixtures.options",
    "fixtures.modes",
    "fixtures.links",
    "fixtures.measurements",
    "fixtures.reporting",
    "fixtures.scheduling",
    "fixtures.training",
]
