"""A residual branch that adds nothing at first: ``v + B(v)``, where the last factor of ``B`` is zero (R2DeeperR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branch(nn.Sequential):
    """``v + B(v)``: the layers of ``B`` are this module's children, in their order.

    Exact in any network, before any activation, as nothing is repeated: ``f(v + 0) = f(v)``.

    >>> net = nn.Sequential(Branch(nn.ReLU(), nn.Linear(2, 2)))
    >>> close(net, "0")
    ['0.1.weight', '0.1.bias']
    >>> net(torch.tensor([[-1.0, 3.0]])).tolist()
    [[-1.0, 3.0]]
    """

    def forward(self, v: Tensor) -> Tensor:
        return v + super().forward(v)


@torch.no_grad()
def close(model: nn.Module, path: str) -> list[str]:
    """Make the last layer or norm of the branch at ``path`` give zero, by its weight and bias; the names of these."""
    children = list(model.get_submodule(path).named_children())
    last = next(name for name, module in reversed(children) if module._parameters)
    names = [f"{path}.{last}.{name}" for name, _ in model.get_submodule(f"{path}.{last}").named_parameters()]
    for name in names:
        model.get_parameter(name).zero_()
    return names
