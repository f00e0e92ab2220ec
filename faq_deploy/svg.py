"""Pictures as SVG, in the colours of the page around them or, as files of their own, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

__all__ = [
    "FIRST",
    "INK",
    "SECOND",
    "STYLE",
    "WIDTH",
    "named_rows",
    "short",
    "svg_element",
    "svg_file",
    "whole_numbers",
]

WIDTH: Final = 8.4  # inches; the page scales the picture
_ROW = 0.26
# Colours that no plot would use, each replaced by one of the page around it: one picture, light and dark.
INK, FIRST, SECOND = "#010203", "#070809", "#0a0b0c"
_LINE, _PAPER = "#040506", "#0d0e0f"
_NAMES: Final = {INK: "ink", _LINE: "line", FIRST: "first", SECOND: "second", _PAPER: "paper"}
# as in templates/report.html.j2
_LIGHT: Final = {"ink": "#1c1c1a", "line": "#d5d5ce", "first": "#0060a8", "second": "#b3540a", "paper": "#ffffff"}
_DARK: Final = {"ink": "#ecece6", "line": "#43443f", "first": "#6cb8f5", "second": "#f0a060", "paper": "#161715"}
STYLE: dict[RcKeyType, str | bool | float] = {
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "path.simplify": True,
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the page's font
    "svg.hashsalt": "faq-deploy",  # the same bytes each time
    "text.color": INK,
    "text.parse_math": False,  # a layer may be called $x$
    "xtick.color": INK,
    "ytick.color": INK,
}


def named_rows(count: int, names: Sequence[str], extra: float = 0.0) -> tuple[Figure, Axes]:
    """Axes with one named row an item, the first at the top.

    Args:
        count: of rows.
        names: of the rows.
        extra: height in inches for what stands around them.
    """
    figure = Figure(figsize=(WIDTH, _ROW * count + 0.7 + extra), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(count), names)
    axes.set_ylim(count - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def whole_numbers(axes: Axes, label: str) -> None:
    """Label the x axis, which counts something: no ticks between."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def short(name: str, limit: int = 40) -> str:
    """A name that fits beside a row: its end, where it is long."""
    return name if len(name) <= limit else f"…{name[1 - limit :]}"


def svg_element(figure: Figure, name: str, label: str) -> str:
    """The figure as an element to put into HTML: no metadata, ids of its own, colours and font of the page.

    Args:
        figure: drawn in `STYLE`.
        name: in front of its ids.
        label: for those who can't see it.
    """
    svg = _text(figure)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows them
    svg = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{label}" \1>', svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for colour, variable in _NAMES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def svg_file(figure: Figure, label: str) -> str:
    """The figure as a file that stands alone: dark where the reader's system is, light in viewers that can't tell.

    Args:
        figure: drawn in `STYLE`.
        label: for those who can't see it.
    """
    figure.set_facecolor(_PAPER)
    svg = re.sub(r"<metadata>.*?</metadata>", "", _text(figure), flags=re.DOTALL)
    svg = re.sub(r' style="([^"]*)"', _with_classes, svg)
    dark = " ".join(
        f".{kind}-{name} {{ {kind}: {colour} !important }}" for name, colour in _DARK.items() for kind in _KINDS
    )
    sheet = f"<style>@media (prefers-color-scheme: dark) {{ {dark} }}</style>"
    return re.sub(r"^<svg ([^>]*)>", rf'<svg role="img" aria-label="{label}" \1>\n{sheet}', svg)


_KINDS: Final = ("fill", "stroke")


def _with_classes(style: re.Match[str]) -> str:
    """An inline style in the light colours, with classes that the dark style sheet finds it by."""
    text, classes = style[1], []
    for kind, colour in re.findall(rf"({'|'.join(_KINDS)}): (#[0-9a-f]{{6}})", text):
        if colour in _NAMES:
            classes.append(f"{kind}-{_NAMES[colour]}")
    for colour, name in _NAMES.items():
        text = text.replace(colour, _LIGHT[name])
    named = f' class="{" ".join(classes)}"' if classes else ""
    return f'{named} style="{text}"'


def _text(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
