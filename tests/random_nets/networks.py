"""Networks of blocks, and the specifications that they are drawn as."""

from __future__ import annotations

import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from nets import perturb
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import IMAGE, LENGTH, SIDE, TOKEN

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
