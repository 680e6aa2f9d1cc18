"""Norms by module, by function and by hand; weights that are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from user_modules.cases import case, image, pooled, sequence, vector


@case(image, grows="conv tail", factors=(1.5, 2.0))
class HandwrittenBatchNorm(nn.Module):
    """Running statistics in buffers, updated by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.register_buffer("mean", torch.randn(8) * 0.1)
        self.register_buffer("var", torch.rand(8) + 0.5)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            with torch.no_grad():
                self.mean.mul_(0.9).add_(mean, alpha=0.1)
                self.var.copy_(0.9 * self.var + 0.1 * var)
        else:
            mean, var = self.mean, self.var
        x = (x - mean[None, :, None, None]) * torch.rsqrt(var + 1e-5)[None, :, None, None]
        return self.fc(pooled(torch.relu(self.tail(torch.relu(x * self.gain.view(1, -1, 1, 1))))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class FunctionalBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)
        self.register_buffer("rm", torch.randn(8) * 0.1)
        self.register_buffer("rv", torch.rand(8) + 0.5)
        self.g, self.b = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.stem(x), self.rm, self.rv, self.g, self.b, self.training, 0.1, 1e-4)
        return self.fc(pooled(torch.relu(self.tail(torch.relu(x)))))


@case(sequence, grows="inp fc1", factors=(2.0, 3.0))
class HandwrittenNorms(nn.Module):
    """RMSNorm (Llama) and LayerNorm (annotated transformer) written by hand."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, dim), nn.Linear(dim, 3)
        self.fc1, self.fc2 = nn.Linear(dim, 12), nn.Linear(12, dim)
        self.g1, self.g2 = nn.Parameter(torch.rand(dim) + 0.5), nn.Parameter(torch.rand(dim) + 0.5)
        self.b2 = nn.Parameter(torch.randn(dim) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.g1
        x = x + self.fc2(F.silu(self.fc1(h)))
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).square().mean(-1, keepdim=True)
        return self.out((self.g2 * (x - mean) / torch.sqrt(var + 1e-5) + self.b2).amax(1))


@case(image, grows="stem fc1")
class ConvNeXt(nn.Module):
    """Channels-first LayerNorm by hand, channels-last linear layers, layer scale."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        self.g, self.b = nn.Parameter(torch.rand(dim) + 0.5), nn.Parameter(torch.randn(dim) * 0.1)
        self.dw, self.norm = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.rand(dim))
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        x = self.g[:, None, None] * x + self.b[:, None, None]
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)
        return self.head((x + y).mean([-2, -1]))


@case(image, grows="tail")
class GroupNorms(nn.Module):
    """GroupNorm by module, by function and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)
        self.gn, self.groups = nn.GroupNorm(2, 8), 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.stem(x))
        x = F.group_norm(x, 4)
        n, c, h, w = x.shape
        y = x.view(n, self.groups, -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return self.fc(pooled(torch.relu(self.tail(y.view(n, c, h, w)))))


@case(sequence, grows="fc1", fixed={"inp": "layer_norm"})
class LiteralLayerNorm(nn.Module):
    """``F.layer_norm(x, (8,))``: the width is written into forward, so this stream stays."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(x + self.fc2(torch.relu(self.fc1(F.layer_norm(x, (8,))))))


@case(image, grows="mid tail")
class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.mid, self.tail, self.fc = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 9, 1), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.tail(torch.relu(self.mid(torch.relu(self.conv(x))))))))


@case(image, grows="mid tail")
class WeightStandardized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.mid, self.tail, self.fc = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 9, 1), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        x = torch.relu(F.conv2d(x, w, self.conv.bias))
        return self.fc(pooled(torch.relu(self.tail(torch.relu(self.mid(x))))))


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).transpose(-1, -2)


@case(vector, grows="up", fixed={"inp": ""})
class CustomParametrization(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.sym = nn.Linear(5, 6), nn.Linear(6, 6)
        self.up, self.out = nn.Linear(6, 10), nn.Linear(10, 3)
        parametrize.register_parametrization(self.sym, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(torch.relu(self.sym(torch.relu(self.inp(x)))))))


@case(image, grows="first", factors=(1.5, 2.0))
class StatisticsAsParameters(nn.Module):
    """Running statistics among the parameters, written in every pass (meta-learning): the teacher keeps its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Linear(8, 4)
        self.norm = nn.ParameterList([torch.zeros(8), torch.ones(8)]).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(F.conv2d(x, self.first), self.norm[0], self.norm[1], training=True)
        return self.second(pooled(torch.relu(x)))
