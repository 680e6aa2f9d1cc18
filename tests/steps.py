"""Optimizers, small fp64 networks and a few steps of training on random images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from nets import RandomNet, perturb
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from n2n_cli import growth
from n2n_cli.training.optim import TFRMSprop

Build = Callable[[Iterable[Tensor]], Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "sgd dampened": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.3, foreach=True),
    "sgd nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "rmsprop momentum": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9, weight_decay=1e-2),
    "rmsprop centered": lambda p: torch.optim.RMSprop(p, 3e-3, centered=True, weight_decay=1e-2),
    "rmsprop tensorflow": lambda p: TFRMSprop(p, 0.05, eps=1e-2, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adam decay": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, weight_decay=1e-2),
}
BLOCKS = [("conv", 4), ("residual", 5), ("concat", 3), ("grouped", 2), ("depthwise", 4)]


def network(kind: str = "conv") -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv":  # batch norm, residual, concatenation, groups
        return perturb(RandomNet(BLOCKS, 0)).double().train()
    layers = [nn.Flatten(), nn.Linear(192, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5)]
    return nn.Sequential(*layers).double()


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (8,), generator=generator)


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = batch(generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def gap(teacher: nn.Module, student: nn.Module) -> float:
    x, _ = batch(torch.Generator().manual_seed(99))
    return growth.function_gap(teacher, student, x)  # the worse of eval and train mode
