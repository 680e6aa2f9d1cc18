"""A plan that is a student, built by its own constructor: every group's size from the student's shapes."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from torch import nn

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Axis, length, resolve
from n2n_cli.growth.groups.structure import Sizes, Structure, Wish


def by_student(structure: Structure, student: nn.Module) -> Wish:
    """Solve the sizes: an axis of ``n' = sum(size * k)`` positions decides its group, if it is the only unknown one.

    Raises:
        GrowthError: no widening of the teacher has these shapes; names a tensor.
    """
    state = dict(student.state_dict(keep_vars=True))
    pending = [
        (name, resolve(axis), state[name].shape[dim])
        for name, axes in structure.axes.items()
        if name in state
        for dim, axis in enumerate(axes)
    ]
    sizes: Sizes = {}
    while pending:
        later = []
        for name, spans, target in pending:
            unknown = {group for group, _ in spans if not group.fixed and group not in sizes}
            if len(unknown) > 1:
                later.append((name, spans, target))
                continue
            rest = target - sum(sizes.get(g, g.n) * k for g, k in spans if g not in unknown)
            each = sum(k for g, k in spans if g in unknown)
            for group in unknown:
                if rest < group.n * each or rest % each:
                    raise _unreachable(structure, name, state[name].shape, spans)
                sizes[group] = rest // each
            if not unknown and rest:
                raise _unreachable(structure, name, state[name].shape, spans)
        if len(later) == len(
            pending
        ):  # no axis has a single unknown: the first group of one gets its share in proportion
            name, spans, target = later[0]
            open_ = [(g, k) for g, k in spans if not g.fixed and g not in sizes]
            fixed = sum(sizes.get(g, g.n) * k for g, k in spans if g.fixed or g in sizes)
            factor = (target - fixed) / sum(g.n * k for g, k in open_)
            if factor < 1:
                raise _unreachable(structure, name, state[name].shape, spans)
            first = open_[0][0]
            sizes[first] = max(first.n, floor(first.n * factor + 0.5))
        pending = later
    return Wish(sizes, "student")


def check_names(model: nn.Module, student: nn.Module) -> None:
    """Compare names and shapes before anything is inferred.

    Raises:
        GrowthError: the student has a tensor that no widening of the teacher can produce, or lacks one; names it.
    """
    ours, theirs = student.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    for name, tensor in ours.items():
        if name not in theirs:
            raise GrowthError(f"the student cannot be reached: '{name}' is in the student alone, {list(tensor.shape)}")
        have, want = list(theirs[name].shape), list(tensor.shape)
        if len(have) != len(want):
            raise GrowthError(
                f"the student cannot be reached: '{name}' is {have} in the teacher and {want} in the student"
            )
    for name, tensor in theirs.items():
        if name not in ours:
            raise GrowthError(f"the student cannot be reached: '{name}' is in the teacher alone, {list(tensor.shape)}")


def _unreachable(structure: Structure, name: str, want: Sequence[int], spans: Axis) -> GrowthError:
    have = [length(axis) for axis in structure.axes[name]]
    reason = next((str(group.fixed) for group, _ in spans if group.fixed), None)
    why = reason or "smaller, or at odds with a layer that shares its units"
    return GrowthError(
        f"the student cannot be reached: '{name}' is {have} in the teacher and {list(want)} in the student ({why})"
    )
