"""Means, intervals and tests over seeds, of plain numbers.

Runs of one seed share their teacher and the order of their images, hence differences and ratios are paired by seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

LEVEL = 0.95
RESAMPLES = 9_999
FEW = 5  # values below which BCa's two corrections, themselves estimated from the values, are noise


class Interval(NamedTuple):
    """A 95 % interval and how it was made."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof = 1; None for one value) of ``n`` values."""

    n: int
    mean: float
    sd: float | None
    values: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @property
    def interval(self) -> Interval | None:
        """The bootstrap's interval of the mean; None for one value."""
        return bootstrap(self.values)


@dataclass(frozen=True)
class Difference:
    """``a - b`` over the ``n`` seeds that both have, paired by seed.

    ``interval``: the 95 % interval of the mean difference (Student's t, n - 1 degrees of freedom), None for one seed;
    ``p``: that test's, two-sided; None for one seed, and where every seed has the same difference. ``family``: of so
    many comparisons with one baseline it is one, and ``adjusted`` is Holm's p. ``tie``: the mean difference is at most
    the larger of the two standard deviations.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None
    tie: bool | None
    higher: int
    lower: int
    p: float | None = None
    adjusted: float | None = None
    family: int = 1

    @property
    def settled(self) -> bool:
        """The seeds tell the two apart, corrected for the other comparisons with the same baseline."""
        p = self.p if self.adjusted is None else self.adjusted
        return p is not None and p < 1 - LEVEL


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of ``n`` paired ratios; the other ``of - n`` pairs say nothing.

    ``bound``: ">" where the true one is larger, "<" where it is smaller, as a run that never got there is counted at
    its whole length; then there is no interval. ``interval``: Student's t on the logarithms. ``at_once``: ratios with
    nothing below the line; then ``mean`` is infinite.
    """

    n: int
    of: int
    mean: float
    interval: tuple[float, float] | None = None
    bound: str = ""
    at_once: int = 0


def summarize(values: Iterable[float | None]) -> Summary | None:
    """Mean and sample standard deviation of the values that are known; None if there are none.

    >>> summarize([1, 2, None, 3])
    Summary(n=3, mean=2.0, sd=1.0)
    """
    known = tuple(float(value) for value in values if value is not None)
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Summary(1, mean, None, known)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return Summary(len(known), mean, sd, known)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` degrees: half a 95 % interval, in standard errors.

    >>> [round(student_t(freedom), 3) for freedom in (1, 16, 1000)]
    [12.706, 2.12, 1.962]
    """
    from scipy.special import stdtrit  # scipy.stats.t.ppf without the second that importing scipy.stats takes

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@functools.cache
def bootstrap(values: tuple[float, ...]) -> Interval | None:
    """The 95 % bootstrap interval of the mean, with fixed random numbers; None for fewer than two values.

    Bias-corrected and accelerated (BCa) from `FEW` values on; of fewer, or of equal ones, percentile.

    >>> bootstrap((1.0, 2.0, 3.0))
    Interval(low=1.0, high=3.0, method='percentile')
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return Interval(values[0], values[0], "percentile")
    import numpy as np
    from scipy import stats

    method = "BCa" if len(values) >= FEW else "percentile"
    ends = stats.bootstrap(
        (np.array(values),), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method=method, random_state=0
    ).confidence_interval
    return Interval(round(float(ends.low), 12), round(float(ends.high), 12), method)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: each below 5 % is significant among all of them (Holm 1979).

    >>> [round(adjusted, 3) for adjusted in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = list(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Differences from one baseline, with Holm's correction for their number; those without a p are not counted."""
    tested = [one.p for one in differences if one.p is not None]
    adjusted = iter(holm(tested))
    return [one if one.p is None else replace(one, adjusted=next(adjusted), family=len(tested)) for one in differences]


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """``a - b`` by seed; None if no seed is in both."""
    seeds = sorted(a.keys() & b.keys())
    deltas = summarize(a[seed] - b[seed] for seed in seeds)
    if deltas is None:
        return None
    higher, lower = sum(a[seed] > b[seed] for seed in seeds), sum(a[seed] < b[seed] for seed in seeds)
    if deltas.sd is None:
        return Difference(1, deltas.mean, None, None, higher, lower)
    low, high = t_interval(deltas)
    spreads = [summarize(values[seed] for seed in seeds) for values in (a, b)]
    spread = max(one.sd or 0.0 for one in spreads if one is not None)
    tie = abs(deltas.mean) <= spread + 1e-12
    return Difference(deltas.n, deltas.mean, (low, high), tie, higher, lower, p=_p(deltas))


def ratio(pairs: Sequence[tuple[float, float, bool, bool]]) -> Ratio | None:
    """The geometric mean of ``above / below``; None where no pair says anything, or they bound it on both sides.

    ``pairs``: above, below, and whether each of the two is only a lower bound. A pair of two lower bounds says nothing.
    """
    said = [pair for pair in pairs if not (pair[2] and pair[3])]
    bounds = {">" for _, _, above, _ in said if above} | {"<" for *_, below in said if below}
    if not said or len(bounds) > 1:
        return None
    bound = "".join(bounds)
    at_once = sum(below == 0 < above for above, below, *_ in said)
    zeros = any(above == 0 < below for above, below, *_ in said)
    if at_once and zeros:
        return None
    if at_once or zeros:
        return Ratio(len(said), len(pairs), math.inf if at_once else 0.0, None, bound, at_once)
    logs = summarize(math.log(above / below) if below else 0.0 for above, below, *_ in said)
    assert logs is not None
    ends = None if logs.sd is None or bound else t_interval(logs)
    interval = None if ends is None else (math.exp(ends[0]), math.exp(min(ends[1], 700.0)))
    return Ratio(logs.n, len(pairs), math.exp(logs.mean), interval, bound)


def t_interval(summary: Summary) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two values or more."""
    half = student_t(summary.n - 1) * (summary.sd or 0.0) / math.sqrt(summary.n)
    return summary.mean - half, summary.mean + half


def _p(deltas: Summary) -> float | None:
    """The two-sided p of Student's t for a mean of zero, as scipy.stats.ttest_rel has it; None where all values are the
    same, and not zero: nothing says how they spread."""
    from scipy.special import stdtr

    if deltas.sd is None or deltas.sd < 1e-12:  # rounding: a count of images can be the same at every seed by chance
        return 1.0 if deltas.mean == 0 else None
    return float(2 * stdtr(deltas.n - 1, -abs(deltas.mean) / (deltas.sd / math.sqrt(deltas.n))))
