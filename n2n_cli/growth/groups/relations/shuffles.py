"""Channel shuffles: data movement run on tags of units, where no axis algebra can follow.

view(C -> (2, C/2)), transpose, view back: neighbours come from far apart, and the next ``chunk`` sends them to
different places. No span ``(group, k)`` says that. So the shuffle's result is a group of its own, *derived*: every
position carries a tag (group, unit) of the unit that it holds, and the movement itself is carried out on these
tags, once with the teacher's sizes and once with the student's. A unit's *fate* is the set of places that it is
moved to; a student unit may copy the teacher units that share its fate.

A view is known as the first half of a shuffle only when its factors come back in another order. So the first inference
lets one factor take the remapping, as in any view; once the second half has been seen, the view's fork is given the
choice ``NO_FACTOR`` and everything is inferred again, with the axes between the two halves fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Axis, Group, fix, fresh, is_open, resolve
from n2n_cli.growth.groups.reasons import Fork, Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import (
    NO_FACTOR,
    Context,
    Division,
    Factor,
    Hold,
    Relation,
    Remappings,
    Sizes,
    Structure,
    Wish,
)
from n2n_cli.growth.trace.record import Op

Instance = tuple[
    int, int
]  # one tensor of a group: number of the shuffle that it enters, place among its source's spans
Tag = tuple[Group, Instance, int, int]
"""One entry that a shuffle moves: its group, which tensor of that group, the unit, the position inside the unit."""
Fate = frozenset[tuple[Instance, Group]]


@dataclass(eq=False)
class Shuffle:
    """``out = source.view(sizes).permute(order).flatten()`` along one axis, in recording ``at``.

    One factor follows when the number of channels grows; the others are the code's own (the groups).
    """

    at: int
    division: Division
    out: Axis
    order: tuple[int, ...]

    @property
    def fork(self) -> Fork:
        return self.division.fork

    @property
    def source(self) -> Axis:
        return self.division.source

    def groups(self) -> list[Group]:
        return [group for axis in (self.source, self.out) for group, _ in resolve(axis)]

    def move(self, tags: list[Tag]) -> list[Tag] | None:
        """The tags after the movement; None if their number cannot be divided so."""
        sizes = list(self.division.sizes)
        sizes[self.division.grows] = 1
        if len(tags) % prod(sizes):
            return None
        sizes[self.division.grows] = len(tags) // prod(sizes)
        where = torch.arange(len(tags)).view(sizes).permute(self.order).flatten()
        return [tags[i] for i in where.tolist()]


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
        result has units of several positions, meets itself or its source, or is shared with another shuffle."""
        changed = True
        while changed:
            changed = False
            owner: dict[Group, Fork] = {}
            for shuffle in self.found:
                source, out = resolve(shuffle.source), resolve(shuffle.out)
                groups = [group for group, _ in out]
                wrong = any(k != 1 for _, k in out) or len(set(groups)) < len(groups)
                wrong = wrong or any(owner.setdefault(g, shuffle.fork) != shuffle.fork for g in groups if not g.fixed)
                wrong = wrong or bool({g for g, _ in source} & set(groups))
                why = [g.fixed for g, _ in [*source, *out] if g.fixed]
                if (wrong or why) and len(why) < len(source) + len(out):
                    fix([*source, *out], why[0] if why else shuffle.division.reason())
                    changed = True

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
            wide = next((t for t in trials if _drawn(here, used, t, torch.Generator()) is not None), None)
            sizes = wide or {**sizes, **{group: group.n for group in part}}
            if wide is None and wanted != old:
                holds.append(
                    Hold(part, replace(here[0].division.reason(), text="a wider channel shuffle loses a unit"))
                )
        return sizes, holds

    def draw(self, structure: Structure, sizes: Sizes, generator: torch.Generator) -> Remappings:
        if all(sizes.get(group, group.n) == group.n for part in self.bonds() for group in part):
            return {}
        moved = _drawn(self.live(), set(structure.groups()), sizes, generator)
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


