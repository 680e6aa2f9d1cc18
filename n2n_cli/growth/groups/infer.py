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
from n2n_cli.growth.trace.copies import first_names, named_tensors
from n2n_cli.growth.trace.examples import examples_of, prepared, that_runs
from n2n_cli.growth.trace.record import Op, Recording, record, record_all

RAISE_RULE_ERRORS = bool(os.environ.get("N2N_STRICT"))
"""Whether an error inside a rule is raised. If not, what the operation touches is fixed, and the report says so."""


def trace(model: nn.Module, example_input: Any) -> list[Recording]:
    """The operations that ``model`` performs on ``example_input``, as `infer` reads them: see `record.record_all`.

    Args:
        model: it is not modified.
        example_input: images ``[N, C, H, W]``, or a tuple or dict of arguments; a list is several such examples.

    Returns:
        list[Recording]: for each example one in train mode and one in eval mode; more where the code depends on the
        data.

    Raises:
        GrowthError: the model cannot be recorded; names the module where it stopped.

    >>> training, evaluation = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.ones(2, 3))
    >>> [op.name for op in evaluation.ops]
    ['linear', 'relu']
    """
    examples = examples_of(model, example_input)
    return [recording for example in examples for recording in record_all(model, example, OPERATIONS)]


def recorded(model: nn.Module, example: Any) -> Recording:
    """One pass in train mode on the whole example; on two samples where one is too few.

    Raises:
        GrowthError: the model cannot be recorded; names the module where it stopped.
    """
    batch = prepared(model, example)
    return that_runs(lambda one: record(model, one, OPERATIONS, training=True), batch)


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
        ctx = Context(axes, OPERATIONS, relations, choices, modules, RAISE_RULE_ERRORS)
        labels = []
        for recording, ops in zip(recordings, beside, strict=True):
            ctx.run(recording, ops)
            labels.append(ctx.labels)
        _settle_roles(ctx)
        _hold_for_the_unreached(ctx)
        for relation in relations:
            relation.settle(ctx)
        changed = ctx.wanted or _next_choices(ctx)
        for relation in relations:
            changed = changed or relation.refuse(ctx)
        if not changed:
            break
        choices.update(changed)
    consumed = {place for place, roles in ctx.roles.items() if roles == {"in"}}
    return Structure(
        axes, consumed, aliases, ctx.readers, ctx.grouped, relations, list(recordings), labels, OPERATIONS
    )  # fmt: skip


def _open_axes(model: nn.Module) -> tuple[dict[str, list[Axis]], dict[str, str]]:
    aliases = first_names(model)
    named = named_tensors(model, every_name=True)
    return {name: [fresh(n) for n in tensor.shape] for name, tensor in named if aliases[name] == name}, aliases


def _alongside(recordings: Sequence[Recording], student: nn.Module | None) -> list[list[Op | None]]:
    """The student's operation beside each of the teacher's; None where there is no student, or it performs others."""
    nothing: list[list[Op | None]] = [[None] * len(recording.ops) for recording in recordings]
    if student is None:
        return nothing
    found: list[list[Op | None]] = []
    for recording in recordings:
        theirs = record(student, recording.example, OPERATIONS, training=recording.training).ops
        if [op.name for op in theirs] != [op.name for op in recording.ops]:
            return nothing
        found.append(list(theirs))
    return found


def _settle_roles(ctx: Context) -> None:
    """Fix parameter axes that nothing reads, in whole or in part, and those both consumed and copied (tied weights)."""
    met = {group for axis in ctx.met for group, _ in resolve(axis)}
    for name, axes in ctx.parameters.items():
        for dim, axis in enumerate(axes):
            roles = ctx.roles.get((name, dim))
            if name not in ctx.readers:
                fix(axis, Reason("unreached", f"{name} is not used in the forward pass"))
            elif roles is None:
                fix(axis, Reason("other", f"{name} is read along axis {dim} in a way that no rule tells"))
            elif len(roles) > 1:
                fix(axis, Reason("other", f"{name} is both consumed and produced along axis {dim} (tied weights)"))
            for group, k in resolve(axis):
                if group not in met:
                    fix([(group, k)], Reason("other", f"a part of {name} that the example does not reach"))


