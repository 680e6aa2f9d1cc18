"""A view that divides an axis into factors: ``x.view(n, groups, channels // groups, h, w)``."""

from __future__ import annotations

from dataclasses import dataclass

from n2n_cli.growth.groups.axes import Axis
from n2n_cli.growth.groups.reasons import Fork, Reason

NO_FACTOR = 1000
"""A choice at a view: none of the factors of the divided axis takes its remapping."""


@dataclass(eq=False)
class Division:
    """A view divided the axis ``source`` into factors of ``sizes``; ``fork``: which of them takes the remapping.

    ``grows``: which factor the code makes longer for more channels.
    """

    fork: Fork
    source: Axis
    sizes: tuple[int, ...]
    grows: int

    def reason(self) -> Reason:
        """Why its units are held, where they are shuffled and cannot be followed."""
        return Reason("other", "a channel shuffle", self.fork[1], self.fork[0])


Factor = tuple[Division, int] | None
"""Which factor of which division an axis of a tensor is."""
