"""Remapping inference: which parameter axes share a mapping, found by one pass over the recorded operations.

The paper's own wish (section 2.3): "a remapping inference algorithm that makes a forward pass through the graph,
querying each operation in the graph about how to make the remapping functions consistent".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from n2n_cli.growth.axes import Axis, Group, Reason, Site, constant, fix, fresh, is_open, resolve, unify
from n2n_cli.growth.record import Op, Recording, named_buffers, record
from n2n_cli.growth.rules import rule_for, unknown

Origin = tuple[str, int] | None  # a whole axis of a parameter, by name
Role = Literal["in", "copy"]


@dataclass
class Tie:
    """Units that may only be copied the same whole number of times, and the operation that says so."""

    axis: Axis
    reason: Reason


@dataclass
class Structure:
    """What inference found.

    ``axes[name]`` are the axes of the parameter or buffer ``name``; ``consumed`` the (name, dim) whose entries
    divide by the replication factor; ``labels`` the axes of every recorded tensor, by ``id``.
    """

    axes: dict[str, list[Axis]]
    consumed: set[tuple[str, int]]
    ties: list[Tie]
    aliases: dict[str, str]  # every name of a tied tensor -> the name its axes are kept under
    readers: dict[str, str] = field(default_factory=dict)  # parameter -> operation that used it
    whole_groups: dict[str, bool] = field(default_factory=dict)  # convolution weight -> its ``groups`` follow
    recordings: list[Recording] = field(default_factory=list)
    labels: list[dict[int, list[Axis]]] = field(default_factory=list)

    def groups(self) -> dict[Group, list[tuple[str, int]]]:
        """Every group of the parameters with the (parameter, dim) it occurs in, in the order of the model."""
        found: dict[Group, list[tuple[str, int]]] = {}
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                for group, _ in resolve(axis):
                    places = found.setdefault(group, [])
                    if (name, dim) not in places:
                        places.append((name, dim))
        return found


class Inference:
    """The state that rules read and write: labels of tensors, roles of parameter axes, ties, choices."""

    def __init__(self, axes: dict[str, list[Axis]], choices: dict[Site, int]) -> None:
        self.parameters = axes
        self.choices = choices
        self.sites: dict[Site, tuple[Axis, int]] = {}
        self.ties: list[Tie] = []
        self.roles: dict[tuple[str, int], set[Role]] = {}
        self.readers: dict[str, str] = {}
        self.whole_groups: dict[str, bool] = {}
        self.labels: dict[int, list[Axis]] = {}
        self.sources: dict[int, list[Origin]] = {}
        self._occurrence: Counter[tuple[str, str]] = Counter()

    def run(self, recording: Recording) -> None:
        """Apply the rule of every recorded operation, in order."""
        self.labels, self.sources = {}, {}
        for key, name in recording.tensors.items():
            self.labels[key] = self.parameters[name]
            self.sources[key] = [(name, dim) for dim in range(len(self.parameters[name]))]
        for tensor in recording.inputs:
            self.labels[id(tensor)] = [constant(n, Reason("the network's input")) for n in tensor.shape]
        self._occurrence.clear()
        for op in recording.ops:
            self._occurrence[op.path, op.name] += 1
            for tensor in [*op.args, *op.kwargs.values()]:
                if isinstance(tensor, Tensor) and id(tensor) in recording.tensors:
                    self.readers.setdefault(recording.tensors[id(tensor)], str(op))
            try:
                (rule_for(op.func) or unknown)(self, op)
            except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                # a form of the call that its rule does not foresee: fixing too much is safe, guessing is not
                unknown(self, op, f"its rule does not fit this call ({error})")
            for out in op.outputs:
                if id(out) not in self.labels:  # a second result that the rule did not speak of
                    self.put_one(out, [constant(n, self.reason(op, "a side result")) for n in out.shape])
        for tensor in recording.outputs:
            for dim in range(tensor.ndim):
                fix(self.use(tensor, dim), Reason("the network's output"))

    # labels
    def axes(self, tensor: Tensor) -> list[Axis]:
        if id(tensor) not in self.labels:  # made outside of any recorded operation
            self.labels[id(tensor)] = [constant(n, Reason("a constant tensor")) for n in tensor.shape]
        return self.labels[id(tensor)]

    def origins(self, tensor: Tensor) -> list[Origin]:
        return self.sources.get(id(tensor)) or [None] * tensor.ndim

    def put(self, op: Op, axes: list[Axis], origins: list[Origin] | None = None) -> None:
        """Label the first output."""
        self.put_one(op.outputs[0], axes, origins)

    def put_one(self, out: Tensor, axes: list[Axis], origins: list[Origin] | None = None) -> None:
        """Label a result; one that is an argument itself (in-place operations) is unified with its label."""
        if id(out) in self.labels:
            for old, new in zip(self.labels[id(out)], axes, strict=True):
                unify(old, new)
            return
        self.labels[id(out)] = axes
        if origins and any(origins):
            self.sources[id(out)] = origins

    # roles
    def role(self, tensor: Tensor, dim: int, role: Role) -> None:
        origin = self.origins(tensor)[dim]
        if origin is not None:
            self.roles.setdefault(origin, set()).add(role)

    def use(self, tensor: Tensor, dim: int) -> Axis:
        """The axis, read in a way that copies it (not consumed)."""
        self.role(tensor, dim, "copy")
        return self.axes(tensor)[dim]

    def groups_follow(self, weight: Tensor, follow: bool) -> None:
        """Whether a grouped convolution's ``groups`` grow with its output channels."""
        origin = next((o for o in self.origins(weight) if o), None)
        if origin:
            self.whole_groups[origin[0]] = follow

    # ties, choices, reasons
    def tie(self, axis: Axis, reason: Reason) -> None:
        if is_open(axis):
            self.ties.append(Tie(axis, reason))

    def site(self, op: Op, part: int = 0) -> Site:
        """The same in both recordings: train and eval mode share their choices."""
        return (op.path, op.name, self._occurrence[op.path, op.name], part)

    def choice(self, site: Site) -> int:
        return self.choices.get(site, 0)

    def reason(self, op: Op, text: str, site: Site | None = None) -> Reason:
        return Reason.at(f"{op}: {text}", site)


