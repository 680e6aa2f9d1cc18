"""What inference finds, the language in which rules say it, and the protocol that all relations keep.

Three parts that speak of each other: the `Context` of a rule (labels of tensors, roles of parameter axes, choices), a
`Relation` (a constraint between groups that one shared remapping cannot express), and the `Structure` that comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from n2n_cli.growth.groups.axes import Axis, Group, constant, fix, is_open, resolve, unify
from n2n_cli.growth.groups.division import Factor
from n2n_cli.growth.groups.reasons import Fork, Kind, Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.table import Operation, Table
from n2n_cli.growth.trace.record import Op, Recording

Origin = tuple[str, int] | None
"""A whole axis of a parameter: its name and the dimension. None: an axis that is no parameter's own."""
Role = Literal["in", "copy"]
"""How a parameter's axis is read. "in": summed over, so its entries divide among copies (`Structure.consumed`);
"copy": passed on to the result."""
Sizes = dict[Group, int]
"""The student's number of units, of groups that may grow."""
Remappings = dict[Group, Remapping]
Attributes = dict[str, dict[str, Any]]
"""Module path -> attribute ("dim", or "config.dim" one level down) -> its value in the student."""


class UnknownCall(Exception):
    """A rule does not know this form of the call, and says what is unusual in it."""


@dataclass
class Wish:
    """A plan as sizes of groups.

    ``kind``: "factor": sizes may be rounded; "layers": those of ``groups`` must be met, the others are free; "student":
    every size must be met. ``coupled``: widths that equal one that was asked for, in the same module, follow it.
    """

    sizes: Sizes
    kind: Literal["factor", "layers", "student"]
    groups: Collection[Group] = ()
    coupled: bool = False


@dataclass
class Hold:
    """Groups that must stay as they are, and why."""

    groups: list[Group]
    reason: Reason


