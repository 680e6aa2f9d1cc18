"""The table of a study: for the terminal, as CSV, and cell by cell for the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from n2n_cli.studies.statistics import ArmStatistics, Summary

HEAD = (
    "Arm",
    "n",
    "Start, %",
    "Steps to teacher",
    "Images to teacher",
    "Best, %",
    "Final, %",
    "Gap",
    "Copies, %",
    "Parameters",
)


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage without its sign: ``91.42``."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread(summary: Summary | None, digits: int = 2) -> str:
    """``91.42 ± 0.31`` in percent; for one value without a spread."""
    if summary is None:
        return "-"
    return percent(summary.mean, digits) + ("" if summary.sd is None else f" ± {percent(summary.sd, digits)}")


def count(summary: Summary | None) -> str:
    """``1,240 ± 80`` of a number of steps or images."""
    if summary is None:
        return "-"
    return f"{summary.mean:,.0f}" + (f" ± {summary.sd:,.0f}" if summary.sd is not None and summary.mean else "")


def to_teacher(arm: ArmStatistics, summary: Summary | None) -> str:
    """Steps or images to the teacher's final accuracy, and how many seeds got there if not all did."""
    if arm.teacher is None:
        return "-"
    if summary is None:
        return f"never (0/{arm.teacher.n})"
    return count(summary) + (f" ({summary.n}/{arm.teacher.n})" if summary.n < arm.teacher.n else "")


def gap(value: float | None) -> str:
    """A function gap: ``0``, ``3.1e-07`` or ``1.9``."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2g}"


def cells(arm: ArmStatistics) -> list[str]:
    """One arm's row, as text, in the order of `HEAD`."""
    return [
        arm.title,
        str(arm.n),
        spread(arm.start),
        to_teacher(arm, arm.steps_to_teacher),
        to_teacher(arm, arm.images_to_teacher),
        spread(arm.best),
        spread(arm.final) if arm.n or not arm.failed else "failed",
        gap(arm.gap),
        spread(arm.copies, 0),
        "-" if arm.parameters is None else f"{arm.parameters:,}",
    ]


def table_text(arms: Sequence[ArmStatistics]) -> str:
    """The table for a terminal: mean ± standard deviation over n finished seeds."""
    rows = [list(HEAD), *(cells(arm) for arm in arms)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
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


def table_csv(arms: Sequence[ArmStatistics]) -> str:
    """The table as CSV, accuracies as fractions; what is not known (an sd of one seed) is an empty cell."""
    quantities = ("start", "steps_to_teacher", "images_to_teacher", "best", "final", "copies", "time_s")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = [f"{name}_{part}" for name in quantities for part in ("mean", "sd")]
    writer.writerow(["arm", "label", "n", "reached_teacher", *measured, "function_gap", "parameters", "lr", "epochs"])
    for arm in arms:
        values: list[object] = []
        for name in quantities:
            summary: Summary | None = getattr(arm, name)
            values += [None, None] if summary is None else [_round(summary.mean), _round(summary.sd)]
        reached = None if arm.teacher is None else len(arm.reached)
        last = [arm.gap, arm.parameters, arm.info("lr"), arm.info("epochs")]
        writer.writerow([arm.key, arm.title, arm.n, reached, *values, *last])
    return out.getvalue()


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.8g}")
