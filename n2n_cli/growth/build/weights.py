"""The student's weights: ``U[o, c] = W[g_out(o), g_in(c)] / r_in(c)`` (paper, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from n2n_cli.growth.build.maps import AxisMap, Maps
from n2n_cli.growth.build.starts import RandomEntries
from n2n_cli.growth.groups.structure import Remappings, Structure
from n2n_cli.growth.trace.copies import named_tensors, plain_tensors


def grown_weights(
    model: nn.Module, structure: Structure, remappings: Remappings, maps: Maps, *, noise: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Every parameter and buffer of the student, by name, and the plain tensors that grow; no storage is the teacher's.

    ``noise``: standard deviation of the noise on all but the first copy of each unit, relative to that of the weight.
    """
    generator = torch.Generator().manual_seed(seed + 0x5EED)
    special, where = multipliers(structure, remappings), places(structure, remappings)
    state: dict[str, Tensor] = {}
    plain = dict(plain_tensors(model))
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            if structure.aliases[name] != name or (name in plain and not any(maps[name])):
                continue
            grown = grow_tensor(name, tensor.detach(), structure, maps[name], special, where)
            if noise and isinstance(tensor, nn.Parameter):
                grown = _with_noise(name, grown, structure, maps[name], noise, generator)
            state[name] = grown.clone() if grown.data_ptr() == tensor.data_ptr() else grown
    return state


def weights_in_double(
    model: nn.Module, structure: Structure, remappings: Remappings, maps: Maps, random: RandomEntries
) -> dict[str, Callable[[], Tensor]]:
    """The noiseless student's parameters and buffers in fp64, each made when it is asked for and not kept."""
    special, where = multipliers(structure, remappings), places(structure, remappings)
    source = dict(named_tensors(model))

    def one(first: str) -> Tensor:
        tensor = source[first].detach()
        tensor = tensor.double() if tensor.is_floating_point() else tensor
        return random.write(first, grow_tensor(first, tensor, structure, maps[first], special, where))

    plain = dict(plain_tensors(model))
    stay = {name for name in plain if not any(maps[structure.aliases[name]])}
    return {name: partial(one, first) for name, first in structure.aliases.items() if name not in stay}


def multipliers(structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
    """Parameters whose first axis is multiplied by more than copies ask for: all of shape ``[n']``, in fp64."""
    found: dict[str, Tensor] = {}
    for relation in structure.relations:
        found |= relation.multipliers(structure, remappings)
    return found


def places(structure: Structure, remappings: Remappings) -> dict[str, Tensor]:
    """Buffers that hold positions -> where each of these stands in the student."""
    return {name: where for relation in structure.relations for name, where in relation.places(remappings).items()}


def grow_tensor(
    name: str,
    tensor: Tensor,
    structure: Structure,
    maps: list[AxisMap | None],
    special: Mapping[str, Tensor] = MappingProxyType({}),
    where: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """``U[o, c] = W[g_out(o), g_in(c)] / r_in(c)``, on as many axes as the tensor has.

    ``special[name]`` multiplies the first axis (see `multipliers`); ``where``: see `places`.
    """
    if name in where:
        tensor = where[name].to(tensor.device, tensor.dtype)[tensor.long()]
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
        by = axis.share if consumed else axis.holds
        if dim == 0 and name in special:
            by = special[name]
        if by is not None:
            tensor = tensor.mul_(by.to(tensor.device, tensor.dtype).view(shape))
        elif consumed:
            tensor = tensor.div_(axis.copies.to(tensor.device, tensor.dtype).view(shape))
    if name in special and maps[0] is None:  # its rows did not grow, and are multiplied all the same
        tensor = tensor * special[name].to(tensor.device, tensor.dtype).view(-1, *[1] * (tensor.ndim - 1))
    return tensor


def _select(tensor: Tensor, dim: int, axis: AxisMap) -> Tensor:
    """``index_select``; the teacher's own positions at the front, if they stand in order, are copied as one block."""
    own = axis.own if dim else 0
    later = tensor.index_select(dim, axis.index[own:].to(tensor.device))
    return torch.cat([tensor.narrow(dim, 0, own), later], dim) if own else later


def _with_noise(
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
