"""The inputs that a network is recorded and proved on: as given, unless it takes only others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.trace.calls import leaves
from n2n_cli.growth.trace.copies import named_tensors

PROOF_SAMPLES = 4
"""Samples of a batch that are recorded and proved, where the network treats more of them alike."""

Found = TypeVar("Found")


def check_model(model: Any, seed: Any = 0, *, meta: bool = False) -> None:
    """What a library's user may get wrong before anything runs.

    Raises:
        GrowthError: the model is no module, holds no values (unless ``meta`` tensors serve), or the seed is no seed.
    """
    if not isinstance(model, nn.Module):
        raise GrowthError(f"the network is of type {type(model).__name__}: expected a torch.nn.Module")
    if "_modules" not in vars(model):
        raise GrowthError(f"{type(model).__name__}.__init__ does not call super().__init__()")
    if isinstance(model, torch.jit.ScriptModule):
        raise GrowthError(
            f"{type(model).__name__} is TorchScript, which hides its operations: grow the module that it was made of"
        )
    lazy = next((n for n, t in named_tensors(model) if nn.parameter.is_lazy(t)), None)
    if lazy is not None:
        raise GrowthError(f"'{lazy}' is lazy and has no shape yet: run the network once before")
    empty = next((n for n, t in named_tensors(model) if t.is_meta), None)
    if empty is not None and not meta:
        raise GrowthError(f"'{empty}' is on the meta device: a network to grow has values")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise GrowthError(f"seed is {seed!r}: expected a whole number from 0 to 2**63 - 1")


def examples_of(model: nn.Module, example_input: Any) -> list[Any]:
    """The examples (a list is several, each recorded and proved), on the model's device and in its type.

    Raises:
        GrowthError: there is none, or one holds a tensor that no network can be recorded on.
    """
    given = example_input if isinstance(example_input, list) else [example_input]
    if not given:
        raise GrowthError("example_input is an empty list: expected one example, or several")
    return [prepared(model, one) for one in given]


def prepared(model: nn.Module, batch: Any) -> Any:
    """The batch on the model's device and in its type.

    Raises:
        GrowthError: a tensor of it is sparse, nested, or on the meta device though the model is not.
    """
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_nested or leaf.layout != torch.strided:
            kind = "nested" if leaf.is_nested else str(leaf.layout).removeprefix("torch.")
            raise GrowthError(f"the example input holds a {kind} tensor: expected dense ones")
        if leaf.is_meta and not reference.is_meta:
            raise GrowthError("the example input is on the meta device: expected tensors with values")
        return leaf.to(reference.device, reference.dtype) if leaf.is_floating_point() else leaf.to(reference.device)

    return tree_map(one, batch)


def first_samples(batch: Any, samples: int = PROOF_SAMPLES) -> Any:
    """The first few samples of a batch. One whose tensors disagree on how many there are (the nodes of a graph and its
    edges) is returned as it is: nobody knows what else would have to be cut."""
    sizes = {t.shape[0] for t in leaves(batch) if t.ndim} - {1}
    if len(sizes) != 1 or max(sizes) <= samples:
        return batch
    return tree_map(lambda t: t[:samples] if isinstance(t, Tensor) and t.ndim else t, batch)


def paired(batch: Any) -> Iterator[Any]:
    """A batch of one sample as two, for batch norm: its first tensor and its mirror image, the others repeated where
    they are one as well, or else left alone."""
    tensors = leaves(batch)
    if not tensors or not tensors[0].ndim or tensors[0].shape[0] != 1:
        return
    for others in (True, False):

        def twice(leaf: Any, others: bool = others) -> Any:
            if leaf is tensors[0]:
                return torch.cat([leaf, leaf.flip(-1)])
            alone = isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == 1
            return torch.cat([leaf, leaf]) if others and alone else leaf

        yield tree_map(twice, batch)


def that_runs(run: Callable[[Any], Found], batch: Any) -> Found:
    """``run`` on the batch as it is, or, where it refuses a single sample, on two (`paired`).

    Raises:
        GrowthError: it runs on neither; that of the batch as it is.
    """
    try:
        return run(batch)
    except GrowthError as refusal:
        for pair in paired(batch):
            try:
                return run(pair)
            except GrowthError:
                continue
        raise refusal
