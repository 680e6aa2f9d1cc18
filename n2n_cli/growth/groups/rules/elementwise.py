"""Operations that treat each entry by itself, constants, and broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from n2n_cli.growth.groups.axes import Axis, constant, fix, fresh, unify
from n2n_cli.growth.groups.structure import Context
from n2n_cli.growth.trace.record import Op


def unknown(ctx: Context, op: Op) -> None:
    """No rule: everything the operation touches stays as it is."""
    ctx.unknown(op)


def recurrent(ctx: Context, op: Op) -> None:
    """LSTM, GRU: gates and states are not told apart here."""
    ctx.unknown(op, "a recurrent layer")


def broadcast(ctx: Context, op: Op, tensors: Sequence[Tensor], shape: Sequence[int]) -> list[Axis]:
    """The label of what tensors broadcast to: axes of equal size unify, an axis of size one against a longer one is
    fixed."""
    out: list[Axis] = []
    for at in range(len(shape)):
        places = [(t, at - len(shape) + t.ndim) for t in tensors]
        places = [(t, d) for t, d in places if d >= 0]
        out.append(
            meet(ctx, op, places, shape[at]) if places else constant(shape[at], ctx.reason(op, "a size of its own"))
        )
    return out


def meet(ctx: Context, op: Op, places: Sequence[tuple[Tensor, int]], size: int) -> Axis:
    """The axis of ``size`` positions that axes of tensors broadcast to."""
    here = [ctx.use(t, d) for t, d in places if t.shape[d] == size]
    for tensor, dim in places:
        if tensor.shape[dim] != size:
            fix(ctx.use(tensor, dim), ctx.reason(op, "one value for many", "broadcast"))
    for axis in here[1:]:
        unify(here[0], axis)
    return here[0] if here else constant(size, ctx.reason(op, "a size of its own"))


def pointwise(ctx: Context, op: Op) -> None:
    """Each entry of the result comes from one entry of every argument."""
    ctx.put(op, broadcast(ctx, op, op.tensors(), op.outputs[0].shape))


def product(ctx: Context, op: Op) -> None:
    """A weight times (or over) a number or a mask of its own shape is still that weight, to whoever reads it."""
    found = op.tensors()
    weight = next((t for t in found if isinstance(t, nn.Parameter)), None)
    divided = op.args[0] if op.func.overloadpacket.__name__.startswith("div") else weight
    if weight is None or any(t.shape != weight.shape for t in found) or divided is not weight:
        return pointwise(ctx, op)
    for other in found:
        for dim in range(weight.ndim) if other is not weight else []:
            unify(ctx.axes(weight)[dim], ctx.use(other, dim))
    ctx.put(op, ctx.axes(weight), ctx.origins(weight))


def same(ctx: Context, op: Op) -> None:
    """The result is its first argument: dropout, clone, contiguous, casts."""
    x, out = op.args[0], op.outputs[0]
    ctx.put(op, ctx.axes(x), ctx.origins(x))
    if id(x) in ctx.factors:
        ctx.factors[id(out)] = ctx.factors[id(x)]


def like(ctx: Context, op: Op) -> None:
    """A constant of its argument's shape."""
    ctx.put(op, ctx.axes(op.args[0]))


def factory(ctx: Context, op: Op) -> None:
    """zeros, ones, full: a constant grows with whatever it meets."""
    ctx.put(op, [fresh(n) for n in op.outputs[0].shape])


def counted(ctx: Context, op: Op) -> None:
    """arange, linspace, eye: the code makes them from a size, so that a longer one holds other numbers, not copies."""
    reason = ctx.reason(op, "numbers that the code counts out")
    ctx.put(op, [constant(n, reason) for n in op.outputs[0].shape])


def prelu(ctx: Context, op: Op) -> None:
    """A slope for every channel, or one for all."""
    x, weight = op.args[:2]
    if weight.numel() > 1 and x.ndim > 1:
        unify(ctx.axes(x)[1], ctx.use(weight, 0))
    else:
        fix(ctx.use(weight, 0), ctx.reason(op, "one value for many", "broadcast"))
    ctx.put(op, ctx.axes(x))
