"""What an operator returns, and what it says about the groups: which layers grew, and what held the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from n2n_cli.growth.build.maps import AxisMap
from n2n_cli.growth.build.starts import Start
from n2n_cli.growth.build.students import Candidate, picked
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Group, resolve
from n2n_cli.growth.groups.reasons import OBVIOUS, Reason
from n2n_cli.growth.groups.structure import Sizes, Structure
from n2n_cli.growth.proof.gap import Gap


@dataclass(frozen=True)
class GroupInfo:
    """Units that grow together; in what `deepen` returns, one new layer or block.

    Attributes:
        layers: the layers that produce the units; for `deepen`, the new one.
        units: their number in the teacher; 0 for a new layer.
        grown: their number in the student; 1 for a new layer.
        tied: why every unit must be copied equally often; None if it need not.
        fixed: why the units may not grow at all; None if they may.
        copied: why the new units are copies, where another way to start was asked for; None if they are not.
    """

    layers: list[str]
    units: int
    grown: int
    tied: Reason | None
    fixed: Reason | None
    copied: Reason | None = None


@dataclass
class Growth:
    """What an operator returns: the student, the proof, and how to repeat it.

    ``student``: the grown network. ``gap``: its distance from the teacher's function. ``groups``: which layers grew
    together, and from how many units to how many.
    ``recipe`` is plain data (for a lineage; ``rebuild`` replays it); ``notes`` name what stayed fixed and why;
    ``warnings`` say where the student will not train as one might expect.
    ``maps[name]`` tells for every axis of a parameter or buffer which teacher positions its positions copy (None: the
    axis did not grow); ``consumed`` the (name, axis) whose entries were divided by the number of copies; ``renamed``
    the teacher's tensors that have another name in the student; ``exact_optimizer`` whether every unit is a plain copy,
    and equal copies get equal gradients.
    """

    student: nn.Module
    gap: Gap
    recipe: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    groups: list[GroupInfo] = field(default_factory=list)
    maps: dict[str, list[AxisMap | None]] = field(default_factory=dict)
    consumed: set[tuple[str, int]] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    exact_optimizer: bool = True
    warnings: list[str] = field(default_factory=list)


def layer_of(name: str) -> str:
    """The layer of a weight; a parameter of another kind (a class token) by its own name.

    >>> layer_of("layer1.0.conv1.weight"), layer_of("encoder.pos_embedding")
    ('layer1.0.conv1', 'encoder.pos_embedding')
    """
    is_weight = "weight" in name.rpartition(".")[2]
    return (name.rpartition(".")[0] if is_weight else name) or name


def group_infos(structure: Structure, sizes: Sizes, copied: Mapping[Group, Reason] | None = None) -> list[GroupInfo]:
    """Every group that a layer produces, in the order of the model; ``copied``: see `GroupInfo`."""
    tied = structure.tied()
    infos = []
    for group, places in structure.groups().items():
        layers = list(
            dict.fromkeys(
                name.rpartition(".")[0] or name
                for name, dim in places
                if (name, dim) not in structure.consumed and len(structure.axes[name]) > 1
            )
        )
        if layers and not (group.fixed and group.fixed.kind in {*OBVIOUS, "spatial", "output"}):
            why = tied[group][0] if group in tied else None
            because = (copied or {}).get(group)
            infos.append(GroupInfo(layers, group.n, sizes.get(group, group.n), why, group.fixed, because))
    return infos


def held_units(structure: Structure) -> list[str]:
    """What may not grow, and the operation that forbids it; inputs, kernels and the classifier itself left out."""
    found: dict[Reason, list[str]] = {}
    for name, axes in structure.axes.items():
        for dim, axis in enumerate(axes):
            for group, _ in resolve(axis):
                reason = group.fixed
                if reason is None or reason.kind in OBVIOUS or (dim > 1 and reason.kind == "spatial"):
                    continue
                layers = found.setdefault(reason, [])
                layer = name.rpartition(".")[0] or name
                if layer not in layers:
                    layers.append(layer)
    outputs = [reason for reason in found if reason.kind == "output"]
    if len(outputs) == 1 and len(found[outputs[0]]) == 1 and any(not group.fixed for group in structure.groups()):
        del found[outputs[0]]
    said = [f"{_few(layers)}: {reason}" for reason, layers in found.items()]
    if any(recording.data for recording in structure.recordings):
        inputs = len(structure.examples())
        said.append(
            "which branch the code takes may depend on the data: proved on the branches of "
            f"{inputs} input{'s' if inputs > 1 else ''}"
        )
    return said


def warnings_of(model: nn.Module, student: nn.Module, structure: Structure, plan: Any) -> list[str]:
    """What a user should not overlook: layers that no example reaches, and a student that is hardly larger than asked
    for."""
    said = []
    missed = [
        name.rpartition(".")[0] or name
        for name, _ in model.named_parameters()
        for axis in structure.axes[name]
        if any(group.fixed and group.fixed.kind == "unreached" for group, _ in resolve(axis))
    ]
    if missed:
        said.append(
            f"the example input does not reach {_few(list(dict.fromkeys(missed)))}: what is computed there was not "
            "looked at (example_input may be a list of examples)"
        )
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, student))
    if isinstance(plan, float | int) and after - before < (plan - 1) / 2 * before:
        said.append(f"only {after / before:.2f} times as many parameters: {'; '.join(held_units(structure)[:3])}")
    return said


def proved_in(gap: Gap) -> list[str]:
    """A note, where fp64 could not be had."""
    if gap.kind == "float64":
        return []
    return [f"proved in {gap.kind}: the network does not run in fp64"]


def undescribed(grown: Candidate) -> list[str]:
    """A note, where the student cannot be built again from its config."""
    if grown.described:
        return []
    kind = type(grown.student).__name__
    return [f"no settings of its config build this {kind}: from_pretrained cannot load what save_pretrained writes"]


def copied_units(grown: Candidate, start: Start) -> list[str]:
    """Which groups' new units are copies, though another way to start was asked for, and why."""
    found: dict[Reason, list[str]] = {}
    for group, reason in grown.copied.items():
        found.setdefault(reason, []).extend(grown.structure.layers([group]))
    how = "equal shares" if start.new == "copy" else "copies"
    return [f"{_few(list(dict.fromkeys(layers)))}: {how}, not {start}: {reason}" for reason, layers in found.items()]


