"""The tables of a study: for the terminal, as CSV, and cell by cell for the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from n2n_cli.studies.costs import TEACHER, UNITS, Way
from n2n_cli.studies.inference import Ratio, Summary
from n2n_cli.studies.statistics import ArmStatistics

WIDTH = 160
"""Characters of a terminal's line that the table may take."""
COSTS = tuple(unit for unit in UNITS if unit != "step")


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage without its sign: ``91.42``."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread(summary: Summary | None, digits: int = 2) -> str:
    """``91.42 ± 0.31`` in percent; for one value without a spread."""
    if summary is None:
        return "-"
    return percent(summary.mean, digits) + ("" if summary.sd is None else f" ± {percent(summary.sd, digits)}")


def count(summary: Summary | None) -> str:
    """``1,240 ± 80`` of a number of steps, images or seconds; large ones (FLOPs) as ``1.2e+15 ± 3e+13``."""
    if summary is None:
        return "-"
    if summary.sd is None or not summary.mean:
        return number(summary.mean)
    return f"{number(summary.mean)} ± {number(summary.sd if summary.sd > 1e-9 * summary.mean else 0.0, 2)}"


def number(value: float, digits: int = 3) -> str:
    """``1,240``, ``0.42`` or ``1.24e+15``; ``digits`` are those of the last form."""
    if abs(value) >= 1e8 or 0 < abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10 else f"{value:.2g}"


def way(found: Way | None) -> str:
    """``1,240 ± 80``; where some seeds never got there ``> 1,240 (3/5)``, the restricted mean and how many did."""
    if found is None or not found.censored:
        return count(found.cost if found else None)
    return f"> {number(found.cost.mean)} ({found.reached}/{found.cost.n})"


def ratio(found: Ratio | None) -> str:
    """``2.4 [1.9, 3.1]``, ``> 2.4``; ``at once`` where nothing was needed."""
    if found is None:
        return "-"
    known = f" ({found.n}/{found.of})" if found.n < found.of else ""
    if found.at_once:
        return "at once" + (f" ({found.at_once}/{found.of})" if found.at_once < found.of else "")
    ends = "" if found.interval is None else f" [{found.interval[0]:.3g}, {found.interval[1]:.3g}]"
    return f"{f'{found.bound} ' if found.bound else ''}{found.mean:.3g}{ends}{known}"


def interval(summary: Summary | None, digits: int = 2) -> str:
    """The bootstrap's ``[91.1, 91.7]`` in percent."""
    ends = summary.interval if summary else None
    return "-" if ends is None else f"[{percent(ends[0], digits)}, {percent(ends[1], digits)}]"


