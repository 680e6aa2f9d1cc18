"""Numbers and lists as they stand in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from n2n_cli.studies.inference import Difference, Summary
from n2n_cli.studies.statistics import ArmStatistics
from n2n_cli.studies.table import spread


def sentences(texts: Iterable[str]) -> list[str]:
    return [f"{text[0].upper()}{text[1:]}." for text in texts if text]


def with_final(arm: ArmStatistics) -> str:
    return f"{arm.label} ({percent(arm.final)})"


def percent(summary: Summary | None) -> str:
    return f"{spread(summary, 1)}%"


def interval(diff: Difference, sign: int = 1) -> str:
    """The 95 % interval in points; ``sign`` -1 for b minus a."""
    low, high = sorted(100 * sign * end for end in diff.interval or (diff.mean, diff.mean))
    return f"{signed(low)} to {signed(high)}"


def significance(diff: Difference) -> str:
    """``p = 0.012``, with Holm's correction where there is one; empty where no test says anything."""
    p = diff.p if diff.adjusted is None else diff.adjusted
    if p is None:
        return ""
    told = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"{told}, Holm over {diff.family}" if diff.family > 1 else told


def points(value: float) -> str:
    """A difference without its sign; a small one is not rounded to nothing: ``0.05 points``."""
    size = 100 * abs(value)
    return f"{size:.1f} points" if size >= 0.095 else f"{size:.2g} points"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def seeds(number: int) -> str:
    return "seed" if number == 1 else "seeds"


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
