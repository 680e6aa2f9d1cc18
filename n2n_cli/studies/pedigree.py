"""Where every student comes from, as a picture: build -> train -> grow -> train, with parameters and accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from n2n_cli.studies.inference import summarize
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, final_accuracy
from n2n_cli.studies.style import FONT, LIGHT, blank, look
from n2n_cli.studies.wording import percent

COLUMN, ROW = 2.05, 0.66  # inches


class Station(NamedTuple):
    """One box: a network as it starts, or as its training left it."""

    title: str
    text: str


def stations(arm: ArmStatistics) -> list[Station]:
    """The way to an arm's trained network, accuracies as means over its finished seeds (of none: of all)."""
    ways = [_ancestors(one.run) for one in arm.runs or arm.every]
    found: list[Station] = []
    for place, run in enumerate(ways[0]):
        same = [way[place] for way in ways if len(way) == len(ways[0])]
        starts = summarize(one.evaluations[0].accuracy for one in same if one.evaluations)
        ends = summarize(final_accuracy(one) for one in same)
        last = place == len(ways[0]) - 1
        title = arm.title if last else run.name[:1].upper() + run.name[1:]
        size, epochs = run.info.get("parameters"), run.info.get("epochs")
        text = f"{size:,} parameters" if isinstance(size, int) else ""
        found.append(Station(title, f"{text}\nstarts at {percent(starts)}" if starts else text))
        ended = f"ends at {percent(ends)}" if ends else "failed" if run.failed else "not finished"
        found.append(Station(f"trained {epochs:g} epochs" if isinstance(epochs, (int, float)) else "trained", ended))
    return found


def picture(arms: Sequence[ArmStatistics]) -> Figure:
    """The way of every arm, a row each; what arms share is drawn once. The teacher's is part of its students'."""
    shown = [arm for arm in arms if arm.arm != "teacher"] or list(arms)
    ways = [stations(arm) for arm in shown]
    longest = max(map(len, ways))
    rows: dict[tuple[int, tuple[Station, ...]], list[int]] = {}  # what leads to a box, and the rows that go through it
    for row, way in enumerate(ways):
        for place in range(len(way)):
            rows.setdefault((longest - len(way) + place, tuple(way[: place + 1])), []).append(row)
    with matplotlib.rc_context(FONT):
        figure = blank(COLUMN * longest, ROW * len(shown) + 0.1)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(-0.02, longest - 0.14)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        for (column, way), through in rows.items():
            y = sum(through) / len(through)
            own = [shown[row] for row in through]
            colour = look(own[0], arms, LIGHT)[0] if len(own) == 1 else LIGHT["teacher"]
            box = FancyBboxPatch(
                (column, y - 0.37), 0.8, 0.74, boxstyle="round,pad=0,rounding_size=0.06", mutation_aspect=1.6,
                facecolor=LIGHT["ground"], edgecolor=colour, linewidth=1.3,
            )  # fmt: skip
            axes.add_patch(box)
            station, ink = way[-1], {"ha": "center", "color": LIGHT["ink"]}
            lines = station.text.count("\n") + 1
            axes.text(column + 0.4, y - 0.13 * lines, station.title, va="center", fontsize=10.5, weight="bold", **ink)
            axes.text(column + 0.4, y + 0.13, station.text, va="center", fontsize=9.5, linespacing=1.1, **ink)
            if before := rows.get((column - 1, way[:-1])):
                start = sum(before) / len(before)
                arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (column, y), (column - 0.2, start), arrowprops=arrow)
    return figure


def _ancestors(run: Run) -> list[Run]:
    """The runs whose weights it has, oldest first, and itself."""
    before = _ancestors(run.teacher) if run.needs_teacher and run.teacher is not None else []
    return [*before, run]
