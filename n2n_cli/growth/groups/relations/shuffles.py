"""Channel shuffles: data movement run on tags of units, where no axis algebra can follow.

view(C -> (2, C/2)), transpose, view back: neighbours come from far apart, and the next ``chunk`` sends them to
different places. No span ``(group, k)`` says that. So the shuffle's result is a group of its own, *derived*: every
position carries a tag (group, unit) of the unit that it holds, and the movement itself is carried out on these
tags, once with the teacher's sizes and once with the student's. A unit's *fate* is the set of places that it is
moved to; a student unit may copy the teacher units that share its fate.

A view is known as the first half of a shuffle only when its factors come back in another order. So the first inference
lets one factor take the remapping, as in any view; once the second half has been seen, the view's fork is given the
choice ``NO_FACTOR`` and everything is inferred again, with the axes between the two halves fixed.

ShuffleNet v1 shuffles between two grouped convolutions. The second gives one remapping to its groups, so the shuffle's
result *repeats* a group; it is drawn first then, and the source has to hold what it needs. The first convolution's
outputs take a remapping for each of its groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import torch

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Axis, Group, fix, fresh, is_open, resolve
from n2n_cli.growth.groups.division import NO_FACTOR, Division, Factor
from n2n_cli.growth.groups.reasons import Fork, Reason
from n2n_cli.growth.groups.relations.moved import Shuffle, any_twice, drawn
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import (
    Context,
    Hold,
    Relation,
    Remappings,
    Sizes,
    Structure,
    Wish,
)
from n2n_cli.growth.trace.record import Op


class Shuffles(Relation):
    """``relate(division, order)`` where one operation shuffles; else found where views come together."""

    name = "shuffle"

    def __init__(self) -> None:
        self.found: list[Shuffle] = []
        self._halves: dict[int, list[Division]] = {}  # tensor -> divisions that it stands in the middle of
        self._merged: set[int] = set()  # views that came back, by ``id`` of their result

    # while rules run
    def relate(self, ctx: Context, op: Op, *facts: Any) -> Axis:
        division, order = facts
        out = fresh(prod(division.sizes))
        self.found.append(Shuffle(ctx.at, division, out, tuple(order)))
        return out

    def merge(self, ctx: Context, op: Op, factors: Sequence[Factor]) -> Axis | None:
        """The axis that all factors of one earlier view come back to in another order."""
        known = [factor for factor in factors if factor is not None]
        if not known or len(known) < len(factors):
            return None
        division, order = known[0][0], [at for _, at in known]
        if any(other is not division for other, _ in known) or len(order) != len(division.sizes):
            return None
        inner = [i for i in order if division.sizes[i] > 1]
        if inner == sorted(inner) or not is_open(division.source):
            return None
        if ctx.choice(division.fork) != NO_FACTOR:
            ctx.wanted[division.fork] = NO_FACTOR
            return None
        out = self.relate(ctx, op, division, order)
        self._merged.add(id(op.outputs[0]))
        return out

    def after(self, ctx: Context, op: Op) -> None:
        """What lies between the two views of a shuffle has no label: nobody else may read it."""
        for tensor in op.tensors():
            for division in self._halves.get(id(tensor), []):
                if not any(id(out) in ctx.factors or id(out) in self._merged for out in op.outputs):
                    fix(division.source, ctx.reason(op, "reads a channel shuffle half-way"))
        for out in op.outputs:
            divisions = [factor[0] for factor in ctx.factors.get(id(out), []) if factor]
            halves = [division for division in divisions if ctx.choice(division.fork) == NO_FACTOR]
            if halves:
                self._halves[id(out)] = halves

    def end(self, ctx: Context) -> None:
        done = {id(shuffle.source) for shuffle in self.found}
        for division in [division for divisions in self._halves.values() for division in divisions]:
            if id(division.source) not in done:
                fix(division.source, division.reason())
        self._halves, self._merged = {}, set()

    def settle(self, ctx: Context) -> None:
        """Fix every shuffle that tags of units cannot follow, until nothing changes: one with a fixed unit; one whose
        result has units of several positions, meets its source, or is shared with another shuffle; one whose result
        meets itself, if its source does or is shared."""
        for shuffle in self.found:
            mine = {group for group, _ in resolve(shuffle.source)} if shuffle.repeats else set()
            for fork, axis in ctx.repeated if mine and any_twice(shuffle.source) else ():
                if mine & {group for group, _ in resolve(axis)}:
                    ctx.wanted[fork] = 1
        changed = True
        while changed:
            changed = False
            owner: dict[Group, Fork] = {}
            for shuffle in self.found:
                source, out = resolve(shuffle.source), resolve(shuffle.out)
                groups = [group for group, _ in out]
                wrong = any(k != 1 for _, k in out) or bool({g for g, _ in source} & set(groups))
                if shuffle.repeats:
                    wrong = wrong or any(k != 1 for _, k in source) or any_twice(source) or not self._alone(shuffle)
                else:
                    wrong = wrong or any(
                        owner.setdefault(g, shuffle.fork) != shuffle.fork for g in groups if not g.fixed
                    )
                why = [g.fixed for g, _ in [*source, *out] if g.fixed]
                if (wrong or why) and len(why) < len(source) + len(out):
                    fix([*source, *out], why[0] if why else shuffle.division.reason())
                    changed = True

    def _alone(self, shuffle: Shuffle) -> bool:
        mine = set(shuffle.groups())
        return all(shuffle.same_as(other) for other in self.found if mine & set(other.groups()))

    # sizes and remappings
    def live(self) -> list[Shuffle]:
        """Those that grow."""
        return [s for s in self.found if all(not g.fixed for g in s.groups())]

    def fit(self, structure: Structure, sizes: Sizes, wish: Wish) -> tuple[Sizes, list[Hold]]:
        """Groups that shuffles connect, at the size nearest to the wished one at which no unit gets lost."""
        holds: list[Hold] = []
        used = set(structure.groups())
        for part in self.bonds() if wish.kind != "student" else []:
            old, wanted = {group.n for group in part}, {sizes.get(group, group.n) for group in part}
            here = [s for s in self.live() if s.groups()[0] in part]
            n, target = min(old), min(wanted)
            near = sorted(range(n + 1, 2 * target + 2), key=lambda s: (abs(s - target), s))
            alike = [{group: group.n * size // n for group in part} for size in near]
            trials = [sizes, *({**sizes, **widths} for widths in alike if _proportional(widths))]
            wide = next((t for t in trials if drawn(here, used, t, torch.Generator()) is not None), None)
            sizes = wide or {**sizes, **{group: group.n for group in part}}
            if wide is None and wanted != old:
                holds.append(
                    Hold(part, replace(here[0].division.reason(), text="a wider channel shuffle loses a unit"))
                )
        return sizes, holds

    def draw(self, structure: Structure, sizes: Sizes, generator: torch.Generator) -> Remappings:
        if all(sizes.get(group, group.n) == group.n for part in self.bonds() for group in part):
            return {}
        moved = drawn(self.live(), set(structure.groups()), sizes, generator)
        if moved is None:
            place = self.found[0].fork[0]
            raise GrowthError(
                f"the student cannot be reached: with these widths the channel shuffle at {place} would lose a unit"
            )
        found: Remappings = {}
        for group, (index, idle) in moved.items():
            copies = torch.bincount(index[~idle], minlength=group.n).clamp(min=1)[index]
            if idle.any():
                found[group] = Remapping(
                    index, copies, torch.ones(len(index)).double(), ~idle / copies.double(), idle=idle
                )
            else:
                found[group] = Remapping(index, copies)
        return found

    def copied(self) -> dict[Group, Reason]:
        return {group: shuffle.division.reason() for shuffle in self.live() for group in shuffle.groups()}

    def bonds(self) -> list[list[Group]]:
        """Groups that a chain of shuffles connects: they change their sizes together."""
        parts: list[list[Group]] = []
        for shuffle in self.live():
            mine = dict.fromkeys(shuffle.groups())
            for part in [p for p in parts if any(g in mine for g in p)]:
                parts.remove(part)
                mine = dict.fromkeys([*part, *mine])
            parts.append(list(mine))
        return parts

    def passages(self) -> list[tuple[list[Group], list[Group], Reason]]:
        sides = [(s, [g for g, _ in resolve(s.source)], [g for g, _ in resolve(s.out)]) for s in self.live()]
        return [(source, out, shuffle.division.reason()) for shuffle, source, out in sides]


def _proportional(widths: Sizes) -> bool:
    """Whether no width was rounded."""
    return len({Fraction(size, group.n) for group, size in widths.items()}) == 1
