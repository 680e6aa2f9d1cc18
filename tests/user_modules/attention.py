"""Attention in the ways people write it, over sequences and over feature maps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled, sequence


class _Block(nn.Module):
    """The frame of a transformer block around some attention."""

    def __init__(self, dim: int = 8, norm: bool = True) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, dim), nn.Linear(dim, 3)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.norm1, self.norm2 = (nn.LayerNorm(dim), nn.LayerNorm(dim)) if norm else (nn.Identity(), nn.Identity())

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.attend(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.out(x.mean(1))


@case(sequence, grows="inp qkv fc1", factors=(2.0, 3.0))
class AttentionFusedReshape(_Block):
    """The timm way: reshape to (3, heads, head_dim), permute, unbind."""

    def __init__(self, dim: int = 8, num_heads: int = 2) -> None:
        super().__init__(dim)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@case(sequence, grows="inp q k v fc1", factors=(2.0, 3.0))
class AttentionSeparate(_Block):
    """Separate projections, sdpa, the head width computed in forward."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__(dim)
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def attend(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        h = self.heads
        q, k, v = (p(x).view(b, n, h, d // h).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).contiguous().view(b, n, d))


@case(sequence, grows="inp c_attn fc1")
class AttentionSplitBySize(_Block):
    """nanoGPT: split by ``n_embd`` held in a config object."""

    def __init__(self) -> None:
        super().__init__(8)
        self.config = SimpleNamespace(n_embd=8, n_head=4)
        self.c_attn, self.c_proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def attend(self, x: Tensor) -> Tensor:
        cfg = self.config
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(cfg.n_embd, dim=2)
        k = k.view(b, t, cfg.n_head, c // cfg.n_head).transpose(1, 2)
        q = q.view(b, t, cfg.n_head, c // cfg.n_head).transpose(1, 2)
        v = v.view(b, t, cfg.n_head, c // cfg.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(torch.tril(torch.ones(t, t, device=x.device)) == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


@case(sequence, grows="inp fc1", fixed={"to_qkv": "split"})
class AttentionSplitLiteral(_Block):
    """Split sizes and head counts written as literals: the inner width of the attention stays, by name."""

    def __init__(self) -> None:
        super().__init__(8, norm=False)
        self.to_qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).split([8, 8, 8], dim=-1)
        q, k, v = (t.reshape(t.shape[0], t.shape[1], 2, 4).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x.shape[0], -1, 8))


@case(sequence, grows="inp fc1 wq")
class AttentionEinsum(_Block):
    """Projections as [dim, heads, head_dim] parameters; everything by einsum."""

    def __init__(self) -> None:
        super().__init__(8)
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(8, 2, 4) * 0.4) for _ in range(3))
        self.wo = nn.Parameter(torch.randn(2, 4, 8) * 0.4)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnd,dhe->bhne", x, w) for w in (self.wq, self.wk, self.wv))
        attn = torch.einsum("bhqe,bhke->bhqk", q, k).mul(0.5).softmax(-1)
        return torch.einsum("bhqk,bhke,hed->bqd", attn, v, self.wo)


@case(sequence, grows="inp fc1 attn.in_proj_weight")
class AttentionTorch(_Block):
    def __init__(self) -> None:
        super().__init__(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)

    def attend(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


@case(sequence, grows="inp layer.linear1")
class TorchEncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.pos = nn.Parameter(torch.randn(7, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x).transpose(0, 1)
        x = torch.cat([self.cls.expand(-1, x.shape[1], -1), x]) + self.pos
        return self.out(self.layer(x)[0])


@case(sequence, grows="inp fc1", fixed={"q": "matmul"}, factors=(1.5, 2.0))
class AttentionSingleHead(_Block):
    """One head as wide as the stream and no view at all: queries and keys are contracted and stay."""

    def __init__(self) -> None:
        super().__init__(8, norm=False)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 8)

    def attend(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).mT / math.sqrt(6), -1) @ self.v(x)


@case(sequence, grows="inp fc1 qkv")
class AttentionShapeTuple(_Block):
    """(heads, head_dim) in a tuple, split sizes in a list: they follow."""

    def __init__(self) -> None:
        super().__init__(8, norm=False)
        self.shape = (2, 4)
        self.splits = [8, 8, 8]
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, self.shape).transpose(1, 2) for t in self.qkv(x).split(self.splits, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@case(sequence, grows="inp fc1")
class GroupedQuery(_Block):
    """Fewer key and value heads than query heads, repeated."""

    def __init__(self, dim: int = 8, n_heads: int = 4, n_kv: int = 2) -> None:
        super().__init__(dim)
        self.n_heads, self.n_kv, self.hd = n_heads, n_kv, dim // n_heads
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = nn.Linear(dim, n_kv * self.hd, bias=False), nn.Linear(dim, n_kv * self.hd, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.n_heads, self.hd).transpose(1, 2)
        k = self.wk(x).view(b, t, self.n_kv, self.hd).transpose(1, 2)
        v = self.wv(x).view(b, t, self.n_kv, self.hd).transpose(1, 2)
        k, v = (z.repeat_interleave(self.n_heads // self.n_kv, dim=1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


@case(sequence, grows="inp fc1")
class Rotary(_Block):
    """Rotary positions: the halves of a head are told apart, so heads grow and their width stays."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__(dim)
        self.heads, self.hd = heads, dim // heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        angle = torch.outer(torch.arange(6.0), 1 / 100 ** (torch.arange(self.hd // 2) / 2)).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x[..., : self.hd // 2], x[..., self.hd // 2 :]
        return x * self.cos + torch.cat((-b, a), -1) * self.sin

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, self.hd)).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.o(y.transpose(1, 2).flatten(2))


@case(image, grows="stem tail g", fixed={"theta": "bmm"}, factors=(1.5, 2.0))
class NonLocal(nn.Module):
    """Attention over positions of a feature map; the inner width is contracted and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.theta, self.phi, self.g = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.w = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        q = self.theta(x).flatten(2).permute(0, 2, 1)
        attn = torch.softmax(torch.bmm(q, self.phi(x).flatten(2)), dim=-1)
        y = torch.bmm(attn, self.g(x).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, -1, h, w)
        return self.fc(pooled(torch.relu(self.tail(x + self.w(y)))))


@case(sequence, grows="inp q fc1")
class ScaleLiteral(nn.Module):
    """``32 ** -0.5`` style literal: it does not follow, and need not, for heads grow."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + ((q @ k.transpose(2, 3)) * 4**-0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
        return self.out(x + self.fc2(torch.relu(self.fc1(x))))


@case(image, grows="stem tail theta@1", fixed={"g": "view at", "theta": "two activations"}, factors=(1.5, 2.0))
class NonLocalOneWidth(nn.Module):
    """One number for what may grow and for what is summed over: that one is held, and the channels grow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 4
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.theta, self.phi, self.g = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.w = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        g, q, k = (f(x).view(n, self.inner, -1) for f in (self.g, self.theta, self.phi))
        y = torch.matmul(q.transpose(1, 2) @ k / (h * w), g.transpose(1, 2))
        return self.fc(pooled(torch.relu(self.tail(x + self.w(y.transpose(1, 2).reshape(n, self.inner, h, w))))))


@case(image, grows="stem inner qkv tail", factors=(1.5, 2.0))
class PatchPositionsApart(nn.Module):
    """Channels merged with the batch to cut images into patches (MobileViT); attention at each position of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.tail = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 10, 1)
        self.qkv, self.proj, self.fc = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(10, 5)
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(torch.relu(self.stem(x)))
        n, c, h, w = x.shape
        x = x.reshape(n * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(n, c, h * w // 4, 4).transpose(1, 3)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(2, 3) for t in self.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        x = (x + self.proj(y.transpose(2, 3).flatten(3))).transpose(1, 3)
        x = x.reshape(n * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(pooled(torch.relu(self.tail(x))))
