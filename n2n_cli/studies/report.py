"""A study's report: one HTML file that opens without a network, its pictures and tables as files, the overlay."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from n2n_cli import __version__
from n2n_cli.arms import find
from n2n_cli.errors import N2NError
from n2n_cli.studies import by_stage, comparisons, headline, inline, overlay, pedigree, plots, settings, style, table
from n2n_cli.studies.collect import collect
from n2n_cli.studies.costs import SHARES
from n2n_cli.studies.findings import findings
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, RunStatistics, statistics


class Paths(NamedTuple):
    """What `write` wrote: the page, the picture and the table to look at first, TensorBoard's averaged runs."""

    report: Path
    curves: Path
    table: Path
    overlay: Path


def write(
    folder: str | Path,
    *,
    title: str,
    command: str,
    runs: Sequence[Run] | None = None,
    metric: str = "top1",
    thresholds: Sequence[float] = SHARES,
    left_out: Sequence[str] = (),
) -> Paths:
    """Writes a study's report, pictures, tables and overlay into its folder, each anew.

    ``report.html``; ``curves``, ``costs`` and ``lineage`` as PNG and SVG; ``table.csv`` (every quantity over seeds),
    ``comparisons.csv`` (paired differences and speed-ups) and ``curves.csv`` (every evaluation); of a study of stages
    ``stages`` as PNG, SVG and CSV.

    Args:
        folder: the study: one run folder an arm and seed. Runs not finished are named, and in no mean.
        title: the report's title.
        command: what to type to repeat the study.
        runs: those to report, where they are not all that lie in the folder.
        metric: the accuracy that is compared, top1 or top5.
        thresholds: shares of the highest final accuracy; what it takes to reach them is told.
        left_out: a sentence for every run that was to be reported and cannot be.

    Raises:
        N2NError: no run is there, a file of a run cannot be read, or the report cannot be written.
    """
    folder = Path(folder)
    of = made(folder, metric, thresholds)  # first: a run that ends meanwhile is not in it
    arms = statistics(collect(folder, metric) if runs is None else runs, thresholds)
    paths = Paths(folder / "report.html", folder / "curves.png", folder / "table.csv", folder / overlay.FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"curves": plots.curves, "costs": plots.costs, "lineage": pedigree.picture}
        if by_stage.after_stages(arms):
            figures["stages"] = plots.by_stage
            _put(folder / "stages.csv", by_stage.stages_csv(arms).encode())
        for name, figure in figures.items():
            drawn = figure(arms)
            _put(folder / f"{name}.png", style.png(drawn))
            drawn.set_layout_engine("none")  # it is laid out: again would take as long as drawing
            _put(folder / f"{name}.svg", style.svg(drawn))
        _put(paths.table, table.table_csv(arms).encode())
        _put(folder / "comparisons.csv", comparisons.comparisons_csv(arms).encode())
        _put(folder / "curves.csv", table.curves_csv(arms).encode())
        _put(
            paths.report,
            html(folder, arms, title=title, command=command, made=of, left_out=left_out).encode(),
        )
        overlay.write(folder, arms)
    except OSError as error:
        raise N2NError(f"cannot write the report in {folder}: {error.strerror or error}") from None
    return paths


def made(folder: Path, metric: str, thresholds: Sequence[float]) -> str:
    """What a report says of how it was made, and of which ends of runs; one that says otherwise is written again."""
    ends = hashlib.sha256()
    for path in sorted([*folder.glob("*/done.json"), *folder.glob("*/failed.json")]):
        ends.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return f"{__version__} {metric} {' '.join(f'{share:g}' for share in thresholds)} {ends.hexdigest()[:16]}"


def current(folder: Path, metric: str, thresholds: Sequence[float]) -> bool:
    """Whether the folder's report is of every run in it, and made for this metric and these thresholds."""
    page = folder / "report.html"
    if not (page.exists() and (folder / "curves.png").exists()):
        return False
    return f'<meta name="n2n" content="{made(folder, metric, thresholds)}">' in page.read_text(errors="replace")[:1000]


