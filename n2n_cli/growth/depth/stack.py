"""Stacking: new layers and blocks begin as copies of the like ones beside them (progressive stacking, 2019).

Not exact: what a copied block adds is added twice. In return its weights are trained ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from n2n_cli.growth.depth.insert import Insertion
from n2n_cli.growth.errors import GrowthError

SETTINGS = ("transposed", "dilation", "groups")
"""Of a convolution, what its copy must have too."""


def stack_blocks(student: nn.Module, blocks: Iterable[str]) -> dict[str, str]:
    """Give every new block the weights of a like one beside it; which, by name.

    Like are modules of the same class, in the same container, with the same tensors. The nearest before the block
    serves, else the nearest behind it; one whose layers read another number of inputs only where no other is there:
    input i is then read as its input i modulo their number is.

    Args:
        student: changed in place; all but ``blocks`` holds trained weights.
        blocks: paths of its new modules, in the order of its ``state_dict``.

    Raises:
        GrowthError: a block has none beside it; names it.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> stack_blocks(net, ["1"]), torch.equal(net[0].weight, net[1].weight)
    ({'1': '0'}, True)
    """
    waiting, sources = list(blocks), dict[str, str]()
    while waiting:
        path = waiting.pop(0)
        parent, _, name = path.rpartition(".")
        at = f"{parent}." if parent else ""
        children = list(student.get_submodule(parent)._modules)
        place = children.index(name)
        near = [at + child for child in [*reversed(children[:place]), *children[place + 1 :]]]
        trained = [(one, student.get_submodule(one)) for one in near if one not in waiting]
        block = student.get_submodule(path)
        found = next((one for fits in (_same, _like) for one, module in trained if fits(module, block)), None)
        if found is None:
            raise GrowthError(
                f"stack: beside '{path}' stands no layer or block like it to copy; sites= puts copies behind layers"
            )
        _copy(student.get_submodule(found), block)
        sources[path] = found
    return sources


def stack_insertions(model: nn.Module, student: nn.Module, places: Sequence[Insertion]) -> dict[str, str]:
    """Give the layers that were put into ``student`` the weights of the layers of ``model`` that they stand behind;
    which, by name.

    Raises:
        GrowthError: they have another kernel, or other outputs; names the layer.
    """
    sources: dict[str, str] = {}
    for place in places:
        behind = [name for pair in place["behind"] for name in (pair if place["norm"] else pair[:1])]
        children = student.get_submodule(place["after"]).named_children()
        body = [(f"{place['after']}.{key}", module) for key, module in children if key != "0" and module.state_dict()]
        for name, (path, module) in zip(behind * len(body), body, strict=False):
            source = model.get_submodule(name)
            computes_alike = all(getattr(source, key, None) == getattr(module, key, None) for key in SETTINGS)
            if not computes_alike or not _reads_alike(_shapes(source), _shapes(module)):
                raise GrowthError(f"stack: the new layer behind '{place['after']}' is not like '{name}'")
            _copy(source, module)
            sources[path] = name
    return sources


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}


def _same(source: nn.Module, target: nn.Module) -> bool:
    return type(source) is type(target) and _shapes(source) == _shapes(target)


def _like(source: nn.Module, target: nn.Module) -> bool:
    """Whether ``source`` has all tensors of ``target``, of the same shapes but for the number of inputs."""
    return type(source) is type(target) and _reads_alike(_shapes(source), _shapes(target))


def _reads_alike(theirs: Mapping[str, torch.Size], ours: Mapping[str, torch.Size]) -> bool:
    return bool(ours) and all(
        name in theirs and (theirs[name][:1], theirs[name][2:]) == (shape[:1], shape[2:])
        for name, shape in ours.items()
        if not (name == "bias" and name not in theirs)  # a layer without a norm behind it gets a bias
    )


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    theirs = source.state_dict()
    for name, tensor in target.state_dict().items():
        if name not in theirs:
            tensor.zero_()
            continue
        given = theirs[name]
        if given.shape != tensor.shape:
            given = given.index_select(1, torch.arange(tensor.shape[1], device=given.device) % given.shape[1])
        tensor.copy_(given)
