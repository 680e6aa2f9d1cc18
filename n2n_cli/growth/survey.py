"""A network surveyed before it grows: which layers grow together, what holds them, and what a plan would make of it.

Shapes alone: no student's weight is made, and the proof is not run. Only a model that cannot run on meta tensors (its
code depends on values) is run once on clones of its real ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn

from n2n_cli.growth.build.starts import Start, start_of, started
from n2n_cli.growth.build.students import Candidate, shapes_alone
from n2n_cli.growth.depth.insert import insert, insertions
from n2n_cli.growth.depth.sites import Site, find_sites
from n2n_cli.growth.depth.width import free_layers
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Group, is_open, resolve
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.groups.reasons import NO_CHANNELS, Reason
from n2n_cli.growth.groups.structure import Attributes, Sizes, Structure
from n2n_cli.growth.proof.mend import build_until_proved, check_shapes
from n2n_cli.growth.report import layer_of
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.sizes.solve import Plan, Solution, group_and_size, relax
from n2n_cli.growth.trace.copies import deep_copy
from n2n_cli.growth.trace.examples import check_model, examples_of

Growing = Literal["any factor", "whole numbers", "fixed"]


@dataclass(frozen=True)
class GroupRow:
    """Units that grow together.

    ``produced_by`` and ``read_by`` are layers (or parameters of their own, as a class token) in forward order;
    ``axes`` every (parameter or buffer, dimension) that follows; one unit covers ``positions`` consecutive channels
    (a head covers its head size). ``grown``: the units after the plan. ``tied``: the operation that wants every unit
    copied equally often, so whole numbers only; ``moved``: one that any factor passes by special means (a channel
    shuffle, a norm); ``together``: the numbers of the groups that these make grow by the same factor. ``start``: how
    the new units of a plan start, where that is not as equal copies; ``copied``: why they are copies, where another way
    was asked for.
    """

    number: int
    units: int
    grown: int
    positions: int
    produced_by: list[str]
    read_by: list[str]
    axes: list[tuple[str, int]]
    tied: Reason | None = None
    moved: Reason | None = None
    fixed: Reason | None = None
    together: list[int] = field(default_factory=list)
    start: str | None = None
    copied: Reason | None = None

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
    """What `survey` found.

    ``student``: the network after the plan. A student that was given as the plan is returned as it is; else its tensors
    are on the meta device. None if there was no plan.
    """

    groups: list[GroupRow]
    layers: list[LayerRow]
    sites: list[Site]
    parameters: int
    parameters_grown: int
    student: nn.Module | None = field(default=None, repr=False)


def survey(
    model: nn.Module, example_input: Any, plan: Plan | None = None, *, new: str = "copy", split: str = "equal"
) -> Survey:
    """The groups of ``model``, its sites for identity layers, and the dry run of a plan to widen it.

    Args:
        model: any module; its tensors may lie on the meta device. It is not modified.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments), of which only the shapes matter.
        plan: as for `widen`: a factor, ``{layer pattern: factor or width}``, or a wider student.
        new, split: how new units are to start, as for `widen`; groups that the proof alone would refuse are not known.

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
    check_model(model, meta=True)
    recordings = trace(model, example_input)
    student: nn.Module | None = None
    if plan is None:
        structure, sizes = relax(model, recordings, infer(model, recordings)), Sizes()
    else:
        structure, solution = group_and_size(model, recordings, plan)
        student, sizes = (
            (plan, solution.sizes) if isinstance(plan, nn.Module) else _dry_run(model, structure, solution, plan)
        )
    links = _links(structure)
    shapes = _shapes(structure, sizes)
    parameters = {name: tensor.shape for name, tensor in model.named_parameters()}
    order = _in_order(structure, parameters)
    numbers, rows = _groups(structure, order, sizes, links)
    start = start_of(new, split, 0.0, 0)
    if plan is not None and not start.plain:
        rows = _with_starts(structure, sizes, numbers, rows, start)
    return Survey(
        groups=rows,
        layers=_layers(structure, order, numbers, sizes, links),
        sites=find_sites(model, recordings[0].example),
        parameters=sum(shape.numel() for shape in parameters.values()),
        parameters_grown=sum(torch.Size(shapes[name]).numel() for name in parameters),
        student=student,
    )


