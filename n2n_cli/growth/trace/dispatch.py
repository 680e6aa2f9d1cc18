"""What stands between a model and PyTorch's operations: recording, running without chance, running in fp64.

``TorchDispatchMode`` is semi-public in PyTorch; this file is the only one that subclasses it. What is known of single
operations comes from outside, as `Known` (the table in ``groups/operations``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from n2n_cli.growth.errors import GrowthError

NARROW = {torch.float32, torch.float16, torch.bfloat16}
"""Floating-point types that fp64 is wider than."""


class Known(Protocol):
    """What the dispatch modes ask about an operation; ``func`` is an ``OpOverload``."""

    def stays_whole(self, func: Any) -> bool:
        """Whether the operation is recorded as it is, and not as the smaller ones that it consists of."""

    def on_meta(self, func: Any) -> Callable[..., Any] | None:
        """A cheaper way to the shapes of its result on meta tensors."""

    def without_chance(self, func: Any) -> Callable[..., Any] | None:
        """What stands for it where nothing may be drawn: called with ``(func, args, kwargs)``."""

    def writes(self, func: Any) -> tuple[int, ...]:
        """The arguments that it writes although its schema does not say so."""


class ReadsTheOriginal(GrowthError):
    """A copy of a network computes with the weights of the network that it was copied from."""


class Recorder(TorchDispatchMode):
    """Calls ``visit(func, args, kwargs, outputs)`` after every operation; those that ``known`` has no row for are
    replaced by the smaller operations that they consist of, where PyTorch can do so.

    ``strangers``: ``id`` of tensors that nothing may read, with their names. ``reshaped(tensor, before)``: an operation
    gives its own argument another shape (``squeeze_``); ``before`` stands for what it was.

    Raises:
        ReadsTheOriginal: before an operation that would read one.
    """

    supports_higher_order_operators = True

    def __init__(
        self,
        known: Known,
        visit: Callable[[Any, tuple[Any, ...], dict[str, Any], list[Tensor]], None],
        strangers: Mapping[int, str],
        reshaped: Callable[[Tensor, Tensor], None],
    ) -> None:
        super().__init__()
        self.known, self.visit, self.strangers, self.reshaped = known, visit, strangers, reshaped

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        stranger = next((name for t in tree_leaves((args, kwargs)) if (name := self.strangers.get(id(t)))), None)
        if stranger is not None:
            raise ReadsTheOriginal(
                f"'{stranger}' is read from the network itself, not from its copy: a function that it holds (a lambda, "
                "a wrapped forward, a hook) refers to it; use a method instead"
            )
        if not self.known.stays_whole(func) and isinstance(func, torch._ops.OpOverload):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        shortcut = self.known.on_meta(func)
        first = args[0] if args else None
        shape = first.shape if isinstance(first, Tensor) else torch.Size()
        if shortcut is not None and isinstance(first, Tensor) and first.is_meta:
            result = shortcut(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if isinstance(first, Tensor) and first.shape != shape:
            before = torch.empty(shape, dtype=first.dtype, device="meta")
            self.reshaped(first, before)
            args = (before, *args[1:])
        self.last = outputs  # keeps results alive: PyTorch's C++ factories act otherwise when nobody refers to them
        self.visit(func, args, kwargs, outputs)
        return result


class WritesWeights(RuntimeError):
    """The forward pass changes a parameter in place."""


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """The memory that tensors lie in, by address; empty and meta tensors have none."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_meta and tensor.numel()}


def _guard(func: Any, args: tuple[Any, ...], guarded: set[int], silently: tuple[int, ...] = ()) -> None:
    if guarded and isinstance(func, torch._ops.OpOverload) and (silently or func._schema.is_mutable):
        for at, (argument, value) in enumerate(zip(func._schema.arguments, args, strict=False)):
            written = at in silently or (argument.alias_info is not None and argument.alias_info.is_write)
            if written and isinstance(value, Tensor) and storages([value]) & guarded:
                raise WritesWeights


class WithoutChance(TorchDispatchMode):
    """Turns dropout and stochastic depth off, wherever they are written: a proof compares functions.

    Raises WritesWeights before a tensor whose storage is ``guarded`` is changed.
    """

    supports_higher_order_operators = True

    def __init__(self, known: Known, guarded: set[int] | None = None) -> None:
        super().__init__()
        self.known, self.guarded = known, guarded or set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        _guard(func, args, self.guarded, self.known.writes(func))
        instead = self.known.without_chance(func)
        return func(*args, **kwargs) if instead is None else instead(func, args, kwargs)


class InDouble(TorchDispatchMode):
    """Arithmetic in fp64 on a model of less precision, whose weights are widened when an operation reads them.

    ``weights`` maps ``id`` of a parameter to a function that makes what stands for it; it is called anew at each
    reading, so that no second copy of the network exists.
    """

    supports_higher_order_operators = True

    def __init__(self, weights: Mapping[int, Callable[[], Tensor]], guarded: set[int]) -> None:
        super().__init__()
        self.weights, self.guarded = weights, guarded

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _guard(func, args, self.guarded)
        args, kwargs = tree_map(self._widened, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.weights:
                return self.weights[id(value)]()
            return value.double() if value.dtype in NARROW else value
        return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
