"""How new units start: what they hold, and which share of them their readers take.

The paper starts new units as copies that their readers share equally (section 2.3). Every other published way speaks of
the same two things, so that a way is one function here, which changes the drawn remapping of one group, and one row in
`WAYS`; sizes, attributes, proof and lineage do not know it.

=========  ==========================================  ======================================  =========================
way        a new unit holds                            its readers take                        source
=========  ==========================================  ======================================  =========================
copy       the unit g(j)                               equal or unequal shares, of sum 1       Net2Net; LEMON (2024)
fresh      what random initialization gives            nothing (new readers: random weights)   network morphism (2016)
paired     the same, two by two                        a random weight, with + and with -      R2R (2024)
gradmax    the same, turned until the gradient of      nothing                                 GradMax (2022)
           its readers' weights is large
=========  ==========================================  ======================================  =========================

All are exact in eval and in train mode, where an operation keeps units apart. Where it does not (a mean or a norm over
units, a channel shuffle) a group's new units are copies, whatever the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from n2n_cli.errors import suggest
from n2n_cli.growth.build.maps import Maps
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Group
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Remappings, Structure

SPECIAL = Reason("other", "its units are no plain copies")
LEAST = 1 / 3  # of two unequal shares the smaller is at least this part of the larger


@dataclass(frozen=True)
class Start:
    """A way to start: ``new`` is one of `WAYS`, ``split`` (of copies) one of `SPLITS`; ``seed``: of what is drawn."""

    new: str = "copy"
    split: str = "equal"
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is the paper's: copies with equal shares."""
        return self.new == "copy" and self.split == "equal"

    def __str__(self) -> str:
        return f"new={self.new}" if self.new != "copy" else f"split={self.split}"


COPIES = Start()


def start_of(new: str, split: str, noise: float, seed: int) -> Start:
    """A way to start, checked.

    Raises:
        GrowthError: an unknown way (the nearest is named), or a share or noise for units that are no copies.

    >>> start_of("fresh", "equal", 0.0, 0)
    Start(new='fresh', split='equal', seed=0)
    """
    for key, value, known in (("new", new, WAYS), ("split", split, SPLITS)):
        if not isinstance(value, str) or value not in known:
            raise GrowthError(f"{key} is {value!r}: expected one of {', '.join(known)}{suggest(str(value), known)}")
    if new != "copy" and (split != "equal" or noise):
        key = f"noise={noise:g}" if noise else f"split={split}"
        raise GrowthError(f"{key} is for copies, and new={new} makes none")
    return Start(new, split, seed)


