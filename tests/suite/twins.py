"""A plugin, ``-p tests.suite.twins``: two settings at the quick scale, one named like the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures import settings
from tests.suite.tiny import TINY

TWINS = (TINY, replace(TINY, id=f"{TINY.id}-wide"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    settings.SETTINGS["quick"] = TWINS
