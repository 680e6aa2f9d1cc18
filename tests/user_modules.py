"""Modules as researchers write them, each with what growth should make of it.

``CASES[name]`` holds a module's builder, its example input, the layers that must grow, those that must stay (with the
words that the report must say about them), or the words of the refusal. "layer" stands for axis 0 of ``layer.weight``
(or of the parameter ``layer``), "layer@1" for axis 1. Layers in neither list may do either: what counts is exactness.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


@dataclass
class Case:
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]  # seed -> input in fp64
    grows: list[str] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)  # layer -> words in the note that names it
    refused: str | None = None
    factors: tuple[float, ...] = (2.0,)


CASES: dict[str, Case] = {}


def case(
    example: Callable[[int], Any],
    *,
    grows: str = "",
    fixed: dict[str, str] | None = None,
    refused: str | None = None,
    factors: tuple[float, ...] = (2.0,),
) -> Callable[[Any], Any]:
    def register(build: Any) -> Any:
        CASES[build.__name__] = Case(build, example, grows.split(), fixed or {}, refused, factors)
        return build

    return register


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int) -> Tensor:
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=_generator(seed))


def sequence(seed: int) -> Tensor:
    return torch.randn(3, 6, 5, dtype=torch.float64, generator=_generator(seed))


def vector(seed: int) -> Tensor:
    return torch.randn(4, 5, dtype=torch.float64, generator=_generator(seed))


def tokens(seed: int) -> Tensor:
    return torch.randint(11, (3, 6), generator=_generator(seed))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


# --- functional calls, sharing, tying ----------------------------------------------------------------------


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


# --- outputs -----------------------------------------------------------------------------------------------


Outs = namedtuple("Outs", "logits features")


class _Multi(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.fc, self.aux = nn.Linear(12, 5), nn.Linear(8, 5)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.a(x))
        return self.fc(pooled(torch.relu(self.b(x)))), self.aux(pooled(x))


@case(image, grows="a b", factors=(1.5, 2.0))
class AuxiliaryDict(_Multi):
    def forward(self, x: Tensor) -> Any:
        main, aux = self.both(x)
        return {"out": main, "aux": [aux]} if self.training else {"out": main}


@case(image, grows="a b", factors=(1.5, 2.0))
class AuxiliaryNamedTuple(_Multi):
    def forward(self, x: Tensor) -> Any:
        main, aux = self.both(x)
        return Outs(main, (aux, None, 3)) if self.training else main


@dataclass
class Output:
    logits: Tensor
    aux: Tensor | None = None


@case(image, grows="a b", factors=(1.5, 2.0))
class DataclassOutput(_Multi):
    """A dataclass is no pytree: its tensors are outputs all the same."""

    def forward(self, x: Tensor) -> Output:
        return Output(*self.both(x))


@case(image, refused="nothing to compare")
class OpaqueOutput(_Multi):
    """An object without any tensor that can be found: nothing can be proved, so nothing is grown."""

    class Closed:
        __slots__ = ("get",)

        def __init__(self, value: Tensor) -> None:
            self.get = lambda: value

    def forward(self, x: Tensor) -> Any:
        return self.Closed(self.both(x)[0])


@case(image, grows="a", fixed={"b": "output"})
class FeaturePyramid(nn.Module):
    """A list of feature maps: what is an output stays, what is not grows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.c, self.side = nn.Conv2d(6, 4, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.a(x))
        y = self.b(x) + self.side(x)
        return [y, self.c(torch.relu(y))]


# --- control flow and state --------------------------------------------------------------------------------


@case(vector, grows="a b", factors=(1.5, 2.0))
class DataDependentBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if h.mean() > 0.5:
            h = h * 2
        if (x > 0).all().item():
            h = h - 1
        return self.c(torch.sigmoid(self.b(h)))


@case(vector, grows="a")
class EitherExpert(nn.Module):
    """The example takes one branch; on the other the student must be right, too, or not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 8)
        self.left, self.right, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.out(torch.relu(self.left(h) if x.sum() > 0 else self.right(h)))


@case(vector)
class EitherSign(nn.Module):
    """The branch not taken by the example tells channels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(x)))
        return self.c(h.softmax(-1) if x.sum() > 0 else torch.relu(h))


