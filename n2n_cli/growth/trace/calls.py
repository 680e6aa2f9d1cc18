"""Calling models: inputs of any form, outputs of any form, the mode they run in, and the module that is running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_hooks
from torch.utils._pytree import tree_map

PROOF_SAMPLES = 4
"""Samples of a batch that are recorded and that a proof compares: as exact as all of them, and cheaper."""


def call(model: Callable[..., Any], example_input: Any) -> Any:
    """``model(example)``; a tuple is several arguments, a dict keyword arguments."""
    if isinstance(example_input, dict):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple | list) else model(example_input)


def leaves(value: Any) -> list[Tensor]:
    """Every tensor in a result: in tuples, lists, dicts, dataclasses and plain objects."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def walk(part: Any) -> None:
        if isinstance(part, Tensor):
            found.append(part)
        elif id(part) not in seen and not isinstance(part, str | bytes | int | float | type | nn.Module):
            seen.add(id(part))
            if isinstance(part, Mapping):
                for inner in part.values():
                    walk(inner)
            elif isinstance(part, list | tuple | set):
                for inner in part:
                    walk(inner)
            else:
                for inner in getattr(part, "__dict__", {}).values():
                    walk(inner)

    walk(value)
    return found


def at_least_two(tensor: Tensor) -> Tensor:
    """Batch norm in train mode needs two samples: a single one is doubled, mirrored along its last axis."""
    return tensor if tensor.ndim == 0 or tensor.shape[0] != 1 else torch.cat([tensor, tensor.flip(-1)])


def first_samples(batch: Any, samples: int = PROOF_SAMPLES) -> Any:
    """The first few samples of a batch; what has another leading size than its first tensor (a mask) stays whole."""
    count = next((t.shape[0] for t in leaves(batch) if t.ndim), 0)
    return tree_map(lambda t: t[:samples] if isinstance(t, Tensor) and t.ndim and t.shape[0] == count else t, batch)


def prepared(model: nn.Module, batch: Any, *, pair: bool = True) -> Any:
    """The batch on the model's device and in its type; ``pair``: with at least two samples, for batch norm."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = at_least_two(leaf) if pair else leaf
        return leaf.to(reference.device, reference.dtype) if leaf.is_floating_point() else leaf.to(reference.device)

    return tree_map(one, batch)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, without PyTorch's fast paths; modules are back in their own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel would hide what the module computes
    try:
        model.train(training)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, was in before.items():
            module.training = was


@contextmanager
def module_path(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that names the innermost module whose ``forward`` is running."""
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = []
    raised: list[str] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(id(module), stack[-1] if stack else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if output is None:  # called on the way out of an exception
            raised.append(stack[-1])
        stack.pop()

    pre = _module_hooks.register_module_forward_pre_hook(enter)
    post = _module_hooks.register_module_forward_hook(leave, always_call=True)
    try:
        yield lambda: stack[-1] if stack else raised[0] if raised else ""
    finally:
        pre.remove()
        post.remove()


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
