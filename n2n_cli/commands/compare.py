"""``n2n compare``: one teacher a seed, then the arms of the study; the report after every finished run."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

from n2n_cli.commands import folders, parallel
from n2n_cli.commands.folders import Plan
from n2n_cli.schema import Compare

REPORT_EVERY_S = 30.0


def run(cfg: Compare, command: str) -> None:
    """Runs what is not finished yet; all arms and seeds take the same loop, data and budget."""
    study = folders.setting(cfg)
    given = cfg.teacher or cfg.weights
    total = cfg.seeds * ((given is None) + len(_arms(cfg, cfg.seed, Path())))
    progress = _Progress(cfg, study, total)
    first: list[Plan] = []
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        if given:
            first += _arms(cfg, seed, Path(given))
        else:
            first.append(folders.train_plan(cfg, "teacher", seed=seed, epochs=cfg.teacher_epochs))
    ready = progress.open(first)
    jobs = parallel.jobs_at_once(cfg, total - progress.number) if ready else 1
    if jobs > 1:
        print(f"{total - progress.number} of {total} runs to train, {jobs} at once: {study}", flush=True)
        parallel.run_all(ready, cfg, jobs, progress.finished)
    else:
        while ready:
            plan = ready.pop(0)
            progress.announce(plan)
            ready = [*progress.finished(plan, parallel.train(plan, cfg), ""), *ready]
    if progress.stopped:
        print("not all runs are finished; the same command goes on from there", flush=True)
        return
    _show(cfg, study, progress.fresh, total)


def _arms(cfg: Compare, seed: int, teacher: Path) -> list[Plan]:
    scales = cfg.lr_scale if isinstance(cfg.lr_scale, list) else [cfg.lr_scale]
    return [folders.grow_plan(cfg, cfg.ops[arm], seed, scale, teacher) for arm in cfg.study.arms for scale in scales]


class _Progress:
    """How far the study is: ``number`` runs done, ``fresh`` of them now, ``stopped`` if one ended early."""

    def __init__(self, cfg: Compare, study: Path, total: int) -> None:
        self.cfg, self.study, self.total = cfg, study, total
        self.number = self.fresh = 0
        self.stopped = False
        self.written = time.monotonic()

    def open(self, plans: list[Plan]) -> list[Plan]:
        """Those of the plans, or of the arms of their finished teachers, that are still to be trained."""
        left: list[Plan] = []
        for plan in plans:
            if not plan.done:
                left.append(plan)
                continue
            folders.check_same(plan, folders.run_config(self.cfg, plan))
            self.number += 1
            if plan.teacher is None:
                left += self.open(_arms(self.cfg, plan.seed, plan.folder))
        return left

    def announce(self, plan: Plan) -> None:
        print(f"[{self.number + 1}/{self.total}] {plan.label}, seed {plan.seed}: {plan.folder}", flush=True)

    def finished(self, plan: Plan, done: dict[str, Any] | None, said: str) -> list[Plan]:
        """Takes in a result, tells it, keeps the report fresh; returns the plans that it makes possible."""
        if said:
            self.announce(plan)
            print(said, end="", flush=True)
        if done is None:
            self.stopped = True
            return []
        self.number += 1
        self.fresh += 1
        if time.monotonic() - self.written > REPORT_EVERY_S and self.number < self.total:
            _write(self.cfg, self.study)
            self.written = time.monotonic()
        return self.open(_arms(self.cfg, plan.seed, plan.folder)) if plan.teacher is None else []


def _show(cfg: Compare, study: Path, fresh: int, total: int) -> None:
    from n2n_cli import studies

    report, curves = study / "report.html", study / "curves.png"
    newest = max(done.stat().st_mtime for done in study.glob("*/done.json"))
    if not (report.exists() and curves.exists() and report.stat().st_mtime >= newest):
        _write(cfg, study)
    print(studies.table_text(studies.statistics(studies.collect(study))))
    if not fresh:
        print(f"all {total} runs were done already")
    print(f"report: {report}")
    print(f"curves: {curves}")
    print(f"tensorboard --logdir {study}", flush=True)


def _write(cfg: Compare, study: Path) -> None:
    from n2n_cli import studies

    studies.write(study, title=cfg.study.title, command=_command())


def _command() -> str:
    """The command line to repeat, as Hydra got it."""
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.")]
    return shlex.join(["n2n", "compare", *words])
