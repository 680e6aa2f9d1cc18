"""Ties: units that may only be copied the same whole number of times.

The mean over n units (layer norm, group norm, ``x.mean(1)``) is unchanged if every unit is copied the same number of
times; with unequal copies it changes in general. Ties that share a group form one class, which grows by one whole
number.

>>> from n2n_cli.growth.groups.axes import Group
>>> a, b = Group(4), Group(6)
>>> ties = Ties()
>>> ties.found = [Tie([(a, 1), (b, 1)], Reason("other", "a mean"))]
>>> sizes, _ = ties.fit(None, {a: 7, b: 11}, Wish({}, "factor"))
>>> sizes[a], sizes[b]
(8, 12)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

import torch

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Axis, Group, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Context, Hold, Relation, Remappings, Sizes, Structure, Wish
from n2n_cli.growth.trace.record import Op


@dataclass
class Tie:
    """The groups of an axis, and the operation that ties them."""

    axis: Axis
    reason: Reason


@dataclass
class TieClass:
    """Groups that grow by one common whole number; ``fixed`` if one of them cannot grow at all."""

    groups: list[Group]
    reason: Reason
    fixed: Reason | None


class Ties(Relation):
    """``relate(axis, reason)``."""

    name = "tie"
    inseparable = False  # one fixed group keeps the whole class at its size (`fit`), but it alone is reported as held

    def __init__(self) -> None:
        self.found: list[Tie] = []

    def relate(self, ctx: Context, op: Op, *facts: Any) -> Tie:
        axis, reason = facts
        self.found.append(Tie(axis, reason))
        return self.found[-1]

    def classes(self) -> list[TieClass]:
        """Ties that share groups, merged."""
        classes: list[TieClass] = []
        for tie in self.found:
            spans = resolve(tie.axis)
            merged = TieClass([], tie.reason, next((g.fixed for g, _ in spans if g.fixed), None))
            members = dict.fromkeys(group for group, _ in spans if not group.fixed)
            for other in [c for c in classes if any(group in members for group in c.groups)]:
                classes.remove(other)
                members.update(dict.fromkeys(other.groups))
                merged.fixed = merged.fixed or other.fixed
            merged.groups = list(members)
            if members:
                classes.append(merged)
        return classes

    def fit(self, structure: Structure, sizes: Sizes, wish: Wish) -> tuple[Sizes, list[Hold]]:
        """The nearest whole number; what layers or a student ask for must be one."""
        sizes = dict(sizes)
        for tie in self.classes():
            wanted = {group: sizes.get(group, group.n) for group in tie.groups}
            ratios = [size / group.n for group, size in wanted.items()]
            factor = 1 if tie.fixed else floor(max(ratios) + 0.5)
            if wish.kind != "factor" and any(ratio != factor for ratio in ratios):
                why = f"{tie.reason}" + (f"; tied to a part that cannot grow ({tie.fixed})" if tie.fixed else "")
                asked = f"{min(ratios):g}" + (f" to {max(ratios):g}" if min(ratios) != max(ratios) else "")
                layers = structure.layers(tie.groups)
                named = ", ".join(layers[:3]) + (" ..." if layers[3:] else "")
                raise GrowthError(
                    f"the plan asks for {asked} times the units of {named}, but {why}: every unit must be copied the "
                    "same whole number of times"
                )
            sizes.update({group: group.n * factor for group in tie.groups})
        return sizes, []

    def rounds(self, sizes: Sizes, wish: Wish) -> bool:
        groups = [group for tie in self.classes() if not tie.fixed for group in tie.groups]
        return any(sizes.get(group, group.n) != wish.sizes.get(group, group.n) for group in groups)

    def draw(self, structure: Structure, sizes: Sizes, generator: torch.Generator) -> Remappings:
        groups = [g for tie in self.classes() for g in tie.groups if not g.fixed and sizes.get(g, g.n) != g.n]
        return {g: Remapping.of(torch.arange(g.n).repeat(sizes[g] // g.n), g.n) for g in groups}

    def bonds(self) -> list[list[Group]]:
        return [tie.groups for tie in self.classes()]

    def tied(self) -> dict[Group, tuple[Reason, Reason | None]]:
        return {group: (tie.reason, tie.fixed) for tie in self.classes() for group in tie.groups}

    def copied(self) -> dict[Group, Reason]:
        return {group: tie.reason for tie in self.classes() for group in tie.groups}
