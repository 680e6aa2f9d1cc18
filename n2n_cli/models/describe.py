"""Numbers about a network: parameters, multiply-accumulates (MACs) and the table of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from n2n_cli.errors import N2NError


@dataclass(frozen=True)
class Layer:
    """A module that holds parameters of its own, as it ran in one forward pass of a single image."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    """``[out, in, kH, kW]`` of a convolution, ``[out, in]`` of a linear layer; () without a weight."""
    output_shape: tuple[int, ...]
    """``[1, channels, H, W]``; () for a layer that did not run, as auxiliary classifiers in eval mode."""
    parameters: int
    macs: int


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, shared ones once. Buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image ``[1, 3, image_size, image_size]`` in eval mode.

    Counts what PyTorch's `FlopCounterMode` counts: convolutions, matrix products, attention. The model is
    copied to the meta device, so nothing is computed and ``model`` keeps its mode, buffers and hooks.
    Raises `N2NError` where the model does not take images of that size.
    """
    return _measured(model, lambda copied: _run(copied, image_size) // 2)


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """The modules with parameters of their own, in the order of `nn.Module.named_modules`.

    A layer called several times has the sum of its MACs and its first output; a parameter shared by two
    layers counts for the first. MACs are a layer's own: what a layer inside it does is that layer's.
    """
    return _measured(model, lambda copied: _layers(copied, image_size))


def _layers(meta: nn.Module, image_size: int) -> list[Layer]:
    named = [(name, module) for name, module in meta.named_modules() if any(True for _ in module.parameters(False))]
    counter = FlopCounterMode(display=False)
    flops: dict[nn.Module, int] = dict.fromkeys((module for _, module in named), 0)
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    running: list[list[int]] = []  # a layer that runs: [flops when it began, flops of the layers inside it]

    def before(module: nn.Module, args: Any) -> None:
        running.append([counter.get_total_flops(), 0])

    def after(module: nn.Module, args: Any, output: Any) -> None:
        began, inside = running.pop()
        total = counter.get_total_flops() - began
        flops[module] += total - inside
        if running:
            running[-1][1] += total
        shapes.setdefault(module, _shape(output))

    for _, module in named:
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
    _run(meta, image_size, counter)
    seen: set[Tensor] = set()
    rows = []
    for name, module in named:
        own = [parameter for parameter in module.parameters(recurse=False) if parameter not in seen]
        seen.update(own)
        weight = getattr(module, "weight", None)
        rows.append(
            Layer(
                name=name or "(model)",
                kind=type(module).__name__,
                weight_shape=tuple(weight.shape) if isinstance(weight, Tensor) else (),
                output_shape=shapes.get(module, ()),
                parameters=sum(parameter.numel() for parameter in own),
                macs=flops[module] // 2,
            )
        )
    return rows


def _measured(model: nn.Module, measure: Callable[[nn.Module], Any]) -> Any:
    """``measure`` of a copy without values, or of one with them where ``forward`` needs values (as `Tensor.item`)."""
    try:
        return measure(_on_meta(model))
    except N2NError:
        return measure(copy.deepcopy(model).eval())


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors have shapes but no values: even a large model costs no memory."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(model, memo).eval()


def _run(model: nn.Module, image_size: int, counter: FlopCounterMode | None = None) -> int:
    counter = counter or FlopCounterMode(display=False)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    device = next((p.device for p in model.parameters()), "cpu")
    image = torch.zeros(1, 3, image_size, image_size, device=device, dtype=dtype)
    try:
        with torch.no_grad(), counter:
            model(image)
    except Exception as error:  # code of the user's, too
        told = "" if isinstance(error, RuntimeError | ValueError | AssertionError) else f"{type(error).__name__}: "
        reason = told + " ".join(str(error).split())
        kind = type(model).__name__
        raise N2NError(f"{kind} does not take images of {image_size} px: {reason}") from error
    return counter.get_total_flops()


def _shape(output: Any) -> tuple[int, ...]:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, tuple | list) and output:
        return _shape(output[0])
    return ()
