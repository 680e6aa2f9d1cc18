"""A remapping carried out: every parameter and buffer re-indexed, every number in a module following."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth.axes import Axis, Group, resolve
from n2n_cli.growth.infer import Structure
from n2n_cli.growth.plan import Remapping
from n2n_cli.growth.record import copied, named_buffers


@dataclass
class AxisMap:
    """Positions of a grown axis: ``index`` into the teacher's, ``copies`` of each, ``first`` copy or not."""

    index: Tensor
    copies: Tensor
    first: Tensor


def axis_map(axis: Axis, mappings: Mapping[Group, Remapping]) -> AxisMap | None:
    """The position mapping of an axis, or None if it does not grow.

    On a concatenation the runs follow each other, each offset by the teacher widths before it.
    """
    runs = resolve(axis)
    if not any(group in mappings for group, _ in runs):
        return None
    index, copies, first, offset = [], [], [], 0
    for group, k in runs:
        mapping = mappings.get(group)
        units = mapping.index if mapping else torch.arange(group.n)
        each = mapping.copies if mapping else torch.ones(group.n, dtype=torch.long)
        index.append((offset + units[:, None] * k + torch.arange(k)).flatten())
        copies.append(each.repeat_interleave(k))
        first.append((torch.arange(len(units)) < group.n).repeat_interleave(k))
        offset += group.n * k
    return AxisMap(torch.cat(index), torch.cat(copies), torch.cat(first))


def grow_tensor(name: str, tensor: Tensor, structure: Structure, maps: list[AxisMap | None]) -> Tensor:
    """``U[o, c] = W[g_out(o), g_in(c)] / r_in(c)``, on as many axes as the tensor has (paper section 2.3)."""
    for dim, axis in enumerate(maps):
        if axis is None:
            continue
        tensor = tensor.index_select(dim, axis.index.to(tensor.device))
        if (name, dim) in structure.consumed:
            shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
            tensor = tensor / axis.copies.to(tensor.device, tensor.dtype).view(shape)
    return tensor


def add_noise(
    name: str,
    tensor: Tensor,
    structure: Structure,
    maps: list[AxisMap | None],
    size: float,
    generator: torch.Generator,
) -> Tensor:
    """Noise of ``size`` times the weight's own standard deviation, on all but the first copy of each unit."""
    rows = [d for d, axis in enumerate(maps) if axis is not None and (name, d) not in structure.consumed]
    if tensor.ndim < 2 or not tensor.is_floating_point() or not rows:
        return tensor
    later = torch.zeros(tensor.shape, dtype=torch.bool)
    for dim in rows:
        axis = maps[dim]
        assert axis is not None
        later |= ~axis.first.view([-1 if d == dim else 1 for d in range(tensor.ndim)])
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * later
    return tensor + (size * tensor.std() * noise.to(tensor.device)).to(tensor.dtype)


