"""Arms beside their rivals, as rows of the report's tables and as CSV."""

from __future__ import annotations

from collections.abc import Sequence

from n2n_cli.studies import table
from n2n_cli.studies.costs import TEACHER, UNITS
from n2n_cli.studies.findings import rivalries
from n2n_cli.studies.inference import Difference, Ratio
from n2n_cli.studies.statistics import ArmStatistics, speedup

SPEEDUPS = (*((unit, False) for unit in UNITS), ("flops", True), ("time_s", True))
"""What a speed-up is measured in, and whether the teachers' training counts."""


def differences(arms: Sequence[ArmStatistics]) -> list[list[object]]:
    """Every arm beside its rivals: the paired difference of final accuracies in points, with its test."""
    rows: list[list[object]] = []
    for arm, rival, diff in rivalries(_students(arms)):
        low, high = diff.interval or (None, None)
        ends = "-" if low is None or high is None else f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        settled = "-" if diff.p is None else "yes" if diff.settled else "no"
        shown = [f"{100 * diff.mean:+.2f}", ends, f"{diff.higher} of {diff.n}", _p(diff.p), _p(diff.adjusted), settled]
        rows.append([arm.title, rival.title, *(text.replace("-", "−") if len(text) > 1 else text for text in shown)])
    return rows


def ways(arms: Sequence[ArmStatistics]) -> list[list[object]]:
    """What every arm took until every threshold."""
    return [
        [arm.title, _threshold(name), *(table.way(arm.way(name, unit)) for unit in UNITS)]
        for arm in arms
        for name in arm.thresholds
    ]


def speedups(arms: Sequence[ArmStatistics]) -> list[list[object]]:
    """How many times as much its rivals took until every threshold of an arm."""
    return [
        [arm.title, rival.title, _threshold(name), *(table.ratio(ratio) for ratio in found)]
        for arm, rival, name, found in _speedups(arms)
    ]


def totals(arms: Sequence[ArmStatistics]) -> list[list[object]]:
    """What every arm took in all: its own training, its teachers', and both."""
    rows: list[list[object]] = []
    for arm in arms:
        cells: list[object] = [arm.title]
        for unit in table.COSTS:
            own, total = arm.own(unit), arm.total(unit)
            teachers = None if own is None or total is None else total.mean - own.mean
            cells += [table.count(own), "-" if teachers is None else table.number(teachers), table.count(total)]
        rows.append(cells)
    return rows


def comparisons_csv(arms: Sequence[ArmStatistics]) -> str:
    """Paired differences (of fractions) and speed-ups; ``bound``: > or < where censored runs make it a bound."""
    head = ("arm", "rival", "quantity", "n", "mean", "low", "high", "bound", "at_once", "p", "p_holm", "comparisons")
    rows: list[list[object]] = [list(head)]
    for arm, rival, diff in rivalries(_students(arms)):
        rows.append([arm.key, rival.key, "final_difference", *_difference(diff)])
    for arm, rival, name, found in _speedups(arms):
        for (unit, with_teacher), ratio in zip(SPEEDUPS, found, strict=True):
            quantity = f"speedup_{table.way_name(name, unit)}{'_with_teacher' if with_teacher else ''}"
            rows.append([arm.key, rival.key, quantity, *_ratio(ratio)])
    return table.written(rows)


def _speedups(
    arms: Sequence[ArmStatistics],
) -> list[tuple[ArmStatistics, ArmStatistics, str, list[Ratio | None]]]:
    return [
        (arm, rival, name, [speedup(arm, rival, name, unit, with_teacher) for unit, with_teacher in SPEEDUPS])
        for arm, rival, _ in rivalries(_students(arms))
        for name in arm.thresholds
    ]


def _difference(diff: Difference) -> list[object]:
    low, high = diff.interval or (None, None)
    return [diff.n, diff.mean, low, high, None, None, diff.p, diff.adjusted, diff.family]


def _ratio(ratio: Ratio | None) -> list[object]:
    if ratio is None:
        return [0, *[None] * 8]
    low, high = ratio.interval or (None, None)
    return [ratio.n, ratio.mean, low, high, ratio.bound or None, ratio.at_once, None, None, None]


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _threshold(name: str) -> str:
    return "its teacher's" if name == TEACHER else f"{name}% of best"


def _students(arms: Sequence[ArmStatistics]) -> list[ArmStatistics]:
    return [arm for arm in arms if arm.arm != "teacher"]
