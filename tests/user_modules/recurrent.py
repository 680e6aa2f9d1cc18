"""Recurrent layers, and recurrences written as loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from user_modules.cases import case, sequence


@case(sequence, grows="head1", fixed={"inp": "rnn"}, factors=(1.5, 2.0))
class LSTMHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.rnn = nn.Linear(5, 6), nn.LSTM(6, 7, 1, batch_first=True, bidirectional=True)
        self.head1, self.head2 = nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(torch.relu(self.inp(x)))
        return self.head2(torch.relu(self.head1(y[:, -1])))


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
