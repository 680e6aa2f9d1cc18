"""Convergence statistics: a run's, an arm's over its seeds, the difference and the ratio of two arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from n2n_cli.studies import costs
from n2n_cli.studies.costs import SHARES, TEACHER, Cost, Way
from n2n_cli.studies.inference import Difference, Ratio, Summary, paired, ratio, summarize
from n2n_cli.studies.runs import Evaluation, Run


@dataclass(frozen=True)
class RunStatistics:
    """One run in numbers. Accuracies are fractions; what is not known is None.

    ``targets``: the accuracy of every threshold, by name. ``area``: under the accuracy curve, over its length. ``own``:
    what the run took, ``total``: with its teachers' training. ``copies``: the share of a finished network's units that
    are within 1 % of another one.
    """

    run: Run
    start: float | None
    best: float | None
    final: float | None
    teacher: float | None
    targets: Mapping[str, float]
    area: float | None
    own: Cost
    total: Cost
    gap: float | None
    parameters: int | None
    copies: float | None

    @property
    def reached(self) -> Evaluation | None:
        """The first evaluation at or above the teacher's accuracy, step 0 included."""
        return None if self.teacher is None else costs.first_at(self.run.evaluations, self.teacher)

    def until(self, threshold: str, unit: str) -> tuple[float, bool] | None:
        """What the run took until a threshold, and whether it never got there; see `costs.until`."""
        target = self.targets.get(threshold)
        return None if target is None else costs.until(self.run.evaluations, target, unit)


@dataclass(frozen=True)
class ArmStatistics:
    """One arm over its seeds. Means are over finished runs."""

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
        """The accuracy of this arm's teachers where it was grown from them; None for an arm without one."""
        return summarize(run.teacher for run in self.runs)

    def way(self, threshold: str = TEACHER, unit: str = "step") -> Way | None:
        """What the arm took until a threshold in one of `costs.UNITS`; None if that is not known of any seed."""
        found = [way for one in self.runs if (way := one.until(threshold, unit)) is not None]
        cost = summarize(value for value, _ in found)
        return None if cost is None else Way(cost, sum(not never for _, never in found))

    @property
    def thresholds(self) -> list[str]:
        """The names of the thresholds that its runs have."""
        return list(dict.fromkeys(name for one in self.runs for name in one.targets))

    @property
    def area(self) -> Summary | None:
        return summarize(run.area for run in self.runs)

    def own(self, unit: str) -> Summary | None:
        """What its runs took: ``images``, ``flops`` or ``time_s``."""
        return summarize(getattr(run.own, unit) for run in self.runs)

    def total(self, unit: str) -> Summary | None:
        """What its runs took with their teachers' training."""
        return summarize(getattr(run.total, unit) for run in self.runs)

    @property
    def gap(self) -> float | None:
        """The largest function gap over the seeds, in eval and in train mode."""
        return max((run.gap for run in self.runs if run.gap is not None), default=None)

    @property
    def copies(self) -> Summary | None:
        return summarize(run.copies for run in self.runs)

    @property
    def parameters(self) -> int | None:
        return next((run.parameters for run in self.every if run.parameters is not None), None)

    def info(self, key: str) -> Any:
        """What run.json says of the arm's first run."""
        return self.every[0].run.info.get(key)


def final_accuracy(run: Run) -> float | None:
    """The last evaluation of a finished run; None while it is not finished."""
    if not run.finished:
        return None
    if run.evaluations:
        return run.evaluations[-1].accuracy
    value = ((run.done or {}).get("final") or {}).get(f"val/{run.metric}")
    return None if value is None else float(value)


def _of_teacher(run: Run) -> float | None:
    """The accuracy of what a run comes from: its teacher's final one, or where it was stopped on its way, the last one
    until there."""
    if run.teacher is None:
        return None
    seen, whole = run.info.get("teacher_images"), (run.teacher.done or run.teacher.last).get("images")
    if seen is None or whole is None or seen >= whole:
        return final_accuracy(run.teacher)
    return next((at.accuracy for at in reversed(run.teacher.evaluations) if at.images <= seen), None)


def run_statistics(run: Run, targets: Mapping[str, float] | None = None) -> RunStatistics:
    """One run in numbers, against the accuracy of its teacher and other ``targets``."""
    evaluations = run.evaluations
    teacher = _of_teacher(run)
    gaps = [run.info["function_gap"].get(mode) for mode in ("eval", "train")] if run.info.get("function_gap") else []
    return RunStatistics(
        run=run,
        start=evaluations[0].accuracy if evaluations and evaluations[0].step == 0 else None,
        best=max((at.accuracy for at in evaluations), default=None),
        final=final_accuracy(run),
        teacher=teacher,
        targets={**({} if teacher is None else {TEACHER: teacher}), **(targets or {})},
        area=costs.area(evaluations) if run.finished else None,
        own=costs.own(run),
        total=costs.total(run),
        gap=max((float(gap) for gap in gaps if gap is not None), default=None),
        parameters=run.info.get("parameters"),
        copies=run.done["units/near_copies"] / run.done["units"] if run.done and run.done.get("units") else None,
    )


def statistics(runs: Iterable[Run], thresholds: Sequence[float] = SHARES) -> list[ArmStatistics]:
    """The arms (one a key, see `Run.key`) in the order of ``runs``.

    ``thresholds``: shares of the highest final accuracy that any run of the seed has. Labels tell the arms apart: what
    all students share is left out, and beside an arm of another learning rate the default rate is told too.
    """
    runs, best = list(runs), dict[int, float]()
    for run in runs:
        best[run.seed] = max(best.get(run.seed, 0.0), final_accuracy(run) or 0.0)
    groups: dict[str, list[RunStatistics]] = {}
    for run in runs:
        targets = {costs.threshold(share): share * best[run.seed] for share in thresholds if best[run.seed]}
        groups.setdefault(run.key, []).append(run_statistics(run, targets))
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
    return paired(_finals(a), _finals(b))


def gain(arm: ArmStatistics) -> Difference | None:
    """How an arm's final accuracies differ from those of its teachers; None for an arm without teachers."""
    return paired(_finals(arm), {one.run.seed: one.teacher for one in arm.runs if one.teacher is not None})


def speedup(
    arm: ArmStatistics, rival: ArmStatistics, threshold: str, unit: str, with_teacher: bool = False
) -> Ratio | None:
    """How many times as much the rival took until the arm's threshold, seed by seed.

    ``with_teacher``: the training of the teachers that either starts from counts too. None if no seed says anything.
    """
    theirs, pairs = {one.run.seed: one for one in rival.runs}, []
    for one in arm.runs:
        other = theirs.get(one.run.seed)
        target = one.targets.get(threshold)
        if other is None or target is None:
            continue
        found = [costs.until(run.evaluations, target, unit) for run in (other.run, one.run)]
        more = [getattr(costs.of_teachers(run), unit) if with_teacher else 0.0 for run in (other.run, one.run)]
        if found[0] is not None and found[1] is not None and None not in more:
            (above, above_never), (below, below_never) = found[0], found[1]
            pairs.append((above + more[0], below + more[1], above_never, below_never))
    return ratio(pairs)


def _finals(arm: ArmStatistics) -> dict[int, float]:
    return {one.run.seed: one.final for one in arm.runs if one.final is not None}
