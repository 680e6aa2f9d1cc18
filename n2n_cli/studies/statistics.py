"""Convergence statistics: a run's, an arm's over its seeds, and the difference of two arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from n2n_cli.studies.runs import Evaluation, Run


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof = 1; None for one value) of ``n`` values."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class RunStatistics:
    """One run in numbers. Accuracies are top-1 fractions; what is not known is None.

    ``reached`` is the first evaluation at or above the teacher's final accuracy, step 0 included. ``copies``: the share
    of a finished network's units that are within 1 % of another one.
    """

    run: Run
    start: float | None
    best: float | None
    final: float | None
    teacher: float | None
    reached: Evaluation | None
    gap: float | None
    parameters: int | None
    time_s: float | None
    copies: float | None


@dataclass(frozen=True)
class ArmStatistics:
    """One arm over its seeds. Means are over finished runs; ``steps_to_teacher`` over those that reach it."""

    key: str
    arm: str
    label: str
    runs: list[RunStatistics]
    unfinished: list[RunStatistics]

    @property
    def title(self) -> str:
        """The label as it stands in a table."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def every(self) -> list[RunStatistics]:
        """The finished runs, then the others; never empty."""
        return [*self.runs, *self.unfinished]

    @property
    def failed(self) -> list[RunStatistics]:
        """The runs that the study gave up."""
        return [one for one in self.unfinished if one.run.failed is not None]

    @property
    def start(self) -> Summary | None:
        return summarize(run.start for run in self.runs)

    @property
    def best(self) -> Summary | None:
        return summarize(run.best for run in self.runs)

    @property
    def final(self) -> Summary | None:
        return summarize(run.final for run in self.runs)

    @property
    def teacher(self) -> Summary | None:
        """The final accuracy of this arm's teachers; None for an arm without one."""
        return summarize(run.teacher for run in self.runs)

    @property
    def reached(self) -> list[Evaluation]:
        return [run.reached for run in self.runs if run.reached is not None]

    @property
    def steps_to_teacher(self) -> Summary | None:
        return summarize(at.step for at in self.reached)

    @property
    def images_to_teacher(self) -> Summary | None:
        return summarize(at.images for at in self.reached)

    @property
    def epochs_to_teacher(self) -> Summary | None:
        return summarize(at.epoch for at in self.reached)

    @property
    def gap(self) -> float | None:
        """The largest function gap over the seeds, in eval and in train mode."""
        return max((run.gap for run in self.runs if run.gap is not None), default=None)

    @property
    def copies(self) -> Summary | None:
        return summarize(run.copies for run in self.runs)

    @property
    def time_s(self) -> Summary | None:
        return summarize(run.time_s for run in self.runs)

    @property
    def parameters(self) -> int | None:
        return next((run.parameters for run in self.every if run.parameters is not None), None)

    def info(self, key: str) -> Any:
        """What run.json says of the arm's first run."""
        return self.every[0].run.info.get(key)


@dataclass(frozen=True)
class Difference:
    """``a - b`` of two arms' final accuracies over the ``n`` seeds that both have, paired by seed.

    Runs of one seed share their teacher and the order of the data, hence the pairing. ``interval`` is the
    95 % interval of the mean difference (Student's t, n - 1 degrees of freedom; None for one seed). ``tie``:
    the mean difference is no larger than the larger of the two arms' standard deviations; None for one seed.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None
    tie: bool | None
    higher: int
    lower: int

    @property
    def settled(self) -> bool:
        """The interval lies on one side of zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def summarize(values: Iterable[float | None]) -> Summary | None:
    """Mean and sample standard deviation of the values that are known; None if there are none.

    >>> summarize([1, 2, None, 3])
    Summary(n=3, mean=2.0, sd=1.0)
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Summary(1, mean, None)
    return Summary(len(known), mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1)))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` degrees: half a 95 % interval, in standard errors.

    >>> [round(student_t(freedom), 3) for freedom in (1, 16, 1000)]
    [12.706, 2.12, 1.962]
    """
    from scipy.special import stdtrit  # scipy.stats.t.ppf without the second that importing scipy.stats takes

    return float(stdtrit(freedom, 0.975))


def first_at(evaluations: Sequence[Evaluation], accuracy: float) -> Evaluation | None:
    """The first evaluation at or above ``accuracy``, to 1e-9: rounding must not part two equal ratios of counts."""
    return next((at for at in evaluations if at.top1 >= accuracy - 1e-9), None)


