"""Buffers that say which positions to take: ``x.index_select(1, self.order)``, ``x[:, self.order]``.

What is taken has units of its own, as many as the buffer has entries, and grows by copies of these entries. What it is
taken from grows as it likes: the student's buffer then says where its copies stand. That takes a buffer that a student
keeps (one that every ``state_dict`` holds), and that nobody reads in any other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, fix, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Context, Relation, Remappings
from n2n_cli.growth.trace.record import Op


@dataclass(eq=False)
class Places:
    """``op`` takes the positions of ``source`` that ``buffer`` says; ``taken``: the buffer's own axis."""

    op: Op
    buffer: str
    source: Axis
    taken: Axis
    reason: Reason


class PlacesInBuffers(Relation):
    """``relate(buffer, source's axis)``; the answer is the axis of what is taken, or None if it is no such buffer."""

    name = "places"

    def __init__(self) -> None:
        self.found: list[Places] = []
        self._elsewhere: set[str] = set()  # buffers that another operation reads

    def relate(self, ctx: Context, op: Op, *facts: Any) -> Axis | None:
        buffer, source = facts
        name = _name(ctx, buffer)
        if name is None:
            return None
        self.found.append(Places(op, name, source, ctx.use(buffer, 0), ctx.reason(op, "looked up by index")))
        return self.found[-1].taken

    def after(self, ctx: Context, op: Op) -> None:
        mine = self.found[-1].op if self.found else None
        for tensor in op.tensors() if op is not mine else []:
            name, passed = _name(ctx, tensor), any(ctx.origins(out) == ctx.origins(tensor) for out in op.outputs)
            if name is not None and not passed:
                self._elsewhere.add(name)

    def settle(self, ctx: Context) -> None:
        """Fix what a buffer says in two ways: places in different tensors, or something else to somebody else."""
        for name in {places.buffer for places in self.found}:
            here = [places for places in self.found if places.buffer == name]
            if name in self._elsewhere or any(resolve(p.source) != resolve(here[0].source) for p in here):
                for places in here:
                    fix([*places.source, *places.taken], places.reason)

    def places(self, remappings: Remappings) -> dict[str, Tensor]:
        return {places.buffer: _where(places.source, remappings) for places in self.found}

    def copied(self) -> dict[Group, Reason]:
        return {group: places.reason for places in self.found for group, _ in resolve(places.taken)}


def _name(ctx: Context, tensor: Tensor) -> str | None:
    """The name of a buffer of positions [n] that a student keeps; None for any other tensor."""
    if tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
        return None
    name = (ctx.origins(tensor)[0] or ("", 0))[0]
    path, _, attribute = name.rpartition(".")
    module = ctx.modules.get(path)
    kept = module is not None and attribute in module._buffers.keys() - module._non_persistent_buffers_set
    return name if kept else None


def _where(axis: Axis, remappings: Remappings) -> Tensor:
    """Of each of the teacher's positions: the first of the student's that holds the same, [n]."""
    found, start = [], 0
    for group, k in resolve(axis):
        drawn = remappings.get(group) or Remapping.of(torch.arange(group.n), group.n)
        same = torch.ones(len(drawn.index), dtype=torch.bool)
        same[group.n :] = not drawn.mean
        for other in (drawn.idle, drawn.fresh):
            same &= ~other if other is not None else True
        same &= drawn.holds == 1 if drawn.holds is not None else True
        units = same.nonzero().flatten()
        first = torch.full((group.n,), len(same)).scatter_reduce(0, drawn.index[units], units, "amin")
        found.append((start + first[:, None] * k + torch.arange(k)).flatten())
        start += len(same) * k
    return torch.cat(found)
