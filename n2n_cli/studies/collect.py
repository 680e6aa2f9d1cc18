"""All runs of a study: in order, each with the run that it started from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from n2n_cli.arms import ARMS
from n2n_cli.errors import N2NError
from n2n_cli.studies.runs import Run, read_run
from n2n_cli.studies.stages import joined


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
    """The runs in the order of arms, variants and seeds, each with its teacher, and that one's own; stages joined."""
    found = {run.folder.resolve(): replace(run, metric=metric) for run in runs}
    return sorted((_with_teacher(run, found) for run in joined(found.values())), key=_order)


def _order(run: Run) -> tuple[int, str, float, str, int]:
    rank = list(ARMS).index(run.arm) if run.arm in ARMS else len(ARMS)
    return rank, run.arm, float(run.info.get("lr_scale") or 1.0), run.key, run.seed


def _with_teacher(run: Run, found: dict[Path, Run], depth: int = 8) -> Run:
    """A run with its teachers, at most ``depth`` of them: a folder that was tampered with may be its own."""
    teacher = None if run.arm == "teacher" or run.stages or not depth else _teacher(run, found)
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