class Relation:
    """A constraint between groups that one shared remapping cannot express: one kind, with all its cases in a network.

    A relation is found by rules (`Context.relate`) and from then on speaks for itself. Each method has a default that
    does nothing, so a relation says only what is special about it; without a relation (its class taken out of
    ``RELATIONS``) rules fix what would need it.
    """

    name: ClassVar[str]
    """By which rules address it."""
    relaxing: ClassVar[bool] = False
    """Only offered where whole-number factors do not serve the plan."""
    inseparable: ClassVar[bool] = True
    """If one group of a bond is held, so are all."""

    # while rules run
    def relate(self, ctx: Context, op: Op, *facts: Any) -> Any:
        """A rule found a case. The answer is the rule's business; None: it cannot be, and the rule must fix."""

    def merge(self, ctx: Context, op: Op, factors: Sequence[Factor]) -> Axis | None:
        """The axis that a view makes of ``factors``, where this relation knows better than row-major order."""

    def after(self, ctx: Context, op: Op) -> None:
        """An operation has its labels."""

    def end(self, ctx: Context) -> None:
        """A recording has its labels."""

    def settle(self, ctx: Context) -> None:
        """All recordings have their labels: fix what cannot be met."""

    def refuse(self, ctx: Context) -> dict[Fork, int]:
        """Choices that must be made otherwise (everything is inferred again then)."""
        return {}

    # sizes
    def fit(self, structure: Structure, sizes: Sizes, wish: Wish) -> tuple[Sizes, list[Hold]]:
        """The sizes nearest to these that the relation allows, and the groups that it lets not grow at all.

        Raises:
            GrowthError: the wish is not free to be changed.
        """
        return sizes, []

    def rounds(self, sizes: Sizes, wish: Wish) -> bool:
        """Whether it gives other sizes than are wished for."""
        return False

    # remappings
    def draw(self, structure: Structure, sizes: Sizes, generator: torch.Generator) -> Remappings:
        """The remappings of groups that are not drawn freely.

        Raises:
            GrowthError: with these sizes there are none.
        """
        return {}

    def refine(self, remappings: Remappings) -> None:
        """Change what units hold, once all remappings are drawn."""

    def copied(self) -> dict[Group, Reason]:
        """Groups whose new units must be copies, and why."""
        return {}

    def shared_equally(self) -> dict[Group, Reason]:
        """Groups whose copies must be read with equal shares, and why."""
        return {}

    # what follows in the student
    def multipliers(self, structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
        """Parameters whose first axis is multiplied by more than copies ask for: all of shape ``[n']``, in fp64."""
        return {}

    def places(self, remappings: Remappings) -> dict[str, Tensor]:
        """Buffers that hold positions -> where each of these stands in the student: [the teacher's positions]."""
        return {}

    def attributes(self, remappings: Remappings) -> Attributes:
        """Attributes of modules that must change, other than sizes."""
        return {}

    # reports
    def bonds(self) -> list[list[Group]]:
        """Sets of groups that grow by the same factor."""
        return []

    def tied(self) -> dict[Group, tuple[Reason, Reason | None]]:
        """Groups that grow by whole numbers only, and why; and why not even by these."""
        return {}

    def passages(self) -> list[tuple[list[Group], list[Group], Reason]]:
        """Groups whose units come from other groups: (from, to, by what)."""
        return []


@dataclass
class Structure:
    """What inference found.

    ``axes[name]`` are the axes of the parameter or buffer ``name``; ``consumed`` the (name, dim) whose entries are
    divided among copies; ``labels`` the axes of every recorded tensor, by ``id``, one dict per recording; ``aliases``
    every name of a tied tensor -> the name that its axes are kept under; ``readers`` parameter -> the operation that
    used it; ``grouped`` convolution weight -> whether its ``groups`` follow its output channels.
    """

    axes: dict[str, list[Axis]]
    consumed: set[tuple[str, int]]
    aliases: dict[str, str]
    readers: dict[str, str]
    grouped: dict[str, bool]
    relations: list[Relation]
    recordings: list[Recording]
    labels: list[dict[int, list[Axis]]]
    table: Table

    def examples(self) -> list[Any]:
        """The inputs that the recordings saw: one, unless the model's code depends on the data."""
        return list({id(recording.example): recording.example for recording in self.recordings}.values())

    def groups(self) -> dict[Group, list[tuple[str, int]]]:
        """Every group of the parameters with the (parameter, dim) it occurs in, in the order of the model."""
        found: dict[Group, dict[tuple[str, int], None]] = {}
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                for group, _ in resolve(axis):
                    found.setdefault(group, {})[name, dim] = None
        return {group: list(places) for group, places in found.items()}

    def layers(self, groups: Iterable[Group]) -> list[str]:
        """The layers that hold any of the groups, in the order of the model."""
        places = self.groups()
        return list(dict.fromkeys(n.rpartition(".")[0] or n for g in groups for n, _ in places.get(g, [])))

    def tied(self) -> dict[Group, tuple[Reason, Reason | None]]:
        """See `Relation.tied`."""
        return {group: why for relation in self.relations for group, why in relation.tied().items()}

    def bound(self, groups: Iterable[Group]) -> set[Group]:
        """Groups, and every group that is bound to one of them by an inseparable relation."""
        held = set(groups)
        bonds = [bond for relation in self.relations if relation.inseparable for bond in relation.bonds()]
        size = 0
        while size < len(held):
            size = len(held)
            for bond in bonds:
                if held & set(bond):
                    held.update(bond)
        return held

    def hold(self, groups: Iterable[Group], reason: Reason) -> None:
        """Fix groups, and every group that is bound to one of them by an inseparable relation."""
        for group in self.bound(groups):
            group.fixed = group.fixed or reason


@dataclass
class Context:
    """What rules read and write.

    A rule is called with the context and an operation, in the order of the recording. It reads its arguments' labels
    (`axes`, or `use` where the operation passes an axis on), says what must grow alike (`axes.unify`), what may not
    (`axes.fix` with a `reason`), which parameter axes are summed over (`role`), and labels the results (`put`).
    Where it has a choice it asks for it (`fork`, `choice`), and offers the axis that should grow (`forks`); what groups
    owe each other beyond that is a relation (`relate`).

    ``student``: the operation that a student built by its own constructor performs at this place, if one was given.
    """

    parameters: dict[str, list[Axis]]
    table: Table
    relations: Sequence[Relation]
    choices: Mapping[Fork, int]
    modules: Mapping[str, nn.Module]
    strict: bool = False
    student: Op | None = None
    labels: dict[int, list[Axis]] = field(default_factory=dict)
    made: dict[int, tuple[Op, int]] = field(default_factory=dict)  # which operation made a tensor, as which result
    factors: dict[int, list[Factor]] = field(default_factory=dict)
    forks: dict[Fork, tuple[Axis, int]] = field(default_factory=dict)  # the axis that should grow; how many ways
    wanted: dict[Fork, int] = field(default_factory=dict)  # choices that a relation asks for: infer again with these
    roles: dict[tuple[str, int], set[Role]] = field(default_factory=dict)  # of every parameter axis that was read
    readers: dict[str, str] = field(default_factory=dict)
    grouped: dict[str, bool] = field(default_factory=dict)
    repeated: list[tuple[Fork, Axis]] = field(default_factory=list)  # axes of one group several times; choice 1: apart
    met: list[Axis] = field(default_factory=list)  # axes of results that are no longer a parameter's own
    counts: dict[int, list[Axis]] = field(default_factory=dict)  # results that are positions along these axes
    ran: set[str] = field(default_factory=set)  # paths of modules that performed an operation
    at: int = -1  # number of the recording that is being labelled
    _origins: dict[int, list[Origin]] = field(default_factory=dict)
    _occurrence: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self, recording: Recording, student: Sequence[Op | None]) -> None:
        """Apply the rule of every recorded operation, in order; ``student``: the student's operations beside them."""
        names = recording.tensors
        self.at += 1
        self.labels = {key: self.parameters[name] for key, name in names.items()}
        self._origins = {key: [(n, dim) for dim in range(len(self.parameters[n]))] for key, n in names.items()}
        self.made, self.factors, self.counts, self._occurrence = {}, {}, {}, Counter()
        for tensor in recording.inputs:
            self.labels[id(tensor)] = [constant(n, Reason("input", "the network's input")) for n in tensor.shape]
        for op, self.student in zip(recording.ops, student, strict=True):
            self._occurrence[op.path, op.name] += 1
            self.ran.add(op.path)
            for tensor in op.tensors():
                if id(tensor) in names:
                    self.readers.setdefault(names[id(tensor)], str(op))
            self._apply(op)
        for tensor in recording.outputs:
            for axis in self.counts.get(id(tensor), []):
                fix(axis, Reason("output", "the network's output says where on it something stands"))
            for dim in range(tensor.ndim):
                fix(self.use(tensor, dim), Reason("output", "the network's output"))
        for relation in self.relations:
            relation.end(self)

    def _apply(self, op: Op) -> None:
        for tensor in op.tensors():
            for axis in self.counts.get(id(tensor), []):
                fix(axis, self.reason(op, "reads where on it something stands"))
        try:
            self.row(op).rule(self, op)
        except UnknownCall as unusual:
            self.unknown(op, str(unusual))
        except Exception as error:
            if self.strict:
                raise
            self.unknown(op, f"its rule fails ({type(error).__name__}: {error})")
        for which, out in enumerate(op.outputs):
            if id(out) not in self.labels:  # a second result that the rule did not speak of
                self.put_one(out, [constant(n, self.reason(op, "a side result")) for n in out.shape])
            self.made.setdefault(id(out), (op, which))
            self.met += [axis for axis, origin in zip(self.axes(out), self.origins(out), strict=True) if not origin]
        for relation in self.relations:
            relation.after(self, op)

    def unknown(self, op: Op, why: str = "no rule for this operation") -> None:
        """Fix everything that the operation touches; the report says by what. Too much is safe, guessing is not."""
        reason = self.reason(op, why, "unknown")
        for tensor in op.tensors():
            for origin in self.origins(tensor):
                if origin is not None:
                    self.roles.setdefault(origin, set()).add("copy")
            for axis in self.axes(tensor):
                fix(axis, reason)
        for out in op.outputs:
            if len(self.labels.get(id(out), [])) != out.ndim:  # new, or an argument whose shape was changed in place
                self.labels[id(out)] = [constant(n, reason) for n in out.shape]

    def row(self, op: Op) -> Operation:
        """What the table knows of the operation."""
        return self.table.of(op)

    # labels
    def axes(self, tensor: Tensor) -> list[Axis]:
        """The label of a tensor: one axis per dimension. What no recorded operation made is a constant."""
        if id(tensor) not in self.labels:
            reason = Reason("other", "a constant tensor")
            self.labels[id(tensor)] = [constant(n, reason) for n in tensor.shape]
        return self.labels[id(tensor)]

    def use(self, tensor: Tensor, dim: int) -> Axis:
        """The axis, read in a way that passes it on (it is not summed over): a parameter's gets the role "copy"."""
        self.role(tensor, dim, "copy")
        return self.axes(tensor)[dim]

    def put(self, op: Op, axes: list[Axis], origins: list[Origin] | None = None) -> None:
        """Label the first result. ``origins``: which of its axes are still whole axes of parameters."""
        self.put_one(op.outputs[0], axes, origins)

    def put_one(self, out: Tensor, axes: list[Axis], origins: list[Origin] | None = None) -> None:
        """Label a result; one that is an argument itself (in-place operations) is unified with its label.

        Raises:
            UnknownCall: the label does not have the result's dimensions.
        """
        if id(out) in self.labels:
            old = self.labels[id(out)]
            if len(old) != len(axes):
                raise UnknownCall("changes the shape of its argument in place")
            for mine, new in zip(old, axes, strict=True):
                unify(mine, new)
            return
        self.labels[id(out)] = axes
        if origins and any(origins):
            self._origins[id(out)] = origins

    # parameters
    def origins(self, tensor: Tensor) -> list[Origin]:
        """Which parameter axis each axis of a tensor still is."""
        return self._origins.get(id(tensor)) or [None] * tensor.ndim

    def role(self, tensor: Tensor, dim: int, role: Role) -> None:
        """How an axis is read, if it is a parameter's. Both ways in one network (tied weights) will fix it."""
        origin = self.origins(tensor)[dim]
        if origin is not None:
            self.roles.setdefault(origin, set()).add(role)

    def groups_follow(self, weight: Tensor, follow: bool) -> None:
        """Whether a grouped convolution's ``groups`` grow with its output channels."""
        origin = next((o for o in self.origins(weight) if o), None)
        if origin:
            self.grouped[origin[0]] = follow

    def attribute(self, path: str, name: str) -> Any:
        """An attribute of the module at ``path`` (None if it has none)."""
        return getattr(self.modules.get(path), name, None)

    # choices
    def fork(self, op: Op, part: int = 0) -> Fork:
        """The name of this place; the same in all recordings, so that train and eval mode choose alike."""
        return (op.path, op.name, self._occurrence[op.path, op.name], part)

    def choice(self, fork: Fork) -> int:
        """Which way is taken, from 0; everything is inferred again with the next where a way comes to nothing."""
        return self.choices.get(fork, 0)

    # relations and reasons
    def relate(self, name: str, op: Op, *facts: Any) -> Any:
        """Tell the relation of this name of a case; its answer, or None where there is no such relation."""
        for relation in self.relations:
            if relation.name == name:
                return relation.relate(self, op, *facts)
        return None

    def tie(self, op: Op, axis: Axis, text: str) -> None:
        """The axis's units may only be copied the same whole number of times."""
        if is_open(axis) and self.relate("tie", op, axis, self.reason(op, text)) is None:
            fix(axis, self.reason(op, text))

    def keep_equal(self, op: Op, a: Axis, b: Axis) -> None:
        """Two axes keep equal lengths; where that cannot be said, they share the remapping as well."""
        if self.relate("equal", op, a, b) is None:
            unify(a, b)

    def reason(self, op: Op, text: str, kind: Kind = "other", fork: Fork | None = None) -> Reason:
        """A reason that names the operation and its module."""
        return Reason(kind, text, op.name, op.path, fork)
