"""What Net2Net is compared with (paper, section 3.1): the same shapes, padded or filled with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from n2n_cli.growth.build.initialize import initialize
from n2n_cli.growth.build.weights import places
from n2n_cli.growth.proof.gap import Gap, measured_gap
from n2n_cli.growth.report import GroupInfo, Growth, group_infos, held_units, recipe_of, warnings_of
from n2n_cli.growth.sizes.solve import Plan
from n2n_cli.growth.trace.copies import deep_copy, named_tensors
from n2n_cli.growth.trace.examples import check_model, examples_of, first_samples
from n2n_cli.growth.wider import proved_student


def random_pad(model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0) -> Growth:
    """The teacher's weights, padded with random values to the shapes that `widen` gives with the same plan.

    The padding is what random initialization with the same seed gives at these places. The function is not preserved.

    Args:
        model: the teacher; it is not modified and shares no storage with the student.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes; a list is
            several such examples, each of which is recorded and proved.
        plan: a factor (``1.5``), ``{layer pattern: factor or width}``, or a student built by its own constructor, whose
            own random weights are the padding.
        seed: of the random values.

    Returns:
        Growth: ``.gap`` is measured, not proved: by how much the function changed.

    Raises:
        GrowthError: the plan cannot be met, or no exact student with these shapes was found (`widen` is proved first).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> padded = random_pad(net, torch.randn(2, 3), 1.5)
    >>> bool((padded.student[0].weight[:4] == net[0].weight).all()), padded.gap.eval > 0
    (True, True)
    """
    if isinstance(plan, nn.Module):
        check_model(plan)
    grown, _ = proved_student(model, example_input, plan, seed=seed)
    student = grown.student if grown.given is None else deep_copy(grown.given).train(model.training)
    if grown.given is None:
        initialize(student, seed)
    state = {name: tensor.detach() for name, tensor in named_tensors(student)}
    where = places(grown.structure, grown.remappings)
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            if name not in state:
                continue
            tensor = where[name][tensor] if name in where else tensor
            place = tuple(
                (axis.first if axis is not None else torch.ones(n, dtype=torch.bool)).nonzero().flatten()
                for axis, n in zip(grown.maps[name], state[name].shape, strict=True)
            )
            if place:
                state[name][torch.meshgrid(*place, indexing="ij")] = tensor.to(state[name])
            else:
                state[name].copy_(tensor)
    gap = measured_gap(model, student, grown.structure.examples())
    recipe = recipe_of("random_pad", model, student, plan, seed, grown.attributes)
    notes, warnings = held_units(grown.structure), warnings_of(model, student, grown.structure, plan)
    return Growth(student, gap, recipe, notes, group_infos(grown.structure, grown.sizes), warnings=warnings)


def random_init(model: nn.Module, example_input: Any, plan: Plan, *, seed: int = 0, reset: bool = False) -> Growth:
    """The student's architecture with random weights: training from scratch.

    Args:
        model: the teacher: its shapes are the start of the plan, and the gap is measured against it; not modified.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes; a list is
            several such examples, each of which is recorded and proved.
        plan: as for `random_pad`. A student module is taken as its constructor left it, unless ``reset``; for other
            plans every layer draws PyTorch's default initialization.
        seed: of the random values.
        reset: draw the weights of a given student anew from ``seed`` (for all other plans they always are).

    Returns:
        Growth: ``.gap`` is measured, not proved.

    Raises:
        GrowthError: the plan cannot be met, or no exact student with these shapes was found (`widen` is proved first).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> random_init(net, torch.randn(2, 3), 1.5).student[0].weight.shape
    torch.Size([6, 3])
    """
    check_model(model, seed)
    infos: list[GroupInfo] = []
    recipe: dict[str, Any] = {"op": "random_init", "plan": "student", "seed": seed}
    if isinstance(plan, nn.Module):
        check_model(plan)
        student = deep_copy(plan).train(model.training)
    else:
        grown, _ = proved_student(model, example_input, plan, seed=seed)
        student, infos = grown.student, group_infos(grown.structure, grown.sizes)
        recipe = recipe_of("random_init", model, student, plan, seed, grown.attributes)
    if reset or not isinstance(plan, nn.Module):
        initialize(student, seed)
    gap = measured_gap(model, student, [first_samples(one) for one in examples_of(model, example_input)])
    return Growth(student, gap, recipe, [], infos)


def unchanged(model: nn.Module, *, seed: int = 0) -> Growth:
    """The teacher itself, to be trained on: what a student's budget is worth without growth.

    Args:
        model: the teacher; it is not modified.
        seed: for the lineage alone.

    Returns:
        Growth: ``.student`` is a copy.

    Raises:
        GrowthError: the model is no network that could be copied.

    >>> net = nn.Linear(3, 4)
    >>> bool((unchanged(net).student.weight == net.weight).all())
    True
    """
    check_model(model, seed)
    student = deep_copy(model)
    return Growth(student, Gap(0.0, 0.0, kind="the same network"), recipe_of("continue", model, student, 1.0, seed, {}))
