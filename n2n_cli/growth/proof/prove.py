"""The proof that a student computes its teacher's function, in fp64 and in both modes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from n2n_cli.growth.build.students import Candidate, student_of
from n2n_cli.growth.build.weights import weights_in_double
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.proof.gap import Gap, Weights, function_gap, outputs, relative
from n2n_cli.growth.trace.calls import prepared
from n2n_cli.growth.trace.copies import in_double
from n2n_cli.growth.trace.dispatch import NARROW

TOLERANCE = 1e-10  # relative, in fp64
FLOORS = 100  # times its own rounding floor a correct student may differ (5 is the most that was seen)
WEAK = 1e-6  # a floor above this makes the comparison weak
ROUGH = {torch.float32: 1e-3}  # relative gap that a precision explains, beside the proof in fp64


class NotFinite(GrowthError):
    """The teacher's own output is not finite: there is no function to preserve."""


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
        NotFinite: there is no function to preserve.
        GrowthError: the function changed by more than the arithmetic explains.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype == torch.float64 and as_built:
        with suppress(GrowthError):  # code that rounds to fp32 somewhere is compared in fp64 throughout
            return prove(model, candidate.student, *batches)
    weights = weights_in_double(model, candidate.structure, candidate.remappings, candidate.maps)
    try:
        gap = prove_in_double(model, candidate.student, weights, *batches)
    except NotFinite:
        raise
    except GrowthError:
        teacher = in_double(model)
        gap = prove(teacher, student_of(teacher, candidate), *batches)
    if as_built:
        rough = function_gap(model, candidate.student, batches[0], training=False)
        if not rough <= max(ROUGH.get(dtype, 3e-2), 1e9 * gap.floor):
            raise GrowthError(
                f"the student's function differs from the teacher's: relative gap {rough:.1e} in eval mode ({dtype})"
            )
    return gap


def prove(teacher: nn.Module, student: nn.Module, *batches: Any) -> Gap:
    """The worst gaps over the batches in eval and train mode, against the teacher's own rounding floor.

    Raises:
        GrowthError: the function changed by more than the arithmetic explains.
    """
    dtype = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
    inputs = [prepared(teacher, batch) for batch in batches]
    return _prove(partial(outputs, teacher), partial(outputs, student), inputs, dtype)


def prove_in_double(teacher: nn.Module, student: nn.Module, weights: Weights, *batches: Any) -> Gap:
    """`prove` in fp64 on networks of any precision, without a second copy of either.

    ``student`` lends its modules; its parameters and buffers are ``weights`` (see `build.weights.weights_in_double`).
    """

    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype in NARROW else leaf

    inputs = [tree_map(widen, prepared(teacher, batch)) for batch in batches]
    return _prove(
        partial(outputs, teacher, weights={}), partial(outputs, student, weights=weights), inputs, torch.float64
    )


def _prove(
    teacher: Callable[..., list[Tensor]], student: Callable[..., list[Tensor]], inputs: list[Any], dtype: torch.dtype
) -> Gap:
    gaps: dict[bool, float] = {False: 0.0, True: 0.0}
    floor = 0.0
    for batch, training in product(inputs, (False, True)):
        theirs = teacher(batch, training=training)
        if not all(torch.isfinite(t).all() for t in theirs if t.is_floating_point()):
            raise NotFinite("the teacher's own output is not finite: there is no function to preserve")
        gaps[training] = max(gaps[training], relative(student(batch, training=training), theirs))
        floor = max(floor, relative(teacher(tree_map(_ulp, batch), training=training), theirs))
    gap = Gap(gaps[False], gaps[True], floor, str(dtype).removeprefix("torch."))
    base = TOLERANCE if dtype == torch.float64 else 16 * torch.finfo(dtype).eps
    if not gap.worst <= max(base, FLOORS * gap.floor):
        raise GrowthError(
            f"the student's function differs from the teacher's: relative gap {gap.eval:.1e} in eval and "
            f"{gap.train:.1e} in train mode ({gap.kind}; the teacher's own rounding: {gap.floor:.0e})"
        )
    return gap


def _ulp(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.nextafter(leaf, torch.full_like(leaf, float("inf")))
    return leaf
