"""How a study's pictures look: colours, markers and dashes by arm, for a white ground and a dark one.

Colours are those of Okabe and Ito (safe for the colour-blind); markers and dashes tell the arms apart without colour.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from n2n_cli.arms import find
from n2n_cli.studies.statistics import ArmStatistics

# Variants of one arm, in turn: how far its colour goes to the ink (negative: to the ground), and the dashes.
_VARIANTS: tuple[tuple[float, Any], ...] = (
    (0.0, "-"),
    (-0.45, (0, (6, 1.5))),
    (0.55, (0, (2, 1.2))),
    (-0.2, (0, (6, 1.5, 1.5, 1.5))),
)
_MARKERS = ("o", "s", "^")  # of more variants than there are dashes
LIGHT = {"ground": "#ffffff", "ink": "#222222", "grid": "#e4e4e4", "teacher": "#555555"}
DARK = {"ground": "#16181b", "ink": "#d8d8d4", "grid": "#303338", "teacher": "#b0b0aa"}
FONT: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 11.5,
    "svg.fonttype": "path",
}


def blank(width: float, height: float, fixed: bool = False) -> Figure:
    """An empty figure, inches; ``fixed``: margins for one panel without long labels, in a third of the time."""
    layout = None if fixed else ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=LIGHT["ground"])
    if fixed:
        figure.subplots_adjust(left=0.105, right=0.985, bottom=0.135, top=0.925)
    FigureCanvasAgg(figure)
    return figure


def look(arm: ArmStatistics, arms: Sequence[ArmStatistics], theme: dict[str, str]) -> tuple[str, str, Any]:
    """Colour, marker and dashes of an arm: its name's own, changed by its place among the variants."""
    (on_white, on_dark), marker = find(arm.arm).colours, find(arm.arm).marker
    place = [other.key for other in arms if other.arm == arm.arm].index(arm.key)
    turn, place = divmod(place, len(_VARIANTS))
    amount, dashes = _VARIANTS[place]
    markers = [marker, *(other for other in _MARKERS if other != marker)]
    amount, marker = amount + 0.25 * (turn % 2), markers[turn % len(markers)]
    here = to_rgb(on_dark if theme is DARK else on_white)
    there = to_rgb(theme["ink"] if amount > 0 else theme["ground"])
    red, green, blue = ((1 - abs(amount)) * a + abs(amount) * b for a, b in zip(here, there, strict=True))
    return to_hex((red, green, blue)), marker, dashes


def dress(axes: Axes, title: str) -> None:
    axes.set_facecolor(LIGHT["ground"])
    axes.set_title(title, loc="left", color=LIGHT["ink"], fontsize=12.5)
    axes.grid(color=LIGHT["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["ink"], length=3)
    axes.xaxis.label.set_color(LIGHT["ink"])
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["ink"])
        spine.set_linewidth(0.7)


def short(value: float, _: int = 0) -> str:
    """A number of an axis: ``1,240``, ``1.5M``, ``2e+15``."""
    if abs(value) >= 1e12:
        return f"{value:.3g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (size if letter != 'k' else 1e3):.4g}{letter}"
    return f"{value:,.4g}"


def png(figure: Figure, *, dpi: int = 170) -> bytes:
    """The figure as a PNG."""
    out = io.BytesIO()
    with matplotlib.rc_context(FONT):
        figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def svg(figure: Figure, fonts: str = "path") -> bytes:
    """The figure as an SVG; the same figure gives the same bytes. ``fonts="none"``: text in the viewer's fonts."""
    out = io.BytesIO()
    with matplotlib.rc_context({**FONT, "svg.hashsalt": "n2n", "svg.fonttype": fonts}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
