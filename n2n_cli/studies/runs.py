"""Run folders, read back: all that a report knows of a run stands in its folder."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from n2n_cli import records

# The variants in a run folder's name: noise0.2, lr1e-05, epochs12, new-fresh, layers-3fa90c (a hash), sites-none
_VARIANT = re.compile(r"-([a-z_]+?)((?:(?<=-new)|(?<=-split))-[a-z]+|-[0-9a-f]{6}|-none|[\d.]+(?:e[+-]?\d+)?)(?=-|$)")


GUIDED = ("distill", "feature_prediction")  # arms that ask their teacher at every step


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: ``accuracy`` in [0, 1], and what the run had cost until then.

    ``step`` optimizer steps, ``images`` global images, ``flops`` of their training (None: the network's are not known),
    ``time_s`` seconds of wall time.
    """

    step: int
    images: int
    epoch: float
    accuracy: float
    time_s: float
    flops: float | None


@dataclass(frozen=True)
class Run:
    """One training, as its folder tells it: ``info`` is run.json, ``done`` done.json (None: not finished).

    Of a study of stages, the trainings of all its ``stages``, one after the other (see `stages.joined`).
    """

    folder: Path
    info: Mapping[str, Any]
    rows: list[dict[str, Any]]
    done: Mapping[str, Any] | None
    teacher: Run | None = None
    failed: str | None = None  # why its study gave it up
    metric: str = "top1"  # the accuracy that is compared
    alias: str = ""  # what its folder counts as, where its name is the user's own
    more: tuple[str, ...] = ()  # what else tells it from runs of the same name, of another setting
    stages: tuple[Run, ...] = ()

    @property
    def arm(self) -> str:
        return str(self.info["arm"])

    @property
    def seed(self) -> int:
        return int(self.info["seed"])

    @property
    def finished(self) -> bool:
        return self.done is not None

    @property
    def key(self) -> str:
        """The arm with its variant, equal for all seeds: the folder's name without its seed."""
        name = re.sub(r"-seed\d+$", "", self.alias or self.folder.name)
        if name != self.arm and not name.startswith(self.arm + "-"):
            name = f"{self.arm}-lr{self.info.get('lr_scale', 1)}-epochs{self.info.get('epochs', '')}"
        return "-".join([name, *(word.replace(" ", "") for word in self.more)])

    @property
    def name(self) -> str:
        """The arm's name for people: ``Net2Wider``."""
        return str(self.info.get("label") or self.arm)

    @property
    def variant(self) -> list[str]:
        """What is not the default, from the folder's name: ``["noise 0.2", "lr ×0.3"]``."""
        name = replace(self, more=()).key.removeprefix(self.arm)
        words = [_words(*found) for found in _VARIANT.findall(name)]
        words += [f"optimizer {state}" for state in re.findall(r"-(carry|equivariant)(?=-|$)", name)]
        return [*words, *self.more]

    @property
    def flops_per_image(self) -> float | None:
        """Of a training step: forward and, twice as much, backward; a multiply-accumulate is two operations. Beside it
        the forward pass of a teacher that is asked at every step. Where a part is frozen it is at most so much."""
        macs = self.info.get("macs")
        guide = self.info.get("teacher_macs") or 0
        if not guide and self.arm in GUIDED:  # a run of an older n2n
            guide = self.teacher.info.get("macs") if self.teacher else None
        return None if macs is None or guide is None else 6.0 * macs + 2.0 * guide

    @property
    def needs_teacher(self) -> bool:
        """Whether it starts from another run's weights; a random start takes no more of its teacher than shapes."""
        return not self.stages and self.arm not in ("teacher", "student") and not self.arm.endswith("init")

    def flops(self, told: Mapping[str, Any]) -> float | None:
        """Of the training until ``told``, a row of the log or done.json."""
        if self.stages:
            return told.get("flops")
        images, each = told.get("images"), self.flops_per_image
        return None if images is None or each is None else images * each

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation by step; the one at step 0 comes before any training."""
        tag = f"val/{self.metric}"
        rows = {int(row["step"]): row for row in self.rows if isinstance(row.get(tag), (int, float))}
        return [
            Evaluation(
                step, int(row.get("images", 0)), float(row.get("epoch", 0.0)), float(row[tag]),
                float(row.get("time_s", 0.0)), self.flops({"images": 0, **row}),
            )
            for step, row in sorted(rows.items())
        ]  # fmt: skip

    def series(self, tag: str) -> tuple[list[int], list[float]]:
        """Steps and values of one tag, by step."""
        values = {int(row["step"]): float(row[tag]) for row in self.rows if isinstance(row.get(tag), (int, float))}
        return sorted(values), [values[step] for step in sorted(values)]

    @property
    def last(self) -> Mapping[str, Any]:
        """The newest row of the log; empty before the first."""
        return self.rows[-1] if self.rows else {}


def _words(name: str, value: str) -> str:
    value = value.removeprefix("-")
    special = {
        "lr": f"lr ×{value}",
        "warmup_epochs": f"warm-up {_epochs(value)}",
        "epochs": _epochs(value),
        "teacher": f"teacher of {_epochs(value)}",
    }
    if name == "at":
        return f"teacher at {100 * float(value):g} %"
    if name == "freeze":
        return "the rest frozen"
    layers = {"zero": "zero branches", "stack": "stacked"}
    special |= {"new": layers.get(value) or f"{value} units", "split": f"{value} shares"}
    return special.get(name) or f"{'teacher' if name == 'from' else name} {value}"


def _epochs(value: str) -> str:
    return f"{value} epoch" if value == "1" else f"{value} epochs"


def read_run(folder: Path) -> Run:
    """One run folder, without its teacher. Raises N2NError for a file that cannot be read."""
    failed = _read(folder / "failed.json", records.FAILED) or {}
    info = _read(folder / "run.json", records.RUN, ["arm", "seed"]) or failed
    rows, done = records.rows(folder / "metrics.jsonl"), _read(folder / "done.json", records.DONE)
    return Run(folder, info, rows, done, failed=failed.get("reason"))


def _read(path: Path, kinds: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, Any] | None:
    try:
        return records.read(path, kinds, needed)
    except FileNotFoundError:
        return None
