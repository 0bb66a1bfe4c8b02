"""``results.json``: every number behind the verdicts, and all that the page is made from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VERSION = 2  # of what the file holds; another one is not read
_KEYS = {"scale", "verdicts", "settings", "numbers", "skipped"}


class ResultsError(Exception):
    """A file that is no ``results.json`` of this version, in one line that says what to do."""


def write_results(
    path: Path,
    header: Mapping[str, Any],
    evidence: Mapping[str, Mapping[str, Any]],
    numbers: Mapping[str, Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    skipped: Iterable[str],
) -> None:
    """Write the results, whole or not at all; the same results give the same bytes.

    Strict JSON: numbers that are not finite become null.

    Raises
    ------
    OSError
        The folder cannot be made or written to.
    """
    results = {
        "version": VERSION,
        **header,
        "verdicts": sorted(verdicts, key=lambda v: v["test"]),
        "settings": [evidence[key] for key in sorted(evidence)],
        "numbers": dict(numbers),
        "skipped": sorted(skipped),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    text = _text(_strict(results))
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file is of no use to anyone
        raise


def read_results(path: Path) -> dict[str, Any]:
    """What `write_results` wrote; ``path`` is the file or its folder.

    Raises
    ------
    ResultsError
        There is no such file, or it is something else.
    """
    if path.is_dir():
        path = path / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is no JSON: {error}") from error
    if not isinstance(results, dict) or not results.keys() >= _KEYS:
        raise ResultsError(f"{path} is no results.json of `pytest phenomena/ --llfc-report DIR`")
    if results.get("version") != VERSION:
        raise ResultsError(
            f"{path} was written by another version of the suite; run pytest phenomena/ again"
        )
    return results


def _text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each number's name, and not for each number."""
    if isinstance(value, dict) and value and depth < 4:
        lines = (f"{json.dumps(k)}: {_text(v, depth + 1)}" for k, v in sorted(value.items()))
        return _lines("{", lines, "}", depth)
    if isinstance(value, list) and any(isinstance(v, dict) for v in value) and depth < 4:
        return _lines("[", (_text(v, depth + 1) for v in value), "]", depth)
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _lines(opening: str, lines: Iterable[str], closing: str, depth: int) -> str:
    indent = "\n" + " " * (depth + 1)
    return opening + indent + f",{indent}".join(lines) + "\n" + " " * depth + closing


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
