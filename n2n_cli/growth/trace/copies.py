"""Copies of a model: whole, or around other tensors."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from n2n_cli.growth.errors import first_line, kind_of


def named_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every buffer under every name that it has."""
    return list(model.named_buffers(remove_duplicate=False))


def plain_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Numbers that modules keep as ordinary attributes (``self.positions = torch.randn(9, 8)``), neither parameter nor
    buffer; remembered activations left out, and what stands in several places."""
    held = Counter(
        id(value)
        for module in model.modules()
        for value in (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
        if isinstance(value, Tensor)
    )
    return [
        (f"{path}.{name}" if path else name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim
        and value.grad_fn is None
        and held[id(value)] == 1
    ]


def slots(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every place that holds a tensor, once: a tied tensor has several places, a shared module is one."""
    found: list[tuple[str, Tensor]] = plain_tensors(model)
    for path, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found.append((f"{path}.{name}" if path else name, tensor))
    return found


def twin(model: nn.Module, stand_in: Callable[[str, Tensor], Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the modules that holds ``stand_in(name, tensor)`` for each of their tensors; and these by name.

    What a forward pass leaves behind in the modules (caches, counters) stays in the copy.
    """
    memo: dict[int, Any] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in slots(model):
        if id(tensor) not in memo:
            other = stand_in(name, tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(other, requires_grad=False) if is_parameter else other
        state[name] = memo[id(tensor)]
    return deep_copy(model, memo), state


def named_tensors(model: nn.Module, *, every_name: bool = False) -> list[tuple[str, Tensor]]:
    """Parameters, buffers, plain tensors; tied parameters once, or with ``every_name`` under each of their names."""
    parameters = model.named_parameters(remove_duplicate=not every_name)
    return [*parameters, *named_buffers(model), *plain_tensors(model)]


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a tensor -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model, every_name=True)}


def deep_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; activations that modules remember are copied without their history.

    ``memo`` is that of ``copy.deepcopy``: what stands for an object, by its ``id``.

    Raises:
        GrowthError: the model holds what cannot be copied (a lock, an open file).
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, MemoryError) as error:
        raise kind_of(error)(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error


def in_double(model: nn.Module) -> nn.Module:
    """A copy of the model in fp64."""
    copied = deep_copy(model).double()
    for name, tensor in plain_tensors(copied):
        path, _, attribute = name.rpartition(".")
        setattr(copied.get_submodule(path), attribute, tensor.double())
    return copied
