"""The two Inception families of the Net2Net experiments, built from `tables.py` (PAPER.md section 5).

Every convolution is a `ConvBNReLU`: ``conv`` (no bias) -> ``bn`` -> ``relu``. A module is a sequence of an
optional 1x1 ``reduce``, ``branches`` (concatenated), and optional ``pairs``. Layer names do not depend on
``extra_pairs``: a deeper network has all the names of the shallower one, with the same shapes, and new ones
beside them, so that weights can be copied by name. A new layer always reads non-negative values (it stands
behind a ReLU, or a max pool of ReLUs) and is followed by a ReLU.

Choices where the papers are silent:

* batch norm: eps 1e-3 (the public Inception recipes' value), momentum 0.1 (in PyTorch's sense: the running
  value keeps 0.9)
* initialization: convolutions He-normal with fan_out, which keeps the scale of the *gradients* from layer to
  layer (the activations' is batch norm's care); batch norm 1 and 0; classifier normal of std 0.01, bias 0:
  the first predictions are near uniform
* the rectangular modules' pool is an average pool, a max pool where the stride is 2, as in Inception-BN
* average pools do not count the padding, so that the border is not darker than the rest
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.models.tables import TABLES, BNRow, Conv, RectRow, Table

BN_EPS = 1e-3
BN_MOMENTUM = 0.1
Row = TypeVar("Row", BNRow, RectRow)

N = 3  # the long side of a rectangular kernel


class ConvBNReLU(nn.Sequential):
    """conv -> bn -> relu, "same" padding for stride 1; weight ``[out, in, kH, kW]``."""

    def __init__(
        self, in_channels: int, channels: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)


class Branches(nn.ModuleDict):
    """All branches on the same input, concatenated over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.values()], dim=1)


class Inception(nn.Module):
    """stem -> inception -> pool -> dropout -> fc; input ``[N, 3, H, W]``, logits ``[N, num_classes]``."""

    def __init__(self, stem: nn.Module, inception: nn.Module, features: int, num_classes: int, dropout: float):
        super().__init__()
        self.stem = stem
        self.inception = inception
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        self.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.inception(self.stem(x)))
        return self.fc(self.dropout(torch.flatten(x, 1)))


