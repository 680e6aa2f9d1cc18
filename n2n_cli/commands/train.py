"""``n2n train teacher`` (narrow) and ``n2n train student`` (standard), both from random initialization."""

from __future__ import annotations

from typing import Any

from n2n_cli.commands import dataset, fitting, folders, networks, prepare
from n2n_cli.commands.folders import Plan
from n2n_cli.schema import RunConfig


def run(cfg: RunConfig, command: str) -> None:
    from_scratch(folders.train_plan(cfg, command.removeprefix("train_")), cfg)


def from_scratch(plan: Plan, cfg: RunConfig) -> dict[str, Any] | None:
    """Trains ``plan`` (arm teacher or student); see `fitting.fit_run`."""
    folders.check_same(plan, folders.run_config(cfg, plan))
    networks.check_same_weights(plan, cfg)
    if not plan.done and not prepare.prepared(plan):
        images = dataset.load(cfg.data)
        width = cfg.model.teacher_width if plan.arm == "teacher" else cfg.model.width
        model, built = networks.fresh(cfg, cfg.model, width, images, plan.seed)
        prepare.write_run(plan, cfg, f"train {plan.arm}", model, built, images)
    return fitting.fit_run(plan, cfg)
