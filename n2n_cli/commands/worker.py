"""One rank of one run: ``python -m n2n_cli.commands.worker RUN_FOLDER``, also under torchrun or SLURM.

Everything is read from the run folder that a command wrote, except leave to import: for a network of the user's own
``model=package.module:function`` must stand on this command line too. A command passes on to its ranks what its user
typed, and ``prepare_only=true`` prints it in the line to type.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from n2n_cli import data, growth, lineage, records
from n2n_cli.commands import dataset, machine, networks, prepare
from n2n_cli.config import read_run
from n2n_cli.convert import convert, flat
from n2n_cli.errors import N2NError
from n2n_cli.models import custom
from n2n_cli.ops import OPS, Distill, Op
from n2n_cli.schema import MACHINE, RunConfig
from n2n_cli.training import checkpoint
from n2n_cli.training.guides import Distillation, FeaturePrediction, Guide
from n2n_cli.training.launch import run_rank
from n2n_cli.training.loop import FitOptions, fit
from n2n_cli.training.ranks import ranks
from n2n_cli.training.trial import settled


def fit_folder(folder: Path, typed: Collection[str] = (), *, alone: bool = False) -> dict[str, Any]:
    """Trains the run in ``folder`` from its newest checkpoint on, as the rank that the environment says.

    ``typed``: as for `lineage.build`; ``alone``: as for `ranks`.
    """
    try:
        text = (folder / "config.yaml").read_text()
        tree = yaml.safe_load(text)
        cfg = read_run(tree)
        info = records.read(folder / "run.json", records.RUN, ["arm", "lr", "lineage"])
    except OSError as error:
        raise N2NError(f"no run in {folder}: {error.strerror}: {error.filename}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise N2NError(f"cannot read the run in {folder}: {' '.join(str(error).split())}") from error
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(ranks(cfg.device, alone=alone))
        stack.enter_context(machine.enough_memory())
        model = lineage.build(info["lineage"], typed)
        machine.limit_threads(model, mine.local_size)
        images = dataset.load(cfg.data, progress=cfg.progress if mine.main else False, tell=mine.main)
        images = dataset.in_order(images, info["lineage"], str(folder))
        begun = checkpoint.newest_step(folder / "checkpoints")
        if mine.main:
            info = prepare.check_images(folder, info, images, cfg.accept_images)
            if not (folder / "done.json").exists():
                info = prepare.check_machine(folder, info, cfg, begun > 0)
        workers = machine.workers(cfg.workers, mine.local_size, not images.train.decodes)
        place = {"rank": mine.rank, "world_size": mine.world_size, "workers": workers, "beside": mine.local_size}
        stop_after = None if cfg.max_steps is None else begun + cfg.max_steps
        options, given_up = settled(
            model,
            _options(cfg, info, stop_after),
            image_size=images.image_size,
            device=mine.device,
            devices=mine.world_size,
        )
        options = mine.broadcast(options)  # what rank 0 gave up, all do
        for line in given_up if mine.main else []:
            print(f"{folder}: {line}", flush=True)
        if mine.main and cfg.data.name == "imagefolder" and cfg.data.cache in ("auto", "packed"):
            print(f"{folder}: data.cache={cfg.data.cache}: {_where_images_are(images, workers)}", flush=True)
        size = cfg.training.batch_size
        mixed = bool(options.mixup_alpha or options.cutmix_alpha)
        train = data.TrainLoader(images.train, batch_size=size, seed=cfg.seed, skip=images.skip, before=mixed, **place)
        val = data.EvalLoader(images.val, batch_size=cfg.training.eval_batch_size, **place)
        for loader in (train, val):
            stack.callback(loader.close)
        return fit(
            folder,
            model,
            train,
            val,
            options,
            ranks=mine,
            lineage=info["lineage"],
            config=text,
            mean=images.mean,
            std=images.std,
            progress=cfg.progress,
            guide=_guide(tree, model, images, typed),
            at_end=partial(_copies_left, images) if len(info["lineage"]["steps"]) > 1 else None,
            hparams=_hparams(cfg, tree, info),
        )


def _guide(tree: dict[str, Any], model: nn.Module, images: data.Dataset, typed: Collection[str]) -> Guide | None:
    """The teacher beside the labels, where the run's op has one. Raises N2NError."""
    if (tree.get("op") or {}).get("name") not in ("distill", "feature_prediction"):
        return None
    op: Any = convert(Op, {"to_width": None, **tree["op"]}, "op")  # which runs of an older n2n lack
    if not tree.get("teacher"):
        raise N2NError(f"op={op.name}: the run says no teacher")
    teacher, _ = networks.stored(checkpoint.resolve(Path(tree["teacher"])), typed)
    if isinstance(op, Distill):
        return Distillation(teacher, temperature=op.temperature, weight=op.weight)
    example = dataset.example(images)
    return FeaturePrediction(
        teacher, model, example, hidden_layers=op.hidden_layers, weight=op.weight, seed=tree["seed"]
    )