def deepened(
    model: nn.Module,
    example_input: Any,
    sites: Sequence[str] | None = None,
    *,
    pairs: int = 1,
    activation: bool = True,
    new: str = "identity",
    width: float | None = None,
) -> tuple[nn.Module, list[str]]:
    """The dry run of `deepen`: the deeper network on the meta device, and the modules that new layers stand behind.

    Arguments as for `deepen`.

    Raises:
        GrowthError: no layer matches, or none allows an identity layer behind it.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> student, behind = deepened(net, torch.empty(1, 3))
    >>> behind, [tuple(p.shape) for p in student.parameters()]
    (['0'], [(4, 3), (4,), (4, 4), (4,), (2, 4), (2,)])
    """
    check_model(model, meta=True)
    example = examples_of(model, example_input)[0]
    found = insertions(model, example, sites, pairs, linear=not activation, branches=new == "zero")
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    with torch.device("meta"):
        student, layers = insert(deep_copy(model, memo), found)
    if width is not None:
        student = survey(student, example, free_layers(student, example, layers, width)[0]).student or student
    return student, [site["after"] for site in found]


def _shapes(structure: Structure, sizes: Sizes) -> dict[str, list[int]]:
    return {
        name: [sum(sizes.get(g, g.n) * k for g, k in resolve(axis)) for axis in axes]
        for name, axes in structure.axes.items()
    }


def _dry_run(model: nn.Module, structure: Structure, solution: Solution, plan: Plan) -> tuple[nn.Module, Sizes]:
    """The wider network on the meta device, mended or held where its shapes go astray, as growing will do."""
    made: list[tuple[Candidate, Sizes]] = []

    def build(sizes: Sizes, attributes: Attributes | None) -> Candidate:
        made.append((shapes_alone(model, structure, draw(structure, sizes, 0), attributes), sizes))
        return made[-1][0]

    with suppress(GrowthError):  # whether it can be grown is for growing to say
        build_until_proved(model, structure, solution, plan, build, check_shapes)
    return made[-1][0].student, made[-1][1]


def _with_starts(
    structure: Structure, sizes: Sizes, numbers: dict[Group, int], rows: list[GroupRow], start: Start
) -> list[GroupRow]:
    """The rows with how the new units of each group start."""
    drawn = draw(structure, sizes, 0)
    remappings, copied = started(structure, drawn, start, {})
    way = start.new if start.new != "copy" else "unequal copies"
    told: dict[int, dict[str, Any]] = {}
    for group, number in numbers.items():
        if group in copied:
            unequal = remappings[group].share is not None and drawn[group].share is None
            told[number] = {"start": "unequal copies" if unequal else "copies", "copied": copied[group]}
        elif group in remappings:
            told[number] = {"start": way}
    return [replace(row, **told.get(row.number, {})) for row in rows]


def _is_weight(name: str) -> bool:
    return "weight" in name.rpartition(".")[2]


def _in_order(structure: Structure, parameters: Collection[str]) -> list[str]:
    """Parameters in forward order; those that no operation reads come last."""
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
    return group.fixed is not None and group.fixed.kind in NO_CHANNELS


@dataclass
class _Links:
    """``sources``: where the units of a derived group (the result of a shuffle or norm) come from; ``moved``: the
    operation that moves a group's units on; ``partners``: the groups that grow by the same factor."""

    sources: dict[Group, list[Group]] = field(default_factory=dict)
    moved: dict[Group, Reason] = field(default_factory=dict)
    partners: dict[Group, list[Group]] = field(default_factory=dict)

    def producers(self, group: Group, produced: Collection[Group]) -> list[Group]:
        """The groups among ``produced`` whose units ``group`` holds."""
        if group in produced or group not in self.sources:
            return [group]
        found = [g for source in self.sources[group] for g in self.producers(source, produced)]
        return list(dict.fromkeys(found))


