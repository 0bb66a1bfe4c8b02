"""The relative error of 1 − cos_α by the kernels, as a table.

    python benchmarks/accuracy.py

Against float64 features kept whole, f, z and their difference built; the largest error of four
points at α = ¼, ½, ¾, in 1 − cos's own size. Beside it, what float32 would have given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from llfc_core import kernels
from llfc_core.kernels import native, reference
from llfc_core.metrics.llfc import Dots, one_minus_cos

ALPHAS = (0.25, 0.5, 0.75)


def errors(d: int, size: float) -> dict[str, float]:
    """By path, and for ``F.cosine_similarity`` in float32."""
    g = torch.Generator().manual_seed(d)
    a, b, noise = torch.randn(3, 4, d, generator=g).relu()
    a, b = a + 0.1, a + 0.1 + 0.3 * b
    # The orthogonal part of the noise is what 1 − cos sees.
    scale = (2 * size) ** 0.5 * a.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    f = [p * a + (1 - p) * b + scale * noise for p in ALPHAS]
    want = reference.llfc(f, a, b, ALPHAS)[0]
    found = {}
    for path in ("native", "eager") if native.library() is not None else ("eager",):
        with kernels.using(path):
            ends, sums = Dots.of(a, b), kernels.dots(f, a, b)
        got = [one_minus_cos(ends, *sums[k].unbind(1), p) for k, p in enumerate(ALPHAS)]
        found[path] = float(((torch.stack(got) - want).abs() / want).max())
    z = [p * a + (1 - p) * b for p in ALPHAS]
    plain = torch.stack([1 - torch.cosine_similarity(x, y) for x, y in zip(f, z)])
    found["float32"] = float(((plain - want).abs() / want).max())
    return found


def main() -> None:
    sizes, widths = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7), (512, 4096, 65_536, 262_144)
    for path in errors(512, 1e-3):
        print(f"\n{path}\n\n| 1 − cos | " + " | ".join(f"d = {d:,}" for d in widths) + " |")
        print("|---" * (len(widths) + 1) + "|")
        for size in sizes:
            cells = [f"{errors(d, size)[path]:.0e}" for d in widths]
            print(f"| {size:.0e} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
