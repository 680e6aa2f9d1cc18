"""Where a failed student goes astray: its first operation whose result is not what the teacher's says.

Teacher and student perform the same operations. What each result of the student should look like is known from its
labels: its shape, and every entry as a copy of one of the teacher's. So the first operation whose result is
different is the culprit, be it a size written into ``forward``, a number that a module derived from its width, or code
that takes another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.build.maps import axis_mapper, grown_length
from n2n_cli.growth.errors import GrowthError, first_line
from n2n_cli.growth.groups.axes import Axis, Group, resolve
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.structure import Remappings, Structure
from n2n_cli.growth.trace.examples import prepared
from n2n_cli.growth.trace.record import On, Op, Recording, run

Labels = Mapping[int, list[Axis]]
WINDOW = 8  # recorded operations among which a performed one is looked for
ENTRIES = 64  # of each result are compared
CLOSE = {torch.float64: 1e-6}  # relative to the largest entry
ROUGH = 1e-2  # in other precisions


@dataclass
class Fault:
    """Where the student goes astray: in which recording, at which operation, and which groups grow there.

    ``guessed``: none grows there, and these are those of an operation before it.
    """

    recording: int
    at: int
    op: Op
    groups: list[Group]
    text: str
    guessed: bool = False

    @property
    def depth(self) -> tuple[int, int]:
        """How far it came: a later fault is a better student."""
        return self.recording, self.at


class _Stop(Exception):
    """The student need not run any further."""


def find(
    structure: Structure, remappings: Remappings, student: nn.Module, teacher: nn.Module | None = None
) -> Fault | None:
    """The student's first fault; shapes alone without ``teacher``, else values too (both in fp64, if they run in it).

    Raises:
        GrowthError: the teacher does not run.
    """
    for at, recording in enumerate(structure.recordings):
        training = recording.training
        example = prepared(student, recording.example)
        labels = structure.labels[at]
        steps: list[Op | None] = list(recording.ops)
        wanted: list[list[_Sample]] | None = None
        if teacher is not None:
            try:
                steps = _beside(recording, teacher, example, training)
                wanted = _samples(steps, labels, remappings, recording.tensors)
                _fill(wanted, teacher, example, training)
            except Exception as error:  # the teacher's own code
                raise GrowthError(f"the teacher does not run: {first_line(error)}") from error
        on: On = "without chance" if wanted is not None else "real" if recording.data else "meta"
        fault = _Comparison(at, steps, labels, remappings, wanted, recording.tensors).run(
            student, example, training, on
        )
        if fault is not None:
            return fault
    return None


def _beside(recording: Recording, teacher: nn.Module, example: Any, training: bool) -> list[Op | None]:
    """The recorded operation that belongs to each operation of a run on real tensors, or None.

    The recording was made on meta tensors, where PyTorch takes small detours: it performs a few operations more or
    fewer (an ``expand`` of a mask, a ``clone``). So each performed operation is looked for among the next ``WINDOW``
    recorded ones; one that is not there has no counterpart, and the search goes on from the same place. With a wider
    window a repeated block might be taken for the one behind it.
    """
    performed: list[Any] = []
    run(teacher, example, OPERATIONS, lambda op: performed.append(_looks(op)), training=training, on="without chance")
    recorded = [_looks(op) for op in recording.ops]
    out: list[Op | None] = []
    at = 0
    for look in performed:
        ahead = next((n for n in range(at, min(at + WINDOW, len(recorded))) if recorded[n] == look), None)
        out.append(None if ahead is None else recording.ops[ahead])
        at = at if ahead is None else ahead + 1
    return out


def _looks(op: Op) -> tuple[str, str, list[tuple[int, ...]]]:
    """What an operation looks like on any samples of the same input: its name, module and shapes without the first
    axis."""
    return op.name, op.path, [tuple(out.shape[1:]) for out in op.outputs]


# --- what a result should be -------------------------------------------------------------------------------


@dataclass
class _Sample:
    """Some entries of one result: places in the teacher's tensor and in the student's, and what to expect there."""

    theirs: tuple[Tensor, ...]
    ours: tuple[Tensor, ...]
    factor: Tensor
    values: Tensor | None = None
    scale: float = 0.0


def _samples(
    steps: list[Op | None], labels: Labels, remappings: Remappings, weights: Mapping[int, str]
) -> list[list[_Sample]]:
    """Of what is made of weights alone (transposed, cut) nothing is expected: its entries may be divided."""
    generator = torch.Generator().manual_seed(0)
    map_of = axis_mapper(remappings)
    of_weights = set(weights)
    found = []
    for op in steps:
        here: list[_Sample] = []
        if op and op.tensors() and all(id(t) in of_weights for t in op.tensors()):
            of_weights |= {id(out) for out in op.outputs}
            here = [_Sample((), (), torch.ones(0)) for _ in op.outputs]
        for out in op.outputs if op and not here else []:
            theirs, ours, factor = [], [], torch.ones(ENTRIES, dtype=torch.float64)
            for dim, axis in enumerate(labels[id(out)]):
                known = map_of(axis)
                size = out.shape[dim] if known is None else len(known.index)
                place = torch.randint(max(size, 1), (ENTRIES,), generator=generator)
                if known is not None and known.means:  # a mean is no entry of the teacher's
                    place = known.first.nonzero().flatten()[place % int(known.first.sum())]
                if known is not None and known.fresh is not None:  # nor is what random initialization gives
                    place = (~known.fresh).nonzero().flatten()[place % int((~known.fresh).sum())]
                theirs.append(place if known is None else known.index[place])
                ours.append(place)
                if known is not None and known.holds is not None:
                    factor = factor * known.holds[place]
            here.append(_Sample(tuple(theirs), tuple(ours), factor))
        found.append(here)
    return found


def _fill(wanted: list[list[_Sample]], teacher: nn.Module, example: Any, training: bool) -> None:
    steps = iter(wanted)

    def visit(op: Op) -> None:
        for sample, out in zip(next(steps), op.outputs, strict=False):
            if out.numel() and out.ndim == len(sample.theirs) > 0 and not OPERATIONS.of(op).blank:
                sample.values = out[sample.theirs].double() * sample.factor
                sample.scale = float(out.double().abs().max())

    run(teacher, example, OPERATIONS, visit, training=training, on="without chance")


# --- what it is --------------------------------------------------------------------------------------------


class _Comparison:
    """The student's run beside what is known of the teacher's."""

    def __init__(
        self,
        number: int,
        steps: list[Op | None],
        labels: Labels,
        remappings: Remappings,
        wanted: list[list[_Sample]] | None,
        weights: Mapping[int, str],
    ) -> None:
        self.number, self.steps, self.labels, self.remappings, self.wanted = number, steps, labels, remappings, wanted
        self.weights = weights
        self.at = 0
        self.fault: Fault | None = None

    def run(self, student: nn.Module, example: Any, training: bool, on: On) -> Fault | None:
        try:
            run(student, example, OPERATIONS, self.visit, training=training, on=on)
        except _Stop:
            return self.fault
        except Exception as error:  # whatever the student's own code raises
            return self._fault_here(first_line(error))
        return self.fault

    def visit(self, op: Op) -> None:
        if self.at >= len(self.steps):
            raise _Stop
        theirs = self.steps[self.at]
        if theirs is not None:
            self.fault = self._differs(op, theirs)
            if self.fault is not None:
                raise _Stop
        self.at += 1

    def _differs(self, op: Op, theirs: Op) -> Fault | None:
        if theirs.name != op.name or len(theirs.outputs) != len(op.outputs):
            return self._fault(theirs, f"the student performs {op} instead")
        for which, (out, expected) in enumerate(zip(op.outputs, theirs.outputs, strict=True)):
            axes = self.labels[id(expected)]
            shape = [grown_length(axis, self.remappings) for axis in axes]
            if list(out.shape) != shape:
                wrong = [axis for axis, n, m in zip(axes, shape, out.shape, strict=False) if n != m]
                groups = self._growing([g for axis in wrong for g, _ in resolve(axis)])
                text = f"gives {list(out.shape)} instead of {shape}"
                return self._fault(theirs, text, self._made_by(theirs, groups) or self._of_size(out, shape))
            sample = self.wanted[self.at][which] if self.wanted else None
            if sample is not None and sample.values is not None:
                off = (out[sample.ours].double() - sample.values).abs().max().item()
                if not off <= CLOSE.get(out.dtype, ROUGH) * max(sample.scale, 1e-30):
                    return self._fault(theirs, "gives other values")
        return None

    def _fault(self, op: Op, text: str, groups: list[Group] | None = None) -> Fault:
        return Fault(self.number, self.at, op, groups or self._meeting(op), text)

    def _fault_here(self, text: str) -> Fault:
        """The student stopped before the next operation: its groups, or those of the last ones that have any."""
        here = [op for op in self.steps[: self.at + 1] if op is not None]
        for op in reversed(here):
            if groups := self._meeting(op, entering=True) or self._meeting(op):
                return Fault(self.number, self.at, here[-1], groups, text, guessed=op is not here[-1])
        return Fault(self.number, self.at, here[-1], [], text)

    def _meeting(self, op: Op, *, entering: bool = False) -> list[Group]:
        """The groups that grow on an operation's inputs and results (``entering``: on its inputs, weights apart)."""
        met = [t for t in op.tensors() if id(t) not in self.weights] if entering else [*op.tensors(), *op.outputs]
        axes = [axis for tensor in met for axis in self.labels.get(id(tensor), [])]
        return self._growing([group for axis in axes for group, _ in resolve(axis)])

    def _made_by(self, op: Op, groups: list[Group]) -> list[Group]:
        """Of the groups on a result of the wrong shape, those that the code made there (the zeros of a padding whose
        amount stands in it), if there are any; all that meet at the operation, if there are no groups."""
        given = [group for t in op.tensors() for axis in self.labels.get(id(t), []) for group, _ in resolve(axis)]
        return [group for group in groups if group not in given] or groups or self._meeting(op)

    def _of_size(self, out: Tensor, shape: list[int]) -> list[Group]:
        """The groups of the last axis that grew by the same numbers as this wrong one: there the code read its size."""
        pairs = {(n, m) for n, m in zip(shape, out.shape, strict=False) if n != m}
        for op in reversed([op for op in self.steps[: self.at] if op is not None]):
            for made in op.outputs:
                for axis, n in zip(self.labels.get(id(made), []), made.shape, strict=False):
                    if (n, grown_length(axis, self.remappings)) in pairs:
                        return self._growing([group for group, _ in resolve(axis)])
        return []

    def _growing(self, groups: list[Group]) -> list[Group]:
        return [group for group in dict.fromkeys(groups) if group in self.remappings]
