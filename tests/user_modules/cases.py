"""What is expected of a module, the register of all of them, and the inputs that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


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
