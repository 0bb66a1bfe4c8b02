"""A plugin, ``-p tests.suite.without_xdist``: a Python in which pytest-xdist is not installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Absent(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.split(".")[0] in ("xdist", "execnet"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


assert "xdist" not in sys.modules
sys.meta_path.insert(0, _Absent())
