"""Layer and RMS norms without whole-number factors: streams that grow by mean units or by scaled copies.

A norm over a stream of n units keeps its statistics if every unit is copied the same whole number of times. Where
everything that writes the stream is linear there is more freedom, for any n' >= n:

* layer norm: the new units hold the *mean* of the stream, so the mean stays and the variance becomes n / n' of what
  it was. With weight x sqrt(n / n') and eps x n / n' the first n results are the teacher's, and the new ones are 0.
* RMS norm: r copies of a unit hold it divided by sqrt(r), so the sum of squares stays. With weight x sqrt(r n / n')
  and eps x n / n' every copy's result is the teacher's.

The stream and the norm's result are then two groups: the stream grows from x to [x, mean], the result from y to [y, 0].
So a norm is refused (and tied to whole numbers) where that would show: if the stream meets anything that is not linear,
or another norm's result, or a mean; if the zeros meet anything but the norm's own bias before something linear reads
them; if one result comes from two streams. And whoever shares a group with a refused norm is refused as well: a stream
of ViT is read by every block's norm, and either all of them find mean units in it, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from n2n_cli.growth.groups.axes import Axis, Group, fresh, is_open, resolve, unify
from n2n_cli.growth.groups.reasons import Fork, Reason
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.groups.structure import Attributes, Context, Relation, Remappings, Structure
from n2n_cli.growth.trace.record import Op

WHOLE_NUMBERS = 1  # the choice at a norm's fork: not relaxed (choice 0: relaxed)


@dataclass(eq=False)
class Norm:
    """One norm whose stream and result may grow by different remappings; ``path``: of the module that holds ``eps``."""

    kind: Literal["layer", "rms"]
    fork: Fork
    path: str
    eps: float
    weight: str
    bias: str | None
    stream: Axis
    out: Axis

    def groups(self) -> tuple[Group, Group]:
        """The stream's group and the result's (`RelaxedNorms.refuse` made sure that there is one each)."""
        return resolve(self.stream)[0][0], resolve(self.out)[0][0]

    def growth(self, remappings: Remappings) -> float:
        """n' / n of the stream, where its new units hold a mean or a part of a unit; else 1."""
        stream, _ = self.groups()
        found = remappings.get(stream)
        return len(found.index) / stream.n if found is not None and not found.plain else 1.0