def _links(structure: Structure) -> _Links:
    links = _Links()
    for relation in structure.relations:
        for sources, results, reason in relation.passages():
            for group in results:
                links.sources[group] = sources
            for group in [*sources, *results]:
                links.moved.setdefault(group, reason)
        for bond in relation.bonds():
            for group in bond:
                links.partners.setdefault(group, []).extend(other for other in bond if other is not group)
    return links


def _read(structure: Structure, name: str, links: _Links, produced: Collection[Group]) -> list[Group]:
    """The groups whose units a weight reads, shuffled or normed as they may be; a depthwise one reads what it makes."""
    axes = structure.axes[name]
    reads, makes = _roles(structure, name)
    found = [g for dim in reads for group, _ in resolve(axes[dim]) for g in links.producers(group, produced)]
    for group in [group for dim in makes for group, _ in resolve(axes[dim]) if group in links.sources]:
        found += [g for source in links.sources[group] for g in links.producers(source, produced)]
    return found


def _groups(
    structure: Structure, order: list[str], sizes: dict[Group, int], links: _Links
) -> tuple[dict[Group, int], list[GroupRow]]:
    produced: dict[Group, dict[str, int]] = {}  # -> layer -> channels per unit
    read: dict[Group, list[str]] = {}
    for name in order:
        for dim in _roles(structure, name)[1]:
            for group, k in resolve(structure.axes[name][dim]):
                if not _no_channels(group):
                    produced.setdefault(group, {}).setdefault(layer_of(name), k)
    for name in order:
        for group in _read(structure, name, links, produced):
            read.setdefault(group, []).append(layer_of(name))
    places, ties = structure.groups(), structure.tied()
    # single units that were fixed one by one are told as one
    alike: dict[tuple[object, ...], list[Group]] = {}
    for group in produced:
        key = (group.fixed, *places[group], *read.get(group, [])) if group.fixed else (group,)
        alike.setdefault(key, []).append(group)
    numbers = {group: at for at, groups in enumerate(alike.values(), start=1) for group in groups}
    rows = []
    for number, groups in enumerate(alike.values(), start=1):
        group = groups[0]
        tied, partner_fixed = ties.get(group, (None, None))
        fixed = group.fixed or partner_fixed
        rows.append(
            GroupRow(
                number=number,
                units=sum(g.n for g in groups),
                grown=sum(sizes.get(g, g.n) for g in groups),
                positions=max(produced[group].values()),
                produced_by=list(produced[group]),
                read_by=list(dict.fromkeys(read.get(group, []))),
                axes=places[group],
                tied=tied,
                moved=None if fixed else links.moved.get(group),
                fixed=fixed,
                together=sorted({numbers[g] for g in links.partners.get(group, []) if g in numbers} - {number}),
            )
        )
    return numbers, rows


def _layers(
    structure: Structure, order: list[str], numbers: dict[Group, int], sizes: dict[Group, int], links: _Links
) -> list[LayerRow]:
    rows = []
    for name in order:
        axes = structure.axes[name]
        makes = [span for dim in _roles(structure, name)[1] for span in resolve(axes[dim])]
        runs = [(numbers.get(g, 0), g.n * k, sizes.get(g, g.n) * k) for g, k in makes]
        if any(number for number, _, _ in runs):
            shape = tuple(sum(g.n * k for g, k in resolve(axis)) for axis in axes)
            found = _read(structure, name, links, numbers)
            read = list(dict.fromkeys(numbers[g] for g in found if g in numbers))
            rows.append(LayerRow(layer_of(name), name, shape, read, _joined(runs)))
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
