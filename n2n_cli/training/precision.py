"""Which number format and memory layout a run computes in."""

from __future__ import annotations

import torch

from n2n_cli.errors import N2NError, suggest

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype training runs its forward pass in by autocast; None is plain fp32.

    ``auto`` is bf16 on CUDA and fp32 on CPU.

    Raises:
        N2NError: unknown name, or bf16 on a GPU without it.
    """
    if precision not in PRECISIONS:
        hint = suggest(precision, PRECISIONS)
        raise N2NError(f"training.precision={precision!r}: expected one of {', '.join(PRECISIONS)}{hint}")
    if precision == "auto":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def use_channels_last(choice: bool | str) -> bool:
    """Whether images and weights are laid out NHWC; ``auto`` is yes."""
    if choice not in (True, False, "auto", "true", "false"):
        raise N2NError(f"training.channels_last={choice!r}: expected auto, true or false")
    return choice not in (False, "false")
