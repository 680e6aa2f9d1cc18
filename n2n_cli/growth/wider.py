"""Net2WiderNet on any module (paper section 2.3), and its baseline by random padding (section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from n2n_cli.growth.apply import AxisMap, reshape
from n2n_cli.growth.axes import Group, resolve
from n2n_cli.growth.common import arg
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.infer import OUTPUT, Structure
from n2n_cli.growth.plan import Plan, Remapping, tie_classes
from n2n_cli.growth.planned import Planned, plan_growth
from n2n_cli.growth.prove import WEAK, Gap, function_gap, small
from n2n_cli.growth.record import copied, named_buffers


@dataclass(frozen=True)
class GroupInfo:
    """One set of units that grow together: the layers that produce them, their number before and after."""

    layers: list[str]
    units: int
    grown: int
    tied: str | None
    fixed: str | None


@dataclass
class Growth:
    """What an operator returns: the student, the proof, and how to repeat it.

    ``recipe`` is plain data (for a lineage; ``rebuild`` replays it); ``notes`` name what stayed fixed and why;
    ``warnings`` say what will disappoint.
    ``maps[name]`` tells for every axis of a parameter or buffer which teacher positions its positions copy (None: the
    axis did not grow); ``consumed`` the (name, axis) whose entries were divided by the number of copies; ``renamed``
    the teacher's tensors that have another name in the student; ``exact_optimizer`` whether every unit is a plain copy.
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


def widen(model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0, noise: float = 0.0) -> Growth:
    """Net2WiderNet: a wider student that computes the teacher's function.

    Args:
        model: the teacher; it is not modified and shares no storage with the student.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes.
        plan: a factor (``1.5``), ``{layer pattern: factor or width}``, or a student built by its own constructor.
        seed: of the random mappings and of the noise.
        noise: standard deviation of the noise on all but the first copy of each unit, relative to that of the weight.

    Returns:
        Growth: ``.student`` is of the teacher's class (or is the given student's), with its ``state_dict`` names.

    Raises:
        GrowthError: the plan cannot be met, or the proof failed; nothing was changed.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> widen(net, torch.randn(2, 3), 1.5).student
    Sequential(
      (0): Linear(in_features=3, out_features=6, bias=True)
      (1): ReLU()
      (2): Linear(in_features=6, out_features=2, bias=True)
    )
    """
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
        raise GrowthError(f"noise is {noise!r}: expected a finite number of at least 0")
    planned = plan_growth(model, example_input, plan, seed=seed, noise=noise)
    student, gap = planned.student, planned.gap
    if noise:
        gap = _gap(model, student, example_input, f"with noise; proved without: {gap.worst:.1e}")
    recipe = _recipe("wider", model, student, planned, plan, seed) | {"noise": noise}
    structure, mappings = planned.structure, planned.mappings
    said = notes(structure)
    if planned.gap.floor > WEAK:
        said.append(
            f"a weak proof: on this batch the teacher itself moves by {planned.gap.floor:.0e} if an input changes by "
            "rounding (batch norm over few values?); more or larger images make it sharp"
        )
    plain = all(m.kind == "copy" and m.idle is None for m in mappings.values()) and not structure.widths
    return Growth(
        student,
        gap,
        recipe,
        said,
        report(structure, mappings),
        planned.maps,
        structure.consumed,
        exact_optimizer=plain,
        warnings=[] if noise else copies_that_never_part(structure, mappings),
    )


ELEMENTWISE_DROPOUT = ("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "native_dropout")


def copies_that_never_part(structure: Structure, mappings: Mapping[Group, Remapping]) -> list[str]:
    """A warning, if copies without noise get equal gradients for ever: those of groups that no dropout reaches.

    Dropout parts copies, as it drops each of them at other times (paper section 2.3).
    """
    parted: set[Group] = set()
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops if recording.training else []:
            if op.name in ELEMENTWISE_DROPOUT and arg(op, 1, "p", 0.5) and arg(op, 2, "train", True) is not False:
                parted |= {group for axis in labels[id(op.args[0])] for group, _ in resolve(axis)}
    grown = [group for group in structure.groups() if group in mappings]
    alike = [group for group in grown if group not in parted]
    if not alike:
        return []
    return [
        f"copies in {len(alike)} of {len(grown)} widened groups never part: without noise or dropout on them they "
        "get equal gradients, and the new width is never used; noise parts them (op.noise=0.3)"
    ]


def random_pad(model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0) -> Growth:
    """The paper's baseline (section 3.1): the teacher's weights, padded with random values to the student's shapes.

    The padding is what random initialization with the same seed gives at these places. The plan and the
    shapes are those of ``widen``; the function is not preserved, and the gap says by how much.
    """
    planned = plan_growth(model, example_input, plan, seed=seed)
    structure, mappings = planned.structure, planned.mappings
    student = _fresh(model, planned, plan, seed)
    state = {name: tensor.detach() for name, tensor in [*student.named_parameters(), *named_buffers(student)]}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *named_buffers(model)]:
            if name not in state:
                continue
            maps = planned.maps[name]
            place = tuple(
                (axis.first if axis is not None else torch.ones(n, dtype=torch.bool)).nonzero().flatten()
                for axis, n in zip(maps, state[name].shape, strict=True)
            )
            if place:
                state[name][torch.meshgrid(*place, indexing="ij")] = tensor.to(state[name])
            else:
                state[name].copy_(tensor)
    recipe = _recipe("random_pad", model, student, planned, plan, seed)
    return Growth(student, _gap(model, student, example_input), recipe, notes(structure), report(structure, mappings))


