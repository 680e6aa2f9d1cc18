"""How the units of a group come to be: the remapping ``g`` of the paper (section 2.3), and what units hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Remapping:
    """``index[j]`` is the teacher unit that student unit ``j`` copies, ``copies[j]`` its replication factor.

    ``holds[j]`` is what unit ``j`` holds, as a multiple of the teacher's unit (None: 1 everywhere), and ``share[j]``
    what a reader's weight for that teacher unit is multiplied by (None: divided by ``copies``); the shares of all that
    holds a unit's value sum to 1. With ``mean``, units beyond the teacher's own hold the mean of all the teacher's
    units. ``idle`` units hold something of their own, which nobody reads. All have the shape ``[n']``; numbers are
    fp64.
    """

    index: Tensor
    copies: Tensor
    holds: Tensor | None = None
    share: Tensor | None = None
    mean: bool = False
    idle: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether every unit is a copy that its readers share equally."""
        return self.holds is None and self.share is None and not self.mean

    @classmethod
    def of(cls, index: Tensor, units: int) -> Remapping:
        """Plain copies of the teacher's ``units``."""
        return cls(index, torch.bincount(index, minlength=units)[index])
