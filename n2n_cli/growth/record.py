"""One forward pass, written down: the list of operations that a model performs, with the tensors themselves.

The pass runs on meta tensors (no arithmetic, no memory), in inference mode so that composite operations such
as ``linear`` or ``layer_norm`` arrive whole, once in train mode (auxiliary heads speak only there) and once in
eval mode. The model's parameters, buffers, mode and the random state are left as they were. Data-dependent
control flow cannot run on meta tensors; such a model is recorded on its real tensors instead.

``TorchDispatchMode`` is semi-public in PyTorch; this file is the only one that subclasses it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from n2n_cli.growth.errors import GrowthError


@dataclass
class Op:
    """One operation: what ran, on what, with what result, inside which module (dotted path)."""

    func: Any  # an OpOverload, for example torch.ops.aten.conv2d.default
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    path: str

    @property
    def name(self) -> str:
        return str(self.func.overloadpacket.__name__)

    def __str__(self) -> str:
        return f"{self.name} at {self.path or 'the top module'}"


@dataclass
class Recording:
    """The operations of one pass; ``tensors`` maps ``id`` of every parameter and buffer to its name."""

    ops: list[Op]
    tensors: dict[int, str]
    inputs: list[Tensor]
    outputs: list[Tensor]
    device: str  # "meta" or "real"
    training: bool
    example: Any
    keep: list[Any] = field(default_factory=list)  # keeps ids unique for as long as the recording lives


class _Recorder(TorchDispatchMode):
    def __init__(self, whole: Callable[[Any], bool], where: Callable[[], str], visit: Callable[[Op], None]) -> None:
        super().__init__()
        self.whole, self.where, self.visit = whole, where, visit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.whole(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func.overloadpacket.__name__ == "batch_norm" and args[0].is_meta:
            result = torch.empty_like(args[0])  # what PyTorch works out in Python takes half of all the time
        else:
            result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.last = outputs  # what factories do in C++ depends on whether somebody holds their result
        self.visit(Op(func, args, kwargs, outputs, self.where()))
        return result


class WritesWeights(RuntimeError):
    """The forward pass changes a parameter in place."""


def storages(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_meta and tensor.numel()}


def _guard(func: Any, args: tuple[Any, ...], guarded: set[int]) -> None:
    if guarded and func._schema.is_mutable:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and storages([value]) & guarded:
                raise WritesWeights


class NoRandom(TorchDispatchMode):
    """Turns dropout and stochastic depth off, wherever they are written: a proof compares functions.

    Raises WritesWeights before a tensor whose storage is ``guarded`` is changed.
    """

    def __init__(self, guarded: set[int] | None = None) -> None:
        super().__init__()
        self.guarded = guarded or set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        _guard(func, args, self.guarded)
        name = func.overloadpacket.__name__
        if name in {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}:
            return args[0]
        if name in {"dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_"}:
            return args[0]
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name == "bernoulli_":  # its mean, which stochastic depth divides by again
            p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return args[0].copy_(p) if isinstance(p, Tensor) else args[0].fill_(p)
        if name == "bernoulli":
            p = args[1] if len(args) > 1 else kwargs.get("p")
            return args[0].clone() if p is None else torch.full_like(args[0], p)
        if name == "scaled_dot_product_attention":
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        return func(*args, **kwargs)


class InDouble(TorchDispatchMode):
    """Arithmetic in fp64 on a model of less precision, whose weights are widened when an operation reads them.

    ``weights`` maps ``id`` of a parameter to what stands for it; it is made anew at each reading, so that no second
    copy of the network exists.
    """

    def __init__(self, weights: Mapping[int, Callable[[], Tensor]], guarded: set[int]) -> None:
        super().__init__()
        self.weights, self.guarded = weights, guarded

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        _guard(func, args, self.guarded)
        args, kwargs = tree_map(self._wide, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.weights:
                return self.weights[id(value)]()
            return value.double() if value.dtype in NARROW else value
        return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


NARROW = {torch.float32, torch.float16, torch.bfloat16}


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


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in train or eval mode, and every module back in its own mode afterwards."""
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


