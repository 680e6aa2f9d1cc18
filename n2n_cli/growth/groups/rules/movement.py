"""What only moves data: permute, concatenate, cut, view, pad, repeat (`indexing`: what picks by position).

Nothing is computed here, so nothing divides; what matters is which positions stay together and in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, constant, cut, fix, fresh, is_open, length, resolve, scaled, unify
from n2n_cli.growth.groups.division import NO_FACTOR, Division, Factor
from n2n_cli.growth.groups.reasons import Fork
from n2n_cli.growth.groups.rules.elementwise import broadcast
from n2n_cli.growth.groups.rules.reductions import dims_of
from n2n_cli.growth.groups.structure import Context, Origin, UnknownCall
from n2n_cli.growth.trace.record import Op


def permute(ctx: Context, op: Op) -> None:
    """``permute(x, dims)``."""
    _permuted(ctx, op, [d % op.args[0].ndim for d in op.args[1]])


def transpose(ctx: Context, op: Op) -> None:
    """``transpose(x, dim, dim)``; without dimensions the last two are exchanged."""
    order = list(range(op.args[0].ndim))
    if order:
        a, b = op.args[1:3] if len(op.args) > 1 else (-2, -1) if len(order) > 1 else (0, 0)
        order[a], order[b] = order[b], order[a]
    _permuted(ctx, op, order)


def _permuted(ctx: Context, op: Op, order: list[int]) -> None:
    x, out = op.args[0], op.outputs[0]
    ctx.put(op, [ctx.axes(x)[d] for d in order], [ctx.origins(x)[d] for d in order])
    if id(x) in ctx.factors:
        ctx.factors[id(out)] = [ctx.factors[id(x)][d] for d in order]


def concat(ctx: Context, op: Op) -> None:
    """The spans of all parts follow each other along ``dim``; the other axes unify."""
    parts = [t for t in op.args[0] if not (t.ndim == 1 and t.shape[0] == 0)]
    dim = op.arg(1, "dim", 0) % op.outputs[0].ndim
    axes = [ctx.use(parts[0], d) for d in range(parts[0].ndim)]
    for tensor in parts[1:]:
        for d in range(tensor.ndim):
            if d != dim:
                unify(axes[d], ctx.use(tensor, d))
    for tensor in parts if len(parts) > 1 else []:
        if tensor.shape[dim] == 1:  # a class token, one row of zeros: written as one, it stays one
            fix(ctx.use(tensor, dim), ctx.reason(op, "a single position beside others", "position"))
    axes[dim] = [span for tensor in parts for span in ctx.use(tensor, dim)]
    ctx.put(op, axes)


def stack(ctx: Context, op: Op) -> None:
    """The parts unify; their number is the code's."""
    parts, dim = op.args[0], op.arg(1, "dim", 0) % op.outputs[0].ndim
    axes = broadcast(ctx, op, list(parts), parts[0].shape)
    axes.insert(dim, constant(len(parts), ctx.reason(op, "stacked")))
    ctx.put(op, axes)


def chunk(ctx: Context, op: Op) -> None:
    """chunk, split: parts of equal size stay of equal size; each may have a remapping of its own."""
    x, second = op.args[:2]
    dim = op.arg(2, "dim", 0) % x.ndim
    start, parts = 0, []
    for out in op.outputs:
        parts.append(cut(ctx.axes(x)[dim], start, start + out.shape[dim]))
        start += out.shape[dim]
    for part in parts[1:] if not isinstance(second, list | tuple) else []:
        if length(part) == length(parts[0]):
            ctx.keep_equal(op, parts[0], part)
        else:
            fix([*parts[0], *part], ctx.reason(op, "parts of different size"))
    for out, part in zip(op.outputs, parts, strict=True):
        ctx.put_one(out, [part if d == dim else a for d, a in enumerate(ctx.axes(x))], _origins_after_cut(ctx, x, dim))


def _origins_after_cut(ctx: Context, x: Tensor, dim: int) -> list[Origin]:
    """Read ``x`` along ``dim`` (role "copy"); the origins that are left: all but that of the axis that was cut."""
    ctx.role(x, dim, "copy")
    return [None if d == dim else o for d, o in enumerate(ctx.origins(x))]


def glu(ctx: Context, op: Op) -> None:
    """The first half of an axis, gated by the second: both share one remapping."""
    x, dim = op.args[0], op.arg(1, "dim", -1) % op.args[0].ndim
    axis, half = ctx.axes(x)[dim], x.shape[dim] // 2
    first = cut(axis, 0, half)
    unify(first, cut(axis, half, 2 * half))
    ctx.put(op, [first if d == dim else a for d, a in enumerate(ctx.axes(x))])


