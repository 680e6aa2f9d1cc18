"""Functional calls, parameters of one's own, layers used twice, tied weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled, tokens, vector


@case(image, grows="w1 w2 fc@1", factors=(1.5, 2.0))
class FunctionalConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.b1 = nn.Parameter(torch.randn(8) * 0.2)
        self.w2 = nn.Parameter(torch.randn(12, 8, 3, 3) * 0.2)
        self.fc = nn.Parameter(torch.randn(5, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w1, self.b1, padding=1))
        x = F.leaky_relu_(F.conv2d(x, self.w2, stride=2), 0.1)
        return F.linear(pooled(x), self.fc)


@case(image, grows="a b bn c", factors=(1.5, 2.0))
class SharedReluAndNorm(nn.Module):
    """One ReLU and one batch norm for two convolutions; in-place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.c, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.a(x)))
        x = self.relu(self.bn(self.b(x)))
        return self.fc(pooled(self.relu(self.c(x))))


@case(image, grows="stem shared shared@1 tail", factors=(1.5, 2.0))
class SharedConv(nn.Module):
    """The same convolution twice over one stream: its in- and out-axis are the same group and grow together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.tail, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(tokens, grows="up", fixed={"embed@1": "tied"})
class TiedEmbedding(nn.Module):
    """``decoder.weight is embed.weight``: the width is copied by the embedding and consumed by the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) * math.sqrt(8)
        return self.decoder(h + self.down(F.gelu(self.up(h))))


@case(vector, grows="enc2", fixed={"enc1": "tied"})
class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1 = nn.Linear(5, 8)
        self.enc2, self.dec2 = nn.Linear(8, 10), nn.Linear(10, 8)
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enc1(x))
        h = self.dec2(torch.relu(self.enc2(h)))
        return F.linear(h, self.enc1.weight.t(), self.bias)


@case(vector, grows="first.0 second.0", factors=(1.5, 2.0))
class SharedBlock(nn.Module):
    """A block used at two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
        self.second = self.first
        self.stem, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.second(torch.relu(self.first(x))))


@case(vector, grows="layers.0@1 layers.1@1", factors=(1.5, 2.0))
class ParameterContainers(nn.Module):
    """Parameters in a ParameterList and a ParameterDict, products by ``@``, ``addmm`` and ``mv``-free code."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6, 7))])
        self.biases = nn.ParameterDict({"a": nn.Parameter(torch.randn(6)), "b": nn.Parameter(torch.randn(1, 7))})
        self.out = nn.Parameter(torch.randn(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.biases["a"], x, self.layers[0]).relu_()
        x = (x.matmul(self.layers[1]) + self.biases["b"]).tanh()
        return torch.mm(x, self.out)
