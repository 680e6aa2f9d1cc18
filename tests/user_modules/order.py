"""What tells channels apart: these stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import CASES, Case, case, image, pooled, vector


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
_fixing("EverySecond", None, lambda x: x[:, ::2] + x[:, 1::2])
_fixing("FirstChannel", None, lambda x: x * x[:, :1])
_fixing("LocalResponse", "pool", lambda x: F.local_response_norm(x, 3))
_fixing("FourierOverChannels", "fft", lambda x: torch.fft.rfft(x, dim=1).abs())
_fixing("GramMatrix", "", lambda x: (x.flatten(2) @ x.flatten(2).mT).unsqueeze(-1))
_fixing("EntropyWeight", "", lambda x: x * x.std(1, keepdim=True))
_fixing("ArangeWeights", "", lambda x: x * torch.arange(1.0, x.shape[1] + 1).to(x)[None, :, None, None])
_fixing("MedianOverChannels", "median", lambda x: x - x.median(1, keepdim=True).values)
_fixing("DifferenceOverChannels", "", lambda x: torch.diff(x, dim=1))
_fixing("Winner", "", lambda x: x * F.one_hot(x.argmax(1), x.shape[1]).permute(0, 3, 1, 2).to(x))


@case(vector, grows="a", fixed={"b": ""}, factors=(1.5, 2.0))
class CosineClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 6)
        self.prototypes = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x)))
        return 10 * F.linear(F.normalize(x, dim=-1), F.normalize(self.prototypes, dim=-1))


@case(image, grows="stem mid tail", factors=(1.5, 2.0))
class PlainTensorConstant(nn.Module):
    """A tensor that is neither parameter nor buffer: in the student it is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 8, 3)
        self.tail, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)
        self.mask = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 1.0, 1.5, 1.0], dtype=torch.float64).view(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(torch.relu(self.stem(x))) * self.mask.to(x)
        return self.fc(pooled(torch.relu(self.tail(x))))
