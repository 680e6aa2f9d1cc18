"""How units are drawn that shuffles move: which teacher unit each place of the student may copy (see `shuffles`)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, resolve
from n2n_cli.growth.groups.division import Division
from n2n_cli.growth.groups.reasons import Fork

Instance = tuple[int, int]
"""One tensor of a group: number of the shuffle that it enters, place among its source's spans."""
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

    @property
    def repeats(self) -> bool:
        """Whether its result holds a group several times."""
        return any_twice(self.out)

    def same_as(self, other: Shuffle) -> bool:
        """Whether it is the same in another recording."""
        one, two = (
            (s.fork, resolve(s.source), resolve(s.out), s.division.sizes, s.division.grows, s.order)
            for s in (self, other)
        )
        return one == two

    def move(self, tags: list[Tag]) -> list[Tag] | None:
        """The tags after the movement; None if their number cannot be divided so."""
        sizes = list(self.division.sizes)
        sizes[self.division.grows] = 1
        if len(tags) % prod(sizes):
            return None
        sizes[self.division.grows] = len(tags) // prod(sizes)
        where = torch.arange(len(tags)).view(sizes).permute(self.order).flatten()
        return [tags[i] for i in where.tolist()]


def any_twice(axis: Axis) -> bool:
    """Whether the axis holds a group several times."""
    groups = [group for group, _ in resolve(axis)]
    return len(set(groups)) < len(groups)


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


def drawn(
    shuffles: Sequence[Shuffle], used: set[Group], sizes: Mapping[Group, int], generator: torch.Generator
) -> dict[Group, tuple[Tensor, Tensor]] | None:
    """For every group of a live shuffle: the teacher unit of each student unit, [n'], and whether it is *idle*.

    A unit is idle if no teacher unit has its fate, so that what it holds arrives at places that have no counterpart in
    the teacher's network; its readers get weight zero. None: some teacher unit would have no place in the student.
    ``used``: the groups that some parameter has.
    """
    found: dict[Group, tuple[Tensor, Tensor]] = {}
    for shuffle in {s.fork: s for s in shuffles if s.repeats}.values():
        moved = _drawn_from_its_end(shuffle, sizes, generator)
        if moved is None:
            return None
        found |= moved
    shuffles = [shuffle for shuffle in shuffles if not shuffle.repeats]
    theirs, ours = _Fates(shuffles, used, {}), _Fates(shuffles, used, sizes)
    if not theirs.possible or not ours.possible:
        return None
    for group in _sources(shuffles):
        size = sizes.get(group, group.n)
        copied = _copied_within(
            [theirs.fate(group, unit) for unit in range(group.n)],
            [ours.fate(group, unit) for unit in range(size)],
            generator,
        )
        if copied is None:
            return None
        found[group] = copied
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


def _copied_within(
    theirs: Sequence[Hashable], ours: Sequence[Hashable], generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Teacher units for student units, each of a unit of its own kind, and which are idle: their kind is new.

    ``theirs`` and ``ours``: the kind of each unit. None: fewer student units than teacher units are of some kind.
    """
    units: dict[Hashable, list[int]] = {}
    for unit, kind in enumerate(theirs):
        units.setdefault(kind, []).append(unit)
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(ours):
        places.setdefault(kind, []).append(place)
    index, idle = torch.zeros(len(ours), dtype=torch.long), torch.ones(len(ours), dtype=torch.bool)
    for kind, here in units.items():
        there = places.get(kind, [])
        if len(there) < len(here):
            return None
        extra = torch.randint(len(here), (len(there) - len(here),), generator=generator)
        index[there] = torch.tensor([*here, *(here[i] for i in extra.tolist())])
        idle[there] = False
    return index, idle


def _drawn_from_its_end(
    shuffle: Shuffle, sizes: Mapping[Group, int], generator: torch.Generator
) -> dict[Group, tuple[Tensor, Tensor]] | None:
    """As `drawn`, for a shuffle whose result repeats groups.

    Example: A and B have units 0 1 2; the shuffle orders them A0 B0 A1 B1 A2 B2, and the result is C twice: its unit 0
    reads A0 and B1, unit 1 reads B0 and A2, unit 2 reads A1 and B2. With five units each C's first repeat is A0 B0 A1
    B1 A2, the second is B2 A3 B3 A4 B4. So units 0, 2 and 4 read A and B, as 0 and 2 did; they are copies of these, and
    1 and 3 of 1. (Four units each would not do: unit 0 would read A twice.) If C's index is 0 1 2 1 0, then A3 must
    hold what unit 1 read in the second repeat: A2.
    """
    theirs, ours = _repeats(shuffle, {}), _repeats(shuffle, sizes)
    if theirs is None or ours is None:
        return None
    found: dict[Group, tuple[Tensor, Tensor]] = {}
    for source, _ in resolve(shuffle.source):
        size = sizes.get(source, source.n)
        found[source] = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.bool)
    for group, mine in ours.items():
        copied = _copied_within(_kinds(theirs[group]), _kinds(mine), generator)
        if copied is None:
            return None
        found[group] = index, idle = copied
        for their, our in zip(theirs[group], mine, strict=True):
            for place, (source, _, unit, _) in enumerate(our):
                found[source][0][unit] = 0 if idle[place] else their[int(index[place])][2]
                found[source][1][unit] = idle[place]
    return found


def _kinds(repeats: list[list[Tag]]) -> list[Hashable]:
    """Of each unit: which groups it reads, in the order of the repeats."""
    return [tuple(tag[0] for tag in unit) for unit in zip(*repeats, strict=True)]


def _repeats(shuffle: Shuffle, sizes: Mapping[Group, int]) -> dict[Group, list[list[Tag]]] | None:
    """Of every group of the result: the tags in each of its repeats; None if the widths cannot be divided so."""
    source, out = resolve(shuffle.source), resolve(shuffle.out)
    moved = shuffle.move([(g, (0, 0), unit, 0) for g, _ in source for unit in range(sizes.get(g, g.n))])
    if moved is None or len(moved) != sum(sizes.get(group, group.n) for group, _ in out):
        return None
    found: dict[Group, list[list[Tag]]] = {}
    for group, _ in out:
        size = sizes.get(group, group.n)
        found.setdefault(group, []).append(moved[:size])
        moved = moved[size:]
    return found
