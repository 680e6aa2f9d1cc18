"""The identity layer, the activation in front of it, and the batch norm behind it (paper section 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.prove import outputs, prepared

BatchNorm = nn.modules.batchnorm._BatchNorm
Activation = tuple[Any, ...]  # a name and its numbers, for example ("hardtanh", -1, 1)


class Clamp(nn.Module):
    """min(max(v, low), high); None is no bound."""

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def extra_repr(self) -> str:
        return f"{self.low}, {self.high}"


class Abs(nn.Module):
    """|v|."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Maxout(nn.Module):
    """The largest of ``pieces`` values a unit: axis ``dim`` becomes ``1 / pieces`` as long.

    ``units_first``: a unit's pieces are neighbours (channel = unit * pieces + piece); else piece * units + unit.
    """

    def __init__(self, pieces: int, dim: int, units_first: bool = True) -> None:
        super().__init__()
        self.pieces, self.dim, self.units_first = pieces, dim, units_first

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, self.pieces) if self.units_first else (self.pieces, -1)
        dim = self.dim % x.ndim
        return x.unflatten(dim, shape).amax(dim + 1 if self.units_first else dim)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}, dim={self.dim}, units_first={self.units_first}"


# f(f(v)) == f(v) for every v
IDEMPOTENT: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "clamp_min": nn.ReLU,  # as lineages of before write relu
    "hardtanh": nn.Hardtanh,
    "clamp": Clamp,
    "abs": Abs,
    "threshold": nn.Threshold,
    "hardshrink": nn.Hardshrink,
    "maxout": Maxout,
}


def plain(activation: Activation) -> Any:
    """As a recipe holds it: the name, or a list of the name and its numbers."""
    return list(activation) if len(activation) > 1 else activation[0]


def activation_of(saved: Any) -> Activation:
    """The inverse of ``plain``."""
    return (saved,) if isinstance(saved, str) else tuple(saved)


def make_identity(
    channels: int, kernel: Sequence[int], groups: int, activation: Activation, norm: nn.Module | None
) -> list[nn.Module]:
    """Activation, identity layer (its weights are set by ``set_identity``), and the norm (to be calibrated).

    ``channels`` enter the activation and leave the layer; ``kernel`` is empty for a linear layer.
    """
    layers: list[nn.Module] = [IDEMPOTENT[activation[0]](*activation[1:])]
    inner = channels // int(activation[1]) if activation[0] == "maxout" else channels
    if kernel:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        padding = tuple(k // 2 for k in kernel)
        layers.append(kind(inner, channels, tuple(kernel), padding=padding, groups=groups, bias=norm is None))  # type: ignore[arg-type]
    else:
        layers.append(nn.Linear(inner, channels, bias=norm is None))
    return [*layers, norm] if norm is not None else layers


def columns(activation: Activation, channels: int) -> Tensor | None:
    """For maxout the unit that each of ``channels`` outputs copies (its replicated columns); else None."""
    if activation[0] != "maxout":
        return None
    pieces, units_first = int(activation[1]), bool(activation[3])
    units = torch.arange(channels // pieces)
    return units.repeat_interleave(pieces) if units_first else units.repeat(pieces)


@torch.no_grad()
def set_identity(layer: nn.Module, source: Tensor | None = None) -> None:
    """Weights of the identity: one at the kernel's centre from channel c to channel c, bias zero.

    ``source[c]`` is the input channel that output channel c copies; None: its own.

    Raises:
        ValueError: the layer cannot be an identity (its shape, stride or padding forbids it).
    """
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if isinstance(layer, nn.Linear):
        inputs, outputs, what, groups = layer.in_features, layer.out_features, "features", 1
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        inputs, outputs, what, groups = layer.in_channels, layer.out_channels, "channels", layer.groups
        sizes = [(int(k), int(d)) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        paddings = [0] * len(sizes) if isinstance(layer.padding, str) else [int(p) for p in layer.padding]
        centred = layer.padding == "same" or all(
            2 * p == d * (k - 1) for p, (k, d) in zip(paddings, sizes, strict=True)
        )
        if any(s != 1 for s in layer.stride) or not centred or not all(k % 2 for k, _ in sizes):
            raise ValueError("it is strided, or its padding does not keep the size")
    else:
        raise ValueError(f"{type(layer).__name__} has no identity weights")
    if source is None and inputs != outputs:
        raise ValueError(f"it maps {inputs} to {outputs} {what}")
    if not isinstance(weight, nn.Parameter):
        raise ValueError("its weight is computed from other tensors")
    flat = torch.zeros_like(weight, memory_format=torch.contiguous_format).view(outputs, inputs // groups, -1)
    channel = torch.arange(outputs)  # every kernel axis is odd, so the middle is the centre
    flat[channel, (channel if source is None else source) % (inputs // groups), flat.shape[2] // 2] = 1.0
    weight.copy_(flat.view(weight.shape))
    if bias is not None:
        bias.zero_()


@torch.no_grad()
def identify(student: nn.Module, layers: Sequence[str], sources: Mapping[str, Tensor], batches: Sequence[Any]) -> int:
    """Make new layers the identity (``sources``: see ``set_identity``); new batch norms undo the statistics they meet.

    Runs the student in train mode over the batches. Every new batch norm is set to undo the very batch that enters
    it before it runs, so that everything behind it sees the teacher's activations; at the end it gets the
    pooled biased statistics. Returns the number of channels that never vary.

    Raises:
        GrowthError: a layer cannot be an identity, or is not reached; names it.
    """
    if not layers:
        return 0
    modules = {name: student.get_submodule(name) for name in layers}
    for name, module in modules.items():
        if isinstance(module, BatchNorm):
            continue
        try:
            set_identity(module, sources.get(name))
        except ValueError as error:
            raise GrowthError(f"the new layer '{name}' cannot be an identity: {error}") from error
    moments: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    reached: set[str] = set()

    def undo(module: nn.Module, args: Any, name: str) -> None:
        reached.add(name)
        if isinstance(module, BatchNorm):
            x = args[0]
            over = [d for d in range(x.ndim) if d != 1]
            var, mean = torch.var_mean(x.double() if x.dtype != torch.float64 else x, dim=over, correction=0)
            moments[name].append((mean, var))
            _set_norm(module, name, mean, var)

    hooks = [
        module.register_forward_pre_hook(lambda m, a, name=name: undo(m, a, name)) for name, module in modules.items()
    ]
    try:
        for batch in batches:
            outputs(student, prepared(student, batch), training=True, clones=True)
    finally:
        for hook in hooks:
            hook.remove()
    dead = 0
    for name, module in modules.items():
        if name not in reached:
            raise GrowthError(f"the new layer '{name}' was not reached in the forward pass")
        if isinstance(module, BatchNorm):
            mean = torch.stack([mean for mean, _ in moments[name]]).mean(0)
            var = torch.stack([var for _, var in moments[name]]).mean(0)
            _set_norm(module, name, mean, var)
            dead += int((var <= 1e-12).sum())
    return dead


@torch.no_grad()
def _set_norm(norm: BatchNorm, name: str, mean: Tensor, var: Tensor) -> None:
    """weight = sqrt(var + eps), bias = mean, with the very tensors that are stored as running statistics."""
    if norm.weight is None or norm.bias is None:
        raise GrowthError(f"the new batch norm '{name}' has no scale and bias (affine=False): it cannot be undone")
    mean, var = mean.to(norm.weight.dtype), var.to(norm.weight.dtype)
    norm.weight.copy_(torch.sqrt(var + norm.eps))
    norm.bias.copy_(mean)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
