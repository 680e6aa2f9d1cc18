"""The table of operations: all that growth knows of each ATen operation, one row each. Nothing else lists their names.

A row's fields are explained at `table.Operation`. What PyTorch itself marks as pointwise needs no row; whatever else
has none keeps its axes as they are, and the report names it. `register` adds a row for an operation of the user's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.activations import Abs, Clamp
from n2n_cli.growth.groups.rules import contractions, elementwise, indexing, movement, reductions
from n2n_cli.growth.groups.table import Operation, Rule, Table, row_name
from n2n_cli.growth.trace.record import Op


def _one_tensor(op: Op) -> bool:
    """Scaling by a number is linear; a product of two tensors is not."""
    return len(op.tensors()) == 1


def _one_group(op: Op) -> bool:
    return bool(op.arg(6, "groups", 1) == 1)


# what stands for operations that draw, where nothing may be drawn: called with (func, args, kwargs)


def _first(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first: Tensor = args[0]
    return first


def _native_dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)


def _bernoulli(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    p = args[1] if len(args) > 1 else kwargs.get("p")
    return args[0].clone() if p is None else torch.full_like(args[0], p)


def _bernoulli_(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Its mean, which stochastic depth divides by again."""
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return args[0].copy_(p) if isinstance(p, Tensor) else args[0].fill_(p)


