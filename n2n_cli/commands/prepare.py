"""The folder of a run before its training: config.yaml, run.json, and the checkpoint of step 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from n2n_cli import data, records
from n2n_cli.commands import machine
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.errors import N2NError
from n2n_cli.models import describe
from n2n_cli.schema import RunConfig
from n2n_cli.training import checkpoint
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import pick_device
from n2n_cli.training.trial import settled


def prepared(planned: PlannedRun) -> bool:
    """Whether the folder holds a run that only has to go on. Raises N2NError if it cannot, as it is damaged."""
    if not (planned.folder / "run.json").is_file():
        return False
    checkpoints = planned.folder / "checkpoints"
    if checkpoint.newest(checkpoints)[0] is not None:
        return True
    if any(checkpoints.glob("step_*.pt")):
        raise N2NError(f"every checkpoint in {planned.folder} is damaged: remove the folder to train it anew")
    return False


def write_config(planned: PlannedRun) -> str:
    """Writes config.yaml; its text. Raises N2NError."""
    text = yaml.safe_dump(planned.config, sort_keys=False)
    _write(planned.folder / "config.yaml", text)
    return text


def write_run(
    planned: PlannedRun,
    cfg: RunConfig,
    command: str,
    model: nn.Module,
    lineage: dict[str, Any],
    images: data.Dataset,
    gap: dict[str, float] | None = None,
    going_on: dict[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder of a run that is about to start, the checkpoint last.

    Args:
        command: the command words, for run.json.
        model: the network that training starts from.
        lineage: how it came to be.
        gap: function gaps by mode, of a grown network.
        going_on: what the checkpoint holds beside the weights.
        more: what run.json says beside: ``frozen``: the parameters that are not trained; ``teacher_images``;
            ``teacher_file``, see `folders.teacher_file`; ``teacher_macs``, where it is asked at every step.

    Raises:
        N2NError: fewer training images than one batch, a network that takes no step of training (nothing is written
            then), or the folder cannot be written.
    """
    if len(images.train) < cfg.training.batch_size:
        raise N2NError(
            f"{images.name}: {len(images.train)} training images are fewer than one batch "
            f"(training.batch_size={cfg.training.batch_size})"
        )
    if images.passed_over:
        print(f"{images.name}: passed over {images.passed_over}", flush=True)
    options = options_of(cfg, planned.epochs)
    device = pick_device(cfg.device)
    settled(model, options, image_size=images.image_size, device=device, devices=cfg.devices)
    info = {
        "format": 1,
        "command": command,
        "arm": planned.arm,
        "label": planned.label,
        "seed": planned.seed,
        "parameters": describe.count_parameters(model),
        "macs": describe.macs(model, images.image_size),
        "lr": cfg.optim.lr * planned.lr_scale,
        "lr_scale": planned.lr_scale,
        "warmup_epochs": planned.op.warmup_epochs if planned.op else None,
        "epochs": planned.epochs,
        "lineage": lineage,
        "function_gap": gap,
        "teacher": planned.config["teacher"],
        **planned.stage_info,
        "synthetic": images.synthetic,
        "data": images.name,
        "images": _counted(images),
        "machine": machine.described(cfg),
        **(more or {}),
    }
    if cfg.optim.lr_per_256 is not None:
        said = f"optim.lr_per_256={cfg.optim.lr_per_256:g} x {cfg.training.batch_size} images / 256"
        print(f"optim.lr={cfg.optim.lr:g}: {said}", flush=True)
    text = write_config(planned)
    records.write(planned.folder / "run.json", info)
    state = {
        "format": checkpoint.FORMAT,
        "lineage": lineage,
        "config": text,
        "model": model.state_dict(),
        "step": 0,
        **(going_on or {}),
    }
    checkpoint.save(planned.folder / "checkpoints", state, step=0)


def options_of(cfg: RunConfig, epochs: float) -> FitOptions:
    """What `trial.settled` asks of a run's options."""
    return FitOptions(
        epochs,
        cfg.training.batch_size,
        cfg.optim.lr,
        precision=cfg.training.precision,
        channels_last=cfg.training.channels_last,
        compile=cfg.training.compile,
        accumulate=cfg.training.accumulate,
    )


def _counted(images: data.Dataset) -> dict[str, Any]:
    return {"train": images.whole or len(images.train), "val": len(images.val), "files": images.files}


def check_machine(folder: Path, info: dict[str, Any], cfg: RunConfig, begun: bool) -> dict[str, Any]:
    """Notes in run.json (``info``) which machine the run in ``folder`` is trained on; returns run.json.

    A run that has ``begun`` keeps what was noted before. Other devices, threads and cores are what somebody asked for;
    other versions of what computes are not.

    Raises:
        N2NError: another version, and ``accept_versions`` does not say that this is meant.
    """
    was, now = info.get("machine") or {}, machine.described(cfg)
    changed = [f"{key} {was[key]} -> {now[key]}" for key in now if key in was and was[key] != now[key]]
    if not begun or not changed:
        if was != now:
            info = {**info, "machine": now}
            records.write(folder / "run.json", info)
        return info
    other = [told for told in changed if told.split(" ")[0] in machine.VERSIONS]
    if other and not cfg.accept_versions:
        raise N2NError(
            f"{folder}: the run began with other versions ({', '.join(other)}); give them back, or go on all the same "
            "with accept_versions=true"
        )
    before = [*info.get("machines_before", []), was]
    return _noted(folder, {**info, "machine": now, "machines_before": before}, ", ".join(changed))


def check_images(folder: Path, info: dict[str, Any], images: data.Dataset, accept: bool) -> dict[str, Any]:
    """Whether the images are those that the run in ``folder`` began with (``info``: its run.json); returns run.json.

    Raises:
        N2NError: they are others, and ``accept`` does not say that this is meant; if it does, run.json notes it.
    """
    was, now = info.get("images"), _counted(images)
    if was is None or was == now:
        return info
    changed = [f"{was.get(part)} -> {now[part]} {part}" for part in ("train", "val") if was.get(part) != now[part]]
    what = ", ".join(changed) if changed else "as many as before, with other names"
    if not accept:
        raise N2NError(
            f"{folder}: the images are not those that the run began with ({what}); give them back, take another out=, "
            "or go on all the same with accept_images=true"
        )
    before = [*info.get("images_before", []), was]
    return _noted(folder, {**info, "images": now, "images_before": before}, f"other images ({what})")


def _noted(folder: Path, info: dict[str, Any], what: str) -> dict[str, Any]:
    """Writes run.json and says what is other in it; returns it."""
    records.write(folder / "run.json", info)
    print(f"{folder}: goes on with {what}, noted in run.json", flush=True)
    return info


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.atomic_write(path, text.encode())
    except OSError as error:
        raise N2NError(f"cannot write {path}: {error.strerror}") from error
