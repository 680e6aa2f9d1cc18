"""What sums over channels: linear layers, matrix products, convolutions, attention, embeddings."""

from __future__ import annotations

from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, constant, fix, scaled, unify
from n2n_cli.growth.groups.rules.elementwise import broadcast, meet
from n2n_cli.growth.groups.structure import Context, UnknownCall
from n2n_cli.growth.trace.record import Op


def contract(ctx: Context, op: Op, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> None:
    """Sum over a common axis. With a parameter, its entries are divided among copies; else the axis is fixed."""
    (x, i), (y, j) = a, b
    unify(ctx.axes(x)[i], ctx.axes(y)[j])
    owned = [ctx.origins(t)[d] for t, d in (a, b)]
    if (owned[0] is None) == (owned[1] is None):
        fix(ctx.axes(x)[i], ctx.reason(op, "a sum over two activations or two parameters"))
    for (tensor, dim), origin in zip((a, b), owned, strict=True):
        if origin is not None:
            ctx.role(tensor, dim, "in")


def linear(ctx: Context, op: Op) -> None:
    """Weight [out, in], bias [out]."""
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    contract(ctx, op, (x, x.ndim - 1), (weight, weight.ndim - 1))
    if weight.ndim == 1:  # a single output, without an axis of its own
        return ctx.put(op, ctx.axes(x)[:-1])
    if bias is not None:
        unify(ctx.use(weight, 0), ctx.use(bias, 0))
    ctx.put(op, [*ctx.axes(x)[:-1], ctx.use(weight, 0)])


def bilinear(ctx: Context, op: Op) -> None:
    """Weight [out, in of the first, in of the second], bias [out]."""
    x, y, weight, bias = op.args[0], op.args[1], op.args[2], op.arg(3, "bias")
    for dim, read in ((1, x), (2, y)):
        contract(ctx, op, (read, read.ndim - 1), (weight, dim))
    if bias is not None:
        unify(ctx.use(weight, 0), ctx.use(bias, 0))
    lead = [meet(ctx, op, [(x, d), (y, d)], x.shape[d]) for d in range(x.ndim - 1)]
    ctx.put(op, [*lead, ctx.use(weight, 0)])


def matmul(ctx: Context, op: Op) -> None:
    """mm, bmm, mv, dot; matmul on vectors, matrices and stacks of matrices."""
    x, y = op.args[:2]
    if x.ndim > 1 and y.ndim > 1:
        return ctx.put(op, _product(ctx, op, x, y))
    contracted = y.ndim - 2 if y.ndim > 1 else 0
    contract(ctx, op, (x, x.ndim - 1), (y, contracted))
    left = [ctx.use(x, d) for d in range(x.ndim - 1)]
    ctx.put(op, [*left, *(ctx.use(y, d) for d in range(y.ndim) if d != contracted)])


def add_matmul(ctx: Context, op: Op) -> None:
    """addmm, baddbmm: the first argument is added to the product of the two others."""
    added, x, y = op.args[:3]
    ctx.put(op, _product(ctx, op, x, y))
    ctx.put(op, broadcast(ctx, op, [added, op.outputs[0]], op.outputs[0].shape))


def _product(ctx: Context, op: Op, x: Tensor, y: Tensor) -> list[Axis]:
    if x.ndim < 2 or y.ndim < 2:
        raise UnknownCall("no rule for this operation")
    contract(ctx, op, (x, x.ndim - 1), (y, y.ndim - 2))
    out = op.outputs[0]
    lead = []
    for d in range(out.ndim - 2):
        places = [(t, d - out.ndim + t.ndim) for t in (x, y)]
        lead.append(meet(ctx, op, [(t, p) for t, p in places if p >= 0], out.shape[d]))
    return [*lead, ctx.use(x, x.ndim - 2), ctx.use(y, y.ndim - 1)]


def grouped_matmul(ctx: Context, op: Op) -> None:
    """Rows [n, in], in blocks that ``offs`` ends, times the matrix of their block in [blocks, in, out]: experts."""
    x, y = op.args[:2]
    if x.ndim != 2 or y.ndim != 3:
        raise UnknownCall("no rule for this operation")
    fix(ctx.use(y, 0), ctx.reason(op, "a matrix for each block of rows"))
    contract(ctx, op, (x, 1), (y, 1))
    ctx.put(op, [ctx.use(x, 0), ctx.use(y, 2)])


def convolution(ctx: Context, op: Op, *, transposed: bool = False) -> None:
    """Weight [out, in / groups, *kernel]; transposed [in, out / groups, *kernel]."""
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    groups = op.arg(6, "groups", 1)
    channel = x.ndim - weight.ndim + 1
    for dim in range(channel + 1, x.ndim):
        fix(ctx.axes(x)[dim], ctx.reason(op, "a spatial axis", "spatial"))
    for dim in range(2, weight.ndim):
        fix(ctx.use(weight, dim), ctx.reason(op, "a kernel axis", "kernel"))
    produced = 1 if transposed else 0
    if groups == 1:
        contract(ctx, op, (x, channel), (weight, 1 - produced))
        out = ctx.use(weight, produced)
    elif groups == x.shape[channel] and weight.shape[1] == 1:
        out = _depthwise(ctx, op, ctx.axes(x)[channel], weight, weight.shape[0] // groups)
    else:
        out = _grouped(ctx, op, (x, channel), weight, groups, produced)
    if bias is not None:
        unify(out, ctx.use(bias, 0))
    spatial = [constant(n, ctx.reason(op, "a spatial axis", "spatial")) for n in op.outputs[0].shape[channel + 1 :]]
    ctx.put(op, [*ctx.axes(x)[:channel], out, *spatial])


def _depthwise(ctx: Context, op: Op, x: Axis, weight: Tensor, multiplier: int) -> Axis:
    """Every unit has filters of its own: input and output share their units, ``groups`` follows."""
    fix(ctx.use(weight, 1), ctx.reason(op, "depthwise", "depthwise"))
    unify(scaled(x, multiplier), ctx.use(weight, 0))
    ctx.groups_follow(weight, True)
    return ctx.use(weight, 0)


def _grouped(ctx: Context, op: Op, x: tuple[Tensor, int], weight: Tensor, groups: int, produced: int) -> Axis:
    """All groups share one remapping of their inner channels (the first choice), or whole groups are replicated."""
    tensor, channel = x
    axis, inner = ctx.axes(tensor)[channel], tensor.shape[channel] // groups
    fork = ctx.fork(op)
    whole_groups = ctx.choice(fork) != 0
    if ctx.student is not None:  # the student shows what grows
        whole_groups = ctx.student.arg(6, "groups", 1) != groups
    whole_groups = whole_groups or produced != 0
    ctx.groups_follow(weight, whole_groups)
    if not whole_groups:
        reason = ctx.reason(op, "its groups stay, their inner channels grow", fork=fork)
        shared = Group(inner)
        unify(axis, [(shared, 1)] * groups)
        unify(ctx.axes(weight)[1], [(shared, 1)])
        ctx.role(weight, 1, "in")
        outputs = _outputs_of_groups(ctx, op, weight.shape[0] // groups, groups)
        unify(ctx.use(weight, 0), outputs)
        ctx.forks[fork] = ([(shared, 1), *outputs], 2)
        if ctx.origins(weight)[1] is None:
            fix(axis, reason)
        return ctx.use(weight, 0)
    whole = Group(groups)
    unify(axis, [(whole, inner)])
    fix(ctx.use(weight, 1), ctx.reason(op, "its inner channels stay, whole groups grow", fork=fork))
    unify(ctx.use(weight, 0), [(whole, weight.shape[0] // groups)])
    ctx.forks[fork] = ([(whole, 1)], 2)
    return scaled([(whole, 1)], op.outputs[0].shape[channel] // groups)


def _outputs_of_groups(ctx: Context, op: Op, each: int, groups: int) -> Axis:
    """All share one remapping as well, unless something behind them (a shuffle) needs one for each."""
    fork = ctx.fork(op, 1)
    if ctx.choice(fork) == 0:
        axis = [(Group(each), 1)] * groups
        ctx.repeated.append((fork, axis))
        return axis
    axis = [(Group(each), 1) for _ in range(groups)]
    for span in axis[1:]:
        ctx.keep_equal(op, axis[:1], [span])
    return axis


def embedding(ctx: Context, op: Op) -> None:
    """Weight [entries, features]; the index picks entries."""
    weight, index = op.args[:2]
    fix(ctx.use(weight, 0), ctx.reason(op, "looked up by index"))
    ctx.put(op, [*ctx.axes(index), ctx.use(weight, 1)])


def embedding_bag(ctx: Context, op: Op) -> None:
    """Weight [entries, features]: sums, means or maxima of the entries that the index picks for each bag."""
    weight, out = op.args[0], op.outputs[0]
    fix(ctx.use(weight, 0), ctx.reason(op, "looked up by index"))
    ctx.put(op, [constant(out.shape[0], ctx.reason(op, "bags")), ctx.use(weight, 1)])


def attention(ctx: Context, op: Op) -> None:
    """Scaled dot products of [..., L, E], [..., S, E] and [..., S, V]."""
    q, k, v = op.args[:3]
    mask = op.arg(3, "attn_mask")
    tensors = [t for t in (q, k, v, mask) if t is not None]
    lead, shared = [], op.arg(7, "enable_gqa", False) and q.ndim > 2 and q.shape[-3] != k.shape[-3]
    for d in range(q.ndim - 2 - bool(shared)):
        places = [(t, d - q.ndim + t.ndim) for t in tensors]
        places = [(t, p) for t, p in places if p >= 0]
        lead.append(meet(ctx, op, places, max(t.shape[p] for t, p in places)))
    if shared:  # several heads of queries for each of keys and values, which grow together
        unify(ctx.axes(k)[-3], ctx.axes(v)[-3])
        unify(scaled(ctx.axes(k)[-3], q.shape[-3] // k.shape[-3]), ctx.axes(q)[-3])
        if mask is not None and mask.ndim > 2:
            meet(ctx, op, [(q, q.ndim - 3), (mask, mask.ndim - 3)], q.shape[-3])
        lead.append(ctx.axes(q)[-3])
    unify(ctx.axes(q)[-1], ctx.axes(k)[-1])
    if ctx.relate("head width", op, ctx.axes(q)[-1]) is None:
        fix(ctx.axes(q)[-1], ctx.reason(op, "a sum over two activations"))
    unify(ctx.axes(k)[-2], ctx.axes(v)[-2])
    fix(ctx.axes(k)[-2], ctx.reason(op, "positions are weighed against each other", "position"))
    fix(ctx.axes(q)[-2], ctx.reason(op, "sequence positions"))
    for of, dim in ((q, -2), (k, -1)) if mask is not None else ():  # [..., L, S]
        meet(ctx, op, [(of, of.ndim - 2), (mask, mask.ndim + dim)], of.shape[-2])
    ctx.put(op, [*lead, ctx.axes(q)[-2], ctx.axes(v)[-1]])