def gap(value: float | None) -> str:
    """A function gap: ``0``, ``3.1e-07`` or ``1.9``."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2g}"


def final(arm: ArmStatistics) -> str:
    return spread(arm.final) if arm.n or not arm.failed else "failed"


def to_teacher(arm: ArmStatistics) -> str:
    return way(arm.way(TEACHER)) if arm.teacher is not None else "-"


def highest(arms: Sequence[ArmStatistics]) -> str | None:
    """The threshold of a terminal's table beside the teacher's: the last share below the whole, or the last."""
    names = [name for arm in arms for name in arm.thresholds if name != TEACHER]
    return max(names, key=float, default=None)


def table_text(arms: Sequence[ArmStatistics], width: int = WIDTH) -> str:
    """The table for a terminal: mean ± standard deviation over n finished seeds. Columns that ``width`` has no room
    for are left to the report and the CSV, the last of importance first."""
    best = highest(arms)
    columns: list[tuple[str, int, list[str]]] = [  # head, importance, cells
        ("Arm", 0, [arm.title for arm in arms]),
        ("n", 0, [str(arm.n) for arm in arms]),
        ("Start, %", 1, [spread(arm.start) for arm in arms]),
        ("Final, %", 0, [final(arm) for arm in arms]),
        ("Area, %", 4, [spread(arm.area) for arm in arms]),
        ("Steps to teacher", 2, [to_teacher(arm) for arm in arms]),
        (f"To {best}% of best", 5, [way(arm.way(best)) for arm in arms] if best else []),
        ("FLOPs, all", 3, [count(arm.total("flops")) for arm in arms]),
        ("Seconds, all", 8, [count(arm.total("time_s")) for arm in arms]),
        ("Gap", 7, [gap(arm.gap) for arm in arms]),
        ("Copies, %", 6, [spread(arm.copies, 0) for arm in arms]),
        ("Parameters", 2, ["-" if arm.parameters is None else f"{arm.parameters:,}" for arm in arms]),
    ]
    shown = [column for column in columns if column[2]]
    while sum(max(map(len, [head, *cells])) + 2 for head, _, cells in shown) - 2 > width and len(shown) > 3:
        shown.remove(max(shown, key=lambda column: column[1]))
    return aligned([[head for head, *_ in shown], *zip(*(cells for *_, cells in shown), strict=True)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first to the left, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def failures(arms: Sequence[ArmStatistics]) -> list[str]:
    """One line for every run that was given up: ``failed: wider-lr1e7-seed0, logged to step 3: ...``."""
    return [
        f"failed: {one.run.folder.name}, logged to step {one.run.last.get('step', 0):,}: {one.run.failed}"
        for arm in arms
        for one in arm.failed
    ]


def quantities(arm: ArmStatistics) -> dict[str, Summary | None]:
    """Everything that is measured over seeds, by the name of its columns in table.csv."""
    found = {name: getattr(arm, name) for name in ("start", "best", "final", "area", "copies")}
    found |= {unit: arm.own(unit) for unit in COSTS}
    found |= {f"total_{unit}": arm.total(unit) for unit in COSTS}
    for name in arm.thresholds:
        for unit in UNITS:
            taken = arm.way(name, unit)
            found[way_name(name, unit)] = taken.cost if taken else None
    return found


def way_name(threshold: str, unit: str) -> str:
    return f"{'steps' if unit == 'step' else unit}_to_{threshold}"


def table_csv(arms: Sequence[ArmStatistics]) -> str:
    """The table as CSV: of every quantity n, mean, sd and the ends of its bootstrap interval, accuracies as fractions.

    What is not known (an sd of one seed) is an empty cell. ``reached_...`` counts the seeds that got to a threshold;
    the others stand in mean, sd and interval with the whole length of their run.
    """
    every = [quantities(arm) for arm in arms]
    names = list(dict.fromkeys(name for found in every for name in found))
    thresholds = list(dict.fromkeys(name for arm in arms for name in arm.thresholds))
    rows: list[list[object]] = [
        [
            *("arm", "label", "n", *(f"reached_{name}" for name in thresholds)),
            *(f"{name}_{part}" for name in names for part in ("n", "mean", "sd", "low", "high")),
            *("function_gap", "parameters", "lr", "epochs"),
        ]
    ]
    for arm, found in zip(arms, every, strict=True):
        ways = [arm.way(name) for name in thresholds]
        rows.append([arm.key, arm.title, arm.n, *(None if taken is None else taken.reached for taken in ways)])
        for name in names:
            summary = found.get(name)
            ends = summary.interval if summary else None
            low, high, _ = ends or (None, None, None)
            rows[-1] += [*([summary.n, summary.mean, summary.sd] if summary else [None] * 3), low, high]
        rows[-1] += [arm.gap, arm.parameters, arm.info("lr"), arm.info("epochs")]
    return written(rows)


def curves_csv(arms: Sequence[ArmStatistics]) -> str:
    """Every evaluation of every run, with what it had cost until then."""
    rows: list[list[object]] = [["arm", "seed", "finished", *UNITS, "epoch", "accuracy"]]
    for arm in arms:
        for one in arm.every:
            for at in one.run.evaluations:
                taken = [getattr(at, unit) for unit in UNITS]
                rows.append([arm.key, one.run.seed, int(one.run.finished), *taken, at.epoch, at.accuracy])
    return written(rows)


def written(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; None and what is not finite are empty."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_plain(value) for value in row] for row in rows])
    return out.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