def grow_state(
    model: nn.Module,
    structure: Structure,
    mappings: Mapping[Group, Remapping],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Every parameter and buffer of the student, by name; no storage is shared with the teacher."""
    generator = torch.Generator().manual_seed(seed + 0x5EED)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *named_buffers(model)]:
            if structure.aliases[name] != name:
                continue
            maps = [axis_map(axis, mappings) for axis in structure.axes[name]]
            grown = grow_tensor(name, tensor.detach(), structure, maps)
            if noise:
                grown = add_noise(name, grown, structure, maps, noise, generator)
            state[name] = grown.clone() if grown.data_ptr() == tensor.data_ptr() else grown
    return state


def with_state(model: nn.Module, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> nn.Module:
    """A copy of ``model`` of the same class that holds ``state``; tied tensors stay tied."""
    memo: dict[int, Any] = {}
    made: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *named_buffers(model)]:
        first = aliases[name]
        if first not in made:
            made[first] = (
                nn.Parameter(state[first], requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else state[first]
            )
        memo[id(tensor)] = made[first]  # deepcopy takes these for the copies, so nothing is copied twice
    return copied(model, memo)


Attributes = dict[str, dict[str, Any]]


def follow(model: nn.Module, structure: Structure, mappings: Mapping[Group, Remapping]) -> Attributes:
    """Numbers that modules hold about their own widths, and what they become: {module path: {attribute: value}}.

    The layers of ``torch.nn`` by their documented attributes; any other module by the sizes that its own
    operations saw change, where its attribute equals the old size.
    """
    out: Attributes = {}
    shape = {
        name: [
            len(m.index) if (m := axis_map(axis, mappings)) else sum(g.n * k for g, k in resolve(axis)) for axis in axes
        ]
        for name, axes in structure.axes.items()
    }
    for path, module in model.named_modules():
        own = {n: structure.aliases[f"{path}.{n}" if path else n] for n, _ in module.named_parameters(recurse=False)}
        own |= {n: structure.aliases[f"{path}.{n}" if path else n] for n, _ in module.named_buffers(recurse=False)}
        new = _documented(module, {n: shape[full] for n, full in own.items()}, structure, own)
        changed = {k: v for k, v in new.items() if getattr(module, k, v) != v}
        if changed:
            out[path] = changed
    for path, changes in _seen_by_operations(model, structure, mappings).items():
        for attribute, value in changes.items():
            out.setdefault(path, {}).setdefault(attribute, value)
    return out


def _documented(
    module: nn.Module, shapes: dict[str, list[int]], structure: Structure, own: dict[str, str]
) -> dict[str, Any]:
    weight = shapes.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        groups = module.groups
        if structure.whole_groups.get(own["weight"]):
            groups = weight[0] * groups // (module.in_channels if module.transposed else module.out_channels)
        a, b = weight[0], weight[1] * groups
        ins, outs = (a, b) if module.transposed else (b, a)
        return {"in_channels": ins, "out_channels": outs, "groups": groups}
    if isinstance(module, nn.Linear) and weight:
        return {"in_features": weight[1], "out_features": weight[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        size = weight or shapes.get("running_mean")
        return {"num_features": size[0]} if size else {}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight:
        return {"normalized_shape": tuple(weight)}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.Embedding) and weight:
        return {"embedding_dim": weight[1]}
    if isinstance(module, nn.PReLU) and weight:
        return {"num_parameters": weight[0]}
    return {}


def _seen_by_operations(model: nn.Module, structure: Structure, mappings: Mapping[Group, Remapping]) -> Attributes:
    modules = dict(model.named_modules())
    seen: dict[str, dict[int, set[int]]] = {}
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops:
            sizes = seen.setdefault(op.path, {})
            for tensor in [*op.outputs, *(a for a in op.args if isinstance(a, Tensor))]:
                for axis in labels.get(id(tensor), []):
                    runs = resolve(axis)
                    old = sum(g.n * k for g, k in runs)
                    new = sum((len(mappings[g].index) if g in mappings else g.n) * k for g, k in runs)
                    sizes.setdefault(old, set()).add(new)
    out: Attributes = {}
    for path, sizes in seen.items():
        module = modules[path]
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, nn.MultiheadAttention):
            continue
        for attribute, value in vars(module).items():
            if type(value) is int and not attribute.startswith("_"):
                became = sizes.get(value, {value}) - {value}
                if len(became) == 1:
                    out.setdefault(path, {})[attribute] = became.pop()
    return out


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    modules = dict(model.named_modules())
    for path, values in attributes.items():
        for attribute, value in values.items():
            setattr(modules[path], attribute, tuple(value) if isinstance(value, list) else value)


def reshape(model: nn.Module, shapes: Mapping[str, list[int]], attributes: Attributes) -> nn.Module:
    """``model`` with parameters and buffers of new shapes (zeros) and attributes to match: a lineage replayed."""
    aliases: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *named_buffers(model)]:
        aliases[name] = first.setdefault(id(tensor), name)
        if aliases[name] == name:
            state[name] = tensor.detach().new_zeros(shapes.get(name, tensor.shape))
    student = with_state(model, state, aliases)
    set_attributes(student, attributes)
    return student
