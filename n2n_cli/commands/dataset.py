"""The images that a config names, and the few of them that growth looks at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from n2n_cli import data
from n2n_cli.commands import machine
from n2n_cli.commands.check_data import counted
from n2n_cli.data import packs
from n2n_cli.data.datasets import margin
from n2n_cli.errors import N2NError
from n2n_cli.schema import Data
from n2n_cli.training.evaluate import Normalize

PROOF_IMAGES = 32  # of the batch that the function gap is measured on


def load(
    cfg: Data, val_alone: bool = False, *, pack: bool = True, progress: bool | None = None, tell: bool = True
) -> data.Dataset:
    """The images of a config; the last ones loaded are kept.

    With data.cache=packed they are those of data=packed, on the pack that `packed` finds or makes.

    Args:
        val_alone: the training images are not asked for.
        pack: False: where they are not packed yet, the images come from their files instead.
        progress, tell: as of `packed`.

    Raises:
        N2NError: as of `data.load` and `packs.kept`.
    """
    arguments = {**asdict(cfg), "val_alone": val_alone}
    if cfg.name == "imagefolder" and cfg.cache == "packed":
        to = packed(cfg, pack=pack, progress=progress, tell=tell)
        arguments |= {"cache": "none"} if to is None else {"cache": "none", "name": "packed", "root": str(to)}
    return _load(json.dumps(arguments))


def packed(cfg: Data, *, pack: bool = True, progress: bool | None = None, tell: bool = True) -> Path | None:
    """The pack that data.cache=packed reads, made now if it is not there and ``pack`` says so.

    Args:
        progress: whether there is a bar; None: on a terminal.
        tell: whether there are lines that say what is done.

    Raises:
        N2NError: as of `packs.kept`.
        KeyboardInterrupt: stopped, and the same command goes on from there.
    """
    root = Path(str(cfg.root))
    if not (root / "train").is_dir():
        raise N2NError(f"data.cache=packed: packs train/ too, and {root} has none; take data.cache=none")
    try:
        return packs.kept(
            root,
            size=cfg.resize_size or margin(cfg.image_size or 224),
            interpolation=cfg.interpolation or "bilinear",
            make=pack,
            workers=machine.workers("auto", 1, in_memory=False),
            watch=lambda counts, n: counted(counts, progress, total=n, unit="image", desc="data.cache=packed"),
            tell=(lambda line: print(f"data.cache=packed: {line}", flush=True)) if tell else (lambda line: None),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from there") from None


@lru_cache(maxsize=1)
def _load(cfg: str) -> data.Dataset:
    arguments = json.loads(cfg)
    skip = arguments.pop("on_error") == "skip"
    given = {key: value for key, value in arguments.items() if value is not None}
    return replace(data.load(given.pop("name"), **given), skip=skip)


def in_order(images: data.Dataset, lineage: Mapping[str, Any], owner: str) -> data.Dataset:
    """The images with their classes in the order of the network's outputs, which ``lineage`` names.

    Raises:
        N2NError: they are of other classes; names ``owner`` (a run, a checkpoint) and the first class.
    """
    classes = lineage.get("classes")
    if not classes or len(classes) != images.num_classes:  # another number of classes is told by those who ask
        return images
    try:
        return images.with_classes(classes)
    except N2NError as error:
        raise N2NError(f"{owner}: {error}") from error


def example(images: data.Dataset, count: int = PROOF_IMAGES) -> Tensor:
    """The first validation images: float32 ``[count, 3, H, W]``, normalised, on the CPU."""
    first, _ = next(iter(data.EvalLoader(images.val, batch_size=count).batches(0)))
    return _normalize(images)(first)


def calibration(images: data.Dataset, batch_size: int, seed: int, count: int) -> list[Tensor]:
    """The images of `labelled`."""
    return [batch for batch, _ in labelled(images, batch_size, seed, count)]


def labelled(images: data.Dataset, batch_size: int, seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first ``count`` training batches of epoch 0 (images as `example`, labels ``[N]``), of at most 64 images."""
    loader = data.TrainLoader(images.train, batch_size=min(64, batch_size), seed=seed, skip=images.skip)
    batches = loader.batches(0)
    return [(_normalize(images)(batch), labels) for _, (batch, labels) in zip(range(count), batches, strict=False)]


def _normalize(images: data.Dataset) -> Normalize:
    return Normalize(images.mean, images.std, torch.device("cpu"))