def _attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Without dropout on the weights."""
    args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
    return func(*args, **({**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs))


def _rrelu(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """With the mean of its slopes, as in eval mode."""
    return func(*args[:3], False, *args[4:5], **{k: v for k, v in kwargs.items() if k != "training"})


def _batch_norm_on_meta(x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """What PyTorch works out in Python takes half of all the time."""
    return torch.empty_like(x)


# the rows; those of one kind stand together


def _rows(names: str, row: Operation) -> dict[str, Operation]:
    return dict.fromkeys(names.split(), row)


def _moving(rule: Rule) -> Operation:
    return Operation(rule, linear=True, moves=True, zero="first")


POINTWISE = Operation(elementwise.pointwise)
UNKNOWN = Operation(elementwise.unknown)
_SAME = Operation(elementwise.same, linear=True)
_CONVOLUTION = Operation(contractions.convolution, linear=_one_group, weight=1, bias=2)
_TRANSPOSED = replace(_CONVOLUTION, rule=partial(contractions.convolution, transposed=True), transposed=True)
_BATCH_NORM = Operation(reductions.batch_norm, norm=True, weight=1, bias=2, writes=(3, 4))
_DROPOUT = replace(_SAME, zero="first", without_chance=_first, parts_copies=True)
_ALPHA_DROPOUT = Operation(elementwise.same, without_chance=_first, parts_copies=True)
_FACTORY = Operation(elementwise.factory, linear=True)
_LIKE = Operation(elementwise.like)
_SUM = Operation(elementwise.pointwise, linear=True, zero="all", signs=(1, 1))
_PRODUCT = Operation(elementwise.product, linear=_one_tensor, zero="any")
_QUOTIENT = Operation(elementwise.product, linear=_one_tensor, zero="first")
_SMOOTH = Operation(elementwise.pointwise, zero="first")  # f(0) = 0, and f'(0) is not 0

ROWS: dict[str, Operation] = {
    # sums over channels
    **_rows("linear", Operation(contractions.linear, linear=True, weight=1, bias=2)),
    **_rows("conv1d conv2d conv3d", _CONVOLUTION),
    **_rows("conv_transpose1d conv_transpose2d conv_transpose3d", _TRANSPOSED),
    **_rows("matmul mm bmm mv dot", Operation(contractions.matmul, linear=True, zero="any")),
    **_rows("_grouped_mm", Operation(contractions.grouped_matmul, linear=True, zero="any")),
    **_rows("addmm addmm_", Operation(contractions.add_matmul, linear=True, zero="all", terms=(0, 2))),
    **_rows("baddbmm baddbmm_", Operation(contractions.add_matmul, linear=True)),
    **_rows("bilinear", Operation(contractions.bilinear)),
    **_rows("embedding", Operation(contractions.embedding, linear=True)),
    **_rows("embedding_bag", Operation(contractions.embedding_bag)),
    **_rows("scaled_dot_product_attention", Operation(contractions.attention, linear=True, without_chance=_attention)),
    **_rows("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell", Operation(elementwise.recurrent)),
    **_rows("rnn_tanh_cell rnn_relu_cell", Operation(elementwise.recurrent)),
    # norms
    **_rows("batch_norm", replace(_BATCH_NORM, on_meta=_batch_norm_on_meta)),
    **_rows("instance_norm", _BATCH_NORM),
    **_rows("layer_norm", Operation(reductions.layer_norm, norm=True, weight=2, bias=3)),
    **_rows("group_norm", Operation(reductions.group_norm, norm=True, weight=2, bias=3)),
    **_rows("rms_norm", Operation(reductions.rms_norm, norm=True, weight=2)),
    **_rows("_weight_norm _weight_norm_interface", Operation(reductions.weight_norm)),
    # reductions and pools
    **_rows("softmax log_softmax _softmax _log_softmax", Operation(reductions.softmax)),
    **_rows("mean", Operation(reductions.mean, linear=True, zero="first")),
    **_rows("sum", Operation(reductions.sum_over, linear=True, zero="first")),
    **_rows("nansum prod logsumexp any all", Operation(reductions.sum_over)),
    **_rows("var std var_mean std_mean", Operation(reductions.variance)),
    **_rows("linalg_vector_norm norm", Operation(partial(reductions.sum_over, dims_at=2))),
    **_rows("amax max", Operation(reductions.extremum, largest=True, picks=True)),
    **_rows("amin min", Operation(reductions.extremum, picks=True)),
    **{
        name.format(n): Operation(partial(reductions.pool, spatial=n), linear=linear, zero="first" if zero else None)
        for n in (1, 2, 3)
        for names, linear, zero in (
            ("avg_pool{}d adaptive_avg_pool{}d", True, True),
            ("upsample_nearest{}d", False, True),
            ("max_pool{}d max_pool{}d_with_indices adaptive_max_pool{}d", False, False),
            ("_upsample_nearest_exact{}d reflection_pad{}d replication_pad{}d", False, False),
        )
        for name in names.split()
    },
    **_rows("max_unpool2d", Operation(partial(reductions.unpool, spatial=2))),
    **_rows("max_unpool3d", Operation(partial(reductions.unpool, spatial=3))),
    **_rows("upsample_linear1d", Operation(partial(reductions.pool, spatial=1), zero="first")),
    **_rows("upsample_bilinear2d upsample_bicubic2d", Operation(partial(reductions.pool, spatial=2), zero="first")),
    **_rows("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", Operation(partial(reductions.pool, spatial=2))),
    # data movement
    **_rows("view reshape flatten unflatten _unsafe_view", _moving(movement.view)),
    **_rows("permute", _moving(movement.permute)),
    **_rows(
        "transpose transpose_ swapaxes swapaxes_ swapdims swapdims_ t t_ numpy_T mT adjoint",
        _moving(movement.transpose),
    ),
    **_rows("cat concat concatenate", Operation(movement.concat, linear=True, zero="all")),
    **_rows("stack", Operation(movement.stack, linear=True, zero="all")),
    **_rows("chunk split split_with_sizes", _moving(movement.chunk)),
    **_rows("slice", _moving(movement.slice_)),
    **_rows("select unbind", _moving(indexing.select)),
    **_rows("index", _moving(indexing.index)),
    **_rows("roll", _moving(partial(indexing.reorder, dims_at=2, name="dims"))),
    **_rows("flip", _moving(partial(indexing.reorder, name="dims"))),
    **_rows("index_select", Operation(indexing.index_select)),
    **_rows("cumsum", Operation(indexing.reorder)),
    **_rows("index_put index_put_", Operation(indexing.index_put)),
    **_rows("sort argsort", Operation(indexing.ranked)),
    **_rows("argmax argmin", Operation(partial(indexing.ranked, default=None))),
    **_rows("topk kthvalue", Operation(partial(indexing.ranked, dims_at=2))),
    **_rows("gather", Operation(indexing.gather)),
    **_rows("scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_", Operation(indexing.scatter)),
    **_rows("index_add index_add_ index_copy index_copy_", Operation(indexing.scatter)),
    **_rows("im2col", _moving(movement.im2col)),
    **_rows("col2im", Operation(movement.col2im)),
    **_rows("unfold", _moving(movement.unfold)),
    **_rows("constant_pad_nd", _moving(movement.pad)),
    **_rows("unsqueeze unsqueeze_", _moving(movement.unsqueeze)),
    **_rows("squeeze squeeze_", _moving(movement.squeeze)),
    **_rows("expand", _moving(movement.expand)),
    **_rows("repeat", _moving(movement.repeat)),
    **_rows("set_", Operation(movement.emptied)),
    **_rows("glu", Operation(movement.glu)),
    **_rows("channel_shuffle", Operation(movement.channel_shuffle)),
    **_rows("pixel_shuffle", Operation(movement.pixel_shuffle, moves=True, zero="first")),
    **_rows("pixel_unshuffle", Operation(movement.pixel_unshuffle, moves=True, zero="first")),
    **_rows("contiguous clone alias to _to_copy type_as", replace(_SAME, moves=True, zero="first")),
    **_rows("detach detach_ lift lift_fresh", replace(_SAME, moves=True, zero="first", blank=True)),
    **_rows("requires_grad_", Operation(elementwise.same)),
    # chance
    **_rows("dropout dropout_ feature_dropout feature_dropout_", _DROPOUT),
    **_rows("native_dropout", replace(_DROPOUT, without_chance=_native_dropout)),
    **_rows("alpha_dropout alpha_dropout_ feature_alpha_dropout feature_alpha_dropout_", _ALPHA_DROPOUT),
    **_rows("bernoulli_", Operation(elementwise.same, without_chance=_bernoulli_)),
    **_rows("bernoulli", Operation(elementwise.like, without_chance=_bernoulli)),
    **_rows("rand_like randn_like", replace(_LIKE, blank=True)),
    **_rows("rand randn randint randint_like randperm", replace(UNKNOWN, blank=True)),
    # constants
    **_rows("zeros new_zeros", replace(_FACTORY, zero="always")),
    **_rows("ones full new_ones new_full", _FACTORY),
    **_rows("empty", replace(_FACTORY, blank=True)),
    **_rows("new_empty", replace(_FACTORY, linear=False, blank=True)),
    **_rows("arange linspace logspace eye tril_indices triu_indices", Operation(elementwise.counted)),
    **_rows("scalar_tensor", replace(_FACTORY, linear=False)),
    **_rows("zeros_like", replace(_LIKE, linear=True, zero="always")),
    **_rows("ones_like", replace(_LIKE, linear=True)),
    **_rows("full_like", _LIKE),
    **_rows("empty_like new_empty_strided", replace(_LIKE, blank=True)),
    **_rows("zero_ fill_", Operation(elementwise.same)),
    **_rows("copy_", Operation(elementwise.pointwise, linear=True)),
    # arithmetic
    **_rows("add add_", _SUM),
    **_rows("sub sub_", replace(_SUM, signs=(1, -1))),
    **_rows("rsub", Operation(elementwise.pointwise, linear=True)),
    **_rows("mul", _PRODUCT),
    **_rows("mul_", replace(_PRODUCT, rule=elementwise.pointwise)),
    **_rows("div", _QUOTIENT),
    **_rows("div_", replace(_QUOTIENT, rule=elementwise.pointwise)),
    **_rows("neg", Operation(elementwise.pointwise, linear=True, zero="first")),
    **_rows("masked_fill masked_fill_ where", POINTWISE),
    # activations
    **_rows("relu relu_", Operation(elementwise.pointwise, idempotent=nn.ReLU, homogeneous=True)),
    **_rows("relu6 relu6_", Operation(elementwise.pointwise, idempotent=nn.ReLU6)),
    **_rows("abs abs_", Operation(elementwise.pointwise, idempotent=Abs, homogeneous=True)),
    **_rows(
        "hardtanh hardtanh_",
        Operation(
            elementwise.pointwise,
            idempotent=nn.Hardtanh,
            numbers=(("min_val", -1.0), ("max_val", 1.0)),
            reads_as=lambda low, high: ("relu6",) if (low, high) == (0, 6) else None,
        ),
    ),
    **_rows(
        "clamp",
        Operation(
            elementwise.pointwise,
            idempotent=Clamp,
            numbers=(("min", None), ("max", None)),
            reads_as=lambda low, high: ("relu",) if low == 0 and high is None else None,
        ),
    ),
    **_rows(
        "clamp_min",
        Operation(
            elementwise.pointwise,
            idempotent=nn.ReLU,  # as the first lineages write relu
            numbers=(("min", None),),
            reads_as=lambda low: ("relu",) if low == 0 else ("clamp", low, None),
        ),
    ),
    **_rows(
        "clamp_max",
        Operation(
            elementwise.pointwise,
            idempotent=Clamp,
            numbers=(("max", None),),
            reads_as=lambda high: ("clamp", None, high),  # so that its only number is not taken for the lower bound
        ),
    ),
    **_rows(
        "threshold threshold_",
        Operation(
            elementwise.pointwise,
            idempotent=nn.Threshold,
            numbers=(("threshold", None), ("value", None)),
            reads_as=lambda threshold, value: ("relu",) if threshold == value == 0 else None,
            jumps=True,
        ),
    ),
    **_rows(
        "hardshrink",
        Operation(elementwise.pointwise, idempotent=nn.Hardshrink, numbers=(("lambd", 0.5),), jumps=True),
    ),
    **_rows("gelu gelu_ silu silu_ tanh tanh_ mish mish_", _SMOOTH),
    **_rows("hardswish hardswish_ leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_", _SMOOTH),
    **_rows("prelu", Operation(elementwise.prelu, zero="first")),
    **_rows("hardsigmoid softplus log_sigmoid", POINTWISE),
    **_rows("rrelu rrelu_", replace(_SMOOTH, without_chance=_rrelu)),
}

OPERATIONS = Table(ROWS, elementwise=POINTWISE, unknown=UNKNOWN)
"""The table that every room reads."""


def register(operation: Any, row: Operation | str) -> None:
    """Tell growth what it should know of an operation of your own, for example a ``torch.library.custom_op``.

    Args:
        operation: the operation (``torch.ops.my_library.scale``) or its name, ``"my_library::scale"``.
        row: what is known of it: an `Operation`, or the name of one that it is like in every respect (``"silu"``).
            An operation that was registered before gets the new row.

    Raises:
        GrowthError: the name is not of the form ``library::name``, or there is no operation that it could be like.

    >>> register("my_library::swish", "silu")
    >>> OPERATIONS.rows["my_library::swish"] is OPERATIONS.rows["silu"]
    True
    """
    name = operation if isinstance(operation, str) else _name_of(operation)
    library, _, short = name.partition("::")
    if not (library.isidentifier() and short.isidentifier()) or library == "aten":
        raise GrowthError(f"'{name}' is no operation of a library of yours: expected 'my_library::name'")
    if isinstance(row, str):
        if row not in OPERATIONS.rows:
            raise GrowthError(f"growth knows no operation '{row}'{suggest(row, OPERATIONS.rows)}")
        row = OPERATIONS.rows[row]
    if not isinstance(row, Operation):
        raise GrowthError(f"the row of '{name}' is of type {type(row).__name__}: expected an Operation or a name")
    row.check(name)
    OPERATIONS.rows[name] = row


def _name_of(operation: Any) -> str:
    overload = getattr(operation, "_opoverload", operation)  # of a torch.library.custom_op
    overload = getattr(overload, "default", overload)
    if not hasattr(overload, "overloadpacket"):
        raise GrowthError(f"{operation!r} is no operation: expected torch.ops.my_library.name, or 'my_library::name'")
    return row_name(overload)
