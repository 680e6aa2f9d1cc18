"""Inputs beside the example: a student may be exact on one image and not on another, or on one of another size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from n2n_cli.growth.trace.examples import first_samples

SMALLER, LARGER = 0.5, 1.25


def other_inputs(example: Any) -> Iterator[tuple[str, Any]]:
    """Other inputs that a network may take, with what is different about them: random values in another number of
    samples, and random values in one smaller and one larger image or sequence.

    Random values have mean and deviation of those that they stand for. Whole numbers (tokens, labels, positions) and
    masks (two values) are repeated or cut, never made up. Nobody knows which of them a network takes: they are tried.
    """
    generator = torch.Generator().manual_seed(0x5EED)
    yield "random values", _random(first_samples(example, 3), generator)
    for factor in (SMALLER, LARGER):
        what = f"inputs of {factor:g} times the size"
        for of_three in (1, 2):  # a tensor of three axes is [N, length, features] or [N, channels, length]
            found = _resized(first_samples(example, 1), factor, of_three)
            if found is not None:
                yield what, _random(found, generator)
            if not any(isinstance(leaf, Tensor) and leaf.ndim == 3 for leaf in tree_leaves(example)):
                break


def _random(example: Any, generator: torch.Generator) -> Any:
    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
            return leaf
        values = leaf.double()
        if len(values.unique()) == 2 or not values.isfinite().all():  # a mask
            return leaf
        scale = values.std().item() or 1.0
        drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.float64) * scale + values.mean().item()
        return drawn.to(leaf)

    return tree_map(one, example)


def _resized(example: Any, factor: float, of_three: int) -> Any | None:
    """Every length of the example ``factor`` times as long (what there is, from the start again); None: it has none."""
    changed = False

    def one(leaf: Any) -> Any:
        nonlocal changed
        if not isinstance(leaf, Tensor):
            return leaf
        dims = range(2, leaf.ndim) if leaf.ndim > 3 else [of_three] if leaf.ndim == 3 else []
        if leaf.ndim == 2 and not leaf.is_floating_point():
            dims = [1]
        for dim in dims:
            n = leaf.shape[dim]
            size = max(1, int(n * factor))
            changed = changed or size != n
            leaf = leaf.index_select(dim, torch.arange(size, device=leaf.device) % n)
        return leaf

    found = tree_map(one, example)
    return found if changed else None
