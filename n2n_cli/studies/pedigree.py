"""Where every student comes from, as a picture: build -> train -> grow -> train, with parameters and accuracies."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from n2n_cli.studies.inference import summarize
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, final_accuracy
from n2n_cli.studies.style import FONT, LIGHT, blank, look
from n2n_cli.studies.wording import percent

COLUMN, LINE, AIR = 2.05, 0.165, 0.3  # inches: of a column, of a line of text, around the lines of a box
WIDE = 32  # characters of a line


class Station(NamedTuple):
    """One box: a network as it starts, or as its training left it."""

    title: str
    lines: tuple[str, ...]


def stations(arm: ArmStatistics) -> list[Station]:
    """The way to an arm's trained network, accuracies as means over its finished seeds (of none: of all)."""
    ways = [_ancestors(one.run) for one in arm.runs or arm.every]
    found: list[Station] = []
    for place, run in enumerate(ways[0]):
        same = [way[place] for way in ways if len(way) == len(ways[0])]
        starts = summarize(one.evaluations[0].accuracy for one in same if one.evaluations)
        ends = summarize(final_accuracy(one) for one in same)
        last = place == len(ways[0]) - 1
        title, _, variant = (arm.title if last else run.name[:1].upper() + run.name[1:]).partition(" (")
        size, epochs = run.info.get("parameters"), run.info.get("epochs")
        lines = textwrap.wrap(variant.removesuffix(")"), WIDE)
        lines += [f"{size:,} parameters"] if isinstance(size, int) else []
        found.append(Station(title, (*lines, *([f"starts at {percent(starts)}"] if starts else []))))
        ended = f"ends at {percent(ends)}" if ends else "failed" if run.failed else "not finished"
        many = "" if epochs == 1 else "s"
        trained = f"trained {epochs:g} epoch{many}" if isinstance(epochs, (int, float)) else "trained"
        found.append(Station(trained, (ended,)))
    return found


def picture(arms: Sequence[ArmStatistics]) -> Figure:
    """The way of every arm, a row each; what arms share is drawn once. The teacher's is part of its students'."""
    shown = [arm for arm in arms if arm.arm != "teacher"] or list(arms)
    ways = [stations(arm) for arm in shown]
    longest, lines = max(map(len, ways)), 1 + max(len(station.lines) for way in ways for station in way)
    row_height = AIR + lines * LINE
    rows: dict[tuple[int, tuple[Station, ...]], list[int]] = {}  # what leads to a box, and the rows that go through it
    for row, way in enumerate(ways):
        for place in range(len(way)):
            rows.setdefault((longest - len(way) + place, tuple(way[: place + 1])), []).append(row)
    with matplotlib.rc_context(FONT):
        figure = blank(COLUMN * longest, row_height * len(shown) + 0.1)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(-0.02, longest - 0.14)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        for (column, leads), through in rows.items():
            y = sum(through) / len(through)
            own = [shown[row] for row in through]
            colour = look(own[0], arms, LIGHT)[0] if len(own) == 1 else LIGHT["teacher"]
            box = FancyBboxPatch(
                (column, y - 0.42), 0.8, 0.84, boxstyle="round,pad=0,rounding_size=0.06", mutation_aspect=1.6,
                facecolor=LIGHT["ground"], edgecolor=colour, linewidth=1.3,
            )  # fmt: skip
            axes.add_patch(box)
            text = [leads[-1].title, *leads[-1].lines]
            for place, words in enumerate(text):
                at = y + (place - (len(text) - 1) / 2) * LINE / row_height
                font: dict[str, Any] = {"fontsize": 9.5} if place else {"fontsize": 10.5, "weight": "bold"}
                axes.text(column + 0.4, at, words, ha="center", va="center", color=LIGHT["ink"], **font)
            if before := rows.get((column - 1, leads[:-1])):
                start = sum(before) / len(before)
                arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (column, y), (column - 0.2, start), arrowprops=arrow)
    return figure


def _ancestors(run: Run) -> list[Run]:
    """The runs whose weights it has, oldest first, and itself."""
    if run.stages:
        return list(run.stages)
    before = _ancestors(run.teacher) if run.needs_teacher and run.teacher is not None else []
    return [*before, run]
