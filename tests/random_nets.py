"""Random networks: blocks of every kind and every way of writing them, drawn from a seed.

A network is a list of ``(name, seed)``: every block is built from its name, the width it finds and its own small
generator, which draws widths, and which of several writings of the same thing is used. ``ImageNet`` blocks read and
return feature maps [N, C, H, W] of unchanged size, ``TokenNet`` blocks sequences [N, L, D].
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st
from nets import perturb
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

SIDE, LENGTH = 4, 5


class Block(nn.Module):
    """A piece of a network; ``out`` is the width it returns, ``how`` the writing that was drawn."""

    writings: tuple[str, ...] = ("",)

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__()
        self.how = rng.choice(self.writings)
        self.out = self.make(c, rng) or c

    def make(self, c: int, rng: random.Random) -> int | None:
        """Create the layers; return the new width, or None if it stays."""


IMAGE: dict[str, type[Block]] = {}
TOKEN: dict[str, type[Block]] = {}


def image(cls: type[Block]) -> type[Block]:
    IMAGE[cls.__name__] = cls
    return cls


def token(cls: type[Block]) -> type[Block]:
    TOKEN[cls.__name__] = cls
    return cls


def norm_of(c: int, rng: random.Random) -> nn.Module:
    return rng.choice([nn.BatchNorm2d(c), nn.BatchNorm2d(c, affine=False), nn.Identity(), nn.InstanceNorm2d(c)])


def activation(rng: random.Random) -> nn.Module:
    kinds = [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.ReLU6(), nn.Tanh(), nn.ELU()]
    return rng.choice(kinds)


def vector(n: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(n) + 0.5)


# --- convolutions and products over channels -----------------------------------------------------------------


@image
class ConvNormAct(Block):
    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 9)
        k = rng.choice([1, 3, (3, 1), (1, 3)])
        pad = tuple(s // 2 for s in k) if isinstance(k, tuple) else k // 2
        self.body = nn.Sequential(
            nn.Conv2d(c, n, k, padding=pad, bias=rng.random() < 0.5), norm_of(n, rng), activation(rng)
        )
        return n

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@image
class FunctionalConv(Block):
    writings = ("conv2d", "conv_method", "batch_norm", "unfold")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 8)
        self.weight, self.bias = nn.Parameter(torch.randn(n, c, 3, 3) * 0.3), nn.Parameter(torch.randn(n) * 0.3)
        self.register_buffer("running_mean", torch.randn(n) * 0.2)
        self.register_buffer("running_var", torch.rand(n) + 0.5)
        self.gain = vector(n)
        return n

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "unfold":
            columns = F.unfold(x, kernel_size=3, padding=1)
            x = (self.weight.flatten(1) @ columns).unflatten(2, x.shape[-2:]) + self.bias[:, None, None]
            return F.relu(x) * self.gain[:, None, None]
        x = F.conv2d(x, self.weight, self.bias, padding=1)
        if self.how == "batch_norm":
            x = F.batch_norm(x, self.running_mean, self.running_var, self.gain, None, self.training, 0.1)
        else:
            x = x * self.gain.view(1, -1, 1, 1)
        return x.relu_() if self.how == "conv_method" else F.leaky_relu(x, 0.2)


@image
class Pointwise(Block):
    """A 1x1 convolution in the ways people write it."""

    writings = ("einsum", "einsum_t", "ellipsis", "linear_last", "matmul", "bmm", "tensordot", "sum", "movedim")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 8)
        self.w, self.b = nn.Parameter(torch.randn(n, c) * 0.5), nn.Parameter(torch.randn(n) * 0.2)
        return n

    def forward(self, x: Tensor) -> Tensor:
        w = self.w
        if self.how == "einsum":
            y = torch.einsum("nchw,oc->nohw", x, w)
        elif self.how == "einsum_t":
            y = torch.einsum("co,bchw->bohw", w.t(), x)
        elif self.how == "ellipsis":
            y = torch.einsum("...ihw,oi->...ohw", x, w)
        elif self.how == "linear_last":
            y = F.linear(x.permute(0, 2, 3, 1), w).permute(0, 3, 1, 2).contiguous()
        elif self.how == "matmul":
            y = torch.matmul(w, x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
        elif self.how == "bmm":
            y = torch.bmm(w.expand(x.size(0), -1, -1), x.reshape(x.size(0), x.size(1), -1)).reshape(
                x.size(0), -1, x.size(2), x.size(3)
            )
        elif self.how == "tensordot":
            y = torch.tensordot(x, w, dims=([1], [1])).movedim(-1, 1)
        elif self.how == "sum":
            y = (x[:, None] * w[None, :, :, None, None]).sum(2)
        else:
            y = (x.movedim(1, -1) @ w.mT).movedim(-1, 1)
        return torch.tanh(y + self.b[None, :, None, None])


@image
class Depthwise(Block):
    def make(self, c: int, rng: random.Random) -> int:
        m, n = rng.choice([1, 1, 2]), rng.randint(2, 8)
        self.dw = nn.Conv2d(c, c * m, 3, padding=2, dilation=2, groups=c)
        self.bn, self.pw = nn.BatchNorm2d(c * m), nn.Conv2d(c * m, n, 1)
        self.relu = nn.PReLU(c * m)
        return n

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(self.relu(self.bn(self.dw(x))))


@image
class Grouped(Block):
    writings = ("conv", "transposed", "twice", "einsum")

    def make(self, c: int, rng: random.Random) -> int:
        g, i, o = rng.choice([2, 3]), rng.choice([1, 2, 3]), rng.choice([1, 2, 4])
        self.groups = g
        self.up = nn.Conv2d(c, g * i, 1)
        if self.how == "transposed":
            self.body: nn.Module = nn.ConvTranspose2d(g * i, g * o, 3, padding=1, groups=g)
        elif self.how == "twice":
            self.body = nn.Sequential(
                nn.Conv2d(g * i, g * i, 3, padding=1, groups=g), nn.ReLU(), nn.Conv2d(g * i, g * o, 1, groups=g)
            )
        elif self.how == "einsum":
            self.weight = nn.Parameter(torch.randn(g, o, i) * 0.5)
        else:
            self.body = nn.Conv2d(g * i, g * o, 3, padding=1, groups=g)
        return g * o

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(x))
        if self.how == "einsum":
            n, _, h, w = x.shape
            return torch.einsum("ngihw,goi->ngohw", x.view(n, self.groups, -1, h, w), self.weight).reshape(n, -1, h, w)
        return self.body(x)


@image
class Transposed(Block):
    writings = ("same", "stride", "functional")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 7)
        stride = 2 if self.how == "stride" else 1
        self.up = nn.ConvTranspose2d(c, n, 3, stride=stride, padding=1, output_padding=stride - 1)
        return n

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "functional":
            return F.conv_transpose2d(x, self.up.weight, self.up.bias, padding=1).sigmoid()
        y = F.relu(self.up(x))
        return F.avg_pool2d(y, 2) if self.how == "stride" else y


@image
class Reparametrized(Block):
    """Weights that are computed: standardized, weight-normed, masked, mixed."""

    writings = ("standardized", "weight_norm", "masked", "mixture", "custom")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(2, 7)
        self.conv, self.tail = nn.Conv2d(c, n, 3, padding=1), nn.Conv2d(n, n + 1, 1)
        if self.how == "weight_norm":
            parametrizations.weight_norm(self.conv)
        elif self.how == "masked":
            self.register_buffer("mask", (torch.rand(n, c, 3, 3) < 0.6).float())
        elif self.how == "mixture":
            self.bank, self.mix = nn.Parameter(torch.randn(3, n, c, 3, 3) * 0.3), nn.Parameter(torch.randn(3))
        elif self.how == "custom":
            parametrize.register_parametrization(self.conv, "weight", Clipped())
        return n + 1

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        if self.how == "standardized":
            w = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        elif self.how == "masked":
            w = w * self.mask
        elif self.how == "mixture":
            w = w + (self.mix.softmax(0).view(-1, 1, 1, 1, 1) * self.bank).sum(0)
        else:
            return self.tail(torch.relu(self.conv(x)))
        return self.tail(torch.relu(F.conv2d(x, w, self.conv.bias, padding=1)))


class Clipped(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return torch.clamp(w, -0.2, 0.2) * 1.5


# --- residual, dense, shared ---------------------------------------------------------------------------------


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


# --- shuffles and cuts ---------------------------------------------------------------------------------------


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


# --- gates ---------------------------------------------------------------------------------------------------


@image
class SqueezeExcite(Block):
    writings = ("conv", "linear", "mean", "hard", "cbam", "softmax", "eca", "global_context")

    def make(self, c: int, rng: random.Random) -> None:
        n = rng.randint(1, 4)
        if self.how in {"linear", "mean"}:
            self.a, self.b = nn.Linear(c, n), nn.Linear(n, c)
        else:
            self.a, self.b = nn.Conv2d(c, n, 1), nn.Conv2d(n, c, 1)
        self.pool, self.spatial = nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 1, 3, padding=1)
        self.eca, self.key = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.how == "linear":
            y = self.pool(x).view(n, c)
            return x * torch.sigmoid(self.b(torch.relu(self.a(y)))).view(n, c, 1, 1)
        if self.how == "mean":
            return x * torch.sigmoid(self.b(torch.relu(self.a(x.mean((2, 3))))))[..., None, None].expand_as(x)
        if self.how == "hard":
            return F.hardsigmoid(self.b(F.relu(self.a(x.mean([2, 3], keepdim=True))))).mul(x)
        if self.how == "cbam":
            gate = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * torch.sigmoid(self.spatial(gate))
        if self.how == "softmax":
            return x * self.b(torch.relu(self.a(self.pool(x)))).softmax(1)
        if self.how == "eca":
            y = self.eca(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
            return x * torch.sigmoid(y)
        if self.how == "global_context":
            weight = self.key(x).view(n, 1, h * w).softmax(2)
            context = torch.matmul(x.view(n, c, h * w), weight.transpose(1, 2)).view(n, c, 1, 1)
            return x + self.b(torch.relu(self.a(context)))
        return x * torch.sigmoid(self.b(torch.relu(self.a(self.pool(x)))))


@image
class SelectiveKernel(Block):
    """Two branches weighed by a softmax over the branches."""

    def make(self, c: int, rng: random.Random) -> None:
        self.a, self.b = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, padding=1)
        self.squeeze, self.weigh = nn.Linear(c, 3), nn.Linear(3, 2 * c)

    def forward(self, x: Tensor) -> Tensor:
        u = torch.stack([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        z = torch.relu(self.squeeze(u.sum(1).mean((-1, -2))))
        gate = self.weigh(z).view(x.shape[0], 2, -1).softmax(1)
        return (u * gate[..., None, None]).sum(1)


# --- norms over channels -------------------------------------------------------------------------------------


@image
class ChannelNorm(Block):
    writings = (
        "layer_last", "layer_first", "functional", "literal", "rms", "rms_module", "l2", "group", "group_function",
        "group_hand", "instance", "group_one", "lrn", "batch_hand", "grn", "layer_spatial",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> int:
        n = 2 * rng.randint(1, 4) if self.how != "literal" else 6
        self.conv = nn.Conv2d(c, n, 1)
        self.g, self.b = vector(n), nn.Parameter(torch.randn(n) * 0.2)
        self.layer, self.rms = nn.LayerNorm(n), nn.RMSNorm(n, eps=1e-6)
        self.group = nn.GroupNorm(1 if self.how == "group_one" else 2, n)
        self.groups = 2
        self.register_buffer("mean", torch.randn(n) * 0.1)
        self.register_buffer("var", torch.rand(n) + 0.5)
        for norm in (self.layer, self.rms, self.group):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        return n

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        g, b = self.g[:, None, None], self.b[:, None, None]
        if self.how == "layer_last":
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.how == "layer_first":
            mean = x.mean(1, keepdim=True)
            var = (x - mean).pow(2).mean(1, keepdim=True)
            return g * ((x - mean) / torch.sqrt(var + 1e-6)) + b
        if self.how == "functional":
            return F.layer_norm(x.movedim(1, -1), (c,), self.g, self.b, 1e-6).movedim(-1, 1)
        if self.how == "literal":
            return F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1)
        if self.how == "rms":
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * g
        if self.how == "rms_module":
            return self.rms(x.transpose(1, -1)).transpose(1, -1)
        if self.how == "l2":
            return F.normalize(x, dim=1, eps=1e-3) * g
        if self.how in {"group", "group_one"}:
            return self.group(x)
        if self.how == "group_function":
            return F.group_norm(x, self.groups, self.g, self.b)
        if self.how == "group_hand":
            y = x.view(n, self.groups, -1)
            y = (y - y.mean(2, keepdim=True)) / torch.sqrt(y.var(2, keepdim=True) + 1e-5)
            return y.view(n, c, h, w) * g
        if self.how == "instance":
            return F.instance_norm(x) + b
        if self.how == "lrn":
            return F.local_response_norm(x, 3)
        if self.how == "grn":
            gx = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x + g * x * (gx / (gx.mean(dim=1, keepdim=True) + 1e-6)) + b
        if self.how == "layer_spatial":
            return F.layer_norm(x, x.shape[1:])
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.var += 0.1 * (var - self.var)
        else:
            mean, var = self.mean, self.var
        return (x - mean.view(1, -1, 1, 1)) / (var + 1e-5).sqrt()[None, :, None, None] * g + b


# --- space ---------------------------------------------------------------------------------------------------


@image
class Spatial(Block):
    """Pools, pads, interpolation, shifts over positions: channels pass."""

    writings = (
        "max", "avg", "lp", "interpolate", "reflect", "zero", "replicate", "circular", "roll", "flip", "adaptive_max",
        "fft", "grid", "cumsum", "unfold", "softmax", "transpose", "affine", "flatten",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> None:
        self.pos = nn.Parameter(torch.randn(1, 1, SIDE, SIDE))
        self.full = nn.Parameter(torch.randn(1, c, SIDE, SIDE))
        self.mlp = nn.Linear(SIDE * SIDE, SIDE * SIDE)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return {
            "max": lambda: F.max_pool2d(x, 3, 1, 1),
            "avg": lambda: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
            "lp": lambda: F.lp_pool2d(F.pad(x.abs() + 0.1, (0, 1, 0, 1)), 2, 2, stride=1),
            "interpolate": lambda: F.interpolate(F.interpolate(x, scale_factor=2, mode="bicubic"), (h, w), mode="area"),
            "reflect": lambda: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1),
            "zero": lambda: F.max_pool2d(F.pad(x, (2, 0, 1, 1)), 3, 1),
            "replicate": lambda: F.pad(x, (0, 1, 1, 0), mode="replicate")[..., :h, 1:],
            "circular": lambda: F.pad(x, (1, 0, 0, 1), mode="circular")[:, :, 1:, :w],
            "roll": lambda: torch.roll(x, shifts=(1, -1), dims=(2, 3)) + x,
            "flip": lambda: x.flip(-1) * self.pos,
            "adaptive_max": lambda: x - F.adaptive_max_pool2d(x, 1),
            "fft": lambda: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(h, w)),
            "grid": lambda: x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5)).repeat_interleave(2, 2).repeat(1, 1, 1, 2),
            "cumsum": lambda: x.cumsum(2) * 0.3,
            "unfold": lambda: x.unfold(2, 2, 2).amax(-1).repeat(1, 1, 2, 1),
            "softmax": lambda: x.flatten(2).softmax(-1).view_as(x) * x.mean((2, 3), keepdim=True),
            "transpose": lambda: x.transpose(2, 3).contiguous() + self.full,
            "affine": lambda: x + self.full,
            "flatten": lambda: self.mlp(x.view(n, c, -1)).view(n, c, h, w),
        }[self.how]()


@image
class ChannelOrder(Block):
    """Operations that tell channels apart: what they touch must stay."""

    writings = (
        "roll", "flip", "sort", "topk", "cumsum", "softmax", "mean", "max", "argmax", "gather", "index", "index_select",
        "even", "first", "last", "arange", "median", "std", "fft", "diff", "pad", "channel_pool", "conv3d", "select",
        "linspace", "eye", "tril", "prod", "logsumexp", "cummax", "scatter", "shape", "shape_root", "literal_slice",
        "mask", "triangular", "sum", "interpolate", "repeat_interleave", "repeat", "tile", "kron", "outer", "any_",
        "dropconst", "masked_mean", "cross", "unique", "bilinear", "unfold", "as_strided", "unbind", "where",
        "negative", "bucket", "searchsorted", "quantile", "aminmax", "renorm", "cdist", "trapezoid", "rot90",
        "meshgrid", "mode",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> int:
        n = 2 * rng.randint(2, 3)
        self.conv, self.tail = nn.Conv2d(c, n, 1), nn.LazyConv2d(rng.randint(2, 6), 1)
        self.register_buffer("order", torch.randperm(n, generator=torch.Generator().manual_seed(rng.randint(0, 99))))
        with torch.no_grad():
            self.tail(self.change(torch.randn(2, n, SIDE, SIDE)))
        return self.tail.out_channels

    def change(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return {
            "roll": lambda: x.roll(1, 1),
            "flip": lambda: torch.flip(x, [1]),
            "sort": lambda: x.sort(dim=1)[0],
            "topk": lambda: torch.topk(x, 2, dim=1).values,
            "cumsum": lambda: torch.cumsum(x, 1),
            "softmax": lambda: torch.softmax(x, dim=1),
            "mean": lambda: x - x.mean(1, True),
            "max": lambda: torch.cat([x, x.max(dim=1, keepdim=True)[0]], 1),
            "argmax": lambda: x * F.one_hot(x.argmax(1), c).movedim(-1, 1),
            "gather": lambda: x.gather(1, self.order.view(1, -1, 1, 1).expand(n, -1, h, w)),
            "index": lambda: x[:, [0, 2, 1]],
            "index_select": lambda: x.index_select(1, self.order),
            "even": lambda: x[:, ::2] * x[:, 1::2],
            "first": lambda: x * x[:, 0:1],
            "last": lambda: x * x[:, -1:],
            "arange": lambda: x * torch.arange(c, dtype=x.dtype).view(1, c, 1, 1),
            "median": lambda: x - x.median(dim=1, keepdim=True)[0],
            "std": lambda: x / (x.std(1, keepdim=True) + 0.1),
            "fft": lambda: torch.fft.fft(x, dim=1).real,
            "diff": lambda: torch.diff(x, dim=1),
            "pad": lambda: F.pad(x, (0, 0, 0, 0, 1, 2)),
            "channel_pool": lambda: F.avg_pool1d(x.flatten(2).mT, 2).mT.unflatten(2, (h, w)),
            "conv3d": lambda: F.max_pool3d(x.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1),
            "select": lambda: x + x.select(1, 1).unsqueeze(1),
            "linspace": lambda: x * torch.linspace(0, 1, c).to(x)[:, None, None],
            "eye": lambda: torch.einsum("nchw,dc->ndhw", x, torch.eye(c).to(x).flip(0)),
            "tril": lambda: torch.einsum("nchw,dc->ndhw", x, torch.ones(c, c).tril().to(x)),
            "prod": lambda: x * (1 + 0.1 * x).prod(1, keepdim=True),
            "logsumexp": lambda: x - x.logsumexp(1, keepdim=True),
            "cummax": lambda: x.cummax(1).values,
            "scatter": lambda: torch.zeros_like(x).scatter(1, self.order.view(1, -1, 1, 1).expand_as(x), x),
            "shape": lambda: x / c,
            "shape_root": lambda: torch.tanh(x * x.shape[1] ** -0.5),
            "literal_slice": lambda: torch.cat([x[:, :2].relu(), x[:, 2:]], 1),
            "mask": lambda: x * (torch.arange(c) < 2).to(x)[:, None, None],
            "triangular": lambda: x + x.flatten(2).mT.triu().mT.view_as(x),
            "sum": lambda: x * x.sum(1, keepdim=True),
            "interpolate": lambda: F.interpolate(x.flatten(2).mT, size=c + 1).mT.unflatten(2, (h, w)),
            "repeat_interleave": lambda: x.repeat_interleave(2, dim=1),
            "repeat": lambda: x.repeat(1, 2, 1, 1),
            "tile": lambda: torch.tile(x, (2, 1, 1)),
            "kron": lambda: x * torch.kron(torch.ones(c // 2), torch.tensor([1.0, -1.0])).to(x)[:, None, None],
            "outer": lambda: (x[:, :, None] * x[:, None]).flatten(1, 2),
            "any_": lambda: x * (x > 0.8).any(1, keepdim=True),
            "dropconst": lambda: x + torch.ones(c, dtype=x.dtype).sum(),
            "masked_mean": lambda: x - (x * (x > 0)).sum(1, True) / (x > 0).sum(1, True).clamp(min=1),
            "cross": lambda: ((x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2)).view_as(x),
            "unique": lambda: x + len(torch.unique(x.detach().argmax(1) * 0)),
            "bilinear": lambda: torch.einsum("nchw,ndhw->ncd", x, x).unsqueeze(-1) * 0.1,
            "unfold": lambda: x.unfold(1, 2, 1).amax(-1),
            "as_strided": lambda: x.contiguous().as_strided((n, c, h, w), (c * h * w, h * w, 1, w)),
            "unbind": lambda: torch.stack(x.unbind(1)[::-1], 1),
            "where": lambda: torch.where(x > 0.7 * x.amax(1, keepdim=True), x, x * 0.5),
            "negative": lambda: x[:, :-1] + x[:, 1:],
            "bucket": lambda: x * torch.bucketize(x.detach(), torch.tensor([-0.5, 0.0, 0.5]).to(x)),
            "searchsorted": lambda: x + torch.searchsorted(x.detach().flatten(2).mT.sort(-1)[0].contiguous(), torch.zeros(n, h * w, 1).to(x)).mT.view(n, 1, h, w),  # noqa: E501
            "quantile": lambda: x - x.quantile(0.5, dim=1, keepdim=True),
            "aminmax": lambda: x / (0.1 + x.aminmax(dim=1, keepdim=True).max - x.aminmax(dim=1, keepdim=True).min),
            "renorm": lambda: x.renorm(2, 0, 1.0),
            "cdist": lambda: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(-1),
            "trapezoid": lambda: torch.trapezoid(x, dim=1).unsqueeze(1) + x,
            "rot90": lambda: x + x.flatten(2).mT.rot90(2, (0, 1)).mT.view_as(x) * 0.1,
            "meshgrid": lambda: x * torch.meshgrid(torch.arange(c), torch.arange(h), indexing="ij")[0].to(x)[..., None],
            "mode": lambda: x + x.round().mode(1, keepdim=True).values,
        }[self.how]()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(torch.tanh(self.conv(x)))
        x = self.tail(x)
        return x if x.shape[-2:] == (SIDE, SIDE) else F.interpolate(x, (SIDE, SIDE))


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


# --- tokens --------------------------------------------------------------------------------------------------


@token
class Project(Block):
    writings = ("linear", "matmul", "einsum", "conv1d", "addmm", "bilinear", "bmm", "baddbmm")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.choice([4, 6, 8])
        self.lin, self.w, self.b = nn.Linear(c, n), nn.Parameter(torch.randn(c, n) * 0.4), nn.Parameter(torch.randn(n))
        self.conv, self.bilinear = nn.Conv1d(c, n, 3, padding=1), nn.Bilinear(c, c, n)
        return n

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            return F.gelu(self.lin(x))
        if self.how == "matmul":
            return torch.relu(x @ self.w + self.b)
        if self.how == "einsum":
            return torch.einsum("bld,de->ble", x, self.w).tanh()
        if self.how == "conv1d":
            return F.silu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        if self.how == "addmm":
            return torch.addmm(self.b, x.reshape(-1, x.shape[-1]), self.w).view(*x.shape[:2], -1).relu()
        if self.how == "bmm":
            return torch.bmm(x, self.w.expand(x.shape[0], *self.w.shape)).tanh()
        if self.how == "baddbmm":
            return torch.baddbmm(self.b, x, self.w[None].repeat(x.shape[0], 1, 1))
        return self.bilinear(x, torch.tanh(x))


@token
class MLP(Block):
    writings = ("gelu", "swiglu", "fused_swiglu", "prenorm", "token", "moe", "lora", "sparse_moe", "hyper")

    def make(self, c: int, rng: random.Random) -> None:
        h = rng.randint(3, 8)
        self.up, self.gate, self.down = nn.Linear(c, h), nn.Linear(c, h), nn.Linear(h, c)
        self.fused, self.router = nn.Linear(c, 2 * h), nn.Linear(c, 2)
        self.norm, self.drop = nn.LayerNorm(c), nn.Dropout(0.1)
        self.mix = nn.Sequential(nn.Linear(LENGTH, h), nn.GELU(), nn.Linear(h, LENGTH))
        self.experts = nn.Parameter(torch.randn(2, c, c) * 0.3)
        self.parts = nn.ModuleList(nn.Linear(c, c) for _ in range(2))
        self.low, self.high = nn.Parameter(torch.randn(2, c) * 0.3), nn.Parameter(torch.randn(c, 2) * 0.3)
        self.hyper = nn.Linear(c, c * 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "gelu":
            return x + self.down(self.drop(F.gelu(self.up(x))))
        if self.how == "swiglu":
            return x + self.down(F.silu(self.up(x)) * self.gate(x))
        if self.how == "fused_swiglu":
            a, b = self.fused(x).chunk(2, dim=-1)
            return x + self.down(F.silu(a) * b)
        if self.how == "prenorm":
            return x + self.down(torch.relu(self.up(self.norm(x))).square())
        if self.how == "token":
            return x + self.mix(x.transpose(1, 2)).mT
        if self.how == "moe":
            gate = self.router(x).softmax(-1)
            return x + torch.einsum("ble,bld,edf->blf", gate, x, self.experts)
        if self.how == "lora":
            return F.linear(x, self.parts[0].weight + self.high @ self.low, self.parts[0].bias)
        if self.how == "hyper":
            a, b = self.hyper(x.mean(1, keepdim=True)).split(x.shape[-1], -1)
            return x * (1 + a) + b
        flat = x.reshape(-1, x.shape[-1])
        pick, y = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for i, part in enumerate(self.parts):
            rows = (pick == i).nonzero(as_tuple=True)[0]
            y = y.index_add(0, rows, part(flat[rows]))
        return x + y.view_as(x)


@token
class TokenNorm(Block):
    writings = (
        "layer", "functional", "rms", "rms_hand", "layer_hand", "literal", "batch", "l2", "scale", "softmax", "group",
        "mean", "dyt", "std", "norm_method", "var_mean",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> int | None:
        n = 6 if self.how == "literal" else c
        self.pre = nn.Linear(c, n) if n != c or rng.random() < 0.5 else nn.Identity()
        self.layer, self.batch, self.rms = nn.LayerNorm(n, eps=1e-6), nn.BatchNorm1d(n), nn.RMSNorm(n, eps=1e-5)
        self.g, self.b, self.alpha = vector(n), nn.Parameter(torch.randn(n) * 0.3), nn.Parameter(torch.ones(1))
        for norm in (self.layer, self.rms):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        self.dim, self.eps, self.shape = n, 1e-5, (n,)
        return n

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        d = x.shape[-1]
        if self.how == "var_mean":
            var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
            return (x - mean) * (var + self.eps).rsqrt() * self.g + self.b
        return {
            "layer": lambda: self.layer(x),
            "functional": lambda: F.layer_norm(x, self.shape, self.g, self.b),
            "rms": lambda: self.rms(x),
            "rms_hand": lambda: self.g * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)),
            "layer_hand": lambda: self.g * (x - x.mean(-1, True)) / (x.var(-1, False, keepdim=True) + 1e-5) ** 0.5,
            "literal": lambda: F.layer_norm(x, (6,), self.g),
            "batch": lambda: self.batch(x.transpose(1, 2)).transpose(1, 2),
            "l2": lambda: F.normalize(x, dim=-1, eps=1e-2) * self.dim**0.5 * self.g,
            "scale": lambda: x * d**-0.5,
            "softmax": lambda: x.softmax(-1) * self.g,
            "group": lambda: F.group_norm(x.transpose(1, 2), 2 if d % 2 == 0 else 1).transpose(1, 2),
            "mean": lambda: x - x.mean(-1, keepdim=True) + self.b,
            "dyt": lambda: torch.tanh(self.alpha * x) * self.g + self.b,
            "std": lambda: self.g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3) + self.b,
            "norm_method": lambda: x / (x.norm(2, dim=-1, keepdim=True) * d**-0.5 + 1e-3) * self.g,
        }[self.how]()  # fmt: skip


@token
class SelfAttention(Block):
    """Queries, keys and values cut and viewed in the ways of the wild."""

    writings = (
        "fused_reshape", "chunk", "split_attr", "split_list", "split_dims", "unbind", "slice", "separate", "sdpa",
        "einsum", "torch", "torch_seq_first", "gqa", "rope", "causal", "bias", "qk_norm", "literal", "config", "tuple",
        "relative", "linear", "performer", "cosine", "split_literal", "one_head", "talking", "sigmoid", "encoder",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> None:
        self.heads, self.hd = (2, 2) if self.how in {"literal", "split_literal"} else (rng.choice([1, 2]), 2)
        self.inner = d = self.heads * self.hd
        self.dim, self.scale, self.shape, self.splits = c, self.hd**-0.5, (self.heads, self.hd), [d, d, d]
        self.config = SimpleNamespace(n_head=self.heads, n_inner=d, nested={"head_dim": self.hd})
        self.norm = rng.choice([nn.Identity, nn.LayerNorm, nn.RMSNorm])(c)
        self.qkv, self.o = nn.Linear(c, 3 * d, bias=rng.random() < 0.5), nn.Linear(d, c)
        self.q, self.k, self.v = (nn.Linear(c, d) for _ in range(3))
        self.k1, self.v1 = nn.Linear(c, self.hd), nn.Linear(c, self.hd)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(c, self.heads, self.hd) * 0.5) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(self.heads, self.hd, c) * 0.5)
        self.qn, self.kn = nn.LayerNorm(self.hd), nn.LayerNorm(self.hd)
        self.table, self.talk = nn.Parameter(torch.randn(self.heads, LENGTH, LENGTH)), nn.Linear(self.heads, self.heads)
        heads = 2 if c % 2 == 0 else 1
        self.mha = nn.MultiheadAttention(c, heads, batch_first=self.how == "torch")
        self.layer = nn.TransformerEncoderLayer(c, heads, 2 * c, activation="gelu", batch_first=True)
        angle = torch.arange(LENGTH)[:, None] * torch.tensor([1.0])
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def cut(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H, L, D] each."""
        b, n, _ = x.shape
        d, h = self.inner, self.heads
        if self.how in {"fused_reshape", "unbind"}:
            y = self.qkv(x).reshape(b, n, 3, h, -1).permute(2, 0, 3, 1, 4)
            q, k, v = y.unbind(0) if self.how == "unbind" else (y[0], y[1], y[2])
            return q, k, v
        if self.how == "einsum":
            q, k, v = (torch.einsum("bld,dhe->bhle", x, w) for w in (self.wq, self.wk, self.wv))
            return q, k, v
        if self.how == "gqa":
            k, v = (p(x).view(b, n, 1, self.hd).transpose(1, 2).expand(-1, h, -1, -1) for p in (self.k1, self.v1))
            return self.q(x).view(b, n, h, self.hd).transpose(1, 2), k, v
        if self.how == "literal":
            q, k, v = (p(x).view(b, n, 2, 2).transpose(1, 2) for p in (self.q, self.k, self.v))
            return q, k, v
        if self.how == "split_dims":
            y = self.qkv(x).view(b, n, h, 3 * self.hd).transpose(1, 2)
            q, k, v = y.chunk(3, dim=-1)
            return q, k, v
        parts = {
            "chunk": lambda: self.qkv(x).chunk(3, -1),
            "split_attr": lambda: self.qkv(x).split(d, dim=2),
            "split_list": lambda: torch.split(self.qkv(x), self.splits, -1),
            "split_literal": lambda: self.qkv(x).split([4, 4, 4], -1),
            "slice": lambda: [self.qkv(x)[..., i * d : (i + 1) * d] for i in range(3)],
            "config": lambda: self.qkv(x).split(self.config.n_inner, dim=2),
            "tuple": lambda: self.qkv(x).tensor_split(3, dim=-1),
        }.get(self.how, lambda: (self.q(x), self.k(x), self.v(x)))()
        if self.how == "one_head":
            q, k, v = (p.unsqueeze(1) for p in parts)
        elif self.how == "tuple":
            q, k, v = (p.unflatten(-1, self.shape).transpose(1, 2) for p in parts)
        elif self.how == "config":
            q, k, v = (p.view(b, n, self.config.n_head, self.config.nested["head_dim"]).transpose(1, 2) for p in parts)
        else:
            q, k, v = (p.reshape(b, n, h, p.shape[-1] // h).transpose(1, 2) for p in parts)
        return q, k, v

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.how == "torch":
            return x + self.mha(y, y, y, need_weights=False)[0]
        if self.how == "torch_seq_first":
            y = y.transpose(0, 1)
            return x + self.mha(y, y, y)[0].transpose(0, 1)
        if self.how == "encoder":
            return self.layer(y)
        q, k, v = self.cut(y)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        if self.how == "rope":
            q, k = self.rotate(q), self.rotate(k)
        elif self.how == "qk_norm":
            q, k = self.qn(q), self.kn(k)
        elif self.how == "cosine":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.how in {"sdpa", "rope", "gqa", "literal", "split_list", "qk_norm", "split_dims"}:
            z = F.scaled_dot_product_attention(q, k, v, is_causal=self.how == "rope", dropout_p=0.1 * self.training)
        elif self.how in {"linear", "performer"}:
            phi = (lambda t: F.elu(t) + 1) if self.how == "linear" else (lambda t: torch.exp(t - t.amax(-1, True)))
            q, k = phi(q), phi(k)
            z = (q @ (k.mT @ v)) / (q @ k.sum(-2).unsqueeze(-1))
        elif self.how == "einsum":
            a = torch.einsum("bhqe,bhke->bhqk", q, k).softmax(-1)
            return x + torch.einsum("bhqk,bhke,hed->bqd", a, v, self.wo)
        else:
            a = q @ k.transpose(-2, -1) * (self.scale if self.how != "separate" else 1 / math.sqrt(q.size(-1)))
            if self.how == "causal":
                a = a.masked_fill(mask, float("-inf"))
            elif self.how in {"bias", "relative"}:
                a = a + (self.table if self.how == "bias" else self.table.unsqueeze(0).tanh())
            elif self.how == "talking":
                a = self.talk(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            a = torch.sigmoid(a) if self.how == "sigmoid" else F.softmax(a, dim=-1)
            z = a @ v
        return x + self.o(z.transpose(1, 2).reshape(*x.shape[:2], -1))


@token
class Recurrent(Block):
    writings = ("lstm", "gru", "scan", "cumulative", "minimal", "conv_scan", "cell")

    def make(self, c: int, rng: random.Random) -> int:
        n = rng.randint(3, 6)
        kind = nn.LSTM if self.how == "lstm" else nn.GRU
        self.rnn, self.cell = kind(c, n, batch_first=True, bidirectional=self.how == "gru"), nn.GRUCell(c, n)
        self.a, self.b, self.decay = nn.Linear(c, n), nn.Linear(c, n), nn.Parameter(torch.randn(n))
        self.conv = nn.Conv1d(n, n, 2, groups=n)
        return 2 * n if self.how == "gru" else n

    def forward(self, x: Tensor) -> Tensor:
        if self.how in {"lstm", "gru"}:
            return self.rnn(x)[0]
        if self.how == "cell":
            h = x.new_zeros(x.shape[0], self.cell.hidden_size)
            outs = []
            for step in x.unbind(1):
                h = self.cell(step, h)
                outs.append(h)
            return torch.stack(outs, 1)
        u, g = self.a(x), torch.sigmoid(self.b(x))
        if self.how == "cumulative":
            return (u * g).cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        if self.how == "conv_scan":
            return F.silu(self.conv(F.pad(u.transpose(1, 2), (1, 0)))).mT * g
        h = torch.zeros_like(u[:, 0])
        states = []
        for t in range(x.shape[1]):
            h = (
                g[:, t] * h + (1 - g[:, t]) * u[:, t]
                if self.how == "minimal"
                else torch.sigmoid(self.decay) * h + u[:, t]
            )
            states.append(h)
        return torch.stack(states, dim=1)


@token
class Sequence(Block):
    """Class tokens, positions, pooling and picking along the sequence."""

    writings = ("class_token", "position", "sinusoid", "pool", "shift", "drop", "sort", "gather", "merge", "alibi")

    def make(self, c: int, rng: random.Random) -> None:
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, LENGTH, c))
        self.embed, self.score = nn.Embedding(LENGTH, c), nn.Linear(c, 1)
        self.merge = nn.Linear(2 * c, c)
        self.register_buffer("table", torch.randn(LENGTH, c))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        return {
            "class_token": lambda: torch.cat([self.cls.expand(n, -1, -1), x[:, 1:]], 1),
            "position": lambda: x + self.pos + self.embed(torch.arange(length, device=x.device)),
            "sinusoid": lambda: x + self.table[:length],
            "pool": lambda: x - x.mean(1, keepdim=True) + x.amax(1, keepdim=True),
            "shift": lambda: torch.cat([F.pad(x, (0, 0, 1, 0))[:, :-1].tanh(), x], 0).chunk(2, 0)[0] + x,
            "drop": lambda: F.dropout(x, 0.1, self.training) * self.cls,
            "sort": lambda: torch.gather(x, 1, self.score(x).argsort(1).expand_as(x)),
            "gather": lambda: x[:, torch.tensor([1, 0, 2, 4, 3])] + x,
            "merge": lambda: self.merge(torch.cat([x, x.roll(1, dims=1)], -1)),
            "alibi": lambda: x * torch.sigmoid(self.score(x)),
        }[self.how]()


# --- networks ------------------------------------------------------------------------------------------------


Result = namedtuple("Result", "logits extra")


@dataclass
class Bundle:
    logits: Tensor
    extra: Any = None


HEADS = ("plain", "dropout", "cosine", "bilinear", "shared", "mlp", "conv", "reuse", "max", "attention")
OUTPUTS = ("tensor", "tuple", "dict", "aux", "named", "list", "dataclass", "ordered", "features")


class RandomNetwork(nn.Module):
    """Blocks one after another (with skips where widths allow), then a head, then some form of output."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        rng = random.Random(spec.seed)
        pieces = IMAGE if spec.kind == "image" else TOKEN
        self.kind, self.output, self.head_kind = spec.kind, spec.output, spec.head
        width = rng.choice([3, 4, 6])
        self.stem = nn.Conv2d(3, width, 3, padding=1) if self.kind == "image" else nn.Linear(3, width)
        self.embed = nn.Embedding(7, width)
        self.blocks, widths = nn.ModuleList(), [width]
        for name, seed in spec.blocks:
            block = pieces[name](widths[-1], random.Random(seed))
            self.blocks.append(block)
            widths.append(block.out)
        self.skips = [b == a and rng.random() < 0.4 for a, b in pairwise(widths)]
        last = widths[-1]
        self.norm = nn.BatchNorm1d(last)
        self.fc, self.hidden = nn.Linear(last, 4), nn.Linear(last, 5)
        self.bilinear = nn.Linear(last * last, 4)
        self.mlp = nn.Sequential(nn.Linear(last, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))
        self.aux = nn.Linear(width, 4)
        self.prototypes = nn.Parameter(torch.randn(4, last))
        self.query = nn.Parameter(torch.randn(last))
        self.pool_conv = nn.Conv1d(last, 4, 1)

    def head(self, x: Tensor) -> Tensor:
        """x: [N, C, positions]."""
        y = x.mean(-1)
        if self.head_kind == "dropout":
            return self.fc(F.dropout(self.norm(y), 0.3, self.training))
        if self.head_kind == "cosine":
            return F.linear(F.normalize(y, dim=1, eps=1e-2), F.normalize(self.prototypes)) * 5
        if self.head_kind == "bilinear":
            return self.bilinear(torch.bmm(x, x.transpose(1, 2)).flatten(1) / x.shape[-1])
        if self.head_kind == "shared":
            return self.fc(y) + self.fc(torch.relu(y))
        if self.head_kind == "mlp":
            return self.mlp(y)
        if self.head_kind == "conv":
            return self.pool_conv(x).amax(2)
        if self.head_kind == "reuse":
            return torch.relu(self.hidden(y)) @ self.hidden.weight @ self.prototypes.t()
        if self.head_kind == "max":
            return self.fc(x.max(dim=-1)[0])
        if self.head_kind == "attention":
            weight = torch.softmax(torch.einsum("ncl,c->nl", x, self.query), -1)
            return self.fc(torch.einsum("ncl,nl->nc", x, weight))
        return self.fc(y)

    def forward(self, x: Tensor) -> Any:
        x = first = self.stem(x) if x.is_floating_point() else self.embed(x)
        for block, skip in zip(self.blocks, self.skips, strict=True):
            y = block(x.clone())
            x = x + y if skip else y
        features = x
        x = x.flatten(2) if self.kind == "image" else x.transpose(1, 2)
        logits = self.head(x)
        if self.output == "tensor":
            return logits
        first = first.flatten(2).mean(-1) if self.kind == "image" else first.mean(1)
        aux = self.aux(torch.relu(first))
        if self.output == "aux":
            return {"out": logits, "aux": aux} if self.training else logits
        return {
            "tuple": lambda: (logits, aux),
            "dict": lambda: {"logits": logits, "more": [aux, None]},
            "named": lambda: Result(logits, (aux, 1)),
            "list": lambda: [logits, {"aux": aux}],
            "dataclass": lambda: Bundle(logits, aux),
            "ordered": lambda: OrderedDict(out=logits, aux=aux),
            "features": lambda: (logits, features.mean((2, 3)) if self.kind == "image" else features[:, 0]),
        }[self.output]()


@dataclass(frozen=True)
class Spec:
    """What a network is made from; its ``repr`` rebuilds it."""

    kind: str
    blocks: tuple[tuple[str, int], ...]
    head: str = "plain"
    output: str = "tensor"
    seed: int = 0

    def build(self) -> nn.Module:
        return perturb(RandomNetwork(self), self.seed).double()

    def example(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        if self.kind == "ids":
            return torch.randint(7, (3, LENGTH), generator=generator)
        shape = (3, 3, SIDE, SIDE) if self.kind == "image" else (3, LENGTH, 3)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    @property
    def branches(self) -> bool:
        """Whether another input may take another way through the code."""
        return any(
            name == "Branching" or how.endswith("sparse_moe")
            for (name, _), how in zip(self.blocks, self.writings, strict=True)
        )

    @property
    def writings(self) -> list[str]:
        pieces = IMAGE if self.kind == "image" else TOKEN
        return [f"{name}:{random.Random(seed).choice(pieces[name].writings)}" for name, seed in self.blocks]


def _specs(kind: str, names: list[str]) -> st.SearchStrategy[Spec]:
    block = st.tuples(st.sampled_from(names), st.integers(0, 999))
    return st.builds(
        Spec,
        st.just(kind),
        st.lists(block, min_size=2, max_size=6).map(tuple),
        st.sampled_from(HEADS),
        st.sampled_from(OUTPUTS),
        st.integers(0, 9999),
    )


def specs() -> st.SearchStrategy[Spec]:
    """Image networks, and networks of tokens that come as vectors or as ids."""
    token_names = list(TOKEN)
    return st.one_of(_specs("image", list(IMAGE)), _specs("token", token_names), _specs("ids", token_names))


def every_writing() -> list[Spec]:
    """One small network for every block in every writing."""
    found = []
    for kind, pieces in (("image", IMAGE), ("token", TOKEN)):
        for name, cls in pieces.items():
            for how in cls.writings:
                seed = next(s for s in range(10_000) if random.Random(s).choice(cls.writings) == how)
                around = ("ConvNormAct", 1) if kind == "image" else ("Project", 3)
                found.append(Spec(kind, (around, (name, seed), around), seed=1))
    return found