class _Fates:
    """In which derived groups each unit ends up, with the widths in ``sizes`` (empty: the teacher's).

    A student unit may copy a teacher unit only if both have the same fate: then the same weights read both.

    Example: A has units 0 1 2 3. A shuffle in two groups orders them 0 2 1 3, and the result is cut into B (0, 2) and
    C (1, 3). In the student A has six places, which the shuffle orders 0 3 1 4 2 5: B gets places 0, 3, 1 and C gets
    4, 2, 5. So places 0, 1 and 3 of the student's A may hold only copies of units 0 and 2, and places 2, 4 and 5 only
    copies of units 1 and 3.

    ``held``: derived group -> the tag at each of its positions. ``of``: (group, unit) -> where it goes, counting only
    groups that some parameter has (``used``). ``possible``: False if a shuffle cannot divide these widths.
    """

    def __init__(self, shuffles: Sequence[Shuffle], used: set[Group], sizes: Mapping[Group, int]) -> None:
        self.held: dict[Group, list[Tag]] = {}  # a derived group's positions
        self.of: dict[tuple[Group, int], set[tuple[Instance, Group]]] = {}
        self.possible = True
        for number, shuffle in enumerate(shuffles):
            tags = self._tags(resolve(shuffle.source), sizes, number)
            moved = shuffle.move(tags)
            wanted = sum(sizes.get(g, g.n) for g, _ in resolve(shuffle.out))
            if moved is None or len(moved) != wanted:
                self.possible = False
                return
            at = 0
            for group, _ in resolve(shuffle.out):
                size = sizes.get(group, group.n)
                self.held[group] = moved[at : at + size]
                at += size
                if group in used:
                    for source, tensor, unit, _ in self.held[group]:
                        self.of.setdefault((source, unit), set()).add((tensor, group))

    def _tags(self, spans: Axis, sizes: Mapping[Group, int], number: int) -> list[Tag]:
        """What the source of shuffle ``number`` holds; a module called twice makes different tensors of one group."""
        out: list[Tag] = []
        for at, (group, k) in enumerate(spans):
            if group in self.held:
                out += self.held[group]
            else:
                units = range(sizes.get(group, group.n))
                out += [(group, (number, at), unit, i) for unit in units for i in range(k)]
        return out

    def fate(self, group: Group, unit: int) -> Fate:
        return frozenset(self.of.get((group, unit), ()))


def _sources(shuffles: Iterable[Shuffle]) -> list[Group]:
    """Groups that are drawn freely and then moved, in the order of the network."""
    shuffles = list(shuffles)
    derived = {g for s in shuffles for g, _ in resolve(s.out)}
    sources = {g for s in shuffles for g, _ in resolve(s.source)} - derived
    return [g for g in dict.fromkeys(group for s in shuffles for group in s.groups()) if g in sources]


def _drawn(
    shuffles: Sequence[Shuffle], used: set[Group], sizes: Mapping[Group, int], generator: torch.Generator
) -> dict[Group, tuple[Tensor, Tensor]] | None:
    """For every group of a live shuffle: the teacher unit of each student unit, [n'], and whether it is *idle*.

    A unit is idle if no teacher unit has its fate, so that what it holds arrives at places that have no counterpart in
    the teacher's network; its readers get weight zero. None: some teacher unit would have no place in the student.
    ``used``: the groups that some parameter has.
    """
    theirs, ours = _Fates(shuffles, used, {}), _Fates(shuffles, used, sizes)
    if not theirs.possible or not ours.possible:
        return None
    found: dict[Group, tuple[Tensor, Tensor]] = {}
    for group in _sources(shuffles):
        size = sizes.get(group, group.n)
        units: dict[Fate, list[int]] = {}
        for unit in range(group.n):
            units.setdefault(theirs.fate(group, unit), []).append(unit)
        places: dict[Fate, list[int]] = {}
        for unit in range(size):
            places.setdefault(ours.fate(group, unit), []).append(unit)
        index, idle = torch.zeros(size, dtype=torch.long), torch.ones(size, dtype=torch.bool)
        for fate, here in units.items():
            there = places.get(fate, [])
            if len(there) < len(here):
                return None
            extra = torch.randint(len(here), (len(there) - len(here),), generator=generator)
            index[there] = torch.tensor([*here, *(here[i] for i in extra.tolist())])
            idle[there] = False
        found[group] = index, idle
    for group, tags in ours.held.items():
        at = {tag: position for position, tag in enumerate(theirs.held[group])}
        index, idle = torch.zeros(len(tags), dtype=torch.long), torch.zeros(len(tags), dtype=torch.bool)
        for position, (source, tensor, unit, inner) in enumerate(tags):
            origin = at.get((source, tensor, int(found[source][0][unit]), inner))
            index[position] = 0 if origin is None else origin
            idle[position] = origin is None or bool(found[source][1][unit])
        missing = set(range(group.n)) - set(index[~idle].tolist())
        if missing and group in used:
            return None
        if group in found and not torch.equal(found[group][0], index):
            return None
        found[group] = index, idle
    return found
