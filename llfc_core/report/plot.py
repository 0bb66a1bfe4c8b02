"""Drawing for a page: matplotlib's figures as SVG that takes its colours and letters from the page.

One unit of a drawing is one CSS pixel. Colours are drawn as placeholders and then replaced by CSS
variables, so that one drawing serves light, dark and print; text stays text. Nothing is told by
colour alone: fills differ in lightness and hatching, lines in dashes and markers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# name: (drawn as, light, dark)
COLOURS = {
    "ink": ("#0a0001", "#1f2430", "#e4e7ee"),
    "muted": ("#0a0002", "#667085", "#98a2b3"),
    "rule": ("#0a0003", "#e4e7ec", "#2c3340"),
    "page": ("#0a0004", "#ffffff", "#151a23"),
    "warn": ("#0a0005", "#b54708", "#fdb022"),
    "first": ("#0a0006", "#b3d1f5", "#2a5386"),
    "second": ("#0a0007", "#4f93de", "#4f93de"),
    "third": ("#0a0008", "#164a85", "#bcd8f8"),
    "linked": ("#0a0009", "#1f6fc4", "#6cb0f5"),
    "apart": ("#0a000a", "#c4570a", "#f39a4d"),
    "other": ("#0a000b", "#12805c", "#4cc38a"),
    "grey": ("#0a000c", "#98a2b3", "#7b8698"),
}
_DRAWN = {drawn: f"var(--{name})" for name, (drawn, _, _) in COLOURS.items()}

HATCH = {"apart": "////", "ab": "////", "other": "\\\\\\\\"}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llfc",
    "text.parse_math": False,  # names come from users
    "font.family": "DejaVu Sans",  # what is measured with; the page's own font is no wider
    "font.size": 12,
    "axes.linewidth": 1,
    "axes.edgecolor": COLOURS["grey"][0],
    "axes.labelcolor": COLOURS["muted"][0],
    "axes.labelsize": 12,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "grid.color": COLOURS["rule"][0],
    "grid.linewidth": 1,
    "figure.facecolor": "none",
    "hatch.linewidth": 0.9,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.color": COLOURS["ink"][0],
    "xtick.color": COLOURS["grey"][0],
    "ytick.color": COLOURS["grey"][0],
    "xtick.labelcolor": COLOURS["ink"][0],
    "ytick.labelcolor": COLOURS["muted"][0],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
}

# Pixels around the axes.
LEFT, RIGHT, TOP, FOOT = 52, 10, 62, 40


def colour(name: str) -> str:
    """The placeholder of a colour of the page."""
    return COLOURS[name][0]


@dataclass(frozen=True)
class Frame:
    """What is written around every drawing: the heading, the scale, what it was drawn from."""

    title: str
    scale: str
    foot: str


def drawing(
    frame: Frame,
    width: float,
    height: float,
    below: float = 26,
    columns: int = 1,
    rows: int = 1,
    left: float = LEFT,
    between: float = 44,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` × ``height`` pixels with its frame, and its axes, row by row.

    ``below``: pixels for what is written under the axes. Call within `style`.
    """
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    inner = width - left - RIGHT
    top = TOP if rows == columns == 1 else TOP + 22  # each of several has a title of its own
    tall = height - top - below - FOOT
    gap = below + 34
    grid = figure.add_gridspec(
        rows,
        columns,
        left=left / width,
        right=1 - RIGHT / width,
        top=1 - top / height,
        bottom=(below + FOOT) / height,
        wspace=between / ((inner - between * (columns - 1)) / columns),
        hspace=gap / ((tall - gap * (rows - 1)) / rows),
    )
    figure.text(2 / width, 1 - 16 / height, frame.title, fontsize=13, fontweight="bold")
    scale, shade = scale_words(frame.scale)
    figure.text(2 / width, 19 / height, frame.foot, fontsize=10, color=colour("muted"))
    figure.text(2 / width, 5 / height, scale, fontsize=10, fontweight="bold", color=colour(shade))
    axes = [figure.add_subplot(grid[r, c]) for r in range(rows) for c in range(columns)]
    return figure, axes


def scale_words(scale: str) -> tuple[str, str]:
    """What is said of a scale beside every number made at it, and in which colour."""
    if scale == "paper":
        return "paper scale", "muted"
    return f"{scale} scale: not the paper’s networks or data", "warn"


def style() -> Any:
    """A context in which drawings are made and written."""
    return rc_context(_STYLE)


def legend(axis: Axes, columns: int = 4) -> None:
    """A legend in the band between heading and axes."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    wide, tall = (72 * inches for inches in figure.get_size_inches())
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(2 / wide, 1 - 28 / tall),
        ncols=columns,
    )


def layer_ticks(axis: Axes, names: Sequence[str]) -> None:
    """A tick a layer; upright names where there are many."""
    axis.set_xticks(range(len(names)), names)
    axis.tick_params(axis="x", length=0)
    axis.grid(False, axis="x")
    if len(names) > 6:
        axis.tick_params(axis="x", labelrotation=90, labelsize=10)


def below_layers(names: Sequence[str]) -> float:
    """Pixels that `layer_ticks` takes."""
    return 26 if len(names) <= 6 else 12 + 5.9 * max(map(len, names))


def svg(figure: Figure, ident: str, title: str, description: str) -> str:
    """The drawing as an ``<svg>`` for a page: ids under ``ident``, colours as CSS variables."""
    out = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    figure.savefig(out, format="svg", metadata=empty)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    text = re.sub(r"<[^>]*>", lambda tag: _tidy(tag[0], ident), text)
    used = set(re.findall(r'url\(#([^)]*)\)|xlink:href="#([^"]*)"', text))
    kept = {name for pair in used for name in pair}
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in kept else "", text)
    text = re.sub(r"<g>\s*</g>|\n\s*", lambda m: "" if m[0].startswith("<") else "\n", text)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box, "matplotlib's SVG has a viewBox"
    name, what = html.escape(title), html.escape(description)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="drawing" viewBox="0 0 {box[1]} {box[2]}" width="{box[1]}" height="{box[2]}" '
        f'role="img" aria-labelledby="{ident}-title {ident}-desc">'
        f'<title id="{ident}-title">{name}</title><desc id="{ident}-desc">{what}</desc>'
    )
    return head + text[text.index(">") + 1 :].strip()


def _tidy(tag: str, ident: str) -> str:
    for drawn, variable in _DRAWN.items():
        tag = tag.replace(drawn, variable)
    tag = re.sub(r'id="([^"]*)"', rf'id="{ident}-\1"', tag)
    tag = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{ident}-", tag)
    # The page's own font; sizes and weights stay.
    tag = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", _font, tag)
    return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag)


def _font(match: re.Match[str]) -> str:
    weight = "; font-weight: 700" if "bold" in match[1] or "700" in match[1] else ""
    return f"font-size: {match[2]}{weight}"


def alone(drawn: str) -> str:
    """An inline drawing as a file of its own: with its colours, for light and dark."""
    light, dark = ("".join(f"--{name}:{row[i]};" for name, row in COLOURS.items()) for i in (1, 2))
    sheet = (
        f"<style>:root{{{light}color-scheme:light dark}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        "svg{background:var(--page);font-family:system-ui,'DejaVu Sans',sans-serif}"
        "*{stroke-linejoin:round;stroke-linecap:butt}</style>"
    )
    start = drawn.index("<title")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawn[:start]}{sheet}{drawn[start:]}\n'
