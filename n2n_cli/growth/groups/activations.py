"""Activations as modules, where ``torch.nn`` has none, for operations that a deeper student repeats."""

from __future__ import annotations

from torch import Tensor, nn


class Clamp(nn.Module):
    """min(max(v, low), high); None is no bound."""

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def extra_repr(self) -> str:
        return f"{self.low}, {self.high}"


class Abs(nn.Module):
    """|v|."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()
