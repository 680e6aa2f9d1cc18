"""The groups drawn over the network: a row a layer in forward order, a lane a group, a bar for every width.

A filled mark makes the group's units, an open one reads them. Colours tell lanes apart and mean nothing else;
a lane that grows by whole numbers alone is hatched, one that is fixed is grey.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath

from n2n_cli.commands import tables
from n2n_cli.growth.survey import GroupRow, LayerRow, Survey
from n2n_cli.studies import style

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A10", "#7B5EA7")
INK, FAINT, GREY, BAND = "#222222", "#8a8a86", "#a9a9a4", "#f5f4f0"
ROW, MARGIN, BARS, GAP = 0.205, 0.3, 3.0, 0.22  # inches
MOST_ROWS_OF_A_STAGE = 20
_FONT: Any = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "hatch.linewidth": 1.1}


def draw(found: Survey, title: str) -> Figure:
    """The picture; its size follows the network's."""
    with matplotlib.rc_context(_FONT):
        return _Picture(found, title).figure


def save(figure: Figure, path: Path) -> None:
    """As SVG (the same figure gives the same bytes) or PNG, by the file's ending."""
    if path.suffix.lower() == ".svg":
        path.write_bytes(style.svg(figure))
    else:
        longest = max(figure.get_size_inches())
        path.write_bytes(style.png(figure, dpi=int(min(170, 16000 / longest))))


@dataclass
class Lane:
    """Where a group is drawn: from its first row to its last, in a column."""

    group: GroupRow
    first: int
    last: int
    column: int
    colour: str


def lanes(found: Survey) -> dict[int, Lane]:
    """A lane for every group: in the first free column, in a colour that its neighbours have least."""
    spans: dict[int, tuple[int, int]] = {}
    for row, layer in enumerate(found.layers):
        for number in _touched(layer):
            spans[number] = (spans.get(number, (row, row))[0], row)
    groups = {group.number: group for group in found.groups}
    out: dict[int, Lane] = {}
    ends: list[tuple[int, str]] = []  # of every column: its last row so far, and the colour there
    for number, (first, last) in sorted(spans.items(), key=lambda span: (span[1][0], span[0])):
        column = next((at for at, (end, _) in enumerate(ends) if end < first), len(ends))
        if groups[number].fixed:
            colour = GREY
        else:
            turn = [COLOURS[(len(out) + step) % len(COLOURS)] for step in range(len(COLOURS))]
            near = [(colour, abs(at - column)) for at, (end, colour) in enumerate(ends) if end >= first - 1]
            colour = min(turn, key=lambda one: sum(1 + 8 * (far < 2) + 2 * (far == 2) for c, far in near if c == one))
        out[number] = Lane(groups[number], first, last, column, colour)
        ends[column : column + 1] = [(last, colour)]
    return out


def stages(names: list[str]) -> list[str]:
    """Every layer's stage: the first parts of its path, as few as give no stage more than MOST_ROWS_OF_A_STAGE."""
    for depth in range(1, 8):
        heads = [".".join(name.split(".")[:depth]) for name in names]
        if max((heads.count(head) for head in set(heads)), default=0) <= MOST_ROWS_OF_A_STAGE:
            break
    return heads


def _inches(text: str, size: float, weight: str = "normal") -> float:
    if not text:
        return 0.0
    return float(TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight)).get_extents().x1) / 72


