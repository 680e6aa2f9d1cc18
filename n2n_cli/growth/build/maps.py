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
    positions at the front are the teacher's first ones, in order. ``idle``: positions that nobody reads.
    """

    index: Tensor
    copies: Tensor
    first: Tensor
    holds: Tensor | None = None
    share: Tensor | None = None
    means: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    own: int = 0
    idle: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether every position is a copy that its readers share equally."""
        return self.holds is None and self.share is None and not self.means


Maps = dict[str, list[AxisMap | None]]
"""Parameter or buffer -> the map of each of its axes; None for one that does not grow."""


def axis_map(axis: Axis, remappings: Mapping[Group, Remapping]) -> AxisMap | None:
    """The map of an axis, or None if it does not grow.

    The spans of a concatenation follow each other, each offset by the teacher's widths before it.
    """
    spans = resolve(axis)
    if not any(group in remappings for group, _ in spans):
        return None
    index, copies, first, holds, share, idle = [], [], [], [], [], []
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
        held = torch.ones(size, dtype=torch.float64) if found.holds is None else found.holds
        holds.append(held.repeat_interleave(k))
        share.append((1 / found.copies.double() if found.share is None else found.share).repeat_interleave(k))
        none = torch.zeros(size, dtype=torch.bool)
        idle.append((none if found.idle is None else found.idle).repeat_interleave(k))
        offset += group.n * k
        at += size * k
    positions = torch.cat(index)
    return AxisMap(
        positions,
        torch.cat(copies),
        torch.cat(first),
        None if plain else torch.cat(holds),
        None if plain else torch.cat(share),
        means,
        int((positions == torch.arange(len(positions))).cumprod(0).sum()),
        None if plain else torch.cat(idle),
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
