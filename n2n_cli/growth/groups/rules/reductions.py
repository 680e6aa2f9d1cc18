"""Norms, sums and means, pools: what looks at several units at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, constant, cut, fix, is_open, unify
from n2n_cli.growth.groups.rules.elementwise import pointwise
from n2n_cli.growth.groups.structure import Context
from n2n_cli.growth.trace.record import Op


def dims_of(op: Op, index: int = 1, name: str = "dim") -> list[int]:
    """The ``dim`` argument as a list of non-negative axes; none given means all."""
    ndim, dim = op.args[0].ndim, op.arg(index, name)
    if dim is None or dim == [] or isinstance(dim, bool):  # ``var(x, unbiased)``
        return list(range(ndim))
    return sorted(d % ndim for d in ([dim] if isinstance(dim, int) else dim)) if ndim else []


def batch_norm(ctx: Context, op: Op) -> None:
    """Also instance norm: statistics belong to one channel."""
    for tensor in op.args[1:5]:
        if isinstance(tensor, Tensor):
            unify(ctx.axes(op.args[0])[1], ctx.use(tensor, 0))
    ctx.put(op, ctx.axes(op.args[0]))


def layer_norm(ctx: Context, op: Op) -> None:
    """The mean over units stays if every unit is copied the same whole number of times, or in a relaxed norm."""
    bias, eps = op.arg(3, "bias"), op.arg(4, "eps", 1e-5)
    _over_last_axes(ctx, op, "layer", bias, eps)


def rms_norm(ctx: Context, op: Op) -> None:
    """As layer norm, with the mean of squares."""
    _over_last_axes(ctx, op, "rms", None, op.arg(3, "eps"))


def _over_last_axes(ctx: Context, op: Op, kind: str, bias: Tensor | None, eps: float | None) -> None:
    x, weight, rank = op.args[0], op.arg(2, "weight"), len(op.args[1])
    out = ctx.relate("norm", op, kind, weight, bias, eps)
    if out is not None:
        return ctx.put(op, [*ctx.axes(x)[:-1], out])
    for at, axis in enumerate(ctx.axes(x)[x.ndim - rank :]):
        ctx.tie(op, axis, "a mean over its units")
        for tensor in (weight, bias):
            if isinstance(tensor, Tensor):
                unify(axis, ctx.use(tensor, at))
    ctx.put(op, ctx.axes(x))


def weight_norm(ctx: Context, op: Op) -> None:
    """``_weight_norm(v, g, dim=0)``: still the weight v, to whoever reads it; the norm is over all axes but one."""
    v, g, dim = op.args[0], op.args[1], op.arg(2, "dim", 0)
    if dim != 0:
        return ctx.unknown(op)
    read = [ctx.axes(v)[d] for d in range(1, v.ndim) if is_open(ctx.axes(v)[d])]
    if read and ctx.relate("weight norm", op, g, read) is None:
        for axis in read:
            fix(axis, ctx.reason(op, "a norm over its units"))
    unify(ctx.axes(v)[0], ctx.use(g, 0))
    for d in range(1, g.ndim):
        fix(ctx.use(g, d), ctx.reason(op, "one value for many", "broadcast"))
    ctx.put(op, ctx.axes(v), ctx.origins(v))


def group_norm(ctx: Context, op: Op) -> None:
    """Groups of equal size: copies stay inside the group of their unit, as many for every unit."""
    axis, groups = ctx.axes(op.args[0])[1], op.args[1]
    size = op.args[0].shape[1] // groups
    for at in range(groups):
        cut(axis, at * size, (at + 1) * size)
    ctx.tie(op, axis, "a mean over its units")
    for tensor in op.args[2:4]:
        if isinstance(tensor, Tensor):
            unify(axis, ctx.use(tensor, 0))
    ctx.put(op, ctx.axes(op.args[0]))


def softmax(ctx: Context, op: Op) -> None:
    """Its entries share one sum, so that copies would take from each other."""
    fix(ctx.axes(op.args[0])[op.args[1]], ctx.reason(op, "its entries share one sum"))
    ctx.put(op, ctx.axes(op.args[0]))


def mean(ctx: Context, op: Op) -> None:
    """As many copies of every unit leave the mean as it is."""
    _reduce(ctx, op, lambda axis: ctx.tie(op, axis, "a mean over its units"))


def sum_over(ctx: Context, op: Op, *, dims_at: int = 1) -> None:
    """Sums, norms, variances: copies would count several times. ``dims_at``: which argument says over what."""
    _reduce(ctx, op, lambda axis: fix(axis, ctx.reason(op, "a sum over its units")), dims_at)


def variance(ctx: Context, op: Op) -> None:
    """var, std, var_mean, std_mean: over all units (``correction=0``) as a mean; Bessel's n - 1 is no mean."""
    given = op.kwargs.get("correction", op.kwargs.get("unbiased"))
    if given is None:
        flags = [arg for arg in op.args[1:3] if isinstance(arg, bool)]
        given = flags[0] if flags else 1
    if int(given) != 0:
        return sum_over(ctx, op)
    mean(ctx, op)


def extremum(ctx: Context, op: Op) -> None:
    """amax, amin, max, min over one axis: copies change nothing. Where the largest stands is another matter: whoever
    reads that holds the axis."""
    if len(op.tensors()) > 1:
        return pointwise(ctx, op)
    over = [ctx.axes(op.args[0])[dim] for dim in dims_of(op)]
    _reduce(ctx, op, lambda axis: None)
    for places in op.outputs[1:]:
        ctx.counts[id(places)] = over


def _reduce(ctx: Context, op: Op, on: Callable[[Axis], None], dims_at: int = 1) -> None:
    x = op.args[0]
    over = dims_of(op, dims_at)
    for dim in over:
        if is_open(ctx.use(x, dim)):
            on(ctx.axes(x)[dim])
    keep = op.outputs[0].ndim == x.ndim
    one = constant(1, ctx.reason(op, "reduced"))
    kept = [one if d in over else ctx.use(x, d) for d in range(x.ndim) if keep or d not in over]
    for out in op.outputs:
        ctx.put_one(out, list(kept))


def pool(ctx: Context, op: Op, *, spatial: int) -> None:
    """Pools, interpolation over the last ``spatial`` axes: the channels pass."""
    x, out = op.args[0], op.outputs[0]
    lead = x.ndim - spatial
    for axis in ctx.axes(x)[lead:]:
        fix(axis, ctx.reason(op, "a spatial axis", "spatial"))
    ends = [constant(n, ctx.reason(op, "a spatial axis", "spatial")) for n in out.shape[lead:]]
    for each in op.outputs:  # and where the largest stood
        ctx.put_one(each, [*ctx.axes(x)[:lead], *ends])


def unpool(ctx: Context, op: Op, *, spatial: int) -> None:
    """``max_unpool(x, indices, size)``: values go back to the places that a pool told."""
    x, where = op.args[:2]
    for dim in range(x.ndim - spatial):
        unify(ctx.use(x, dim), ctx.use(where, dim))
    pool(ctx, op, spatial=spatial)