def _hold_for_the_unreached(ctx: Context) -> None:
    """Fix what modules that no example reached may read or write elsewhere: of a ModuleDict or ModuleList, one member
    of which was reached (another task's head, another expert), all that this one shares with the rest of the network.
    """
    names_of = [name for name, _ in ctx.modules[""].named_parameters()]
    owners = [path for path, module in ctx.modules.items() if isinstance(module, nn.ModuleDict | nn.ModuleList)]
    for owner in owners:
        before = f"{owner}." if owner else ""
        members: dict[str, list[str]] = {}
        for name in names_of:
            if name.startswith(before):
                members.setdefault(name.removeprefix(before).partition(".")[0], []).append(name)
        missed = [
            member
            for member, names in members.items()
            if not any(name in ctx.readers for name in names)
            and not any(f"{path}.".startswith(f"{before}{member}.") for path in ctx.ran)
        ]
        for member, names in members.items() if missed else ():
            if member in missed:
                continue
            inside, outside = set[Group](), set[Group]()
            for name, axes in ctx.parameters.items():
                (inside if name in names else outside).update(g for axis in axes for g, _ in resolve(axis))
            why = f"{before}{missed[0]}, which no example reaches, may share them as {before}{member} does"
            fix([(group, 1) for group in inside & outside], Reason("other", why))


def _next_choices(ctx: Context) -> dict[Fork, int]:
    """The forks that must choose again, and their next choices.

    A fork is *stuck* if the axis that it let grow turned out fixed. It then tries its next way, if it has one left.
    Example: attention views 12 channels as (3 heads, 4). Choice 0 lets the 4 grow. But scores sum queries times keys
    over these 4, which fixes them, and so all 12 channels. Choice 1 lets the 3 grow: more heads.

    Three exceptions:

    * The reason of a fixed unit names another fork that has a way left. Then that fork chooses again, not this one.
    * A later stuck fork of another kind acts on the same units. Then this one waits until the later one has no way
      left. Example: 36 channels are viewed as (3, 12), and the 12 as (3 heads, 4). With the 4 the 12 is fixed as well;
      but the second view may still let its 3 heads grow, and then the first was right.
    * Forks whose axes hold no units of a parameter move on only where no others do.

    Forks are of one kind if they differ only in how often the operation ran in the module (queries, keys, values).
    They do not wait for each other: all of them move on together.
    """

    def left(fork: Fork) -> bool:
        return fork in ctx.forks and ctx.choice(fork) + 1 < ctx.forks[fork][1]

    stuck = {fork: resolve(axis) for fork, (axis, _) in ctx.forks.items() if not is_open(axis)}
    last: dict[Group, Fork] = {}
    for fork, spans in stuck.items():
        if left(fork):
            last.update({group: fork for group, _ in spans})
    of_parameters = {group for axes in ctx.parameters.values() for axis in axes for group, _ in resolve(axis)}
    advance: set[Fork] = set()
    following: set[Fork] = set()
    for fork, spans in stuck.items():
        culprits = {group.fixed.fork for group, _ in spans if group.fixed and group.fixed.fork is not None}
        others = {culprit for culprit in culprits if culprit != fork and left(culprit)}
        later = {last[group] for group, _ in spans if group in last}
        waits = any(_kind(other) != _kind(fork) for other in later)
        moves = others or ({fork} if left(fork) and not waits else set())
        if any(group in of_parameters for group, _ in spans):
            advance |= moves
        else:
            following |= moves
    return {fork: ctx.choice(fork) + 1 for fork in advance or following}


def _kind(fork: Fork) -> tuple[str, str, int]:
    path, name, _, part = fork
    return path, name, part
