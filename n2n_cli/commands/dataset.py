"""The images that a config names, and the few of them that growth looks at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from n2n_cli import data
from n2n_cli.errors import N2NError
from n2n_cli.schema import Data
from n2n_cli.training.evaluate import Normalize

PROOF_IMAGES = 32  # of the batch that the function gap is measured on


def load(cfg: Data, val_alone: bool = False) -> data.Dataset:
    """The images of a config; the last ones loaded are kept.

    ``val_alone``: the training images are not asked for. Raises N2NError.
    """
    return _load(json.dumps({**asdict(cfg), "val_alone": val_alone}))


@lru_cache(maxsize=1)
def _load(cfg: str) -> data.Dataset:
    arguments = json.loads(cfg)
    del arguments["on_error"]  # the loader's
    return data.load(arguments.pop("name"), **{key: value for key, value in arguments.items() if value is not None})


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
    batches = data.TrainLoader(images.train, batch_size=min(64, batch_size), seed=seed).batches(0)
    return [(_normalize(images)(batch), labels) for _, (batch, labels) in zip(range(count), batches, strict=False)]


def _normalize(images: data.Dataset) -> Normalize:
    return Normalize(images.mean, images.std, torch.device("cpu"))
