"""A remapping carried out: every parameter and buffer re-indexed, weights divided among copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.growth import heads, norms
from n2n_cli.growth.attributes import Attributes, set_attributes
from n2n_cli.growth.axes import Axis, Group, Run, resolve
from n2n_cli.growth.infer import Structure
from n2n_cli.growth.plan import Remapping
from n2n_cli.growth.record import copied, named_buffers


@dataclass
class AxisMap:
    """Positions of a grown axis: ``index`` into the teacher's, ``copies`` of each, ``first`` copy or not.

    ``value`` is what a position holds, relative to the teacher's position that it copies (None: 1 everywhere);
    ``share`` what its reader's weight is multiplied by (None: divided by ``copies``); ``means`` the blocks
    (start, stop, teacher's start, units, k) whose positions hold the mean over a group's units.
    """

    index: Tensor
    copies: Tensor
    first: Tensor
    value: Tensor | None
    share: Tensor | None
    means: list[tuple[int, int, int, int, int]]
    own: int = 0  # so many positions in front are the teacher's first, in order
    idle: Tensor | None = None  # positions that hold something of their own, which nobody reads (see `shuffles`)


def axis_map(axis: Axis, mappings: Mapping[Group, Remapping]) -> AxisMap | None:
    """The position mapping of an axis, or None if it does not grow.

    On a concatenation the runs follow each other, each offset by the teacher widths before it.
    """
    runs = resolve(axis)
    if not any(group in mappings for group, _ in runs):
        return None
    index, copies, first, value, share, idle = [], [], [], [], [], []
    means: list[tuple[int, int, int, int, int]] = []
    offset = at = 0
    for group, k in runs:
        mapping = mappings.get(group) or Remapping(torch.arange(group.n), torch.ones(group.n, dtype=torch.long))
        held, read = held_and_read(mapping, group.n)
        if mapping.kind == "mean":
            means.append((at + group.n * k, at + len(mapping.index) * k, offset, group.n, k))
        index.append((offset + mapping.index[:, None] * k + torch.arange(k)).flatten())
        copies.append(mapping.copies.repeat_interleave(k))
        first.append(first_copies(mapping.index).repeat_interleave(k))
        value.append(held.repeat_interleave(k))
        share.append(read.repeat_interleave(k))
        none = torch.zeros(len(mapping.index), dtype=torch.bool)
        idle.append((none if mapping.idle is None else mapping.idle).repeat_interleave(k))
        offset += group.n * k
        at += len(mapping.index) * k
    plain = all(g not in mappings or (mappings[g].kind == "copy" and mappings[g].idle is None) for g, _ in runs)
    positions = torch.cat(index)
    return AxisMap(
        positions,
        torch.cat(copies),
        torch.cat(first),
        None if plain else torch.cat(value),
        None if plain else torch.cat(share),
        means,
        int((positions == torch.arange(len(positions))).cumprod(0).sum()),
        None if plain else torch.cat(idle),
    )


Maps = dict[str, list[AxisMap | None]]  # tensor name -> the map of each of its axes


def all_maps(structure: Structure, mappings: Mapping[Group, Remapping]) -> Maps:
    """The position mappings of every parameter and buffer; axes that grow alike share one."""
    one = mapper(mappings)
    return {name: [one(axis) for axis in axes] for name, axes in structure.axes.items()}


def mapper(mappings: Mapping[Group, Remapping]) -> Callable[[Axis], AxisMap | None]:
    """`axis_map` that remembers: axes of the same runs share one map."""
    known: dict[tuple[Run, ...], AxisMap | None] = {}

    def one(axis: Axis) -> AxisMap | None:
        key = tuple(resolve(axis))
        if key not in known:
            known[key] = axis_map(axis, mappings)
        return known[key]

    return one


def first_copies(index: Tensor) -> Tensor:
    """True where a unit occurs for the first time."""
    if len(index) == 0:
        return torch.zeros(0, dtype=torch.bool)
    order = torch.argsort(index, stable=True)
    ranked = index[order]
    first = torch.ones(len(index), dtype=torch.bool)
    first[order[1:]] = ranked[1:] != ranked[:-1]
    return first


def held_and_read(mapping: Remapping, units: int) -> tuple[Tensor, Tensor]:
    """What each student unit holds of its teacher unit, and what its readers take of it, [n'] each in fp64."""
    one = torch.ones(len(mapping.index), dtype=torch.float64)
    copies = mapping.copies.double()
    own = (torch.arange(len(one)) < units).double()
    if mapping.kind == "scaled":
        return copies.rsqrt(), copies.rsqrt()
    if mapping.kind == "mean":
        return one, own
    if mapping.kind == "zero":  # whatever reads a zero may read it with any weight: it learns from the first step on
        return own, one
    read = 1 / copies
    return one, read if mapping.idle is None else read * ~mapping.idle


def _select(tensor: Tensor, dim: int, axis: AxisMap) -> Tensor:
    """``index_select``; the teacher's own positions in front, where they stand in order, are copied as one block."""
    own = axis.own if dim else 0
    later = tensor.index_select(dim, axis.index[own:].to(tensor.device))
    return torch.cat([tensor.narrow(dim, 0, own), later], dim) if own else later


def grow_tensor(
    name: str,
    tensor: Tensor,
    structure: Structure,
    maps: list[AxisMap | None],
    factors: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """``U[o, c] = W[g_out(o), g_in(c)] / r_in(c)``, on as many axes as the tensor has (paper section 2.3).

    ``factors[name]`` multiplies the first axis (norms and head widths, see `factors`).
    """
    for dim, axis in reversed(list(enumerate(maps))):  # inner axes first, while the tensor is small
        if axis is None:
            continue
        consumed = (name, dim) in structure.consumed
        grown = _select(tensor, dim, axis)
        for start, stop, begin, units, k in [] if consumed else axis.means:
            mean = tensor.narrow(dim, begin, units * k).unflatten(dim, (units, k)).mean(dim)
            grown.narrow(dim, start, stop - start).unflatten(dim, (-1, k)).copy_(mean.unsqueeze(dim))
        tensor = grown
        shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
        by = axis.share if consumed else axis.value
        if dim == 0 and name in factors:
            by = factors[name]
        if by is not None:
            tensor = tensor.mul_(by.to(tensor.device, tensor.dtype).view(shape))
        elif consumed:
            tensor = tensor.div_(axis.copies.to(tensor.device, tensor.dtype).view(shape))
    return tensor


def factors(structure: Structure, mappings: Mapping[Group, Remapping]) -> dict[str, Tensor]:
    """Parameters whose first axis is multiplied by more than copies ask for: [n'] each, in fp64."""
    found = norms.multipliers(structure.norms, mappings)
    for width in heads.grown(structure.widths, mappings):
        for name in (width.weight, width.bias):
            axis = axis_map(structure.axes[name][0], mappings) if name else None
            if name and axis is not None:
                found[name] = heads.multiplier(width, axis.index, axis.copies)
    return found


def weights_in_double(
    model: nn.Module, structure: Structure, mappings: Mapping[Group, Remapping], maps: Maps
) -> dict[str, Callable[[], Tensor]]:
    """The noiseless student's parameters and buffers in fp64, each made when it is asked for and not kept."""
    special = factors(structure, mappings)
    source = dict([*model.named_parameters(), *named_buffers(model)])

    def one(first: str) -> Tensor:
        tensor = source[first].detach()
        tensor = tensor.double() if tensor.is_floating_point() else tensor
        return grow_tensor(first, tensor, structure, maps[first], special)

    return {name: partial(one, first) for name, first in structure.aliases.items()}


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
    square, mean = torch.linalg.vector_norm(tensor) ** 2 / tensor.numel(), tensor.mean()
    spread = size * (square - mean**2).clamp(min=0).sqrt()  # the standard deviation, five times as fast as ``std``
    known = [axis for dim in rows if (axis := maps[dim]) is not None]
    later = [(~axis.first).nonzero().flatten() for axis in known]
    if len(rows) == 1:
        shape = [len(later[0]) if d == rows[0] else n for d, n in enumerate(tensor.shape)]
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(tensor.device) * spread
        return tensor.index_add_(rows[0], later[0].to(tensor.device), noise.to(tensor.dtype))
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    for dim, places in zip(rows, later, strict=True):
        mask.index_fill_(dim, places, True)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * mask
    return tensor + (spread * noise.to(tensor.device)).to(tensor.dtype)


def grow_state(
    model: nn.Module,
    structure: Structure,
    mappings: Mapping[Group, Remapping],
    *,
    noise: float = 0.0,
    seed: int = 0,
    maps: Maps | None = None,
) -> dict[str, Tensor]:
    """Every parameter and buffer of the student, by name; no storage is shared with the teacher."""
    generator = torch.Generator().manual_seed(seed + 0x5EED)
    special, maps = factors(structure, mappings), maps or all_maps(structure, mappings)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *named_buffers(model)]:
            if structure.aliases[name] != name:
                continue
            grown = grow_tensor(name, tensor.detach(), structure, maps[name], special)
            if noise and isinstance(tensor, nn.Parameter):
                grown = add_noise(name, grown, structure, maps[name], noise, generator)
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
            made[first].__dict__.update(vars(tensor))  # what users pin to a parameter, such as _no_weight_decay
        memo[id(tensor)] = made[first]  # deepcopy takes these for the copies, so nothing is copied twice
    return copied(model, memo)


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
