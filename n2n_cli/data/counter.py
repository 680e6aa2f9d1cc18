"""Random numbers that are functions of (seed, epoch, index): no state, so nothing to save, share or restore.

The numbers an image gets do not depend on the batch it is in, on the number of workers or ranks, or on where
a run was stopped. The hash is SplitMix64 (Steele, Lea & Flood 2014), in torch's wrapping int64 arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN, _MUL1, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key(*parts: int) -> int:
    """One 63-bit number for a tuple of whole numbers, fit for `torch.Generator.manual_seed`."""
    state = len(parts)
    for part in parts:
        state = (state * _GOLDEN + part + 1) & _MASK
        state = ((state ^ (state >> 30)) * _MUL1) & _MASK
        state = ((state ^ (state >> 27)) * _MUL2) & _MASK
        state ^= state >> 31
    return state >> 1


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded with `key`."""
    return torch.Generator().manual_seed(key(*parts))


def uniforms(seed: int, epoch: int, indices: Tensor, draws: int) -> Tensor:
    """float64 ``[len(indices), draws]`` in [0, 1): row i depends on (seed, epoch, indices[i]) alone."""
    state = _mix(indices.to(torch.int64) * _signed(_GOLDEN) + key(seed, epoch))
    counters = torch.arange(1, draws + 1, dtype=torch.int64) * _signed(_GOLDEN)
    return _shift(_mix(state[:, None] + counters), 11).to(torch.float64) * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MUL1)
    x = (x ^ _shift(x, 27)) * _signed(_MUL2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """The logical right shift; torch's ``>>`` copies the sign of an int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