def call(model: Callable[..., Any], example_input: Any) -> Any:
    """``model(example)``; a tuple is several arguments, a dict keyword arguments."""
    if isinstance(example_input, dict):
        return model(**example_input)
    return model(*example_input) if isinstance(example_input, tuple | list) else model(example_input)


def at_least_two(tensor: Tensor) -> Tensor:
    """Batch norm in train mode needs two samples."""
    return tensor if tensor.ndim == 0 or tensor.shape[0] != 1 else torch.cat([tensor, tensor.flip(-1)])


def record(model: nn.Module, example_input: Any, whole: Callable[[Any], bool], *, training: bool) -> Recording:
    """Record one pass of ``model``. ``whole(func)`` tells which operations must not be decomposed.

    Raises:
        GrowthError: the model cannot run on the example input; names the module where it stopped.
    """
    ops: list[Op] = []
    try:
        return trace(model, example_input, whole, ops.append, training=training, device="meta", ops=ops)
    except GrowthError:
        raise
    except Exception:  # whatever a model may raise on tensors without data
        ops.clear()
        try:
            return trace(model, example_input, whole, ops.append, training=training, device="real", ops=ops)
        except Exception as error:
            where = getattr(error, "_n2n_where", "")
            text = str(error).strip().splitlines() or [type(error).__name__]
            last = f" after {ops[-1].name}" if ops else ""
            raise GrowthError(
                f"cannot record {type(model).__name__} in {'train' if training else 'eval'} mode: "
                f"{type(error).__name__} in module '{where}'{last}: {text[0]}"
            ) from error


def trace(
    model: nn.Module,
    example_input: Any,
    whole: Callable[[Any], bool],
    visit: Callable[[Op], None],
    *,
    training: bool,
    device: str,
    ops: list[Op] | None = None,
) -> Recording:
    """One pass of ``model`` that shows every operation to ``visit`` right after it ran.

    ``device`` is "meta" (shapes alone), "real" (on clones of the model's tensors) or "still" (real, and with dropout
    and stochastic depth off, as in a proof). What the model raises comes through, marked with the module's path.
    """

    def double(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta") if device == "meta" else tensor.detach().clone()

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        model, state = twin(model, lambda _, tensor: double(tensor))
        stack.enter_context(mode(model, training))
        prepare = (lambda t: double(at_least_two(t))) if training else double
        example = tree_map(lambda t: prepare(t) if isinstance(t, Tensor) else t, example_input)
        where = stack.enter_context(module_path(model))
        if device == "still":
            stack.enter_context(NoRandom())
        try:
            with _Recorder(whole, where, visit):
                result = call(model, example)
        except Exception as error:
            error._n2n_where = where()  # type: ignore[attr-defined]
            raise
    tensors: dict[int, str] = {}
    for name, tensor in state.items():
        tensors.setdefault(id(tensor), name)
    inputs = leaves(example)
    return Recording(
        ops or [], tensors, inputs, leaves(result), device, training, example_input, [model, example, result]
    )


def twin(model: nn.Module, double: Callable[[str, Tensor], Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the modules around ``double(name, tensor)`` for every parameter and buffer, and these by name.

    What the copy's ``forward`` leaves behind (caches, counters) the model itself never sees.
    """
    memo: dict[int, Any] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in slots(model):
        if id(tensor) not in memo:
            other = double(name, tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(other, requires_grad=False) if is_parameter else other
        state[name] = memo[id(tensor)]
    return copied(model, memo), state


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


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; activations that modules remember are copied without their history.

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
    except (RuntimeError, TypeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise GrowthError(f"{type(model).__name__} cannot be copied: {text}") from error


def named_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.named_buffers(remove_duplicate=False))


def slots(model: nn.Module, *, buffers_only: bool = False) -> list[tuple[str, Tensor]]:
    """Every place that holds a tensor, once: a tied tensor has several places, a shared module is one.

    ``functional_call`` swaps by name; naming the places of a shared module twice would leave it swapped.
    """
    found: list[tuple[str, Tensor]] = []
    for path, module in model.named_modules():
        held = [] if buffers_only else [*module._parameters.items()]
        for name, tensor in [*held, *module._buffers.items()]:
            if tensor is not None:
                found.append((f"{path}.{name}" if path else name, tensor))
    return found
