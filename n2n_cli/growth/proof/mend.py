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
from n2n_cli.growth.errors import GrowthError, OutOfMemory
from n2n_cli.growth.groups.axes import Group, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Attributes, Sizes, Structure
from n2n_cli.growth.proof.gap import runs
from n2n_cli.growth.proof.locate import Fault, find
from n2n_cli.growth.proof.prove import Counterexample, Unprovable
from n2n_cli.growth.sizes.solve import Plan, Solution, solve
from n2n_cli.growth.trace.copies import in_double

MOST_TRIED = 32  # groups that are held one at a time, where an operation reads a size as a number


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
        Unprovable, Counterexample, OutOfMemory: as ``prove`` raised them.
        GrowthError: nothing can be mended, and what was asked for by name, or everything, would have to be held.
    """
    sizes, coupled = solution.sizes, False
    attributes: Attributes | None = None
    while True:
        candidate = build(sizes, attributes)
        if attributes is None:
            _leave_alone_what_need_not_follow(model, candidate)
        try:
            prove(candidate)
            return candidate
        except (Unprovable, Counterexample, OutOfMemory):
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
            if fault is not None and (fault.guessed or not fault.groups) and isinstance(plan, float | int):
                fault.groups = _read_as_numbers(model, structure, fault, sizes, build)
                fault.text = f"reads how many these are as a number: {fault.text}"
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


def _read_as_numbers(model: nn.Module, structure: Structure, fault: Fault, sizes: Sizes, build: Build) -> list[Group]:
    """The groups whose size an operation took as a number (``head(x) / x.shape[-1]``), where none grows on its tensors:
    the nearest before it without which the student comes further; where no single one will do, those that were guessed,
    or else all of them."""
    ops, labels = structure.recordings[fault.recording].ops, structure.labels[fault.recording]
    at = next((i for i, op in enumerate(ops) if op is fault.op), len(ops) - 1)
    met = [
        group
        for op in reversed(ops[: at + 1])
        for tensor in [*op.outputs, *op.tensors()]
        for axis in labels.get(id(tensor), [])
        for group, _ in resolve(axis)
        if sizes.get(group, group.n) != group.n
    ]
    near = list(dict.fromkeys(met))
    teacher = in_double_if_it_runs(model, structure)
    for group in near[:MOST_TRIED]:
        candidate = build({**sizes, **{held: held.n for held in structure.bound([group])}}, None)
        found = None
        with suppress(GrowthError):
            found = find(structure, candidate.remappings, student_of(teacher, candidate), teacher)
            if found is None or found.depth > fault.depth:
                return [group]
    return fault.groups or near


def _leave_alone_what_need_not_follow(model: nn.Module, candidate: Candidate) -> None:
    """Give attributes of users' modules that were changed at first guess their own values again, unless an operation
    has another shape without them: a smallest image side of 16 beside 16 channels is no width.

    All instances of a class are tried at once, then those that hold the same number. Values that matter without a
    shape (a divisor) are missed by the proof, and read again then.
    """
    if candidate.given is not None or any(recording.data for recording in candidate.structure.recordings):
        return
    structure, remappings, student = candidate.structure, candidate.remappings, candidate.student
    guessed = [
        option
        for option in options(model, structure, remappings)
        if candidate.attributes.get(option.path, {}).get(option.attribute, option.own) != option.own
    ]
    if not guessed or find(structure, remappings, student) is not None:
        return

    def reverted(some: list[Option]) -> bool:
        now = {id(option): candidate.attributes[option.path][option.attribute] for option in some}
        for option in some:
            set_attributes(student, {option.path: {option.attribute: option.own}})
        if find(structure, remappings, student) is None:
            for option in some:
                del candidate.attributes[option.path][option.attribute]
            return True
        for option in some:
            set_attributes(student, {option.path: {option.attribute: now[id(option)]}})
        return False

    by_class: dict[tuple[type, str], list[Option]] = {}
    for option in guessed:
        by_class.setdefault((type(model.get_submodule(option.path)), option.attribute), []).append(option)
    if reverted(guessed):
        return
    for alike in by_class.values():
        values = {str(option.own): [o for o in alike if o.own == option.own] for option in alike}
        if not reverted(alike) and len(values) > 1:
            for some in values.values():
                reverted(some)


def in_double_if_it_runs(model: nn.Module, structure: Structure) -> nn.Module:
    """A copy in fp64; the model itself where an operation has no such kernel (`torch._grouped_mm`)."""
    wide = in_double(model)
    return wide if all(runs(wide, example) for example in structure.examples()) else model


def _reread_until_stuck(model: nn.Module, candidate: Candidate) -> tuple[Attributes, Fault | None]:
    """Other readings of the modules' numbers as far as they help, and the fault that remains."""
    attributes, structure, remappings = candidate.attributes, candidate.structure, candidate.remappings
    student, fault = candidate.student, None
    references: list[nn.Module | None] = [None]
    if not any(parameter.is_meta for parameter in student.parameters()):
        teacher = in_double_if_it_runs(model, structure)
        student = student_of(teacher, candidate)
        references.append(teacher)
    for reference in references:  # shapes first, then values
        try:
            fault = find(structure, remappings, student, reference)
        except GrowthError:  # the teacher does not run as it is compared: shapes must do
            break
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
