"""Weight norms: w = g v / |v|, each filter's norm taken over all that it reads.

Copies of what a filter reads change its norm. With r copies of every input, and v divided by r like any weight, |v|
becomes |v| / sqrt(r), so that w would be divided by sqrt(r) alone: g is divided by the other sqrt(r). That takes the
same r for all inputs (a tie), else |v'| depends on the values of v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Context, Relation, Remappings, Structure
from n2n_cli.growth.trace.record import Op


@dataclass(eq=False)
class WeightNorm:
    """``gain``: the name of g; ``read``: the axes of v that the norm is taken over."""

    gain: str
    read: list[Axis]


class WeightNorms(Relation):
    """``relate(g, axes)``; None if g is no parameter of its own."""

    name = "weight norm"

    def __init__(self) -> None:
        self.found: list[WeightNorm] = []

    def relate(self, ctx: Context, op: Op, *facts: Any) -> WeightNorm | None:
        gain, read = facts
        origin = ctx.origins(gain)[0]
        if origin is None:
            return None
        for axis in read:
            ctx.tie(op, axis, "a norm over its units")
        self.found.append(WeightNorm(origin[0], read))
        return self.found[-1]

    def multipliers(self, structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for norm in self.found:
            copies = 1.0
            for axis in norm.read:  # tied: every group of an axis has the same factor
                group = next((group for group, _ in resolve(axis) if group in remappings), None)
                copies *= len(remappings[group].index) / group.n if group is not None else 1
            if copies > 1:
                rows = sum(
                    (len(remappings[group].index) if group in remappings else group.n) * k
                    for group, k in resolve(structure.axes[norm.gain][0])
                )
                found[norm.gain] = torch.full((rows,), copies**-0.5, dtype=torch.float64)
        return found

    def shared_equally(self) -> dict[Group, Reason]:
        why = Reason("other", "a norm over the weights of its readers")
        return {group: why for norm in self.found for axis in norm.read for group, _ in resolve(axis)}
