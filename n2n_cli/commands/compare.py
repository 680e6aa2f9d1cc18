"""``n2n compare``: one teacher a seed, then the arms of the study; the report after every finished run."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from n2n_cli.commands import fitting, folders, parallel
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.errors import N2NError, RunError
from n2n_cli.schema import Compare

REPORT_EVERY_S = 30.0
STUDENT, TEACHER = 0, 1


def run(cfg: Compare) -> None:
    """Runs what is not finished yet; all arms and seeds take the same loop, data and budget."""
    if cfg.dry_run:
        from n2n_cli.commands import dry_run

        dry_run.show(cfg)
        return
    study = folders.setting(cfg)
    first = [run for seed in range(cfg.seed, cfg.seed + cfg.seeds) for run in _first(cfg, seed)]
    total = len(first) + sum(_later(cfg, run) for run in first)
    progress = _Progress(cfg, study, total)
    ready = progress.open(first)
    jobs = parallel.jobs_at_once(cfg, total - progress.number) if ready else 1
    if jobs > 1:
        print(f"{total - progress.number} of {total} runs to train, {jobs} at once: {study}", flush=True)
        parallel.run_all(ready, cfg, jobs, progress.finished)
    else:
        while ready:
            planned = ready.pop(0)
            progress.announce(planned)
            ready = [*progress.finished(planned, parallel.run_one(planned, cfg), ""), *ready]
    if progress.stopped:
        print("not all runs are finished; the same command goes on from there", flush=True)
        return
    _show(cfg, study, progress.fresh, total)
    if progress.failed:
        name = progress.failed[0].folder.name
        how = "followed" if cfg.study.stages else "grown from"
        more = f" and {len(progress.failed) - 1} more" if progress.failed[1:] else ""
        raise N2NError(
            f"{len(progress.failed)} of {total} runs failed: {name}{more} (the report says why)"
            + (f", and {progress.orphans} would have {how} one" if progress.orphans else "")
            + "; retry=true tries them again"
        )


def _first(cfg: Compare, seed: int) -> list[PlannedRun]:
    """The runs of a seed that wait for no other."""
    if cfg.study.stages:
        return [folders.plan_stage(cfg, arm, seed, None) for arm in cfg.study.arms]
    if given := cfg.teacher or cfg.weights:
        return _arms(cfg, seed, Path(given))
    return [folders.plan_fresh(cfg, "teacher", seed=seed, epochs=cfg.teacher_epochs)]


def _next(cfg: Compare, run: PlannedRun) -> list[PlannedRun]:
    """The runs that a finished one makes possible: the next stage, or the arms of a teacher."""
    if run.stage:
        return [folders.plan_stage(cfg, run.arm, run.seed, run)] if run.stage < run.stages else []
    return [] if run.teacher is not None else _arms(cfg, run.seed, run.folder)


def _later(cfg: Compare, run: PlannedRun) -> int:
    """How many runs cannot be without this one."""
    if run.stage:
        return run.stages - run.stage
    return 0 if run.teacher is not None else len(_arms(cfg, run.seed, Path()))


def _arms(cfg: Compare, seed: int, teacher: Path) -> list[PlannedRun]:
    """The students of a teacher; of one that is not there (an empty path) only how many there are counts.

    Raises:
        N2NError: a checkpoint that they grow from is not there.
    """
    scales = cfg.lr_scale if isinstance(cfg.lr_scale, list) else [cfg.lr_scale]
    teachers = [_kept(teacher, at) if at < 1 and teacher.name else teacher for at in cfg.study.teacher_at]
    return [
        folders.plan_grown(cfg, cfg.ops[arm], seed, scale, one)
        for one in teachers
        for arm in cfg.study.arms
        for scale in scales
    ]


def _kept(teacher: Path, at: float) -> Path:
    from n2n_cli.training import checkpoint  # brings torch, which a finished study does not wait for

    return checkpoint.kept_at(teacher, at)


class _Progress:
    """How far the study is: ``number`` runs done or given up, ``fresh`` of them now, ``failed`` those given up,
    ``stopped`` if one ended early."""

    def __init__(self, cfg: Compare, study: Path, total: int) -> None:
        self.cfg, self.study, self.total = cfg, study, total
        self.number = self.fresh = 0
        self.stopped = False
        self.failed: list[PlannedRun] = []
        self.orphans = 0  # runs whose teacher failed
        self.began = self.written = time.monotonic()
        self.took: dict[int, list[float]] = {}  # seconds of finished runs, by kind: see `_kind`
        self.spent = 0.0  # seconds of those finished now

    def open(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Those of the runs, or of the arms of their finished teachers, that are still to be trained."""
        left: list[PlannedRun] = []
        for planned in runs:
            if not planned.done and planned.failed is not None and not self.cfg.retry:
                self._give_up(planned)
                continue
            if not planned.done:
                left.append(planned)
                continue
            folders.check_same(planned)
            fitting.check_images(planned, planned.with_images(self.cfg))
            self.number += 1
            self._note(planned, planned.done)
            left += self.open(_next(self.cfg, planned))
        return left

    def _give_up(self, planned: PlannedRun) -> None:
        """Counts a run that cannot be made, and those that cannot be without it."""
        self.failed.append(planned)
        orphans = _later(self.cfg, planned)
        self.number += 1 + orphans
        self.orphans += orphans

    def announce(self, planned: PlannedRun) -> None:
        print(f"[{self.number + 1}/{self.total}] {planned.label}, seed {planned.seed}: {planned.folder}", flush=True)

    def finished(self, planned: PlannedRun, done: parallel.Result, said: str) -> list[PlannedRun]:
        """Takes in a result, tells it, keeps the report fresh; returns the runs that it makes possible."""
        if said:
            self.announce(planned)
            print(said, end="", flush=True)
        if done is None:
            self.stopped = True
            return []
        if isinstance(done, RunError):
            folders.fail(planned, done)
            print(f"n2n: warning: {planned.folder.name} failed: {planned.failed}", file=sys.stderr, flush=True)
            self._give_up(planned)
            self.fresh += 1
            return []
        self.number += 1
        self.fresh += 1
        self.spent += self._note(planned, done)
        if sys.stdout.isatty() and self.number < self.total:
            self.show()
        if time.monotonic() - self.written > REPORT_EVERY_S and self.number < self.total:
            _write(self.cfg, self.study)
            self.written = time.monotonic()
        return self.open(_next(self.cfg, planned))

    def _note(self, planned: PlannedRun, done: dict[str, Any]) -> float:
        """Counts the seconds of a finished run, if its done.json says them, and returns them."""
        seconds = float(done.get("time_s") or 0.0)
        if seconds:
            self.took.setdefault(_kind(planned), []).append(seconds)
        return seconds

    def show(self) -> None:
        """The table of what is finished, and when the rest will be."""
        from n2n_cli import studies

        arms = studies.statistics(studies.collect(self.study, self.cfg.metric), self.cfg.thresholds)
        print(studies.table_text(arms, shutil.get_terminal_size((studies.WIDTH, 24)).columns))
        left = self.left()
        print(
            f"{self.number} of {self.total} runs" + ("" if left is None else f", about {_duration(left)} left"),
            flush=True,
        )

    def left(self) -> float | None:
        """Seconds until the last run, from what finished ones of its kind took; None: nobody knows."""
        if not self.spent:
            return None
        done = {kind: len(took) for kind, took in self.took.items()}
        if stages := self.cfg.study.stages:
            size = dict(enumerate(stages, 1))  # a stage takes as long as it has images
            given_up = [stage for run in self.failed for stage in range(run.stage, run.stages + 1)]
            runs = {at: len(self.cfg.study.arms) * self.cfg.seeds - given_up.count(at) - done.get(at, 0) for at in size}
        else:
            size = {TEACHER: 1.0, STUDENT: 1.0}
            teachers = 0 if self.cfg.teacher or self.cfg.weights else self.cfg.seeds - done.get(TEACHER, 0)
            runs = {TEACHER: teachers, STUDENT: self.total - self.number - teachers}
        usual = sum(sum(took) for took in self.took.values()) / sum(size[kind] * done[kind] for kind in done)
        means = {kind: sum(self.took[kind]) / done[kind] if kind in done else usual * size[kind] for kind in runs}
        need = sum(max(0, runs[kind]) * means[kind] for kind in runs)
        return need * (time.monotonic() - self.began) / self.spent  # runs at once, and what a run takes beside training


