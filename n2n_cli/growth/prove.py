"""The proof that a student computes its teacher's function, and where it fails if it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.record import (
    NARROW,
    InDouble,
    NoRandom,
    WritesWeights,
    at_least_two,
    call,
    copied,
    leaves,
    mode,
    module_path,
    storages,
    twin,
)

NOT_FINITE = "the teacher's own output is not finite"
TOLERANCE = 1e-10  # relative, in fp64
FLOORS = 100  # times its own rounding floor a correct student may differ (5 is the most that was seen)
WEAK = 1e-6  # a floor above this makes the comparison weak
PROOF_IMAGES = 4


@dataclass(frozen=True)
class Gap:
    """Function gaps: max |student - teacher| / max |teacher| over every output, on one batch.

    ``floor`` is the teacher's own response to an input changed by one unit in the last place: no student can be
    expected below it. ``kind`` says what was compared and in which precision.
    """

    eval: float
    train: float
    floor: float = 0.0
    kind: str = "float32"

    @property
    def worst(self) -> float:
        return max(self.eval, self.train)


Weights = Mapping[str, Callable[[], Tensor]]


def outputs(
    model: nn.Module, batch: Any, *, training: bool, weights: Weights | None = None, clones: bool = False
) -> list[Tensor]:
    """All output tensors in one mode, dropout and stochastic depth off; the model stays untouched.

    With ``weights`` the arithmetic is fp64: these stand for the tensors of their names, all others are widened.
    ``clones``: the pass, or a hook, may write into parameters.

    Raises:
        GrowthError: the model does not run on the batch, or returns no tensor of numbers that could be compared.
    """
    try:
        return _outputs(model, batch, training, weights, clones)
    except WritesWeights:  # masked weights, for example: on clones then
        if weights is not None:
            raise GrowthError(f"{type(model).__name__} changes its weights in the forward pass") from None
        return _outputs(model, batch, training, weights, True)


def _outputs(model: nn.Module, batch: Any, training: bool, weights: Weights | None, clones: bool) -> list[Tensor]:
    kind = type(model).__name__
    with torch.inference_mode(), torch.random.fork_rng(devices=[]), ExitStack() as stack:
        model, state = twin(model, lambda name, tensor: _stand_in(name, tensor, weights, clones))
        guarded = set() if clones else storages(p for p in state.values() if isinstance(p, nn.Parameter))
        torch.manual_seed(0)  # a random operation that NoRandom does not know draws alike twice
        if weights is not None:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
            parameters = {name: tensor for name, tensor in state.items() if isinstance(tensor, nn.Parameter)}
            made = {id(parameters[n]): make for n, make in weights.items() if n in parameters}
            stack.enter_context(InDouble(made, storages(parameters.values())))
        try:
            with mode(model, training), module_path(model) as where, NoRandom(guarded):
                result = call(model, batch)
        except WritesWeights:
            raise
        except Exception as error:
            path = where() or "the top module"
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GrowthError(f"{kind} does not run: in {path}: {text}") from error
        found = [torch.view_as_real(t).clone() if t.is_complex() else t.clone() for t in leaves(result)]
    if not any(t.is_floating_point() and t.numel() for t in found):
        raise GrowthError(f"{kind} returns no tensor of numbers: there is nothing to compare")
    return found


def _stand_in(name: str, tensor: Tensor, weights: Weights | None, clones: bool) -> Tensor:
    """Parameters as they are; buffers, which a forward pass may change, are cloned (in fp64 with ``weights``)."""
    if isinstance(tensor, nn.Parameter):
        return tensor.detach().clone() if clones else tensor
    if weights is None:
        return tensor.clone()
    found = weights[name]() if name in weights else tensor
    return found.double() if found.dtype in NARROW else found.clone()


def runs_as_it_is(model: nn.Module, batch: Any) -> None:
    """One eval pass as a user would run it, PyTorch's fast paths included.

    Raises:
        GrowthError: it does not run; names the module.
    """
    kind = type(model).__name__
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        model, _ = twin(model, lambda _, tensor: tensor.clone())
        with module_path(model) as where:
            try:
                call(model.eval(), prepared(model, batch))
            except Exception as error:
                text = (str(error).strip().splitlines() or [type(error).__name__])[0]
                place = where() or "the top module"
                raise GrowthError(
                    f"the deeper {kind} does not run: in {place}: {text} (does its code read a layer's weights itself?)"
                ) from error


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """max |ours - theirs| / max |theirs|, the worst over the outputs."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        shapes = [tuple(t.shape) for t in ours], [tuple(t.shape) for t in theirs]
        raise GrowthError(f"the outputs have shapes {shapes[0]} instead of {shapes[1]}")
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.numel():
            difference = (mine.double() - other.double()).abs().max().item()
            scale = other.double().abs().max().item()
            worst = max(worst, difference / scale if scale else difference)
            if difference != difference:  # NaN compares false with everything
                return float("inf")
    return worst


def prepared(model: nn.Module, batch: Any, *, pair: bool = True) -> Any:
    """The batch on the model's device and in its type, with at least two samples for batch norm."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = at_least_two(leaf) if pair else leaf
        return leaf.to(reference.device, reference.dtype) if leaf.is_floating_point() else leaf.to(reference.device)

    return tree_map(one, batch)


def function_gap(teacher: nn.Module, student: nn.Module, batch: Any, *, training: bool | None = None) -> float:
    """max |student - teacher| / max |teacher| over every output on one batch.

    ``batch`` is an input tensor ``[N, C, H, W]``, a tuple of arguments or a dict of keyword arguments.
    ``training`` picks train (True) or eval mode (False); None takes the larger gap of the two. Dropout is off in
    both. Neither model is changed.
    """
    modes = [False, True] if training is None else [training]
    gaps = []
    for one in modes:
        theirs = outputs(teacher, prepared(teacher, batch, pair=one), training=one)
        ours = outputs(student, prepared(student, batch, pair=one), training=one)
        gaps.append(relative(ours, theirs))
    return max(gaps)


def in_double(model: nn.Module) -> nn.Module:
    """A copy of the model in fp64."""
    return copied(model).double()


def _ulp(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.nextafter(leaf, torch.full_like(leaf, float("inf")))
    return leaf


def small(batch: Any, images: int = PROOF_IMAGES) -> Any:
    """The first few samples of a batch; what has another leading size than its first tensor (a mask) stays whole."""
    count = next((t.shape[0] for t in leaves(batch) if t.ndim), 0)
    return tree_map(lambda t: t[:images] if isinstance(t, Tensor) and t.ndim and t.shape[0] == count else t, batch)


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

    ``student`` lends its modules; its parameters and buffers are ``weights`` (see `apply.weights_in_double`).
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
            raise GrowthError(f"{NOT_FINITE}: there is no function to preserve")
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
