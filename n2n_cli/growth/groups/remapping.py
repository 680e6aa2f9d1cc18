"""How the units of a group come to be: the remapping ``g`` of the paper (section 2.3), and what units hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Remapping:
    """``index[j]`` is the teacher unit that student unit ``j`` copies; ``copies[j]`` is how many copies that one has.

    ``holds[j]``: the value of unit ``j`` as a multiple of the teacher unit's (None: 1 everywhere).
    ``share[j]``: the factor on a reader's weight for unit ``j`` (None: ``1 / copies[j]``).
    ``mean``: the units beyond the teacher's own hold the mean of all teacher units, instead of copies.
    ``idle``: units that hold a value which the teacher's network does not have there, and which nobody reads.
    ``fresh``: units that copy nothing, but hold what random initialization gives: those of the same number in ``twin``
    hold the same. ``reads``: the multiple of a random weight with which the teacher's own readers read them; 0: not.
    Over all copies of one teacher unit ``holds * share`` sums to 1, so whoever reads them gets the teacher's value.
    All tensors have the shape ``[n']``; ``holds`` and ``share`` are fp64.
    """

    index: Tensor
    copies: Tensor
    holds: Tensor | None = None
    share: Tensor | None = None
    mean: bool = False
    idle: Tensor | None = None
    fresh: Tensor | None = None
    twin: Tensor | None = None
    reads: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether every unit is a copy that its readers share equally."""
        return self.holds is None and self.share is None and not self.mean

    @classmethod
    def of(cls, index: Tensor, units: int) -> Remapping:
        """Plain copies of the teacher's ``units``."""
        return cls(index, torch.bincount(index, minlength=units)[index])
