"""New layers that are wider than the layer below (paper, section 2.4): which of them can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from n2n_cli.growth.depth.identity import BatchNorm
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.groups.reasons import OBVIOUS
from n2n_cli.growth.sizes.layers import grown_units


def free_layers(student: nn.Module, example: Any, layers: Sequence[str], width: float) -> tuple[dict[str, float], str]:
    """Which new layers can be wider while every layer of the teacher stays as it is.

    Args:
        student: the network with the new layers; its tensors may lie on the meta device.
        example: its input.
        layers: the paths of the new layers and norms.
        width: a factor, or a number of units as a whole number.

    Returns:
        tuple[dict[str, float], str]: the layers, each with ``width``; and what holds one of the others.

    Raises:
        GrowthError: ``width`` is fewer units than a layer has.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> free_layers(net, torch.ones(2, 3), ["2"], 1.5)
    ({'2': 1.5}, '')
    """
    structure = infer(student, trace(student, example))
    plan: dict[str, float] = {}
    held = ""
    for group, places in structure.groups().items():
        if group.fixed and group.fixed.kind in (*OBVIOUS, "spatial"):
            continue
        makers = [name.rpartition(".")[0] for name, dim in places if (name, dim) not in structure.consumed]
        made = [
            layer for layer in makers if layer in layers and not isinstance(student.get_submodule(layer), BatchNorm)
        ]
        others = [layer for layer in makers if layer not in layers]
        if not made:
            continue
        if group.fixed or others:
            held = f"'{made[0]}' {f'is held: {group.fixed}' if group.fixed else f'grows only with {others[0]!r}'}"
        elif isinstance(width, int) and width < group.n:
            raise GrowthError(f"width: {width} units are fewer than the {group.n} of '{made[0]}'")
        elif (width if isinstance(width, int) else grown_units(group, width)) > group.n:
            plan[made[0]] = width
    return plan, held
