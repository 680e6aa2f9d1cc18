"""The number format and the memory layout that a run computes in."""

from __future__ import annotations

import torch

from n2n_cli.errors import N2NError, suggest

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Parameters. Far above the demo's networks and far below every real one: all arms of a study are on one side of it.
BF16_FROM = 100_000


def autocast_dtype(precision: str, device: torch.device, parameters: int) -> torch.dtype | None:
    """The dtype training runs its forward pass in by autocast; None is plain fp32.

    ``auto`` is bf16 where it gains: on GPUs that have it, and on CPUs with bf16 instructions (AVX512-BF16, AMX)
    for networks of at least `BF16_FROM` ``parameters``. Measured on one core of such a CPU, NHWC, bf16 against fp32:
    a step of Inception-BN 1.6x faster at 128 px, of ResNet-18 1.4x at 32 px, of the tiny Inception (10 k) 1.0x.

    Raises:
        N2NError: unknown name.
    """
    if precision not in PRECISIONS:
        hint = suggest(precision, PRECISIONS)
        raise N2NError(f"training.precision={precision!r}: expected one of {', '.join(PRECISIONS)}{hint}")
    if precision != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = parameters >= BF16_FROM and _cpu_has_bf16()
    return torch.bfloat16 if gains else None


def _cpu_has_bf16() -> bool:
    # Private names of torch: without them, plain fp32.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)


def use_channels_last(choice: bool | str) -> bool:
    """Whether images and weights are laid out NHWC. ``auto`` is yes: 1.3x faster on the CPU that `autocast_dtype`
    speaks of, and the layout that the tensor cores of a GPU compute in.

    Raises:
        N2NError: another word.
    """
    if choice not in (True, False, "auto", "true", "false"):
        raise N2NError(f"training.channels_last={choice!r}: expected auto, true or false")
    return choice not in (False, "false")
