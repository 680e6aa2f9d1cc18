"""The curves of a study: accuracy and loss against what training costs, and where every seed ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from n2n_cli.studies.by_stage import after_stages
from n2n_cli.studies.inference import summarize
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics
from n2n_cli.studies.style import FONT, LIGHT, blank, dress, look, short

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g}%")

UNITS = {"step": "optimizer steps", "images": "training images", "flops": "training FLOPs", "time_s": "wall time, s"}
"""What a curve may be drawn against, as `Evaluation` calls it and as its axis does."""

Series = tuple[list[int], list[float]]


class Mark(NamedTuple):
    """A line whose marks say something where they are pointed at: its id in the SVG, and one text a mark."""

    gid: str
    texts: list[str]


def curves(arms: Sequence[ArmStatistics]) -> Figure:
    """Four panels: validation accuracy over the whole run and in the first epoch, training loss, where seeds ended.

    A line is the mean over an arm's finished seeds; with three or more the band is one standard deviation,
    with two the seeds are drawn thin. Runs that are not finished are thin lines without a mean. Of many arms, or of
    long names, the last panel has a row of its own.
    """
    with matplotlib.rc_context(FONT):
        rows, longest = len(arms), max((len(arm.title) for arm in arms), default=0)
        many = rows > 8 or (rows > 6 and longest > 24)
        columns, extra = _legend_columns(arms)
        figure = blank(10.4, 7.9 + extra + (0.3 * rows if many else 0))
        above, panels = _panels(figure, many, 6.6 + extra, 0.3 * rows + 0.6)
        whole, zoom, loss, finals = (panels[name] for name in ("whole", "zoom", "loss", "finals"))
        metric = _metric(arms)
        _accuracy(arms, whole, "step", f"(a) Validation {metric}, whole run")
        _first(arms, zoom, f"(b) Validation {metric}, first epoch")
        _loss(arms, loss, "step", "(c) Training loss")
        _finals(arms, finals, f"(d) Final validation {metric}, every seed", one_line=many)
        _legend(above, arms, columns)
    return figure


def costs(arms: Sequence[ArmStatistics]) -> Figure:
    """Validation accuracy against images, FLOPs and wall time."""
    units = [unit for unit in known_units(arms) if unit != "step"]
    with matplotlib.rc_context(FONT):
        columns, extra = _legend_columns(arms)
        figure = blank(3.6 * len(units), 3.9 + extra)
        for place, unit in enumerate(units, 1):
            axes = figure.add_subplot(1, len(units), place)
            _accuracy(arms, axes, unit, f"({chr(96 + place)}) Validation {_metric(arms)}" if place == 1 else "")
        _legend(figure, arms, columns)
    return figure


def by_stage(arms: Sequence[ArmStatistics]) -> Figure:
    """Of a study of stages: accuracy after every stage, against the images that were there and against all FLOPs."""
    found = after_stages(arms)
    shown = [arm for arm in arms if any(at.arm is arm for at in found)]
    with matplotlib.rc_context(FONT):
        columns, extra = _legend_columns(shown)
        figure = blank(9.6, 3.9 + extra)
        left, right = figure.subplots(1, 2)
        for axes, title, name, label in (
            (left, f"(a) Validation {_metric(arms)} after every stage", "fraction", "training images that are there"),
            (right, "(b) The same against what all stages cost", "flops", "training FLOPs so far"),
        ):
            dress(axes, title)
            for arm in shown:
                colour, marker, dashes = look(arm, arms, LIGHT)
                own = [(at, value) for at in found if at.arm is arm and (value := getattr(at, name)) is not None]
                x = [value if name == "fraction" else value.mean for _, value in own]
                y, sd = ([float(getattr(at.final, key) or 0.0) for at, _ in own] for key in ("mean", "sd"))
                line: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes, "linewidth": 1.7}
                axes.errorbar(x, y, yerr=sd if any(sd) else None, markersize=5.5, capsize=2.5, elinewidth=0.9, **line)
            axes.set_xlabel(label)
            axes.yaxis.set_major_formatter(_PERCENT)
        left.set_xticks(sorted({at.fraction for at in found}))
        left.xaxis.set_major_formatter(_PERCENT)
        right.set_xlim(left=0)
        right.xaxis.set_major_locator(MaxNLocator(5))
        right.xaxis.set_major_formatter(FuncFormatter(short))
        _legend(figure, shown, columns)
    return figure


def panel(kind: str, arms: Sequence[ArmStatistics], unit: str = "step") -> tuple[Figure, list[Mark]]:
    """One panel alone, for a page: ``kind`` is accuracy, first, loss or finals; and what its marks say."""
    with matplotlib.rc_context(FONT):
        row = 0.5 if any("(" in arm.title for arm in arms) else 0.34  # two lines or one
        figure = blank(5.2, max(3.5, row * len(arms) + 0.8) if kind == "finals" else 3.5, kind != "finals")
        axes = figure.subplots()
        if kind == "accuracy":
            marks = _accuracy(arms, axes, unit, f"(a) Validation {_metric(arms)}")
        elif kind == "first":
            marks = _first(arms, axes, f"(b) Validation {_metric(arms)}, first epoch")
        elif kind == "loss":
            marks = _loss(arms, axes, unit, "(c) Training loss")
        else:
            marks = _finals(arms, axes, "(d) Where every seed ended", one_line=False)
    return figure, marks


def swatch(arm: ArmStatistics, arms: Sequence[ArmStatistics]) -> Figure:
    """An arm's line and mark, for a legend."""
    colour, marker, dashes = look(arm, arms, LIGHT)
    figure = Figure(figsize=(0.55, 0.16))
    FigureCanvasAgg(figure)
    line: dict[str, Any] = {"linestyle": ":" if arm.arm == "teacher" else dashes, "linewidth": 1.7, "color": colour}
    mark = "" if arm.arm == "teacher" else marker
    figure.add_artist(Line2D([0.04, 0.5, 0.96], [0.5] * 3, marker=mark, markersize=5, markevery=[1], **line))
    return figure