@case(image, grows="stem block", factors=(1.5, 2.0))
class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.fc = nn.Dropout2d(0.3), nn.Linear(8, 5)
        self.p = 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.block(self.drop(x))
        if self.training:
            keep = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
            y = y * keep / (1 - self.p)
        return self.fc(F.dropout(pooled(x + y), 0.5, self.training))


@case(image, grows="a b", factors=(1.5, 2.0))
class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 9, 3), nn.Linear(9, 5)

    def block(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, x, use_reentrant=False) if self.training else self.block(x)
        return self.fc(pooled(x))


@case(sequence, grows="inp hid", factors=(1.5, 2.0))
class CachedPositions(nn.Module):
    """A table that is cached at the first call, on the device of the first input: recording must not leave its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.hid, self.out = nn.Linear(5, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None or self.cache.shape[0] != x.shape[1]:
            self.cache = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).sin()[:, None]
        h = torch.relu(self.inp(x)) * self.cache
        return self.out(torch.relu(self.hid(h)))


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


# --- residual, dense, shuffled, gated ----------------------------------------------------------------------


@case(image, grows="stem c1 c2 c3 down", factors=(1.25, 1.5, 2.0))
class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.c1, self.b1 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.b2 = nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4)
        self.c3, self.b3 = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        identity = self.down(x)
        out = self.relu(self.b1(self.c1(x)))
        out = self.relu(self.b2(self.c2(out)))
        out = self.b3(self.c3(out))
        out += identity
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.relu(out), (1, 1)), 1))


@case(image, grows="stem layers.0 layers.1 layers.2", factors=(1.25, 1.5, 2.0))
class DenseBlock(nn.Module):
    def __init__(self, growth_rate: int = 4) -> None:
        super().__init__()
        self.growth_rate = growth_rate
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(6 + i * growth_rate, growth_rate, 3, padding=1) for i in range(3))
        self.norm, self.fc = nn.BatchNorm2d(6 + 3 * growth_rate), nn.Linear(6 + 3 * growth_rate, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(F.relu(torch.cat(features, 1))))
        return self.fc(pooled(F.relu(self.norm(torch.cat(features, dim=1)))))


@case(image, grows="stem left.0 right")
class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass, the halves are shuffled into each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4))
        self.right, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    @staticmethod
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat((a, self.left(b)), 1), 2)
        return self.fc(pooled(torch.relu(self.right(x))))


@case(image, grows="stem tail", fixed={"g1": "channel_shuffle", "g2@1": "channel_shuffle"})
class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g1 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 1, groups=3)
        self.shuffle, self.g2 = nn.ChannelShuffle(3), nn.Conv2d(12, 6, 1, groups=3)
        self.tail, self.fc = nn.Conv2d(6, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.g2(self.shuffle(torch.relu(self.g1(self.stem(x)))))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem reduce expand tail", factors=(1.5, 2.0))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)
        self.reduce, self.expand = nn.Linear(8, 4), nn.Linear(4, 8)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.size()
        gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(gate)))).view(n, c, 1, 1)
        return self.fc(pooled(F.hardswish(self.tail(x * gate.expand_as(x)))))


@case(image, grows="stem mlp.0 tail", factors=(1.5, 2.0))
class CBAM(nn.Module):
    """Channel attention by two pools, then spatial attention by the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.mlp = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))
        x = x * torch.sigmoid(self.spatial(x.amax(1, keepdim=True)))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="tail", fixed={"stem": "conv1d"})
