"""What a study found, in sentences made from its numbers alone: whichever arm ends higher is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from n2n_cli.arms import find
from n2n_cli.studies import by_stage, wording
from n2n_cli.studies.costs import described, until
from n2n_cli.studies.inference import Difference, corrected, summarize
from n2n_cli.studies.statistics import ArmStatistics, difference, gain, speedup
from n2n_cli.studies.table import gap, highest, number
from n2n_cli.studies.table import ratio as told
from n2n_cli.studies.wording import interval, listed, percent, points, seeds, signed, with_final


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
    found = rivalries(students)
    inits = [(arm, other) for arm, other, _ in found if other.arm.endswith("init") or _has_stages(other)]
    sections = [
        ("Start", _starts(students)),
        ("After every stage", by_stage.sentences(students)),
        ("Way to the teacher", _speeds(students)),
        ("Way to the baseline", [_catch_up(*pair) for pair in inits]),
        ("Speed", [_speed(*pair) for pair in inits]),
        ("Cost in all", [_cost(*pair) for pair in inits]),
        ("End", [*(_end(*pair) for pair in found), _highest(students)]),
        ("Gain over the teacher", [_gains(students)]),
        ("Learning rates", _rates(students)),
        ("How far this carries", _teachers_steps(arms)),
    ]
    return [Finding(topic, wording.sentences(texts)) for topic, texts in sections if any(texts)]


def rivalries(students: Sequence[ArmStatistics]) -> list[tuple[ArmStatistics, ArmStatistics, Difference]]:
    """Every arm beside each of its rivals (the strongest variant of it) and the difference of their final accuracies,
    corrected for the number of arms that are compared with the same rival."""
    pairs = [(arm, other) for arm in students for name in find(arm.arm).rivals for other in _best(students, name)]
    known = [(arm, other, diff) for arm, other in pairs if (diff := difference(arm, other)) is not None]
    fixed: dict[str, Iterator[Difference]] = {}
    for key in {other.key for _, other, _ in known}:
        fixed[key] = iter(corrected([diff for _, other, diff in known if other.key == key]))
    return [(arm, other, next(fixed[other.key])) for arm, other, _ in known]


def verdict(a: ArmStatistics, b: ArmStatistics, diff: Difference) -> str:
    """Who ended higher, by how much, and whether the seeds settle it. ``diff`` is a minus b."""
    (high, low), wins = ((a, b), diff.higher) if diff.mean >= 0 else ((b, a), diff.lower)
    by = points(diff.mean)
    if diff.mean == 0 and diff.n > 1:
        return f"{with_final(a)} and {with_final(b)} tie: their means are equal"
    if diff.mean == 0:
        return f"{with_final(a)} and {with_final(b)} end level on the one seed that both have"
    if diff.interval is None:
        if a.n != b.n:  # the means would be over other seeds
            return f"{high.label} ends {by} above {low.label} on the one seed that both have"
        return f"{with_final(high)} ends {by} above {with_final(low)}, on one seed"
    spread = f"95% interval {interval(diff, 1 if high is a else -1)}; higher in {wins} of {diff.n} seeds"
    evidence = "; ".join(text for text in (spread, wording.significance(diff)) if text)
    if diff.tie:
        return (
            f"{with_final(a)} and {with_final(b)} tie: the difference of {by} in favour of"
            f" {high.label} is within the spread over seeds ({evidence})"
        )
    text = f"{with_final(high)} ends {by} higher than {with_final(low)} ({evidence})"
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
        side = f"{points(mean)} {'above' if mean > 0 else 'below'} its teacher"
        proof = f", function gap {gap(arm.gap)}" if arm.gap is not None else ""
        others.append(f"{arm.label} at {percent(arm.start)} ({side}{proof})")
    texts = []
    if exact:
        one, gaps = len(exact) == 1, [arm.gap for arm in exact if arm.gap is not None]
        proof = f" (function gap at most {gap(max(gaps))})" if gaps else ""
        start, their = ("starts", "its") if one else ("start", "their")
        texts.append(
            f"{listed([arm.label for arm in exact])} {start} at exactly {their} teacher's accuracy,"
            f" in every seed{proof}"
        )
    return [
        *texts,
        f"{'The others start: ' if exact else 'At step 0: '}{'; '.join(others)}" if others else "",
    ]


def _speeds(students: Sequence[ArmStatistics]) -> list[str]:
    at_once, later, never = [], [], []
    for arm in students:
        steps, images = arm.way(), arm.way(unit="images")
        if steps is None or images is None:
            continue
        total = steps.cost.n
        if not steps.reached:
            never.append(f"{arm.label} (0 of {total} {seeds(total)})")
        elif steps.cost.mean == 0:
            at_once.append(arm.label)
        else:
            more = "more than " if steps.censored else ""
            some = f", in {steps.reached} of {total} seeds only" if steps.censored else ""
            taken = f"{more}{number(steps.cost.mean)} steps ({number(images.cost.mean)} images{some})"
            later.append(f"{arm.label} after {taken}")
    verb = "has" if len(at_once) == 1 else "have"
    return [
        f"{listed(at_once)} {verb} the teacher's accuracy before the first step" if at_once else "",
        f"First evaluated at or above it: {'; '.join(later)}" if later else "",
        f"Never at or above it in the steps given: {listed(never)}" if never else "",
    ]


def _catch_up(arm: ArmStatistics, baseline: ArmStatistics) -> str:
    """When an arm first has the accuracy that its random initialization ends with, seed by seed."""
    ends = {one.run.seed: one for one in baseline.runs if one.final is not None}
    both = [(one.run, ends[one.run.seed]) for one in arm.runs if one.run.seed in ends]
    ways = [way for run, end in both if (way := until(run.evaluations, end.final or 0.0, "step")) is not None]
    steps, reached = summarize(value for value, _ in ways), sum(not never for _, never in ways)
    if steps is None:
        return ""
    target = f"the accuracy that {baseline.label} ends with"
    if not reached:
        return f"{arm.label} never reaches {target} (0 of {len(ways)} {seeds(len(ways))})"
    last = summarize(end.run.last.get("step") for _, end in both)
    share = f", {100 * steps.mean / last.mean:.0f}% of {baseline.label}'s run" if last and last.mean else ""
    if reached < len(ways):
        some = f"in {reached} of {len(ways)} seeds"
        return f"{arm.label} first has {target} after more than {number(steps.mean)} steps, {some}"
    if steps.mean == 0:
        return f"{arm.label} has {target} before its first step"
    return f"{arm.label} first has {target} after {number(steps.mean)} steps{share}"


def _speed(arm: ArmStatistics, baseline: ArmStatistics) -> str:
    """How many times as much the baseline takes to the highest share of the best, in steps and in FLOPs."""
    name = highest([arm])
    if name is None or (steps := speedup(arm, baseline, name, "step")) is None:
        return ""
    if steps.at_once == steps.of:
        return f"{arm.label} has {described(name)} before its first step"
    flops = speedup(arm, baseline, name, "flops", with_teacher=True)
    texts = [f"{told(steps)} times {arm.label}'s steps"] if not steps.at_once else []
    counted = "" if _has_stages(arm) else " with the teacher's training counted"
    texts += [f"{told(flops)} times its FLOPs{counted}"] if flops is not None else []
    return f"To {described(name)} {baseline.label} takes {', and '.join(texts)}" if texts else ""


def _cost(arm: ArmStatistics, baseline: ArmStatistics) -> str:
    """What an arm takes with its teacher's training, beside the baseline that needs none."""
    flops, theirs, own = arm.total("flops"), baseline.total("flops"), arm.own("flops")
    if flops is None or theirs is None or own is None or not theirs.mean:
        return ""
    if _has_stages(arm):
        share = f"{flops.mean / theirs.mean:.2g} times those of {baseline.label}"
        return f"All stages of {arm.label} together took {number(flops.mean)} FLOPs, {share}"
    images, seconds = arm.total("images"), arm.total("time_s")
    more = [f"{number(one.mean)} {unit}" for one, unit in ((images, "images"), (seconds, "seconds")) if one]
    share = f"{100 * (1 - own.mean / flops.mean):.0f}% of it the teacher's" if flops.mean else "nothing"
    return (
        f"{arm.label} and its teacher together took {number(flops.mean)} FLOPs ({share}; {', '.join(more)}), "
        f"{flops.mean / theirs.mean:.2g} times those of {baseline.label}, which needs no teacher"
    )


