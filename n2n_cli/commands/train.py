"""``n2n train teacher`` (narrow) and ``n2n train student`` (standard), both from random initialization."""

from __future__ import annotations

from typing import Any

from n2n_cli.commands import dataset, fitting, folders, networks, prepare
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.schema import RunConfig


def teacher(cfg: RunConfig) -> dict[str, Any] | None:
    """Trains the network of width ``model.teacher_width``; see `from_scratch`."""
    return from_scratch(folders.plan_fresh(cfg, "teacher"), cfg)


def student(cfg: RunConfig) -> dict[str, Any] | None:
    """Trains the network of width ``model.width``; see `from_scratch`."""
    return from_scratch(folders.plan_fresh(cfg, "student"), cfg)


def from_scratch(planned: PlannedRun, cfg: RunConfig) -> dict[str, Any] | None:
    """Trains the network of arm teacher or student; see `fitting.fit_run`."""
    return fitting.fit_run(planned, cfg, lambda: _write_fresh(planned, cfg))


def _write_fresh(planned: PlannedRun, cfg: RunConfig) -> None:
    images = dataset.load(cfg.data, progress=cfg.progress)
    width = cfg.model.teacher_width if planned.fresh == "teacher" else cfg.model.width
    model, steps = networks.fresh(cfg, cfg.model, width, images, planned.seed)
    prepare.write_run(planned, cfg, f"train {planned.fresh}", model, steps, images)
