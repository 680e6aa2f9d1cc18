"""Rules for operations that only move data: permute, concatenate, cut, view, pad, index.

Nothing is computed here, so nothing divides; what matters is which positions stay together and in which order.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from n2n_cli.growth import shuffles
from n2n_cli.growth.axes import Axis, Group, Site, constant, cut, fix, fresh, is_open, length, resolve, scaled, unify
from n2n_cli.growth.common import arg, broadcast, dims_of, tensors, unknown

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.record import Op


def permute(ctx: Inference, op: Op) -> None:
    x = op.args[0]
    order = permutation(op, x.ndim)
    ctx.put(op, [ctx.axes(x)[d] for d in order], [ctx.origins(x)[d] for d in order])
    ctx.carry_pieces(x, op.outputs[0], order)


def permutation(op: Op, ndim: int) -> list[int]:
    if op.name == "permute":
        return [d % ndim for d in op.args[1]]
    if op.name in {"t", "numpy_T", "mT", "adjoint", "matrix_H"}:
        return [*range(ndim - 2), *reversed(range(ndim))][:ndim] if ndim > 1 else list(range(ndim))
    a, b = (d % ndim for d in op.args[1:3])
    order = list(range(ndim))
    order[a], order[b] = order[b], order[a]
    return order


def concat(ctx: Inference, op: Op) -> None:
    parts = [t for t in op.args[0] if not (t.ndim == 1 and t.shape[0] == 0)]
    dim = arg(op, 1, "dim", 0) % op.outputs[0].ndim
    axes = [ctx.use(parts[0], d) for d in range(parts[0].ndim)]
    for tensor in parts[1:]:
        for d in range(tensor.ndim):
            if d != dim:
                unify(axes[d], ctx.use(tensor, d))
    for tensor in parts if len(parts) > 1 else []:
        if tensor.shape[dim] == 1:  # a class token, one row of zeros: written as one, it stays one
            fix(ctx.use(tensor, dim), ctx.reason(op, "a single position beside others"))
    axes[dim] = [run for tensor in parts for run in ctx.use(tensor, dim)]
    ctx.put(op, axes)


def stack(ctx: Inference, op: Op) -> None:
    parts, dim = op.args[0], arg(op, 1, "dim", 0) % op.outputs[0].ndim
    axes = broadcast(ctx, op, list(parts), parts[0].shape)
    axes.insert(dim, constant(len(parts), ctx.reason(op, "stacked")))
    ctx.put(op, axes)


def chunk(ctx: Inference, op: Op) -> None:
    """chunk, split: parts of equal size stay of equal size; each may have a mapping of its own."""
    x, second = op.args[:2]
    dim = arg(op, 2, "dim", 0) % x.ndim
    equal = not isinstance(second, list | tuple)
    start, parts = 0, []
    for out in op.outputs:
        parts.append(cut(ctx.axes(x)[dim], start, start + out.shape[dim]))
        start += out.shape[dim]
    for part in parts[1:] if equal else []:
        if length(part) == length(parts[0]):
            ctx.keep_equal(parts[0], part)
        else:
            fix([*parts[0], *part], ctx.reason(op, "parts of different size"))
    for out, part in zip(op.outputs, parts, strict=True):
        ctx.put_one(out, [part if d == dim else a for d, a in enumerate(ctx.axes(x))], moved(ctx, x, dim))


def moved(ctx: Inference, x: Tensor, dim: int) -> list[Any]:
    """Origins of a tensor that was cut along ``dim``: the other axes are whole, and still the parameter's."""
    if ctx.origins(x)[dim] is not None:
        ctx.role(x, dim, "copy")
    return [None if d == dim else o for d, o in enumerate(ctx.origins(x))]


def glu(ctx: Inference, op: Op) -> None:
    x, dim = op.args[0], arg(op, 1, "dim", -1) % op.args[0].ndim
    axis, half = ctx.axes(x)[dim], x.shape[dim] // 2
    first = cut(axis, 0, half)
    unify(first, cut(axis, half, 2 * half))
    ctx.put(op, [first if d == dim else a for d, a in enumerate(ctx.axes(x))])


