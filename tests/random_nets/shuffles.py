"""Shuffles and cuts of channels."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import Block, image


@image
class Shuffle(Block):
    writings = ("view", "module", "stack", "unflatten", "reshape_permute", "index")

    def make(self, c: int, rng: random.Random) -> int:
        self.groups = rng.choice([2, 3])
        n = self.groups * rng.randint(1, 3)
        self.up = nn.Conv2d(c, n, 1)
        self.module = nn.ChannelShuffle(self.groups)
        self.down = nn.Conv2d(n, n, 3, padding=1, groups=rng.choice([1, self.groups, n]))
        self.register_buffer("order", torch.arange(n).view(self.groups, -1).t().flatten(), persistent=False)
        return n

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(x))
        n, c, h, w = x.size()
        g = self.groups
        if self.how == "view":
            x = x.view(n, g, c // g, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        elif self.how == "module":
            x = self.module(x)
        elif self.how == "stack":
            x = torch.stack(x.chunk(g, 1), dim=2).flatten(1, 2)
        elif self.how == "unflatten":
            x = x.unflatten(1, (g, -1)).swapaxes(1, 2).flatten(1, 2)
        elif self.how == "index":
            x = x[:, self.order]
        else:
            x = x.reshape(n, g, -1, h * w).permute(0, 2, 1, 3).reshape(n, c, h, w)
        return self.down(x)


@image
class ShuffleUnit(Block):
    """Half of the channels pass by; the halves are interleaved."""

    writings = ("chunk", "split", "slice", "narrow", "tensor_split")

    def make(self, c: int, rng: random.Random) -> int:
        self.half = rng.randint(2, 4)
        self.stem = nn.Conv2d(c, 2 * self.half, 1)
        self.body = nn.Sequential(nn.Conv2d(self.half, self.half, 3, padding=1, groups=self.half), nn.ReLU())
        return 2 * self.half

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            half = x.shape[1] // 2
            if self.how == "chunk":
                a, b = x.chunk(2, 1)
            elif self.how == "split":
                a, b = torch.split(x, self.half, dim=1)
            elif self.how == "slice":
                a, b = x[:, :half], x[:, half:]
            elif self.how == "tensor_split":
                a, b = x.tensor_split(2, dim=1)
            else:
                a, b = x.narrow(1, 0, half), x.narrow(1, half, half)
            x = torch.cat([a, self.body(b)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x


@image
class Split(Block):
    """Unequal parts, their sizes in a list, a tuple, an object, a dictionary, or written down."""

    writings = ("list", "tuple", "config", "dict", "literal", "slice", "shape", "ints")

    def make(self, c: int, rng: random.Random) -> int:
        sizes = [rng.randint(1, 4) for _ in range(3)] if self.how != "literal" else [2, 3, 1]
        self.sizes: Any = sizes
        if self.how == "tuple":
            self.sizes = tuple(sizes)
        elif self.how == "config":
            self.sizes = SimpleNamespace(parts=sizes)
        elif self.how == "dict":
            self.sizes = {"parts": sizes}
        elif self.how == "ints":
            self.first, self.second, self.third = sizes
            del self.sizes
        self.stem = nn.Conv2d(c, sum(sizes), 1)
        self.convs = nn.ModuleList(nn.Conv2d(n, n + 1, 1) for n in sizes)
        return sum(sizes) + 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.how == "literal":
            parts = torch.split(x, [2, 3, 1], 1)
        elif self.how == "slice":
            a, b = self.convs[0].in_channels, self.convs[1].in_channels
            parts = x[:, :a], x[:, a : a + b], x[:, a + b :]
        elif self.how == "shape":
            parts = x.split([conv.weight.shape[1] for conv in self.convs], dim=1)
        elif self.how == "ints":
            parts = x.split([self.first, self.second, self.third], dim=1)
        else:
            sizes = {"config": lambda: self.sizes.parts, "dict": lambda: self.sizes["parts"]}.get(self.how)
            parts = x.split_with_sizes(sizes() if sizes else self.sizes, 1)
        return torch.cat([torch.relu(conv(part)) for conv, part in zip(self.convs, parts, strict=True)], 1)


@image
class Res2Net(Block):
    def make(self, c: int, rng: random.Random) -> int:
        self.scale, self.width = rng.choice([2, 3]), rng.randint(1, 3)
        self.stem = nn.Conv2d(c, self.scale * self.width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(self.scale - 1))
        return self.scale * self.width

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), self.width, 1)
        y, outs = parts[0], [parts[0]]
        for conv, part in zip(self.convs, parts[1:], strict=True):
            y = torch.relu(conv(y + part))
            outs.append(y)
        return torch.cat(outs, 1)


@image
class PixelShuffle(Block):
    writings = ("module", "functional", "view", "unshuffle", "focus", "depth_to_space")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(1, 4)
        if self.how in {"unshuffle", "focus"}:
            self.conv = nn.Conv2d(4 * c, n, 1)
            return n
        self.conv = nn.Conv2d(c, 4 * n, 1)
        self.module = nn.PixelShuffle(2)
        return n

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "unshuffle":
            return F.interpolate(self.conv(F.pixel_unshuffle(x, 2)), scale_factor=2, mode="nearest")
        if self.how == "focus":
            parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
            return F.interpolate(self.conv(torch.cat(parts, 1)), size=x.shape[-2:], mode="bilinear")
        y = self.conv(x)
        n, c, h, w = y.shape
        if self.how == "module":
            y = self.module(y)
        elif self.how == "functional":
            y = F.pixel_shuffle(y, 2)
        elif self.how == "view":
            y = y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        else:
            y = y.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)
        return F.max_pool2d(y, 2)


@image
class Gated(Block):
    writings = ("glu", "chunk", "slice", "two", "view")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 5)
        self.conv, self.other = nn.Conv2d(c, 2 * n, 1), nn.Conv2d(c, n, 1)
        return n

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "glu":
            return F.glu(y, dim=1)
        if self.how == "chunk":
            a, b = y.chunk(2, dim=1)
        elif self.how == "slice":
            a, b = y[:, : y.size(1) // 2], y[:, y.size(1) // 2 :]
        elif self.how == "view":
            a, b = y.view(y.shape[0], 2, -1, *y.shape[2:]).unbind(1)
        else:
            return self.other(x) * torch.sigmoid(self.other(x.neg()))
        return a * F.silu(b)


@image
class Maxout(Block):
    writings = ("amax", "max", "attributes", "literal", "tuple")

    def make(self, c: int, rng: random.Random) -> int:
        self.pieces, n = (2, 3) if self.how == "literal" else (rng.choice([2, 3]), rng.randint(2, 4))
        self.width, self.shape = n, (n, self.pieces)
        self.conv = nn.Conv2d(c, n * self.pieces, 1)
        return n

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        if self.how == "amax":
            return y.view(n, c // self.pieces, self.pieces, h, w).amax(2)
        if self.how == "attributes":
            return y.view(n, self.width, self.pieces, h, w).amax(2)
        if self.how == "literal":
            return y.view(n, 3, 2, h, w).amax(2)
        if self.how == "tuple":
            return y.reshape(n, *self.shape, h, w).amax(2)
        return y.unflatten(1, (-1, self.pieces)).max(dim=2).values
