"""Figures as inline SVG that follows the page: no pyplot state, ink in the page's text colour, ids that cannot collide."""

from __future__ import annotations

import html
import io
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Blue and vermilion after Okabe and Ito: told apart by colour-blind readers, and legible on white as on near-black.
TEACHER, STUDENT, GREY = "#3a86c8", "#d55e00", "#8a8a8a"
INK = "#010203"  # replaced by currentColor, so that axes and text follow light and dark mode

styled = matplotlib.rc_context(  # decorates each function that draws: a text made outside of it would be black
    {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GREY,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 11,
        "legend.frameon": False,
        "svg.hashsalt": "bidistill",  # the same data gives the same bytes
    }
)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of ``width`` x ``height`` inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    figure.patch.set_alpha(0.0)
    ax.patch.set_alpha(0.0)
    return figure, ax


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one ``<svg>`` element: ``name`` prefixes its ids, ``alt`` is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    label = html.escape(alt)
    head = r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \1 role="img"'
    text = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda m: m.expand(head) + f' aria-label="{label}">', text)
    return text.replace(INK, "currentColor")
