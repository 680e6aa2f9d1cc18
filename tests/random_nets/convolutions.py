"""Convolutions and products over channels, and weights that are computed."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from random_nets.blocks import Block, activation, image, norm_of, vector


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
