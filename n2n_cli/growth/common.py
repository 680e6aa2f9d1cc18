"""What all rules share: reading an operation's arguments, broadcasting, and the answer to the unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from n2n_cli.growth.axes import Axis, constant, fix, unify

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.record import Op


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


def unknown(ctx: Inference, op: Op, why: str = "no rule for this operation") -> None:
    """No rule: everything it touches is fixed, and the report says by what."""
    reason = ctx.reason(op, why)
    for tensor in tensors(op):
        for dim in range(tensor.ndim):
            fix(ctx.use(tensor, dim), reason)
    for out in op.outputs:
        ctx.put_one(out, [constant(n, reason) for n in out.shape])
