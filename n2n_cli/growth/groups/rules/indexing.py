"""What picks positions or puts something at positions: by number, by a tensor of numbers, by a mask, by rank.

A position that is told apart from others by its number may not be copied; the axes beside it pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, constant, fix, unify
from n2n_cli.growth.groups.rules.reductions import dims_of
from n2n_cli.growth.groups.structure import Context, UnknownCall
from n2n_cli.growth.trace.record import Op

INDEX, APART = "looked up by index", "positions are told apart"


def select(ctx: Context, op: Op) -> None:
    """select, unbind: positions are told apart by index."""
    x, dim = op.args[0], op.arg(1, "dim", 0) % op.args[0].ndim
    fix(ctx.use(x, dim), ctx.reason(op, INDEX))
    rest = [d for d in range(x.ndim) if d != dim]
    for out in op.outputs:
        ctx.put_one(out, [ctx.axes(x)[d] for d in rest], [ctx.origins(x)[d] for d in rest])


def _addressed(ctx: Context, op: Op, x: Tensor, where: Sequence[Tensor | None]) -> tuple[int, int, int]:
    """Fix the axes of ``x[i, j]`` that tensors of positions, or masks, address; they must be neighbours.

    Returns:
        tuple[int, int, int]: the first of these axes and the one behind the last, and how many axes stand for them.
    """
    at, axes, addresses = 0, list[int](), list[Tensor]()
    for one in where:
        if one is None:
            at += 1
            continue
        width = one.ndim if one.dtype in (torch.bool, torch.uint8) else 1
        axes += range(at, at + width)
        addresses.append(one)
        at += width
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise UnknownCall("no rule for this operation")
    for dim in axes:
        fix(ctx.use(x, dim), ctx.reason(op, INDEX))
    for one in addresses:
        for dim in range(one.ndim):
            fix(ctx.use(one, dim), ctx.reason(op, "an index"))
    masked = any(one.dtype in (torch.bool, torch.uint8) for one in addresses)
    return axes[0], axes[-1] + 1, 1 if masked else max(one.ndim for one in addresses)


def index(ctx: Context, op: Op) -> None:
    """``x[i, j]`` with tensors of positions, or a mask, on neighbouring axes."""
    x, where = op.args[0], op.args[1]
    given = [dim for dim, one in enumerate(where) if one is not None]
    if len(given) == 1 and _taken(ctx, op, given[0], where[given[0]]):
        return
    first, behind, count = _addressed(ctx, op, x, op.args[1])
    found = [constant(n, ctx.reason(op, INDEX)) for n in op.outputs[0].shape[first : first + count]]
    ctx.put(op, [*(ctx.use(x, d) for d in range(first)), *found, *(ctx.use(x, d) for d in range(behind, x.ndim))])


def index_select(ctx: Context, op: Op) -> None:
    """``index_select(x, dim, index)``."""
    x, dim, where = op.args[:3]
    if not _taken(ctx, op, dim % max(x.ndim, 1), where):
        reorder(ctx, op)


def _taken(ctx: Context, op: Op, dim: int, where: Tensor) -> bool:
    """Whether a buffer of the network says which positions along ``dim`` are taken, of anything but a table of
    parameters; the result is labelled then."""
    x = op.args[0]
    taken = None
    if x.ndim and ctx.origins(x)[dim] is None:
        taken = ctx.relate("places", op, where, ctx.axes(x)[dim])
    if taken is not None:
        ctx.put(op, [taken if d == dim else ctx.use(x, d) for d in range(x.ndim)])
    return taken is not None


def index_put(ctx: Context, op: Op) -> None:
    """``x[i, j] = values``: the axes beside the positions grow alike."""
    x, where, values = op.args[:3]
    first, behind, count = _addressed(ctx, op, x, where)
    rest = [*range(first), *range(behind, x.ndim)]
    shape = [*(x.shape[d] for d in range(first)), *[-1] * count, *(x.shape[d] for d in range(behind, x.ndim))]
    for at in range(1, values.ndim + 1):  # broadcast from the right
        place = len(shape) - at
        axis = ctx.use(values, values.ndim - at)
        dim = None if first <= place < first + count else place if place < first else place - count + behind - first
        if dim is None or values.shape[-at] != x.shape[dim]:
            fix(axis, ctx.reason(op, "one value for many" if dim is not None else "an index", "broadcast"))
        else:
            unify(ctx.use(x, dim), axis)
    for dim in rest:
        ctx.use(x, dim)
    ctx.put(op, ctx.axes(x))


def reorder(ctx: Context, op: Op, *, dims_at: int = 1, name: str = "dim") -> None:
    """flip, roll, index_select by an activation, cumsum: the axes they work on are fixed, the others pass.

    ``dims_at`` and ``name``: which argument says what they work on.
    """
    x = op.args[0]
    for dim in dims_of(op, dims_at, name):
        fix(ctx.use(x, dim), ctx.reason(op, APART))
    for tensor in op.tensors()[1:]:
        for axis in range(tensor.ndim):
            fix(ctx.use(tensor, axis), ctx.reason(op, "an index"))
    own = ctx.reason(op, "a size of its own")
    for out in op.outputs:
        same = zip(out.shape, x.shape, strict=True)
        ctx.put_one(out, [ctx.use(x, d) if n == m else constant(n, own) for d, (n, m) in enumerate(same)])


def ranked(ctx: Context, op: Op, *, dims_at: int = 1, default: int | None = -1) -> None:
    """sort, topk, argmax and others that rank positions along one axis (``default`` unless given): it is fixed."""
    x, out = op.args[0], op.outputs[0]
    dim = op.arg(dims_at, "dim", default)
    if dim is None:
        return ctx.unknown(op, APART)
    dim %= max(x.ndim, 1)
    fix(ctx.use(x, dim), ctx.reason(op, APART))
    axes: list[Axis] = [ctx.use(x, d) for d in range(x.ndim)]
    kept = [a for d, a in enumerate(axes) if d != dim] if out.ndim < x.ndim else axes
    if out.ndim == x.ndim and out.shape[dim] != x.shape[dim]:
        kept[dim] = constant(out.shape[dim], ctx.reason(op, "a size of its own"))
    for each in op.outputs:
        ctx.put_one(each, list(kept))


def gather(ctx: Context, op: Op) -> None:
    """``gather(x, dim, index)``: each result from the place along ``dim`` that the index says."""
    x, dim, where = op.args[0], op.args[1] % max(op.args[0].ndim, 1), op.args[2]
    fix(ctx.use(x, dim), ctx.reason(op, INDEX))
    fix(ctx.use(where, dim), ctx.reason(op, "an index"))
    _together(ctx, op, dim, x, where)
    ctx.put(op, [ctx.use(where, d) for d in range(where.ndim)])


def scatter(ctx: Context, op: Op) -> None:
    """``scatter(x, dim, index, source)``, ``index_add`` and their kind: places along ``dim`` get values of a source."""
    x, dim, where = op.args[0], op.args[1] % max(op.args[0].ndim, 1), op.args[2]
    sources = [t for t in op.tensors()[2:] if t.ndim == x.ndim]
    fix(ctx.use(x, dim), ctx.reason(op, INDEX))
    for tensor in [*sources, *([where] if where.ndim == x.ndim else [])]:
        fix(ctx.use(tensor, dim), ctx.reason(op, "an index"))
        _together(ctx, op, dim, x, tensor)
    if where.ndim != x.ndim:
        for axis in ctx.axes(where):
            fix(axis, ctx.reason(op, "an index"))
    ctx.put(op, ctx.axes(x))


def _together(ctx: Context, op: Op, dim: int, x: Tensor, other: Tensor) -> None:
    """All axes but ``dim`` grow alike; one that is shorter in ``other`` (its first positions are meant) is fixed."""
    for d in range(x.ndim):
        if d != dim and x.shape[d] == other.shape[d]:
            unify(ctx.use(x, d), ctx.use(other, d))
        elif d != dim:
            fix(ctx.use(x, d), ctx.reason(op, INDEX))
            fix(ctx.use(other, d), ctx.reason(op, "an index"))