def slice_(ctx: Inference, op: Op) -> None:
    x = op.args[0]
    dim, start, end, step = (
        arg(op, i, n, e) for i, n, e in ((1, "dim", 0), (2, "start", 0), (3, "end", None), (4, "step", 1))
    )
    dim, size = dim % x.ndim, x.shape[dim % x.ndim]
    start, end = 0 if start is None else start, size if end is None else end
    start, end = (max(0, p + size) if p < 0 else min(p, size) for p in (start, end))
    axes, origins = list(ctx.axes(x)), list(ctx.origins(x))
    if (start, end, step) != (0, size, 1):
        origins = moved(ctx, x, dim)
        if step == 1:
            axes[dim] = cut(axes[dim], start, end)
        else:
            fix(axes[dim], ctx.reason(op, "taken in steps"))
            axes[dim] = constant(op.outputs[0].shape[dim], ctx.reason(op, "taken in steps"))
    ctx.put(op, axes, origins)


def select(ctx: Inference, op: Op) -> None:
    """select, unbind: positions are told apart by index."""
    x, dim = op.args[0], arg(op, 1, "dim", 0) % op.args[0].ndim
    fix(ctx.use(x, dim), ctx.reason(op, "looked up by index"))
    for out in op.outputs:
        rest = [d for d in range(x.ndim) if d != dim]
        ctx.put_one(out, [ctx.axes(x)[d] for d in rest], [ctx.origins(x)[d] for d in rest])


def index(ctx: Inference, op: Op) -> None:
    x, where = op.args[0], list(op.args[1])
    where += [None] * (x.ndim - len(where))
    at = [d for d, i in enumerate(where) if i is not None]
    if at != list(range(at[0], at[-1] + 1)) or any(where[d].dtype == torch.bool for d in at):
        return unknown(ctx, op)
    for d in at:
        fix(ctx.use(x, d), ctx.reason(op, "looked up by index"))
        for axis in range(where[d].ndim):
            fix(ctx.use(where[d], axis), ctx.reason(op, "an index"))
    count = op.outputs[0].ndim - (x.ndim - len(at))
    found = [constant(n, ctx.reason(op, "looked up by index")) for n in op.outputs[0].shape[at[0] : at[0] + count]]
    ctx.put(
        op,
        [*(ctx.use(x, d) for d in range(at[0])), *found, *(ctx.use(x, d) for d in range(at[-1] + 1, x.ndim))],
    )


def reorder(ctx: Inference, op: Op) -> None:
    """roll, flip, index_select, cumsum, topk: the axes they work on are fixed, the others pass."""
    x = op.args[0]
    place = 2 if op.name == "roll" else 1
    for dim in dims_of(op, place, "dims" if op.name in {"roll", "flip"} else "dim"):
        fix(ctx.use(x, dim), ctx.reason(op, "positions are told apart"))
    for tensor in tensors(op)[1:]:
        for axis in range(tensor.ndim):
            fix(ctx.use(tensor, axis), ctx.reason(op, "an index"))
    for out in op.outputs:
        same_size = zip(out.shape, x.shape, strict=True)
        ctx.put_one(
            out,
            [
                ctx.use(x, d) if n == m else constant(n, ctx.reason(op, "a size of its own"))
                for d, (n, m) in enumerate(same_size)
            ],
        )


