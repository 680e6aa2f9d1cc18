"""Batch norms computed inside the convolutions that they follow: what a network computes in eval mode, in less time."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of ``model`` that gives its outputs in eval mode, to rounding, with fewer operations.

    A batch norm goes into a convolution where it reads that one's output, nothing else does, and both are PyTorch's own
    and called once. What computes otherwise stays as it is.

    Args:
        model: in eval mode; it is not modified, and ``model`` itself is returned where nothing can be folded.
        images: an example ``[N, 3, H, W]`` that it takes; a few are enough.
    """
    pairs = _pairs(model, images)
    if not pairs:
        return model
    try:
        faster = copy.deepcopy(model)
    except Exception:  # it keeps what has no copy, such as an auxiliary loss with its graph
        return model
    for conv, norm in pairs:
        both: list[Any] = [faster.get_submodule(name) for name in (conv, norm)]
        _put(faster, conv, fuse_conv_bn_eval(*both))
        _put(faster, norm, nn.Identity())
    return faster if _agree(faster, model, images) else model


def _agree(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether they compute the same: code that reads a batch norm's own weights finds none in its place."""
    with torch.no_grad():
        try:
            ours = tree_leaves(one(images))
        except Exception:  # the network's own code may raise anything
            return False
        pairs = [(a, b) for a, b in zip(ours, tree_leaves(other(images)), strict=True) if isinstance(a, Tensor)]
        return all(torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-2 * b.abs().max().item()) for a, b in pairs)


class _Reads(TorchDispatchMode):
    """Counts the operations that read each storage, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.of.update(read)
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions, and of the batch norm that alone reads each of them."""
    calls: Counter[str] = Counter()
    made: dict[int, tuple[str, Tensor]] = {}  # id of an output -> its convolution; the output stays alive
    read: list[tuple[str, Tensor]] = []

    def convolved(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] += 1
            made[id(output)] = name, output
            reads.of[output.untyped_storage()._cdata] = 0  # one that is gone may have had its place

        return hook

    def normed(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] += 1
            read.append((name, (*args, *kwargs.values())[0]))

        return hook

    reads, hooks = _Reads(), []
    for name, module in model.named_modules():
        if _plain(module) and type(module) in CONVOLUTIONS:
            hooks.append(module.register_forward_hook(convolved(name)))
        elif _plain(module) and type(module) in NORMS and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(normed(name), with_kwargs=True))
    try:
        with torch.no_grad(), reads:  # no inference mode: see `evaluate`
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for norm, x in read:
        conv, output = made.get(id(x), ("", x))
        if conv and calls[conv] == calls[norm] == reads.of[output.untyped_storage()._cdata] == 1:
            found.append((conv, norm))
    return found


def _plain(module: nn.Module) -> bool:
    """Whether a module computes what its class does and nothing listens to it."""
    return not (module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
