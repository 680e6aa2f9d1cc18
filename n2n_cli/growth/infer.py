"""Remapping inference: which parameter axes share a mapping, found by one pass over the recorded operations.

The paper's own wish (section 2.3): "a remapping inference algorithm that makes a forward pass through the graph,
querying each operation in the graph about how to make the remapping functions consistent".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from n2n_cli.growth import heads, norms, shuffles
from n2n_cli.growth.axes import Axis, Group, Reason, Site, constant, fix, fresh, is_open, resolve, unify
from n2n_cli.growth.common import tensors as tensors_of
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.record import Op, Recording, named_buffers, record
from n2n_cli.growth.rules import rule_for, unknown

OUTPUT = "the network's output"
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
    divide by the replication factor; ``labels`` the axes of every recorded tensor, by ``id``; ``equal`` pairs of axes
    that must keep equal lengths, though not the same mapping.
    """

    axes: dict[str, list[Axis]]
    consumed: set[tuple[str, int]]
    ties: list[Tie]
    aliases: dict[str, str]  # every name of a tied tensor -> the name its axes are kept under
    readers: dict[str, str] = field(default_factory=dict)  # parameter -> operation that used it
    whole_groups: dict[str, bool] = field(default_factory=dict)  # convolution weight -> its ``groups`` follow
    recordings: list[Recording] = field(default_factory=list)
    labels: list[dict[int, list[Axis]]] = field(default_factory=list)
    equal: list[tuple[Axis, Axis]] = field(default_factory=list)
    norms: list[norms.Norm] = field(default_factory=list)
    shuffles: list[shuffles.Shuffle] = field(default_factory=list)
    widths: list[heads.HeadWidth] = field(default_factory=list)

    def examples(self) -> list[Any]:
        """The inputs that the recordings saw: one, unless the model's code depends on the data."""
        found: dict[int, Any] = {id(recording.example): recording.example for recording in self.recordings}
        return list(found.values())

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

    def __init__(
        self,
        axes: dict[str, list[Axis]],
        choices: dict[Site, int],
        *,
        uneven: bool = False,
        like: Like | None = None,
        modules: dict[str, nn.Module] | None = None,
    ) -> None:
        self.modules = modules or {}
        self.parameters = axes
        self.choices = choices
        self.uneven = uneven
        self.like = like
        self.met: list[Axis] = []  # axes of results that are no parameter's own axis any more
        self.bent: list[Axis] = []  # axes whose units met something that is not linear
        self.equal: list[tuple[Axis, Axis]] = []
        self.norms: list[norms.Norm] = []
        self.shuffles: list[shuffles.Shuffle] = []
        self.widths: list[heads.HeadWidth] = []
        self.shuffled: set[Site] = set()  # views that turned out to be the first half of a channel shuffle
        self.sites: dict[Site, tuple[Axis, int]] = {}
        self.ties: list[Tie] = []
        self.roles: dict[tuple[str, int], set[Role]] = {}
        self.readers: dict[str, str] = {}
        self.whole_groups: dict[str, bool] = {}
        self.like_op: Op | None = None
        self.mode = 0
        self._begin({}, {})

    def _begin(self, labels: dict[int, list[Axis]], sources: dict[int, list[Origin]]) -> None:
        self.labels, self.sources = labels, sources
        self.made: dict[int, tuple[Op, int]] = {}  # which operation made a tensor, as which of its results
        self.pieces: dict[int, list[shuffles.Piece | None]] = {}
        self._occurrence: Counter[tuple[str, str]] = Counter()

    def run(self, recording: Recording, mode: int = 0) -> None:
        """Apply the rule of every recorded operation, in order."""
        names = recording.tensors
        self.mode = mode
        self._begin(
            {key: self.parameters[name] for key, name in names.items()},
            {key: [(name, dim) for dim in range(len(self.parameters[name]))] for key, name in names.items()},
        )
        for tensor in recording.inputs:
            self.labels[id(tensor)] = [constant(n, Reason("the network's input")) for n in tensor.shape]
        theirs = self.like.ops[mode] if self.like else [None] * len(recording.ops)
        for op, self.like_op in zip(recording.ops, theirs, strict=True):
            self._occurrence[op.path, op.name] += 1
            self._apply(op, names)
        for tensor in recording.outputs:
            for dim in range(tensor.ndim):
                fix(self.use(tensor, dim), Reason(OUTPUT))
        self._unfinished()

    def _apply(self, op: Op, names: dict[int, str]) -> None:
        inputs = tensors_of(op)
        for tensor in inputs:
            if id(tensor) in names:
                self.readers.setdefault(names[id(tensor)], str(op))
            self._read_halfway(op, tensor)
        try:
            (rule_for(op.func) or unknown)(self, op)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # a form of the call that its rule does not foresee: fixing too much is safe, guessing is not
            unknown(self, op, f"its rule does not fit this call ({error})")
        for which, out in enumerate(op.outputs):
            if id(out) not in self.labels:  # a second result that the rule did not speak of
                self.put_one(out, [constant(n, self.reason(op, "a side result")) for n in out.shape])
            self.made.setdefault(id(out), (op, which))
            self.met += [axis for axis, origin in zip(self.axes(out), self.origins(out), strict=True) if not origin]
        if norms.bends(op.name, len(inputs)):
            relaxed = self.norms and self.norms[-1].site == self.site(op)
            for tensor in [] if relaxed else [*inputs, *op.outputs]:
                for axis in self.axes(tensor):
                    self.bend(axis)

    def _read_halfway(self, op: Op, tensor: Tensor) -> None:
        """What lies between the two views of a shuffle has no label: nobody else may read it."""
        for piece in self.pieces.get(id(tensor)) or []:
            if piece and self.choice(piece[0].site) == shuffles.SHUFFLED and op.name not in shuffles.PASSES:
                fix(piece[0].source, self.reason(op, "reads a channel shuffle half-way"))

    def _unfinished(self) -> None:
        done = {id(shuffle.source) for shuffle in self.shuffles}
        for pieces in self.pieces.values():
            for piece in pieces:
                if piece and self.choice(piece[0].site) == shuffles.SHUFFLED and id(piece[0].source) not in done:
                    fix(piece[0].source, Reason(f"{piece[0].site[1]} at {piece[0].site[0]}: a channel shuffle"))

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

    # what else rules have to say
    def bend(self, axis: Axis) -> None:
        """The units met something that is not linear, or not the same for all."""
        if is_open(axis):
            self.bent.append(axis)

    def keep_equal(self, a: Axis, b: Axis) -> None:
        """Two axes keep equal lengths; where their units differ in size they share the mapping as well."""
        left, right = resolve(a), resolve(b)
        if [(g.n, k, bool(g.fixed)) for g, k in left] == [(g.n, k, bool(g.fixed)) for g, k in right]:
            self.equal.append((a, b))
        else:
            unify(a, b)

    def carry_pieces(self, x: Tensor, out: Tensor, order: list[int]) -> None:
        if pieces := self.pieces.get(id(x)):
            self.pieces[id(out)] = [pieces[d] for d in order]

    def attribute(self, path: str, name: str) -> Any:
        """An attribute of the module at ``path`` (None if it has none)."""
        return getattr(self.modules.get(path), name, None)

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


