"""One rule an operation: how its inputs' axes and its outputs' axes hang together.

A rule reads the labels of an operation's tensors, unifies what must grow together, fixes what may not grow,
ties what may only grow by whole numbers, and labels the outputs. Operations without a rule fix everything they
touch, by name: the unknown is never treated as elementwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from n2n_cli.growth import moves, norms
from n2n_cli.growth.axes import (
    Axis,
    Group,
    constant,
    cut,
    fix,
    fresh,
    is_open,
    scaled,
    unify,
)
from n2n_cli.growth.common import arg, broadcast, broadcast_one, dims_of, tensors, unknown
from n2n_cli.growth.heads import head_width

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.record import Op

Rule = Callable[["Inference", "Op"], None]


# --- elementwise -------------------------------------------------------------------------------------------


def pointwise(ctx: Inference, op: Op) -> None:
    """Broadcasting: axes of equal size unify; an axis of size one against a longer one is fixed."""
    if op.name in {"mul", "div"} and scaled_weight(ctx, op):
        return
    ctx.put(op, broadcast(ctx, op, tensors(op), op.outputs[0].shape))


def scaled_weight(ctx: Inference, op: Op) -> bool:
    """A weight times a number or a mask of its own shape is still that weight, to whoever reads it."""
    found = tensors(op)
    weight = next((t for t in found if isinstance(t, nn.Parameter)), None)
    if weight is None or any(t.shape != weight.shape for t in found) or (op.name == "div" and weight is not found[0]):
        return False
    for other in found:
        for dim in range(weight.ndim) if other is not weight else []:
            unify(ctx.axes(weight)[dim], ctx.use(other, dim))
    ctx.put(op, ctx.axes(weight), ctx.origins(weight))
    return True


def same(ctx: Inference, op: Op) -> None:
    """The result is its first argument: dropout, clone, contiguous, casts."""
    ctx.put(op, ctx.axes(op.args[0]), ctx.origins(op.args[0]))
    if op.name in {"clone", "contiguous"}:
        ctx.carry_pieces(op.args[0], op.outputs[0], list(range(op.args[0].ndim)))


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


def convolution(ctx: Inference, op: Op) -> None:
    """Weight [out, in / groups, *kernel]; transposed [in, out / groups, *kernel]."""
    x, weight, bias = op.args[0], op.args[1], arg(op, 2, "bias")
    transposed = op.name.startswith("conv_transpose")
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
    ctx.bend(x)
    fix(ctx.use(weight, 1), ctx.reason(op, "depthwise"))
    unify(scaled(x, multiplier), ctx.use(weight, 0))
    ctx.groups_follow(weight, True)
    return ctx.use(weight, 0)


def grouped(ctx: Inference, op: Op, x: tuple[Tensor, int], weight: Tensor, groups: int, produced: int) -> Axis:
    """All groups share one mapping of their inner channels, or whole groups are replicated."""
    tensor, channel = x
    axis, inner = ctx.axes(tensor)[channel], tensor.shape[channel] // groups
    site = ctx.site(op)
    ctx.bend(axis)
    ctx.bend(ctx.axes(weight)[produced])
    if ctx.like_op is not None:  # the student shows what grows
        ctx.choices[site] = int(arg(ctx.like_op, 6, "groups", 1) != groups)
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
    width = head_width(ctx, op) if is_open(ctx.axes(q)[-1]) else None
    if width:
        ctx.widths.append(width)
    else:
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
    """Also RMS norm: the mean over units stays if every unit is copied the same whole number of times.

    Where uneven growth is asked for, stream and result are groups of their own: see `norms`.
    """
    x, rank = op.args[0], len(op.args[1])
    if ctx.uneven and (out := uneven_norm(ctx, op)):
        return ctx.put(op, [*ctx.axes(x)[:-1], out])
    for at, axis in enumerate(ctx.axes(x)[x.ndim - rank :]):
        ctx.tie(axis, ctx.reason(op, "a mean over its units"))
        for tensor in op.args[2:4]:
            if isinstance(tensor, Tensor):
                unify(axis, ctx.use(tensor, at))
    ctx.put(op, ctx.axes(x))


def uneven_norm(ctx: Inference, op: Op) -> Axis | None:
    """The result's axis of a norm over one axis, with a weight of its own and an eps that its module holds."""
    x, weight, site = op.args[0], arg(op, 2, "weight"), ctx.site(op)
    bias = arg(op, 3, "bias") if op.name == "layer_norm" else None
    eps = arg(op, 4, "eps", 1e-5) if op.name == "layer_norm" else arg(op, 3, "eps")
    if len(op.args[1]) != 1 or ctx.choice(site) == norms.STRICT or not is_open(ctx.axes(x)[-1]):
        return None
    names = [ctx.origins(t)[0] if isinstance(t, Tensor) else None for t in (weight, bias)]
    if names[0] is None or eps is None or ctx.attribute(op.path, "eps") != eps:
        return None
    out = fresh(x.shape[-1])
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            unify(out, ctx.use(tensor, 0))
    ctx.keep_equal(ctx.axes(x)[-1], out)
    kind: Literal["layer", "rms"] = "layer" if op.name == "layer_norm" else "rms"
    bias_name = names[1][0] if names[1] else None
    ctx.norms.append(norms.Norm(kind, site, op.path, float(eps), names[0][0], bias_name, ctx.axes(x)[-1], out))
    return out


