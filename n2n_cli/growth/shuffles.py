"""Channel shuffles: data movement run on unit labels, where no axis algebra can follow.

view(C -> (2, C/2)), transpose, view back: neighbours come from far apart, and the next ``chunk`` sends them to
different places. No run ``(group, k)`` says that. So the shuffle's result is a group of its own, *derived*: every
position carries the label (group, unit) of the unit that it holds, and the movement itself is carried out on these
labels, once with the teacher's sizes and once with the student's. A unit's *fate* is the set of places that it is
moved to; a student unit may copy the teacher units that share its fate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from n2n_cli.growth.axes import Axis, Group, Reason, Site, fix, resolve

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Structure

PASSES = {"view", "reshape", "permute", "transpose", "swapaxes", "swapdims", "clone", "contiguous"}  # inside a shuffle
SHUFFLED = 1000  # the choice of a view's site: no factor takes the mapping, the movement is run on labels

Instance = tuple[int, int]  # one tensor of a group: number of the shuffle that it enters, place among its source's runs
Label = tuple[Group, Instance, int, int]  # group, which of its tensors, unit, position inside the unit
Fate = frozenset[tuple[Instance, Group]]


@dataclass(eq=False)
class Pending:
    """An axis that a view divided; its factors may come back in another order."""

    site: Site
    source: Axis
    sizes: tuple[int, ...]


Piece = tuple[Pending, int]  # a factor of a divided axis


@dataclass(eq=False)
class Shuffle:
    """``out = source.view(sizes).permute(order).flatten()`` along one axis.

    The largest factor follows when the number of channels grows; the others are the code's own (the groups).
    """

    mode: int  # of the recording
    site: Site
    source: Axis
    out: Axis
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    def groups(self) -> list[Group]:
        return [group for axis in (self.source, self.out) for group, _ in resolve(axis)]

    def move(self, labels: list[Label]) -> list[Label] | None:
        """The labels after the movement; None if their number cannot be divided so."""
        grows = max(range(len(self.sizes)), key=lambda i: self.sizes[i])
        rest = prod(size for i, size in enumerate(self.sizes) if i != grows)
        if len(labels) % rest:
            return None
        sizes = [len(labels) // rest if i == grows else size for i, size in enumerate(self.sizes)]
        where = torch.arange(len(labels)).view(sizes).permute(self.order).flatten()
        return [labels[i] for i in where.tolist()]


def settle(shuffles: Iterable[Shuffle]) -> None:
    """Fix what labels cannot follow: shuffles with a fixed unit, results that are tied to other places or in blocks."""
    shuffles = list(shuffles)
    changed = True
    while changed:
        changed = False
        owner: dict[Group, Site] = {}
        for shuffle in shuffles:
            source, out = resolve(shuffle.source), resolve(shuffle.out)
            groups = [group for group, _ in out]
            wrong = any(k != 1 for _, k in out) or len(set(groups)) < len(groups)
            wrong = wrong or any(owner.setdefault(g, shuffle.site) != shuffle.site for g in groups if not g.fixed)
            wrong = wrong or bool({g for g, _ in source} & set(groups))
            still = [g.fixed for g, _ in [*source, *out] if g.fixed]
            if (wrong or still) and len(still) < len(source) + len(out):
                reason = still[0] if still else Reason.at(f"{shuffle.site[1]} at {shuffle.site[0]}: a channel shuffle")
                fix([*source, *out], reason)
                changed = True


class Fates:
    """Where every unit goes, with the sizes of ``sizes`` (the teacher's own if it is empty)."""

    def __init__(self, structure: Structure, sizes: Mapping[Group, int]) -> None:
        self.used = set(structure.groups())
        self.held: dict[Group, list[Label]] = {}  # a derived group's positions
        self.of: dict[tuple[Group, int], set[tuple[Instance, Group]]] = {}
        self.possible = True
        for number, shuffle in enumerate(live(structure.shuffles)):
            labels = self.labels(resolve(shuffle.source), sizes, number)
            moved = shuffle.move(labels)
            wanted = sum(sizes.get(g, g.n) for g, _ in resolve(shuffle.out))
            if moved is None or len(moved) != wanted:
                self.possible = False
                return
            at = 0
            for group, _ in resolve(shuffle.out):
                size = sizes.get(group, group.n)
                self.held[group] = moved[at : at + size]
                at += size
                if group in self.used:
                    for source, tensor, unit, _ in self.held[group]:
                        self.of.setdefault((source, unit), set()).add((tensor, group))

    def labels(self, runs: Axis, sizes: Mapping[Group, int], number: int) -> list[Label]:
        """What the source of shuffle ``number`` holds; a module called twice makes different tensors of one group."""
        out: list[Label] = []
        for at, (group, k) in enumerate(runs):
            if group in self.held:
                out += self.held[group]
            else:
                units = range(sizes.get(group, group.n))
                out += [(group, (number, at), unit, i) for unit in units for i in range(k)]
        return out

    def fate(self, group: Group, unit: int) -> Fate:
        return frozenset(self.of.get((group, unit), ()))


def live(shuffles: Iterable[Shuffle]) -> list[Shuffle]:
    return [s for s in shuffles if all(not g.fixed for g in s.groups())]


def sources(shuffles: Iterable[Shuffle]) -> set[Group]:
    """Groups that are drawn freely and then moved."""
    shuffles = live(shuffles)
    derived = {g for s in shuffles for g, _ in resolve(s.out)}
    return {g for s in shuffles for g, _ in resolve(s.source)} - derived


def draw(
    structure: Structure, sizes: Mapping[Group, int], generator: torch.Generator
) -> dict[Group, tuple[Tensor, Tensor]] | None:
    """For every group of a live shuffle: the teacher unit of each student unit, [n'], and whether it is *idle*.

    Idle units hold something that the teacher's place does not have; nobody reads them. None: with these sizes some
    teacher unit has nowhere to go.
    """
    shuffles = live(structure.shuffles)
    theirs, ours = Fates(structure, {}), Fates(structure, sizes)
    if not theirs.possible or not ours.possible:
        return None
    found: dict[Group, tuple[Tensor, Tensor]] = {}
    for group in [g for g in structure_order(shuffles) if g in sources(shuffles)]:
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
    for group, labels in ours.held.items():
        at = {label: position for position, label in enumerate(theirs.held[group])}
        index, idle = torch.zeros(len(labels), dtype=torch.long), torch.zeros(len(labels), dtype=torch.bool)
        for position, (source, tensor, unit, inner) in enumerate(labels):
            origin = at.get((source, tensor, int(found[source][0][unit]), inner))
            index[position] = 0 if origin is None else origin
            idle[position] = origin is None or bool(found[source][1][unit])
        missing = set(range(group.n)) - set(index[~idle].tolist())
        if missing and group in ours.used:
            return None
        if group in found and not torch.equal(found[group][0], index):
            return None
        found[group] = index, idle
    return found


def structure_order(shuffles: Iterable[Shuffle]) -> list[Group]:
    return list(dict.fromkeys(group for shuffle in shuffles for group in shuffle.groups()))


def components(shuffles: Iterable[Shuffle]) -> list[list[Group]]:
    """Groups that a chain of shuffles connects: they change their sizes together."""
    parts: list[list[Group]] = []
    for shuffle in live(shuffles):
        mine = dict.fromkeys(shuffle.groups())
        for part in [p for p in parts if any(g in mine for g in p)]:
            parts.remove(part)
            mine = dict.fromkeys([*part, *mine])
        parts.append(list(mine))
    return parts
