"""Results with planted numbers, as the suite would have written them."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llfc_core import claims
from llfc_core.report import read_results, write_results
from tests.planted import bump, measurement

LAYERS = ("fc1", "fc2", "fc3", "fc4")
JUDGED = (claims.LMC_ERROR, claims.LLFC_COSINE, claims.LLFC_COEF, claims.COMMUTATIVITY)


def pair(seed: int, linked: bool) -> Any:
    """Numbers that differ in every place; independent pairs are as far from LLFC as can be."""
    rng = np.random.default_rng(seed)
    n, k, depth = 60, 9, len(LAYERS)
    scale = 0.02 if linked else 0.6
    wrong = rng.random((1, n)) < 0.06
    between = (rng.random((k, n)) < bump() * (0.0 if linked else 0.7)) | wrong
    spread = scale * rng.lognormal(0, 0.4, (depth, n))
    sigma = spread.copy()
    sigma[-1] = np.nan
    sums = rng.uniform(0.5, 2, (depth, 6, n)) * np.array([1e-3, 1e-3, 4, 0.1, 1, 1])[:, None]
    sums[:, 0] *= rng.uniform(0.2, 5, (depth, 1))
    stitched = (rng.random((depth, 2, n)) < 0.2).astype(float)
    stitched[-1] = np.nan
    return measurement(
        n=n,
        layers=LAYERS,
        error=between.astype(float),
        loss=rng.uniform(0.1, 0.3, (k, n)) + (0 if linked else 1) * bump(),
        one_minus_cos=spread[:, None] * (0.2 + bump()),
        coef=1 - 0.1 * rng.random((depth, k, n)),
        one_minus_cos_ab=0.3 * rng.random((depth, n)) + 0.1,
        dist_sigma=sigma,
        commutativity=sums,
        stitched_error=stitched,
        link="spawned" if linked else "independent",
    )


@cache
def setting_results(name: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is recorded of a setting: its evidence and its verdicts."""
    groups = {
        "linked": [pair(seed + i, linked=True) for i in range(2)],
        "independent": [pair(seed + 50 + i, linked=False) for i in range(2)],
        "training": [pair(seed + 90, linked=True)],
        "untrained": [pair(seed + 91, linked=True)],
    }
    evidence = {
        "setting": name,
        "title": f"An MLP called {name}",
        "paper": {
            "figures": {"cosine": "Fig. 2, 8"},
            "stitching": {"source": "Table 1", "a": 1.9, "b": 1.77, "stitched": {"fc1": 2.69}},
        },
        "modes": [
            {"mode": mode, "replicate": i, "key": f"{mode}{i}", "test_error": 5.0 + i}
            for i in range(2)
            for mode in ("a", "b", "c", "early", "initial")
        ],
        "links": [{}, {}],
        "pairs": [
            {"pair": group, "replicate": i, **m.summary()}
            for group, measurements in groups.items()
            for i, m in enumerate(measurements)
        ],
    }
    verdicts = []
    for claim in JUDGED:
        for control, which in (("", "linked"), ("independent", "independent")):
            found = claims.judge(claim, groups[which])
            verdicts.append(
                {
                    "setting": name,
                    "test": f"phenomena/test_x.py::test_{control or 'claim'}[{name}-{claim.name}]",
                    "control": control,
                    "finding": "",
                    "statement": claim.statement,
                    "reason": claim.reason,
                    "look_at": claim.look_at,
                    **found.to_dict(),
                    "outcome": "passed",
                }
            )
    return evidence, verdicts


def results(folder: Path, *names: str, scale: str = "quick", **header: Any) -> dict[str, Any]:
    """Write results of some settings into a folder and read them again."""
    evidence, verdicts = {}, []
    for i, name in enumerate(names):
        evidence[name], some = setting_results(name, 1000 * i)  # only written, never changed
        verdicts += some
    values = [round(9 * 0.8**i, 3) for i in range(30)]
    numbers = {
        name: {
            "singular values of W, mode A": {f"{layer}.weight": values for layer in LAYERS},
            "error barrier by width, percentage points": {"mlp (32,)": [5, 6], "mlp (64,)": [1, 2]},
            "something else": {"steps": {"fc1": [1.5, 2.5]}, "word": "as it is"},
        }
        for name in names
    }
    head = {
        "scale": scale,
        "device": "cpu",
        "torch": "2.15",
        "replicates": 2,
        "outcomes": {"passed": len(verdicts)},
        "red": [],
        "interrupted": False,
        "options": ["--replicates", "2"],
        "run": {"date": "2026-01-02 03:04 UTC", "seconds": 5.0, "command": "pytest phenomena/"},
        **header,
    }
    path = folder / "results.json"
    write_results(path, head, evidence, numbers, verdicts, ["vgg: no data"])
    return read_results(path)


def changed(results: dict[str, Any], **verdict: Any) -> dict[str, Any]:
    """The same results but for the first verdict on a claim itself."""
    copied = copy.deepcopy(results)
    first = next(v for v in copied["verdicts"] if not v["control"])
    first.update(verdict)
    return copied
