"""Calling models: inputs of any form, outputs of any form, the mode they run in, and the module that is running."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_hooks


def call(model: Callable[..., Any], example_input: Any) -> Any:
    """``model(example)``; a tuple is several arguments, a dict keyword arguments."""
    if isinstance(example_input, dict):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple) else model(example_input)


def leaves(value: Any) -> list[Tensor]:
    """Every tensor in a result: in tuples, lists, dicts, dataclasses and plain objects; NumPy's arrays are tensors."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def walk(part: Any) -> None:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, np.ndarray) and part.dtype != object:
            found.append(torch.as_tensor(part))
        elif id(part) not in seen and not isinstance(part, str | bytes | int | float | type | nn.Module):
            seen.add(id(part))
            if isinstance(part, Mapping):
                for inner in part.values():
                    walk(inner)
            elif isinstance(part, list | tuple | set | deque):
                for inner in part:
                    walk(inner)
            else:
                slots = [name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())]
                for inner in [*getattr(part, "__dict__", {}).values(), *(getattr(part, n, None) for n in slots)]:
                    walk(inner)

    walk(value)
    return found


@contextmanager
def same_chance(seed: int = 0) -> Iterator[None]:
    """Everything random is drawn alike whenever this is entered: by PyTorch, NumPy and Python. Afterwards their
    generators (on all devices) are where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    # torch.manual_seed would leave a seed waiting for GPUs that are not in use yet: another than the user's
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)):
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, without PyTorch's fast paths; modules are back in their own mode afterwards.

    Nothing is compiled either (``torch.compile`` in a forward pass, `flex_attention`): operations are to be seen.
    """
    before = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel would hide what the module computes
    try:
        model.train(training)
        with torch.compiler.set_stance("force_eager"):
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
