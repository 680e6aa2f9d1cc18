"""How the groups of a structure hang together beyond sharing their units, for `survey`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from n2n_cli.growth import shuffles
from n2n_cli.growth.axes import Group, resolve
from n2n_cli.growth.infer import Structure
from n2n_cli.growth.plan import tie_classes


@dataclass(frozen=True)
class Hold:
    """Why units may not grow freely: ``operation`` at the module path ``module``, and ``text``; "" where none is."""

    operation: str
    module: str
    text: str

    @classmethod
    def of(cls, reason: str) -> Hold:
        """The parts of one of the engine's reasons, ``OPERATION at MODULE: TEXT``."""
        found = re.fullmatch(r"(\w+) at (.*?): (.*)", reason, re.DOTALL)
        if found is None:
            return cls("", "", reason)
        return cls(found[1], "" if found[2] == "the top module" else found[2], found[3])

    def __str__(self) -> str:
        return f"{self.operation} at {self.module or 'the top module'}: {self.text}" if self.operation else self.text


@dataclass
class Links:
    """``sources``: where the units of a derived group (the result of a shuffle or norm) come from; ``moved``: the
    operation that moves a group's units on; ``partners``: the groups that grow by the same factor."""

    sources: dict[Group, list[Group]] = field(default_factory=dict)
    moved: dict[Group, Hold] = field(default_factory=dict)
    partners: dict[Group, list[Group]] = field(default_factory=dict)

    def origins(self, group: Group, produced: Collection[Group]) -> list[Group]:
        """The groups among ``produced`` whose units ``group`` holds."""
        if group in produced or group not in self.sources:
            return [group]
        found = [g for source in self.sources[group] for g in self.origins(source, produced)]
        return list(dict.fromkeys(found))


def links_of(structure: Structure) -> Links:
    links = Links()
    for norm in structure.norms:
        stream, out = norm.groups()
        text = {"layer": "new units hold the mean of the others", "rms": "copies hold a share each"}[norm.kind]
        links.moved.setdefault(stream, Hold(norm.site[1], norm.site[0], text))
        links.sources[out] = [stream]
    for shuffle in shuffles.live(structure.shuffles):
        for group, _ in resolve(shuffle.out):
            links.sources[group] = [g for g, _ in resolve(shuffle.source)]
        for group in shuffle.groups():
            links.moved.setdefault(group, Hold(shuffle.site[1], shuffle.site[0], "a channel shuffle"))
    for part in [*shuffles.components(structure.shuffles), *(tie.groups for tie in tie_classes(structure))]:
        for group in part:
            links.partners.setdefault(group, []).extend(other for other in part if other is not group)
    return links
