"""A deeper student built by its own constructor: the teacher's weights in their places, and what is new in it.

New residual blocks start as nothing (their last factor is zero), all other new layers become the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from n2n_cli.growth.depth.blocks import Blocks, align, new_blocks, under
from n2n_cli.growth.depth.identity import columns, module_of
from n2n_cli.growth.depth.sites import find_sites
from n2n_cli.growth.depth.stack import stack_blocks
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.infer import recorded
from n2n_cli.growth.proof.gap import outputs, relative
from n2n_cli.growth.trace.copies import deep_copy
from n2n_cli.growth.trace.examples import prepared


@dataclass
class Change:
    """What is new in a student, by name.

    ``layers``: modules that become the identity (``sources[name]``: for maxout, the input that each of a layer's
    outputs copies); ``zeros``: parameters that close residual branches; ``blocks``: modules that must pass their input
    on; ``renamed``: the teacher's tensors that have another name in the student, and that name.
    """

    layers: list[str]
    sources: dict[str, Tensor] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def to_stacked(model: nn.Module, student: nn.Module) -> tuple[nn.Module, Change, dict[str, str]]:
    """A constructor's deeper student with the teacher's weights, its new blocks copies of those beside them.

    Arguments and result as those of `to_student`, and of which module each new block is a copy.
    """
    student = deep_copy(student)
    names = _take_over(model, student)
    taken = set(names.values())
    blocks = new_blocks(student, _new(student, taken), taken)
    copied = stack_blocks(student, blocks)
    renamed = {name: to for name, to in names.items() if name != to}
    return student.train(model.training), Change([], blocks=blocks, renamed=renamed), copied


def to_student(model: nn.Module, student: nn.Module, example: Any) -> tuple[nn.Module, Change]:
    """A constructor's deeper student with the teacher's weights, its new branches closed, and what is new in it.

    Args:
        model: the teacher; it is not modified.
        student: what the constructor built; it is not modified either.
        example: an input of both.

    Returns:
        tuple[nn.Module, Change]: a copy of the student on the teacher's device, in its type, its mode, and with its
        ``requires_grad``. Its ``Change.zeros`` are zero; its ``Change.layers`` are as the constructor made them.

    Raises:
        GrowthError: the student does not hold the teacher's layers, has none of its own, or holds a block that cannot
            start as nothing; names the layer.
    """
    student = deep_copy(student)
    names = _take_over(model, student)
    change = _what_is_new(student, example, set(names.values()))
    change.renamed = {name: to for name, to in names.items() if name != to}
    with torch.no_grad():
        for name in change.zeros:
            student.get_parameter(name).zero_()
    return student.train(model.training), change


def _take_over(model: nn.Module, student: nn.Module) -> dict[str, str]:
    """Load the teacher's weights into the student, in place; its tensors' names in the student."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    student.to(reference.device, reference.dtype)
    names = align(model, student)
    ours, theirs = student.state_dict(), model.state_dict()
    student.load_state_dict(ours | {names[name]: tensor for name, tensor in theirs.items() if name in names})
    needs = {names[name]: p.requires_grad for name, p in model.named_parameters() if name in names}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(needs.get(name, parameter.requires_grad))
    return names


def _new(student: nn.Module, taken: set[str]) -> list[str]:
    new = [name for name in student.state_dict() if name not in taken]
    if not new:
        raise GrowthError("the student has no layer that the teacher lacks")
    return new


def _what_is_new(student: nn.Module, example: Any, taken: set[str]) -> Change:
    """The new layers and blocks of a student, whose tensors ``taken`` are the teacher's."""
    new = _new(student, taken)
    change = Change([])
    found = new_blocks(student, new, taken)
    seen, closed = Blocks(recorded(student, example), found, new), set[str]()
    for block in found:
        if block not in closed:
            zeros, covered = seen.closing(block)
            closed |= covered
            change.zeros += zeros
            change.blocks += [block] if zeros else []
    change.zeros = list(dict.fromkeys(change.zeros))
    layers = dict.fromkeys(name.rpartition(".")[0] for name in new)
    change.layers = [name for name in layers if not under(name, closed)]
    if any(_changes_width(student.get_submodule(name)) for name in change.layers):  # of maxout units
        for site in find_sites(student, example):
            source = columns(site.activation, site.channels)
            if source is not None and site.layer in change.layers:
                change.sources[site.layer] = source
    return change


def _changes_width(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.in_features != layer.out_features
    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.in_channels != layer.out_channels


def same_survival_rates(teacher: nn.Module, student: nn.Module) -> None:
    """Give the student the numbers of the teacher's modules without weights, where name and class are the same.

    For the proof: stochastic depth divides by its survival rate, which a deeper constructor spreads over more blocks,
    also when nothing is dropped.
    """
    ours = dict(student.named_modules())
    for name, module in teacher.named_modules():
        twin = ours.get(name)
        if twin is not None and type(twin) is type(module) and not module._modules and not module.state_dict():
            for key, value in vars(module).items():
                if isinstance(value, float) and isinstance(getattr(twin, key, None), float):
                    setattr(twin, key, value)


def check_reached(student: nn.Module, layers: Iterable[str], example: Any) -> None:
    """Raises GrowthError where a new layer has no part in the forward pass; names it."""
    waiting = dict.fromkeys(layers)
    hooks = [
        student.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: waiting.pop(name, None))
        for name in list(waiting)
    ]
    try:
        outputs(student, prepared(student, example), training=False)
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise GrowthError(f"the new layer '{next(iter(waiting))}' was not reached in the forward pass")


def explained(failure: str, student: nn.Module, change: Change, batch: Any) -> str:
    """Why the proof failed: a new layer's activation, or the first new block that changes what passes through it.

    Args:
        failure: what the proof said; it is returned where there is nothing to add.
        student: the student that failed, its new layers calibrated.
        change: what is new in it.
        batch: the input of the proof.
    """
    for site in find_sites(student, batch):
        if site.layer in change.layers and site.activation[0] != "nothing" and module_of(site.activation) is None:
            return f"the new layer '{site.layer}' cannot be an identity: {site.refusal}"
    seen: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            sides = [[t.clone() for t in tree_leaves(v) if isinstance(t, Tensor)][:1] for v in ((args, kwargs), output)]
            seen.append((name, sides[0], sides[1]))

        return hook

    norms: dict[str, list[Tensor]] = {}  # of the new blocks: what each of them gave

    def keep(name: str) -> Any:
        return lambda module, args, output: norms.update({name: [t for t in tree_leaves(output)][:1]})

    hooks = [student.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True) for name in change.blocks]
    hooks += [
        module.register_forward_hook(keep(name))
        for name, module in student.named_modules()
        if under(name, change.blocks) and "norm" in type(module).__name__.lower()
    ]
    try:
        outputs(student, prepared(student, batch), training=False)
    finally:
        for hook in hooks:
            hook.remove()
    for name, entering, leaving in seen:
        if not any(t.any() for t in leaving):
            continue  # a branch that its caller adds
        if [t.shape for t in entering] != [t.shape for t in leaving] or not relative(leaving, entering) < 1e-9:
            last = next((norm for norm, given in norms.items() if under(norm, {name}) and _same(given, leaving)), None)
            if last is not None:
                return f"the new block '{name}' has no zero form: it ends in a norm behind the addition ('{last}')"
            return f"the new block '{name}' changes what passes through it beside its branch: {failure}"
    return failure


def _same(some: list[Any], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
