"""Labels in, labels out: rules and relations on their own, without a network around them.

`labelled` runs a function on tensors whose axes are all open, applies the rules of what it performs, and shows the
labels in one line, arguments before the arrow, results behind it::

    labelled(F.linear, (2, 3), P(4, 3), P(4)).text == "a2 b3, c4 /b3, c4 -> a2 c4"

One word an axis. ``b3`` is a group of 3 units, and where the letter comes again it is the same group; ``b3*49`` has 49
positions a unit; ``a3+b4`` are two groups that follow each other; ``!5`` are 5 positions that may not grow; ``~a3`` may
only grow by whole numbers; ``/b3`` is an axis of a parameter that is summed over, so that its entries divide among
copies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.groups.axes import Axis, Group, fresh, resolve
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.reasons import Fork
from n2n_cli.growth.groups.relations import RELATIONS
from n2n_cli.growth.groups.structure import Context, Relation
from n2n_cli.growth.trace.record import Recording, record


def P(*shape: int) -> nn.Parameter:
    """A parameter, in place of the shape of an activation."""
    return nn.Parameter(torch.zeros(shape))


def I(*shape: int) -> Tensor:  # noqa: E743 - beside P
    """Indices or positions."""
    return torch.zeros(shape, dtype=torch.long)


def B(*shape: int) -> nn.Buffer:
    """A buffer of positions."""
    return nn.Buffer(I(*shape))


@dataclass
class Labelled:
    """``text``: as the module shows it; ``reasons``: of what may not grow, each once, in the order of the text."""

    text: str
    reasons: list[str]
    ctx: Context
    recording: Recording
    arguments: list[Tensor]
    results: list[Tensor]

    def axis(self, tensor: int, dim: int) -> Axis:
        """The label of one axis of an argument (or of a result, counted from the end: -1)."""
        return self.ctx.axes([*self.arguments, *self.results][tensor])[dim]

    def relation(self, kind: type[Relation]) -> Any:
        return next(found for found in self.ctx.relations if isinstance(found, kind))


class _Call(nn.Module):
    """The function on its arguments; activations are zeros made on the way, which may grow with whatever they meet."""

    def __init__(self, call: Callable[..., Any], given: Sequence[Any]) -> None:
        super().__init__()
        self.call, self.given = call, given
        self.tell = (told := []).append  # what was made, told to this module by the copy that is recorded
        self.told: list[tuple[list[Tensor], list[Tensor]]] = told
        for at, tensor in enumerate(given):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"p{at}", tensor)
            elif isinstance(tensor, nn.Buffer):
                self.register_buffer(f"p{at}", tensor)

    def forward(self, _: Tensor) -> Any:
        arguments = [
            getattr(self, f"p{at}")
            if hasattr(self, f"p{at}")
            else torch.zeros(given.shape if isinstance(given, Tensor) else given, dtype=getattr(given, "dtype", None))
            for at, given in enumerate(self.given)
        ]
        found = self.call(*arguments)
        self.tell((arguments, [found] if isinstance(found, Tensor) else list(found)))
        return found


def labelled(
    call: Callable[..., Any],
    *given: Sequence[int] | Tensor,
    relations: Sequence[type[Relation]] | None = None,
    choices: Mapping[Fork, int] | None = None,
    student: Any = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> Labelled:
    """The labels of ``call(*given)``: a shape stands for an activation, `P` for a parameter, `I` for indices, `B`
    for a buffer.

    ``relations``: the kinds that take part; all that are not relaxing unless given. ``choices``: at forks.
    ``student``: the same arguments in the sizes of a student, where a choice follows it.
    """
    recordings = []
    for arguments in [given] if student is None else [given, student]:
        net = _Call(call, arguments)
        recordings.append((net, record(net, torch.zeros(1), OPERATIONS, training=True)))
    (net, recording), beside = recordings[0], recordings[-1][1].ops
    named = [*net.named_parameters(), *net.named_buffers()]
    names = {name: [fresh(n) for n in tensor.shape] for name, tensor in named}
    kinds = [kind for kind in RELATIONS if not kind.relaxing] if relations is None else relations
    ctx = Context(names, OPERATIONS, [kind() for kind in kinds], choices or {}, modules or {"": net}, strict=True)
    recording.inputs, recording.outputs = [], []  # which would be fixed
    ctx.run(recording, beside if student is not None else [None] * len(recording.ops))
    writer = _Writer(ctx)
    arguments, results = net.told[-1]
    text = " -> ".join(", ".join(writer.tensor(tensor) for tensor in part) for part in (arguments, results))
    return Labelled(text, list(writer.reasons), ctx, recording, arguments, results)


def shown(call: Callable[..., Any], given: Sequence[Any]) -> list[str]:
    """The labels of ``call(*given)`` in one line, then the reasons of what may not grow."""
    found = labelled(call, *given)
    return [found.text, *found.reasons]


class _Writer:
    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.tied = {group for relation in ctx.relations for group in relation.tied()}
        self.letters: dict[Group, str] = {}
        self.reasons: dict[str, None] = {}

    def tensor(self, tensor: Tensor) -> str:
        words = []
        for axis, origin in zip(self.ctx.axes(tensor), self.ctx.origins(tensor), strict=True):
            summed = isinstance(tensor, nn.Parameter) and "in" in self.ctx.roles.get(origin, ())
            words.append(("/" if summed else "") + (self.axis(axis) or "0"))
        return " ".join(words) or "()"

    def axis(self, axis: Axis) -> str:
        words: list[str] = []
        for group, k in resolve(axis):
            if not group.fixed:
                letter = self.letters.setdefault(group, chr(ord("a") + len(self.letters)))
                words.append(("~" if group in self.tied else "") + f"{letter}{group.n}" + (f"*{k}" if k > 1 else ""))
                continue
            self.reasons[group.fixed.text] = None
            size = group.n * k
            if words and words[-1].startswith("!"):  # neighbours that may not grow are told apart by nobody
                size += int(words.pop()[1:])
            words.append(f"!{size}")
        return "+".join(words)
