"""A plugin, ``-p tests.suite.stalled``: says so and stands still before the second claim's test."""

from __future__ import annotations

import time

import pytest

SAYS = "standing still"


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item is item.session.items[1]:
        print(SAYS, flush=True)
        time.sleep(600)  # until the signal comes
