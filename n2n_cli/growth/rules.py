"""One rule an operation: how its inputs' axes and its outputs' axes hang together.

A rule reads the labels of an operation's tensors, unifies what must grow together, fixes what may not grow,
ties what may only grow by whole numbers, and labels the outputs. Operations without a rule fix everything they
touch, by name: the unknown is never treated as elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from n2n_cli.growth.axes import (
    Axis,
    Group,
    constant,
    cut,
    fix,
    fresh,
    is_open,
    length,
    resolve,
    scaled,
    unify,
)

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.record import Op

Rule = Callable[["Inference", "Op"], None]


def arg(op: Op, index: int, name: str, default: Any = None) -> Any:
    """An operation's argument by position or keyword; what equals its default is left out by PyTorch."""
    return op.args[index] if index < len(op.args) else op.kwargs.get(name, default)


def tensors(op: Op) -> list[Tensor]:
    return [t for t in tree_leaves((op.args, op.kwargs)) if isinstance(t, Tensor)]


def dims_of(op: Op, index: int = 1, name: str = "dim") -> list[int]:
    """The ``dim`` argument as a list of non-negative axes; none given means all."""
    ndim, dim = op.args[0].ndim, arg(op, index, name)
    if dim is None or dim == []:
        return list(range(ndim))
    return sorted(d % ndim for d in ([dim] if isinstance(dim, int) else dim)) if ndim else []


# --- elementwise -------------------------------------------------------------------------------------------


def pointwise(ctx: Inference, op: Op) -> None:
    """Broadcasting: axes of equal size unify; an axis of size one against a longer one is fixed."""
    ctx.put(op, broadcast(ctx, op, tensors(op), op.outputs[0].shape))


def broadcast(ctx: Inference, op: Op, args: list[Tensor], shape: tuple[int, ...]) -> list[Axis]:
    out: list[Axis] = []
    for at in range(len(shape)):
        here: list[Axis] = []
        for tensor in args:
            dim = at - len(shape) + tensor.ndim
            if dim < 0:
                continue
            axis = ctx.use(tensor, dim)
            if tensor.shape[dim] == shape[at]:
                here.append(axis)
            else:
                fix(axis, ctx.reason(op, "one value for many"))
        for axis in here[1:]:
            unify(here[0], axis)
        out.append(here[0] if here else constant(shape[at], ctx.reason(op, "a size of its own")))
    return out


def same(ctx: Inference, op: Op) -> None:
    """The result is its first argument: dropout, clone, contiguous, casts."""
    ctx.put(op, ctx.axes(op.args[0]), ctx.origins(op.args[0]))


def like(ctx: Inference, op: Op) -> None:
    ctx.put(op, ctx.axes(op.args[0]))


def factory(ctx: Inference, op: Op) -> None:
    """zeros, ones, full: a constant grows with whatever it meets."""
    ctx.put(op, [fresh(n) for n in op.outputs[0].shape])


def prelu(ctx: Inference, op: Op) -> None:
    x, weight = op.args[:2]
    if weight.numel() > 1 and x.ndim > 1:
        unify(ctx.axes(x)[1], ctx.use(weight, 0))
    else:
        fix(ctx.use(weight, 0), ctx.reason(op, "one value for many"))
    ctx.put(op, ctx.axes(x))


# --- what consumes channels --------------------------------------------------------------------------------


