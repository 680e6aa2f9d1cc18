"""What a study found, in sentences made from its numbers alone: whichever arm ends higher is named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from n2n_cli.arms import find
from n2n_cli.studies.statistics import (
    ArmStatistics,
    Difference,
    Summary,
    difference,
    first_at,
    gain,
    summarize,
)
from n2n_cli.studies.table import count, gap, spread


@dataclass(frozen=True)
class Finding:
    """What is said of one topic."""

    topic: str
    sentences: list[str]


def findings(arms: Sequence[ArmStatistics]) -> list[Finding]:
    """The findings in reading order; a topic that nothing can be said of is left out."""
    students = [arm for arm in arms if arm.arm != "teacher" and arm.n]
    if not students:
        return [Finding("Nothing to compare yet", ["No student has finished."])]
    pairs = [(arm, other) for arm in students for name in find(arm.arm).rivals for other in _best(students, name)]
    sections = [
        ("Start", _starts(students)),
        ("Way to the teacher", _speeds(students)),
        ("Way to the baseline", [_catch_up(*pair) for pair in pairs if pair[1].arm.endswith("init")]),
        ("End", [*(_end(*pair) for pair in pairs), _highest(students)]),
        ("Gain over the teacher", [_gains(students)]),
        ("Learning rates", _rates(students)),
        ("How far this carries", _caveats(arms, students)),
    ]
    return [Finding(topic, _sentences(texts)) for topic, texts in sections if any(texts)]


def verdict(a: ArmStatistics, b: ArmStatistics, diff: Difference) -> str:
    """Who ended higher, by how much, and whether the seeds settle it. ``diff`` is a minus b."""
    (high, low), wins = ((a, b), diff.higher) if diff.mean >= 0 else ((b, a), diff.lower)
    by = _points(diff.mean)
    if diff.mean == 0 and diff.n > 1:
        return f"{_with_final(a)} and {_with_final(b)} tie: their means are equal"
    if diff.mean == 0:
        return f"{_with_final(a)} and {_with_final(b)} end level on the one seed that both have"
    if diff.interval is None:
        if a.n != b.n:  # the means would be over other seeds
            return f"{high.label} ends {by} above {low.label} on the one seed that both have"
        return f"{_with_final(high)} ends {by} above {_with_final(low)}, on one seed"
    evidence = f"95% interval {_interval(diff, 1 if high is a else -1)}; higher in {wins} of {diff.n} seeds"
    if diff.tie:
        return (
            f"{_with_final(a)} and {_with_final(b)} tie: the difference of {by} in favour of"
            f" {high.label} is within the spread over seeds ({evidence})"
        )
    text = f"{_with_final(high)} ends {by} higher than {_with_final(low)} ({evidence})"
    return text if diff.settled else f"{text}, which {diff.n} seeds do not settle"


def _best(students: Sequence[ArmStatistics], name: str) -> list[ArmStatistics]:
    """The strongest variant of a baseline: highest mean final accuracy."""
    found = [arm for arm in students if arm.arm == name and arm.final is not None]
    return [max(found, key=lambda arm: arm.final.mean if arm.final else 0.0)] if found else []


def _starts(students: Sequence[ArmStatistics]) -> list[str]:
    exact, others = [], []
    for arm in students:
        known = [(one.start, one.teacher) for one in arm.runs if one.start is not None and one.teacher is not None]
        deltas = [start - teacher for start, teacher in known]
        if not deltas:
            continue
        if max(map(abs, deltas)) < 1e-9:
            exact.append(arm)
            continue
        mean = sum(deltas) / len(deltas)
        side = f"{_points(mean)} {'above' if mean > 0 else 'below'} its teacher"
        proof = f", function gap {gap(arm.gap)}" if arm.gap is not None else ""
        others.append(f"{arm.label} at {_percent(arm.start)} ({side}{proof})")
    texts = []
    if exact:
        one, gaps = len(exact) == 1, [arm.gap for arm in exact if arm.gap is not None]
        proof = f" (function gap at most {gap(max(gaps))})" if gaps else ""
        start, their = ("starts", "its") if one else ("start", "their")
        texts.append(
            f"{_list([arm.label for arm in exact])} {start} at exactly {their} teacher's final accuracy,"
            f" in every seed{proof}"
        )
    return [
        *texts,
        f"{'The others start: ' if exact else 'At step 0: '}{'; '.join(others)}" if others else "",
    ]


def _speeds(students: Sequence[ArmStatistics]) -> list[str]:
    at_once, later, never = [], [], []
    for arm in students:
        if arm.teacher is None:
            continue
        total, reached = arm.teacher.n, len(arm.reached)
        steps, images, epochs = arm.steps_to_teacher, arm.images_to_teacher, arm.epochs_to_teacher
        if steps is None or images is None or epochs is None:
            never.append(f"{arm.label} (0 of {total} {_seeds(total)})")
        elif steps.mean == 0 and reached == total:
            at_once.append(arm.label)
        else:
            some = "" if reached == total else f", in {reached} of {total} seeds only"
            way = f"{count(images)} images, {epochs.mean:.1f} epochs{some}"
            later.append(f"{arm.label} after {count(steps)} steps ({way})")
    verb = "has" if len(at_once) == 1 else "have"
    return [
        f"{_list(at_once)} {verb} the teacher's final accuracy before the first step" if at_once else "",
        f"First evaluated at or above it: {'; '.join(later)}" if later else "",
        f"Never at or above it in the steps given: {_list(never)}" if never else "",
    ]


def _catch_up(arm: ArmStatistics, baseline: ArmStatistics) -> str:
    """When an arm first has the accuracy that its random initialization ends with, seed by seed."""
    ends = {one.run.seed: one for one in baseline.runs if one.final is not None}
    both = [one for one in arm.runs if one.run.seed in ends]
    found = [(one, first_at(one.run.evaluations, ends[one.run.seed].final or 0.0)) for one in both]
    steps = summarize(at.step for _, at in found if at is not None)
    if not found:
        return ""
    target = f"the accuracy that {baseline.label} ends with"
    if steps is None:
        return f"{arm.label} never reaches {target} (0 of {len(both)} {_seeds(len(both))})"
    last = summarize(ends[one.run.seed].run.last.get("step") for one, at in found if at is not None)
    share = f", {100 * steps.mean / last.mean:.0f}% of {baseline.label}'s run" if last and last.mean else ""
    some = "" if steps.n == len(both) else f", in {steps.n} of {len(both)} seeds"
    if steps.mean == 0:
        return f"{arm.label} has {target} before its first step{some}"
    return f"{arm.label} first has {target} after {count(steps)} steps{share}{some}"


def _end(arm: ArmStatistics, baseline: ArmStatistics) -> str:
    diff, epochs = difference(arm, baseline), [arm.info("epochs"), baseline.info("epochs")]
    if diff is None:
        return ""
    unequal = f" (after {epochs[0]} and {epochs[1]} epochs)" if epochs[0] != epochs[1] else ""
    return verdict(arm, baseline, diff) + unequal


def _highest(students: Sequence[ArmStatistics]) -> str:
    """The highest mean of all, and who is not distinguishable from it."""
    ended = sorted((arm for arm in students if arm.final), key=lambda arm: -arm.final.mean if arm.final else 0.0)
    if len(ended) < 3:
        return ""
    diffs = [(arm, difference(ended[0], arm)) for arm in ended[1:]]
    ties = [arm.label for arm, diff in diffs if diff is not None and diff.tie]
    text = f"The highest mean of all arms is that of {_with_final(ended[0])}"
    return text + (f"; within the spread of it: {_list(ties)}" if ties else "")


def _gains(students: Sequence[ArmStatistics]) -> str:
    texts, one_seed = [], max(arm.n for arm in students) == 1
    for arm in students:
        if (diff := gain(arm)) is None:
            continue
        by = f"{arm.label} {_signed(100 * diff.mean)}"
        if diff.interval is None:
            texts.append(by if one_seed else f"{by} (one seed)")
        else:
            unsettled = ", a tie" if diff.tie else "" if diff.settled else ", not settled"
            texts.append(f"{by} ({_interval(diff)}{unsettled})")
    seeds = "one seed" if one_seed else "95% interval over seeds"
    return f"Final accuracy against the teacher's own, in points ({seeds}): {'; '.join(texts)}" if texts else ""


def _rates(students: Sequence[ArmStatistics]) -> list[str]:
    """Where an arm ran at several rates: which ended highest, and that it was chosen after the fact."""
    texts = []
    for name in dict.fromkeys(arm.arm for arm in students):
        tried = [arm for arm in students if arm.arm == name and arm.final is not None]
        if len({arm.info("lr_scale") for arm in tried}) < 2:
            continue
        best, *others = sorted(tried, key=lambda arm: -arm.final.mean if arm.final else 0.0)
        diffs = [diff for arm in others if (diff := difference(best, arm)) is not None]
        settled = sum(diff.settled and not diff.tie for diff in diffs)
        texts.append(
            f"Of {len(tried)} settings of one arm, {_with_final(best)} ends highest, settled by the seeds"
            f" against {settled} of the other {len(others)}; it was picked on these same validation images,"
            " which flatters it"
        )
    return texts


def _caveats(arms: Sequence[ArmStatistics], students: Sequence[ArmStatistics]) -> list[str]:
    texts = []
    most = max(arm.n for arm in students)
    if most == 1:
        texts.append("One seed: differences are what this run showed, and no spread is known")
    elif most < 5:
        texts.append(f"{most} seeds settle large differences only")
    if any(arm.info("synthetic") for arm in arms):
        texts.append("The data are synthetic, so the accuracies say nothing about natural images")
    teachers = [one.run.last.get("step") for arm in arms if arm.arm == "teacher" for one in arm.runs]
    if (mean := summarize(teachers)) is not None:
        texts.append(
            f"Steps are the student's own: its teacher had {mean.mean:,.0f} before, which random starts do without"
        )
    texts += [f"{one.run.folder.name} failed and is in no mean: {one.run.failed}" for arm in arms for one in arm.failed]
    waiting = [one.run.folder.name for arm in arms for one in arm.unfinished if one.run.failed is None]
    if waiting:
        texts.append(f"Not finished and in no mean: {_list(waiting)}")
    return texts


def _sentences(texts: Iterable[str]) -> list[str]:
    return [f"{text[0].upper()}{text[1:]}." for text in texts if text]


def _with_final(arm: ArmStatistics) -> str:
    return f"{arm.label} ({_percent(arm.final)})"


def _percent(summary: Summary | None) -> str:
    return f"{spread(summary, 1)}%"


def _interval(diff: Difference, sign: int = 1) -> str:
    """The 95 % interval in points; ``sign`` -1 for b minus a."""
    low, high = sorted(100 * sign * end for end in diff.interval or (diff.mean, diff.mean))
    return f"{_signed(low)} to {_signed(high)}"


def _points(value: float) -> str:
    """A difference without its sign; a small one is not rounded to nothing: ``0.05 points``."""
    size = 100 * abs(value)
    return f"{size:.1f} points" if size >= 0.095 else f"{size:.2g} points"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _seeds(number: int) -> str:
    return "seed" if number == 1 else "seeds"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
