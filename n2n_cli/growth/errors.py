"""Every refusal of this package is a GrowthError: one line that names the layer and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from n2n_cli.errors import RunError


class GrowthError(RunError):
    """A growth that cannot be exact, or cannot be done, and why."""


class OutOfMemory(GrowthError):
    """The memory does not suffice: nothing is wrong with the student, and holding groups back would not mend it."""


def lacks_memory(error: BaseException) -> bool:
    """Whether PyTorch (on a CPU it raises a plain RuntimeError) or Python could not get the memory it asked for."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def kind_of(error: BaseException) -> type[GrowthError]:
    """What to raise where a model's own code raised ``error``."""
    return OutOfMemory if lacks_memory(error) else GrowthError


@contextmanager
def enough_memory() -> Iterator[None]:
    """Around what may need more memory than there is.

    Raises:
        OutOfMemory: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(f"not enough memory to grow this network ({first_line(error)})") from error
