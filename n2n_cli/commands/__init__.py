"""One file a command; the only floor that reads the config. Imports neither torch nor Hydra by itself."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from n2n_cli.commands import folders

_MODULES = {"train_teacher": "train", "train_student": "train"}


def check_job(command: str, cfg: Any) -> Path:
    """What can be said of a job before it starts, without torch; its folder. Raises N2NError."""
    folder = folders.job_folder(command, cfg)
    if folder.exists() and not folder.is_dir():
        from n2n_cli.errors import N2NError

        raise N2NError(f"out: {folder} is a file, expected a folder")
    return folder


def run_job(command: str, cfg: Any) -> None:
    """Runs one checked config (a dataclass of `n2n_cli.config`). Raises N2NError, KeyboardInterrupt."""
    importlib.import_module(f"n2n_cli.commands.{_MODULES.get(command, command)}").run(cfg, command)
