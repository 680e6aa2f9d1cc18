"""Build a student and prove it; if it fails, change attributes or hold groups, and try again.

Every operator that widens uses this one loop, and so does `inspect`. A student that fails is located (`locate`). Then,
in this order:

1. The attributes of the module where it goes astray are read in another way (`build.attributes.options`).
2. If the plan names layers: once, widths in the same module that equal one that was asked for follow it.
3. If the plan is a factor: the groups that meet at the fault are held, by name, and the rest grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from torch import nn

from n2n_cli.growth.build.attributes import Option, options, set_attributes
from n2n_cli.growth.build.students import Candidate, student_of
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Attributes, Sizes, Structure
from n2n_cli.growth.proof.locate import Fault, find
from n2n_cli.growth.proof.prove import NotFinite
from n2n_cli.growth.sizes.solve import Plan, Solution, solve
from n2n_cli.growth.trace.copies import in_double


class Build(Protocol):
    """A student with these sizes; ``attributes``: of modules that must follow, None: as they are read first."""

    def __call__(self, sizes: Sizes, attributes: Attributes | None) -> Candidate: ...


def build_until_proved(
    model: nn.Module,
    structure: Structure,
    solution: Solution,
    plan: Plan,
    build: Build,
    prove: Callable[[Candidate], None],
) -> Candidate:
    """The first student that passes ``prove``, which raises GrowthError otherwise.

    Raises:
        GrowthError: nothing can be mended, and what was asked for by name, or everything, would have to be held.
    """
    sizes, coupled = solution.sizes, False
    attributes: Attributes | None = None
    while True:
        candidate = build(sizes, attributes)
        try:
            prove(candidate)
            return candidate
        except NotFinite:
            raise
        except GrowthError as error:
            if not candidate.remappings:
                raise
            attributes, fault = _reread_until_stuck(model, candidate)
            if fault is None and attributes != candidate.attributes:
                continue
            if isinstance(plan, Mapping) and not coupled:
                coupled, attributes = True, None
                with suppress(GrowthError):  # a plan that cannot be coupled falls through to the refusal below
                    sizes = solve(structure, plan, coupled=True).apply_holds(structure).sizes
                    continue
            if fault is None or not fault.groups or not isinstance(plan, float | int):
                place = f"; first at {fault.op}" if fault else ""
                place += f": {fault.text}" if fault and fault.text not in str(error) else ""
                raise GrowthError(f"{error}{place}") from error
            structure.hold(fault.groups, Reason("failed", fault.text, fault.op.name, fault.op.path))
            sizes, attributes = solve(structure, plan).apply_holds(structure).sizes, None
            if all(size == group.n for group, size in sizes.items()):
                raise GrowthError(f"nothing of {type(model).__name__} can grow: {fault.op}: {fault.text}") from error


def check_shapes(candidate: Candidate) -> None:
    """The proof of a dry run: every operation gives the shape that the labels say.

    Raises:
        GrowthError: one does not; it is named.
    """
    if not any(recording.data for recording in candidate.structure.recordings):
        fault = find(candidate.structure, candidate.remappings, candidate.student)
        if fault is not None:
            raise GrowthError(f"{fault.op}: {fault.text}")


def _reread_until_stuck(model: nn.Module, candidate: Candidate) -> tuple[Attributes, Fault | None]:
    """Other readings of the modules' numbers as far as they help, and the fault that remains."""
    attributes, structure, remappings = candidate.attributes, candidate.structure, candidate.remappings
    student, fault = candidate.student, None
    references: list[nn.Module | None] = [None]
    if not any(parameter.is_meta for parameter in student.parameters()):
        teacher = in_double(model)
        student = student_of(teacher, candidate)
        references.append(teacher)
    for reference in references:  # shapes first, then values
        fault = find(structure, remappings, student, reference)
        while fault is not None and candidate.given is None:
            better = _reread(model, candidate, student, attributes, fault, reference)
            if better is None:
                return attributes, fault
            attributes, fault = better
        if fault is not None or attributes != candidate.attributes:
            break
    return attributes, fault


def _reread(
    model: nn.Module,
    candidate: Candidate,
    student: nn.Module,
    attributes: Attributes,
    fault: Fault,
    teacher: nn.Module | None,
) -> tuple[Attributes, Fault | None] | None:
    """Attributes in another reading with which the student comes further, and its next fault; None: none helps.

    The attributes of the operation's module are tried, of the modules around it, and of those directly inside.
    """
    structure, remappings = candidate.structure, candidate.remappings
    parts = fault.op.path.split(".")
    around = {"", *(".".join(parts[:n]) for n in range(1, len(parts) + 1))}
    inside = {path for path, _ in model.named_modules() if path and path.rpartition(".")[0] == fault.op.path}
    best: tuple[Attributes, Fault | None] | None = None
    for places, below, above in ((around, False, False), (inside, False, True), (around, True, False)):
        found = options(model, structure, remappings, below=below, above=above)
        for option in found:
            now = attributes.get(option.path, {}).get(option.attribute, option.own)
            for value in [v for v in option.values if v != now] if option.path in places else []:
                trial = {path: dict(values) for path, values in attributes.items()}
                for other in _alike(option, found, model):
                    trial.setdefault(other.path, {})[option.attribute] = value
                set_attributes(student, trial)
                after = find(structure, remappings, student, teacher)
                if after is None:
                    return trial, None
                if after.depth > (best[1].depth if best and best[1] else fault.depth):
                    best = trial, after
            for other in _alike(option, found, model):
                before = attributes.get(other.path, {}).get(other.attribute, other.own)
                set_attributes(student, {other.path: {other.attribute: before}})
        if best is not None:
            break
    set_attributes(student, best[0] if best else attributes)
    return best


def _alike(option: Option, found: list[Option], model: nn.Module) -> list[Option]:
    """The same attribute, with the same value and options, in modules of the same class: they are read alike."""
    kind = type(model.get_submodule(option.path))
    return [
        other
        for other in found
        if (other.attribute, other.own, sorted(map(str, other.values)))
        == (option.attribute, option.own, sorted(map(str, option.values)))
        and type(model.get_submodule(other.path)) is kind
    ]