def unequal(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    """Copies whose readers take different shares of them, of sum 1; so the copies get different gradients.

    >>> unequal(Remapping.of(torch.tensor([0, 1, 0]), 2), 2, torch.Generator().manual_seed(0)).share
    tensor([0.6051, 1.0000, 0.3949], dtype=torch.float64)
    """
    weight = LEAST + (1 - LEAST) * torch.rand(len(drawn.index), generator=generator, dtype=torch.float64)
    total = torch.zeros(units, dtype=torch.float64).index_add_(0, drawn.index, weight)
    return Remapping(drawn.index, drawn.copies, share=weight / total[drawn.index])


def fresh(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    """New units that hold what random initialization gives, and that no reader of the teacher reads.

    >>> started = fresh(Remapping.of(torch.tensor([0, 1, 0]), 2), 2, torch.Generator())
    >>> started.fresh, started.share
    (tensor([False, False,  True]), tensor([1., 1., 0.], dtype=torch.float64))
    """
    new = torch.arange(len(drawn.index)) >= units
    return Remapping(drawn.index, torch.ones_like(drawn.copies), share=(~new).double(), fresh=new)


def paired(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    """Fresh units, two of which hold the same and are read with weights w and -w; an odd one out is fresh.

    >>> started = paired(Remapping.of(torch.tensor([0, 1, 0, 1, 1]), 2), 2, torch.Generator())
    >>> started.twin, started.reads
    (tensor([0, 1, 2, 2, 4]), tensor([ 0.,  0.,  1., -1.,  0.], dtype=torch.float64))
    """
    out = fresh(drawn, units, generator)
    size = len(drawn.index)
    out.twin, out.reads = torch.arange(size), torch.zeros(size, dtype=torch.float64)
    for first in range(units, size - 1, 2):
        out.twin[first + 1] = first
        out.reads[first], out.reads[first + 1] = 1.0, -1.0
    return out


def as_drawn(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    """Copies with equal shares: the paper's."""
    return drawn


Way = Callable[[Remapping, int, torch.Generator], Remapping]
WAYS: Mapping[str, Way] = {"copy": as_drawn, "fresh": fresh, "paired": paired, "gradmax": fresh}
SPLITS: Mapping[str, Way] = {"equal": as_drawn, "unequal": unequal}


def started(
    structure: Structure, remappings: Remappings, start: Start, refused: Mapping[Group, Reason]
) -> tuple[Remappings, dict[Group, Reason]]:
    """The remappings of a way to start, and the groups that cannot take it: their new units are copies with unequal
    shares, or with equal ones where even these cannot be.

    Args:
        structure: the groups.
        remappings: as drawn (`sizes.draw.draw`).
        start: the way.
        refused: further groups that cannot take it, and why.
    """
    generator = torch.Generator().manual_seed(start.seed + 0x57A27)
    equal = {group: SPECIAL for group, remapping in remappings.items() if not remapping.plain}
    copied: dict[Group, Reason] = {}
    for relation in structure.relations:
        equal |= relation.shared_equally()
        copied |= relation.copied()
    no = {**equal, **refused} if start.new == "copy" else {**equal, **copied, **refused}
    way = SPLITS[start.split] if start.new == "copy" else WAYS[start.new]
    out = dict(remappings)
    for group in structure.groups():
        if group in remappings and not (group in no and (group in equal or start.new == "copy")):
            out[group] = (unequal if group in no else way)(remappings[group], group.n, generator)
    return out, {group: reason for group, reason in no.items() if group in remappings}


class RandomEntries:
    """The entries of a student's tensors that random initialization gives. Empty where every new unit is a copy.

    Masks by tensor, in a shape that broadcasts to the tensor's: ``made``: the entries that make a fresh unit; ``read``:
    with which the teacher's own readers read a pair; ``unread``: with which they read other fresh units, all 0;
    ``reading``: with which anything reads a fresh unit.
    """

    def __init__(self, maps: Maps, consumed: Collection[tuple[str, int]]) -> None:
        self.values: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.read: dict[str, Tensor] = {}
        self.unread: dict[str, Tensor] = {}
        self.reading: dict[str, Tensor] = {}
        self._maps, self._consumed = maps, consumed
        for name, axes in maps.items():
            for dim, axis in enumerate(axes):
                if axis is None or axis.fresh is None or axis.reads is None:
                    continue
                shape = [-1 if d == dim else 1 for d in range(len(axes))]
                if (name, dim) not in consumed:
                    _add(self.made, name, axis.fresh.view(shape))
                else:
                    _add(self.reading, name, axis.fresh.view(shape))
                    _add(self.read, name, (axis.reads != 0).view(shape))
                    _add(self.unread, name, (axis.fresh & (axis.reads == 0)).view(shape))
        for name in self.unread:
            self.unread[name] = self.unread[name] & ~self.made.get(name, torch.zeros(()).bool())

    @property
    def names(self) -> set[str]:
        """The tensors that have such entries."""
        return self.made.keys() | self.read.keys()

    def draw(self, name: str, tensor: Tensor) -> None:
        """Take the values from a randomly initialized tensor: twins get equal ones, pairs those with + and with -."""
        rows = columns = tensor
        for dim, axis in enumerate(self._maps[name]):
            if axis is None or axis.twin is None or axis.reads is None:
                continue
            twin = axis.twin.to(tensor.device)
            if (name, dim) not in self._consumed:
                rows = rows.index_select(dim, twin)
            elif name in self.read:
                sign = axis.reads.to(tensor).view([-1 if d == dim else 1 for d in range(tensor.ndim)])
                columns = columns.index_select(dim, twin) * sign
        made = self.made.get(name, torch.zeros(()).bool()).to(tensor.device)
        self.values[name] = torch.where(made, rows, columns)

    def enlarged(self, name: str, size: float) -> Tensor:
        """The values with those that make a fresh unit multiplied by ``size``, or 0 if they read another fresh one."""
        value, no = self.values[name], torch.zeros(()).bool()
        larger = torch.where(self.reading.get(name, no).to(value.device), torch.zeros_like(value), value * size)
        return torch.where(self.made.get(name, no).to(value.device), larger, value)

    def write(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor with these entries in their places."""
        if name not in self.values:
            return tensor
        no = torch.zeros(()).bool()
        places = (self.made.get(name, no) | self.read.get(name, no)).to(tensor.device)
        return torch.where(places, self.values[name].to(tensor), tensor)


def _add(masks: dict[str, Tensor], name: str, mask: Tensor) -> None:
    masks[name] = masks[name] | mask if name in masks else mask
