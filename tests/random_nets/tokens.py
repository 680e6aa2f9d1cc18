"""Projections, hidden layers and norms over tokens."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import LENGTH, Block, token, vector


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