def html(
    folder: Path,
    arms: Sequence[ArmStatistics],
    *,
    title: str,
    command: str,
    made: str = "",
    left_out: Sequence[str] = (),
) -> str:
    """The page."""
    every = [one for arm in arms for one in arm.every]
    runs = [one.run for one in every]
    students = [arm for arm in arms if arm.arm != "teacher"]
    theirs = [one.run for arm in students for one in arm.every]
    example = (theirs or runs)[0]
    colours = inline.palette(arms)
    return _template().render(
        title=title,
        made=made,
        command=settings.portable(command),
        folder=folder.name,
        version=__version__,
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        arms=arms,
        runs=runs,
        students=students,
        teacher=next((arm for arm in arms if arm.arm == "teacher"), None),
        seeds=max(arm.n for arm in arms),
        networks=_listed(_network(run) for run in runs),
        data=_listed(str(run.info.get("data", "?")) for run in runs),
        metric=example.metric.replace("top", "top-"),
        claim=settings.portable(headline.claim(arms)),
        warnings=[settings.portable(text) for text in (*headline.warnings(arms), *left_out)],
        lengths=_listed((_plain(arm.info("epochs")) for arm in students), " or "),
        differing=_listed(settings.differing(theirs)),
        arm_rows=[_arm_row(arm) for arm in arms],
        findings=findings(arms),
        stage_head=by_stage.HEAD,
        stage_rows=(stage_rows := by_stage.rows(arms)),
        stage_picture=Markup(inline.inline(plots.by_stage(arms), "stages", _STAGES, colours) if stage_rows else ""),
        main_rows=[_main_row(arm) for arm in arms],
        difference_rows=comparisons.differences(arms),
        way_rows=comparisons.ways(arms),
        speedup_rows=comparisons.speedups(arms),
        total_rows=comparisons.totals(arms),
        colours=colours.values(),
        light=[(name, value) for value, (name, _) in colours.items()],
        units=[(unit, plots.UNITS[unit].partition(",")[0]) for unit in plots.known_units(arms)],
        legend=[(Markup(_swatch(arm, arms, colours)), _legend(arm)) for arm in arms],
        panels=[Panel(*panel) for panel in _panels(arms, colours)],
        lineage=Markup(inline.inline(pedigree.picture(arms), "lineage", "Lineage of every student", colours)),
        seed_rows=[_seed_row(arm, one) for arm in arms for one in arm.every],
        lineage_rows=[_lineage_row(arm) for arm in arms],
        shared=settings.shared(theirs or runs),
        arm_settings=_arm_settings(students),
        example=example,
        config=settings.text(example),
        images=_images(example),
        machines=Counter(_machine(run) for run in runs),
        duration=_duration(sum(one.own.time_s or 0.0 for one in every)),
        commands=list(dict.fromkeys(str(run.info["command"]) for run in runs if run.info.get("command"))),
    )


_STAGES = "Validation accuracy after every stage, against images there and against all FLOPs"


class Panel(NamedTuple):
    """One picture of Figure 1: of one unit, or of all (None)."""

    unit: str | None
    svg: Markup


def _panels(arms: Sequence[ArmStatistics], colours: Mapping[str, tuple[str, str]]) -> list[tuple[str | None, Markup]]:
    """Accuracy by every unit, the first epoch, loss by every unit, the ends of all seeds."""
    units: list[str] = plots.known_units(arms)
    wanted: list[tuple[str, str | None]] = [("accuracy", unit) for unit in units]
    wanted += [("first", None), *(("loss", unit) for unit in units), ("finals", None)]
    panels = []
    for kind, unit in wanted:
        figure, marks = plots.panel(kind, arms, unit or "step")
        against = f" against {plots.UNITS[unit]}" if unit else ""
        label = f"{_SHOWN[kind]}{against}: {', '.join(arm.title for arm in arms)}"
        panels.append((unit, Markup(inline.inline(figure, f"{kind}-{unit or 'all'}", label, colours, marks))))
    return panels


_SHOWN = {
    "accuracy": "Validation accuracy",
    "first": "Validation accuracy in the first epoch",
    "loss": "Training loss",
    "finals": "Final validation accuracy of every seed",
}


def _swatch(arm: ArmStatistics, arms: Sequence[ArmStatistics], colours: Mapping[str, tuple[str, str]]) -> str:
    return inline.inline(plots.swatch(arm, arms), f"swatch{list(arms).index(arm)}", "", colours)


def _legend(arm: ArmStatistics) -> str:
    if arm.arm == "teacher":
        return f"{arm.title}, own training"
    return arm.title if arm.n else f"{arm.title}, {'failed' if arm.failed else 'unfinished'}"


