"""Head widths: d -> d' by copies inside every head.

Scores sum q * k over the head's units. With keys copied, queries are divided by the number of copies and multiplied by
scale / scale' (sqrt(d' / d) for the usual scale); values are copied, and what reads them divides as ever. That needs
to know which rows of which weight make the queries, and that nothing but data movement lies between: the
movement is run on the numbers of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from n2n_cli.growth.axes import Axis, Group, resolve

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.plan import Remapping
    from n2n_cli.growth.record import Op

MOVES = {
    *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "permute", "transpose", "swapaxes", "t", "contiguous"),
    *("clone", "detach", "select", "unbind", "chunk", "split", "split_with_sizes", "slice", "squeeze", "unsqueeze"),
}


@dataclass(eq=False)
class HeadWidth:
    """The queries of one attention: rows ``rows`` of ``weight`` [out, in] and ``bias`` [out]."""

    units: Axis
    weight: str
    bias: str | None
    rows: Tensor
    scale: float  # teacher's over student's

    def group(self) -> Group:
        return resolve(self.units)[0][0]


def head_width(ctx: Inference, op: Op) -> HeadWidth | None:
    """The queries' rows of a scaled_dot_product_attention whose head width grows; None if it cannot be said."""
    query, student = op.args[0], ctx.like_op
    path: list[tuple[Op, int]] = []
    while (made := ctx.made.get(id(query))) is not None and made[0].name in MOVES:
        path.append(made)
        query = made[0].args[0]
    if made is None or student is None or made[0].name != "linear" or len(resolve(ctx.axes(op.args[0])[-1])) != 1:
        return None
    linear = made[0]
    weight = ctx.origins(linear.args[1])[0]
    bias = linear.args[2] if len(linear.args) > 2 else None
    if weight is None:
        return None
    rows = torch.arange(linear.args[1].shape[0]).expand(linear.outputs[0].shape)
    for move, which in reversed(path):
        result = move.func(rows, *move.args[1:], **move.kwargs)
        rows = result if isinstance(result, Tensor) else result[which]
    return HeadWidth(
        ctx.axes(op.args[0])[-1],
        weight[0],
        ctx.origins(bias)[0][0] if bias is not None and ctx.origins(bias)[0] else None,  # type: ignore[index]
        rows.unique(),
        _scale(op) / _scale(student),
    )


def _scale(op: Any) -> float:
    given = op.kwargs.get("scale")
    return float(given) if given is not None else float(op.args[0].shape[-1]) ** -0.5


def multiplier(width: HeadWidth, index: Tensor, copies: Tensor) -> Tensor:
    """What each row of the grown weight is multiplied by, [out'] in fp64."""
    mine = torch.isin(index, width.rows)
    return torch.where(mine, width.scale / copies.double(), 1.0)


def grown(widths: Iterable[HeadWidth], mappings: Mapping[Group, Remapping]) -> list[HeadWidth]:
    return [width for width in widths if width.group() in mappings]
