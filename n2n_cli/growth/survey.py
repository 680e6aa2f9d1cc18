"""A network surveyed before it grows: which layers grow together, what holds them, and what a plan would make of it.

Shapes alone: nothing is computed, no weight is made or copied, the proof is not run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from n2n_cli.growth import deeper, narrow
from n2n_cli.growth.apply import with_state
from n2n_cli.growth.attributes import follow, set_attributes
from n2n_cli.growth.axes import Group, Reason, is_open, resolve
from n2n_cli.growth.infer import Structure, infer
from n2n_cli.growth.links import Hold, Links, links_of
from n2n_cli.growth.plan import Plan, Sizes, draw, solve, tie_classes
from n2n_cli.growth.planned import solved
from n2n_cli.growth.prove import prepared
from n2n_cli.growth.record import copied, named_buffers
from n2n_cli.growth.sites import Site, find_sites

OUTPUT = "the network's output"
_NO_CHANNELS = ("a kernel axis", "a spatial axis", "depthwise", "one value for many", "the network's input")
Growing = Literal["any factor", "whole numbers", "fixed"]


@dataclass(frozen=True)
class GroupRow:
    """Units that grow together.

    ``produced_by`` and ``read_by`` are layers (or parameters of their own, as a class token) in forward order;
    ``axes`` every (parameter or buffer, dimension) that follows; one unit covers ``positions`` consecutive channels
    (a head covers its head size). ``grown``: the units after the plan. ``tied``: the operation that wants every unit
    copied equally often, so whole numbers only; ``moved``: one that any factor passes by special means (a channel
    shuffle, a norm); ``together``: the numbers of the groups that these make grow by the same factor.
    """

    number: int
    units: int
    grown: int
    positions: int
    produced_by: list[str]
    read_by: list[str]
    axes: list[tuple[str, int]]
    tied: Hold | None = None
    moved: Hold | None = None
    fixed: Hold | None = None
    together: list[int] = field(default_factory=list)

    @property
    def growing(self) -> Growing:
        return "fixed" if self.fixed else "whole numbers" if self.tied else "any factor"


@dataclass(frozen=True)
class LayerRow:
    """A weight in the forward pass: ``makes`` the runs (group number, channels, channels after the plan) of its output
    in their order, with 0 for channels of no group; ``reads`` the numbers of the groups in its input."""

    name: str
    weight: str
    shape: tuple[int, ...]
    reads: list[int]
    makes: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Survey:
    """What `survey` found. ``student``: the network after the plan, its tensors on the meta device; None without."""

    groups: list[GroupRow]
    layers: list[LayerRow]
    sites: list[Site]
    parameters: int
    parameters_grown: int
    student: nn.Module | None = field(default=None, repr=False)


def survey(model: nn.Module, example_input: Any, plan: Plan | None = None) -> Survey:
    """The groups of ``model``, its sites for identity layers, and the dry run of a plan to widen it.

    Args:
        model: any module; its tensors may lie on the meta device. It is not modified.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments), of which only the shapes matter.
        plan: as for `widen`: a factor, ``{layer pattern: factor or width}``, or a wider student.

    Raises:
        GrowthError: the model cannot be recorded, or the plan cannot be met.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = survey(net, torch.empty(1, 3), 1.5)
    >>> for group in found.groups:
    ...     print(group.produced_by, group.read_by, group.units, group.grown, group.growing, "|", group.fixed)
    ['0'] ['2'] 4 6 any factor | None
    ['2'] [] 2 2 fixed | the network's output
    >>> found.parameters, found.parameters_grown, [site.layer for site in found.sites if not site.refusal]
    (26, 38, ['0'])
    """
    example = prepared(model, example_input, pair=False)
    structure, sizes = (_freest(model, example), {}) if plan is None else solved(model, example, plan)
    student: nn.Module | None = None
    if isinstance(plan, nn.Module):
        student = plan
    elif plan is not None:
        student, sizes = _student(model, structure, sizes, plan)
    links = links_of(structure)
    shapes = _shapes(structure, sizes)
    parameters = {name: tensor.shape for name, tensor in model.named_parameters()}
    order = _in_order(structure, parameters)
    numbers, rows = _groups(structure, order, sizes, links)
    return Survey(
        groups=rows,
        layers=_layers(structure, order, numbers, sizes, links),
        sites=find_sites(model, example_input),
        parameters=sum(shape.numel() for shape in parameters.values()),
        parameters_grown=sum(torch.Size(shapes[name]).numel() for name in parameters),
        student=student,
    )


def deepened(
    model: nn.Module, example_input: Any, sites: Sequence[str] | None = None, *, pairs: int = 1
) -> tuple[nn.Module, list[str]]:
    """The dry run of `deepen`: the deeper network on the meta device, and the modules that new layers stand behind.

    Raises:
        GrowthError: no layer matches, or none allows an identity layer behind it.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> student, behind = deepened(net, torch.empty(1, 3))
    >>> behind, [tuple(p.shape) for p in student.parameters()]
    (['0'], [(4, 3), (4,), (4, 4), (4,), (2, 4), (2,)])
    """
    insertions = deeper.insertions(model, prepared(model, example_input), sites, pairs)
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    with torch.device("meta"):
        student, _ = deeper.insert(copied(model, memo), insertions)
    return student, [insertion["after"] for insertion in insertions]


def _shapes(structure: Structure, sizes: Sizes) -> dict[str, list[int]]:
    return {
        name: [sum(sizes.get(g, g.n) * k for g, k in resolve(axis)) for axis in axes]
        for name, axes in structure.axes.items()
    }


def _student(model: nn.Module, structure: Structure, sizes: Sizes, plan: Plan) -> tuple[nn.Module, Sizes]:
    """The wider network on the meta device, mended or narrowed where its shapes go astray, as growing will do."""
    while True:
        shapes, state = _shapes(structure, sizes), dict[str, Tensor]()
        for name, tensor in [*model.named_parameters(remove_duplicate=False), *named_buffers(model)]:
            first = structure.aliases[name]
            state.setdefault(first, torch.empty(shapes[first], dtype=tensor.dtype, device="meta"))
        student = with_state(model, state, structure.aliases)
        mappings = draw(structure, sizes, 0)
        attributes = follow(model, structure, mappings)
        set_attributes(student, attributes)
        if any(recording.device != "meta" for recording in structure.recordings):
            return student, sizes
        fault = narrow.find(structure, mappings, student)
        while fault and (better := narrow.reread(model, structure, mappings, student, attributes, fault)):
            attributes, fault = better
        if fault is None or not fault.groups or not isinstance(plan, float | int):
            return student, sizes
        narrow.hold(structure, fault.groups, Reason.at(f"{fault.op}: {fault.text}"))
        sizes = solve(structure, plan)


def _is_weight(name: str) -> bool:
    return "weight" in name.rpartition(".")[2]


def _layer(name: str) -> str:
    """The layer of a weight; a parameter of another kind (a class token) by its own name."""
    return (name.rpartition(".")[0] if _is_weight(name) else name) or name


def _in_order(structure: Structure, parameters: Collection[str]) -> list[str]:
    """Parameters in forward order; those that nothing read last."""
    return [name for name in dict.fromkeys([*structure.readers, *structure.axes]) if name in parameters]


def _roles(structure: Structure, name: str) -> tuple[list[int], list[int]]:
    """The dimensions of a weight that read channels, and those that make channels."""
    axes = structure.axes[name]
    dims = [d for d in range(len(axes)) if len(axes) > 1 and (d < 2 or not _is_weight(name))]
    reads = [d for d in dims if (name, d) in structure.consumed]
    makes = [d for d in dims if d not in reads and not all(_no_channels(g) for g, _ in resolve(axes[d]))]
    if not _is_weight(name):  # the positions of a table or a token, unless they are all it has
        makes = [d for d in makes if is_open(axes[d])] or makes
    return reads, makes


def _no_channels(group: Group) -> bool:
    return group.fixed is not None and group.fixed.endswith(_NO_CHANNELS)


def _freest(model: nn.Module, example: Any) -> Structure:
    """The structure with norms relaxed where that is possible: what may grow by any factor does."""
    structure = infer(model, example)
    if structure.ties and (relaxed := infer(model, example, uneven=True)).norms:
        return relaxed
    return structure


def _read(structure: Structure, name: str, links: Links, produced: Collection[Group]) -> list[Group]:
    """The groups whose units a weight reads, shuffled or normed as they may be; a depthwise one reads what it makes."""
    axes = structure.axes[name]
    reads, makes = _roles(structure, name)
    found = [g for dim in reads for group, _ in resolve(axes[dim]) for g in links.origins(group, produced)]
    for group in [group for dim in makes for group, _ in resolve(axes[dim]) if group in links.sources]:
        found += [g for source in links.sources[group] for g in links.origins(source, produced)]
    return found


def _groups(
    structure: Structure, order: list[str], sizes: dict[Group, int], links: Links
) -> tuple[dict[Group, int], list[GroupRow]]:
    produced: dict[Group, dict[str, int]] = {}  # -> layer -> channels a unit
    read: dict[Group, list[str]] = {}
    for name in order:
        for dim in _roles(structure, name)[1]:
            for group, k in resolve(structure.axes[name][dim]):
                if not _no_channels(group):
                    produced.setdefault(group, {}).setdefault(_layer(name), k)
    for name in order:
        for group in _read(structure, name, links, produced):
            read.setdefault(group, []).append(_layer(name))
    places, classes = structure.groups(), {group: tie for tie in tie_classes(structure) for group in tie.groups}
    # single units that were fixed one by one are told as one
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in produced:
        key = (str(group.fixed), *places[group], *read.get(group, [])) if group.fixed else (group,)
        alike.setdefault(key, []).append(group)
    numbers = {group: at for at, groups in enumerate(alike.values(), start=1) for group in groups}
    rows = []
    for number, groups in enumerate(alike.values(), start=1):
        group = groups[0]
        tie = classes.get(group)
        fixed = str(group.fixed) if group.fixed else tie.fixed if tie else None
        rows.append(
            GroupRow(
                number=number,
                units=sum(g.n for g in groups),
                grown=sum(sizes.get(g, g.n) for g in groups),
                positions=max(produced[group].values()),
                produced_by=list(produced[group]),
                read_by=list(dict.fromkeys(read.get(group, []))),
                axes=places[group],
                tied=Hold.of(tie.reason) if tie else None,
                moved=None if fixed else links.moved.get(group),
                fixed=Hold.of(fixed) if fixed else None,
                together=sorted({numbers[g] for g in links.partners.get(group, []) if g in numbers} - {number}),
            )
        )
    return numbers, rows


def _layers(
    structure: Structure, order: list[str], numbers: dict[Group, int], sizes: dict[Group, int], links: Links
) -> list[LayerRow]:
    rows = []
    for name in order:
        axes = structure.axes[name]
        makes = [run for dim in _roles(structure, name)[1] for run in resolve(axes[dim])]
        runs = [(numbers.get(g, 0), g.n * k, sizes.get(g, g.n) * k) for g, k in makes]
        if any(number for number, _, _ in runs):
            shape = tuple(sum(g.n * k for g, k in resolve(axis)) for axis in axes)
            found = _read(structure, name, links, numbers)
            read = list(dict.fromkeys(numbers[g] for g in found if g in numbers))
            rows.append(LayerRow(_layer(name), name, shape, read, _joined(runs)))
    return rows


def _joined(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbouring runs of one group as one."""
    out: list[tuple[int, int, int]] = []
    for number, before, after in runs:
        if out and out[-1][0] == number:
            before, after = before + out[-1][1], after + out[-1][2]
            out.pop()
        out.append((number, before, after))
    return out
