"""What every strategy of a study of stages had, and had cost in all, after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from n2n_cli.studies import costs, table
from n2n_cli.studies.costs import Cost
from n2n_cli.studies.inference import Summary, summarize
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, final_accuracy, run_statistics
from n2n_cli.studies.wording import listed, percent

HEAD = ("Arm", "Stage", "Images there", "n", "Start, %", "Final, %", "Images, all", "FLOPs, all", "Seconds, all")


class AfterStage(NamedTuple):
    """An arm after a stage, over the seeds that have finished it.

    ``fraction``: of the training images, and ``there``: how many these are (None: not known); ``start`` and ``final``:
    accuracies before the stage's first step and after its last; ``images`` trained on, ``flops`` and ``time_s`` until
    then, in all stages together.
    """

    arm: ArmStatistics
    number: int
    fraction: float
    there: int | None
    start: Summary | None
    final: Summary | None
    images: Summary | None
    flops: Summary | None
    time_s: Summary | None


def after_stages(arms: Sequence[ArmStatistics]) -> list[AfterStage]:
    """Arm by arm, stage by stage; empty where no arm has stages."""
    found = []
    for arm in arms:
        ways = [one.run.stages for one in arm.every]
        for place in range(max(map(len, ways))):
            done = [way[: place + 1] for way in ways if len(way) > place and way[place].finished]
            if not done:
                continue
            last, totals = [way[-1] for way in done], [_together(way) for way in done]
            fraction = float(last[0].info["stage"]["fraction"])
            whole = (last[0].info.get("images") or {}).get("train")
            found.append(
                AfterStage(
                    arm,
                    place + 1,
                    fraction,
                    None if whole is None else max(1, round(fraction * whole)),
                    summarize(run_statistics(run).start for run in last),
                    summarize(final_accuracy(run) for run in last),
                    summarize(total.images for total in totals),
                    summarize(total.flops for total in totals),
                    summarize(total.time_s for total in totals),
                )
            )
    return found


def _together(way: Sequence[Run]) -> Cost:
    total = Cost(0, 0, 0)
    for run in way:
        total = costs.plus(total, costs.own(run))
    return total


def rows(arms: Sequence[ArmStatistics]) -> list[list[str]]:
    """`after_stages` for people, under `HEAD`."""
    return [
        [
            at.arm.title, str(at.number), f"{100 * at.fraction:.3g} %" if at.there is None else f"{at.there:,}",
            str(at.final.n if at.final else 0), table.spread(at.start), table.spread(at.final),
            table.count(at.images), table.count(at.flops), table.count(at.time_s),
        ]
        for at in after_stages(arms)
    ]  # fmt: skip


def text(arms: Sequence[ArmStatistics]) -> str:
    """The rows for a terminal; empty where no arm has stages."""
    found = rows(arms)
    return table.aligned([HEAD, *found]) if found else ""


def stages_csv(arms: Sequence[ArmStatistics]) -> str:
    """Accuracies as fractions; mean and sd over the seeds that have finished a stage."""
    quantities = ("start", "final", "images", "flops", "time_s")
    head = [
        "arm",
        "stage",
        "fraction",
        "images_there",
        "n",
        *(f"{q}_{part}" for q in quantities for part in ("mean", "sd")),
    ]
    lines: list[list[object]] = [list(head)]
    for at in after_stages(arms):
        found: list[Summary | None] = [getattr(at, name) for name in quantities]
        lines.append([at.arm.key, at.number, at.fraction, at.there, at.final.n if at.final else 0])
        lines[-1] += [value for one in found for value in ((one.mean, one.sd) if one else (None, None))]
    return table.written(lines)


def sentences(arms: Sequence[ArmStatistics]) -> list[str]:
    """Who had what for how much after each stage, the highest first."""
    stages: dict[tuple[int, float], list[AfterStage]] = {}
    for at in after_stages(arms):
        stages.setdefault((at.number, at.fraction), []).append(at)
    told = []
    for (_, fraction), every in sorted(stages.items(), key=lambda item: item[0]):
        ranked = sorted((at for at in every if at.final), key=lambda at: -at.final.mean if at.final else 0.0)
        each = [
            f"{at.arm.label} {percent(at.final)}" + (f" for {table.number(at.flops.mean)} FLOPs" if at.flops else "")
            for at in ranked
        ]
        told.append(f"With {100 * fraction:.3g} % of the training images, all stages so far counted: {listed(each)}")
    return told