def typeset(value: object) -> Markup:
    """A value as HTML: ``±``, ``=``, ``<`` and ``>`` are kept with their numbers, ``3.1e-07`` is set as a power of ten,
    nothing as a dash."""
    text = re.sub(r" [±=] |(?<![^\s(])[<>] (?=\d)", lambda found: found[0].replace(" ", "\u00a0"), _plain(value))
    text = str(escape(text))
    return Markup("–" if text == "-" else re.sub(r"\b(\d(?:\.\d+)?)e([+-])0?(\d+)\b", _power, text))


def _power(found: re.Match[str]) -> str:
    return f"{found[1]}\u00a0×\u00a010<sup>{'−' if found[2] == '-' else ''}{found[3]}</sup>"


def sort_key(value: object) -> str:
    """The first number in a cell, which its column is sorted by; empty of text."""
    found = re.match(r"[>< \[]*([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)", _plain(value))
    return found[1].replace(",", "").replace("−", "-").lstrip("+") if found else ""


def _template() -> Template:
    here = FileSystemLoader(Path(__file__).parent)
    # Strict: a name that nobody hands in is an error, not an empty place in the report.
    html = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html.filters |= {"typeset": typeset, "sort_key": sort_key}
    return html.get_template("report.html.j2")


def _arm_row(arm: ArmStatistics) -> list[object]:
    operator = ", ".join(f"{key} {_plain(value)}" for key, value in settings.of_operator(arm.every[0].run).items())
    how = find(arm.arm).meaning + (f" ({operator})" if operator else "")
    macs, size = arm.info("macs"), arm.parameters
    shown = f"{macs / 1e6:,.2f} M" if isinstance(macs, int | float) else None
    return [arm.title, how, arm.info("lr"), arm.info("epochs"), None if size is None else f"{size:,}", shown]


def _main_row(arm: ArmStatistics) -> list[object]:
    return [
        arm.title, arm.n, table.spread(arm.start), table.final(arm), table.interval(arm.final),
        table.spread(arm.best), table.spread(arm.area), table.interval(arm.area),
        table.to_teacher(arm), table.gap(arm.gap), table.spread(arm.copies, 0),
    ]  # fmt: skip


def _lineage_row(arm: ArmStatistics) -> list[object]:
    from n2n_cli import lineage  # brings torch, which nothing else here needs

    return [arm.title, " → ".join(lineage.describe(arm.info("lineage") or {})) or None]


def _arm_settings(students: Sequence[ArmStatistics]) -> list[list[object]]:
    """The settings in which the arms differ, a row an arm, names first; empty if there are none."""
    found = settings.by_arm([arm.every[0].run for arm in students]) if students else {}
    if not found:
        return []
    rows = zip(*found.values(), strict=True)
    return [["Arm", *found], *([arm.title, *row] for arm, row in zip(students, rows, strict=True))]


def _images(run: Run) -> dict[str, object]:
    """What run.json says of the images."""
    told, lineage = run.info.get("images") or {}, run.info.get("lineage") or {}
    steps = lineage.get("steps") or [{}]
    classes = len(lineage["classes"]) if lineage.get("classes") else steps[0].get("num_classes")
    found = {"name": run.info.get("data"), "classes": classes, "training images": told.get("train")}
    found |= {"validation images": told.get("val"), "digest of the file names": told.get("files")}
    return {key: value for key, value in found.items() if value is not None}


def _seed_row(arm: ArmStatistics, one: RunStatistics) -> list[object]:
    step = f"{'unfinished' if one.run.failed is None else 'failed'}, step {one.run.last.get('step', 0):,}"
    never = "never" if one.run.finished and one.teacher is not None else None
    return [
        arm.title,
        one.run.seed,
        table.percent(one.start),
        never if one.reached is None else f"{one.reached.step:,}",
        table.percent(one.best),
        table.percent(one.final) if one.run.finished else step,
        table.percent(one.teacher),
        table.gap(one.gap),
        _copies(one.run.done or {}),
        table.percent(one.area),
        None if one.own.time_s is None else f"{one.own.time_s:,.0f}",
    ]


def _copies(done: Mapping[str, Any]) -> str | None:
    if not done.get("units"):
        return None
    equal, near = done["units/copies"], done["units/near_copies"]
    return f"{equal}{f' ({near})' if near != equal else ''} of {done['units']}"


def _listed(words: Iterable[str], between: str = ", ") -> str:
    return between.join(dict.fromkeys(words))


def _network(run: Run) -> str:
    steps = (run.info.get("lineage") or {}).get("steps") or [{}]
    return str(steps[0].get("name", "a network"))


def _machine(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple((key, _plain(value)) for key, value in (run.info.get("machine") or {}).items())


def _plain(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never sees half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
