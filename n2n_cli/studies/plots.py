"""The curves of a study: accuracy and loss against optimizer steps, and where every seed ended.

Colours are those of Okabe and Ito (safe for the colour-blind); markers tell the arms apart without colour.
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
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from n2n_cli.arms import find
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, summarize

# Variants of one arm, in turn: how far its colour goes to the ink (negative: to the ground), and the dashes.
_VARIANTS: tuple[tuple[float, Any], ...] = (
    (0.0, "-"),
    (-0.45, (0, (6, 1.5))),
    (0.55, (0, (2, 1.2))),
    (-0.2, (0, (6, 1.5, 1.5, 1.5))),
)
_MARKERS = ("o", "s", "^")  # of more variants than there are dashes
_LIGHT = {"ground": "#ffffff", "ink": "#222222", "grid": "#e4e4e4", "teacher": "#555555"}
_DARK = {"ground": "#16181b", "ink": "#d8d8d4", "grid": "#303338", "teacher": "#b0b0aa"}
_FONT: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 11.5,
    "svg.fonttype": "path",
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")

Series = tuple[list[int], list[float]]


def curves(arms: Sequence[ArmStatistics], *, dark: bool = False) -> Figure:
    """Four panels: validation top-1 over the whole run and in the first epoch, training loss, final top-1.

    A line is the mean over an arm's finished seeds; with three or more the band is one standard deviation,
    with two the seeds are drawn thin. Runs that are not finished are thin lines without a mean. Of many arms, or of
    long names, the last panel has a row of its own.
    """
    theme = _DARK if dark else _LIGHT
    with matplotlib.rc_context(_FONT):
        rows, longest = len(arms), max((len(arm.title) for arm in arms), default=0)
        many = rows > 8 or (rows > 6 and longest > 24)
        columns = max(1, min(4, 150 // (longest + 14)))
        legend = 0.22 * max(0, -(-(rows + 1) // columns) - 2)
        height = 7.9 + legend + (0.3 * rows if many else 0)
        figure = Figure(figsize=(10.4, height), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor=theme["ground"])
        FigureCanvasAgg(figure)
        above, panels = _panels(figure, many, 6.6 + legend, 0.3 * rows + 0.6)
        whole, zoom, loss, finals = (panels[name] for name in ("whole", "zoom", "loss", "finals"))
        for axes, title in zip(
            (whole, zoom, loss, finals),
            (
                "(a) Validation top-1, whole run",
                "(b) Validation top-1, first epoch",
                "(c) Training loss",
                "(d) Final validation top-1, every seed",
            ),
            strict=True,
        ):
            _dress(axes, title, theme)
        handles = [_draw(arm, _look(arm, arms, theme), (whole, zoom, loss)) for arm in _students(arms)]
        handles += _teacher(arms, (whole, zoom, loss), theme)
        _ranges(arms, whole, zoom, loss)
        _finals(arms, finals, theme, one_line=many)
        above.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(columns, len(handles)) if len(handles) != 6 else min(columns, 3),
            frameon=False,
            labelcolor=theme["ink"],
            handlelength=2.6,
        )
        figure.draw_without_rendering()
    return figure


def _panels(figure: Figure, many: bool, upper: float, lower: float) -> tuple[Any, dict[str, Any]]:
    """Where the legend goes, and the panels; of ``many`` arms, the last one has a row and margins of its own."""
    if not many:
        return figure, figure.subplot_mosaic([["whole", "zoom"], ["loss", "finals"]])
    parts: Any = figure.subfigures(2, 1, height_ratios=[upper, lower])
    above, below = parts
    for part in (above, below):
        part.set_facecolor(figure.get_facecolor())
    panels = above.subplot_mosaic([["whole", "zoom"], ["loss", "loss"]], height_ratios=[3.3, 2.6])
    return above, {**panels, "finals": below.subplots()}


def png(figure: Figure, *, dpi: int = 170) -> bytes:
    """The figure as a PNG."""
    out = io.BytesIO()
    with matplotlib.rc_context(_FONT):
        figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG; the same figure gives the same bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context({**_FONT, "svg.hashsalt": "n2n"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def mean_and_spread(series: Sequence[Series]) -> tuple[list[int], list[float], list[float]]:
    """Steps that every seed has, the mean there, and the sample standard deviation (0 for one seed)."""
    tables = [dict(zip(steps, values, strict=True)) for steps, values in series if steps]
    common = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    summaries = [summarize(table[step] for table in tables) for step in common]
    return common, [one.mean for one in summaries if one], [one.sd or 0.0 for one in summaries if one]


def binned(series: Series, width: int) -> Series:
    """Means over ``width`` steps, put at each bin's last step."""
    bins: dict[int, list[float]] = {}
    for step, value in zip(*series, strict=True):
        bins.setdefault(-(-step // width) * width, []).append(value)
    return list(bins), [sum(values) / len(values) for values in bins.values()]


def _students(arms: Sequence[ArmStatistics]) -> list[ArmStatistics]:
    return [arm for arm in arms if arm.arm != "teacher"]


def _look(arm: ArmStatistics, arms: Sequence[ArmStatistics], theme: dict[str, str]) -> tuple[str, str, Any]:
    """Colour, marker and dashes of an arm: its name's own, changed by its place among the variants."""
    (on_white, on_dark), marker = find(arm.arm).colours, find(arm.arm).marker
    place = [other.key for other in arms if other.arm == arm.arm].index(arm.key)
    turn, place = divmod(place, len(_VARIANTS))
    amount, dashes = _VARIANTS[place]
    markers = [marker, *(other for other in _MARKERS if other != marker)]
    amount, marker = amount + 0.25 * (turn % 2), markers[turn % len(markers)]
    here = to_rgb(on_dark if theme is _DARK else on_white)
    there = to_rgb(theme["ink"] if amount > 0 else theme["ground"])
    red, green, blue = ((1 - abs(amount)) * a + abs(amount) * b for a, b in zip(here, there, strict=True))
    return to_hex((red, green, blue)), marker, dashes


def _last_step(arms: Sequence[ArmStatistics]) -> int:
    own = _students(arms) or arms
    return max((int(one.run.last.get("step", 0)) for arm in own for one in arm.every), default=0)


def _first_epoch(arms: Sequence[ArmStatistics]) -> float:
    """Steps in one epoch, from any row that tells."""
    for arm in reversed(arms):
        for one in arm.every:
            if float(one.run.last.get("epoch", 0)) > 0:
                return float(one.run.last["step"]) / float(one.run.last["epoch"])
    return 1.0


def _bin_width(arms: Sequence[ArmStatistics]) -> int:
    return max(1, _last_step(arms) // 60)


def _dress(axes: Axes, title: str, theme: dict[str, str]) -> None:
    axes.set_facecolor(theme["ground"])
    axes.set_title(title, loc="left", color=theme["ink"], fontsize=12.5)
    axes.grid(color=theme["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme["ink"], length=3)
    axes.xaxis.label.set_color(theme["ink"])
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme["ink"])
        spine.set_linewidth(0.7)


def _draw(arm: ArmStatistics, look: tuple[str, str, Any], panels: tuple[Axes, Axes, Axes]) -> Line2D:
    colour, marker, dashes = look
    width = _bin_width([arm])
    for axes in panels:

        def read(run: Run, axes: Axes = axes) -> Series:
            return binned(run.series("train/loss"), width) if axes is panels[2] else run.series("val/top1")

        steps, mean, sd = mean_and_spread([read(one.run) for one in arm.runs])
        if arm.n >= 3:
            low, high = (
                [m - s for m, s in zip(mean, sd, strict=True)],
                [m + s for m, s in zip(mean, sd, strict=True)],
            )
            axes.fill_between(steps, low, high, color=colour, alpha=0.17, linewidth=0)
        for one in [*(arm.runs if arm.n == 2 else []), *arm.unfinished]:
            axes.plot(*read(one.run), color=colour, linewidth=0.7, alpha=0.7, linestyle=dashes)
        marks: dict[str, Any] = {} if axes is panels[2] else {"marker": marker, "markersize": 4.2, "markeredgewidth": 0}
        axes.plot(steps, mean, color=colour, linewidth=1.7, linestyle=dashes, **marks)
    label = arm.title if arm.n else f"{arm.title}, {'failed' if arm.failed else 'unfinished'}"
    return Line2D([], [], color=colour, linewidth=1.7, linestyle=dashes, marker=marker, markersize=5, label=label)


def _teacher(arms: Sequence[ArmStatistics], panels: tuple[Axes, Axes, Axes], theme: dict[str, str]) -> list[Line2D]:
    """The teacher's final accuracy (dashed) and its own way there (dotted)."""
    colour, handles = theme["teacher"], []
    final = summarize(one.final for arm in arms if arm.arm == "teacher" for one in arm.runs)
    if final is None:
        final = summarize(one.teacher for arm in arms for one in arm.every)
    if final is not None:
        for axes in panels[:2]:
            axes.axhline(final.mean, color=colour, linewidth=1.1, linestyle=(0, (6, 3)), zorder=1.5)
        handles.append(Line2D([], [], color=colour, linewidth=1.1, linestyle=(0, (6, 3)), label="Teacher, final"))
    own = [one.run for arm in arms if arm.arm == "teacher" for one in arm.runs]
    if own:
        width = _bin_width(arms)
        for axes in panels:
            way = [binned(r.series("train/loss"), width) if axes is panels[2] else r.series("val/top1") for r in own]
            steps, mean, _ = mean_and_spread(way)
            axes.plot(steps, mean, color=colour, linewidth=1.1, linestyle=":", zorder=1.5)
        handles.append(Line2D([], [], color=colour, linewidth=1.1, linestyle=":", label="Teacher, own training"))
    return handles


def _ranges(arms: Sequence[ArmStatistics], whole: Axes, zoom: Axes, loss: Axes) -> None:
    last, epoch = max(1, _last_step(arms)), _first_epoch(arms)
    for axes in (whole, loss):
        axes.set_xlim(-0.01 * last, 1.01 * last)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    students = [one for arm in _students(arms) for one in arm.every]
    tops = [at.top1 for one in students for at in one.run.evaluations]
    ends = [v for one in students for v in (one.final, one.teacher) if v is not None]
    if tops and ends:  # the start of a random network would flatten everything else: it is in the other panel
        low, high = min(ends), max([*tops, *ends])
        whole.set_ylim(max(0.0, low - max(0.04, 1.5 * (high - low))), high + max(0.005, 0.15 * (high - low)))
    firsts = sorted({at.step for one in students for at in one.run.evaluations if 0 < at.step <= epoch * 1.0001})
    if firsts:
        zoom.set_xscale("symlog", linthresh=firsts[0], linscale=0.6, base=2)
        zoom.set_xticks([0, *(step for i, step in enumerate(firsts) if _power_of_two(i + 1) or i == len(firsts) - 1)])
        zoom.xaxis.set_minor_locator(NullLocator())
        zoom.set_xlim(-0.04 * firsts[0], epoch * 1.03)
    zoom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    zoom.set_xlabel("optimizer step (logarithmic scale)")
    zoom.set_ylim(0, min(1.0, max(tops, default=1.0) + 0.06))
    for axes in (whole, zoom):
        axes.yaxis.set_major_formatter(_PERCENT)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _finals(arms: Sequence[ArmStatistics], axes: Axes, theme: dict[str, str], one_line: bool) -> None:
    """A row an arm, in the table's order: every seed a mark, the mean a bar."""
    rows = [arm for arm in arms if arm.n]
    for row, arm in enumerate(rows):
        colour, marker, _ = _look(arm, arms, theme)
        values = [one.final for one in arm.runs if one.final is not None]
        axes.plot(values, [row] * len(values), linestyle="", marker=marker, markersize=6.5, color=colour, alpha=0.75)
        if arm.final is not None and arm.n > 1:
            axes.plot([arm.final.mean] * 2, [row - 0.32, row + 0.32], color=theme["ink"], linewidth=1.6)
    teachers = [arm.final for arm in rows if arm.arm == "teacher" and arm.final is not None]
    for final in teachers[:1]:
        axes.axvline(final.mean, color=theme["teacher"], linewidth=1.1, linestyle=(0, (6, 3)), zorder=1.5)
    titles = [arm.title if one_line else arm.title.replace(" (", "\n(") for arm in rows]
    axes.set_yticks(range(len(rows)), titles, color=theme["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("one mark a seed; bar: mean; dashed: teacher's mean" if teachers else "one mark a seed; bar: mean")
