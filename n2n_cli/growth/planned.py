"""From a plan to a proved student: groups, sizes, mappings, weights; what fails is mended or held back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from n2n_cli.growth import narrow
from n2n_cli.growth.apply import Maps, all_maps, grow_state, weights_in_double, with_state
from n2n_cli.growth.attributes import Attributes, eps, follow, set_attributes
from n2n_cli.growth.axes import Group, Reason
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.infer import Structure, infer
from n2n_cli.growth.plan import Plan, Remapping, Sizes, check_names, draw, rounded, solve
from n2n_cli.growth.prove import NOT_FINITE, Gap, function_gap, in_double, prepared, prove, prove_in_double, small
from n2n_cli.growth.record import named_buffers

ROUGH = {torch.float32: 1e-3}  # relative gap that a precision explains, beside the proof in fp64


@dataclass
class Planned:
    """What grows and how, proved: the noiseless student of this plan computes the teacher's function."""

    structure: Structure
    mappings: dict[Group, Remapping]
    maps: Maps
    attributes: Attributes
    like: nn.Module | None
    student: nn.Module
    gap: Gap


def plan_growth(model: nn.Module, example_input: Any, plan: Plan, *, seed: int, noise: float = 0.0) -> Planned:
    """Infer the groups, solve their sizes, build the student and prove in fp64 what it is without noise.

    What makes a student fail is held back, by name, if the plan is a factor.

    Raises:
        GrowthError: the plan cannot be met, or a student that was asked for by name or layer is not exact.
    """
    _check(model, seed)
    like = plan if isinstance(plan, nn.Module) else None
    structure, sizes = solved(model, prepared(model, small(example_input), pair=False), plan)
    batches = [small(example) for example in structure.examples()]
    again: Attributes | None = None
    coupled = False
    while True:
        mappings = draw(structure, sizes, seed)
        maps = all_maps(structure, mappings)
        attributes = eps(structure, mappings) if like is not None else again or follow(model, structure, mappings)
        planned = Planned(structure, mappings, maps, attributes, like, model, Gap(0.0, 0.0))
        planned.student = build(model, planned, noise, seed)
        try:
            planned.gap = _proved(model, planned, batches, as_built=noise == 0)
            return planned
        except GrowthError as error:
            if not mappings or NOT_FINITE in str(error):
                raise
            again, fault = _mended(model, planned)
            if fault is None and again != attributes:
                continue
            if isinstance(plan, Mapping) and not coupled:
                coupled, again = True, None
                with suppress(GrowthError):
                    sizes = solve(structure, plan, coupled=True)
                    continue
            if fault is None or not fault.groups or not isinstance(plan, float | int):
                place = f"; first at {fault.op}" if fault else ""
                place += f": {fault.text}" if fault and fault.text not in str(error) else ""
                raise GrowthError(f"{error}{place}") from error
            narrow.hold(structure, fault.groups, Reason.at(f"{fault.op}: {fault.text}"))
            sizes, again = solve(structure, plan), None
            if all(size == group.n for group, size in sizes.items()):
                raise GrowthError(f"nothing of {type(model).__name__} can grow: {fault.op}: {fault.text}") from error


def _check(model: Any, seed: Any) -> None:
    """What a library's user may get wrong before anything runs."""
    if not isinstance(model, nn.Module):
        raise GrowthError(f"the teacher is of type {type(model).__name__}: expected a torch.nn.Module")
    empty = next((name for name, t in [*model.named_parameters(), *named_buffers(model)] if t.is_meta), None)
    if empty is not None:
        raise GrowthError(f"'{empty}' is on the meta device: a teacher has values")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise GrowthError(f"seed is {seed!r}: expected a whole number from 0 to 2**63 - 1")


def _proved(model: nn.Module, planned: Planned, batches: list[Any], *, as_built: bool) -> Gap:
    """The proof in fp64, without copies of the networks unless their code minds in which precision it runs.

    ``as_built``: the student holds no noise, and is compared as it is as well, in its own precision.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float64 and as_built:
        with suppress(GrowthError):  # code that rounds to fp32 somewhere is compared in fp64 throughout
            return prove(model, planned.student, *batches)
    weights = weights_in_double(model, planned.structure, planned.mappings, planned.maps)
    try:
        gap = prove_in_double(model, planned.student, weights, *batches)
    except GrowthError as error:
        if NOT_FINITE in str(error):
            raise
        teacher = in_double(model)
        gap = prove(teacher, build(teacher, planned), *batches)
    if as_built:
        rough = function_gap(model, planned.student, batches[0], training=False)
        if not rough <= max(ROUGH.get(dtype, 3e-2), 1e9 * gap.floor):
            raise GrowthError(
                f"the student's function differs from the teacher's: relative gap {rough:.1e} in eval mode ({dtype})"
            )
    return gap


def _mended(model: nn.Module, planned: Planned) -> tuple[Attributes, narrow.Fault | None]:
    """Other readings of the modules' numbers as far as they help, and the fault that remains."""
    attributes, structure, mappings = planned.attributes, planned.structure, planned.mappings
    teacher = in_double(model)
    student = build(teacher, planned)
    fault: narrow.Fault | None = None
    for reference in (None, teacher):  # shapes first, then values
        fault = narrow.find(structure, mappings, student, reference)
        while fault is not None and planned.like is None:
            better = narrow.reread(model, structure, mappings, student, attributes, fault, reference)
            if better is None:
                return attributes, fault
            attributes, fault = better
        if fault is not None or attributes != planned.attributes:
            break
    return attributes, fault


def solved(model: nn.Module, example: Any, plan: Plan) -> tuple[Structure, Sizes]:
    """Whole-number ties first; where the plan asks for less than whole numbers, norms are relaxed if they allow it.

    Raises:
        GrowthError: the plan cannot be met.
    """
    like = plan if isinstance(plan, nn.Module) else None
    if like is not None:
        check_names(model, like)
    structure = infer(model, example, like=like)
    refusal: GrowthError | None = None
    try:
        sizes = solve(structure, plan)
        if not isinstance(plan, float | int) or not rounded(structure, sizes, plan):
            return structure, sizes
    except GrowthError as error:
        refusal = error
    if structure.ties:
        relaxed = infer(model, example, like=like, uneven=True)
        if relaxed.norms:
            return relaxed, solve(relaxed, plan)
    if refusal:
        raise refusal
    return structure, sizes


def build(teacher: nn.Module, planned: Planned, noise: float = 0.0, seed: int = 0) -> nn.Module:
    """The student with the teacher's weights, of its class (or the constructor's student)."""
    structure = planned.structure
    state = grow_state(teacher, structure, planned.mappings, noise=noise, seed=seed, maps=planned.maps)
    if planned.like is None:
        student = with_state(teacher, state, structure.aliases)
    else:
        student = with_state(planned.like, state, structure.aliases)
        _like_the_teacher(student, teacher)
    set_attributes(student, planned.attributes)
    return student


def _like_the_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """What is frozen stays frozen, and the mode is the teacher's."""
    frozen = {name for name, parameter in teacher.named_parameters() if not parameter.requires_grad}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in frozen)
    student.train(teacher.training)
