"""How many units of a network are copies of each other: whether a grown student uses its width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.groups.axes import Group, resolve
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.groups.structure import Structure
from n2n_cli.growth.trace.examples import check_model

NEAR = 0.01  # of the larger norm: two units are nearly the same
CHUNK = 512  # units that are compared with all others at once


@dataclass(frozen=True)
class Duplicates:
    """Of ``units`` that could differ, ``equal`` are the same to the last bit as an earlier one of their group, and
    ``near`` differ from an earlier one by at most 1 % of the norm of what makes them (the equal ones among them)."""

    units: int
    equal: int
    near: int


def duplicates(model: nn.Module, example_input: Any) -> Duplicates:
    """Count the units that are copies of others, by the weights that make them.

    Copies that their readers share equally get equal gradients for ever (paper, section 2.3): the width that was added
    is not used. Two units are equal if every parameter that makes them is: rows of weights, biases, scales of norms.

    Args:
        model: any network; it is not modified.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments), of which only the shapes matter.

    Returns:
        Duplicates: how many units could differ, and how many are copies.

    Raises:
        GrowthError: the model cannot be recorded.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> duplicates(growth.widen(net, torch.randn(2, 3), 1.5).student, torch.randn(2, 3))
    Duplicates(units=6, equal=2, near=2)
    """
    check_model(model)
    structure = infer(model, trace(model, example_input))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
    units = equal = near = 0
    for group, places in structure.groups().items():
        rows = _rows(structure, weights, group, places)
        if rows is not None and not group.fixed:
            units += group.n
            equal += group.n - len(torch.unique(rows, dim=0))
            near += _near(rows)
    return Duplicates(units, equal, near)


def _rows(
    structure: Structure, weights: Mapping[str, Tensor], group: Group, places: list[tuple[str, int]]
) -> Tensor | None:
    """All that makes each unit of a group, ``[units, numbers]``; None if no weight does."""
    found = []
    for name, dim in places:
        if name not in weights or (name, dim) in structure.consumed:
            continue
        tensor, at = weights[name].movedim(dim, 0), 0
        for other, k in resolve(structure.axes[name][dim]):
            if other is group:
                found.append(tensor[at : at + group.n * k].reshape(group.n, -1).float().cpu())
            at += other.n * k
    matrices = any(weights[name].ndim > 1 for name, _ in places if name in weights)
    return torch.cat(found, 1) if found and matrices else None


def _near(rows: Tensor) -> int:
    """How many rows are near an earlier one."""
    norms, count = rows.norm(dim=1), 0
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        distance = torch.cdist(rows[some], rows, compute_mode="donot_use_mm_for_euclid_dist")
        close = distance <= NEAR * torch.maximum(norms[some, None], norms[None])
        count += int(close.tril(start - 1).any(1).sum())
    return count