class _Picture:
    """The figure, in inches from its upper left corner."""

    def __init__(self, found: Survey, title: str) -> None:
        self.found, self.layers = found, found.layers
        self.lanes = lanes(found)
        columns = 1 + max((lane.column for lane in self.lanes.values()), default=0)
        self.pitch = min(0.215, 9.0 / columns)
        self.heads = stages([layer.name for layer in self.layers])
        stage_width = max([_inches(_short(head), 9.5, "bold") for head in self.heads], default=0)
        rest_width = max([_inches(self._rest(row), 9.5) for row in range(len(self.layers))], default=0)
        kernel_width = max([_inches(_kernel(layer), 8) for layer in self.layers], default=0)
        self.names_at = MARGIN + 0.1 + stage_width + GAP * 0.7
        self.kernels_at = self.names_at + rest_width + (GAP * 0.7 + kernel_width if kernel_width else 0)
        self.lanes_at = self.kernels_at + GAP * 1.3
        self.bars_at = self.lanes_at + columns * self.pitch + GAP
        self.numbers = [_width_text(layer) for layer in self.layers]
        self.width = self.bars_at + BARS + 0.08 + max([_inches(text, 9) for text in self.numbers], default=0) + MARGIN
        self.width = max(self.width, 7.4)
        self.notes = self._notes()
        self.top = 1.02
        height = self.top + ROW * len(self.layers) + 0.2 + 0.165 * len(self.notes) + MARGIN
        self.figure = Figure(figsize=(self.width, height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        self.axes.set_axis_off()
        self._title(title)
        self._legend()
        self._stages()
        self._lanes()
        self._bars()
        y = self.top + ROW * len(self.layers) + 0.3
        for line in self.notes:
            self._text(MARGIN, y, line, 9, INK if not line.startswith(" ") else FAINT)
            y += 0.165

    def _rest(self, row: int) -> str:
        return self.layers[row].name[len(self.heads[row]) + 1 :]

    def _y(self, row: int) -> float:
        return self.top + ROW * (row + 0.5)

    def _x(self, lane: Lane) -> float:
        return self.lanes_at + (lane.column + 0.5) * self.pitch

    def _text(self, x: float, y: float, text: str, size: float, colour: str, **how: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, color=colour, **{"va": "center_baseline", "parse_math": False, **how})

    def _title(self, title: str) -> None:
        room = int((self.width - 2 * MARGIN) * 9.5)
        self._text(MARGIN, 0.32, textwrap.shorten(title, room, placeholder=" ..."), 14, INK, weight="bold")
        found = self.found
        after = f" → {found.parameters_grown:,}" if found.student is not None else ""
        self._text(MARGIN, 0.57, f"{len(found.groups)} groups, {found.parameters:,}{after} parameters", 10.5, FAINT)

    def _legend(self) -> None:
        x, y = MARGIN, 0.82
        for filled, text in ((True, "makes units"), (False, "reads them")):
            self.axes.plot([x + 0.05], [y], "o", ms=6, mfc=COLOURS[0] if filled else "white", mec=COLOURS[0], mew=1.2)
            self._text(x + 0.15, y, text, 9.5, INK)
            x += 0.15 + _inches(text, 9.5) + 0.25
        growing = [group.growing for group in self.found.groups]
        for kind, text in (
            ("any factor", "grows by any factor"),
            ("whole numbers", "by whole numbers"),
            ("fixed", "fixed"),
        ):
            if kind in growing:
                self._box(x, y - 0.05, 0.24, 0.1, GREY if kind == "fixed" else COLOURS[0], kind)
                self._text(x + 0.31, y, text, 9.5, INK)
                x += 0.31 + _inches(text, 9.5) + 0.25
        if self.found.student is not None:
            self._box(x, y - 0.05, 0.24, 0.1, COLOURS[0], "new")
            self._text(x + 0.31, y, "added by the plan", 9.5, INK)

    def _box(self, x: float, y: float, width: float, height: float, colour: Any, kind: str, **how: Any) -> None:
        """A rectangle in the look of its kind: plain, hatched (whole numbers), grey (fixed), pale (new)."""
        look: dict[str, Any] = {"facecolor": colour, "linewidth": 0}
        if kind == "whole numbers":
            look = {"facecolor": _pale(colour, 0.62), "edgecolor": colour, "linewidth": 0.6, "hatch": "//////"}
        elif kind == "new":
            look = {"facecolor": _pale(colour, 0.72), "edgecolor": colour, "linewidth": 0.6}
        self.axes.add_patch(Rectangle((x, y), width, height, **{**look, **how}))

    def _stages(self) -> None:
        first, shade = 0, False
        for row in range(1, len(self.heads) + 1):
            if row == len(self.heads) or self.heads[row] != self.heads[first]:
                if shade:
                    box = (MARGIN - 0.06, self.top + ROW * first)
                    size = (self.width - 2 * MARGIN + 0.12, ROW * (row - first))
                    rounded = "round,pad=0,rounding_size=0.05"
                    self.axes.add_patch(FancyBboxPatch(box, *size, boxstyle=rounded, fc=BAND, lw=0, zorder=0))
                self._text(MARGIN + 0.05, self._y(first), _short(self.heads[first]), 9.5, INK, weight="bold")
                first, shade = row, not shade
        for row, layer in enumerate(self.layers):
            self._text(self.names_at, self._y(row), self._rest(row), 9.5, INK)
            self._text(self.kernels_at, self._y(row), _kernel(layer), 8, FAINT, ha="right")

    def _lanes(self) -> None:
        thick, r = 0.34 * self.pitch, min(6.6, 0.42 * self.pitch * 72)
        threads = []
        for row, layer in enumerate(self.layers):
            places = [self._x(self.lanes[number]) for number in _touched(layer)]
            threads.append([(min(places), self._y(row)), (self.bars_at, self._y(row))])
        self.axes.add_collection(LineCollection(threads, colors="#d4d3cc", linewidths=0.8, zorder=1))
        for lane in self.lanes.values():
            top, bottom = self._y(lane.first), self._y(lane.last)
            place = (self._x(lane) - thick / 2, top, thick, bottom - top)
            self._box(*place, lane.colour, lane.group.growing, zorder=2)
        for row, layer in enumerate(self.layers):
            made = {number for number, _, _ in layer.makes if number}
            for number in _touched(layer):
                lane = self.lanes[number]
                both = number in made
                face = lane.colour if both else "white"
                self.axes.plot(
                    [self._x(lane)], [self._y(row)], "o", ms=1.5 * r, mfc=face, mec=lane.colour, mew=1.3, zorder=3
                )
                if both and row == lane.first and self.pitch > 0.15:
                    size = 6.4 if number < 100 else 4.8
                    self._text(self._x(lane), self._y(row), str(number), size, "white", ha="center", weight="bold")

    def _bars(self) -> None:
        open_ = [layer for layer in self.layers if any(n and not self.lanes[n].group.fixed for n, _, _ in layer.makes)]
        most = max((sum(max(run[1:]) for run in layer.makes) for layer in open_ or self.layers), default=1)
        for row, layer in enumerate(self.layers):
            x, y = self.bars_at, self._y(row) - 0.062
            torn = sum(max(run[1:]) for run in layer.makes) > most
            for number, before, after in layer.makes:
                lane = self.lanes.get(number)
                colour, kind = (lane.colour, lane.group.growing) if lane else (_pale(GREY, 0.5), "fixed")
                for amount, look in ((before, kind), (after - before, "new")):
                    width = min(amount / most * BARS, self.bars_at + BARS - x)
                    if width > 0:
                        self._box(x, y, width, 0.124, colour, look, zorder=2)
                        x += width
            if torn:  # far wider than all that can grow, whose bars it would make too short
                for at in (x - 0.16, x - 0.1):
                    self.axes.plot([at - 0.03, at + 0.03], [y + 0.15, y - 0.03], color="white", lw=1.5, zorder=3)
            self._text(x + 0.07, self._y(row), self.numbers[row], 9, INK)

    def _notes(self) -> list[str]:
        """Why groups do not grow freely, the groups named by their numbers."""
        lines: list[str] = []
        for reason, groups in tables.reasons(self.found.groups):
            who = ", ".join(str(group.number) for group in groups[:8])
            more = f" and {len(groups) - 8} more" if len(groups) > 8 else ""
            how = "fixed" if groups[0].fixed else f"by {groups[0].growing}"
            lines += textwrap.wrap(
                f"Group{'s' if len(groups) > 1 else ''} {who}{more}, {how}: {reason}",
                int((self.width - 2 * MARGIN) * 16),
                subsequent_indent="    ",
            )
        return lines


def _short(head: str) -> str:
    parts = head.split(".")
    while len(parts) > 1 and len(".".join(parts)) > 24:
        parts = parts[1:]
    short = ".".join(parts)
    return short if short == head else f"…{short[-28:]}"


def _touched(layer: LayerRow) -> list[int]:
    """The groups that a layer reads or makes."""
    return list(dict.fromkeys([*layer.reads, *(number for number, _, _ in layer.makes if number)]))


def _kernel(layer: LayerRow) -> str:
    return "×".join(map(str, layer.shape[2:])) if len(layer.shape) > 3 or layer.weight.endswith("weight") else ""


def _width_text(layer: LayerRow) -> str:
    before, after = (sum(run[at] for run in layer.makes) for at in (1, 2))
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _pale(colour: Any, amount: float) -> tuple[float, ...]:
    return tuple(part + (1 - part) * amount for part in matplotlib.colors.to_rgb(colour))
