"""A size for every group: what the plan asks for, made to fit by every relation in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.infer import infer
from n2n_cli.growth.groups.structure import Hold, Sizes, Structure
from n2n_cli.growth.sizes.layers import by_factor, by_layer, check_sizes
from n2n_cli.growth.sizes.student import by_student, check_names
from n2n_cli.growth.trace.examples import check_model
from n2n_cli.growth.trace.record import Recording

Plan = float | Mapping[str, float] | nn.Module
"""A factor (1.5), ``{layer pattern: factor or width}``, or a student built by its own constructor."""


@dataclass
class Solution:
    """``sizes``: units of every group in the student; ``holds``: groups that turned out not to grow at all;
    ``rounded``: whether a relation gave another size than the plan asks for."""

    sizes: Sizes
    holds: list[Hold] = field(default_factory=list)
    rounded: bool = False

    def apply_holds(self, structure: Structure) -> Solution:
        """Fix in ``structure`` the groups that cannot grow (``holds``); returns this solution."""
        for hold in self.holds:
            structure.hold(hold.groups, hold.reason)
        return self


def solve(structure: Structure, plan: Plan, *, coupled: bool = False) -> Solution:
    """New sizes of all groups; the structure stays as it is.

    Args:
        structure: the groups (`groups.infer.infer`).
        plan: a factor (1.5), a mapping from layer patterns to factors (``{"layer1.*": 1.5}``) or widths
            (``{"fc1": 512}``, whole numbers), or a student built by its own constructor, whose shapes are reached.
        coupled: what layer patterns ask for brings along the widths that are equal to it in the same module.

    Returns:
        Solution: the number of units of every group in the student.

    Raises:
        GrowthError: the plan shrinks a layer, names none, contradicts a tie, or cannot be reached.

    >>> from n2n_cli.growth.groups.infer import trace
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> structure = infer(net, trace(net, torch.ones(2, 3)))
    >>> solve(structure, 1.5).sizes, solve(structure, {"0": 7}).sizes
    ({<4>: 6}, {<4>: 7})
    """
    if isinstance(plan, nn.Module):
        wish = by_student(structure, plan)
    elif isinstance(plan, Mapping):
        wish = by_layer(structure, plan, coupled=coupled)
    else:
        wish = by_factor(structure, plan)
    check_sizes(structure, wish.sizes)
    sizes, holds = dict(wish.sizes), list[Hold]()
    for relation in structure.relations:
        sizes, held = relation.fit(structure, sizes, wish)
        holds += held
    return Solution(sizes, holds, any(relation.rounds(sizes, wish) for relation in structure.relations))


def group_and_size(model: nn.Module, recordings: Sequence[Recording], plan: Plan) -> tuple[Structure, Solution]:
    """The groups of a model and their sizes under a plan.

    Some norms and means tie their units: these may only be copied equally often. The groups are inferred with these
    ties first. The result is used unless the plan is refused, or is a factor that a tie had to round (1.5 to 2). In
    those cases the groups are inferred again with relaxed norms (`relations.norms`), which grow by any factor. If that
    frees no group, the first result stands: the rounded sizes, or the refusal.

    Raises:
        GrowthError: the plan cannot be met.
    """
    student = plan if isinstance(plan, nn.Module) else None
    if student is not None:
        check_model(student, meta=True)
        check_names(model, student)
    structure = infer(model, recordings, student=student)
    refusal: GrowthError | None = None
    try:
        solution = solve(structure, plan)
        if not isinstance(plan, float | int) or not solution.rounded:
            return structure, solution.apply_holds(structure)
    except GrowthError as error:
        refusal = error
    relaxed = relax(model, recordings, structure, student)
    if relaxed is not structure:
        return relaxed, solve(relaxed, plan).apply_holds(relaxed)
    if refusal is not None:
        raise refusal
    return structure, solution.apply_holds(structure)


def relax(
    model: nn.Module, recordings: Sequence[Recording], structure: Structure, student: nn.Module | None = None
) -> Structure:
    """The same groups with relaxed relations, where that frees any; else ``structure`` itself."""
    if structure.tied():
        relaxed = infer(model, recordings, relaxed=True, student=student)
        if any(relation.relaxing and relation.bonds() for relation in relaxed.relations):
            return relaxed
    return structure
