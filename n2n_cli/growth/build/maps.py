"""Remappings of units, as maps of the positions of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, Span, resolve
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Structure


@dataclass
class AxisMap:
    """Where the positions of a grown axis come from; all tensors have the shape ``[n']``.

    ``index``: the teacher's position that a position copies; ``copies``: the replication factor of that one; ``first``:
    whether it is its first copy. ``holds`` and ``share`` are those of `groups.remapping.Remapping`. ``means``: blocks
    (start, stop, teacher's start, units, k) whose positions hold the mean over a group's units. ``own``: as many
    positions at the front are the teacher's first ones, in order. ``idle``: positions that nobody reads. ``fresh``,
    ``twin`` and ``reads`` are those of the remapping (None where no unit is fresh).
    """

    index: Tensor
    copies: Tensor
    first: Tensor
    holds: Tensor | None = None
    share: Tensor | None = None
    means: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    own: int = 0
    idle: Tensor | None = None
    fresh: Tensor | None = None
    twin: Tensor | None = None
    reads: Tensor | None = None

    @property
    def exact(self) -> bool:
        """Whether every position is a copy that holds what the teacher's does, and that its readers share somehow."""
        return self.copies_alone and self.fresh is None and (self.share is None or bool((self.share > 0).all()))

    @property
    def copies_alone(self) -> bool:
        """Whether every position is fresh, or a copy that holds what the teacher's does."""
        return self.holds is None and not self.means

    def parts(self) -> Tensor:
        """By which number the weights of its readers are divided, for every position: copies, or 1 / share; 1 for those
        that no reader of the teacher reads."""
        return self.copies if self.share is None else 1 / torch.where(self.share == 0, 1.0, self.share)


Maps = dict[str, list[AxisMap | None]]
"""Parameter or buffer -> the map of each of its axes; None for one that does not grow."""


def axis_map(axis: Axis, remappings: Mapping[Group, Remapping]) -> AxisMap | None:
    """The map of an axis, or None if it does not grow.

    The spans of a concatenation follow each other, each offset by the widths before it.
    """
    spans = resolve(axis)
    if not any(group in remappings for group, _ in spans):
        return None
    parts: list[dict[str, Tensor]] = []
    means: list[tuple[int, int, int, int, int]] = []
    plain, old, new = True, 0, 0  # where a span begins: on the teacher's axis, and on the student's
    for group, k in spans:
        found = remappings.get(group) or Remapping.of(torch.arange(group.n), group.n)
        plain, end = plain and found.plain, new + len(found.index) * k
        parts.append(_positions(found, k, old, new))
        if found.mean:
            means.append((new + group.n * k, end, old, group.n, k))
        old, new = old + group.n * k, end

    def joined(name: str) -> Tensor:
        return torch.cat([part[name] for part in parts])

    index, holds, fresh = joined("index"), joined("holds"), joined("fresh")
    anew = bool(fresh.any())
    return AxisMap(
        index,
        joined("copies"),
        joined("first"),
        holds=None if bool((holds == 1).all()) else holds,
        share=None if plain else joined("share"),
        means=means,
        own=int((index == torch.arange(new)).cumprod(0).sum()),
        idle=None if plain else joined("idle"),
        fresh=fresh if anew else None,
        twin=joined("twin") if anew else None,
        reads=joined("reads") if anew else None,
    )


def _positions(found: Remapping, k: int, old: int, new: int) -> dict[str, Tensor]:
    """The tensors of an `AxisMap` for one span of ``k`` positions a unit, None written out.

    ``old``, ``new``: where the span begins on the teacher's axis, and on the student's.
    """
    units = torch.arange(len(found.index))
    none, nought = torch.zeros_like(units, dtype=torch.bool), torch.zeros_like(units, dtype=torch.float64)
    of_units = {
        "copies": found.copies,
        "first": first_copies(found.index),
        "holds": nought + 1 if found.holds is None else found.holds,
        "share": 1 / found.copies.double() if found.share is None else found.share,
        "idle": none if found.idle is None else found.idle,
        "fresh": none if found.fresh is None else found.fresh,
        "reads": nought if found.reads is None else found.reads,
    }
    twins = units if found.twin is None else found.twin
    within = torch.arange(k)
    return {
        "index": (old + found.index[:, None] * k + within).flatten(),
        "twin": (new + twins[:, None] * k + within).flatten(),
        **{name: values.repeat_interleave(k) for name, values in of_units.items()},
    }


def axis_mapper(remappings: Mapping[Group, Remapping]) -> Callable[[Axis], AxisMap | None]:
    """`axis_map` that remembers: axes of the same spans share one map."""
    known: dict[tuple[Span, ...], AxisMap | None] = {}

    def one(axis: Axis) -> AxisMap | None:
        key = tuple(resolve(axis))
        if key not in known:
            known[key] = axis_map(axis, remappings)
        return known[key]

    return one


def all_maps(structure: Structure, remappings: Mapping[Group, Remapping]) -> Maps:
    """The maps of every parameter and buffer."""
    one = axis_mapper(remappings)
    return {name: [one(axis) for axis in axes] for name, axes in structure.axes.items()}


def grown_length(axis: Axis, remappings: Mapping[Group, Remapping]) -> int:
    """Length of an axis in the student."""
    return sum((len(remappings[g].index) if g in remappings else g.n) * k for g, k in resolve(axis))


def first_copies(index: Tensor) -> Tensor:
    """True where a unit occurs for the first time."""
    if len(index) == 0:
        return torch.zeros(0, dtype=torch.bool)
    order = torch.argsort(index, stable=True)
    ranked = index[order]
    first = torch.ones(len(index), dtype=torch.bool)
    first[order[1:]] = ranked[1:] != ranked[:-1]
    return first