def pad(ctx: Inference, op: Op) -> None:
    """Zero padding: the zeros are units that may not grow."""
    x, amounts = op.args[:2]
    axes = [ctx.use(x, d) for d in range(x.ndim)]
    for at in range(len(amounts) // 2):
        before, after = amounts[2 * at : 2 * at + 2]
        dim, reason = x.ndim - 1 - at, ctx.reason(op, "padding")
        axis = cut(axes[dim], max(0, -before), x.shape[dim] - max(0, -after))
        axes[dim] = [*constant(max(0, before), reason), *axis, *constant(max(0, after), reason)]
    ctx.put(op, axes)


def unsqueeze(ctx: Inference, op: Op) -> None:
    x, dim = op.args[0], op.args[1] % op.outputs[0].ndim
    axes, origins = list(ctx.axes(x)), list(ctx.origins(x))
    axes.insert(dim, constant(1, ctx.reason(op, "a new axis")))
    origins.insert(dim, None)
    ctx.put(op, axes, origins)


def squeeze(ctx: Inference, op: Op) -> None:
    x = op.args[0]
    gone = [d for d in dims_of(op) if x.shape[d] == 1]
    for dim in gone:
        fix(ctx.axes(x)[dim], ctx.reason(op, "dropped for its size of one"))
    keep = [d for d in range(x.ndim) if d not in gone]
    ctx.put(op, [ctx.axes(x)[d] for d in keep], [ctx.origins(x)[d] for d in keep])


def expand(ctx: Inference, op: Op) -> None:
    """Repeats of one value: a constant axis, free to grow with what it meets."""
    x, out = op.args[0], op.outputs[0]
    axes: list[Axis] = []
    origins: list[Any] = []
    for at, size in enumerate(out.shape):
        dim = at - out.ndim + x.ndim
        if dim >= 0 and x.shape[dim] == size:
            axes.append(ctx.axes(x)[dim])
            origins.append(ctx.origins(x)[dim])
        else:
            if dim >= 0:
                fix(ctx.use(x, dim), ctx.reason(op, "one value for many"))
            axes.append(fresh(size))
            origins.append(None)
    ctx.put(op, axes, origins)


def repeat(ctx: Inference, op: Op) -> None:
    x, counts = op.args[0], list(op.args[1])
    lead = len(counts) - x.ndim
    axes = [fresh(n) for n in counts[:lead]]
    axes += [resolve(ctx.use(x, d)) * n for d, n in enumerate(counts[lead:])]
    ctx.put(op, axes)


def channel_shuffle(ctx: Inference, op: Op) -> None:
    """view(C -> (groups, C / groups)), transpose, view back: run on unit labels."""
    x, groups = op.args[:2]
    dim = max(0, x.ndim - 3)
    out = fresh(x.shape[dim])
    sizes = (groups, x.shape[dim] // groups)
    ctx.shuffles.append(shuffles.Shuffle(ctx.mode, ctx.site(op), ctx.use(x, dim), out, sizes, (1, 0)))
    ctx.put(op, [out if d == dim else a for d, a in enumerate(ctx.axes(x))])


def pixel_shuffle(ctx: Inference, op: Op) -> None:
    x, out, r = op.args[0], op.outputs[0], op.args[1]
    lead = x.ndim - 3
    for axis in ctx.axes(x)[lead + 1 :]:
        fix(axis, ctx.reason(op, "a spatial axis"))
    if op.name == "pixel_shuffle":
        channels: Axis = [(Group(out.shape[lead]), 1)]
        unify(ctx.axes(x)[lead], scaled(channels, r * r))
    else:
        channels = scaled(ctx.axes(x)[lead], r * r)
    spatial = [constant(n, ctx.reason(op, "a spatial axis")) for n in out.shape[lead + 1 :]]
    ctx.put(op, [*ctx.axes(x)[:lead], channels, *spatial])


def view(ctx: Inference, op: Op) -> None:
    """Row-major regrouping. Where an open axis is divided, one factor takes the mapping.

    Which one is decided late: the last factor first; if it turns out fixed, ``infer`` comes back with another
    choice for this site (channels -> (heads, d): if d is contracted with another activation, heads grow).
    """
    x, out = op.args[0], op.outputs[0]
    axes: list[Axis] = []
    origins: list[Any] = []
    pieces: list[shuffles.Piece | None] = []
    before = ctx.pieces.get(id(x)) or [None] * x.ndim
    for part, (ins, outs) in enumerate(segments(x.shape, out.shape)):
        if len(ins) == 1 and len(outs) == 1:
            axes.append(ctx.axes(x)[ins[0]])
            origins.append(ctx.origins(x)[ins[0]])
            pieces.append(before[ins[0]])
            continue
        if len(outs) == 1 and (shuffled := merge_shuffled(ctx, op, [before[d] for d in ins])):
            axes.append(shuffled)
            origins.append(None)
            pieces.append(None)
            continue
        opened = [d for d in ins if x.shape[d] > 1 and is_open(ctx.axes(x)[d])][:1]
        origin = ctx.origins(x)[opened[0]] if opened else None
        whole = merge(
            ctx, op, [ctx.axes(x)[d] if d in opened else ctx.use(x, d) for d in ins], [x.shape[d] for d in ins]
        )
        sizes = [out.shape[d] for d in outs]
        site = ctx.site(op, part)
        parts = divide(ctx, op, site, whole, sizes, outs)
        axes += parts
        grows = next((i for i, axis in enumerate(parts) if is_open(axis)), None)
        if grows is None and origin is not None:
            ctx.role(x, opened[0], "copy")
        origins += [origin if i == grows else None for i in range(len(outs))]
        split = shuffles.Pending(site, ctx.axes(x)[ins[0]], tuple(sizes)) if len(ins) == 1 else None
        pieces += [(split, i) if split else None for i in range(len(outs))]
    ctx.put(op, axes, origins)
    if any(pieces):
        ctx.pieces[id(out)] = pieces


def merge_shuffled(ctx: Inference, op: Op, pieces: list[shuffles.Piece | None]) -> Axis | None:
    """The axis that all factors of one earlier view come back to in another order: a channel shuffle."""
    known = [piece for piece in pieces if piece is not None]
    if not known or len(known) < len(pieces):
        return None
    split, order = known[0][0], [at for _, at in known]
    if any(other is not split for other, _ in known) or len(order) != len(split.sizes):
        return None
    inner = [i for i in order if split.sizes[i] > 1]
    if inner == sorted(inner) or not is_open(split.source):
        return None
    if ctx.choice(split.site) != shuffles.SHUFFLED:
        ctx.shuffled.add(split.site)  # `infer` comes back
        return None
    out = fresh(prod(split.sizes))
    ctx.shuffles.append(shuffles.Shuffle(ctx.mode, split.site, split.source, out, split.sizes, tuple(order)))
    return out


def segments(ins: tuple[int, ...], outs: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The finest pairing of consecutive axes with equal products."""
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        a, b = [i], [j]
        i, j = i + 1, j + 1
        p, q = ins[a[0]], outs[b[0]]
        while p != q:
            if p < q:
                p, a, i = p * ins[i], [*a, i], i + 1
            else:
                q, b, j = q * outs[j], [*b, j], j + 1
        pairs.append((a, b))
    if i < len(ins) or j < len(outs):  # trailing axes of size one
        pairs.append((list(range(i, len(ins))), list(range(j, len(outs)))))
    return pairs


def merge(ctx: Inference, op: Op, axes: list[Axis], sizes: list[int]) -> Axis:
    """Several axes as one, row-major; at most one of them stays open."""
    opened = [i for i, axis in enumerate(axes) if is_open(axis) and sizes[i] > 1]
    for i, axis in enumerate(axes):
        if i not in opened[:1]:
            fix(axis, ctx.reason(op, "merged with another axis that grows"))
    if not opened:
        fixed = [group.fixed for axis in axes for group, _ in resolve(axis) if group.fixed]
        return constant(prod(sizes), fixed[0] if fixed else ctx.reason(op, "merged"))
    at = opened[0]
    return scaled(axes[at], prod(sizes[at + 1 :])) * prod(sizes[:at])


def divide(ctx: Inference, op: Op, site: Site, axis: Axis, sizes: list[int], dims: list[int]) -> list[Axis]:
    """One axis as several, row-major; one of the new axes takes the mapping (none in a channel shuffle)."""
    candidates = [i for i in reversed(range(len(sizes))) if sizes[i] > 1]
    if not is_open(axis) or not candidates:
        if candidates:
            reason = next(group.fixed for group, _ in resolve(axis) if group.fixed)
        else:
            reason = ctx.reason(op, "an axis of size one")
            fix(axis, reason)
        return [constant(n, reason) for n in sizes]
    if ctx.choice(site) == shuffles.SHUFFLED:
        return [constant(n, ctx.reason(op, "a channel shuffle")) for n in sizes]
    at = candidates[min(ctx.choice(site), len(candidates) - 1)]
    if ctx.like_op is not None:  # the student shows which factor grows
        shape = ctx.like_op.outputs[0].shape
        grows = [i for i, d in enumerate(dims) if shape[d] != sizes[i]]
        if len(grows) > 1:
            reason = ctx.reason(op, "two factors of one view grow in the student")
            fix(axis, reason)
            return [constant(n, reason) for n in sizes]
        at = grows[0] if grows else at
    grown: Axis = [(Group(sizes[at]), 1)]
    unify(axis, scaled(grown, prod(sizes[at + 1 :])) * prod(sizes[:at]))
    reason = ctx.reason(op, "another factor of this view grows", site if len(candidates) > 1 else None)
    ctx.sites[site] = (grown, 1 if ctx.like_op is not None else len(candidates))
    return [grown if i == at else constant(n, reason) for i, n in enumerate(sizes)]
