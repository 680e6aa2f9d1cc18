"""Net2WiderNet on any module (paper section 2.3), and its baseline by random padding (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.apply import (
    axis_map,
    follow,
    grow_state,
    reshape,
    set_attributes,
    with_state,
)
from n2n_cli.growth.axes import Group, resolve
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.infer import Structure, infer
from n2n_cli.growth.plan import Plan, Remapping, draw, solve, tie_classes
from n2n_cli.growth.prove import Gap, function_gap, in_double, outputs, prepared, prove, relative, small
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

    ``recipe`` is plain data (for a lineage; ``rebuild`` replays it); ``notes`` name what stayed fixed and why.
    """

    student: nn.Module
    gap: Gap
    recipe: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    groups: list[GroupInfo] = field(default_factory=list)


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
    if not 0 <= noise < float("inf"):
        raise GrowthError(f"noise is {noise!r}: expected a finite number of at least 0")
    structure, mappings = _planned(model, example_input, plan, seed)
    like = plan if isinstance(plan, nn.Module) else None

    def grown(teacher: nn.Module, amount: float) -> nn.Module:
        state = grow_state(teacher, structure, mappings, noise=amount, seed=seed)
        return _student(teacher, structure, mappings, state, like)

    student = grown(model, noise)
    gap = _proof(model, lambda teacher: grown(teacher, 0.0), example_input)
    if noise:
        gap = _gap(model, student, example_input, f"with noise; proved without: {gap.worst:.1e}")
    recipe = _recipe("wider", model, student, structure, mappings, plan, seed) | {"noise": noise}
    return Growth(student, gap, recipe, notes(structure), report(structure, mappings))


def random_pad(model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0) -> Growth:
    """The paper's baseline (section 3.1): the teacher's weights, padded with random values to the student's shapes.

    The padding is what random initialization with the same seed gives at these places. The plan and the
    shapes are those of ``widen``; the function is not preserved, and the gap says by how much.
    """
    structure, mappings = _planned(model, example_input, plan, seed)
    student = _fresh(model, structure, mappings, plan, seed)
    state = {name: tensor.detach() for name, tensor in [*student.named_parameters(), *named_buffers(student)]}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *named_buffers(model)]:
            if name not in state:
                continue
            maps = [axis_map(axis, mappings) for axis in structure.axes[name]]
            place = tuple(
                (axis.first if axis is not None else torch.ones(n, dtype=torch.bool)).nonzero().flatten()
                for axis, n in zip(maps, state[name].shape, strict=True)
            )
            if place:
                state[name][torch.meshgrid(*place, indexing="ij")] = tensor.to(state[name])
            else:
                state[name].copy_(tensor)
    recipe = _recipe("random_pad", model, student, structure, mappings, plan, seed)
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
        structure, mappings = _planned(model, example_input, plan, seed)
        student = _fresh(model, structure, mappings, plan, seed)
        recipe = _recipe("random_init", model, student, structure, mappings, plan, seed)
        infos = report(structure, mappings)
    return Growth(student, _gap(model, student, example_input), recipe, [], infos)


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a wider recipe made from ``model``; its weights are zeros, to be loaded."""
    return reshape(model, recipe["shapes"], recipe["attributes"])


def _planned(model: nn.Module, example_input: Any, plan: Plan, seed: int) -> tuple[Structure, dict[Group, Remapping]]:
    structure = infer(model, prepared(model, example_input, pair=False))
    return structure, draw(structure, solve(structure, plan), seed)


def _student(
    teacher: nn.Module,
    structure: Structure,
    mappings: Mapping[Group, Remapping],
    state: Mapping[str, Tensor],
    like: nn.Module | None,
) -> nn.Module:
    if like is None:
        student = with_state(teacher, state, structure.aliases)
        set_attributes(student, follow(teacher, structure, mappings))
        return student
    student = copied(like)
    reference = next((t for t in state.values() if t.is_floating_point()), None)
    if reference is not None:
        student.to(reference.device, reference.dtype)
    student.load_state_dict({name: state[structure.aliases[name]] for name in student.state_dict()})
    for parameter, other in zip(student.parameters(), teacher.parameters(), strict=False):
        parameter.requires_grad_(other.requires_grad)
    return student.train(teacher.training)


def _fresh(
    model: nn.Module, structure: Structure, mappings: Mapping[Group, Remapping], plan: Plan, seed: int
) -> nn.Module:
    """The student with random weights."""
    if isinstance(plan, nn.Module):
        return copied(plan).train(model.training)
    student = _student(model, structure, mappings, grow_state(model, structure, mappings), None)
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


def _proof(model: nn.Module, build: Callable[[nn.Module], nn.Module], example_input: Any) -> Gap:
    """Prove in fp64; a failed proof names the first module that differs."""
    teacher = in_double(model)
    batch = small(example_input)
    student = build(teacher)
    try:
        return prove(teacher, student, batch)
    except GrowthError as error:
        place = first_difference(teacher, student, batch)
        raise GrowthError(f"{error}{f'; first at {place}' if place else ''}") from error


def _watch(seen: list[tuple[str, Tensor]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((name, output.clone()))

    return hook


def first_difference(teacher: nn.Module, student: nn.Module, batch: Any) -> str | None:
    """The first module whose output should be the teacher's and is not; None if there is none.

    Only modules whose output did not grow tell: the units of a grown axis are compared where they are summed again.
    """
    results: list[list[tuple[str, Tensor]]] = []
    for model in (teacher, student):
        seen: list[tuple[str, Tensor]] = []
        hooks = [module.register_forward_hook(_watch(seen, name)) for name, module in model.named_modules()]
        try:
            outputs(model, prepared(teacher, batch), training=False)
        except GrowthError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        results.append(seen)
    for (name, theirs), (_, ours) in zip(*results, strict=False):
        if theirs.ndim != ours.ndim:
            return name
        if not theirs.is_floating_point() or theirs.shape != ours.shape:
            continue
        if relative([ours], [theirs]) > 1e-6:
            return name
    return None


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
    structure: Structure,
    mappings: Mapping[Group, Remapping],
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
        "attributes": {} if isinstance(plan, nn.Module) else follow(model, structure, mappings),
    }


_OBVIOUS = (
    "a kernel axis",
    "depthwise",
    "a spatial axis",
    "one value for many",
    "the network's input",
    "the network's output",
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
        if not layers or (group.fixed and str(group.fixed).endswith(_OBVIOUS)):
            continue
        size = len(mappings[group].index) if group in mappings else group.n
        fixed = str(group.fixed) if group.fixed else None
        infos.append(GroupInfo(layers, group.n, size, tied.get(group), fixed))
    return infos


def notes(structure: Structure) -> list[str]:
    """What may not grow, and the operation that forbids it; the obvious (inputs, outputs, kernels) left out."""
    found: dict[str, list[str]] = {}
    for name, axes in structure.axes.items():
        for axis in axes:
            for group, _ in resolve(axis):
                if group.fixed and not str(group.fixed).endswith(_OBVIOUS):
                    layers = found.setdefault(str(group.fixed), [])
                    layer = name.rpartition(".")[0] or name
                    if layer not in layers:
                        layers.append(layer)
    return [f"{', '.join(layers[:3])}{' ...' if len(layers) > 3 else ''}: {reason}" for reason, layers in found.items()]