class ECA(nn.Module):
    """A convolution over channels: neighbours are told apart, so these channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.eca(pooled(x).unsqueeze(1)).squeeze(1)
        return self.fc(pooled(torch.relu(self.tail(x * torch.sigmoid(y)[:, :, None, None]))))


@case(image, grows="primary tail", factors=(1.5, 2.0))
class Ghost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1 = torch.relu(self.primary(x))
        x2 = torch.relu(self.cheap(x1))
        return self.fc(pooled(torch.relu(self.tail(torch.cat([x1, x2], dim=1)))))


# --- grouped, depthwise, transposed ------------------------------------------------------------------------


@case(image, grows="up grouped down", factors=(1.5, 2.0))
class GroupedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.grouped = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, groups=4)
        self.down, self.fc = nn.Conv2d(24, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.down(torch.relu(self.grouped(self.up(x)))))))


@case(image, grows="expand depth project", factors=(1.25, 1.5, 2.0))
class InvertedResidual(nn.Module):
    def __init__(self, expand_ratio: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        hidden = 4 * expand_ratio
        self.expand, self.project = nn.Conv2d(4, hidden, 1), nn.Conv2d(hidden, 4, 1)
        self.depth = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(pooled(x + self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))))


@case(image, grows="down mid", factors=(1.5, 2.0))
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(12, 8, 3, padding=1, groups=2)
        self.out = nn.Conv2d(16 // 2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down(x))
        b = torch.relu(self.up(torch.relu(self.mid(a))))
        return self.out(torch.relu(self.up2(torch.cat((a, b), 1))))


@case(image, grows="a b", factors=(1.5, 2.0))
class DepthwiseMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 10, 3, groups=5)
        self.prelu, self.fc = nn.PReLU(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.prelu(self.b(self.a(x)))))


# --- attention ---------------------------------------------------------------------------------------------


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


# --- norms -------------------------------------------------------------------------------------------------


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


# --- pixel shuffle, einsum, views --------------------------------------------------------------------------


@case(image, grows="body up", factors=(1.5, 2.0))
class SubPixel(nn.Module):
    """ESPCN, and the same by view and permute."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1)
        self.shuffle, self.mid = nn.PixelShuffle(2), nn.Conv2d(4, 8, 1)
        self.out = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mid(self.shuffle(self.up(torch.tanh(self.body(x))))))
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        return self.out(x)


@case(image, grows="stem tail")
class SpaceToDepth(nn.Module):
    """Four phases, concatenated (YOLO's focus); then pixel unshuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(24, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = F.pixel_unshuffle(torch.relu(self.stem(x)), 2)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="w1 w2", factors=(1.5, 2.0))
class EinsumNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 3) * 0.5), nn.Parameter(torch.randn(10, 8) * 0.3)
        self.fc = nn.Parameter(torch.randn(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.einsum("nchw,oc->nohw", x, self.w1))
        x = torch.relu(torch.einsum("...chw,oc->...ohw", x, self.w2))
        return torch.einsum("nchw,cd->nd", x, self.fc)


@case(image, grows="stem mix token.0", factors=(1.5, 2.0))
class Mixer(nn.Module):
    """MLP-Mixer: linear layers over positions (fixed) and over channels (grow)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.mix, self.back, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.token(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.back(F.gelu(self.mix(x)))
        return self.head(x.mean(dim=1))


@case(image, grows="conv fc1", factors=(1.5, 2.0))
class LeNet(nn.Module):
    """``x.view(-1, 6 * 4 * 4)`` with the width from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 6, 3, padding=1), 6 * 4 * 4
        self.fc1, self.fc2 = nn.Linear(self.flat, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.view(-1, self.flat))))


# --- literals ----------------------------------------------------------------------------------------------


@case(image, grows="conv conv2 fc1", fixed={"conv3": "view"}, factors=(1.5, 2.0))
class LeNetLiteral(nn.Module):
    """``x.view(-1, 6 * 4 * 4)``: the channels that meet the literal stay, the hidden layers grow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(96, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv(x))))
        x = F.max_pool2d(torch.relu(self.conv3(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.view(-1, 6 * 4 * 4))))