def other_ways(model: nn.Module, example_input: Any, recordings: list[Recording]) -> list[Recording]:
    """Recordings of negated, enlarged and vanishing inputs, as far as they perform other operations."""
    known = [[(op.name, op.path) for op in recording.ops] for recording in recordings]
    found: list[Recording] = []
    for factor in (-1.0, 100.0, 0.01):
        other = tree_map(
            lambda t: t * factor if isinstance(t, Tensor) and t.is_floating_point() else t,  # noqa: B023
            example_input,
        )
        for training in (True, False):
            try:
                recording = record(model, other, whole, training=training)
            except GrowthError:  # the model does not take such inputs
                continue
            way = [(op.name, op.path) for op in recording.ops]
            if way not in known:
                known.append(way)
                found.append(recording)
    return found


@dataclass
class Like:
    """The student's own recordings, operation by operation beside the teacher's: they show what grows."""

    ops: list[list[Op]]


def whole(func: Any) -> bool:
    """Operations that have a rule arrive whole."""
    return rule_for(func) is not None


def infer(model: nn.Module, example_input: Any, *, uneven: bool = False, like: nn.Module | None = None) -> Structure:
    """The groups of ``model``, from one recorded pass in train mode and one in eval mode.

    ``example_input`` is a tensor (images ``[N, C, H, W]``), a tuple of arguments or a dict of keyword arguments.
    ``uneven`` gives normalized streams groups of their own where that is exact (see `norms`). ``like`` is a student
    built by its own constructor: where a choice is open (heads or their width), its shapes decide.

    Raises:
        GrowthError: the model cannot be recorded; names the module where it stopped.
    """
    recordings = [record(model, example_input, whole, training=training) for training in (True, False)]
    if recordings[0].device == "real":  # which way the code takes may depend on the data: other inputs, other ways
        recordings += other_ways(model, example_input, recordings)
    beside = alongside(recordings, like) if like is not None else None
    choices: dict[Site, int] = {}
    while True:
        axes, aliases = _open_axes(model)
        ctx = Inference(axes, choices, uneven=uneven, like=beside, modules=dict(model.named_modules()))
        labels = []
        for mode, recording in enumerate(recordings):
            ctx.run(recording, mode)
            labels.append(ctx.labels)
        _settle_roles(ctx)
        shuffles.settle(ctx.shuffles)
        if ctx.shuffled - {site for site, choice in choices.items() if choice == shuffles.SHUFFLED}:
            choices.update(dict.fromkeys(ctx.shuffled, shuffles.SHUFFLED))
            continue
        advance = _next_choices(ctx)
        if not advance:
            refused = norms.refused(ctx)
            if not refused:
                break
            choices.update(dict.fromkeys(refused, norms.STRICT))
        for site in advance:
            choices[site] = choices.get(site, 0) + 1
    consumed = {place for place, roles in ctx.roles.items() if roles == {"in"}}
    return Structure(
        ctx.parameters,
        consumed,
        ctx.ties,
        aliases,
        ctx.readers,
        ctx.whole_groups,
        recordings,
        labels,
        ctx.equal,
        ctx.norms,
        ctx.shuffles,
        [width for width in ctx.widths if is_open(width.units)],
    )


def alongside(recordings: list[Recording], student: nn.Module) -> Like | None:
    """The student's operations, one beside each of the teacher's; None if it performs others."""
    found: list[list[Op]] = []
    for recording in recordings:
        theirs = record(student, recording.example, whole, training=recording.training).ops
        if [op.name for op in theirs] != [op.name for op in recording.ops]:
            return None
        found.append(theirs)
    return Like(found)


def _settle_roles(ctx: Inference) -> None:
    """Fix parameter axes that nothing reads, in whole or in part, and those both consumed and copied (tied weights)."""
    met = {group for axis in ctx.met for group, _ in resolve(axis)}
    for name, axes in ctx.parameters.items():
        for dim, axis in enumerate(axes):
            roles = ctx.roles.get((name, dim))
            if roles is None:
                fix(axis, Reason(f"{name} is not used in the forward pass"))
            elif len(roles) > 1:
                fix(axis, Reason(f"{name} is both consumed and produced along axis {dim} (tied weights)"))
            for group, k in resolve(axis):
                if group not in met:
                    fix([(group, k)], Reason(f"a part of {name} that the example does not reach"))


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
