"""The remapping ``g`` of every group (paper, section 2.3), drawn at random."""

from __future__ import annotations

import torch

from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Remappings, Sizes, Structure


def draw(structure: Structure, sizes: Sizes, seed: int) -> Remappings:
    """A random remapping for every group that grows: ``g(j) = j`` for the teacher's own ``n`` units, and each further
    unit copies one of them, drawn uniformly with replacement.

    Groups of a relation are drawn by it. The draw comes from a CPU generator, so that every machine and rank gets the
    same one.

    Args:
        structure: the groups (`groups.infer.infer`).
        sizes: units of every group in the student (`solve.solve`).
        seed: of the draw.

    Returns:
        Remappings: of the groups that grow.

    Raises:
        GrowthError: with these sizes a relation has no remapping (a channel shuffle would lose a unit).

    >>> from torch import nn
    >>> from n2n_cli.growth.groups.infer import infer, trace
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> structure = infer(net, trace(net, torch.ones(2, 3)))
    >>> [(group, _)] = [(g, p) for g, p in structure.groups().items() if not g.fixed]
    >>> draw(structure, {group: 6}, seed=0)[group].index
    tensor([0, 1, 2, 3, 0, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    remappings: Remappings = {}
    for relation in structure.relations:
        remappings |= relation.draw(structure, sizes, generator)
    for group in structure.groups():
        size = sizes.get(group, group.n)
        if group not in remappings and size != group.n and not group.fixed:
            extra = torch.randint(group.n, (size - group.n,), generator=generator)
            remappings[group] = Remapping.of(torch.cat([torch.arange(group.n), extra]), group.n)
    for relation in structure.relations:
        relation.refine(remappings)
    return remappings
