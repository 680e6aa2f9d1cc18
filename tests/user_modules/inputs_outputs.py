"""Forms of inputs and outputs, and models that are refused."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled, vector

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


@case(image, refused="nothing of NothingToGrow can grow: only: the network's output")
class NothingToGrow(nn.Module):
    """One layer from input to output: nothing may grow, which is no student."""

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
