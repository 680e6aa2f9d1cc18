"""What a block is, the registers of both kinds, and the parts that blocks share."""

from __future__ import annotations

import random

import torch
from torch import nn

SIDE, LENGTH = 4, 5


class Block(nn.Module):
    """A piece of a network; ``out`` is the width it returns, ``how`` the writing that was drawn."""

    writings: tuple[str, ...] = ("",)

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__()
        self.how = rng.choice(self.writings)
        self.out = self.make(c, rng) or c

    def make(self, c: int, rng: random.Random) -> int | None:
        """Create the layers; return the new width, or None if it stays."""


IMAGE: dict[str, type[Block]] = {}


TOKEN: dict[str, type[Block]] = {}


def image(cls: type[Block]) -> type[Block]:
    IMAGE[cls.__name__] = cls
    return cls


def token(cls: type[Block]) -> type[Block]:
    TOKEN[cls.__name__] = cls
    return cls


def norm_of(c: int, rng: random.Random) -> nn.Module:
    return rng.choice([nn.BatchNorm2d(c), nn.BatchNorm2d(c, affine=False), nn.Identity(), nn.InstanceNorm2d(c)])


def activation(rng: random.Random) -> nn.Module:
    kinds = [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.ReLU6(), nn.Tanh(), nn.ELU()]
    return rng.choice(kinds)


def vector(n: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(n) + 0.5)
