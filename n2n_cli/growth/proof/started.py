"""A student whose new units start in another way than as equal copies, proved like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from n2n_cli.growth.build.starts import Start, started
from n2n_cli.growth.build.students import Candidate, student_of
from n2n_cli.growth.errors import GrowthError, OutOfMemory
from n2n_cli.growth.groups.axes import Group
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Remappings
from n2n_cli.growth.proof.gap import function_gap
from n2n_cli.growth.proof.locate import find
from n2n_cli.growth.proof.mend import in_double_if_it_runs
from n2n_cli.growth.proof.prove import Counterexample, Unprovable

LARGE = (30.0, -30.0)  # times what random initialization gives
SEEN = 1e-3  # a relative gap that rounding of large units does not explain, even where fp64 does not run


def start_until_proved(
    model: nn.Module,
    copied: Candidate,
    start: Start,
    build: Callable[[Remappings], Candidate],
    prove: Callable[[Candidate], None],
) -> Candidate:
    """The candidate whose groups start in the wanted way, but for those that cannot.

    Args:
        model: the teacher.
        copied: the same student with equal copies, proved.
        start: the way.
        build: a candidate of the same sizes and attributes with other remappings.
        prove: raises GrowthError if the function changed.

    Where the function changes (a maximum over units would read a fresh one), the groups that meet at the first wrong
    operation get copies, and the proof is repeated. Training makes fresh units larger, so that they are also tried
    large, with either sign: a maximum might not have noticed small ones.

    Raises:
        Unprovable, Counterexample, OutOfMemory: as ``prove`` raised them.
        GrowthError: the student is not exact, and no group could be blamed.
    """
    refused: dict[Group, Reason] = {}
    teacher = in_double_if_it_runs(model, copied.structure)
    while True:
        remappings, why = started(copied.structure, copied.remappings, start, refused)
        candidate = build(remappings)
        candidate.copied = why
        probe = candidate
        try:
            prove(candidate)
            for size in LARGE if candidate.random.values else ():
                probe = _with_large_units(teacher, candidate, size)
                _same_function(teacher, probe)
            return candidate
        except (Unprovable, Counterexample, OutOfMemory):
            raise
        except GrowthError as error:
            fault = find(copied.structure, remappings, student_of(teacher, probe), teacher)
            blamed = [group for group in fault.groups if group not in why] if fault else []
            if fault is None or not blamed:
                raise GrowthError(f"{start}: {error}") from error
            refused |= {group: Reason("failed", fault.text, fault.op.name, fault.op.path) for group in blamed}


def _with_large_units(teacher: nn.Module, candidate: Candidate, size: float) -> Candidate:
    """The candidate with the weights that make its fresh units multiplied.

    Here these units read the teacher's units alone: large ones that read large ones would grow with the depth, until
    rounding is all that a pair, read with + and -, leaves behind.
    """
    probe = replace(candidate, random=copy.copy(candidate.random))
    parameters = {name for name, _ in teacher.named_parameters()}
    probe.random.values = {
        name: candidate.random.enlarged(name, size) if name in parameters else value
        for name, value in candidate.random.values.items()
    }
    probe.student = student_of(teacher, probe)
    return probe


def _same_function(teacher: nn.Module, probe: Candidate) -> None:
    for example in probe.structure.examples():
        gap = function_gap(teacher, probe.student, example)
        if not gap <= SEEN:
            raise GrowthError(
                f"the student's function differs from the teacher's, if its new units are large: {gap:.1e}"
            )
