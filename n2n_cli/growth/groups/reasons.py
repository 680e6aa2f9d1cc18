"""Why units may not grow: data, with a kind to decide by and a text to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Fork = tuple[str, str, int, int]
"""Where a rule had a choice: module path, operation, which one of these in the module, which part of its result."""

Kind = Literal[
    "input",  # an axis of the network's input
    "output",  # an axis of its output
    "kernel",  # of a convolution's weight
    "spatial",  # height, width
    "depthwise",  # the input axis of a depthwise weight
    "broadcast",  # one value for many
    "position",  # of a sequence, told apart from others
    "unknown",  # an operation without a rule
    "unreached",  # of a parameter that no example reads
    "failed",  # a student with more of these units went astray
    "other",
]
NO_CHANNELS: frozenset[Kind] = frozenset({"kernel", "spatial", "depthwise", "broadcast", "input"})
"""Of axes that nobody would call channels."""
OBVIOUS: frozenset[Kind] = frozenset({"kernel", "depthwise", "broadcast", "input", "position", "unreached"})
"""Not worth telling: everybody expects it."""


@dataclass(frozen=True)
class Reason:
    """``operation`` at the module path ``path`` holds units, because of ``text``; ``operation`` "": no single one does.

    ``fork``: the choice that could be made otherwise, if there is one.
    """

    kind: Kind
    text: str
    operation: str = ""
    path: str = ""
    fork: Fork | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.operation} at {self.path or 'the top module'}: {self.text}" if self.operation else self.text
