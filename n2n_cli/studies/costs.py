"""What accuracy costs: steps, images, FLOPs and seconds until a threshold, and of a whole run with its teachers'."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from n2n_cli.studies.inference import Summary
from n2n_cli.studies.runs import Evaluation, Run

TEACHER = "teacher"
"""The threshold that is the accuracy of a run's own teacher, where the run was grown from it."""
SHARES = (0.9, 0.95, 0.99)
"""The thresholds that are shares of the highest final accuracy of a seed's runs."""
UNITS = {"step": "steps", "images": "images", "flops": "FLOPs", "time_s": "seconds"}
"""What is counted, as `Evaluation` calls it and as people do."""


@dataclass(frozen=True)
class Cost:
    """What a run took: ``images`` trained on, ``flops`` of their training, ``time_s`` of wall time; None: not known."""

    images: float | None
    flops: float | None
    time_s: float | None


@dataclass(frozen=True)
class Way:
    """What an arm took until a threshold, over ``cost.n`` seeds of which ``reached`` got there.

    The others are censored: they count with the whole length of their run, so that ``cost.mean`` (the restricted mean)
    is a lower bound of the mean.
    """

    cost: Summary
    reached: int

    @property
    def censored(self) -> int:
        return self.cost.n - self.reached


def threshold(share: float) -> str:
    """The name of a share of the highest final accuracy: ``90`` or ``99.5``."""
    return f"{100 * share:.6g}"


def described(name: str) -> str:
    """A threshold for people."""
    return "its teacher's accuracy" if name == TEACHER else f"{name}% of the highest final accuracy"


def first_at(evaluations: Sequence[Evaluation], accuracy: float) -> Evaluation | None:
    """The first evaluation at or above ``accuracy``, to 1e-9: rounding must not part two equal ratios of counts."""
    return next((at for at in evaluations if at.accuracy >= accuracy - 1e-9), None)


def until(evaluations: Sequence[Evaluation], accuracy: float, unit: str) -> tuple[float, bool] | None:
    """What a run took until ``accuracy``; if it never got there, what it took in all, and True."""
    if not evaluations:
        return None
    at = first_at(evaluations, accuracy)
    value = getattr(at or evaluations[-1], unit)
    return None if value is None else (float(value), at is None)


def area(evaluations: Sequence[Evaluation]) -> float | None:
    """The mean accuracy over the run's steps: the area under its curve (trapezoids) over its length."""
    steps = [at.step for at in evaluations]
    if not steps or steps[-1] == steps[0]:
        return None
    pairs = itertools.pairwise(evaluations)
    return sum((b.step - a.step) * (a.accuracy + b.accuracy) / 2 for a, b in pairs) / (steps[-1] - steps[0])


def own(run: Run) -> Cost:
    """What the run itself took so far."""
    told: Mapping[str, float] = run.done or run.last
    return Cost(told.get("images"), run.flops(told), told.get("time_s"))


def of_teachers(run: Run) -> Cost:
    """What the runs took that the weights of ``run`` come from; not known where a file of weights stands among them."""
    if any("weights" in step for step in (run.info.get("lineage") or {}).get("steps") or []):
        return Cost(None, None, None)
    if not run.needs_teacher:
        return Cost(0, 0, 0)
    if run.teacher is None:
        return Cost(None, None, None)
    # A student may come from a teacher that was stopped on its way: then only so much of its training counts.
    whole, seen = own(run.teacher), run.info.get("teacher_images")
    share = min(1.0, seen / whole.images) if seen is not None and whole.images else 1.0
    part = Cost(*(None if value is None else share * value for value in _parts(whole)))
    return plus(part, of_teachers(run.teacher))


def total(run: Run) -> Cost:
    """What the run took, its teachers' training included."""
    return plus(own(run), of_teachers(run))


def plus(a: Cost, b: Cost) -> Cost:
    return Cost(*(None if x is None or y is None else x + y for x, y in zip(_parts(a), _parts(b), strict=True)))


def _parts(cost: Cost) -> tuple[float | None, float | None, float | None]:
    return cost.images, cost.flops, cost.time_s
