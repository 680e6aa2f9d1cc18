"""A deeper student built by its own constructor: the teacher's weights in their places, and what is new in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from n2n_cli.growth.blocks import Blocks, align, new_blocks
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.identity import IDEMPOTENT, columns
from n2n_cli.growth.prove import outputs, prepared, relative
from n2n_cli.growth.record import copied, record
from n2n_cli.growth.rules import rule_for
from n2n_cli.growth.sites import find_sites


@dataclass
class Change:
    """What is new in a student, by name.

    ``layers``: modules that become the identity (``sources[name]``: the inputs that a maxout layer's outputs copy);
    ``zeros``: parameters that close residual branches; ``blocks``: modules that must pass their input on;
    ``renamed``: the teacher's tensors that have another name.
    """

    layers: list[str]
    sources: dict[str, Tensor] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def to_student(model: nn.Module, student: nn.Module, example: Any) -> tuple[nn.Module, Change]:
    """A constructor's deeper student with the teacher's weights, and what is new in it."""
    student = copied(student)
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    student.to(reference.device, reference.dtype)
    names = align(model, student)
    ours, theirs = student.state_dict(), model.state_dict()
    student.load_state_dict(ours | {names[name]: tensor for name, tensor in theirs.items() if name in names})
    needs = {names[name]: p.requires_grad for name, p in model.named_parameters() if name in names}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(needs.get(name, parameter.requires_grad))
    taken = set(names.values())
    new = [name for name in ours if name not in taken]
    if not new:
        raise GrowthError("the student has no layer that the teacher lacks")
    change = Change([], renamed={name: to for name, to in names.items() if name != to})
    found = new_blocks(student, new, taken)
    recording = record(student, prepared(student, example), lambda f: rule_for(f) is not None, training=True)
    seen, closed = Blocks(recording, found, new), set[str]()
    for block in found:
        if block not in closed:
            zeros, covered = seen.closing(block)
            closed |= covered
            change.zeros += zeros
            change.blocks += [block] if zeros else []
    change.zeros = list(dict.fromkeys(change.zeros))
    layers = dict.fromkeys(name.rpartition(".")[0] for name in new)
    change.layers = [name for name in layers if not any(f"{name}.".startswith(f"{block}.") for block in closed)]
    sizes = [(name, student.get_submodule(name)) for name in change.layers]
    if any(isinstance(m, nn.Linear) and m.in_features != m.out_features for _, m in sizes) or any(
        isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) and m.in_channels != m.out_channels for _, m in sizes
    ):  # of maxout units
        for site in find_sites(student, example):
            source = columns(site.activation, site.channels)
            if source is not None and site.layer in change.layers:
                change.sources[site.layer] = source
    return student, change


def same_rates(teacher: nn.Module, student: nn.Module) -> None:
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


def explained(failure: str, student: nn.Module, change: Change, batch: Any) -> str:
    """Why the proof failed: a new layer's activation, or the first new block that changes what passes through it."""
    for site in find_sites(student, batch):
        if site.layer in change.layers and site.activation[0] not in (*IDEMPOTENT, "nothing"):
            return f"the new layer '{site.layer}' cannot be an identity: {site.refusal}"
    seen: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            sides = [[t.clone() for t in tree_leaves(v) if isinstance(t, Tensor)][:1] for v in ((args, kwargs), output)]
            seen.append((name, sides[0], sides[1]))

        return hook

    hooks = [student.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True) for name in change.blocks]
    try:
        outputs(student, prepared(student, batch), training=False)
    finally:
        for hook in hooks:
            hook.remove()
    for name, entering, leaving in seen:
        if not any(t.any() for t in leaving):
            continue  # a branch that its caller adds
        if [t.shape for t in entering] != [t.shape for t in leaving] or not relative(leaving, entering) < 1e-9:
            return f"the new block '{name}' changes what passes through it beside its branch: {failure}"
    return failure
