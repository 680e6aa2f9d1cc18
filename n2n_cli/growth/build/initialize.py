"""Random initialization, as the layers of PyTorch draw it."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from n2n_cli.growth.trace.calls import same_chance


def initialize(student: nn.Module, seed: int) -> None:
    """PyTorch's default initialization of every layer, drawn from ``seed``."""
    with same_chance(seed):
        for module in student.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            own = dict(module.named_parameters(recurse=False))
            before = {name: parameter.detach().clone() for name, parameter in own.items()}
            if callable(reset):
                with suppress(Exception):  # a user's own: it wants arguments, or counts on other shapes
                    reset()
            module._parameters.update(own)  # some make parameters anew, of the shapes that they know
            _reset_bare([p for name, p in own.items() if torch.equal(p, before[name])])


@torch.no_grad()
def _reset_bare(parameters: list[nn.Parameter]) -> None:
    """Parameters that no ``reset_parameters`` knows (of a module without one, of weight norm): constants stay, others
    keep their spread."""
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.std() > 0:
            parameter.copy_(torch.randn(parameter.shape) * parameter.std().item())
