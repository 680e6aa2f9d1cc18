"""One forward pass, written down: the list of operations that a model performs, with the tensors themselves.

The pass runs on meta tensors (no arithmetic, no memory), in inference mode so that composite operations such
as ``linear`` or ``layer_norm`` arrive whole, once in train mode (auxiliary heads speak only there) and once in
eval mode. The model's parameters, buffers, mode and the random state are left as they were. Data-dependent
control flow cannot run on meta tensors; such a model is recorded on its real tensors instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from n2n_cli.growth.errors import GrowthError, first_line, kind_of
from n2n_cli.growth.trace.calls import call, in_mode, leaves, module_path, same_chance
from n2n_cli.growth.trace.copies import slots, twin
from n2n_cli.growth.trace.dispatch import Known, Recorder, WithoutChance
from n2n_cli.growth.trace.examples import PROOF_SAMPLES, first_samples, that_runs


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
        return str(getattr(self.func, "overloadpacket", self.func).__name__)

    def __str__(self) -> str:
        return f"{self.name} at {self.path or 'the top module'}"

    def tensors(self) -> list[Tensor]:
        """The tensors among its arguments, in their order."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword; what equals its default is left out by PyTorch."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)


@dataclass
class Recording:
    """The operations of one pass; ``tensors`` maps ``id`` of every parameter and buffer to its name.

    ``data``: the pass ran on real tensors, so that which operations it performs may depend on the input.
    """

    ops: list[Op]
    tensors: dict[int, str]
    inputs: list[Tensor]
    outputs: list[Tensor]
    data: bool
    training: bool
    example: Any
    keep: list[Any] = field(default_factory=list)  # keeps ids unique for as long as the recording lives


On = Literal["meta", "real", "without chance"]
"""What a pass runs on: meta tensors; clones of the model's own; or such clones with nothing drawn at random."""


def record(model: nn.Module, example_input: Any, known: Known, *, training: bool) -> Recording:
    """Record one pass of ``model`` in train or eval mode. ``known``: the table of operations.

    Raises:
        GrowthError: the model cannot run on the example input; names the module where it stopped.
    """
    ops: list[Op] = []
    try:
        return run(model, example_input, known, ops.append, training=training, on="meta", ops=ops)
    except GrowthError:
        raise
    except Exception:  # whatever a model may raise on tensors without data
        ops.clear()
        try:
            return run(model, example_input, known, ops.append, training=training, on="real", ops=ops)
        except Exception as error:
            where = getattr(error, "_n2n_where", "")
            last = f" after {ops[-1].name}" if ops else ""
            raise kind_of(error)(
                f"cannot record {type(model).__name__} in {'train' if training else 'eval'} mode: "
                f"{type(error).__name__} in module '{where}'{last}: {first_line(error)}"
            ) from error


def _as_it_was(ops: list[Op], tensor: Tensor, before: Tensor) -> None:
    """Put ``before`` in the place of a tensor in all recorded operations: it gets another shape from now on."""

    def one(leaf: Any) -> Any:
        return before if leaf is tensor else leaf

    for op in ops:
        op.args, op.kwargs = tree_map(one, op.args), tree_map(one, op.kwargs)
        op.outputs = [one(out) for out in op.outputs]


def record_all(model: nn.Module, example: Any, known: Known, samples: int = PROOF_SAMPLES) -> list[Recording]:
    """One pass in train mode and one in eval mode; where the way through the code may depend on the data, also the
    other ways that are taken if the inputs are negated, or multiplied by 100 or by 0.01.

    The first few ``samples`` of the example stand for all of it where the network does the same with them. What it was
    recorded on (two samples where it does not take one, for example) is each recording's ``example``.

    Raises:
        GrowthError: see `record`.
    """
    recordings = that_runs(lambda batch: _both_modes(model, batch, known), example)
    whole = recordings[0].example
    few = first_samples(whole, samples)
    if few is not whole:
        with suppress(GrowthError):
            short = _both_modes(model, few, known)
            if all(_alike(a, b) for a, b in zip(recordings, short, strict=True)):
                recordings = short
    if not recordings[0].data:
        return recordings
    seen = [_way(recording) for recording in recordings]
    for factor in (-1.0, 100.0, 0.01):
        other = tree_map(
            lambda t: t * factor if isinstance(t, Tensor) and t.is_floating_point() else t,  # noqa: B023
            recordings[0].example,
        )
        for training in (True, False):
            try:
                recording = record(model, other, known, training=training)
            except GrowthError:  # the model does not take such inputs
                continue
            if _way(recording) not in seen:
                seen.append(_way(recording))
                recordings.append(recording)
    return recordings


def _both_modes(model: nn.Module, example: Any, known: Known) -> list[Recording]:
    return [record(model, example, known, training=training) for training in (True, False)]


def _way(recording: Recording) -> list[tuple[str, str]]:
    return [(op.name, op.path) for op in recording.ops]


def _alike(whole: Recording, few: Recording) -> bool:
    """Whether the same operations ran, and nothing but the number of samples is different: each axis is as long as
    before, or in proportion to the samples."""
    n, m = (leaves(recording.example)[0].shape[0] for recording in (whole, few))
    return _way(whole) == _way(few) and all(
        len(a) == len(b) and all(p == q or p * m == q * n for p, q in zip(a, b, strict=True))
        for one, other in zip(whole.ops, few.ops, strict=True)
        for a, b in zip((t.shape for t in one.outputs), (t.shape for t in other.outputs), strict=True)
    )


def run(
    model: nn.Module,
    example_input: Any,
    known: Known,
    visit: Callable[[Op], None],
    *,
    training: bool,
    on: On,
    ops: list[Op] | None = None,
) -> Recording:
    """One pass of ``model`` that shows every operation to ``visit`` right after it ran.

    What the model raises comes through, marked with the module's path (``_n2n_where``).
    """

    def stand_in(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta") if on == "meta" else tensor.detach().clone()

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(same_chance())
        originals = {id(tensor): name for name, tensor in slots(model)}
        model, state = twin(model, lambda _, tensor: stand_in(tensor))
        stack.enter_context(in_mode(model, training))
        example = tree_map(lambda t: stand_in(t) if isinstance(t, Tensor) else t, example_input)
        where = stack.enter_context(module_path(model))
        if on == "without chance":
            stack.enter_context(WithoutChance(known))
        recorder = Recorder(
            known,
            lambda func, args, kwargs, out: visit(Op(func, args, kwargs, out, where())),
            originals,
            partial(_as_it_was, [] if ops is None else ops),
        )
        try:
            with recorder:
                result = call(model, example)
        except Exception as error:
            error._n2n_where = where()  # type: ignore[attr-defined]
            raise
    tensors: dict[int, str] = {}
    for name, tensor in state.items():
        tensors.setdefault(id(tensor), name)
    return Recording(
        ops or [], tensors, leaves(example), leaves(result), on != "meta", training, example_input,
        [model, example, result],
    )  # fmt: skip