def nothing_grew(model: nn.Module, structure: Structure) -> GrowthError:
    """The refusal of a plan that changes no layer, with what holds the network."""
    held = held_units(structure)
    scripts = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    held = [*(f"{path} is TorchScript, which hides its operations" for path in scripts[:1]), *held]
    for group, (reason, _) in structure.tied().items():
        if not group.fixed:
            layers = _few(structure.layers([group]))
            held.append(f"{layers}: only whole-number factors, and this plan rounds to 1 ({reason})")
    why = "; ".join(held[:3]) + ("; ..." if len(held) > 3 else "")
    return GrowthError(f"nothing of {type(model).__name__} can grow: {why or 'it has no layer that may'}")


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def copies_that_never_part(structure: Structure, grown: Iterable[Group]) -> list[str]:
    """A warning, if copies without noise get equal gradients for ever: those of groups that no dropout reaches.

    Dropout parts copies, as it drops each of them at other times (paper section 2.3); so does ``x.max(dim)``.
    """
    parted = picked(structure)
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops if recording.training else []:
            row = structure.table.of(op)
            if row.parts_copies and op.arg(1, "p", 0.5) and op.arg(2, "train", True) is not False:
                parted |= {group for axis in labels[id(op.args[0])] for group, _ in resolve(axis)}
    grown = set(grown)
    met = [group for group in structure.groups() if group in grown]
    alike = [group for group in met if group not in parted]
    if not alike:
        return []
    return [
        f"copies in {len(alike)} of {len(met)} widened groups never part: without noise or dropout on them they "
        "get equal gradients, and the new width is never used; noise parts them (op.noise=0.3)"
    ]


def recipe_of(
    op: str, model: nn.Module, student: nn.Module, plan: Any, seed: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """A growth step as plain data: what was asked for, the shapes that changed, the numbers of modules that follow."""
    before, after = ({name: list(t.shape) for name, t in _tensors(net)} for net in (model, student))
    return {
        "op": op,
        "plan": "student" if isinstance(plan, nn.Module) else dict(plan) if isinstance(plan, Mapping) else float(plan),
        "seed": seed,
        "shapes": {name: shape for name, shape in after.items() if before.get(name) != shape},
        "attributes": attributes,
    }


def _tensors(model: nn.Module) -> list[tuple[str, Any]]:
    return [*model.named_parameters(), *model.named_buffers(remove_duplicate=False)]