@case(image, grows="left right tail", factors=(1.5, 2.0))
class SliceLiteral(nn.Module):
    """``x[:, :8]`` and ``x[:, 8:]``: where the halves meet is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.tail, self.fc = nn.Conv2d(6, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x[:, :8]) * self.right(x[:, 8:]))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class SplitSizesList(nn.Module):
    """Split sizes in a list of the module: they follow."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = [4, 6, 2]
        self.stem, self.tail, self.fc = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 1), nn.Linear(10, 5)
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for n in self.splits)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.relu(self.stem(x)), self.splits, dim=1)
        x = torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class SplitSizesLiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(torch.relu(self.before(x))), [4, 6, 2], dim=1)
        x = torch.cat([torch.relu(a), torch.tanh(b), torch.sigmoid(c)], dim=1)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ViewLiteral(nn.Module):
    """Maxout with its sizes written into forward: ``x.view(n, 4, 3, h, w)``."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(4, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        n, _, h, w = x.shape
        x = x.view(n, 4, 3, h, w).amax(dim=2)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class MaxoutAttributes(nn.Module):
    def __init__(self, out: int = 4, pieces: int = 3) -> None:
        super().__init__()
        self.out, self.pieces = out, pieces
        self.stem = nn.Conv2d(3, out * pieces, 3)
        self.tail, self.fc = nn.Conv2d(out, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(x.size(0), self.out, self.pieces, *x.shape[2:]).max(dim=2)[0]
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ShapeInArithmetic(nn.Module):
    """``x.shape[1] ** -0.5`` as a factor: growing these channels would change the number."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        x = torch.tanh(x * x.shape[1] ** -0.5)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ZerosLiteral(nn.Module):
    """A canvas of a literal size, filled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 6, 3)
        self.tail, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        canvas = torch.zeros(x.shape[0], 8, x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
        canvas[:, 1:7] = x
        return self.fc(pooled(torch.relu(self.tail(canvas))))


@case(image, grows="before stem", factors=(1.5, 2.0))
class CanvasByShape(nn.Module):
    """The same with sizes taken from tensors: everything follows."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1)
        self.tail, self.fc = nn.Conv2d(13, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.before(x))
        b = self.stem(a)
        canvas = x.new_empty(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        canvas[:, : a.shape[1]] = a
        canvas[:, a.shape[1] :] = b
        return self.fc(pooled(torch.relu(self.tail(canvas))))


@case(image, grows="tail", factors=(1.5, 2.0))
class TemporalShift(nn.Module):
    """A fold of the channels is moved one step along the width; the fold is a fraction of the channels."""

    def __init__(self, fold_div: int = 4) -> None:
        super().__init__()
        self.fold_div = fold_div
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fold = x.shape[1] // self.fold_div
        out = torch.zeros_like(x)
        out[:, :fold, :, :-1] = x[:, :fold, :, 1:]
        out[:, fold : 2 * fold, :, 1:] = x[:, fold : 2 * fold, :, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.fc(pooled(torch.relu(self.tail(out))))


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


@case(image, grows="tail", factors=(1.5, 2.0))
class NestedConfig(nn.Module):
    """Widths in a config object and in a dict: they follow, or what meets them stays by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(dim=8, sub={"hidden": 12})
        self.stem, self.mid = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.reshape(-1, self.cfg.dim, x.shape[-2], x.shape[-1])
        x = torch.relu(self.mid(x))
        x = x.view(x.shape[0], self.cfg.sub["hidden"], *x.shape[2:])
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class CoincidentNumber(nn.Module):
    """``size`` is the image's, and happens to equal the width: it must not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.width, self.window = 8, 8, (8, 8)
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.stem(x), (self.size, self.size), mode="nearest")
        x = F.adaptive_avg_pool2d(x, self.window)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class GuardedForward(nn.Module):
    """Assertions on the width, held as an attribute."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.stem, self.tail, self.fc = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] != self.channels:
            raise ValueError(f"expected {self.channels} channels")
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class GuardedLiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert x.shape[1] == 8, "a width of 8"
        return self.fc(pooled(torch.relu(self.tail(x))))


# --- what tells channels apart -----------------------------------------------------------------------------


def _fixing(name: str, words: str | None, change: Callable[[Tensor], Tensor]) -> None:
    """conv (grows) -> conv (fixed, for ``change`` tells its channels apart, unless words is None) -> conv -> linear."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 8, 3)
            self.tail, self.fc = nn.Conv2d(change(torch.zeros(1, 8, 2, 2)).shape[1], 10, 1), nn.Linear(10, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = change(self.stem(torch.relu(self.before(x))))
            return self.fc(pooled(torch.relu(self.tail(x))))

    Told.__name__ = Told.__qualname__ = name
    fixed = {} if words is None else {"stem": words}
    CASES[name] = Case(Told, image, ["before", "tail"], fixed, factors=(1.5, 2.0))


_fixing("SoftmaxOverChannels", "softmax", lambda x: x.softmax(1))
_fixing("NormalizeOverChannels", "norm", lambda x: F.normalize(x, dim=1))
_fixing("SortOverChannels", "sort", lambda x: torch.sort(x, dim=1).values)
_fixing("TopkOverChannels", "topk", lambda x: x.topk(3, dim=1).values)
_fixing("CumsumOverChannels", "cumsum", lambda x: x.cumsum(1))
_fixing("RollChannels", "roll", lambda x: x.roll(2, 1))
_fixing("FlipChannels", "flip", lambda x: x.flip(1))
_fixing("FancyIndex", "index", lambda x: x[:, [0, 2, 4, 6]])
_fixing("EverySecond", "slice", lambda x: x[:, ::2] + x[:, 1::2])
_fixing("FirstChannel", None, lambda x: x * x[:, :1])
_fixing("LocalResponse", "pool", lambda x: F.local_response_norm(x, 3))
_fixing("FourierOverChannels", "fft", lambda x: torch.fft.rfft(x, dim=1).abs())
_fixing("GramMatrix", "", lambda x: (x.flatten(2) @ x.flatten(2).mT).unsqueeze(-1))
_fixing("EntropyWeight", "", lambda x: x * x.std(1, keepdim=True))
_fixing("ArangeWeights", "", lambda x: x * torch.arange(1.0, x.shape[1] + 1).to(x)[None, :, None, None])
_fixing("MedianOverChannels", "median", lambda x: x - x.median(1, keepdim=True).values)
_fixing("DifferenceOverChannels", "", lambda x: torch.diff(x, dim=1))
_fixing("Winner", "", lambda x: x * F.one_hot(x.argmax(1), x.shape[1]).permute(0, 3, 1, 2).to(x))


@case(sequence, grows="head1", fixed={"inp": "rnn"}, factors=(1.5, 2.0))
class LSTMHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.rnn = nn.Linear(5, 6), nn.LSTM(6, 7, 1, batch_first=True, bidirectional=True)
        self.head1, self.head2 = nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(torch.relu(self.inp(x)))
        return self.head2(torch.relu(self.head1(y[:, -1])))


@case(vector, grows="a", fixed={"b": ""}, factors=(1.5, 2.0))
class CosineClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 6)
        self.prototypes = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        return 10 * F.linear(F.normalize(x, dim=-1), F.normalize(self.prototypes, dim=-1))


@case(sequence, grows="inp gate head", factors=(1.5, 2.0))
class SelectiveScan(nn.Module):
    """A recurrence written as a loop, elementwise over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.gate = nn.Linear(5, 8), nn.Linear(5, 8)
        self.decay = nn.Parameter(torch.randn(8))
        self.head, self.out = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, g = self.inp(x), torch.sigmoid(self.gate(x))
        h = torch.zeros(x.shape[0], u.shape[-1], dtype=x.dtype, device=x.device)
        states = []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.decay) * h + g[:, t] * u[:, t]
            states.append(h)
        return self.out(torch.relu(self.head(torch.stack(states, dim=1)))).mean(1)


@case(sequence, grows="experts.0.0")
class MixtureOfExperts(nn.Module):
    """Tokens sent to experts by index: data-dependent shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.router, self.out = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x).flatten(0, 1)
        weight, pick = self.router(h).softmax(-1).max(-1)
        y = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = torch.where(pick == i)[0]
            if rows.numel():
                y[rows] = expert(h[rows]) * weight[rows, None]
        return self.out(y).view(x.shape[0], -1)


