"""A network split over the ranks of a run by PyTorch's FSDP2: weights, gradients, optimizer state and average.

Every tensor of these is split along its first dimension; batch-norm statistics and other buffers are on every rank. A
part of the network (see `_divide`) is whole on a rank only while it computes, and its gradients until they are summed.
Checkpoints hold whole tensors, so a run goes on sharded or not, on as many ranks as there are then. Evaluation takes a
whole copy of the weights, as ranks may have other numbers of batches: each device must have room for one, and, for the
trial step before training, for its gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from n2n_cli.errors import N2NError
from n2n_cli.training.ranks import Ranks

PARTS = 64
"""No part that is gathered at once is made of less than this share of the parameters: each costs two collectives."""


def shard(model: nn.Module, ranks: Ranks, compress: bool = False) -> None:
    """Splits the parameters of ``model``, in place, and takes them and the buffers to the ranks' devices.

    Its parameters are DTensors from then on, other objects than before; its calls must be the same on every rank.

    Args:
        model: the same on every rank, wherever it lies.
        compress: send the gradients in bf16.

    Raises:
        N2NError: a parameter is a single number, which FSDP2 cannot split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, p in model.named_parameters():
        if p.ndim == 0:
            raise N2NError(f"launch.shard: the parameter {name} is a single number, which cannot be split")
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if compress else None)
    model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other

    def put(part: nn.Module) -> None:
        part.register_forward_hook(_own)
        fully_shard(part, mesh=mesh, mp_policy=policy)

    parameters = list(model.parameters())
    if len(parameters) == len(list(model.named_parameters(remove_duplicate=False))):  # no weight in two parts
        least = max(1, sum(p.numel() for p in parameters) // PARTS)
        for child in model.children():
            _divide(child, least, put, listed=isinstance(model, nn.Sequential))
    put(model)


def _own(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Copies of outputs that are views: FSDP2's hooks are lost where somebody computes on such a one in place."""
    return tree_map_only(Tensor, lambda t: t.clone() if t._is_view() else t, output)


def _divide(module: nn.Module, least: int, put: Callable[[nn.Module], None], listed: bool) -> int:
    """``put`` of every part of ``module``: the smallest modules of ``least`` parameters that are in no other part.

    Only modules that are called as such can gather their weights. So a part is no mere list of others, nothing inside
    PyTorch's attention, which reads the weights of its own layers, and a single layer only where it is ``listed``, an
    element of a sequence. Returns how many parameters are in no part.
    """
    children = [] if isinstance(module, nn.MultiheadAttention) else list(module.children())
    left = sum(p.numel() for p in module.parameters(recurse=not children))
    left += sum(_divide(child, least, put, isinstance(module, nn.Sequential)) for child in children)
    lists = isinstance(module, nn.Sequential) or type(module).forward is nn.Module.forward
    if left < least or lists or not (listed or any(module.children())):
        return left
    put(module)
    return 0


def local(tensor: Any) -> Any:
    """This rank's part of a tensor that is split, any other as it is; without gradients."""
    return tensor.to_local() if is_split(tensor) else tensor


def is_split(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, whose module takes long to import


def gathered(state: Any, keep: bool = True) -> Any:
    """``state`` (tensors and plain data in dicts) with whole tensors, on the CPU, in the place of split ones.

    All ranks must call it; those that do not ``keep`` the result get empty tensors in it.
    """
    if is_split(state):
        full = state.detach().full_tensor()
        return full.cpu() if keep else full.new_empty(0)
    if isinstance(state, dict):
        whole = copy.copy(state)  # a state dict has attributes
        whole.update((key, gathered(value, keep)) for key, value in state.items())
        return whole
    return state


def scattered(state: Any, like: Any) -> Any:
    """``state`` (a whole tensor, or a dict of them) split as the tensors of ``like`` are. Every rank has it whole."""
    if isinstance(like, dict):
        parts = copy.copy(state)
        parts.update((key, scattered(value, like[key])) for key, value in state.items() if key in like)
        return parts
    if not is_split(like) or state.shape != like.shape:
        return state
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(state.to(local(like).device), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # not a view of the whole