def random_init(
    model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0, reset: bool | None = None
) -> Growth:
    """The student's architecture with random weights: the paper's from-scratch baseline (section 3.1).

    A student module is taken as its constructor left it, unless ``reset``; for other plans (and with ``reset``)
    every layer draws PyTorch's default initialization from ``seed``.
    """
    if isinstance(plan, nn.Module):
        student = copied(plan).train(model.training)
        recipe: dict[str, Any] = {"op": "random_init", "plan": "student", "seed": seed}
        infos: list[GroupInfo] = []
        if reset:
            _reset(student, seed)
    else:
        planned = plan_growth(model, example_input, plan, seed=seed)
        student = _fresh(model, planned, plan, seed)
        recipe = _recipe("random_init", model, student, planned, plan, seed)
        infos = report(planned.structure, planned.mappings)
    return Growth(student, _gap(model, student, example_input), recipe, [], infos)


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a wider recipe made from ``model``; its weights are zeros, to be loaded."""
    return reshape(model, recipe["shapes"], recipe["attributes"])


def _fresh(model: nn.Module, planned: Planned, plan: Plan, seed: int) -> nn.Module:
    """The student with random weights."""
    if isinstance(plan, nn.Module):
        return copied(plan).train(model.training)
    student = planned.student
    _reset(student, seed)
    return student


def _reset(student: nn.Module, seed: int) -> None:
    """PyTorch's default initialization of every layer, drawn from ``seed``."""
    devices = {p.device for p in student.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for module in student.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                _reset_bare(module)


@torch.no_grad()
def _reset_bare(module: nn.Module) -> None:
    """Parameters of a module without ``reset_parameters``: constants stay, others keep their spread."""
    for parameter in module.parameters(recurse=False):
        if parameter.numel() > 1 and parameter.std() > 0:
            parameter.copy_(torch.randn(parameter.shape) * parameter.std().item())


def _gap(model: nn.Module, student: nn.Module, example_input: Any, kind: str = "measured") -> Gap:
    batch = small(example_input)
    return Gap(
        function_gap(model, student, batch, training=False),
        function_gap(model, student, batch, training=True),
        kind=kind,
    )


def _recipe(
    op: str,
    model: nn.Module,
    student: nn.Module,
    planned: Planned,
    plan: Plan,
    seed: int,
) -> dict[str, Any]:
    before = {name: list(t.shape) for name, t in [*model.named_parameters(), *named_buffers(model)]}
    after = {name: list(t.shape) for name, t in [*student.named_parameters(), *named_buffers(student)]}
    return {
        "op": op,
        "plan": "student" if isinstance(plan, nn.Module) else dict(plan) if isinstance(plan, Mapping) else float(plan),
        "seed": seed,
        "shapes": {name: shape for name, shape in after.items() if before.get(name) != shape},
        "attributes": planned.attributes,
    }


_OBVIOUS = (
    "a kernel axis",
    "depthwise",
    "one value for many",
    "the network's input",
    "a single position beside others",
    "positions are weighed against each other",
)


def report(structure: Structure, mappings: Mapping[Group, Remapping]) -> list[GroupInfo]:
    """Every group that a layer produces, in the order of the model."""
    tied = {group: tie.reason for tie in tie_classes(structure) for group in tie.groups}
    infos = []
    for group, places in structure.groups().items():
        layers = list(
            dict.fromkeys(
                name.rpartition(".")[0] or name
                for name, dim in places
                if (name, dim) not in structure.consumed and len(structure.axes[name]) > 1
            )
        )
        if not layers or (group.fixed and group.fixed.endswith((*_OBVIOUS, "a spatial axis", OUTPUT))):
            continue
        size = len(mappings[group].index) if group in mappings else group.n
        fixed = str(group.fixed) if group.fixed else None
        infos.append(GroupInfo(layers, group.n, size, tied.get(group), fixed))
    return infos


def notes(structure: Structure) -> list[str]:
    """What may not grow, and the operation that forbids it; inputs, kernels and the classifier itself left out."""
    found: dict[str, list[str]] = {}
    for name, axes in structure.axes.items():
        for dim, axis in enumerate(axes):
            for group, _ in resolve(axis):
                if not group.fixed or group.fixed.endswith(_OBVIOUS) or (dim > 1 and "spatial" in group.fixed):
                    continue
                layers = found.setdefault(str(group.fixed), [])
                layer = name.rpartition(".")[0] or name
                if layer not in layers:
                    layers.append(layer)
    if len(found.get(OUTPUT, [])) == 1 and any(not group.fixed for group in structure.groups()):
        del found[OUTPUT]
    said = [f"{', '.join(layers[:3])}{' ...' if len(layers) > 3 else ''}: {reason}" for reason, layers in found.items()]
    ways = len(structure.recordings)
    if any(recording.device == "real" for recording in structure.recordings):
        said.append(f"which branch the code takes may depend on the data: proved on the {ways} ways that were seen")
    return said