@case(image, grows="stem tail", factors=(1.5, 2.0))
class HookedModel(nn.Module):
    """A forward hook that changes what a layer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)
        self.stem.register_forward_hook(lambda module, args, output: torch.tanh(output))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.tail(self.stem(x)))))


@case(image, grows="stem tail", fixed={"mid": "constant"}, factors=(1.5, 2.0))
class PlainTensorConstant(nn.Module):
    """A tensor that is neither parameter nor buffer: it cannot grow, so what meets it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 8, 3)
        self.tail, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)
        self.mask = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0, 1.5, 1.0], dtype=torch.float64).view(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(torch.relu(self.stem(x))) * self.mask.to(x)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem a b", factors=(1.5, 2.0))
class InPlaceOnViews(nn.Module):
    """Writes through views of a tensor that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).clone()
        half = x.shape[1] // 2
        left, right = x.narrow(1, 0, half), x.narrow(1, half, half)
        left += self.a(right.clone())
        right.mul_(torch.sigmoid(left.clone()))
        x.relu_()
        return self.fc(pooled(torch.relu(self.b(x))))


@case(image, grows="mid tail", factors=(1.5, 2.0))
class ConditionalConv(nn.Module):
    """CondConv: kernels mixed by the input, applied as one grouped convolution over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.randn(3, 8, 6, 3, 3) * 0.2)
        self.mid, self.tail, self.fc = nn.Conv2d(8, 9, 1), nn.Conv2d(9, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        n, c, h, w = x.shape
        mix = torch.sigmoid(self.route(pooled(x)))
        kernels = torch.einsum("ne,eoikl->noikl", mix, self.experts)
        y = F.conv2d(x.reshape(1, n * c, h, w), kernels.reshape(-1, c, 3, 3), padding=1, groups=n)
        y = y.view(n, -1, h, w)
        return self.fc(pooled(torch.relu(self.tail(torch.relu(self.mid(y))))))


@case(image, grows="stem branches.0 branches.1 global_ tail", factors=(1.5, 2.0))
class MultiScale(nn.Module):
    """ASPP with pools, dilation, interpolation and pads of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.branches = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=d, dilation=d) for d in (1, 2))
        self.global_, self.tail, self.fc = nn.Conv2d(6, 4, 1), nn.Conv2d(18, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        size = x.shape[-2:]
        out = [branch(x) for branch in self.branches]
        out.append(F.interpolate(self.global_(F.adaptive_avg_pool2d(x, 1)), size, mode="bilinear", align_corners=False))
        y = F.interpolate(F.max_pool2d(F.pad(x, (1, 1, 0, 2)), 2), size=size, mode="nearest")
        return self.fc(pooled(torch.relu(self.tail(torch.cat([*out, y], 1)))))


@case(image, grows="b c", factors=(1.5, 2.0))
class Unfolded(nn.Module):
    """A convolution by im2col and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = nn.Conv2d(3, 6, 3), nn.Parameter(torch.randn(8, 54) * 0.2)
        self.b, self.c, self.fc = nn.Conv2d(8, 9, 1), nn.Conv2d(9, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        columns = F.unfold(x, 3, padding=1)
        x = (self.weight @ columns).view(x.shape[0], -1, *x.shape[2:])
        return self.fc(pooled(torch.relu(self.c(torch.relu(self.b(x))))))


def vector_and_scale(seed: int) -> dict[str, Any]:
    return {"x": vector(seed), "extras": {"scale": 0.5, "shift": vector(seed + 1)}}


@case(vector_and_scale, grows="a b", factors=(1.5, 2.0))
class KeywordInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, extras: dict[str, Any]) -> Tensor:
        h = torch.relu(self.a(x) * extras["scale"] + self.a(extras["shift"]))
        return self.c(F.softplus(self.b(h)))


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


@case(vector, grows="a b", factors=(1.5, 2.0))
class ScriptedPart(nn.Module):
    """A scripted submodule inside: its operations are seen, its numbers cannot be set."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(scripted_swish(self.b(torch.relu(self.a(x)))))


def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.5 * x)


@case(image, fixed={"only": ""})
class NothingToGrow(nn.Module):
    """One layer from input to output: nothing may grow, and the student is the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


@case(image, refused="finite")
class NotFinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) / 0


@case(image, refused="record")
class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))
