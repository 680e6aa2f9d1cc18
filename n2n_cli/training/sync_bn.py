"""Batch norm over the global batch, so that N ranks compute what one rank does, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from n2n_cli.errors import N2NError

_PLAIN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


class _SyncBatchNorm(torch.autograd.Function):
    """Normalise ``[N, C, ...]`` by mean and variance over all ranks' images.

    PyTorch's own refuses CPU tensors. One all-gather forward (mean, squared deviations and count of every
    rank, combined as Chan et al. do: no cancellation) and one backward. The gradients of weight and bias stay
    local: data parallelism averages them with all others.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        # As wide as PyTorch's own sums: bf16 is summed in fp32.
        wide = x if x.dtype == torch.float64 else x.float()
        local_mean, local_var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        count = local_mean.new_full((1,), x.numel() // x.shape[1])
        stats, c = _gather(torch.cat([local_mean, local_var * count, count])), x.shape[1]
        means, squares, counts = stats[:, :c], stats[:, c : 2 * c], stats[:, 2 * c :]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / total
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        out = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        wide, dy = x.to(mean.dtype), grads[0].to(mean.dtype)
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(  # this rank's sums
            dy, wide, None, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        mean_dy, mean_dy_xhat = (_gather(torch.cat([grad_bias, grad_weight])).sum(0) / total).chunk(2)
        invstd = torch.rsqrt(var + ctx.eps)
        scale = invstd if weight is None else invstd * weight
        # dx = scale * (dy - mean_dy - xhat * mean_dy_xhat), and what the means add is itself a batch norm of x
        dx = F.batch_norm(wide, mean, var, -mean_dy_xhat * scale, -mean_dy * scale, training=False, eps=ctx.eps)
        dx.addcmul_(dy, scale.view([1, -1] + [1] * (x.ndim - 2)))
        affine = weight is not None
        return dx.to(x.dtype), grad_weight if affine else None, grad_bias if affine else None, None


def _gather(mine: torch.Tensor) -> torch.Tensor:
    """``[ranks, n]`` from every rank's ``[n]``. With a few ranks gloo gathers faster than it reduces."""
    every = mine.new_empty(dist.get_world_size(), len(mine))
    dist.all_gather(list(every), mine)  # all_gather_into_tensor warns on PyTorch 2.14
    return every


def _forward(bn: _BatchNorm, input: torch.Tensor) -> torch.Tensor:
    """``_BatchNorm.forward``, its argument's name included, with the statistics of all ranks."""
    if not bn.training:  # nothing is exchanged: ranks evaluate different numbers of batches
        return type(bn).forward(bn, input)
    x = input
    track = bn.track_running_stats
    momentum = 0.0 if bn.momentum is None else bn.momentum
    if track and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:  # a cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    if x.is_cuda:
        running = (bn.running_mean, bn.running_var) if track else (None, None)
        group = dist.group.WORLD
        size = dist.get_world_size()
        return TorchSyncBatchNorm.apply(x, bn.weight, bn.bias, *running, bn.eps, momentum, group, size)
    out, mean, var, total = _SyncBatchNorm.apply(x, bn.weight, bn.bias, bn.eps)
    if track and bn.running_mean is not None and bn.running_var is not None:
        with torch.no_grad():
            bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), momentum)
            bn.running_var.lerp_((var * total / (total - 1)).to(bn.running_var.dtype), momentum)
    return out


def check_synchronised(model: nn.Module) -> None:
    """Whether `synchronised` can do with the batch norms of ``model``.

    Raises:
        N2NError: one is of a class with a ``forward`` of its own (timm's BatchNormAct2d has an activation in it), of
            which only the batch norm would be left.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and (type(layer).forward not in _PLAIN or "forward" in vars(layer)):
            raise N2NError(
                f"training.sync_bn: {name!r} ({type(layer).__name__}) computes its own batch norm; "
                "take training.sync_bn=false"
            )


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Inside: every batch norm of ``model`` uses global statistics in train mode.

    Only each instance's ``forward`` is replaced, and given back at the end: classes, parameters and
    state-dict names are never touched, so nothing of this can be saved. Raises N2NError: see `check_synchronised`.
    """
    check_synchronised(model)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer in layers:
        layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
