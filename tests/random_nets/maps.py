"""Attention over feature maps, data-dependent control flow, and writes in place."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import Block, image


@image
class Attention2d(Block):
    writings = ("nonlocal", "linear", "channel", "window", "axial", "criss")

    def make(self, c: int, rng: random.Random) -> None:
        self.heads, self.dim = rng.choice([1, 2]), rng.choice([2, 3])
        n = self.heads * self.dim
        self.q, self.k, self.v = (nn.Conv2d(c, n, 1) for _ in range(3))
        self.o = nn.Conv2d(n, c, 1)
        self.window, self.temperature = 2, nn.Parameter(torch.ones(self.heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.how == "window":
            s = self.window

            def windows(t: Tensor) -> Tensor:
                t = t.view(n, -1, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1)
                return t.reshape(n * (h // s) * (w // s), s * s, self.heads, -1).transpose(1, 2)

            y = F.scaled_dot_product_attention(windows(q), windows(k), windows(v))
            y = y.transpose(1, 2).reshape(n, h // s, w // s, s, s, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w)
            return x + self.o(y)
        if self.how == "axial":
            q, k, v = (t.permute(0, 2, 3, 1) for t in (q, k, v))
            return x + self.o(F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2))
        if self.how == "criss":
            energy = torch.einsum("nchw,nchv->nhwv", q, k).softmax(-1)
            return x + self.o(torch.einsum("nhwv,nchv->nchw", energy, v))
        q, k, v = (t.reshape(n, self.heads, -1, h * w) for t in (q, k, v))
        if self.how == "channel":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            y = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1) @ v
        elif self.how == "linear":
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            y = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2))
        else:
            y = v @ ((q.mT @ k) / math.sqrt(self.dim)).softmax(-1).mT
        return x + self.o(y.reshape(n, -1, h, w))


@image
class Branching(Block):
    """Data-dependent control flow."""

    writings = ("if", "item", "loop", "any", "list")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 6)
        self.conv = nn.Conv2d(c, n, 1)
        return n

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "if":
            y = torch.relu(y) if x.mean() > 0 else F.leaky_relu(y, 0.3)
        elif self.how == "item":
            y = y * (1 + abs(x.sum().item()) % 1)
        elif self.how == "loop":
            for _ in range(int(x.abs().max().item()) % 3):
                y = torch.tanh(y)
        elif self.how == "any":
            if not torch.any(x > 100):
                y = y.clamp(-1, 1)
        else:
            y = torch.stack([torch.relu(sample) for sample in y])
        return y


@image
class InPlace(Block):
    writings = ("views", "canvas", "fill", "masked", "zero_pad", "shift", "copy", "add_slice", "setitem_relu")

    def make(self, c: int, rng: random.Random) -> int:
        n = 2 * rng.randint(1, 4)
        self.a, self.b = nn.Conv2d(c, n, 1), nn.Conv2d(c, n, 3, padding=1)
        return 2 * n if self.how == "canvas" else n + 1 if self.how == "zero_pad" else n

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        n, c, h, w = a.shape
        if self.how == "views":
            a[:, : c // 2] += b[:, c // 2 :]
            a[:, c // 2 :].mul_(torch.sigmoid(b[:, : c // 2]))
            return a.relu_()
        if self.how == "canvas":
            out = a.new_zeros(n, 2 * c, h, w)
            out[:, :c] = a
            out[:, c:] = b.tanh()
            return out
        if self.how == "fill":
            a[a < 0] = 0.0
            return a - b
        if self.how == "masked":
            return a.masked_fill_(b > 0.3, 0.5)
        if self.how == "zero_pad":
            return torch.cat([a, torch.zeros(n, 1, h, w, dtype=a.dtype)], 1)
        if self.how == "shift":
            out, fold = torch.zeros_like(a), c // 2
            out[:, :fold, :, 1:] = a[:, :fold, :, :-1]
            out[:, fold:] = b[:, fold:]
            return out
        if self.how == "copy":
            out = torch.empty_like(a)
            out.copy_(a).add_(b)
            return out
        if self.how == "add_slice":
            a[:, 1] = b[:, 0] * 2
            return a
        b[..., 1:, :] = F.relu(a[..., :-1, :])
        return b
