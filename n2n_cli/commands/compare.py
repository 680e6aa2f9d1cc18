"""``n2n compare``: one teacher a seed, then the arms of the study; the report after every finished run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from n2n_cli.commands import folders
from n2n_cli.commands.folders import Plan
from n2n_cli.config import Compare


def run(cfg: Compare, command: str) -> None:
    """Runs what is not finished yet; all arms and seeds take the same loop, data and budget."""
    study = folders.setting(cfg)
    scales = cfg.lr_scale if isinstance(cfg.lr_scale, list) else [cfg.lr_scale]
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    total = len(seeds) * ((cfg.teacher is None) + len(cfg.study.arms) * len(scales))
    number = fresh = 0
    stopped = False
    for seed in seeds:
        teacher = Path(cfg.teacher) if cfg.teacher else None
        if teacher is None:
            plan = folders.train_plan(cfg, "teacher", seed=seed, epochs=cfg.teacher_epochs)
            number += 1
            fresh += not plan.done
            if not _finish(plan, cfg, number, total, study):
                stopped = True
                continue
            teacher = plan.folder
        for arm in cfg.study.arms:
            for scale in scales:
                number += 1
                plan = folders.grow_plan(cfg, cfg.ops[arm], seed, scale, teacher)
                fresh += not plan.done
                stopped |= not _finish(plan, cfg, number, total, study)
    if stopped:
        print("not all runs are finished; the same command goes on from there", flush=True)
        return
    _show(cfg, study, fresh, total)


def _finish(plan: Plan, cfg: Compare, number: int, total: int, study: Path) -> bool:
    """Trains one run unless it is done; False if it was only prepared or stopped early."""
    if plan.done:
        folders.check_same(plan, folders.run_config(cfg, plan))
        return True
    print(f"[{number}/{total}] {plan.label}, seed {plan.seed}: {plan.folder}", flush=True)
    if plan.teacher is None:
        from n2n_cli.commands import train

        done = train.from_scratch(plan, cfg)
    else:
        from n2n_cli.commands import grow

        done = grow.from_teacher(plan, cfg)
    if done is None:
        return False
    _write(cfg, study)
    return True


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
