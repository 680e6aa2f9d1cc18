"""A data set, and what is kept of one: the images that are not held out, a fraction of them, decoded in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from n2n_cli.data.counter import generator
from n2n_cli.data.sources import CachedSource, FolderSource, Source
from n2n_cli.errors import N2NError, suggest

CACHE_SHARE = 1 / 16
"""Of this machine's memory, that `cache=auto` takes in each process: there may be as many as devices or jobs."""
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Dataset:
    """Training and validation images, and what a program must know of them; ``mean``, ``std`` of [0, 1].

    ``files``: a digest of which image files these are (their paths below the root), None for images from no files.
    ``passed_over``: which other files lie beside them. ``whole``: how many training images there are, where ``train``
    is a fraction of them. ``skip``: whether those who read ``train`` pass over what cannot be read, as `TrainLoader`
    does if asked.
    """

    name: str
    train: Source
    val: Source
    num_classes: int
    class_names: list[str]
    mean: Triple
    std: Triple
    image_size: int
    synthetic: bool
    files: str | None = None
    passed_over: str = ""
    whole: int | None = None
    skip: bool = False

    def with_classes(self, names: Sequence[str]) -> Dataset:
        """The same images, labelled in the order of ``names``.

        Raises:
            N2NError: these are other classes.
        """
        if list(names) == self.class_names:
            return self
        other = [name for name in self.class_names if name not in names]
        if other or len(names) != len(self.class_names):
            near = suggest(other[0], names) if other else ""
            raise N2NError(
                f"its classes are {_few(names)}, and the {self.name} data's are {_few(self.class_names)}"
                + (f": it knows no '{other[0]}'{near}" if other else "")
            )
        to = torch.tensor([list(names).index(name) for name in self.class_names])
        sources = [copy.copy(source) for source in (self.train, self.val)]
        for source in sources:
            source.labels = to[source.labels]
        return replace(self, train=sources[0], val=sources[1], class_names=list(names))


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def held_out(data: Dataset, count: int, seed: int) -> Dataset:
    """``count`` of the training images become the validation images."""
    if not count:
        return data
    if count >= len(data.train):
        raise N2NError(f"data.holdout={count}, but there are only {len(data.train)} training images")
    order = torch.randperm(len(data.train), generator=generator(seed, 2))
    held, rest = order[:count].sort().values, order[count:].sort().values
    return replace(
        data,
        train=data.train.subset(rest, data.train.augment),
        val=data.train.subset(held, data.train.augment.as_in_evaluation),
    )


def fraction(data: Dataset, share: float, seed: int) -> Dataset:
    """``share`` of the training images: the first of one permutation, so that fractions nest."""
    whole = len(data.train)
    if not 0 < share <= 1:
        raise N2NError(f"data.train_fraction must be a number above 0, at most 1, not {share!r}")
    if share == 1:
        return data
    kept = torch.randperm(whole, generator=generator(seed, 3))[: max(1, round(share * whole))].sort().values
    return replace(data, train=data.train.subset(kept, data.train.augment), whole=whole)


def cached(data: Dataset, cache: str) -> Dataset:
    """With the files of ``data`` kept in memory, where ``cache`` and their size say so."""
    files = [source for source in (data.train, data.val) if isinstance(source, FolderSource)]
    if not files or cache == "none":
        return data
    varies = any(source.augment.geometry == "imagenet" for source in files)
    need, have = sum(map(CachedSource.nbytes, files)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cache == "memory" and varies:
        raise N2NError(
            "data.cache=memory: the random crop of data.augment takes every image anew from its file; take cache=none"
        )
    if cache == "memory" and need > have:
        raise N2NError(f"data.cache=memory: the images take {need / 1e9:,.1f} GB, this machine has {have / 1e9:,.1f}")
    if varies or (cache == "auto" and need > CACHE_SHARE * have):
        return data
    return replace(data, train=CachedSource(data.train), val=CachedSource(data.val))  # type: ignore[arg-type]
