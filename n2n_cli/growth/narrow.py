"""A student that fails is narrowed: the first operation that goes astray, and the groups that meet there.

Teacher and student perform the same operations. What each result of the student should look like is known from its
labels: its shape, and every entry as a copy of one of the teacher's. So the first operation whose result is
different is the culprit, be it a size written into ``forward``, a number that a module derived from its width, or code
that takes another way. First the attributes of its module are tried in another reading; if that does not help, the
groups that meet there stay as they are, by name, and the rest grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth import shuffles
from n2n_cli.growth.apply import mapper
from n2n_cli.growth.attributes import Attributes, Option, grown, options, set_attributes
from n2n_cli.growth.axes import Axis, Group, Reason, resolve
from n2n_cli.growth.common import tensors
from n2n_cli.growth.infer import Structure, whole
from n2n_cli.growth.plan import Remapping
from n2n_cli.growth.prove import prepared, small
from n2n_cli.growth.record import Op, Recording, trace

Mappings = Mapping[Group, Remapping]
Labels = Mapping[int, list[Axis]]
ENTRIES = 64  # of each result are compared
CLOSE = 1e-6  # relative to the largest entry, in fp64


@dataclass
class Fault:
    """Where the student goes astray: in which recording, at which operation, and which groups grow there."""

    mode: int
    at: int
    op: Op
    groups: list[Group]
    text: str

    @property
    def depth(self) -> tuple[int, int]:
        """How far it came: a later fault is a better student."""
        return self.mode, self.at


MEANINGLESS = ("empty", "new_empty", "rand", "detach", "lift")  # whose values tell nothing yet


class _Stop(Exception):
    """The student need not run any further."""


def find(
    structure: Structure, mappings: Mappings, student: nn.Module, teacher: nn.Module | None = None
) -> Fault | None:
    """The student's first fault; shapes alone without ``teacher``, else values too (both models in fp64)."""
    for mode, recording in enumerate(structure.recordings):
        training = recording.training
        example = prepared(student, small(recording.example), pair=False)
        labels = structure.labels[mode]
        steps: list[Op | None] = list(recording.ops)
        wanted: list[list[_Sample]] | None = None
        if teacher is not None:
            steps = _beside(recording, teacher, example, training)
            wanted = _samples(steps, labels, mappings)
            _fill(wanted, teacher, example, training)
        device = recording.device if wanted is None else "still"
        fault = _Comparison(mode, steps, labels, mappings, wanted, recording.tensors).run(
            student, example, training, device
        )
        if fault is not None:
            return fault
    return None


def _beside(recording: Recording, teacher: nn.Module, example: Any, training: bool) -> list[Op | None]:
    """The recorded operation that belongs to each operation of a real run: meta tensors take small detours."""
    performed: list[Any] = []
    trace(teacher, example, whole, lambda op: performed.append(_looks(op)), training=training, device="still")
    recorded = [_looks(op) for op in recording.ops]
    out: list[Op | None] = []
    at = 0
    for look in performed:
        ahead = next((n for n in range(at, min(at + 8, len(recorded))) if recorded[n] == look), None)
        out.append(None if ahead is None else recording.ops[ahead])
        at = at if ahead is None else ahead + 1
    return out


def _looks(op: Op) -> tuple[str, str, list[tuple[int, ...]]]:
    """By what an operation is known again on other samples of the same input."""
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


def _samples(steps: list[Op | None], labels: Labels, mappings: Mappings) -> list[list[_Sample]]:
    generator = torch.Generator().manual_seed(0)
    map_of = mapper(mappings)
    found = []
    for op in steps:
        here = []
        for out in op.outputs if op else []:
            theirs, ours, factor = [], [], torch.ones(ENTRIES, dtype=torch.float64)
            for dim, axis in enumerate(labels[id(out)]):
                known = map_of(axis)
                size = out.shape[dim] if known is None else len(known.index)
                place = torch.randint(max(size, 1), (ENTRIES,), generator=generator)
                if known is not None and known.means:  # a mean is no entry of the teacher's
                    place = known.first.nonzero().flatten()[place % int(known.first.sum())]
                theirs.append(place if known is None else known.index[place])
                ours.append(place)
                if known is not None and known.value is not None:
                    factor = factor * known.value[place]
            here.append(_Sample(tuple(theirs), tuple(ours), factor))
        found.append(here)
    return found


def _fill(wanted: list[list[_Sample]], teacher: nn.Module, example: Any, training: bool) -> None:
    steps = iter(wanted)

    def visit(op: Op) -> None:
        for sample, out in zip(next(steps), op.outputs, strict=False):
            if out.numel() and out.ndim == len(sample.theirs) and not op.name.startswith(MEANINGLESS):
                sample.values = out[sample.theirs].double() * sample.factor
                sample.scale = float(out.double().abs().max())

    trace(teacher, example, whole, visit, training=training, device="still")


# --- what it is --------------------------------------------------------------------------------------------


