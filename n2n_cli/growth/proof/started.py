"""A student whose new units start in another way than as equal copies, proved like any other."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from n2n_cli.growth.build.starts import Start, started
from n2n_cli.growth.build.students import Candidate, student_of
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Group
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Remappings
from n2n_cli.growth.proof.locate import find
from n2n_cli.growth.proof.mend import in_double_if_it_runs
from n2n_cli.growth.proof.prove import Counterexample, Unprovable


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
    operation get copies, and the proof is repeated.

    Raises:
        Unprovable, Counterexample: as ``prove`` raised them.
        GrowthError: the student is not exact, and no group could be blamed.
    """
    refused: dict[Group, Reason] = {}
    while True:
        remappings, why = started(copied.structure, copied.remappings, start, refused)
        candidate = build(remappings)
        candidate.copied = why
        try:
            prove(candidate)
            return candidate
        except (Unprovable, Counterexample):
            raise
        except GrowthError as error:
            teacher = in_double_if_it_runs(model, copied.structure)
            fault = find(copied.structure, remappings, student_of(teacher, candidate), teacher)
            blamed = [group for group in fault.groups if group not in why] if fault else []
            if fault is None or not blamed:
                raise GrowthError(f"{start}: {error}") from error
            refused |= {group: Reason("failed", fault.text, fault.op.name, fault.op.path) for group in blamed}
