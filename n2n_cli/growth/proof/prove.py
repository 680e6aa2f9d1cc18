"""The proof that a student computes its teacher's function, in fp64 and in both modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from n2n_cli.growth.build.students import Candidate, student_of
from n2n_cli.growth.build.weights import weights_in_double
from n2n_cli.growth.errors import GrowthError, OutOfMemory
from n2n_cli.growth.proof.gap import Gap, Weights, function_gap, outputs, relative, worst
from n2n_cli.growth.proof.inputs import other_inputs
from n2n_cli.growth.trace.copies import in_double
from n2n_cli.growth.trace.dispatch import NARROW
from n2n_cli.growth.trace.examples import prepared

TOLERANCE = 1e-10  # relative, in fp64
FLOORS = 100  # times its own rounding floor a correct student may differ (5 is the most that was seen)
WEAK = 1e-6  # with a floor above this a comparison in fp64 says little
ROUGH = {torch.float32: 1e-3}  # relative gap that a precision explains, beside the proof in fp64
NOT_FINITE = "the teacher's own output is not finite: there is no function to preserve"
ROUNDINGS = 10  # times its own rounding in that precision a student may differ


class Unprovable(GrowthError):
    """No student of this teacher could be proved on these inputs: it does not run, its outputs are not finite, or they
    jump when an input changes by rounding."""


class DoesNotRun(Unprovable):
    """The teacher does not run."""


class SaysNothing(Unprovable):
    """The example cannot tell students apart: its outputs are constant. ``everywhere``: on random inputs too."""

    everywhere = False


class Counterexample(GrowthError):
    """The student is right on the example, and wrong on ``batch``."""

    def __init__(self, message: str, batch: Any) -> None:
        super().__init__(message)
        self.batch = batch


def prove_candidate(model: nn.Module, candidate: Candidate, batches: list[Any], *, as_built: bool) -> Gap:
    """The proof in fp64, without copies of the networks, unless their code itself asks for a precision.

    Args:
        model: the teacher.
        candidate: the student; what is proved is what it is without noise.
        batches: inputs, one for each way through the model's code.
        as_built: the student holds no noise, and is compared as it is as well, in its own precision.

    Returns:
        Gap: the worst relative difference in eval and in train mode, and the teacher's own rounding floor.

    Raises:
        Unprovable: whatever the student does.
        Counterexample: the function changed, though not on the batches.
        GrowthError: the function changed by more than the arithmetic explains.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def on_copies(teacher: nn.Module, constant: bool = False) -> Gap:
        return prove(teacher, student_of(teacher, candidate), *batches, constant=constant)

    def in_double_somehow() -> Gap:
        weights = weights_in_double(model, candidate.structure, candidate.remappings, candidate.maps, candidate.random)
        try:
            return prove_in_double(model, candidate.student, weights, *batches)
        except (SaysNothing, OutOfMemory):
            raise
        except GrowthError:
            try:
                return on_copies(in_double(model))
            except DoesNotRun:  # in fp64; the error of its own precision is the one to show
                return on_copies(model)

    try:
        if dtype == torch.float64 and as_built:
            try:
                return prove(model, candidate.student, *batches)
            except (SaysNothing, OutOfMemory):
                raise
            except GrowthError:
                pass  # code that rounds to fp32 somewhere is compared in fp64 throughout
        gap = in_double_somehow()
    except SaysNothing as silent:
        if not silent.everywhere:
            raise
        gap = on_copies(with_random_weights(model), constant=True)  # its head is zero, perhaps: with others it speaks
    if as_built and gap.kind == "float64":
        bound = max(ROUGH.get(dtype, 3e-2), 1e9 * gap.floor)
        check_in_its_own_precision(model, candidate.student, batches[0], bound)
    return gap


def check_in_its_own_precision(teacher: nn.Module, student: nn.Module, batch: Any, bound: float) -> None:
    """A look at a student as it was built, in eval mode, beside its proof in fp64.

    Above ``bound`` it may only differ where rounding alone moves the teacher as far: where a batch norm divides by a
    variance near zero, say, the teacher's outputs in its own precision are far from those in fp64 themselves.

    Raises:
        Unprovable: the teacher's outputs in its own precision are not finite.
        GrowthError: it differs by more.
    """
    gap = function_gap(teacher, student, batch, training=False)
    if gap <= bound:
        return
    own = outputs(teacher, prepared(teacher, batch), training=False)
    if not _finite(own):
        raise Unprovable(NOT_FINITE)
    if not gap <= ROUNDINGS * relative(_exact(teacher, batch) or own, own):
        dtype = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
        raise GrowthError(
            f"the student's function differs from the teacher's: relative gap {gap:.1e} in eval mode ({dtype})"
        )


def _exact(teacher: nn.Module, batch: Any) -> list[Tensor]:
    """Its outputs in fp64; none if it does not run in fp64, or they are not finite."""
    try:
        found = outputs(teacher, _in_double(prepared(teacher, batch)), training=False, weights={})
    except GrowthError:
        return []
    return found if _finite(found) else []


def prove(teacher: nn.Module, student: nn.Module, *batches: Any, constant: bool = False) -> Gap:
    """The worst gaps over the batches in eval and train mode, against the teacher's own rounding floor; and, in eval
    mode, over other inputs that the teacher takes (`inputs.other_inputs`).

    Args:
        teacher: neither it nor the student is changed.
        student: with the same outputs.
        batches: inputs that the teacher takes.
        constant: accept a teacher whose outputs are constant on every input.

    Raises:
        Unprovable: whatever the student does.
        Counterexample: the function changed, though not on the batches.
        GrowthError: the function changed by more than the arithmetic explains.
    """
    dtype = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
    inputs = [prepared(teacher, batch) for batch in batches]
    return _Proof(partial(outputs, teacher), partial(outputs, student), dtype, constant).run(inputs)


