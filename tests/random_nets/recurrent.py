"""Recurrence, and operations along the sequence."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import LENGTH, Block, token


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