class RelaxedNorms(Relation):
    """``relate(kind, weight, bias, eps)`` at a norm over the last axis; the answer is the axis of its result."""

    name = "norm"
    relaxing = True

    def __init__(self) -> None:
        self.found: list[Norm] = []
        self._bent: list[Axis] = []  # axes whose units met something that is not linear, or not the same for all

    def relate(self, ctx: Context, op: Op, *facts: Any) -> Axis | None:
        kind, weight, bias, eps = facts
        x, fork = op.args[0], ctx.fork(op)
        if len(op.args[1]) != 1 or ctx.choice(fork) == WHOLE_NUMBERS or not is_open(ctx.axes(x)[-1]):
            return None
        names = [ctx.origins(t)[0] if isinstance(t, Tensor) else None for t in (weight, bias)]
        if names[0] is None or eps is None or ctx.attribute(op.path, "eps") != eps:
            return None
        out = fresh(x.shape[-1])
        for tensor in (weight, bias):
            if isinstance(tensor, Tensor):
                unify(out, ctx.use(tensor, 0))
        ctx.keep_equal(op, ctx.axes(x)[-1], out)
        bias_name = names[1][0] if names[1] else None
        self.found.append(Norm(kind, fork, op.path, float(eps), names[0][0], bias_name, ctx.axes(x)[-1], out))
        return out

    def after(self, ctx: Context, op: Op) -> None:
        if ctx.row(op).is_linear(op) or (self.found and self.found[-1].fork == ctx.fork(op)):
            return
        for tensor in [*op.tensors(), *op.outputs]:
            self._bent += [axis for axis in ctx.axes(tensor) if is_open(axis)]

    def refuse(self, ctx: Context) -> dict[Fork, int]:
        """Norms that cannot be relaxed, each with the choice of whole numbers.

        Let s be the group of a norm's stream, and o that of its result. The norm stays relaxed only if

        * both axes are one group each, of one position per unit; s and o differ, and both may grow;
        * neither is tied (a mean reads it); s is no norm's result and met linear operations only (else it is *bent*);
        * layer norm only, whose new results are 0: o met linear operations only, and among parameters only the
          scales and biases of such norms write to it (anything else could make a 0 non-zero);
        * every norm whose result is o has the same stream s.

        A norm that shares a group with a refused one is refused as well. One call finds direct neighbours alone: in the
        next inference the refused norms are ties, and those refuse the neighbours' neighbours.
        """
        bent = {group for axis in self._bent for group, _ in resolve(axis)}
        tied = {group for relation in ctx.relations for group in relation.tied()}
        affine = {name for norm in self.found for name in (norm.weight, norm.bias) if name}
        written: dict[Group, set[str]] = {}
        for (name, dim), roles in ctx.roles.items():
            if "copy" in roles:
                for group, _ in resolve(ctx.parameters[name][dim]):
                    written.setdefault(group, set()).add(name)
        results = {group for norm in self.found for group, _ in resolve(norm.out)}
        streams: dict[Group, set[Group]] = {}
        no: set[Fork] = set()
        for norm in self.found:
            stream, out = resolve(norm.stream), resolve(norm.out)
            (s, _), (o, _) = stream[0], out[0]
            streams.setdefault(o, set()).add(s)
            single = len(stream) == len(out) == 1 and stream[0][1] == out[0][1] == 1
            free = not s.fixed and not o.fixed and s is not o
            free = free and not {s, o} & tied and s not in bent and s not in results
            if norm.kind == "layer":  # its new results are 0, and must stay so until something linear reads them
                free = free and o not in bent and written.get(o, set()) <= affine
            if not single or not free or len(streams[o]) > 1:
                no.add(norm.fork)
        if no:  # whoever shares a stream with a strict norm is strict as well
            near = {norm.fork: {g for g, _ in [*resolve(norm.stream), *resolve(norm.out)]} for norm in self.found}
            strict = {group for fork in no for group in near[fork]}
            no |= {fork for fork, groups in near.items() if groups & strict}
        return dict.fromkeys(no, WHOLE_NUMBERS)

    def refine(self, remappings: Remappings) -> None:
        """Say what units hold; all groups were drawn as plain copies."""
        for norm in self.found:
            stream, out = norm.groups()
            if stream not in remappings:
                continue
            if norm.kind == "rms":
                drawn = remappings[stream]
                part = drawn.copies.double().rsqrt()
                remappings[stream] = Remapping(drawn.index, drawn.copies, part, part)
                remappings[out] = Remapping(drawn.index, drawn.copies)
                continue
            for group in (stream, out):
                drawn = remappings[group]
                one = torch.ones(len(drawn.index), dtype=torch.float64)
                own = (torch.arange(len(one)) < group.n).double()
                if group is stream:
                    remappings[group] = Remapping(drawn.index, drawn.copies, one, own, mean=True)
                else:  # whatever reads a zero may read it with any weight: it learns from the first step on
                    remappings[group] = Remapping(drawn.index, drawn.copies, own, one)

    def multipliers(self, structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for norm in self.found:
            stream, _ = norm.groups()
            if stream not in remappings or remappings[stream].plain:
                continue
            grow, size = norm.growth(remappings), len(remappings[stream].index)
            if norm.kind == "rms":
                found[norm.weight] = (remappings[stream].copies.double() / grow).sqrt()
            else:
                found[norm.weight] = torch.full((size,), sqrt(1 / grow), dtype=torch.float64)
                if norm.bias:
                    found[norm.bias] = (torch.arange(size) < stream.n).double()
        return found

    def attributes(self, remappings: Remappings) -> Attributes:
        grow = [(norm, norm.growth(remappings)) for norm in self.found]
        return {norm.path: {"eps": norm.eps / growth} for norm, growth in grow if growth != 1.0}

    def bonds(self) -> list[list[Group]]:
        return [list(norm.groups()) for norm in self.found]

    def passages(self) -> list[tuple[list[Group], list[Group], Reason]]:
        text = {"layer": "new units hold the mean of the others", "rms": "copies hold a share each"}
        return [
            ([stream], [out], Reason("other", text[norm.kind], norm.fork[1], norm.fork[0]))
            for norm in self.found
            for stream, out in [norm.groups()]
        ]

    def copied(self) -> dict[Group, Reason]:
        return {group: reason for *both, reason in self.passages() for groups in both for group in groups}

    def shared_equally(self) -> dict[Group, Reason]:
        return self.copied()