class _Comparison:
    """The student's run beside what is known of the teacher's."""

    def __init__(
        self,
        mode: int,
        steps: list[Op | None],
        labels: Labels,
        mappings: Mappings,
        wanted: list[list[_Sample]] | None,
        weights: Mapping[int, str],
    ) -> None:
        self.mode, self.steps, self.labels, self.mappings, self.wanted = mode, steps, labels, mappings, wanted
        self.weights = weights
        self.at = 0
        self.fault: Fault | None = None

    def run(self, student: nn.Module, example: Any, training: bool, device: str) -> Fault | None:
        try:
            trace(student, example, whole, self.visit, training=training, device=device)
        except _Stop:
            return self.fault
        except Exception as error:  # whatever the student's own code raises
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return self._fault_here(text)
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
            shape = [grown(axis, self.mappings) for axis in axes]
            if list(out.shape) != shape:
                wrong = [axis for axis, n, m in zip(axes, shape, out.shape, strict=False) if n != m]
                groups = self._growing([g for axis in wrong for g, _ in resolve(axis)])
                text = f"gives {list(out.shape)} instead of {shape}"
                return self._fault(theirs, text, groups or self._meeting(theirs) or self._of_size(out, shape))
            sample = self.wanted[self.at][which] if self.wanted else None
            if sample is not None and sample.values is not None:
                off = (out[sample.ours].double() - sample.values).abs().max().item()
                if not off <= CLOSE * max(sample.scale, 1e-30):
                    return self._fault(theirs, "gives other values")
        return None

    def _fault(self, op: Op, text: str, groups: list[Group] | None = None) -> Fault:
        return Fault(self.mode, self.at, op, groups or self._meeting(op), text)

    def _fault_here(self, text: str) -> Fault:
        """The student stopped before the next operation: its groups, or those of the last ones that have any."""
        here = [op for op in self.steps[: self.at + 1] if op is not None]
        for op in reversed(here):
            if groups := self._meeting(op, entering=True) or self._meeting(op):
                return Fault(self.mode, self.at, here[-1], groups, text)
        return Fault(self.mode, self.at, here[-1], [], text)

    def _meeting(self, op: Op, *, entering: bool = False) -> list[Group]:
        """The groups that grow on an operation's inputs and results (``entering``: on its inputs, weights apart)."""
        met = [t for t in tensors(op) if id(t) not in self.weights] if entering else [*tensors(op), *op.outputs]
        axes = [axis for tensor in met for axis in self.labels.get(id(tensor), [])]
        return self._growing([group for axis in axes for group, _ in resolve(axis)])

    def _of_size(self, out: Tensor, shape: list[int]) -> list[Group]:
        """The groups of the last axis that grew as this one should not have: a size that the code read there."""
        pairs = {(n, m) for n, m in zip(shape, out.shape, strict=False) if n != m}
        for op in reversed([op for op in self.steps[: self.at] if op is not None]):
            for made in op.outputs:
                for axis, n in zip(self.labels.get(id(made), []), made.shape, strict=False):
                    if (n, grown(axis, self.mappings)) in pairs:
                        return self._growing([group for group, _ in resolve(axis)])
        return []

    def _growing(self, groups: list[Group]) -> list[Group]:
        return [group for group in dict.fromkeys(groups) if group in self.mappings]


# --- what to do about it -----------------------------------------------------------------------------------


def reread(
    model: nn.Module,
    structure: Structure,
    mappings: Mappings,
    student: nn.Module,
    attributes: Attributes,
    fault: Fault,
    teacher: nn.Module | None = None,
) -> tuple[Attributes, Fault | None] | None:
    """Attributes in another reading with which the student comes further, and its next fault; None: none helps.

    The attributes of the operation's module are tried, of the modules around it, and of those directly inside.
    """
    around = {fault.op.path, ""}
    parts = fault.op.path.split(".")
    around |= {".".join(parts[:n]) for n in range(1, len(parts))}
    best: tuple[Attributes, Fault | None] | None = None
    inside = {path for path, _ in model.named_modules() if path and path.rpartition(".")[0] == fault.op.path}
    for places, below, above in ((around, False, False), (inside, False, True), (around, True, False)):
        found = options(model, structure, mappings, below=below, above=above)
        for option in found:
            now = attributes.get(option.path, {}).get(option.attribute, option.own)
            for value in [v for v in option.values if v != now] if option.path in places else []:
                trial = {path: dict(values) for path, values in attributes.items()}
                for other in _alike(option, found, model):
                    trial.setdefault(other.path, {})[option.attribute] = value
                set_attributes(student, trial)
                after = find(structure, mappings, student, teacher)
                if after is None:
                    return trial, None
                if after.depth > (best[1].depth if best and best[1] else fault.depth):
                    best = trial, after
            for other in _alike(option, found, model):
                before = attributes.get(other.path, {}).get(other.attribute, other.own)
                set_attributes(student, {other.path: {other.attribute: before}})
        if best is not None:
            break
    set_attributes(student, best[0] if best else attributes)
    return best


def _alike(option: Option, found: list[Option], model: nn.Module) -> list[Option]:
    """The same attribute with the same value and prospects in modules of the same class: they are read alike."""
    kind = type(model.get_submodule(option.path))
    return [
        other
        for other in found
        if (other.attribute, other.own, sorted(map(str, other.values)))
        == (option.attribute, option.own, sorted(map(str, option.values)))
        and type(model.get_submodule(other.path)) is kind
    ]


def hold(structure: Structure, groups: Iterable[Group], reason: Reason) -> None:
    """Fix groups, and with them whatever may only grow together with them."""
    held = set(groups)
    links: list[list[Group]] = [[g for axis in pair for g, _ in resolve(axis)] for pair in structure.equal]
    links += [list(norm.groups()) for norm in structure.norms]
    links += shuffles.components(structure.shuffles)
    size = 0
    while size < len(held):
        size = len(held)
        for link in links:
            if held & set(link):
                held.update(link)
    for group in held:
        group.fixed = group.fixed or reason
