"""Networks with weights: from the config, or from a checkpoint. All is checked before a command writes anything."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from n2n_cli import data, lineage, records
from n2n_cli.commands import dataset, machine
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.config import functions
from n2n_cli.errors import N2NError
from n2n_cli.models import OURS, custom, weights
from n2n_cli.models.names import SMALL_VITS
from n2n_cli.schema import Inspect, Model, RunConfig, Student
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import main_output

SMALL_STEM_PX = 96  # up to here the stem that does not shrink the image by itself


def arguments(cfg: Model, width: float, images: data.Dataset) -> dict[str, Any]:
    """Arguments of `lineage.start`: name, num_classes, width, and what else the constructor takes."""
    found: dict[str, Any] = {"name": cfg.name, "num_classes": images.num_classes, "width": width}
    if custom.is_spec(cfg.name) and width == 1.0:  # a function of the user's need not know of widths
        del found["width"]
    if cfg.name in OURS:
        stem = ("small" if images.image_size <= SMALL_STEM_PX else "imagenet") if cfg.stem == "auto" else cfg.stem
        found |= {"extra_pairs": cfg.extra_pairs, "pairs_at": cfg.pairs_at, "stem": stem, "dropout": cfg.dropout}
    if cfg.name in SMALL_VITS:
        found["image_size"] = images.image_size
    return found | cfg.kwargs


def stored(path: Path, typed: Collection[str] = (), key: str = "model") -> tuple[nn.Module, dict[str, Any]]:
    """The network in a checkpoint file, with its averaged weights if it has them, and all that the file holds.

    ``typed``, ``key``: as for `lineage.build`. Raises N2NError.
    """
    state = checkpoint.load(path, ("lineage", "step", "config"))
    model = lineage.build(state["lineage"], typed, key)
    fill(model, checkpoint.weights(state), path)
    machine.limit_threads(model)
    return model, state


def fill(model: nn.Module, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Loads the weights of the checkpoint ``path`` into the network of its lineage. Raises N2NError."""
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise N2NError(f"{path}: its weights do not fit its lineage: {reason}") from error


def fresh(
    cfg: RunConfig, model: Model, width: float, images: data.Dataset, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A network as its constructor makes it from ``seed``, with the weights of ``cfg.weights``; its lineage.

    Raises N2NError.
    """
    steps = lineage.start(**arguments(model, width, images))
    torch.manual_seed(seed)
    network = lineage.build(steps, functions(cfg))
    if custom.is_spec(model.name):
        if custom.is_lazy(network):
            shape = list(dataset.example(images, 2).shape)
            custom.run_once(network, shape)
            steps["steps"][0]["run_once"] = shape  # as `lineage.build` must, before weights can be loaded
        _check_output(network, model.name, images)
    if cfg.weights is not None:
        advice = f"{images.name} has {images.num_classes} classes, and so must the file's classifier"
        steps = _load(network, steps, cfg.weights, cfg.weights_key, advice)
    return network, {**steps, "classes": images.class_names}


def teacher(planned: PlannedRun, cfg: Student, images: data.Dataset) -> tuple[nn.Module, dict[str, Any], int | None]:
    """The network that ``planned`` grows, from a checkpoint or from ``cfg.weights``, its lineage, and how many global
    images it was trained on (None: nobody knows).

    Raises N2NError.
    """
    if cfg.weights is None:
        assert planned.teacher is not None
        key = "teacher_model" if custom.is_spec(cfg.model.name) else "model"  # model= names the student's
        network, state = stored(checkpoint.resolve(planned.teacher), functions(cfg), key)
        return network, state["lineage"], state.get("images")
    model = replace(cfg.model, name=cfg.teacher_model, kwargs={}) if cfg.teacher_model else cfg.model
    network, steps = fresh(cfg, model, model.teacher_width, images, planned.seed)
    machine.limit_threads(network)
    return network, steps, None


def shown(cfg: Inspect, built: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network of ``n2n inspect NAME``, with its weights, and its lineage. Raises N2NError."""
    if custom.is_spec(cfg.target) and cfg.width == 1.0 and "width" not in cfg.kwargs:
        del built["width"]
    steps = lineage.start(**built)
    network = lineage.build(steps, functions(cfg))
    if cfg.weights is not None:
        steps = _load(network, steps, cfg.weights, cfg.weights_key, "give num_classes=")
    return network, steps


def check_same_weights(planned: PlannedRun, cfg: RunConfig) -> None:
    """Raises N2NError where the folder's run began from another file of the same name as ``cfg.weights``."""
    folder = planned.folder
    if cfg.weights is None or not (folder / "run.json").is_file():
        return
    try:
        began = records.read(folder / "run.json", records.RUN)["lineage"]["steps"][0]["weights"]["sha256"]
    except (N2NError, KeyError, TypeError, IndexError):
        return  # a damaged run says so itself
    if began != weights.sha256(Path(cfg.weights)):
        raise N2NError(f"weights: {folder} began from other weights in {cfg.weights}: remove it, or change out=")


def _load(network: nn.Module, steps: dict[str, Any], file: str, key: str | None, advice: str) -> dict[str, Any]:
    built = steps["steps"][0]
    digest, stripped = weights.load(network, Path(file), built["name"], built["num_classes"], advice, key)
    if stripped:
        print(stripped, flush=True)
    return lineage.with_weights(steps, Path(file).name, digest)


def _check_output(network: nn.Module, name: str, images: data.Dataset) -> None:
    """Raises N2NError where a network of the user's does not turn images into one logit a class."""
    batch = dataset.example(images, 2)
    training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = main_output(network.eval()(batch))[0]
    except N2NError:
        raise
    except Exception as error:  # code of the user's
        raise N2NError(f"model {name}: on images {list(batch.shape)}, it raised {custom.told(error)}") from error
    finally:
        for module in training:
            module.training = True
    wanted = [len(batch), images.num_classes]
    if list(logits.shape) != wanted:
        raise N2NError(f"model {name}: its output for {images.name} is {list(logits.shape)}, expected {wanted}")
