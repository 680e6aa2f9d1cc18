"""Where an identity layer fits: (conv | linear) -> [norm] -> f, with f idempotent (paper section 2.4)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.prove import prepared
from n2n_cli.growth.record import Op, Recording, record
from n2n_cli.growth.rules import rule_for

# f(f(v)) == f(v) for all v; the module that is put before the identity layer
IDEMPOTENT: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.ReLU6,  # only with ReLU6's bounds, see _activation
    "clamp_min": nn.ReLU,
}
WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear")


@dataclass(frozen=True)
class Site:
    """A place behind ``module`` (the norm, or the layer itself) and before its activation.

    ``layer`` is the weighted layer's path; ``kernel`` its kernel size (empty for linear); ``channels`` its units.
    ``refusal`` tells why no identity layer fits.
    """

    layer: str
    module: str
    activation: str
    channels: int
    kernel: tuple[int, ...]
    depthwise: bool
    norm: str | None
    refusal: str | None = None
    follows: str | None = None  # the weighted layer whose activation feeds this one directly

    def vertical_horizontal(self, other: Site | None) -> bool:
        """Whether ``other`` (n x 1) and this layer (1 x n) are a vertical-horizontal pair."""
        if other is None or len(self.kernel) != 2 or len(other.kernel) != 2:
            return False
        n = other.kernel[0]
        return n > 1 and other.kernel == (n, 1) and self.kernel == (1, n)


def find_sites(model: nn.Module, example_input: Any) -> list[Site]:
    """Every weighted layer in the order of the forward pass, with what follows it."""
    recording = record(model, prepared(model, example_input), lambda f: rule_for(f) is not None, training=True)
    return _sites(model, recording)


def _base(op: Op) -> str:
    return op.name.removesuffix("_")


def _sites(model: nn.Module, recording: Recording) -> list[Site]:
    modules = dict(model.named_modules())
    ops = [op for op in recording.ops if not _bookkeeping(op, recording)]
    calls = Counter((op.path, _base(op)) for op in ops)
    sites: list[Site] = []
    produced: dict[int, str] = {}  # tensor that an activation made -> the layer before it
    for at, op in enumerate(ops):
        if _base(op) not in WEIGHTED or id(op.args[1]) not in recording.tensors:
            continue
        module = modules[op.path]
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            continue
        out, place, norm, at_now = op.outputs[0], op.path, None, at
        nxt = _only_reader(ops, at, out)
        if nxt is not None and _base(ops[nxt]) in ("batch_norm", "group_norm", "layer_norm"):
            norm_module = modules[ops[nxt].path]
            norm, place, out, at_now = type(norm_module).__name__, ops[nxt].path, ops[nxt].outputs[0], nxt
            nxt = _only_reader(ops, nxt, out)
        refusal, activation = None, "nothing"
        if nxt is None:
            refusal = "its output is read by more than one operation, or by none"
        else:
            activation = _activation(ops[nxt])
            if activation not in IDEMPOTENT:
                refusal = f"it feeds {activation}, and an identity layer needs an activation f with f(f(v)) = f(v)"
            produced[id(ops[nxt].outputs[0])] = op.path
        if any(calls[(path, _base(o))] > 1 for path, o in ((op.path, op), (place, ops[at_now]))):
            refusal = "it is called more than once"
        kernel = tuple(module.kernel_size) if not isinstance(module, nn.Linear) else ()
        depthwise = not isinstance(module, nn.Linear) and module.groups > 1 and module.groups == module.out_channels
        channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        follows = produced.get(id(op.args[0]))
        sites.append(Site(op.path, place, activation, channels, kernel, depthwise, norm, refusal, follows))
    return sites


def _bookkeeping(op: Op, recording: Recording) -> bool:
    """Counters of batch norm: operations on buffers without axes."""
    return (
        bool(op.args)
        and isinstance(op.args[0], Tensor)
        and op.args[0].ndim == 0
        and id(op.args[0]) in recording.tensors
    )


def _only_reader(ops: list[Op], at: int, tensor: Tensor) -> int | None:
    """The one operation that reads ``tensor``; after an in-place activation later readers see its result."""
    readers = [i for i in range(at + 1, len(ops)) if any(t is tensor for t in _tensors(ops[i]))]
    if not readers:
        return None
    inplace = ops[readers[0]].outputs and ops[readers[0]].outputs[0] is tensor
    return readers[0] if len(readers) == 1 or inplace else None


def _tensors(op: Op) -> list[Tensor]:
    found: list[Tensor] = []
    for value in op.args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(v for v in value if isinstance(v, Tensor))
    return found


def _activation(op: Op) -> str:
    name = _base(op)
    if name == "hardtanh":
        return "relu6" if tuple(op.args[1:3]) == (0, 6) else f"hardtanh{tuple(op.args[1:3])}"
    if name in ("clamp_min", "threshold") and not all(float(a) == 0 for a in op.args[1:]):
        return name + str(tuple(op.args[1:]))
    return "clamp_min" if name == "threshold" else name


def make_identity(site: Site, kernel: tuple[int, ...], norm: nn.Module | None) -> nn.Sequential:
    """activation, identity layer, and a norm like the one at the site (to be calibrated)."""
    layers: list[nn.Module] = [IDEMPOTENT[site.activation]()]
    if kernel:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        padding = tuple(k // 2 for k in kernel)
        groups = site.channels if site.depthwise else 1
        layers.append(
            kind(site.channels, site.channels, kernel, padding=padding, groups=groups, bias=norm is None)  # type: ignore[arg-type]
        )
    else:
        layers.append(nn.Linear(site.channels, site.channels, bias=norm is None))
    if norm is not None:
        layers.append(norm)
    return nn.Sequential(*layers)


@torch.no_grad()
def set_identity(layer: nn.Module) -> None:
    """Weights of the identity: one at the kernel's centre from channel c to channel c, bias zero.

    Raises:
        ValueError: the layer cannot be an identity (its shape, stride or padding forbids it).
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        if layer.in_features != layer.out_features:
            raise ValueError(f"it maps {layer.in_features} to {layer.out_features} features")
        weight.copy_(torch.eye(layer.in_features))
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.in_channels != layer.out_channels:
            raise ValueError(f"it maps {layer.in_channels} to {layer.out_channels} channels")
        sizes = [(int(k), int(d)) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        paddings = [0] * len(sizes) if isinstance(layer.padding, str) else [int(p) for p in layer.padding]
        centred = layer.padding == "same" or all(
            2 * p == d * (k - 1) and k % 2 for p, (k, d) in zip(paddings, sizes, strict=True)
        )
        if any(s != 1 for s in layer.stride) or not centred:
            raise ValueError("it is strided, or its padding does not keep the size")
        weight.zero_()
        inner = layer.in_channels // layer.groups
        channel = torch.arange(layer.out_channels)
        flat = weight.view(layer.out_channels, inner, -1)  # every axis is odd, so the middle is the centre
        flat[channel, channel % inner, flat.shape[2] // 2] = 1.0
    else:
        raise ValueError(f"{type(layer).__name__} has no identity weights")
    if layer.bias is not None:
        layer.bias.zero_()
