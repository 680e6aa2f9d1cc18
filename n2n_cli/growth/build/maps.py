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

    The spans of a concatenation follow each other, each offset by the teacher's widths before it.
    """
    spans = resolve(axis)
    if not any(group in remappings for group, _ in spans):
        return None
    index, copies, first, holds, share, idle, fresh, twin, reads = [], [], [], [], [], [], [], [], []
    means: list[tuple[int, int, int, int, int]] = []
    offset = at = 0
    plain = True
    for group, k in spans:
        found = remappings.get(group) or Remapping.of(torch.arange(group.n), group.n)
        plain, size = plain and found.plain, len(found.index)
        if found.mean:
            means.append((at + group.n * k, at + size * k, offset, group.n, k))
        index.append((offset + found.index[:, None] * k + torch.arange(k)).flatten())
        copies.append(found.copies.repeat_interleave(k))
        first.append(first_copies(found.index).repeat_interleave(k))
        one = torch.ones(size, dtype=torch.float64) if found.holds is None else found.holds
        holds.append(one.repeat_interleave(k))
        share.append((1 / found.copies.double() if found.share is None else found.share).repeat_interleave(k))
        none = torch.zeros(size, dtype=torch.bool)
        idle.append((none if found.idle is None else found.idle).repeat_interleave(k))
        fresh.append((none if found.fresh is None else found.fresh).repeat_interleave(k))
        twins = torch.arange(size) if found.twin is None else found.twin
        twin.append((at + twins[:, None] * k + torch.arange(k)).flatten())
        read = torch.zeros(size, dtype=torch.float64) if found.reads is None else found.reads
        reads.append(read.repeat_interleave(k))
        offset += group.n * k
        at += size * k
    positions, held, new = torch.cat(index), torch.cat(holds), torch.cat(fresh)
    return AxisMap(
        positions,
        torch.cat(copies),
        torch.cat(first),
        None if bool((held == 1).all()) else held,
        None if plain else torch.cat(share),
        means,
        int((positions == torch.arange(len(positions))).cumprod(0).sum()),
        None if plain else torch.cat(idle),
        *((new, torch.cat(twin), torch.cat(reads)) if new.any() else ()),
    )


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