def initialize(module: nn.Module) -> None:
    """The initialization that the module docstring describes; for ``model.apply(initialize)``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def inception(
    name: str,
    num_classes: int,
    width: float = 1.0,
    *,
    extra_pairs: int = 0,
    pairs_at: str = "branch",
    stem: str = "imagenet",
    dropout: float = 0.0,
) -> Inception:
    """The network ``name`` of `TABLES`, arguments as checked by `n2n_cli.models.build`.

    Raises `N2NError` where ``width`` leaves a convolution without channels.
    """
    table = TABLES[name]
    channels, stem_module = _stem(table, stem)
    modules = nn.Sequential()
    in_branch = extra_pairs if pairs_at == "branch" else 0
    for row in table.modules:
        if isinstance(row, BNRow):
            module, channels = _bn_module(_scaled(row, width, name), channels, in_branch)
        else:
            module, channels = _rect_module(_scaled(row, width, name), channels, in_branch)
        if pairs_at == "concat" and extra_pairs:
            module.add_module("pairs", _add_pairs(nn.Sequential(), channels, extra_pairs))
        modules.add_module(row.name, module)
    return Inception(stem_module, modules, channels, num_classes, dropout)


def _scaled(row: Row, width: float, network: str) -> Row:
    """The row with every channel count multiplied by ``width`` and rounded; what is absent stays absent."""
    values = list(row)
    for i, (field, value) in enumerate(row._asdict().items()):
        if isinstance(value, int) and value and field != "stride":
            scaled = values[i] = round(width * value)
            if scaled < 1:
                raise N2NError(f"model {network}: width {width:g} leaves {row.name}.{field} without channels")
    return type(row)._make(values)


def _stem(table: Table, kind: str) -> tuple[int, nn.Sequential]:
    layers, channels, convs, pools = nn.Sequential(), 3, 0, 0
    for part in table.stems[kind]:
        if isinstance(part, Conv):
            convs += 1
            conv = ConvBNReLU(channels, part.channels, (part.kernel,) * 2, (part.stride,) * 2)
            layers.add_module(f"conv{convs}", conv)
            channels = part.channels
        else:
            pools += 1
            layers.add_module(f"pool{pools}", nn.MaxPool2d(3, part.stride, padding=1))
    return channels, layers


def _bn_module(row: BNRow, channels: int, extra_pairs: int) -> tuple[nn.Sequential, int]:
    stride = (row.stride, row.stride)
    branches = Branches()
    if row.one:
        branches["1x1"] = ConvBNReLU(channels, row.one, (1, 1))
    single = nn.Sequential()
    single.add_module("reduce", ConvBNReLU(channels, row.reduce3, (1, 1)))
    single.add_module("conv1", ConvBNReLU(row.reduce3, row.conv3, (3, 3), stride))
    branches["3x3"] = _add_pairs(single, row.conv3, extra_pairs)
    double = nn.Sequential()
    double.add_module("reduce", ConvBNReLU(channels, row.reduce33, (1, 1)))
    double.add_module("conv1", ConvBNReLU(row.reduce33, row.conv33, (3, 3)))
    double.add_module("conv2", ConvBNReLU(row.conv33, row.conv33, (3, 3), stride))
    branches["double3x3"] = _add_pairs(double, row.conv33, extra_pairs)
    branches["pool"] = _pool_branch(row.pool, row.stride, channels, row.project)
    module = nn.Sequential()
    module.add_module("branches", branches)
    return module, row.one + row.conv3 + row.conv33 + (row.project or channels)


def _rect_module(row: RectRow, channels: int, extra_pairs: int) -> tuple[nn.Sequential, int]:
    pair, deep = nn.Sequential(), nn.Sequential()
    _add_pair(pair, "", row.reduce, row.pair, row.stride)
    deep.add_module("reduce", ConvBNReLU(row.reduce, row.deep_reduce, (1, 1)))
    _add_pair(deep, "", row.deep_reduce, row.deep_pair, row.stride)
    branches = Branches()
    branches["pool"] = _pool_branch("avg" if row.stride == 1 else "max", row.stride, row.reduce, row.pool)
    branches["pair"] = _add_pairs(pair, row.pair, extra_pairs)
    branches["deep"] = _add_pairs(deep, row.deep_pair, extra_pairs)
    module = nn.Sequential()
    module.add_module("reduce", ConvBNReLU(channels, row.reduce, (1, 1)))
    module.add_module("branches", branches)
    return module, row.pool + row.pair + row.deep_pair


def _pool_branch(kind: str, stride: int, channels: int, project: int) -> nn.Sequential:
    branch = nn.Sequential()
    if kind == "avg":
        branch.add_module("pool", nn.AvgPool2d(3, stride, padding=1, count_include_pad=False))
    else:
        branch.add_module("pool", nn.MaxPool2d(3, stride, padding=1))
    if project:
        branch.add_module("project", ConvBNReLU(channels, project, (1, 1)))
    return branch


def _add_pairs(layers: nn.Sequential, channels: int, extra_pairs: int) -> nn.Sequential:
    """``layers`` followed by ``extra_pairs`` vertical-horizontal pairs that keep the number of channels."""
    for i in range(1, extra_pairs + 1):
        _add_pair(layers, f"extra{i}_", channels, channels)
    return layers


def _add_pair(layers: nn.Sequential, prefix: str, in_channels: int, channels: int, stride: int = 1) -> None:
    layers.add_module(f"{prefix}vertical", ConvBNReLU(in_channels, channels, (N, 1), (stride, 1)))
    layers.add_module(f"{prefix}horizontal", ConvBNReLU(channels, channels, (1, N), (1, stride)))
