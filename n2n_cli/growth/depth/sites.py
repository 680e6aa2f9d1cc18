"""Where an identity layer fits: (conv | linear) -> [norm] -> f, with f(f(v)) = f(v) (paper, section 2.4).

One recorded pass shows what stands behind each layer of weights: at most one norm, dropout, and the activation. Nobody
else may read what is in between, since the new layers are put behind the norm, where the activation reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from n2n_cli.growth.depth.identity import NOTHING, Activation, module_of
from n2n_cli.growth.groups.infer import recorded
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.rules import movement
from n2n_cli.growth.groups.table import row_name
from n2n_cli.growth.trace.record import Op, Recording

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
IS_OUTPUT = "its output is an output of the network"
NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Site:
    """A place behind ``module`` (the norm, or the layer itself) and before its activation.

    ``layer``: the path of the layer of weights. ``channels``: what leaves ``module``. ``kernel``, ``groups``: those of
    an identity layer here; the kernel of a linear one is empty. ``norm``: the class of the norm, by name.
    ``refusal``: why no identity layer fits; None if one does. ``follows``: the layer of weights whose activation feeds
    this one directly. ``expansion``: a dense layer that only depthwise ones read; an identity behind it is depthwise,
    with their kernel.
    """

    layer: str
    module: str
    activation: Activation
    channels: int
    kernel: tuple[int, ...]
    groups: int
    norm: str | None
    refusal: str | None = None
    follows: str | None = None
    expansion: bool = False

    def vertical_horizontal(self, other: Site | None) -> bool:
        """Whether ``other`` (n x 1) and this layer (1 x n) are a vertical-horizontal pair."""
        if other is None or len(self.kernel) != 2 or len(other.kernel) != 2:
            return False
        n = other.kernel[0]
        return n > 1 and other.kernel == (n, 1) and self.kernel == (1, n)


def find_sites(model: nn.Module, example_input: Any, *, linear: bool = False) -> list[Site]:
    """Every layer of weights in the order of the forward pass, with what follows it.

    ``linear``: sites of layers without an activation, which fit behind any layer whose norm, if any, is a module.

    Raises:
        GrowthError: the model does not run on the example input; names the module.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> for site in find_sites(net, torch.randn(2, 3)):
    ...     print(site.layer, site.activation, site.refusal)
    0 ('relu',) None
    2 ('nothing',) its output is an output of the network
    """
    return _Finder(model, recorded(model, example_input), linear).sites()


class _Finder:
    """The operations of one recorded pass, and what reads what."""

    def __init__(self, model: nn.Module, recording: Recording, linear: bool) -> None:
        self.linear = linear
        self.modules = dict(model.named_modules())
        self.recording = recording
        self.ops = [op for op in recording.ops if not self._bookkeeping(op)]
        self.calls = Counter((op.path, _base(op)) for op in self.ops)

    def _bookkeeping(self, op: Op) -> bool:
        """Counters of batch norm: operations on buffers without axes."""
        first = op.args[0] if op.args else None
        return isinstance(first, Tensor) and first.ndim == 0 and id(first) in self.recording.tensors

    def sites(self) -> list[Site]:
        found: list[Site] = []
        produced: dict[int, str] = {}  # tensor that an activation made -> the layer before it
        for at, op in enumerate(self.ops):
            row = OPERATIONS.of(op)
            if row.weight is None or row.norm or id(op.arg(row.weight, "weight")) not in self.recording.tensors:
                continue
            if isinstance(self.modules[op.path], (nn.Linear, *CONVOLUTIONS)):
                site, end = self._site(at)
                found.append(replace(site, follows=produced.get(id(op.args[0]))))
                if end is not None:
                    produced[id(self.ops[end].outputs[0])] = op.path
        return found

    def _site(self, at: int) -> tuple[Site, int | None]:
        """The site of the layer that operation ``at`` computes, and the operation that ends its activation."""
        op, ops = self.ops[at], self.ops
        module = self.modules[op.path]
        place, norm, refusal, dropped = at, None, None, False
        unnormed: str | None = None
        nxt, why = self._reader(at)
        while nxt is not None and ((row := OPERATIONS.of(ops[nxt])).is_dropout or (norm is None and row.norm)):
            if row.norm:
                norm, place, dropped = self.modules[ops[nxt].path], nxt, False
                if not isinstance(norm, NORM_MODULES):
                    refusal = unnormed = f"its {_base(ops[nxt])} is not a module of its own"
            else:
                dropped = True
            nxt, why = self._reader(nxt)
        linear = isinstance(module, nn.Linear)
        channels = int(module.out_features if linear else module.out_channels)
        activation: Activation = NOTHING
        if nxt is None:
            refusal = refusal or why
        else:
            activation, nxt = self._activation(nxt, ops[place].outputs[0], linear)
            shown, row = _shown(activation), OPERATIONS.rows.get(activation[0], OPERATIONS.unknown)
            if module_of(activation) is None:
                refusal = refusal or (
                    f"it feeds {shown}, and an identity layer needs an activation f with f(f(v)) = f(v)"
                )
            elif dropped and not row.homogeneous:
                refusal = refusal or f"it feeds dropout and then {shown}, which does not pass dropout's scale"
            elif isinstance(norm, nn.modules.batchnorm._BatchNorm) and row.jumps:
                refusal = refusal or f"it feeds {shown}, which jumps, and undoing batch norm is exact up to rounding"
        if self.linear:
            activation, refusal = NOTHING, unnormed
        if any(self.calls[ops[i].path, _base(ops[i])] > 1 for i in (at, place)):
            refusal = "it is called more than once"
        kernel, groups, expansion = self._shape(module, activation, nxt)
        name = type(norm).__name__ if norm is not None else None
        site = Site(op.path, ops[place].path, activation, channels, kernel, groups, name, refusal, expansion=expansion)
        return site, nxt

    def _shape(self, module: nn.Module, activation: Activation, at: int | None) -> tuple[tuple[int, ...], int, bool]:
        """Kernel and groups of the identity, and whether depthwise layers alone read the activation ``at``."""
        if isinstance(module, nn.Linear):
            return (), 1, False
        assert isinstance(module, CONVOLUTIONS)
        channels, groups = module.out_channels, module.groups
        if activation[0] == "maxout":
            return tuple(module.kernel_size), 1, False
        if groups > 1 and groups == module.in_channels:
            return tuple(module.kernel_size), channels, False
        readers = [self.ops[i] for i in self._readers(at, self.ops[at].outputs[0])] if at is not None else []
        kernels = [_depthwise_kernel(op, channels) for op in readers]
        if kernels and kernels[0] and groups == 1 and channels > 1 and all(kernels):
            return kernels[0], channels, True
        return tuple(module.kernel_size), groups, False

    def _readers(self, at: int, tensor: Tensor) -> list[int]:
        """The operations after ``at`` that read ``tensor``, up to the first that overwrites it."""
        found = []
        for i in range(at + 1, len(self.ops)):
            if any(t is tensor for t in self.ops[i].tensors()):
                found.append(i)
                if self.ops[i].outputs and self.ops[i].outputs[0] is tensor:
                    break
        return found

    def _reader(self, at: int) -> tuple[int | None, str | None]:
        """The one operation that reads what operation ``at`` made, or None and why there is not one."""
        tensor = self.ops[at].outputs[0]
        readers = self._readers(at, tensor)
        overwritten = bool(readers) and self.ops[readers[-1]].outputs[:1] and self.ops[readers[-1]].outputs[0] is tensor
        if not overwritten and any(t is tensor for t in self.recording.outputs):
            return None, IS_OUTPUT
        if len(readers) == 1:
            return readers[0], None
        names = list(dict.fromkeys(_base(self.ops[i]) for i in readers))
        return None, f"its output is read {len(readers)} times, by {' and '.join(names)}" if names else (
            "nothing reads its output"
        )

    def _activation(self, at: int, x: Tensor, linear: bool) -> tuple[Activation, int]:
        """The activation that reads ``x`` at operation ``at``, with its numbers, and the operation that ends it."""
        op = self.ops[at]
        name, row = _base(op), OPERATIONS.of(op)
        if row.rule is movement.view and (found := self._maxout(at, x, x.ndim - 1 if linear else 1)):
            return found
        values = [op.arg(i, key, default) for i, (key, default) in enumerate(row.numbers, 1)]
        if any(isinstance(value, Tensor) for value in values):
            return (f"{name} with tensors for bounds",), at
        simpler = row.reads_as(*values) if row.reads_as is not None else None
        return simpler or (name, *values), at

    def _maxout(self, at: int, x: Tensor, channel: int) -> tuple[Activation, int] | None:
        """``view`` of the channels as (units, pieces) or (pieces, units), and the maximum over the pieces."""
        shape = self.ops[at].outputs[0].shape
        if len(shape) != x.ndim + 1 or shape[:channel] != x.shape[:channel]:
            return None
        nxt, _ = self._reader(at)
        if shape[channel + 2 :] != x.shape[channel + 1 :] or nxt is None:
            return None
        if not OPERATIONS.of(self.ops[nxt]).largest or len(self.ops[nxt].tensors()) > 1:
            return None
        dim = self.ops[nxt].arg(1, "dim")
        dims = [d % len(shape) for d in ([dim] if isinstance(dim, int) else dim or [])]
        if len(dims) != 1 or dims[0] not in (channel, channel + 1):
            return None
        axis = -1 if channel == x.ndim - 1 else channel
        return ("maxout", shape[dims[0]], axis, dims[0] == channel + 1), nxt


def _base(op: Op) -> str:
    """The operation's name in the table, without the mark of its in-place form."""
    return row_name(op.func).removesuffix("_")


def _depthwise_kernel(op: Op, channels: int) -> tuple[int, ...] | None:
    """The kernel size of a convolution of ``channels`` channels, each by filters of its own; None for all else."""
    row = OPERATIONS.of(op)
    if row.weight is None or row.norm or row.transposed:
        return None
    shape = tuple(op.arg(row.weight, "weight").shape)
    return shape[2:] if shape[1] == 1 and op.arg(6, "groups", 1) == channels else None


def _shown(activation: Activation) -> str:
    name, *numbers = activation
    return f"{name}({', '.join(map(str, numbers))})" if numbers else str(name)


def choose(found: Sequence[Site]) -> list[Site]:
    """The default sites: behind vertical-horizontal pairs; without any, behind every layer that allows it.

    Behind expansions only where nothing else is left: the depthwise layer that reads one has a place of its own.
    """
    by_layer = {site.layer: site for site in found}
    fits = [s for s in found if not s.refusal]
    pairs = [s for s in fits if s.vertical_horizontal(by_layer.get(s.follows or ""))]
    return pairs or [s for s in fits if not s.expansion] or fits
