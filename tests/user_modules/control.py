"""Control flow, chance, state, hooks, scripts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from user_modules.cases import case, image, pooled, sequence, vector


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


@case(image, grows="stem tail", factors=(1.5, 2.0))
class HookedModel(nn.Module):
    """A forward hook that changes what a layer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)
        self.stem.register_forward_hook(lambda module, args, output: torch.tanh(output))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.tail(self.stem(x)))))


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
