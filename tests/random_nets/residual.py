"""Residual, dense and shared blocks."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from random_nets.blocks import Block, activation, image, norm_of


@image
class Residual(Block):
    writings = ("basic", "bottleneck", "preact", "scaled", "drop_path", "rezero", "checkpoint")

    def make(self, c: int, rng: random.Random) -> None:
        n = rng.randint(2, 6)
        self.a, self.bn1 = nn.Conv2d(c, n, 1, bias=False), nn.BatchNorm2d(n)
        self.b, self.bn2 = nn.Conv2d(n, c, 3, padding=1), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=self.how in {"basic", "bottleneck"})
        self.gamma = nn.Parameter(torch.rand(()) if self.how == "rezero" else torch.rand(c, 1, 1))
        self.drop = nn.Dropout2d(0.2)

    def branch(self, x: Tensor) -> Tensor:
        if self.how == "preact":
            return self.b(self.relu(self.bn1(self.a(self.relu(self.bn2(x))))))
        return self.bn2(self.b(self.drop(self.relu(self.bn1(self.a(x))))))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "checkpoint":
            return x + checkpoint(self.branch, x, use_reentrant=False)
        y = self.branch(x)
        if self.how in {"scaled", "rezero"}:
            y = self.gamma * y
        elif self.how == "drop_path" and self.training:
            y = y / 0.8 * (torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) * 0 + 1).bernoulli_(0.8)
        elif self.how == "bottleneck":
            y += x
            return self.relu(y)
        return torch.add(x, y)


@image
class Dense(Block):
    writings = ("list", "concat", "inplace_list")

    def make(self, c: int, rng: random.Random) -> int:
        self.growth = rng.randint(1, 4)
        self.layers = nn.ModuleList(nn.Conv2d(c + i * self.growth, self.growth, 3, padding=1) for i in range(2))
        return c + 2 * self.growth

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "concat":
            for layer in self.layers:
                x = torch.cat((x, F.relu(layer(x))), 1)
            return x
        features = [x]
        for layer in self.layers:
            new = layer(F.relu(torch.cat(features, dim=1)))
            features = [new, *features] if self.how == "inplace_list" else [*features, new]
        return torch.concat(features, dim=-3)


@image
class Shared(Block):
    """One convolution, one norm, one activation for two steps."""

    def make(self, c: int, rng: random.Random) -> None:
        self.conv, self.norm, self.act = nn.Conv2d(c, c, 3, padding=1), norm_of(c, rng), activation(rng)
        self.again = self.conv

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv, self.again):
            x = self.act(self.norm(layer(x)))
        return x


@image
class TiedTransposed(Block):
    """Decode with the encoder's weight: conv_transpose of the same parameter, or its transpose."""

    writings = ("conv", "linear")

    def make(self, c: int, rng: random.Random) -> None:
        n = rng.randint(2, 6)
        self.weight = nn.Parameter(torch.randn(n, c, 1, 1) * 0.5)
        self.mid = nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.mid(torch.relu(F.conv2d(x, self.weight))))
        if self.how == "conv":
            return F.conv_transpose2d(y, self.weight)
        return F.linear(y.movedim(1, -1), self.weight[:, :, 0, 0].t()).movedim(-1, 1)


@image
class Ghost(Block):
    writings = ("cat", "stack")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 5)
        self.primary, self.cheap = nn.Conv2d(c, n, 1), nn.Conv2d(n, n, 3, padding=1, groups=n)
        return 2 * n

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.primary(x))
        b = torch.relu(self.cheap(a))
        return torch.stack([a, b], 2).flatten(1, 2) if self.how == "stack" else torch.cat([a, b], 1)
