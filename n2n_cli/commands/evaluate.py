"""``n2n evaluate``: a checkpoint's accuracy on its own validation images or on others."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig

from n2n_cli import config, data, schema
from n2n_cli.commands import dataset, machine, networks
from n2n_cli.commands.prepare import options_of
from n2n_cli.errors import N2NError
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import evaluate
from n2n_cli.training.precision import use_channels_last
from n2n_cli.training.ranks import pick_device
from n2n_cli.training.trial import settled


def run(cfg: schema.Evaluate) -> None:
    """Prints the accuracy of ``cfg.checkpoint``, on its run's own data as far as ``cfg.data`` names no other.

    Raises:
        N2NError: no such checkpoint, or a damaged one; other classes; images that cannot be read.
    """
    device = pick_device(cfg.device)
    path = checkpoint.resolve(Path(cfg.checkpoint))
    model, state = networks.stored(path, config.functions(cfg))
    stored = stored_config(state, path)
    own_size = not any(word.startswith("data.image_size=") for word in HydraConfig.get().overrides.task)
    used = data_config(stored.data, cfg.data, own_size)
    images = dataset.load(used, val_alone=True)
    own = (stored.data.holdout, stored.data.seed)
    if used.holdout and used.name == stored.data.name and (used.holdout, used.seed) != own:
        print(
            f"n2n: warning: data.holdout={used.holdout} takes training images, and the run of {path} held out "
            f"{stored.data.holdout or 'none'}: it may have been trained on these",
            file=sys.stderr,
            flush=True,
        )
    classes = state["lineage"]["steps"][0].get("num_classes")
    if classes is not None and classes != images.num_classes:
        raise N2NError(f"{path} has {classes} classes, the data {images.name} has {images.num_classes}")
    images = dataset.in_order(images, state["lineage"], str(path))
    loader = data.EvalLoader(
        images.val,
        batch_size=cfg.batch_size or stored.training.eval_batch_size,
        workers=machine.workers(cfg.workers, 1, not images.val.decodes),
    )
    options, _ = settled(model, options_of(stored, 0), image_size=images.image_size, device=device)
    nhwc = use_channels_last(options.channels_last)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)
    result: dict[str, Any] = evaluate(
        model, loader, device=device, mean=images.mean, std=images.std, channels_last=nhwc
    )
    if cfg.json:
        plain = {key: value if math.isfinite(value) else None for key, value in result.items()}  # JSON knows no NaN
        print(json.dumps({"checkpoint": str(path), "step": state["step"], "data": images.name, **plain}), flush=True)
        return
    weights = "averaged weights" if state.get("ema") else "weights"
    synthetic = ", synthetic" if images.synthetic else ""
    top1, top5 = 100 * result["val/top1"], 100 * result["val/top5"]
    print(f"{path} ({weights}, step {state['step']}) on {images.name}{synthetic}", flush=True)
    print(f"top-1 {top1:.2f} %, top-5 {top5:.2f} %, loss {result['val/loss']:.4f}", flush=True)


def stored_config(state: dict[str, Any], path: Path) -> schema.RunConfig:
    """The config inside a checkpoint. Raises N2NError."""
    try:
        return config.read_run(yaml.safe_load(state["config"]), check=False)
    except (KeyError, yaml.YAMLError, N2NError) as error:
        raise N2NError(f"{path}: cannot read the config inside: {' '.join(str(error).split())}") from error


def data_config(stored: schema.Data, wanted: schema.SomeData, own_size: bool) -> schema.Data:
    """The checkpoint's data, changed as the user typed.

    ``own_size``: other data come in the checkpoint's image size, not in their own. Raises N2NError.
    """
    given = {key: value for key, value in asdict(wanted).items() if value is not None}
    base = asdict(stored)
    if given.get("name", stored.name) != stored.name:
        base = dict.fromkeys(base) | {"augment": "auto", "seed": 0, "holdout": 0}
        base |= {"cache": "auto", "decoder": "auto", "on_error": "raise"}
        if own_size:
            given["image_size"] = stored.image_size
    merged = schema.Data(**(base | given))
    config.check_data(merged, ("train",) if merged.holdout else ("val",))
    return merged
