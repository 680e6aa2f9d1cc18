"""Self-attention in the ways people write it."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import LENGTH, Block, token


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
