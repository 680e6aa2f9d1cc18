"""A study's report: one HTML file that opens without a network; curves.png, table.csv, the overlay."""

from __future__ import annotations

import base64
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
from n2n_cli.studies import overlay, plots, settings, table
from n2n_cli.studies.findings import findings
from n2n_cli.studies.runs import Run, collect
from n2n_cli.studies.statistics import ArmStatistics, RunStatistics, statistics


class Paths(NamedTuple):
    """What `write` wrote: three files, and the folder of TensorBoard's averaged runs."""

    report: Path
    curves: Path
    table: Path
    overlay: Path


def write(folder: str | Path, *, title: str, command: str) -> Paths:
    """Writes ``report.html``, ``curves.png``, ``table.csv`` and the overlay into a study's folder, each anew.

    Args:
        folder: the study: one run folder an arm and seed. Runs not finished are named, and in no mean.
        title: the report's title.
        command: what to type to repeat the study.

    Raises:
        N2NError: no run is there, a file of a run cannot be read, or the report cannot be written.
    """
    folder = Path(folder)
    arms = statistics(collect(folder))
    light = plots.curves(arms)
    paths = Paths(folder / "report.html", folder / "curves.png", folder / "table.csv", folder / overlay.FOLDER)
    try:
        _put(paths.curves, plots.png(light))
        _put(paths.table, table.table_csv(arms).encode())
        pictures = {"light": plots.svg(light), "dark": plots.svg(plots.curves(arms, dark=True))}
        _put(paths.report, html(folder, arms, pictures, title=title, command=command).encode())
        overlay.write(folder, arms)
    except OSError as error:
        raise N2NError(f"cannot write the report in {folder}: {error.strerror or error}") from None
    return paths


def html(folder: Path, arms: Sequence[ArmStatistics], pictures: dict[str, bytes], *, title: str, command: str) -> str:
    """The page. ``pictures`` are the curves as SVG for a "light" and a "dark" ground."""
    from n2n_cli import lineage  # brings torch, which nothing else here needs

    every = [one for arm in arms for one in arm.every]
    runs = [one.run for one in every]
    students = [arm for arm in arms if arm.arm != "teacher"]
    theirs = [one.run for arm in students for one in arm.every]
    example = (theirs or runs)[0]
    return _template().render(
        title=title,
        command=command,
        folder=folder,
        version=__version__,
        now=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        arms=arms,
        runs=runs,
        students=students,
        teacher=next((arm for arm in arms if arm.arm == "teacher"), None),
        seeds=max(arm.n for arm in arms),
        networks=_listed(_network(run) for run in runs),
        data=_listed(str(run.info.get("data", "?")) for run in runs),
        synthetic=any(run.info.get("synthetic") for run in runs),
        lengths=_listed((_plain(arm.info("epochs")) for arm in students), " or "),
        differing=_listed(settings.differing(theirs)),
        arm_rows=[_arm_row(arm) for arm in arms],
        findings=findings(arms),
        main_head=table.HEAD,
        main_rows=[table.cells(arm) for arm in arms],
        pictures={scheme: base64.b64encode(svg).decode() for scheme, svg in pictures.items()},
        seed_rows=[_seed_row(arm, one) for arm in arms for one in arm.every],
        lineage_rows=[[arm.title, " → ".join(lineage.describe(arm.info("lineage") or {})) or None] for arm in arms],
        shared=settings.shared(theirs or runs),
        example=example,
        config=settings.text(example),
        machines=Counter(_machine(run) for run in runs),
        duration=_duration(sum(one.time_s or 0.0 for one in every)),
        commands=list(dict.fromkeys(str(run.info["command"]) for run in runs if run.info.get("command"))),
    )


def typeset(value: object) -> Markup:
    """A value as HTML: ``±`` is kept with its numbers, ``3.1e-07`` is set as a power of ten, nothing as a dash."""
    text = str(escape(_plain(value))).replace(" ± ", "\u00a0±\u00a0")
    return Markup("–" if text == "-" else re.sub(r"\b(\d\.\d)e-0?(\d+)\b", "\\1\u00a0×\u00a010<sup>−\\2</sup>", text))


def _template() -> Template:
    here = FileSystemLoader(Path(__file__).parent)
    # Strict: a name that nobody hands in is an error, not an empty place in the report.
    html = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html.filters["typeset"] = typeset
    return html.get_template("report.html.j2")


def _arm_row(arm: ArmStatistics) -> list[object]:
    operator = ", ".join(f"{key} {_plain(value)}" for key, value in settings.of_operator(arm.every[0].run).items())
    how = find(arm.arm).meaning + (f" ({operator})" if operator else "")
    macs, size = arm.info("macs"), arm.parameters
    shown = f"{macs / 1e6:,.2f} M" if isinstance(macs, int | float) else None
    return [arm.title, how, arm.info("lr"), arm.info("epochs"), None if size is None else f"{size:,}", shown]


def _seed_row(arm: ArmStatistics, one: RunStatistics) -> list[object]:
    """A run of `arm`, whose title stands in the row of its first run only."""
    step = f"{'unfinished' if one.run.failed is None else 'failed'}, step {one.run.last.get('step', 0):,}"
    never = "never" if one.run.finished and one.teacher is not None else None
    return [
        arm.title if one is arm.every[0] else "",
        one.run.seed,
        table.percent(one.start),
        never if one.reached is None else f"{one.reached.step:,}",
        table.percent(one.best),
        table.percent(one.final) if one.run.finished else step,
        table.percent(one.teacher),
        table.gap(one.gap),
        _copies(one.run.done or {}),
        None if one.time_s is None else f"{one.time_s:,.0f}",
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
