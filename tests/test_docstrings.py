"""Everything public says what it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "llfc_core").rglob("*.py"))
# A table of functions that are named after the operations they are for, and used by nobody else.
TABLE = Path("llfc_core/matching/rules.py")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: Documented, inside: str = "") -> list[tuple[str, Documented]]:
    """The module, its public classes and functions, and the public methods of those classes."""
    found: list[tuple[str, Documented]] = [] if inside else [("", node)]
    for part in node.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef) and not part.name.startswith("_"):
            name = f"{inside}{part.name}"
            found.append((name, part))
            if isinstance(part, ast.ClassDef):
                found += public(part, f"{name}.")
    return found


def undocumented(source: str) -> list[str]:
    """Names without a docstring; short methods, and what PyTorch defines, may go without."""
    return [
        name or "the module"
        for name, node in public(ast.parse(source))
        if not ast.get_docstring(node)
        and not name.endswith(".forward")
        and not ("." in name and isinstance(node, ast.FunctionDef) and len(node.body) <= 2)
    ]


@pytest.mark.parametrize("file", [f for f in FILES if f != TABLE], ids=str)
def test_what_is_public_has_a_docstring(file: Path) -> None:
    assert not undocumented((ROOT / file).read_text())


def test_the_check_sees_what_is_missing() -> None:
    source = (
        '"""m"""\nclass A:\n    def f(self):\n        x = 1\n        y = 2\n        return x + y\n'
    )
    assert undocumented(source) == ["A", "A.f"]
    assert undocumented("def f(): ...") == ["the module", "f"]
    assert undocumented('"""m"""\ndef _f(): ...') == []
