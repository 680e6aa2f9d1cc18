"""A planned run, prepared and trained: in this process, or as one process a device."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from typing import Any

import yaml

from n2n_cli import records
from n2n_cli.commands import dataset, folders, networks, prepare, worker
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.config import functions
from n2n_cli.errors import N2NError
from n2n_cli.schema import MACHINE, RunConfig
from n2n_cli.training.launch import launch

_DAMAGED = (N2NError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError)
"""What reading a run's files raises where they are no such files: the run says so itself when it is its turn."""


def fit_run(planned: PlannedRun, cfg: RunConfig, write: Callable[[], None]) -> dict[str, Any] | None:
    """Trains a run from whatever is in its folder to its end; what its done.json says.

    ``write`` writes the folder of a run that is not prepared yet. None: the run was to be prepared only, or was
    stopped by ``max_steps``.

    Raises:
        N2NError: the folder holds another run, or a damaged one; or ``write`` or the training failed.
        KeyboardInterrupt: the training was stopped, and saved.
    """
    folders.check_same(planned)
    networks.check_same_weights(planned, cfg)
    folder = planned.folder
    if done := planned.done:
        check_images(planned, cfg)
        print(f"{folder} is done: {_result(done)}", flush=True)
        return done
    (folder / folders.FAILED).unlink(missing_ok=True)
    if prepare.prepared(planned):
        prepare.write_config(planned)  # devices and workers may be others than when it was prepared
    else:
        _tell_of_shorter(planned)
        _tell_of_other_classes(planned)
        write()
    typed = functions(cfg)
    words = [str(folder), *(f"model={name}" for name in typed)]
    if cfg.prepare_only:
        print(f"torchrun --nproc-per-node {cfg.devices} -m {worker.__name__} {shlex.join(words)}", flush=True)
        return None
    if cfg.devices > 1 or cfg.launch.max_restarts:
        if cfg.data.cache == "packed":  # before there are ranks, which would wait for the one that packs
            dataset.packed(cfg.data, progress=cfg.progress)
        try:
            launch(worker.__name__, words, cfg.devices, cfg.launch.max_restarts)
        except KeyboardInterrupt:  # the ranks have saved; the agent only knows the signal's number
            raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    else:
        worker.fit_folder(folder, typed, alone=True)
    done = planned.done
    if done is None:
        print(f"{folder} stopped after max_steps={cfg.max_steps}; the same command goes on from there", flush=True)
        return None
    print(f"{folder}: {_result(done)}, {done['time_s']:.0f} s", flush=True)
    return done


def check_images(planned: PlannedRun, cfg: RunConfig) -> None:
    """Whether a finished run is about the images of ``cfg``, where these lie elsewhere now. Raises N2NError."""
    if cfg.data.name not in ("imagefolder", "packed"):
        return
    try:
        root = yaml.safe_load((planned.folder / "config.yaml").read_text())["data"]["root"]
        info = records.read(planned.folder / "run.json", records.RUN)
    except _DAMAGED:
        return
    if os.path.abspath(root) != os.path.abspath(str(cfg.data.root)):
        prepare.check_images(planned.folder, info, dataset.load(cfg.data, pack=False), cfg.accept_images)


def _tell_of_shorter(planned: PlannedRun) -> None:
    """Says so where this run exists for another number of epochs: it is not the beginning of this one."""
    if planned.teacher is not None:
        return
    for path in sorted(planned.folder.parent.glob(f"{planned.arm}*-seed{planned.seed}/done.json")):
        with contextlib.suppress(*_DAMAGED):
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
            if {**config, "epochs": None} == {**planned.config, "epochs": None}:
                print(
                    f"{path.parent} is finished, for {config['epochs']:g} epochs: {planned.epochs:g} are another run, "
                    f"from step 0 (n2n grow --op continue teacher={path.parent} goes on from there)",
                    flush=True,
                )


def _tell_of_other_classes(planned: PlannedRun) -> None:
    """Says so where the same settings over the same folder have begun a run, and that folder has other classes now."""
    study = planned.folder.parent
    same = {**planned.config, **dict.fromkeys(MACHINE)}
    for path in sorted(study.parent.glob(f"{study.name.rpartition('-')[0]}-*/{planned.folder.name}/run.json")):
        with contextlib.suppress(*_DAMAGED):
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
            if path.parent != planned.folder and {**config, **dict.fromkeys(MACHINE)} == same:
                classes = records.read(path, records.RUN)["lineage"]["classes"]
                print(
                    f"{path.parent} was begun when {planned.config['data']['root']} held {len(classes)} classes: with "
                    "others, this is another run, from step 0",
                    flush=True,
                )


def _result(done: dict[str, Any]) -> str:
    top1 = {word: done.get(word, {}).get("val/top1") for word in ("start", "final", "best")}
    shown = [f"{word} {100 * value:.2f} %" for word, value in top1.items() if value is not None]
    said = f"top-1 {', '.join(shown)}" if shown else "finished"
    if "units" in done:
        said += f", {done['units/near_copies']} of {done['units']} units are copies of others (to 1 %)"
    return said
