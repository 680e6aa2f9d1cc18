"""The identity layer, the activation in front of it, and the batch norm behind it (paper, section 2.4).

A layer that copies each channel, ``W[c, c] = 1`` at the kernel's centre, behind an activation that may be repeated,
``f(f(v)) = f(v)``. The batch norm behind it is undone by its scale ``sqrt(var + eps)`` and its bias ``mean``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.proof.gap import outputs
from n2n_cli.growth.trace.examples import prepared, that_runs

BatchNorm = nn.modules.batchnorm._BatchNorm
Activation = tuple[Any, ...]
"""A name and its numbers, for example ``("hardtanh", -1, 1)``: a row of the table of operations, or ``"maxout"``."""


class Maxout(nn.Module):
    """The largest of ``pieces`` values per unit: axis ``dim`` becomes ``1 / pieces`` as long.

    ``units_first``: the pieces of a unit are neighbours (channel = unit * pieces + piece); else all first pieces come
    first (channel = piece * units + unit).
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


NOTHING: Activation = ("nothing",)
"""Of a layer that is linear: no activation stands before it."""


def module_of(activation: Activation) -> type[nn.Module] | None:
    """The class of an idempotent activation, f(f(v)) = f(v), which is built from its numbers; None for any other.

    >>> module_of(("hardtanh", -1, 1)), module_of(("gelu",))
    (<class 'torch.nn.modules.activation.Hardtanh'>, None)
    """
    if activation[0] == "maxout":
        return Maxout
    row = OPERATIONS.rows.get(activation[0])
    return row.idempotent if row is not None else None


def plain(activation: Activation) -> Any:
    """An activation as a recipe holds it: the name, or a list of the name and its numbers.

    >>> plain(("relu",)), plain(("hardtanh", -1, 1))
    ('relu', ['hardtanh', -1, 1])
    """
    return list(activation) if len(activation) > 1 else activation[0]


def activation_of(saved: Any) -> Activation:
    """The inverse of `plain`."""
    return (saved,) if isinstance(saved, str) else tuple(saved)


def make_identity(
    channels: int, kernel: Sequence[int], groups: int, activation: Activation, norm: nn.Module | None
) -> list[nn.Module]:
    """The modules of one identity: activation, layer, and norm if there is one.

    Args:
        channels: what enters the activation and leaves the layer.
        kernel: the layer's kernel size, of odd numbers; empty for a linear layer.
        groups: the layer's groups, if it is a convolution.
        activation: one that `module_of` knows, or `NOTHING`.
        norm: the batch norm behind the layer, which has no bias then.

    Returns:
        list[nn.Module]: in the order they run. The layer's weights are random until `identify` sets them, and the norm
        is as it was given.

    Raises:
        GrowthError: the activation is none that is known to be idempotent.
    """
    repeated = module_of(activation)
    if repeated is None and activation != NOTHING:
        raise GrowthError(f"growth knows no activation '{activation[0]}' with f(f(v)) = f(v)")
    inner = channels // int(activation[1]) if activation[0] == "maxout" else channels
    layer: nn.Module
    if kernel:
        convolution: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        padding = tuple(k // 2 for k in kernel)
        layer = convolution(inner, channels, tuple(kernel), padding=padding, groups=groups, bias=norm is None)
    else:
        layer = nn.Linear(inner, channels, bias=norm is None)
    layers = [layer] if repeated is None else [repeated(*activation[1:]), layer]
    return [*layers, norm] if norm is not None else layers


def columns(activation: Activation, channels: int) -> Tensor | None:
    """For maxout the unit that each of ``channels`` outputs of the identity copies, ``[channels]``; else None.

    All pieces of a unit copy that unit, so that the largest of them is what it was.

    >>> columns(("maxout", 2, 1, True), 6)
    tensor([0, 0, 1, 1, 2, 2])
    """
    if activation[0] != "maxout":
        return None
    pieces, units_first = int(activation[1]), bool(activation[3])
    units = torch.arange(channels // pieces)
    return units.repeat_interleave(pieces) if units_first else units.repeat(pieces)


@torch.no_grad()
def set_identity(layer: nn.Module, source: Tensor | None = None) -> None:
    """Give a layer the weights of the identity: one at the kernel's centre from channel c to channel c, bias zero.

    Args:
        layer: a linear layer, or a convolution of any groups and dilation; it is changed in place.
        source: ``[outputs]``, the input channel that each output channel copies; None: its own.

    Raises:
        ValueError: the layer cannot be an identity (its shape, stride or padding forbids it).

    >>> layer = nn.Linear(2, 2)
    >>> set_identity(layer)
    >>> layer.weight.tolist(), layer.bias.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
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
    """Make new layers the identity, and let new batch norms undo the statistics that they meet.

    Runs the student in train mode over the batches. Every new batch norm is set to undo the very batch that enters
    it before it runs, so that everything behind it sees the teacher's activations. At the end it gets the mean over
    the batches of their means and of their biased variances.

    Args:
        student: the network that holds the new layers; these alone are changed, in place.
        layers: the paths of the new layers and batch norms.
        sources: for some of the layers, what `set_identity` takes as ``source``.
        batches: inputs of the student, as many samples each as batch norm shall see at once.

    Returns:
        int: how many channels of new batch norms never vary (their scale is ``sqrt(eps)``).

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
    met = _undone_as_met(student, modules, batches)
    dead = 0
    for name, module in modules.items():
        if name not in met:
            raise GrowthError(f"the new layer '{name}' was not reached in the forward pass")
        if isinstance(module, BatchNorm):
            mean, var = (torch.stack(moments).mean(0) for moments in zip(*met[name], strict=True))
            _undo(module, name, mean, var)
            dead += int((var <= 1e-12).sum())
    return dead


def _undone_as_met(
    student: nn.Module, modules: Mapping[str, nn.Module], batches: Sequence[Any]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Run the batches, each new batch norm set to undo what enters it; the modules reached, with (mean, var) a call."""
    met: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(module: nn.Module, args: Any, name: str) -> None:
        moments = met.setdefault(name, [])
        if isinstance(module, BatchNorm):
            x = args[0]
            over = [d for d in range(x.ndim) if d != 1]
            var, mean = torch.var_mean(x.double() if x.dtype != torch.float64 else x, dim=over, correction=0)
            moments.append((mean, var))
            _undo(module, name, mean, var)

    hooks = [
        module.register_forward_pre_hook(lambda m, a, name=name: watch(m, a, name)) for name, module in modules.items()
    ]
    try:
        for batch in batches:
            that_runs(lambda one: outputs(student, one, training=True, clones=True), prepared(student, batch))
    finally:
        for hook in hooks:
            hook.remove()
    return met


@torch.no_grad()
def _undo(norm: BatchNorm, name: str, mean: Tensor, var: Tensor) -> None:
    """weight = sqrt(var + eps), bias = mean, with the very tensors that are stored as running statistics."""
    if norm.weight is None or norm.bias is None:
        raise GrowthError(f"the new batch norm '{name}' has no scale and bias (affine=False): it cannot be undone")
    mean, var = mean.to(norm.weight.dtype), var.to(norm.weight.dtype)
    norm.weight.copy_(torch.sqrt(var + norm.eps))
    norm.bias.copy_(mean)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