def _kind(planned: PlannedRun) -> int:
    """Which runs take as long as this one: its stage, or whether it is a teacher."""
    return planned.stage or (TEACHER if planned.teacher is None else STUDENT)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show(cfg: Compare, study: Path, fresh: int, total: int) -> None:
    from n2n_cli import studies

    if not studies.current(study, cfg.metric, cfg.thresholds):
        _write(cfg, study)
    arms = studies.statistics(studies.collect(study, cfg.metric), cfg.thresholds)
    print(studies.table_text(arms))
    if by_stage := studies.stage_text(arms):
        print(f"\nafter every stage, all stages so far counted\n\n{by_stage}\n")
    for line in studies.failures(arms):
        print(line)
    if not fresh and not any(arm.failed for arm in arms):
        print(f"all {total} runs were done already")
    print(f"report: {study / 'report.html'}")
    print(f"curves: {study / 'curves.png'}")
    print(f"tensorboard --logdir {shlex.quote(str(study))}", flush=True)


def _write(cfg: Compare, study: Path) -> None:
    from n2n_cli import studies

    studies.write(study, title=cfg.study.title, command=_command(), metric=cfg.metric, thresholds=cfg.thresholds)


def _command() -> str:
    """The command line to repeat, as Hydra got it."""
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.")]
    return shlex.join(["n2n", "compare", *words])