def prove_in_double(teacher: nn.Module, student: nn.Module, weights: Weights, *batches: Any) -> Gap:
    """`prove` in fp64 on networks of any precision, without a second copy of either.

    ``student`` lends its modules; its parameters and buffers are ``weights`` (see `build.weights.weights_in_double`).
    """
    inputs = [_in_double(prepared(teacher, batch)) for batch in batches]
    ours = partial(outputs, student, weights=weights)
    return _Proof(partial(outputs, teacher, weights={}), ours, torch.float64).run(inputs)


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy in fp64 whose parameters are disturbed by a tenth of their scale (zeros by 0.1), from a fixed seed."""
    copy = in_double(model)
    generator = torch.Generator().manual_seed(0x5EED)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * (parameter.detach().abs().mean().item() or 1.0) * noise.to(parameter))
    return copy


@dataclass
class _Proof:
    """``teacher`` and ``student`` are `outputs` of each; ``dtype`` of their arithmetic."""

    teacher: Callable[..., list[Tensor]]
    student: Callable[..., list[Tensor]]
    dtype: torch.dtype
    constant: bool = False

    def run(self, inputs: list[Any]) -> Gap:
        given = [self._on(batch) for batch in inputs]
        for batch, (_, constant, floor) in zip(inputs, given, strict=True):
            spoke, firm = self._on_others(batch)
            if constant and not self.constant:
                raise self._silent(spoke)
            if self._jumps(floor) and not firm:
                raise Unprovable(
                    f"cannot be proved: the teacher's output moves by {floor:.0e} if an input changes by rounding"
                )
        return worst([gap for gap, _, _ in given])

    def _on(self, batch: Any) -> tuple[Gap, bool, float]:
        """The gaps on an input that was given; in eval mode, whether the outputs are constant, and their floor."""
        theirs = {training: self._theirs(batch, training) for training in (False, True)}
        floors = {training: self._floor(batch, theirs[training], training) for training in (False, True)}
        gaps = {mode: relative(self.student(batch, training=mode), theirs[mode]) for mode in (False, True)}
        gap = Gap(gaps[False], gaps[True], max(floors.values()), str(self.dtype).removeprefix("torch."))
        right = [gaps[mode] <= self._bound(floors[mode]) for mode in (False, True)]
        if not (right[False] or self._jumps(floors[False])) or not right[True]:
            raise GrowthError(
                f"the student's function differs from the teacher's: relative gap {gap.eval:.1e} in eval and "
                f"{gap.train:.1e} in train mode ({gap.kind}; the teacher's own rounding: {gap.floor:.0e})"
            )
        return gap, _constant(theirs[False]), floors[False]

    def _on_others(self, batch: Any) -> tuple[bool, bool]:
        """Whether the teacher's outputs vary on some other input, and whether some could be compared."""
        spoke = firm = False
        for seed, (what, other) in enumerate(other_inputs(batch), start=1):
            try:
                theirs = self.teacher(other, training=False, seed=seed)
            except GrowthError:  # the teacher does not take such inputs
                continue
            if not _finite(theirs):
                continue
            try:
                gap = relative(self.student(other, training=False, seed=seed), theirs)
            except OutOfMemory:  # of what was not asked for
                continue
            except GrowthError as error:
                raise Counterexample(f"on {what}, which the teacher takes: {error}", other) from error
            if not gap <= self._bound(0.0):  # only then the floor matters
                floor = self._floor(other, theirs, False, seed)
                if self._jumps(floor):
                    continue
                if not gap <= self._bound(floor):
                    raise Counterexample(
                        f"the student's function differs from the teacher's on {what}: relative gap {gap:.1e} in eval "
                        "mode",
                        other,
                    )
            spoke, firm = spoke or not _constant(theirs), True
        return spoke, firm

    def _theirs(self, batch: Any, training: bool) -> list[Tensor]:
        try:
            theirs = self.teacher(batch, training=training)
        except OutOfMemory:
            raise
        except GrowthError as error:
            raise DoesNotRun(str(error)) from error
        if not _finite(theirs):
            raise Unprovable(NOT_FINITE)
        return theirs

    def _floor(self, batch: Any, theirs: list[Tensor], training: bool, seed: int = 0) -> float:
        return relative(self.teacher(tree_map(_ulp, batch), training=training, seed=seed), theirs)

    def _jumps(self, floor: float) -> bool:
        """Whether rounding alone moves the teacher's outputs so far that nothing can be told by them."""
        return not floor <= (WEAK if self.dtype == torch.float64 else 0.1)

    def _bound(self, floor: float) -> float:
        base = TOLERANCE if self.dtype == torch.float64 else 16 * torch.finfo(self.dtype).eps
        return max(base, FLOORS * floor)

    def _silent(self, spoke: bool) -> SaysNothing:
        error = SaysNothing(
            "on the example input the teacher's outputs are the same everywhere, so it can prove nothing: use real "
            "inputs, or random ones"
        )
        error.everywhere = not spoke
        return error


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _in_double(batch: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.dtype in NARROW else leaf, batch)


def _constant(tensors: list[Tensor]) -> bool:
    """Whether no output tells anything: each has one value everywhere (a single number does not count as such)."""
    numbers = [t for t in tensors if t.is_floating_point() and t.numel() > 1]
    return bool(numbers) and all(bool(t.max() == t.min()) for t in numbers)


def _ulp(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.nextafter(leaf, torch.full_like(leaf, float("inf")))
    return leaf
