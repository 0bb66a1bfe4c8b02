"""``results.json``: every number behind the verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


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
        **header,
        "verdicts": sorted(verdicts, key=lambda v: v["test"]),
        "settings": [evidence[key] for key in sorted(evidence)],
        "numbers": dict(numbers),
        "skipped": sorted(skipped),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    text = json.dumps(_strict(results), indent=1, sort_keys=True, allow_nan=False)
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
