"""Matplotlib figures as SVG that belongs to the page: its font, its colours, own ids, nothing from outside.

Colours leave matplotlib as the light page's hexadecimal numbers and become CSS variables, so that a picture
follows the page into the dark and onto paper. The series colours are Okabe and Ito's (2008, "Color Universal
Design"), which people with any colour vision distinguish.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, LINE = "#1b1b1f", "#66666e", "#dedbd5"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#b0578d"
VARIABLES: Mapping[str, str] = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
}
"""Colours by the CSS variable that takes their place in the page."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; it measures what the page sets in its own font
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedvision",
    "image.composite_image": False,
}


def draw(paint: Callable[[Axes], None], *, name: str, alt: str, width: float, height: float) -> str:
    """Return one picture as an ``<svg>`` element for a page.

    Args:
        paint: Draws on the axes, which fill the picture.
        name: Prefix of the picture's ids, unlike that of any other picture on the page.
        alt: Text for those who do not see the picture.
        width: Pixels on a wide page.
        height: Pixels on a wide page.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's font has what the measuring font lacks, such as Chinese class names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        layout = ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=2 / 72)
        figure = Figure(figsize=(width / 72, height / 72), layout=layout)
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        layout.execute(figure)
        figure.set_layout_engine(None)  # else the whole picture is drawn twice, once to lay it out
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _embed(buffer.getvalue(), name, alt)


def _embed(text: str, name: str, alt: str) -> str:
    """Return matplotlib's SVG file as an element of an HTML page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Its rules for all elements are the page's: a policy may allow no style sheet but the page's own.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="([^"]*)"', text)
    box, label = viewbox[1] if viewbox else "", html.escape(alt)
    root = f'<svg class="picture" viewBox="{box}" role="img" aria-label="{label}">'
    text = root + text[text.index(">") + 1 :]
    text = re.sub(r'font: ([^;"]*?)\'DejaVu Sans\'[^;"]*', r"font: \1var(--sans)", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return _own_ids(text, name).strip()


def _own_ids(text: str, name: str) -> str:
    """Prefix the ids that something refers to, and drop the others."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r'\s+id="([^"]+)"', rename, text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
