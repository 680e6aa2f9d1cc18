"""Room 2, group: which parameter axes share a remapping, found by one walk over the recorded operations.

The paper's own wish (section 2.3): "a remapping inference algorithm that makes a forward pass through the graph,
querying each operation in the graph about how to make the remapping functions consistent".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from n2n_cli.growth.groups.axes import Axis, Group, fix, fresh, is_open, resolve
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.reasons import Fork, Reason
from n2n_cli.growth.groups.relations import RELATIONS
from n2n_cli.growth.groups.structure import Context, Structure
from n2n_cli.growth.trace.copies import named_buffers
from n2n_cli.growth.trace.record import Op, Recording, record, record_all

STRICT = bool(os.environ.get("N2N_STRICT"))
"""Whether a rule's own fault is raised. Otherwise what the operation touches is held, and the report says so."""


def trace(model: nn.Module, example_input: Any) -> list[Recording]:
    """The operations that ``model`` performs on ``example_input``, as `infer` reads them: see `record.record_all`.

    Args:
        model: it is not modified.
        example_input: images ``[N, C, H, W]``, or a tuple or dict of arguments.

    Returns:
        list[Recording]: one in train mode and one in eval mode; more where the code depends on the data.

    Raises:
        GrowthError: the model cannot be recorded; names the module where it stopped.

    >>> training, evaluation = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.ones(2, 3))
    >>> [op.name for op in evaluation.ops]
    ['linear', 'relu']
    """
    return record_all(model, example_input, OPERATIONS)


def infer(
    model: nn.Module, recordings: Sequence[Recording], *, relaxed: bool = False, student: nn.Module | None = None
) -> Structure:
    """The groups of ``model``, from its recordings (`trace`).

    Args:
        model: the recorded model; its tensors may lie on the meta device.
        recordings: of its forward pass, at least one in train and one in eval mode.
        relaxed: with relations that let units grow by any factor where whole numbers are the rule (layer and RMS
            norms).
        student: built by its own constructor: where a choice is open (heads or their width), its shapes decide.

    Returns:
        Structure: the groups of every axis of every parameter and buffer, and what holds those that may not grow.

    Everything is inferred anew after each change of a choice, because labels cannot be taken back.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> structure = infer(net, trace(net, torch.ones(2, 3)))
    >>> for group, places in structure.groups().items():
    ...     print(group.n, places, group.fixed or "")
    4 [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)]
    3 [('0.weight', 1)] the network's input
    2 [('2.weight', 0), ('2.bias', 0)] the network's output
    """
    beside = _alongside(recordings, student)
    modules = dict(model.named_modules())
    choices: dict[Fork, int] = {}
    while True:
        axes, aliases = _open_axes(model)
        relations = [kind() for kind in RELATIONS if relaxed or not kind.relaxing]
        ctx = Context(axes, OPERATIONS, relations, choices, modules, STRICT)
        labels = []
        for recording, ops in zip(recordings, beside, strict=True):
            ctx.run(recording, ops)
            labels.append(ctx.labels)
        _settle_roles(ctx)
        for relation in relations:
            relation.settle(ctx)
        changed = ctx.wanted or _next_choices(ctx)
        for relation in [] if changed else relations:
            changed = changed or relation.refuse(ctx)
        if not changed:
            break
        choices.update(changed)
    consumed = {place for place, roles in ctx.roles.items() if roles == {"in"}}
    return Structure(
        axes, consumed, aliases, ctx.readers, ctx.grouped, relations, list(recordings), labels, OPERATIONS
    )  # fmt: skip


def _open_axes(model: nn.Module) -> tuple[dict[str, list[Axis]], dict[str, str]]:
    axes: dict[str, list[Axis]] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *named_buffers(model)]:
        aliases[name] = first.setdefault(id(tensor), name)
        if aliases[name] == name:
            axes[name] = [fresh(n) for n in tensor.shape]
    return axes, aliases


def _alongside(recordings: Sequence[Recording], student: nn.Module | None) -> list[list[Op | None]]:
    """The student's operation beside each of the teacher's; None where there is no student, or it performs others."""
    found: list[list[Op | None]] = []
    for recording in recordings if student is not None else []:
        assert student is not None
        theirs = record(student, recording.example, OPERATIONS, training=recording.training).ops
        if [op.name for op in theirs] != [op.name for op in recording.ops]:
            found = []
            break
        found.append(list(theirs))
    return found or [[None] * len(recording.ops) for recording in recordings]


def _settle_roles(ctx: Context) -> None:
    """Fix parameter axes that nothing reads, in whole or in part, and those both consumed and copied (tied weights)."""
    met = {group for axis in ctx.met for group, _ in resolve(axis)}
    for name, axes in ctx.parameters.items():
        for dim, axis in enumerate(axes):
            roles = ctx.roles.get((name, dim))
            if roles is None:
                fix(axis, Reason("other", f"{name} is not used in the forward pass"))
            elif len(roles) > 1:
                fix(axis, Reason("other", f"{name} is both consumed and produced along axis {dim} (tied weights)"))
            for group, k in resolve(axis):
                if group not in met:
                    fix([(group, k)], Reason("other", f"a part of {name} that the example does not reach"))


def _next_choices(ctx: Context) -> dict[Fork, int]:
    """What forks that came to nothing choose next: their axis turned out fixed, and they have another way to offer.

    An attention layer divides 12 channels into (3 heads, 4) by a view. The first choice lets the 4 grow; but queries
    and keys are summed over them, which fixes the 4 and so all 12. The view's next choice is the 3: heads grow.

    Two refinements. If a unit is fixed only because *another* fork chose otherwise, then that one moves, not this one.
    And a fork waits for a later one of another kind on the same units: the view of 36 channels into (3, 12) must not
    give up its 12 before the view of these 12 into (3 heads, 4) has tried its other way.
    """

    def left(fork: Fork) -> bool:
        return fork in ctx.forks and ctx.choice(fork) + 1 < ctx.forks[fork][1]

    stuck = {fork: resolve(axis) for fork, (axis, _) in ctx.forks.items() if not is_open(axis)}
    last: dict[Group, Fork] = {}
    for fork, spans in stuck.items():
        if left(fork):
            last.update({group: fork for group, _ in spans})
    advance: set[Fork] = set()
    for fork, spans in stuck.items():
        culprits = {group.fixed.fork for group, _ in spans if group.fixed and group.fixed.fork is not None}
        others = {culprit for culprit in culprits if culprit != fork and left(culprit)}
        later = {last[group] for group, _ in spans if group in last}
        waits = any(_kind(other) != _kind(fork) for other in later)
        advance |= others or ({fork} if left(fork) and not waits else set())
    return {fork: ctx.choice(fork) + 1 for fork in advance}


def _kind(fork: Fork) -> tuple[str, str, int]:
    path, name, _, part = fork
    return path, name, part
