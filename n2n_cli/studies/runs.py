"""Run folders, read back: all that a report knows of a run stands in its folder."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from n2n_cli import records
from n2n_cli.arms import ARMS
from n2n_cli.errors import N2NError

# The variants in a run folder's name: noise0.2, lr1e-05, epochs12, new-fresh, layers-3fa90c (a hash), sites-none
_VARIANT = re.compile(r"-([a-z_]+?)((?:(?<=-new)|(?<=-split))-[a-z]+|-[0-9a-f]{6}|-none|[\d.]+(?:e[+-]?\d+)?)(?=-|$)")


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
    """One training, as its folder tells it: ``info`` is run.json, ``done`` done.json (None: not finished)."""

    folder: Path
    info: Mapping[str, Any]
    rows: list[dict[str, Any]]
    done: Mapping[str, Any] | None
    teacher: Run | None = None
    failed: str | None = None  # why its study gave it up
    metric: str = "top1"  # the accuracy that is compared
    alias: str = ""  # what its folder counts as, where its name is the user's own
    more: tuple[str, ...] = ()  # what else tells it from runs of the same name, of another setting

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
        return [*(_words(*found) for found in _VARIANT.findall(name)), *self.more]

    @property
    def flops_per_image(self) -> float | None:
        """Of a training step: forward and, twice as much, backward; a multiply-accumulate is two operations."""
        macs = self.info.get("macs")
        return None if macs is None else 6.0 * macs

    @property
    def needs_teacher(self) -> bool:
        """Whether it starts from another run's weights; a random start takes no more of its teacher than shapes."""
        return self.arm not in ("teacher", "student") and not self.arm.endswith("init")

    @functools.cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every evaluation by step; the one at step 0 comes before any training."""
        tag = f"val/{self.metric}"
        rows = {int(row["step"]): row for row in self.rows if isinstance(row.get(tag), (int, float))}
        return [
            Evaluation(
                step, (images := int(row.get("images", 0))), float(row.get("epoch", 0.0)), float(row[tag]),
                float(row.get("time_s", 0.0)), None if (each := self.flops_per_image) is None else images * each,
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


def collect(folder: str | Path, metric: str = "top1") -> list[Run]:
    """All runs of a study folder, in the order of arms, variants and seeds, each with its teacher.

    ``metric``: the accuracy to compare, top1 or top5.

    Raises:
        N2NError: there is no such folder, it holds no run, or a file of a run cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise N2NError(f"study folder not found: {folder}")
    told = sorted({path.parent for name in ("run.json", "failed.json") for path in folder.glob(f"*/{name}")})
    found = {path.resolve(): read_run(path) for path in told}
    if not found:
        below = sorted({str(path.parent.parent) for path in folder.glob("*/*/run.json")})
        hint = f"; studies below it: {', '.join(below)}" if below else ""
        raise N2NError(f"no run in {folder}: expected run folders with a run.json{hint}")
    return ordered(found.values(), metric)


def ordered(runs: Iterable[Run], metric: str = "top1") -> list[Run]:
    """The runs in the order of arms, variants and seeds, each with its teacher, and that one's own."""
    found = {run.folder.resolve(): replace(run, metric=metric) for run in runs}
    return sorted((_with_teacher(run, found) for run in found.values()), key=_order)


def read_run(folder: Path) -> Run:
    """One run folder, without its teacher. Raises N2NError for a file that cannot be read."""
    failed = _read(folder / "failed.json", records.FAILED) or {}
    info = _read(folder / "run.json", records.RUN, ["arm", "seed"]) or failed
    rows, done = records.rows(folder / "metrics.jsonl"), _read(folder / "done.json", records.DONE)
    return Run(folder, info, rows, done, failed=failed.get("reason"))


def _order(run: Run) -> tuple[int, str, float, str, int]:
    rank = list(ARMS).index(run.arm) if run.arm in ARMS else len(ARMS)
    return rank, run.arm, float(run.info.get("lr_scale") or 1.0), run.key, run.seed


def _with_teacher(run: Run, found: dict[Path, Run], depth: int = 8) -> Run:
    """A run with its teachers, at most ``depth`` of them: a folder that was tampered with may be its own."""
    teacher = None if run.arm == "teacher" or not depth else _teacher(run, found)
    return run if teacher is None else replace(run, teacher=_with_teacher(teacher, found, depth - 1))


def _teacher(run: Run, found: dict[Path, Run]) -> Run | None:
    """The run that ``run`` grew from: by its path, by its name in a study that was moved, or by the seed."""
    if path := run.info.get("teacher"):
        places = [Path(path), *Path(path).parents]  # a checkpoint lies inside its run's folder
        for place in places:
            if (place / "run.json").exists():
                return found.get(place.resolve()) or replace(read_run(place), metric=run.metric)
        by_name = {folder.name: other for folder, other in found.items()}
        return next((by_name[place.name] for place in places if place.name in by_name), None)
    same = [other for other in found.values() if other.arm == "teacher" and other.seed == run.seed]
    return same[0] if len(same) == 1 else None


def _read(path: Path, kinds: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, Any] | None:
    try:
        return records.read(path, kinds, needed)
    except FileNotFoundError:
        return None
