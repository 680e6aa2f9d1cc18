"""What stands at the top of a report: the claim in one sentence, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Sequence

from n2n_cli.studies import settings
from n2n_cli.studies.findings import rivalries, verdict
from n2n_cli.studies.statistics import ArmStatistics, speedup
from n2n_cli.studies.table import highest, ratio
from n2n_cli.studies.wording import listed, percent, sentences, with_final

_MACHINE = ("device", "devices", "threads")
SEEDS = 5
"""Fewer settle large differences only."""


def claim(arms: Sequence[ArmStatistics]) -> str:
    """The grown arm that ends highest beside its random initialization (else its first rival), whoever wins."""
    students = [arm for arm in arms if arm.arm != "teacher" and arm.final is not None]
    found = [pair for pair in rivalries(students) if pair[0].arm != "random_pad"]
    found = [pair for pair in found if pair[1].arm.endswith("init")] or found
    if not found:
        ended = sorted(students, key=lambda arm: -(arm.final.mean if arm.final else 0.0))
        one = f"{with_final(ended[0])} ends highest of {len(ended)} arms" if ended[1:] else ""
        alone = f"{ended[0].label} ends at {percent(ended[0].final)}" if ended else "No student has finished"
        return sentences([one or alone])[0]
    arm, rival, diff = max(found, key=lambda pair: pair[0].final.mean if pair[0].final else 0.0)
    text, name = verdict(arm, rival, diff), highest([arm])
    faster = speedup(arm, rival, name, "step") if name else None
    costs = arm.total("flops"), rival.total("flops")
    if faster is not None and not faster.at_once:
        text += (
            f"; to {name}% of the highest final accuracy {rival.label} takes {ratio(faster)} times {arm.label}'s steps"
        )
    elif faster is not None:
        some = "" if faster.at_once == faster.of else f" in {faster.at_once} of {faster.of} seeds"
        text += f"; {arm.label} has {name}% of the highest final accuracy before its first step{some}"
    if costs[0] is not None and costs[1] is not None and costs[1].mean:
        share = f"{costs[0].mean / costs[1].mean:.2g} times the FLOPs of {rival.label}"
        who = "all its stages" if any(one.run.stages for one in arm.every) else f"{arm.label} and its teacher"
        text += f"; {who} together took {share}"
    grown = len({one.key for one, *_ in found})
    picked = f" It was picked of {grown} grown arms by its end on these same validation images." if grown > 1 else ""
    return sentences([text])[0] + picked


def warnings(arms: Sequence[ArmStatistics]) -> list[str]:
    """What limits the comparison, one sentence each."""
    students = [arm for arm in arms if arm.arm != "teacher"]
    runs = [one.run for arm in students for one in arm.every]
    texts, most = [], max((arm.n for arm in students), default=0)
    if most == 1:
        texts.append("One seed: differences are what this run showed, and no spread is known")
    elif 1 < most < SEEDS:
        texts.append(f"{most} seeds settle large differences only")
    if len({arm.n for arm in students if arm.n}) > 1:
        texts.append("Arms have unequal numbers of finished seeds; pairs are of the seeds that both have")
    if any(arm.info("synthetic") for arm in arms):
        texts.append(
            "The data are synthetic: images made by a program, so the accuracies say nothing about natural images"
        )
    lengths: dict[float, list[str]] = {}
    for arm in students:
        if (images := arm.own("images")) is not None:
            lengths.setdefault(images.mean, []).append(arm.label)
    if len(lengths) > 1:
        each = [f"{mean:,.0f} images: {listed(labels)}" for mean, labels in sorted(lengths.items())]
        texts.append(f"Unequal budgets: {'; '.join(each)}")
    machines = {tuple((run.info.get("machine") or {}).get(key) for key in _MACHINE) for run in runs}
    if len(machines) > 1:
        texts.append("Runs were made on machines that differ in device, devices or threads: wall times do not compare")
    if others := [key for key in settings.differing(runs) if key in ("training.batch_size", "data.seed", "data.name")]:
        texts.append(
            f"Runs of one seed do not see the same images in the same order ({', '.join(others)} differ), so pairing"
            " them by seed takes out less"
        )
    failed = [one.run for arm in arms for one in arm.failed]
    texts += [f"The run {run.folder.name} failed and is in no mean: {run.failed}" for run in failed]
    waiting = [one.run.folder.name for arm in arms for one in arm.unfinished if one.run.failed is None]
    if waiting:
        texts.append(f"Not finished and in no mean: {listed(waiting)}")
    return sentences(texts)
