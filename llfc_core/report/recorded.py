"""What ``results.json`` has of a setting, and what every figure made from it is given.

A figure's table has a row for every number as recorded, pair by pair; the drawing shows means over
the pairs. Error bars are standard deviations over all images of all pairs, as in the paper, or
where a number belongs to a pair as a whole, its range over the pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from llfc_core.report.plot import HATCH, Frame, below_layers, drawing, svg

SMALL = 460  # pixels: what a telephone can show and two or three of which fit side by side
WIDEST = 1300  # of what has many layers
ALPHAS = (0.25, 0.5, 0.75)

Pair = Mapping[str, Any]
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class SettingResults:
    """What ``results.json`` has of one setting; ``evidence`` is empty if no claim was judged."""

    id: str
    scale: str
    evidence: Mapping[str, Any]
    numbers: Mapping[str, Any]

    @property
    def title(self) -> str:
        return self.evidence.get("title", self.id)

    def pairs(self, name: str, of: str = "") -> list[Pair]:
        """The measurements of a kind of pair; with ``of``, unless that number was not taken."""
        found = [p for p in self.evidence.get("pairs", ()) if p["pair"] == name]
        return [p for p in found if not of or np.isfinite(array(p[of])).any()]

    def paper(self, kind: str) -> str:
        """The paper's figures of this; of the same in another setting, if it has none of this."""
        own = self.evidence.get("paper", {}).get("figures", {}).get(kind)
        return f"{own} of the paper" if own else f"in the manner of {LIKE[kind]}"


LIKE = {
    "cosine": "Fig. 2, 3 and 8–15",
    "coef": "Fig. 8–15",
    "co-occurrence": "Fig. 4",
    "additivity": "Fig. 5 and 6",
    "commutativity": "Fig. 7 and 16–18",
    "commutativity-independent": "Fig. 19",
    "weights": "Fig. 20",
    "features": "Fig. 21",
    "stable-rank": "Fig. 22",
}


@dataclass(frozen=True)
class Figure:
    """A drawing and what is said beside it.

    Attributes
    ----------
    id
        Unique on a page; the name of its files.
    setting
        Empty where it shows several.
    source
        Where the paper has it.
    caption
        What is seen, in sentences.
    test, keyword
        The test file behind it, and what ``-k`` picks of it.
    head, rows
        The numbers, as a table.
    """

    id: str
    setting: str
    source: str
    caption: str
    test: str
    keyword: str
    head: tuple[str, ...]
    rows: Rows
    svg: str

    @property
    def width(self) -> float:
        """Of the drawing, in pixels."""
        found = re.search(r'viewBox="0 0 ([\d.]+)', self.svg)
        assert found, "every drawing has a viewBox"
        return float(found[1])

    @property
    def wide(self) -> bool:
        """Whether it takes more room than `SMALL`."""
        return self.width > SMALL


SIDES = (("linked", "linked", None), ("independent", "apart", HATCH["apart"]))


def linked_and_apart(s: SettingResults, of: str) -> tuple[list[Pair], list[Pair]] | None:
    """A setting's linked and independent pairs that have ``of``; None if either has none."""
    linked, apart = s.pairs("linked", of), s.pairs("independent", of)
    return (linked, apart) if linked and apart else None


def by_layer(
    s: SettingResults, title: str, layers: Sequence[str], each: float, least: float = SMALL
) -> tuple[Drawing, Axes]:
    """A drawing with ``each`` pixels a layer if they are many, and as it fits if they are more."""
    below = below_layers(layers)
    room = min(len(layers) * each, WIDEST - 62)
    wide = least if room <= 1.25 * (least - 62) else 62 + room
    figure, (axis,) = drawing(frame_of(s, title), wide, 270 + below, below)
    return figure, axis


def frame_of(s: SettingResults, title: str) -> Frame:
    """A drawing's title, its scale, and what it is of: the setting, how many pairs and images."""
    linked = s.pairs("linked")
    counts = f" · {len(linked)} pairs · {linked[0]['images']} images" if linked else ""
    return Frame(title, s.scale, s.id + counts)


def done(
    figure: Drawing,
    s: SettingResults,
    kind: str,
    title: str,
    caption: str,
    test: str,
    head: tuple[str, ...],
    rows: Rows,
    source: str = "",
) -> Figure:
    """The figure of a finished drawing, named after its setting and kind, with its table."""
    ident = f"{slug(s.id)}-{kind}"
    what = f"{s.title}, {s.scale} scale. {caption}"
    drawn = svg(figure, ident, f"{title}, {s.id}", what)
    found = source or s.paper(kind)
    return Figure(ident, s.id, found, caption, test, s.id, head, rows, drawn)


def slug(name: str) -> str:
    """A name for files and ids, whatever a setting is called, and no other setting's."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def array(value: Any) -> np.ndarray:
    """float64 of nested lists, NaN for None."""
    if isinstance(value, Mapping):
        value = value["mean"]
    return np.array(value, dtype=float)


def mean_and_std(p: Pair, key: str) -> list[tuple[Any, Any]]:
    """Mean and standard deviation over a pair's images, one layer or α after the other."""
    return list(zip(p[key]["mean"], p[key]["std"]))


def over_images(pairs: Sequence[Pair], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the images of all pairs."""
    means = np.array([array(p[key]) for p in pairs])
    within = np.array([np.array(p[key]["std"], dtype=float) for p in pairs])
    return means.mean(axis=0), np.sqrt((within**2).mean(axis=0) + means.var(axis=0))


def over_pairs(pairs: Sequence[Pair], key: str, which: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over pairs, and how far they reach below and above it: ``(2, …)``."""
    values = np.array([array(p[key])[which] for p in pairs])
    mean = values.mean(axis=0)
    return mean, np.stack([mean - values.min(axis=0), values.max(axis=0) - mean])


def quarters(pairs: Sequence[Pair]) -> dict[float, int]:
    """The α of ``ALPHAS`` that were measured, with their positions."""
    measured = pairs[0]["alphas"]
    return {alpha: measured.index(alpha) for alpha in ALPHAS if alpha in measured}


def rows_by_alpha(
    pairs: Sequence[Pair], key: str, layers: Sequence[str], alphas: Iterable[float]
) -> Rows:
    """(α, pair, replicate, layer, mean, std), the numbers as they are recorded."""
    return [
        (alpha, *row)
        for alpha in alphas
        for row in rows_by_layer(
            pairs,
            layers,
            lambda p, alpha=alpha: [
                (mean[p["alphas"].index(alpha)], std[p["alphas"].index(alpha)])
                for mean, std in mean_and_std(p, key)
            ],
        )
    ]


def rows_by_layer(pairs: Sequence[Pair], layers: Sequence[str], of: Any) -> Rows:
    """(pair, replicate, layer, *numbers) from a function of a pair that gives those by layer."""
    return [
        (p["pair"], p["replicate"], layer, *numbers)
        for p in pairs
        for layer, numbers in zip(layers, of(p))
    ]


def in_order(names: list[str], s: SettingResults, of: str) -> list[str]:
    """In the order of execution where the pairs tell it; results.json sorts by name."""
    pairs = s.pairs("linked")
    order = {name: i for i, name in enumerate(pairs[0][of])} if pairs else {}
    last = len(order)
    return sorted(names, key=lambda name: (order.get(name.removesuffix(".weight"), last), name))
