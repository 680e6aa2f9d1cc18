"""Head widths: d -> d' by copies inside every head.

Scores sum q * k over the head's units. With keys copied, queries are divided by the number of copies and multiplied by
scale / scale' (sqrt(d' / d) for the usual scale); values are copied, and what reads them divides as ever. That needs
to know which rows of which weight make the queries, and that nothing but data movement lies between: the
movement is run on the numbers of the rows.

Only a student built by its own constructor shows that heads become wider rather than more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, is_open, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Context, Relation, Remappings, Structure
from n2n_cli.growth.trace.record import Op


@dataclass(eq=False)
class HeadWidth:
    """The queries of one attention: rows ``rows`` of ``weight`` [out, in] and ``bias`` [out]; ``scale``: the teacher's
    over the student's."""

    units: Axis
    weight: str
    bias: str | None
    rows: Tensor
    scale: float

    def group(self) -> Group:
        return resolve(self.units)[0][0]


class HeadWidths(Relation):
    """``relate(queries' axis)`` at an attention; None if it cannot be said which rows make the queries."""

    name = "head width"

    def __init__(self) -> None:
        self.found: list[HeadWidth] = []

    def relate(self, ctx: Context, op: Op, *facts: Any) -> HeadWidth | None:
        (units,) = facts
        width = _queries(ctx, op, units) if is_open(units) else None
        if width is not None:
            self.found.append(width)
        return width

    def multipliers(self, structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for width in self.found:
            remapping = remappings.get(width.group()) if is_open(width.units) else None
            for name in (width.weight, width.bias) if remapping is not None else ():
                if name is not None:
                    index, copies = _rows(structure.axes[name][0], remappings)
                    found[name] = torch.where(torch.isin(index, width.rows), width.scale / copies.double(), 1.0)
        return found

    def copied(self) -> dict[Group, Reason]:
        return {width.group(): Reason("other", "the width of attention heads") for width in self.found}


def _rows(axis: Axis, remappings: Remappings) -> tuple[Tensor, Tensor]:
    """The teacher's row of each row of a grown weight, and its replication factor."""
    index, copies, offset = [], [], 0
    for group, k in resolve(axis):
        found = remappings.get(group)
        units = torch.arange(group.n) if found is None else found.index
        index.append((offset + units[:, None] * k + torch.arange(k)).flatten())
        copies.append((torch.ones_like(units) if found is None else found.copies).repeat_interleave(k))
        offset += group.n * k
    return torch.cat(index), torch.cat(copies)


def _queries(ctx: Context, op: Op, units: Axis) -> HeadWidth | None:
    query, student = op.args[0], ctx.student
    path: list[tuple[Op, int]] = []
    while (made := ctx.made.get(id(query))) is not None and _moves(ctx, made[0]):
        path.append(made)
        query = made[0].args[0]
    if made is None or student is None or len(resolve(units)) != 1:
        return None
    linear, row = made[0], ctx.row(made[0])
    if row.norm or row.weight is None or row.bias is None or linear.args[row.weight].ndim != 2:
        return None
    weight, bias = linear.args[row.weight], linear.arg(row.bias, "bias")
    origins = [ctx.origins(t)[0] if t is not None else None for t in (weight, bias)]
    if origins[0] is None:
        return None
    rows = torch.arange(weight.shape[0]).expand(linear.outputs[0].shape)
    for move, which in reversed(path):
        result = move.func(rows, *move.args[1:], **move.kwargs)
        rows = result if isinstance(result, Tensor) else result[which]
    bias_name = origins[1][0] if origins[1] else None
    return HeadWidth(units, origins[0][0], bias_name, rows.unique(), _scale(op) / _scale(student))


def _moves(ctx: Context, op: Op) -> bool:
    """Whether the movement can be repeated on other entries: it depends on no other tensor, and keeps the type."""
    return ctx.row(op).moves and len(op.tensors()) == 1 and op.outputs[0].dtype == op.args[0].dtype


def _scale(attention: Op) -> float:
    given = attention.kwargs.get("scale")
    return float(given) if given is not None else float(attention.args[0].shape[-1]) ** -0.5