def _has_stages(arm: ArmStatistics) -> bool:
    return any(one.run.stages for one in arm.every)


def _end(arm: ArmStatistics, baseline: ArmStatistics, diff: Difference) -> str:
    epochs = [arm.info("epochs"), baseline.info("epochs")]
    unequal = f" (after {epochs[0]} and {epochs[1]} epochs)" if epochs[0] != epochs[1] else ""
    return verdict(arm, baseline, diff) + unequal


def _highest(students: Sequence[ArmStatistics]) -> str:
    """The highest mean of all, and who is not distinguishable from it."""
    ended = sorted((arm for arm in students if arm.final), key=lambda arm: -arm.final.mean if arm.final else 0.0)
    if len(ended) < 3:
        return ""
    diffs = [(arm, difference(ended[0], arm)) for arm in ended[1:]]
    ties = [arm.label for arm, diff in diffs if diff is not None and diff.tie]
    text = f"The highest mean of all arms is that of {with_final(ended[0])}"
    return text + (f"; within the spread of it: {listed(ties)}" if ties else "")


def _gains(students: Sequence[ArmStatistics]) -> str:
    texts, one_seed = [], max(arm.n for arm in students) == 1
    known = [(arm, diff) for arm in students if (diff := gain(arm)) is not None]
    for (arm, _), diff in zip(known, corrected([diff for _, diff in known]), strict=True):
        by = f"{arm.label} {signed(100 * diff.mean)}"
        if diff.interval is None:
            texts.append(by if one_seed else f"{by} (one seed)")
        else:
            unsettled = ", a tie" if diff.tie else "" if diff.settled else ", not settled"
            texts.append(f"{by} ({interval(diff)}{unsettled})")
    over = "one seed" if one_seed else "95% interval over seeds; settled or not with Holm's correction"
    return f"Final accuracy against the teacher's own, in points ({over}): {'; '.join(texts)}" if texts else ""


def _rates(students: Sequence[ArmStatistics]) -> list[str]:
    """Where an arm ran at several rates: which ended highest, and that it was chosen after the fact."""
    texts = []
    for name in dict.fromkeys(arm.arm for arm in students):
        tried = [arm for arm in students if arm.arm == name and arm.final is not None]
        if len({arm.info("lr_scale") for arm in tried}) < 2:
            continue
        best, *others = sorted(tried, key=lambda arm: -arm.final.mean if arm.final else 0.0)
        diffs = [diff for arm in others if (diff := difference(best, arm)) is not None]
        settled = sum(diff.settled and not diff.tie for diff in corrected(diffs))
        texts.append(
            f"Of {len(tried)} settings of one arm, {with_final(best)} ends highest, settled by the seeds"
            f" against {settled} of the other {len(others)}; it was picked on these same validation images,"
            " which flatters it"
        )
    return texts


def _teachers_steps(arms: Sequence[ArmStatistics]) -> list[str]:
    teachers = summarize(one.run.last.get("step") for arm in arms if arm.arm == "teacher" for one in arm.runs)
    if teachers is None:
        return []
    return [f"Steps are the student's own: its teacher had {teachers.mean:,.0f} before, which random starts do without"]