def slice_(ctx: Context, op: Op) -> None:
    """``x[start:end:step]`` along one axis; in steps, one of every ``step`` neighbours, or the axis stays."""
    x = op.args[0]
    dim, start, end, step = op.arg(1, "dim", 0), op.arg(2, "start", 0), op.arg(3, "end"), op.arg(4, "step", 1)
    dim, size = dim % x.ndim, x.shape[dim % x.ndim]
    start, end = 0 if start is None else start, size if end is None else end
    start, end = (max(0, p + size) if p < 0 else min(p, size) for p in (start, end))
    axes, origins = list(ctx.axes(x)), list(ctx.origins(x))
    if (start, end, step) != (0, size, 1):
        origins = _origins_after_cut(ctx, x, dim)
        if step == 1:
            axes[dim] = cut(axes[dim], start, end)
        elif size % step == 0 and start < step and end > size - step + start and not _any_fixed(axes[dim]):
            unify(axes[dim], [(Group(size // step), step)])  # ``step`` neighbours are copied as a whole
            axes[dim] = [(group, k // step) for group, k in resolve(axes[dim])]
        else:
            fix(axes[dim], ctx.reason(op, "taken in steps"))
            axes[dim] = constant(op.outputs[0].shape[dim], ctx.reason(op, "taken in steps"))
    ctx.put(op, axes, origins)


def _any_fixed(axis: Axis) -> bool:
    return any(group.fixed for group, _ in resolve(axis))


def pad(ctx: Context, op: Op) -> None:
    """Padding with a constant: beside units that may grow, what is added are units that may grow with what they meet
    (a shortcut to more channels); beside all else (pixels, positions) they may not."""
    x, amounts = op.args[:2]
    axes, reason = [ctx.use(x, d) for d in range(x.ndim)], ctx.reason(op, "padding")
    for at in range(len(amounts) // 2):
        before, after = amounts[2 * at : 2 * at + 2]
        dim = x.ndim - 1 - at
        axis = cut(axes[dim], max(0, -before), x.shape[dim] - max(0, -after))
        added = [fresh(n) if is_open(axis) else constant(n, reason) for n in (max(0, before), max(0, after))]
        axes[dim] = [*added[0], *axis, *added[1]]
    ctx.put(op, axes)


def unsqueeze(ctx: Context, op: Op) -> None:
    """A new axis of size one."""
    x, dim = op.args[0], op.args[1] % op.outputs[0].ndim
    axes, origins = list(ctx.axes(x)), list(ctx.origins(x))
    axes.insert(dim, constant(1, ctx.reason(op, "a new axis")))
    origins.insert(dim, None)
    ctx.put(op, axes, origins)


def squeeze(ctx: Context, op: Op) -> None:
    """An axis of size one is dropped, so it must stay of size one."""
    x = op.args[0]
    gone = [d for d in dims_of(op) if x.shape[d] == 1]
    for dim in gone:
        fix(ctx.axes(x)[dim], ctx.reason(op, "dropped for its size of one"))
    keep = [d for d in range(x.ndim) if d not in gone]
    ctx.put(op, [ctx.axes(x)[d] for d in keep], [ctx.origins(x)[d] for d in keep])


def expand(ctx: Context, op: Op) -> None:
    """Repeats of one value: an axis that is free to grow with what it meets."""
    x, out = op.args[0], op.outputs[0]
    axes: list[Axis] = []
    origins: list[Origin] = []
    for at, size in enumerate(out.shape):
        dim = at - out.ndim + x.ndim
        if dim >= 0 and x.shape[dim] == size:
            axes.append(ctx.axes(x)[dim])
            origins.append(ctx.origins(x)[dim])
        else:
            if dim >= 0:
                fix(ctx.use(x, dim), ctx.reason(op, "one value for many", "broadcast"))
            axes.append(fresh(size))
            origins.append(None)
    ctx.put(op, axes, origins)


def repeat(ctx: Context, op: Op) -> None:
    """The whole axis several times: all repeats share the remapping."""
    x, counts = op.args[0], list(op.args[1])
    lead = len(counts) - x.ndim
    axes = [fresh(n) for n in counts[:lead]]
    axes += [resolve(ctx.use(x, d)) * n for d, n in enumerate(counts[lead:])]
    ctx.put(op, axes)


def emptied(ctx: Context, op: Op) -> None:
    """``x.set_()``: its memory is given back before its time (reversible blocks), and nothing is left of it."""
    if len(op.args) > 1 or op.kwargs:
        raise UnknownCall("no rule for this operation")
    ctx.put(op, [[]])


def channel_shuffle(ctx: Context, op: Op) -> None:
    """view(C -> (groups, C / groups)), transpose, view back."""
    x, groups = op.args[:2]
    dim = max(0, x.ndim - 3)
    source = ctx.use(x, dim)
    division = Division(ctx.fork(op), source, (groups, x.shape[dim] // groups), grows=1)
    out = ctx.relate("shuffle", op, division, (1, 0))
    if out is None:
        fix(source, ctx.reason(op, "a channel shuffle"))
        out = constant(x.shape[dim], ctx.reason(op, "a channel shuffle"))
    ctx.put(op, [out if d == dim else a for d, a in enumerate(ctx.axes(x))])


def pixel_shuffle(ctx: Context, op: Op) -> None:
    """r * r neighbouring channels become one channel of r times the height and width."""
    r = op.args[1]
    channels = fresh(op.outputs[0].shape[op.args[0].ndim - 3])
    unify(ctx.axes(op.args[0])[op.args[0].ndim - 3], scaled(channels, r * r))
    _resampled(ctx, op, channels)


def pixel_unshuffle(ctx: Context, op: Op) -> None:
    """One channel becomes r * r neighbouring ones."""
    _resampled(ctx, op, scaled(ctx.axes(op.args[0])[op.args[0].ndim - 3], op.args[1] ** 2))


def im2col(ctx: Context, op: Op) -> None:
    """Patches: each channel becomes its kernel's positions, neighbours in the result."""
    x, kernel = op.args[0], prod(op.args[1])
    _patches(ctx, op, x.ndim - 3, scaled(ctx.axes(x)[x.ndim - 3], kernel), x.ndim - 2)


def col2im(ctx: Context, op: Op) -> None:
    """Patches back: the positions of a kernel become one channel again."""
    x, out, kernel = op.args[0], op.outputs[0], prod(op.args[2])
    channels = fresh(out.shape[out.ndim - 3])
    unify(ctx.axes(x)[x.ndim - 2], scaled(channels, kernel))
    _patches(ctx, op, x.ndim - 2, channels, x.ndim - 1)


def _patches(ctx: Context, op: Op, lead: int, channels: Axis, spatial: int) -> None:
    x, out, reason = op.args[0], op.outputs[0], ctx.reason(op, "a spatial axis", "spatial")
    for axis in ctx.axes(x)[spatial:]:
        fix(axis, reason)
    ctx.put(op, [*ctx.axes(x)[:lead], channels, *(constant(n, reason) for n in out.shape[lead + 1 :])])


def unfold(ctx: Context, op: Op) -> None:
    """``x.unfold(dim, size, step)``: windows along ``dim``, whose positions become a last axis."""
    x, out = op.args[0], op.outputs[0]
    dim, reason = op.args[1] % max(x.ndim, 1), ctx.reason(op, "windows")
    fix(ctx.use(x, dim), reason)
    axes = [constant(out.shape[d], reason) if d == dim else ctx.use(x, d) for d in range(x.ndim)]
    ctx.put(op, [*axes, constant(out.shape[-1], reason)])


def _resampled(ctx: Context, op: Op, channels: Axis) -> None:
    x, out, lead = op.args[0], op.outputs[0], op.args[0].ndim - 3
    reason = ctx.reason(op, "a spatial axis", "spatial")
    for axis in ctx.axes(x)[lead + 1 :]:
        fix(axis, reason)
    ctx.put(op, [*ctx.axes(x)[:lead], channels, *(constant(n, reason) for n in out.shape[lead + 1 :])])


def view(ctx: Context, op: Op) -> None:
    """Row-major regrouping. Where an open axis is divided, one factor takes the remapping.

    The one that holds whole units, if there is one: channels of four positions each -> (channels, 4). Else it is
    decided late: the last factor first; if it turns out fixed, inference comes back with another choice (channels ->
    (heads, d): if d is summed over with another activation, the heads grow).
    """
    x, out = op.args[0], op.outputs[0]
    axes: list[Axis] = []
    origins: list[Origin] = []
    factors: list[Factor] = []
    before = ctx.factors.get(id(x)) or [None] * x.ndim
    # In each part the axes ``ins`` of x become the axes ``outs``. Unchanged axes keep label and origin; the end of a
    # shuffle is labelled by its relation. All else is merged into one axis, and that one divided again.
    for part, (ins, outs) in enumerate(segments(x.shape, out.shape)):
        if len(ins) == 1 and len(outs) == 1:
            axes.append(ctx.axes(x)[ins[0]])
            origins.append(ctx.origins(x)[ins[0]])
            factors.append(before[ins[0]])
            continue
        known = _merged_by_relation(ctx, op, [before[d] for d in ins]) if len(outs) == 1 else None
        if known is not None:
            axes.append(known)
            origins.append(None)
            factors.append(None)
            continue
        # The axis that grows may still be a parameter's own; its origin passes to the factor that takes the remapping.
        opened = [d for d in ins if x.shape[d] > 1 and is_open(ctx.axes(x)[d])][:1]
        origin = ctx.origins(x)[opened[0]] if opened else None
        read = [ctx.axes(x)[d] if d in opened else ctx.use(x, d) for d in ins]
        whole = merge(ctx, op, read, [x.shape[d] for d in ins])
        sizes, fork = [out.shape[d] for d in outs], ctx.fork(op, part)
        parts = divide(ctx, op, fork, whole, sizes, outs)
        axes += parts
        grows = next((i for i, axis in enumerate(parts) if is_open(axis)), None)
        if grows is None and origin is not None:  # the parameter's axis has been read as a whole
            ctx.role(x, opened[0], "copy")
        origins += [origin if i == grows else None for i in range(len(outs))]
        grown = _grown_by_code(op, outs)
        division = Division(fork, ctx.axes(x)[ins[0]], tuple(sizes), grown) if len(ins) == 1 and outs else None
        factors += [(division, i) if division else None for i in range(len(outs))]
    ctx.put(op, axes, origins)
    if any(factors):
        ctx.factors[id(out)] = factors


def _grown_by_code(op: Op, outs: list[int]) -> int:
    """Which of the new axes ``outs`` the code makes longer for more channels: the one it writes as -1, or else the
    longest one (of equal ones the last: channels are divided into groups of channels)."""
    written, first = next(((a, op.args[1]) for a in reversed(op.args) if isinstance(a, list | tuple)), ((), 0))
    first = first % op.args[0].ndim if isinstance(first, int) else 0  # unflatten(x, dim, sizes)
    if -1 in written and first + list(written).index(-1) in outs:
        return outs.index(first + list(written).index(-1))
    return max(range(len(outs)), key=lambda i: (op.outputs[0].shape[outs[i]], i), default=0)


def _merged_by_relation(ctx: Context, op: Op, factors: list[Factor]) -> Axis | None:
    return next((axis for relation in ctx.relations if (axis := relation.merge(ctx, op, factors)) is not None), None)


def segments(ins: Sequence[int], outs: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairing of consecutive axes with equal products.

    >>> segments((2, 12, 5), (2, 3, 4, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
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


def merge(ctx: Context, op: Op, axes: list[Axis], sizes: list[int]) -> Axis:
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


def divide(ctx: Context, op: Op, fork: Fork, axis: Axis, sizes: list[int], dims: list[int]) -> list[Axis]:
    """One axis as several, row-major; one of the new axes takes the remapping (none if the choice is NO_FACTOR)."""
    candidates = [i for i in reversed(range(len(sizes))) if sizes[i] > 1]
    candidates = [i for i in candidates if _whole_units(axis, sizes, i)] or candidates
    if not is_open(axis) or not candidates:
        if candidates:
            reason = next(group.fixed for group, _ in resolve(axis) if group.fixed)
        else:
            reason = ctx.reason(op, "an axis of size one")
            fix(axis, reason)
        return [constant(n, reason) for n in sizes]
    if ctx.choice(fork) == NO_FACTOR:
        return [constant(n, ctx.reason(op, "a channel shuffle")) for n in sizes]
    at = candidates[min(ctx.choice(fork), len(candidates) - 1)]
    if ctx.student is not None:  # the student shows which factor grows
        shape = ctx.student.outputs[0].shape
        grows = [i for i, d in enumerate(dims) if shape[d] != sizes[i]]
        if len(grows) > 1:
            reason = ctx.reason(op, "two factors of one view grow in the student")
            fix(axis, reason)
            return [constant(n, reason) for n in sizes]
        at = grows[0] if grows else at
    grown: Axis = [(Group(sizes[at]), 1)]
    unify(axis, scaled(grown, prod(sizes[at + 1 :])) * prod(sizes[:at]))
    ways = max(len(candidates), ctx.forks[fork][1] if fork in ctx.forks else 1)  # the second mode meets whole units
    reason = ctx.reason(op, "another factor of this view grows", fork=fork if ways > 1 else None)
    ctx.forks[fork] = (grown, 1 if ctx.student is not None else ways)
    return [grown if i == at else constant(n, reason) for i, n in enumerate(sizes)]


def _whole_units(axis: Axis, sizes: list[int], at: int) -> bool:
    """Whether the axis, divided into factors of ``sizes``, has whole units along the factor ``at``: none is cut by the
    factors behind it, and those before it repeat them all.

    >>> channels = [(Group(12), 4)]
    >>> _whole_units(channels, [12, 4], 0), _whole_units(channels, [12, 4], 1)
    (True, False)
    >>> _whole_units(channels * 2, [2, 12, 4], 1)
    True
    """
    spans, before, behind = resolve(axis), prod(sizes[:at]), prod(sizes[at + 1 :])
    repeated = spans == spans[: len(spans) // before] * before
    return repeated and all(k % behind == 0 and k < sizes[at] * behind for _, k in spans)