def contract(ctx: Inference, op: Op, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> None:
    """Sum over a common axis. With a parameter, its entries divide by the replication factor; else fix."""
    (x, i), (y, j) = a, b
    unify(ctx.axes(x)[i], ctx.axes(y)[j])
    owned = [ctx.origins(t)[d] for t, d in (a, b)]
    if (owned[0] is None) == (owned[1] is None):
        fix(ctx.axes(x)[i], ctx.reason(op, "a sum over two activations or two parameters"))
    for (tensor, dim), origin in zip((a, b), owned, strict=True):
        if origin is not None:
            ctx.role(tensor, dim, "in")


def linear(ctx: Inference, op: Op) -> None:
    x, weight, bias = op.args[0], op.args[1], arg(op, 2, "bias")
    contract(ctx, op, (x, x.ndim - 1), (weight, 1))
    if bias is not None:
        unify(ctx.use(weight, 0), ctx.use(bias, 0))
    ctx.put(op, [*ctx.axes(x)[:-1], ctx.use(weight, 0)])


def matmul(ctx: Inference, op: Op) -> None:
    """mm, bmm, matmul on matrices and stacks of matrices."""
    x, y = op.args[-2:] if op.name.startswith(("addmm", "baddbmm")) else op.args[:2]
    if x.ndim < 2 or y.ndim < 2:
        return unknown(ctx, op)
    contract(ctx, op, (x, x.ndim - 1), (y, y.ndim - 2))
    out = op.outputs[0]
    batch = [
        broadcast_one(ctx, op, [(x, d - out.ndim + x.ndim), (y, d - out.ndim + y.ndim)]) for d in range(out.ndim - 2)
    ]
    axes = [*batch, ctx.use(x, x.ndim - 2), ctx.use(y, y.ndim - 1)]
    if op.name.startswith(("addmm", "baddbmm")):
        ctx.put(op, axes)
        axes = broadcast(ctx, op, [op.args[0], out], out.shape)
    ctx.put(op, axes)


def broadcast_one(ctx: Inference, op: Op, places: list[tuple[Tensor, int]]) -> Axis:
    places = [(t, d) for t, d in places if d >= 0]
    size = max(t.shape[d] for t, d in places)
    full = [ctx.use(t, d) for t, d in places if t.shape[d] == size]
    for tensor, dim in places:
        if tensor.shape[dim] != size:
            fix(ctx.use(tensor, dim), ctx.reason(op, "one value for many"))
    for axis in full[1:]:
        unify(full[0], axis)
    return full[0]


def convolution(ctx: Inference, op: Op) -> None:
    """Weight [out, in / groups, *kernel]; transposed [in, out / groups, *kernel]."""
    x, weight, bias = op.args[0], op.args[1], arg(op, 2, "bias")
    transposed = op.name.startswith("conv_transpose")
    groups = arg(op, 7 if transposed else 6, "groups", 1)
    if transposed:
        groups = arg(op, 6, "groups", 1)
    channel = x.ndim - weight.ndim + 1
    for dim in range(channel + 1, x.ndim):
        fix(ctx.axes(x)[dim], ctx.reason(op, "a spatial axis"))
    for dim in range(2, weight.ndim):
        fix(ctx.use(weight, dim), ctx.reason(op, "a kernel axis"))
    produced = 1 if transposed else 0
    if groups == 1:
        contract(ctx, op, (x, channel), (weight, 1 - produced))
        out = ctx.use(weight, produced)
    elif groups == x.shape[channel] and weight.shape[1] == 1:
        out = depthwise(ctx, op, ctx.axes(x)[channel], weight, weight.shape[0] // groups)
    else:
        out = grouped(ctx, op, (x, channel), weight, groups, produced)
    if bias is not None:
        unify(out, ctx.use(bias, 0))
    spatial = [constant(n, ctx.reason(op, "a spatial axis")) for n in op.outputs[0].shape[channel + 1 :]]
    ctx.put(op, [*ctx.axes(x)[:channel], out, *spatial])


def depthwise(ctx: Inference, op: Op, x: Axis, weight: Tensor, multiplier: int) -> Axis:
    """Every unit has filters of its own: input and output are tied, ``groups`` follows."""
    fix(ctx.use(weight, 1), ctx.reason(op, "depthwise"))
    unify(scaled(x, multiplier), ctx.use(weight, 0))
    ctx.groups_follow(weight, True)
    return ctx.use(weight, 0)


def grouped(ctx: Inference, op: Op, x: tuple[Tensor, int], weight: Tensor, groups: int, produced: int) -> Axis:
    """All groups share one mapping of their inner channels, or whole groups are replicated."""
    tensor, channel = x
    axis, inner = ctx.axes(tensor)[channel], tensor.shape[channel] // groups
    site = ctx.site(op, 2)
    ctx.groups_follow(weight, ctx.choice(site) != 0 or produced != 0)
    if ctx.choice(site) == 0 and produced == 0:
        reason = ctx.reason(op, "its groups stay, their inner channels grow", site)
        shared = Group(inner)
        unify(axis, [(shared, 1)] * groups)
        unify(ctx.axes(weight)[1], [(shared, 1)])
        ctx.role(weight, 1, "in" if ctx.origins(weight)[1] else "copy")
        per_group = Group(weight.shape[0] // groups)
        unify(ctx.use(weight, 0), [(per_group, 1)] * groups)
        ctx.sites[site] = ([(shared, 1), (per_group, 1)], 2)
        if ctx.origins(weight)[1] is None:
            fix(axis, reason)
        return ctx.use(weight, 0)
    reason = ctx.reason(op, "its inner channels stay, whole groups grow", site)
    whole = Group(groups)
    unify(axis, [(whole, inner)])
    fix(ctx.use(weight, 1), reason)
    unify(ctx.use(weight, 0), [(whole, weight.shape[0] // groups)])
    ctx.sites[site] = ([(whole, 1)], 2)
    return scaled([(whole, 1)], op.outputs[0].shape[channel] // groups)


def embedding(ctx: Inference, op: Op) -> None:
    weight, index = op.args[:2]
    fix(ctx.use(weight, 0), ctx.reason(op, "looked up by index"))
    ctx.put(op, [*ctx.axes(index), ctx.use(weight, 1)])


def attention(ctx: Inference, op: Op) -> None:
    """Scaled dot products of [..., L, E], [..., S, E] and [..., S, V]."""
    q, k, v = op.args[:3]
    mask = arg(op, 3, "attn_mask")
    batch = [
        broadcast_one(ctx, op, [(t, d - q.ndim + t.ndim) for t in (q, k, v, mask) if t is not None])
        for d in range(q.ndim - 2)
    ]
    unify(ctx.axes(q)[-1], ctx.axes(k)[-1])
    fix(ctx.axes(q)[-1], ctx.reason(op, "a sum over two activations"))
    unify(ctx.axes(k)[-2], ctx.axes(v)[-2])
    fix(ctx.axes(k)[-2], ctx.reason(op, "positions are weighed against each other"))
    fix(ctx.axes(q)[-2], ctx.reason(op, "sequence positions"))
    ctx.put(op, [*batch, ctx.axes(q)[-2], ctx.axes(v)[-1]])


# --- norms and reductions ----------------------------------------------------------------------------------


def batch_norm(ctx: Inference, op: Op) -> None:
    """Also instance norm: statistics belong to one channel."""
    for tensor in op.args[1:5]:
        if isinstance(tensor, Tensor):
            unify(ctx.axes(op.args[0])[1], ctx.use(tensor, 0))
    ctx.put(op, ctx.axes(op.args[0]))


def layer_norm(ctx: Inference, op: Op) -> None:
    """Also RMS norm: the mean over units stays if every unit is copied the same whole number of times."""
    x, rank = op.args[0], len(op.args[1])
    for at, axis in enumerate(ctx.axes(x)[x.ndim - rank :]):
        ctx.tie(axis, ctx.reason(op, "a mean over its units"))
        for tensor in op.args[2:4]:
            if isinstance(tensor, Tensor):
                unify(axis, ctx.use(tensor, at))
    ctx.put(op, ctx.axes(x))


def group_norm(ctx: Inference, op: Op) -> None:
    axis = ctx.axes(op.args[0])[1]
    ctx.tie(axis, ctx.reason(op, "a mean over its units"))
    for tensor in op.args[2:4]:
        if isinstance(tensor, Tensor):
            unify(axis, ctx.use(tensor, 0))
    ctx.put(op, ctx.axes(op.args[0]))


def softmax(ctx: Inference, op: Op) -> None:
    fix(ctx.axes(op.args[0])[op.args[1]], ctx.reason(op, "its entries share one sum"))
    ctx.put(op, ctx.axes(op.args[0]))


def mean(ctx: Inference, op: Op) -> None:
    reduce(ctx, op, lambda axis: ctx.tie(axis, ctx.reason(op, "a mean over its units")))


def sum_(ctx: Inference, op: Op) -> None:
    reduce(ctx, op, lambda axis: fix(axis, ctx.reason(op, "a sum over its units")))


def extremum(ctx: Inference, op: Op) -> None:
    """amax, amin: copies change nothing."""
    reduce(ctx, op, lambda axis: None)


def reduce(ctx: Inference, op: Op, on: Callable[[Axis], None]) -> None:
    x = op.args[0]
    over = dims_of(op)
    for dim in over:
        if is_open(ctx.use(x, dim)):
            on(ctx.axes(x)[dim])
    keep = op.outputs[0].ndim == x.ndim
    one = constant(1, ctx.reason(op, "reduced"))
    kept = [one if d in over else ctx.use(x, d) for d in range(x.ndim) if keep or d not in over]
    ctx.put(op, kept)


def pool(ctx: Inference, op: Op) -> None:
    """Pools, interpolation: the channels pass, the spatial axes are fixed."""
    x, out = op.args[0], op.outputs[0]
    count = {"1": 1, "2": 2, "3": 3}[next(c for c in reversed(op.name) if c in "123")]
    lead = x.ndim - count
    for axis in ctx.axes(x)[lead:]:
        fix(axis, ctx.reason(op, "a spatial axis"))
    spatial = [constant(n, ctx.reason(op, "a spatial axis")) for n in out.shape[lead:]]
    ctx.put(op, [*ctx.axes(x)[:lead], *spatial])


# --- moving data -------------------------------------------------------------------------------------------


def permute(ctx: Inference, op: Op) -> None:
    x = op.args[0]
    order = permutation(op, x.ndim)
    ctx.put(op, [ctx.axes(x)[d] for d in order], [ctx.origins(x)[d] for d in order])


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
    axes[dim] = [run for tensor in parts for run in ctx.use(tensor, dim)]
    ctx.put(op, axes)


def stack(ctx: Inference, op: Op) -> None:
    parts, dim = op.args[0], arg(op, 1, "dim", 0) % op.outputs[0].ndim
    axes = broadcast(ctx, op, list(parts), parts[0].shape)
    axes.insert(dim, constant(len(parts), ctx.reason(op, "stacked")))
    ctx.put(op, axes)


def chunk(ctx: Inference, op: Op) -> None:
    """chunk, split: parts of equal size share one mapping, so that they stay of equal size."""
    x, second = op.args[:2]
    dim = arg(op, 2, "dim", 0) % x.ndim
    equal = not isinstance(second, list | tuple)
    start, parts = 0, []
    for out in op.outputs:
        parts.append(cut(ctx.axes(x)[dim], start, start + out.shape[dim]))
        start += out.shape[dim]
    for part in parts[1:] if equal else []:
        if length(part) == length(parts[0]):
            unify(parts[0], part)
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
    axes = []
    for at, size in enumerate(out.shape):
        dim = at - out.ndim + x.ndim
        if dim >= 0 and x.shape[dim] == size:
            axes.append(ctx.use(x, dim))
        else:
            if dim >= 0:
                fix(ctx.use(x, dim), ctx.reason(op, "one value for many"))
            axes.append(fresh(size))
    ctx.put(op, axes)


def repeat(ctx: Inference, op: Op) -> None:
    x, counts = op.args[0], list(op.args[1])
    lead = len(counts) - x.ndim
    axes = [fresh(n) for n in counts[:lead]]
    axes += [resolve(ctx.use(x, d)) * n for d, n in enumerate(counts[lead:])]
    ctx.put(op, axes)


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
    for part, (ins, outs) in enumerate(segments(x.shape, out.shape)):
        if len(ins) == 1 and len(outs) == 1:
            axes.append(ctx.axes(x)[ins[0]])
            origins.append(ctx.origins(x)[ins[0]])
        else:
            whole = merge(ctx, op, [ctx.use(x, d) for d in ins], [x.shape[d] for d in ins])
            axes += divide(ctx, op, part, whole, [out.shape[d] for d in outs])
            origins += [None] * len(outs)
    ctx.put(op, axes, origins)


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


def divide(ctx: Inference, op: Op, part: int, axis: Axis, sizes: list[int]) -> list[Axis]:
    """One axis as several, row-major; one of the new axes takes the mapping."""
    candidates = [i for i in reversed(range(len(sizes))) if sizes[i] > 1]
    if not is_open(axis) or not candidates:
        if candidates:
            reason = next(group.fixed for group, _ in resolve(axis) if group.fixed)
        else:
            reason = ctx.reason(op, "an axis of size one")
            fix(axis, reason)
        return [constant(n, reason) for n in sizes]  # type: ignore[arg-type]
    site = ctx.site(op, len(candidates), part)
    at = candidates[ctx.choice(site)]
    grown: Axis = [(Group(sizes[at]), 1)]
    unify(axis, scaled(grown, prod(sizes[at + 1 :])) * prod(sizes[:at]))
    reason = ctx.reason(op, "another factor of this view grows", site if len(candidates) > 1 else None)
    ctx.sites[site] = (grown, len(candidates))
    return [grown if i == at else constant(n, reason) for i, n in enumerate(sizes)]


# --- the rest ----------------------------------------------------------------------------------------------


def unknown(ctx: Inference, op: Op) -> None:
    """No rule: everything it touches is fixed, and the report says by what."""
    reason = ctx.reason(op, "no rule for this operation")
    for tensor in tensors(op):
        for dim in range(tensor.ndim):
            fix(ctx.use(tensor, dim), reason)
    for out in op.outputs:
        ctx.put_one(out, [constant(n, reason) for n in out.shape])


RULES: dict[str, Rule] = {
    name: rule
    for rule, names in {
        linear: "linear",
        matmul: "matmul mm bmm addmm baddbmm",
        convolution: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        embedding: "embedding",
        attention: "scaled_dot_product_attention",
        batch_norm: "batch_norm instance_norm",
        layer_norm: "layer_norm rms_norm",
        group_norm: "group_norm",
        softmax: "softmax log_softmax _softmax _log_softmax softmin",
        mean: "mean",
        sum_: "sum nansum linalg_vector_norm norm var std prod logsumexp any all",
        extremum: "amax amin",
        pool: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d"
        " adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d"
        " upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
        " upsample_linear1d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad2d",
        permute: "permute transpose swapaxes swapdims t numpy_T mT adjoint",
        concat: "cat concat concatenate",
        stack: "stack",
        chunk: "chunk split split_with_sizes",
        glu: "glu",
        slice_: "slice",
        select: "select unbind",
        index: "index",
        reorder: "roll flip index_select cumsum",
        pad: "constant_pad_nd",
        unsqueeze: "unsqueeze",
        squeeze: "squeeze",
        expand: "expand",
        repeat: "repeat",
        pixel_shuffle: "pixel_shuffle pixel_unshuffle",
        view: "view reshape flatten unflatten _unsafe_view",
        prelu: "prelu",
        same: "dropout dropout_ feature_dropout feature_dropout_ alpha_dropout contiguous clone detach alias to"
        " _to_copy lift_fresh type_as bernoulli_ requires_grad_ zero_ fill_",
        like: "zeros_like ones_like full_like empty_like rand_like randn_like new_empty_strided bernoulli",
        factory: "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor",
        pointwise: "hardswish hardswish_ hardsigmoid hardtanh hardtanh_ relu6 relu6_ threshold threshold_ silu silu_"
        " mish leaky_relu leaky_relu_ elu elu_ selu selu_ celu softplus gelu relu relu_ copy_ masked_fill masked_fill_"
        " where rrelu logsigmoid",
    }.items()
    for name in names.split()
}


def rule_for(func: Any) -> Rule | None:
    """The rule for an operation (an OpOverload), or None."""
    rule = RULES.get(func.overloadpacket.__name__)
    if rule is None and torch.Tag.pointwise in func.tags:
        return pointwise
    return rule