def known_units(arms: Sequence[ArmStatistics]) -> list[str]:
    """What the curves can be drawn against: FLOPs only where run.json says what the networks take."""
    runs = [one.run for arm in arms for one in arm.every]
    return [unit for unit in UNITS if unit != "flops" or any(run.flops_per_image is not None for run in runs)]


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


def _legend_columns(arms: Sequence[ArmStatistics]) -> tuple[int, float]:
    """Columns of a legend, and inches that it takes beyond two rows."""
    longest = max((len(arm.title) for arm in arms), default=0)
    columns = max(1, min(4, 150 // (longest + 14)))
    return columns, 0.22 * max(0, -(-(len(arms) + 1) // columns) - 2)


def _legend(place: Any, arms: Sequence[ArmStatistics], columns: int) -> None:
    handles = []
    for arm in _students(arms):
        colour, marker, dashes = look(arm, arms, LIGHT)
        label = arm.title if arm.n else f"{arm.title}, {'failed' if arm.failed else 'unfinished'}"
        line = {"color": colour, "linewidth": 1.7, "linestyle": dashes, "marker": marker, "markersize": 5}
        handles.append(Line2D([], [], label=label, **line))
    plain: dict[str, Any] = {"color": LIGHT["teacher"], "linewidth": 1.1}
    if _teachers_final(arms) is not None:
        handles.append(Line2D([], [], linestyle=(0, (6, 3)), label="Teacher, final", **plain))
    if any(arm.arm == "teacher" and arm.n for arm in arms):
        handles.append(Line2D([], [], linestyle=":", label="Teacher, own training", **plain))
    ncols = min(columns, len(handles)) if len(handles) != 6 else min(columns, 3)
    style: dict[str, Any] = {"frameon": False, "labelcolor": LIGHT["ink"], "handlelength": 2.6}
    if handles:
        place.legend(handles=handles, loc="outside upper center", ncols=ncols, **style)


def _metric(arms: Sequence[ArmStatistics]) -> str:
    return next((one.run.metric for arm in arms for one in arm.every), "top1").replace("top", "top-")


def _students(arms: Sequence[ArmStatistics]) -> list[ArmStatistics]:
    return [arm for arm in arms if arm.arm != "teacher"]


def _accuracy(arms: Sequence[ArmStatistics], axes: Axes, unit: str, title: str) -> list[Mark]:
    """Accuracy over the whole run. The start of a random network would flatten everything else: it is cut off."""
    dress(axes, title)
    marks = _lines(arms, axes, unit, loss=False)
    _whole_run(arms, axes, unit)
    students = [one for arm in _students(arms) for one in arm.every]
    tops = [at.accuracy for one in students for at in one.run.evaluations]
    ends = [v for one in students for v in (one.final, one.teacher) if v is not None]
    if tops and ends and not any(one.run.stages for one in students):  # whose earlier stages end lower
        low, high = min(ends), max([*tops, *ends])
        axes.set_ylim(max(0.0, low - max(0.04, 1.5 * (high - low))), high + max(0.005, 0.15 * (high - low)))
    axes.yaxis.set_major_formatter(_PERCENT)
    return marks


def _first(arms: Sequence[ArmStatistics], axes: Axes, title: str) -> list[Mark]:
    """Accuracy in the first epoch, on a logarithmic scale of steps."""
    dress(axes, title)
    marks, epoch = _lines(arms, axes, "step", loss=False), _first_epoch(arms)
    evaluations = [at for arm in _students(arms) for one in arm.every for at in one.run.evaluations]
    firsts = sorted({at.step for at in evaluations if 0 < at.step <= epoch * 1.0001})
    if firsts:
        axes.set_xscale("symlog", linthresh=firsts[0], linscale=0.6, base=2)
        axes.set_xticks([0, *(step for i, step in enumerate(firsts) if _power_of_two(i + 1) or i == len(firsts) - 1)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-0.04 * firsts[0], epoch * 1.03)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("optimizer steps (logarithmic scale)")
    axes.set_ylim(0, min(1.0, max((at.accuracy for at in evaluations), default=1.0) + 0.06))
    axes.yaxis.set_major_formatter(_PERCENT)
    return marks


def _loss(arms: Sequence[ArmStatistics], axes: Axes, unit: str, title: str) -> list[Mark]:
    dress(axes, title)
    marks = _lines(arms, axes, unit, loss=True)
    _whole_run(arms, axes, unit)
    return marks


def _whole_run(arms: Sequence[ArmStatistics], axes: Axes, unit: str) -> None:
    """The range of the longest student; a teacher that was trained for longer is cut off."""
    ends = [_until(one.run, [_last_step([arm])], unit)[0] for arm in _students(arms) or arms for one in arm.every]
    last = max([1.0, *ends])
    axes.set_xlim(-0.01 * last, 1.01 * last)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=unit != "time_s"))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel(UNITS[unit])


def _until(run: Run, steps: Sequence[float], unit: str) -> list[float]:
    """What a run had cost at these steps."""
    if unit == "step" or not run.rows:
        return [float(step) for step in steps]
    rows = sorted(run.rows, key=lambda row: int(row["step"]))
    values = [float((run.flops(row) if unit == "flops" else row.get(unit)) or 0.0) for row in rows]
    return [float(value) for value in np.interp(steps, [float(row["step"]) for row in rows], values)]


def _lines(arms: Sequence[ArmStatistics], axes: Axes, unit: str, loss: bool) -> list[Mark]:
    """The students' lines and bands, and the teacher's final accuracy (dashed) and its own way there (dotted)."""
    marks: list[Mark] = []
    for place, arm in enumerate(arms):
        if arm.arm == "teacher":
            continue
        colour, marker, dashes = look(arm, arms, LIGHT)
        width = _bin_width([arm])
        known = [one for one in arm.every if unit != "flops" or one.run.flops_per_image is not None]
        steps, mean, sd = mean_and_spread([_series(one.run, loss, width) for one in known if one.run.finished])
        x = _mean_cost([one.run for one in known if one.run.finished], steps, unit)
        if arm.n >= 3:
            low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.17, linewidth=0)
        for one in known:
            if arm.n == 2 or not one.run.finished:
                own, values = _series(one.run, loss, width)
                thin: dict[str, Any] = {"color": colour, "linewidth": 0.7, "alpha": 0.7, "linestyle": dashes}
                axes.plot(_until(one.run, own, unit), values, **thin)
        dots: dict[str, Any] = {} if loss else {"marker": marker, "markersize": 4.2, "markeredgewidth": 0}
        gid = f"arm{place}"
        axes.plot(x, mean, color=colour, linewidth=1.7, linestyle=dashes, gid=gid, **dots)
        if not loss:
            spreads = [f" ± {100 * s:.1f}" if arm.n > 1 else "" for s in sd]
            at = [f"{short(value)} {UNITS[unit].partition(',')[0]}{' s' if unit == 'time_s' else ''}" for value in x]
            told = [f"{arm.title}: {100 * m:.1f}{s}% at {a}" for m, s, a in zip(mean, spreads, at, strict=True)]
            marks.append(Mark(gid, told))
    plain: dict[str, Any] = {"color": LIGHT["teacher"], "linewidth": 1.1, "zorder": 1.5}
    final = _teachers_final(arms)
    if final is not None and not loss:
        axes.axhline(final, linestyle=(0, (6, 3)), **plain)
    own_runs = [one.run for arm in arms if arm.arm == "teacher" for one in arm.runs]
    steps, mean, _ = mean_and_spread([_series(run, loss, _bin_width(arms)) for run in own_runs])
    if steps:
        axes.plot(_mean_cost(own_runs, steps, unit), mean, linestyle=":", **plain)
    return marks


def _series(run: Run, loss: bool, width: int) -> Series:
    return binned(run.series("train/loss"), width) if loss else run.series(f"val/{run.metric}")


def _mean_cost(runs: Sequence[Run], steps: Sequence[int], unit: str) -> list[float]:
    """What these steps had cost, the mean over the runs: wall time differs from seed to seed."""
    every = [_until(run, steps, unit) for run in runs]
    return [sum(values) / len(values) for values in zip(*every, strict=True)]


def _teachers_final(arms: Sequence[ArmStatistics]) -> float | None:
    final = summarize(one.final for arm in arms if arm.arm == "teacher" for one in arm.runs)
    final = final or summarize(one.teacher for arm in arms for one in arm.every)
    return None if final is None else final.mean


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


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _finals(arms: Sequence[ArmStatistics], axes: Axes, title: str, one_line: bool) -> list[Mark]:
    """A row an arm, in the table's order: every seed a mark, the mean a bar."""
    dress(axes, title)
    rows, marks = [arm for arm in arms if arm.n], []
    for row, arm in enumerate(rows):
        colour, marker, _ = look(arm, arms, LIGHT)
        ended = [(one.run.seed, one.final) for one in arm.runs if one.final is not None]
        values = [final for _, final in ended]
        style: dict[str, Any] = {"linestyle": "", "marker": marker, "markersize": 6.5, "color": colour, "alpha": 0.75}
        axes.plot(values, [row] * len(values), gid=f"final{row}", **style)
        marks.append(Mark(f"final{row}", [f"{arm.title}, seed {seed}: {100 * value:.2f}%" for seed, value in ended]))
        if arm.final is not None and arm.n > 1:
            axes.plot([arm.final.mean] * 2, [row - 0.32, row + 0.32], color=LIGHT["ink"], linewidth=1.6)
    teachers = [arm.final for arm in rows if arm.arm == "teacher" and arm.final is not None]
    for final in teachers[:1]:
        axes.axvline(final.mean, color=LIGHT["teacher"], linewidth=1.1, linestyle=(0, (6, 3)), zorder=1.5)
    titles = [arm.title if one_line else arm.title.replace(" (", "\n(") for arm in rows]
    axes.set_yticks(range(len(rows)), titles, color=LIGHT["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("one mark a seed; bar: mean; dashed: teacher's mean" if teachers else "one mark a seed; bar: mean")
    return marks