def _where_images_are(images: data.Dataset, workers: int) -> str:
    if images.name == "packed":
        return f"images are read from their pack ({getattr(images.train, 'kind', '')}), by {workers or 'no'} workers"
    if images.train.decodes:
        return f"images are read from their files each time, by {workers or 'no'} workers"
    size = 3 * images.image_size**2 * (len(images.train) + len(images.val))
    return f"images are decoded once and kept in memory ({size / 1e6:,.1f} MB)"


def _hparams(cfg: RunConfig, tree: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run, under the same names and with the same types in every run, as TensorBoard wants them.

    What is often compared, as numbers; everything else, which may be null or belong to another operator, as text.
    """
    numbers = {
        "seed": cfg.seed,
        "epochs": cfg.epochs,
        "lr": info["lr"],
        "lr_scale": info.get("lr_scale") or 1.0,
        "parameters": info.get("parameters") or 0,
        "batch_size": cfg.training.batch_size,
        "weight_decay": cfg.optim.weight_decay,
    }
    of_ops = dict.fromkeys(f"op.{field.name}" for op in OPS.values() for field in fields(op))
    elsewhere = (*MACHINE, *numbers, "op")
    settings = of_ops | {k: v for k, v in flat(tree).items() if k in of_ops or k.split(".")[0] not in elsewhere}
    return numbers | {key: "" if value is None else str(value) for key, value in sorted(settings.items())}


def _copies_left(images: data.Dataset, model: nn.Module) -> dict[str, Any]:
    """How many units of a grown network are still copies of each other."""
    with contextlib.suppress(growth.GrowthError):
        found = growth.duplicates(model, dataset.example(images))
        return {"units": found.units, "units/copies": found.equal, "units/near_copies": found.near}
    return {}


def _options(cfg: RunConfig, info: dict[str, Any], stop_after: int | None) -> FitOptions:
    """``info``: run.json, with the run's own highest rate and warm-up; those of the config are a teacher's."""
    training, schedule = asdict(cfg.training), asdict(cfg.optim.schedule)
    del training["default_epochs"]
    kept = training.pop("keep_at")
    if info.get("warmup_epochs") is not None:
        schedule["warmup_epochs"] = info["warmup_epochs"]
    return FitOptions(
        epochs=cfg.epochs,
        lr=info["lr"],
        optimizer=cfg.optim.arguments,
        schedule=schedule,
        seed=cfg.seed,
        shard=cfg.launch.shard,
        stop_after=stop_after,
        keep_at=tuple(kept or ()) if info["arm"] == "teacher" else (),  # a study's students share its settings
        frozen=tuple(info.get("frozen") or ()),
        **training,
    )


def main() -> None:
    """`fit_folder` of what stands on the command line. Raises N2NError."""
    folders = [word for word in sys.argv[1:] if not word.startswith("model=")]
    typed = [word.removeprefix("model=") for word in sys.argv[1:] if word.startswith("model=")]
    if len(folders) != 1:
        raise N2NError("expected one run folder: python -m n2n_cli.commands.worker RUN_FOLDER")
    for name in typed:
        if not custom.is_spec(name):
            raise N2NError(f"model={name}: expected model=package.module:function; the run folder says all else")
    fit_folder(Path(folders[0]), typed)


if __name__ == "__main__":
    raise SystemExit(run_rank(main))
