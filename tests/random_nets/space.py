"""Operations over positions, and operations that tell channels apart."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import SIDE, Block, image


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
