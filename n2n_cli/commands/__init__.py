"""One file a command; below this floor nothing knows of the config. To import this needs neither torch nor Hydra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from n2n_cli.commands import folders
from n2n_cli.errors import N2NError
from n2n_cli.models import custom
from n2n_cli.schema import RunConfig


def check_job(command: str, cfg: Any) -> Path:
    """What can be said of a job before it starts; its folder. Imports the user's own network. Raises N2NError."""
    folder = folders.job_folder(command, cfg)
    if isinstance(cfg, RunConfig) and custom.is_spec(cfg.model.name):
        custom.check(cfg.model.name, **cfg.model.kwargs)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise N2NError(f"out: {path} is a file, expected a folder")
    if isinstance(cfg, RunConfig) and (cfg.device == "cuda" or (cfg.device == "auto" and cfg.devices > 1)):
        import torch

        found = torch.cuda.device_count()
        if found < cfg.devices and (found or cfg.device == "cuda"):
            raise N2NError(
                f"devices: {cfg.devices} on CUDA, but PyTorch finds {found} here; device=cpu runs on the CPU"
            )
    return folder


def run_job(command: str, cfg: Any) -> float | None:
    """Runs one checked config (a dataclass of `n2n_cli.schema`).

    Returns the final top-1 accuracy of one that is a run and done: what a sweeper such as optuna's maximizes.
    Raises N2NError, KeyboardInterrupt.
    """
    from n2n_cli.commands import (
        check_data,
        compare,
        compare_runs,
        evaluate,
        export,
        grow,
        inspect,
        machine,
        pack_data,
        prepare_data,
        train,
    )

    runs: dict[str, Callable[[Any], object]] = {
        "train_teacher": train.teacher,
        "train_student": train.student,
        "grow": grow.run,
        "compare": compare.run,
        "compare_runs": compare_runs.run,
        "evaluate": evaluate.run,
        "inspect": inspect.run,
        "export": export.run,
        "data_prepare": prepare_data.run,
        "data_check": check_data.run,
        "data_pack": pack_data.run,
    }
    with machine.enough_memory():
        done = runs[command](cfg)
    final = done.get("final") if isinstance(done, dict) else None
    return None if not final else float(final["val/top1"])