def final_accuracy(run: Run) -> float | None:
    """The last evaluation of a finished run; None while it is not finished."""
    if not run.finished:
        return None
    if run.evaluations:
        return run.evaluations[-1].top1
    value = ((run.done or {}).get("final") or {}).get("val/top1")
    return None if value is None else float(value)


def run_statistics(run: Run) -> RunStatistics:
    """One run in numbers, against the final accuracy of its teacher."""
    evaluations = run.evaluations
    teacher = final_accuracy(run.teacher) if run.teacher is not None else None
    gaps = [run.info["function_gap"].get(mode) for mode in ("eval", "train")] if run.info.get("function_gap") else []
    time_s = (run.done or run.last).get("time_s")
    return RunStatistics(
        run=run,
        start=evaluations[0].top1 if evaluations and evaluations[0].step == 0 else None,
        best=max((at.top1 for at in evaluations), default=None),
        final=final_accuracy(run),
        teacher=teacher,
        reached=None if teacher is None else first_at(evaluations, teacher),
        gap=max((float(gap) for gap in gaps if gap is not None), default=None),
        parameters=run.info.get("parameters"),
        time_s=None if time_s is None else float(time_s),
        copies=run.done["units/near_copies"] / run.done["units"] if run.done and run.done.get("units") else None,
    )


def statistics(runs: Iterable[Run]) -> list[ArmStatistics]:
    """The arms (one a key, see `Run.key`) in the order of ``runs``.

    Labels tell the arms apart: what all students share is left out, and beside an arm of another learning rate
    the default rate is told too.
    """
    groups: dict[str, list[RunStatistics]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run_statistics(run))
    labels = _labels({key: group[0].run for key, group in groups.items()})
    return [
        ArmStatistics(
            key=key,
            arm=group[0].run.arm,
            label=labels[key],
            runs=[one for one in group if one.run.finished],
            unfinished=[one for one in group if not one.run.finished],
        )
        for key, group in groups.items()
    ]


def _labels(runs: dict[str, Run]) -> dict[str, str]:
    """``Net2Wider (noise 0.2, lr ×0.3)`` by key."""
    labels = {}
    for key, run in runs.items():
        peers = [other for other in runs.values() if (other.arm == "teacher") == (run.arm == "teacher")]
        common = set.intersection(*(set(other.variant) for other in peers))
        if len(peers) == 1 and run.arm != "teacher":
            common = set()
        words = [word for word in run.variant if word not in common]
        rates = {other.info.get("lr_scale") for other in runs.values() if other.arm == run.arm}
        if len(rates) > 1 and not any(word.startswith("lr ×") for word in words):
            words.append(f"lr ×{run.info.get('lr_scale', 1):g}")
        labels[key] = f"{run.name} ({', '.join(words)})" if words else run.name
    return labels


def difference(a: ArmStatistics, b: ArmStatistics) -> Difference | None:
    """How the final accuracies of two arms differ; None if no seed finished in both."""
    return _paired(_finals(a), _finals(b))


def gain(arm: ArmStatistics) -> Difference | None:
    """How an arm's final accuracies differ from those of its teachers; None for an arm without teachers."""
    return _paired(_finals(arm), {one.run.seed: one.teacher for one in arm.runs if one.teacher is not None})


def _finals(arm: ArmStatistics) -> dict[int, float]:
    return {one.run.seed: one.final for one in arm.runs if one.final is not None}


def _paired(a: dict[int, float], b: dict[int, float]) -> Difference | None:
    seeds = sorted(a.keys() & b.keys())
    deltas = summarize(a[seed] - b[seed] for seed in seeds)
    if deltas is None:
        return None
    higher, lower = sum(a[seed] > b[seed] for seed in seeds), sum(a[seed] < b[seed] for seed in seeds)
    if deltas.sd is None:
        return Difference(1, deltas.mean, None, None, higher, lower)
    half = student_t(deltas.n - 1) * deltas.sd / math.sqrt(deltas.n)
    spreads = [summarize(values[seed] for seed in seeds) for values in (a, b)]
    spread = max(one.sd or 0.0 for one in spreads if one is not None)
    return Difference(
        n=deltas.n,
        mean=deltas.mean,
        interval=(deltas.mean - half, deltas.mean + half),
        tie=abs(deltas.mean) <= spread + 1e-12,
        higher=higher,
        lower=lower,
    )
