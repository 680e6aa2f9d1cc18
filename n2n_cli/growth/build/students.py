"""The student itself: a copy of the teacher (or the constructor's student) around grown tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.build.attributes import follow, set_attributes, told_by_relations
from n2n_cli.growth.build.initialize import initialize
from n2n_cli.growth.build.maps import Maps, all_maps
from n2n_cli.growth.build.starts import RandomEntries
from n2n_cli.growth.build.weights import grown_weights, multipliers
from n2n_cli.growth.groups.axes import Group, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.rules.reductions import dims_of
from n2n_cli.growth.groups.structure import Attributes, Remappings, Sizes, Structure
from n2n_cli.growth.trace.copies import deep_copy, first_names, named_tensors, plain_tensors


@dataclass
class Candidate:
    """A student before its proof, and all that it was made of.

    ``given``: the student whose shapes were asked for; ``random``: the entries of its tensors that random
    initialization gives; ``described``: whether its config object, if it has one, says its sizes; ``copied``: groups
    whose new units are copies, though another way to start was asked for, and why.
    """

    structure: Structure
    remappings: Remappings
    maps: Maps
    attributes: Attributes
    given: nn.Module | None
    student: nn.Module
    random: RandomEntries
    described: bool = True
    copied: dict[Group, Reason] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """Units in the student, of the groups that grew."""
        return {group: len(remapping.index) for group, remapping in self.remappings.items()}

    @property
    def exact_optimizer(self) -> bool:
        """Whether every unit is a copy that holds what the teacher's does, all copies get gradients, and nothing else
        was multiplied."""
        special = multipliers(self.structure, self.remappings) or picked(self.structure) & self.remappings.keys()
        return not special and all(axis is None or axis.exact for axes in self.maps.values() for axis in axes)


def picked(structure: Structure) -> set[Group]:
    """Groups of which ``x.max(dim)`` takes one unit: of equal copies the first alone gets its gradient."""
    found: set[Group] = set()
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops:
            if len(op.outputs) > 1 and structure.table.of(op).picks:
                found |= {group for dim in dims_of(op) for group, _ in resolve(labels[id(op.args[0])][dim])}
    return found


def build(
    teacher: nn.Module,
    structure: Structure,
    remappings: Remappings,
    attributes: Attributes | None = None,
    *,
    given: nn.Module | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Candidate:
    """A student with the teacher's weights, of the teacher's class (or the ``given`` student's); not proved yet.

    Args:
        teacher: it is not modified and shares no storage with the student.
        structure: its groups (`groups.infer.infer`).
        remappings: of the groups that grow (`sizes.draw.draw`).
        attributes: numbers of modules that must follow, by module path; None: as they are read first.
        given: a student built by its own constructor, which gets the weights.
        noise, seed: as for `widen`.

    Returns:
        Candidate: the student, and all that it was made of.
    """
    maps = all_maps(structure, remappings)
    if given is not None:
        attributes = told_by_relations(structure, remappings)
    elif attributes is None:
        attributes = follow(teacher, structure, remappings)
    random = RandomEntries(maps, structure.consumed)
    candidate = Candidate(structure, remappings, maps, attributes, given, teacher, random)  # not the student yet
    candidate.student = student_of(teacher, candidate, noise=noise, seed=seed)
    if random.names:
        initialized = deep_copy(candidate.student)
        initialize(initialized, seed)
        for name, tensor in named_tensors(initialized):
            if name in random.names:
                random.draw(name, tensor.detach())
        candidate.student = student_of(teacher, candidate, noise=noise, seed=seed)
    return candidate


def student_of(teacher: nn.Module, candidate: Candidate, *, noise: float = 0.0, seed: int = 0) -> nn.Module:
    """The candidate's student with the weights of ``teacher``, which may be a copy of it in another precision."""
    structure, given = candidate.structure, candidate.given
    state = grown_weights(teacher, structure, candidate.remappings, candidate.maps, noise=noise, seed=seed)
    state = {name: candidate.random.write(name, tensor) for name, tensor in state.items()}
    student = with_state(teacher if given is None else given, state, structure.aliases)
    if given is not None:  # what is frozen stays frozen, and the mode is the teacher's
        frozen = {name for name, parameter in teacher.named_parameters() if not parameter.requires_grad}
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name not in frozen)
        student.train(teacher.training)
    set_attributes(student, candidate.attributes)
    return student


def shapes_alone(
    model: nn.Module, structure: Structure, remappings: Remappings, attributes: Attributes | None = None
) -> Candidate:
    """`build` on the meta device: no weight is made or copied."""
    maps = all_maps(structure, remappings)
    attributes = follow(model, structure, remappings) if attributes is None else attributes
    state: dict[str, Tensor] = {}
    plain = dict(plain_tensors(model))
    for name, tensor in named_tensors(model, every_name=True):
        first = structure.aliases[name]
        if first in plain and not any(maps[first]):
            continue
        sizes = [n if axis is None else len(axis.index) for axis, n in zip(maps[first], tensor.shape, strict=True)]
        state.setdefault(first, torch.empty(sizes, dtype=tensor.dtype, device="meta"))
    student = with_state(model, state, structure.aliases)
    set_attributes(student, attributes)
    return Candidate(structure, remappings, maps, attributes, None, student, RandomEntries(maps, structure.consumed))


def with_state(model: nn.Module, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> nn.Module:
    """A copy of ``model`` of the same class that holds ``state``; tied tensors stay tied.

    A plain tensor among the state becomes a buffer: what no constructor makes must be saved with the weights.
    """
    memo: dict[int, Any] = {}
    made: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model, every_name=True):
        first = aliases.get(name, name)
        if first not in state:  # a plain tensor that stays as it is
            continue
        if first not in made:
            made[first] = (
                nn.Parameter(state[first], requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else state[first]
            )
            made[first].__dict__.update(vars(tensor))  # what users pin to a parameter, such as _no_weight_decay
        memo[id(tensor)] = made[first]  # deepcopy takes these for the copies, so nothing is copied twice
    student = deep_copy(model, memo)
    for name, _ in plain_tensors(model):
        if name in state:
            path, _, attribute = name.rpartition(".")
            module = student.get_submodule(path)
            delattr(module, attribute)
            module.register_buffer(attribute, state[name])
    return student


def reshape(model: nn.Module, shapes: Mapping[str, list[int]], attributes: Attributes) -> nn.Module:
    """``model`` with parameters and buffers of new shapes (zeros) and attributes to match: a lineage replayed."""
    aliases, plain = first_names(model), dict(plain_tensors(model))
    state = {
        name: tensor.detach().new_zeros(shapes.get(name, tensor.shape))
        if name in shapes or isinstance(tensor, nn.Parameter)
        else tensor.detach().clone()  # a buffer that no state_dict may hold
        for name, tensor in named_tensors(model, every_name=True)
        if aliases[name] == name and (name not in plain or name in shapes)
    }
    student = with_state(model, state, aliases)
    set_attributes(student, attributes)
    return student
