"""Random initialization, as the layers of PyTorch draw it."""

from __future__ import annotations

import torch
from torch import nn


def initialize(student: nn.Module, seed: int) -> None:
    """PyTorch's default initialization of every layer, drawn from ``seed``."""
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for module in student.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            own = list(module.parameters(recurse=False))
            before = [parameter.detach().clone() for parameter in own]
            if callable(reset):
                reset()
            _reset_bare([p for p, was in zip(own, before, strict=True) if torch.equal(p, was)])


@torch.no_grad()
def _reset_bare(parameters: list[nn.Parameter]) -> None:
    """Parameters that no ``reset_parameters`` knows (of a module without one, of weight norm): constants stay, others
    keep their spread."""
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.std() > 0:
            parameter.copy_(torch.randn(parameter.shape) * parameter.std().item())
