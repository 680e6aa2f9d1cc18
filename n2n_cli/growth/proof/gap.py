"""The function gap: max |student - teacher| over max |teacher|, over every output on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.errors import GrowthError, first_line, kind_of
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.trace.calls import call, in_mode, leaves, module_path, same_chance
from n2n_cli.growth.trace.copies import twin
from n2n_cli.growth.trace.dispatch import NARROW, InDouble, WithoutChance, WritesWeights, storages
from n2n_cli.growth.trace.examples import check_model, prepared, that_runs


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


def worst(gaps: Sequence[Gap]) -> Gap:
    """The worst of several, mode by mode."""
    kinds = max(gaps, key=lambda gap: gap.floor).kind
    return Gap(max(g.eval for g in gaps), max(g.train for g in gaps), max(g.floor for g in gaps), kinds)


Weights = Mapping[str, Callable[[], Tensor]]
"""Parameter or buffer -> what makes the tensor that stands for it."""


def function_gap(teacher: nn.Module, student: nn.Module, batch: Any, *, training: bool | None = None) -> float:
    """max |student - teacher| / max |teacher| over every output on one batch.

    Args:
        teacher: any module; neither model is changed.
        student: a module with the same outputs.
        batch: images ``[N, C, H, W]``, a tuple of arguments or a dict of keyword arguments.
        training: in train (True) or eval mode (False); None: the larger gap of the two. Dropout is off in both.

    Returns:
        float: the worst over the outputs, in the models' own precision; ``inf`` where an output is NaN.

    Raises:
        GrowthError: a model does not run on the batch (its module is named), or the outputs have other shapes.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> function_gap(net, net, torch.randn(2, 3))
    0.0
    """
    for model in (teacher, student):
        check_model(model)
    if not (training is None or isinstance(training, bool)):
        raise GrowthError(f"training is {training!r}: expected True, False or None for both modes")

    def gap(one: Any, mode: bool) -> float:
        theirs = outputs(teacher, prepared(teacher, one), training=mode)
        return relative(outputs(student, prepared(student, one), training=mode), theirs)

    modes = [False, True] if training is None else [training]
    return max(that_runs(lambda one, mode=mode: gap(one, mode), batch) for mode in modes)  # type: ignore[misc]


def measured_gap(teacher: nn.Module, student: nn.Module, batches: Sequence[Any], kind: str = "measured") -> Gap:
    """The worst function gaps over the batches in both modes, where none is asked for."""
    gaps = [max(function_gap(teacher, student, batch, training=mode) for batch in batches) for mode in (False, True)]
    return Gap(gaps[0], gaps[1], kind=kind)


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


def outputs(
    model: nn.Module, batch: Any, *, training: bool, weights: Weights | None = None, clones: bool = False, seed: int = 0
) -> list[Tensor]:
    """All output tensors in one mode, dropout and stochastic depth off; the model stays untouched.

    With ``weights`` the arithmetic is fp64: these stand for the tensors of their names, all others are widened.
    ``clones``: the pass, or a hook, may write into parameters. ``seed``: of whatever is drawn all the same.

    Raises:
        GrowthError: the model does not run on the batch, or returns no tensor of numbers that could be compared.
    """
    try:
        return _outputs(model, batch, training, weights, clones, seed)
    except WritesWeights:  # masked weights, for example: on clones then
        if weights is not None:
            raise GrowthError(f"{type(model).__name__} changes its weights in the forward pass") from None
        return _outputs(model, batch, training, weights, True, seed)


def _outputs(
    model: nn.Module, batch: Any, training: bool, weights: Weights | None, clones: bool, seed: int
) -> list[Tensor]:
    kind = type(model).__name__
    with torch.inference_mode(), same_chance(seed), ExitStack() as stack:
        model, state = twin(model, lambda name, tensor: _stand_in(name, tensor, weights, clones))
        guarded = set() if clones else storages(p for p in state.values() if isinstance(p, nn.Parameter))
        if weights is not None:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
            parameters = {name: tensor for name, tensor in state.items() if isinstance(tensor, nn.Parameter)}
            made = {id(parameters[n]): make for n, make in weights.items() if n in parameters}
            stack.enter_context(InDouble(made, storages(parameters.values())))
        try:
            with in_mode(model, training), module_path(model) as where, WithoutChance(OPERATIONS, guarded):
                result = call(model, batch)
        except WritesWeights:
            raise
        except Exception as error:
            path = where() or "the top module"
            raise kind_of(error)(f"{kind} does not run: in {path}: {first_line(error)}") from error
        found = [torch.view_as_real(t).clone() if t.is_complex() else t.clone() for t in leaves(result)]
    if not any(t.is_floating_point() and t.numel() for t in found):
        raise GrowthError(f"{kind} returns no tensor of numbers: there is nothing to compare")
    return found


def _stand_in(name: str, tensor: Tensor, weights: Weights | None, clones: bool) -> Tensor:
    """Parameters as they are; buffers, which a forward pass may change, are cloned (in fp64 with ``weights``)."""
    if isinstance(tensor, nn.Parameter):
        return tensor.detach().clone() if clones else tensor if weights is None else _of_this_pass(tensor)
    if weights is None:
        return tensor.clone()
    found = weights[name]() if name in weights else tensor
    return found.double() if found.dtype in NARROW else found.clone()


def _of_this_pass(tensor: Tensor) -> Tensor:
    """The same memory, as a tensor made in inference mode. A view of any other one counts versions, and fails where
    `InDouble` puts a tensor that has none in its place."""
    if tensor.layout != torch.strided:
        return tensor
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def runs(model: nn.Module, batch: Any) -> bool:
    """Whether the model takes the batch in eval mode."""
    try:
        outputs(model, prepared(model, batch), training=False)
    except GrowthError:
        return False
    return True


def runs_as_it_is(model: nn.Module, batch: Any) -> None:
    """One eval pass as a user would run it, PyTorch's fast paths included.

    Raises:
        GrowthError: it does not run; names the module.
    """
    kind = type(model).__name__
    with torch.inference_mode(), same_chance():
        model, _ = twin(model, lambda _, tensor: tensor.clone())
        with module_path(model) as where:
            try:
                call(model.eval(), prepared(model, batch))
            except Exception as error:
                place = where() or "the top module"
                raise GrowthError(
                    f"the deeper {kind} does not run: in {place}: {first_line(error)} (does its code read a layer's "
                    "weights itself?)"
                ) from error