def group_norm(ctx: Inference, op: Op) -> None:
    """Groups of equal size: copies stay inside the group of their unit, as many for every unit."""
    axis, groups = ctx.axes(op.args[0])[1], op.args[1]
    size = op.args[0].shape[1] // groups
    for at in range(groups):
        cut(axis, at * size, (at + 1) * size)
    ctx.tie(axis, ctx.reason(op, "a mean over its units"))
    for tensor in op.args[2:4]:
        if isinstance(tensor, Tensor):
            unify(axis, ctx.use(tensor, 0))
    ctx.put(op, ctx.axes(op.args[0]))


def recurrent(ctx: Inference, op: Op) -> None:
    """LSTM, GRU: gates and states are not told apart here."""
    unknown(ctx, op, "a recurrent layer")


def softmax(ctx: Inference, op: Op) -> None:
    fix(ctx.axes(op.args[0])[op.args[1]], ctx.reason(op, "its entries share one sum"))
    ctx.put(op, ctx.axes(op.args[0]))


def mean(ctx: Inference, op: Op) -> None:
    reduce(ctx, op, lambda axis: ctx.tie(axis, ctx.reason(op, "a mean over its units")))


def sum_(ctx: Inference, op: Op) -> None:
    reduce(ctx, op, lambda axis: fix(axis, ctx.reason(op, "a sum over its units")))


def extremum(ctx: Inference, op: Op) -> None:
    """amax, amin, max, min over one axis: copies change nothing (where the largest stands is a side result)."""
    if len(tensors(op)) > 1:
        return pointwise(ctx, op)
    reduce(ctx, op, lambda axis: None)


def reduce(ctx: Inference, op: Op, on: Callable[[Axis], None]) -> None:
    x = op.args[0]
    over = dims_of(op, 2 if op.name.endswith("norm") else 1)
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


# --- the rest ----------------------------------------------------------------------------------------------


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
        extremum: "amax amin max min",
        pool: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d"
        " adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d"
        " upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
        " upsample_linear1d _upsample_nearest_exact2d reflection_pad1d reflection_pad2d replication_pad2d",
        moves.permute: "permute transpose swapaxes swapdims t numpy_T mT adjoint",
        moves.concat: "cat concat concatenate",
        moves.stack: "stack",
        moves.chunk: "chunk split split_with_sizes",
        moves.glu: "glu",
        moves.slice_: "slice",
        moves.select: "select unbind",
        moves.index: "index",
        moves.reorder: "roll flip index_select cumsum",
        moves.pad: "constant_pad_nd",
        moves.unsqueeze: "unsqueeze",
        moves.squeeze: "squeeze",
        moves.expand: "expand",
        moves.repeat: "repeat",
        recurrent: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        moves.channel_shuffle: "channel_shuffle",
        moves.pixel_shuffle: "pixel_shuffle pixel_unshuffle",
        moves.view: "view reshape flatten unflatten _unsafe_view",
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
