"""The channel tables of the Inception families, as data. Edit a row here and nothing else has to change.

`inception_bn`: Ioffe & Szegedy 2015 (the values on which two public implementations agree; the paper prints
576 where its modules 4c and 4d give 608). `inception_rect`: the network of Net2Net, App. B, whose channel
table the paper does not give; ours meets its 25 layers on the shortest and 47 on the longest path.
The width multiplier scales every channel count of a *module*; stems are never scaled.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Conv(NamedTuple):
    """A convolution of a stem: ``kernel`` x ``kernel``, followed by batch norm and ReLU."""

    channels: int
    kernel: int
    stride: int = 1


class Pool(NamedTuple):
    """A 3x3 max pool of a stem."""

    stride: int = 2


class BNRow(NamedTuple):
    """One module of Inception-BN. 0 leaves a convolution out (1x1 branch, projection of the pool)."""

    name: str
    one: int
    reduce3: int
    conv3: int
    reduce33: int
    conv33: int
    pool: Literal["avg", "max"]
    project: int
    stride: int = 1


class RectRow(NamedTuple):
    """One module of the rectangular Inception: 1x1 `reduce`, then PAPER.md's branches a | b | c0, c."""

    name: str
    reduce: int
    pool: int
    pair: int
    deep_reduce: int
    deep_pair: int
    stride: int = 1


class Table(NamedTuple):
    """A network: a stem for each kind of input, and its modules from the input to the classifier."""

    stems: dict[str, tuple[Conv | Pool, ...]]
    modules: tuple[BNRow, ...] | tuple[RectRow, ...]


# 224 px -> 28 px; 32 px -> 32 px (the stem's three convolutions stay, its strides and pools go).
STEMS: dict[str, tuple[Conv | Pool, ...]] = {
    "imagenet": (Conv(64, 7, 2), Pool(), Conv(64, 1), Conv(192, 3), Pool()),
    "small": (Conv(64, 3), Conv(64, 1), Conv(192, 3)),
}
# The tiny members are for minutes on a CPU, so their small stem keeps some stride: 32 px -> 8 px.
TINY_STEMS: dict[str, tuple[Conv | Pool, ...]] = {
    "imagenet": (Conv(8, 7, 2), Pool(), Conv(8, 1), Conv(16, 3), Pool()),
    "small": (Conv(8, 3, 2), Conv(8, 1), Conv(16, 3), Pool()),
}

TABLES: dict[str, Table] = {
    "inception_bn": Table(
        STEMS,
        (
            BNRow("3a", 64, 64, 64, 64, 96, "avg", 32),
            BNRow("3b", 64, 64, 96, 64, 96, "avg", 64),
            BNRow("3c", 0, 128, 160, 64, 96, "max", 0, stride=2),
            BNRow("4a", 224, 64, 96, 96, 128, "avg", 128),
            BNRow("4b", 192, 96, 128, 96, 128, "avg", 128),
            BNRow("4c", 160, 128, 160, 128, 160, "avg", 128),
            BNRow("4d", 96, 128, 192, 160, 192, "avg", 128),
            BNRow("4e", 0, 128, 192, 192, 256, "max", 0, stride=2),
            BNRow("5a", 352, 192, 320, 160, 224, "avg", 128),
            BNRow("5b", 352, 192, 320, 192, 224, "max", 128),
        ),
    ),
    "inception_rect": Table(
        STEMS,
        (
            RectRow("3a", 128, 96, 64, 64, 96),
            RectRow("3b", 160, 128, 96, 64, 96),
            RectRow("3c", 192, 320, 160, 64, 96, stride=2),
            RectRow("4a", 288, 352, 96, 96, 128),
            RectRow("4b", 288, 320, 128, 96, 128),
            RectRow("4c", 320, 288, 160, 128, 160),
            RectRow("4d", 320, 224, 192, 160, 192),
            RectRow("4e", 320, 224, 192, 160, 192),
            RectRow("4f", 320, 608, 192, 192, 256, stride=2),
            RectRow("5a", 512, 480, 320, 160, 224),
            RectRow("5b", 512, 480, 320, 192, 224),
        ),
    ),
    "inception_bn_tiny": Table(
        TINY_STEMS,
        (
            BNRow("3a", 8, 8, 12, 8, 12, "avg", 8),
            BNRow("3b", 0, 12, 20, 8, 16, "max", 0, stride=2),
        ),
    ),
    "inception_rect_tiny": Table(
        TINY_STEMS,
        (
            RectRow("3a", 20, 12, 16, 12, 16),
            RectRow("3b", 24, 16, 20, 12, 20, stride=2),
        ),
    ),
}