def _open_axes(model: nn.Module) -> tuple[dict[str, list[Axis]], dict[str, str]]:
    axes: dict[str, list[Axis]] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *named_buffers(model)]:
        aliases[name] = first.setdefault(id(tensor), name)
        if aliases[name] == name:
            axes[name] = [fresh(n) for n in tensor.shape]
    return axes, aliases


def infer(model: nn.Module, example_input: Any) -> Structure:
    """The groups of ``model``, from one recorded pass in train mode and one in eval mode.

    ``example_input`` is a tensor (images ``[N, C, H, W]``), a tuple of arguments or a dict of keyword arguments.

    Raises:
        GrowthError: the model cannot be recorded; names the module where it stopped.
    """
    recordings = [
        record(model, example_input, lambda f: rule_for(f) is not None, training=training) for training in (True, False)
    ]
    choices: dict[Site, int] = {}
    while True:
        axes, aliases = _open_axes(model)
        ctx = Inference(axes, choices)
        labels = []
        for recording in recordings:
            ctx.run(recording)
            labels.append(ctx.labels)
        _settle_roles(ctx)
        advance = _next_choices(ctx)
        if not advance:
            break
        for site in advance:
            choices[site] = choices.get(site, 0) + 1
    consumed = {place for place, roles in ctx.roles.items() if roles == {"in"}}
    return Structure(axes, consumed, ctx.ties, aliases, ctx.readers, ctx.whole_groups, recordings, labels)


def _settle_roles(ctx: Inference) -> None:
    """Fix parameter axes that nothing reads, or that are consumed here and copied there (tied weights)."""
    for name, axes in ctx.parameters.items():
        for dim, axis in enumerate(axes):
            roles = ctx.roles.get((name, dim))
            if roles is None:
                fix(axis, Reason(f"{name} is not used in the forward pass"))
            elif len(roles) > 1:
                fix(axis, Reason(f"{name} is both consumed and produced along axis {dim} (tied weights)"))


def _next_choices(ctx: Inference) -> set[Site]:
    """Sites whose growing factor turned out fixed, and that have another factor to offer.

    Where another site's choice is the reason, that one moves. A site waits for a later one of another kind that shares
    its units: (3, C) waits for C -> (heads, d).
    """

    def left(site: Site) -> bool:
        return site in ctx.sites and ctx.choice(site) + 1 < ctx.sites[site][1]

    stuck = {site: resolve(axis) for site, (axis, _) in ctx.sites.items() if not is_open(axis)}
    last: dict[Group, Site] = {}
    for site, runs in stuck.items():
        if left(site):
            last.update({group: site for group, _ in runs})
    advance: set[Site] = set()
    for site, runs in stuck.items():
        culprits = {group.fixed.site for group, _ in runs if group.fixed and group.fixed.site is not None}
        others = {culprit for culprit in culprits if culprit != site and left(culprit)}
        later = {last[group] for group, _ in runs if group in last}
        waits = any(_kind(other) != _kind(site) for other in later)
        advance |= others or ({site} if left(site) and not waits else set())
    return advance


def _kind(site: Site) -> tuple[str, str, int]:
    path, name, _, part = site
    return path, name, part
