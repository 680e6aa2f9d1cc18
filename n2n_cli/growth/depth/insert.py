"""New layers put behind the layers of a network: where, as plain data, and the network with them.

An insertion says what stands behind one module, in words and numbers that a recipe can hold:
``{"after": "layer1.0.bn1", "kernels": [[3, 3]], "channels": 64, "groups": 1, "activation": "relu", "norm":
"BatchNorm2d"}``; ``norm`` is None where no batch norm follows the new layer. ``"branch": True``: the new layers are
residual branches. ``"behind"``: the layers, each with its norm, that stand before the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.depth.branch import Branch
from n2n_cli.growth.depth.identity import BatchNorm, activation_of, columns, make_identity, plain
from n2n_cli.growth.depth.sites import IS_OUTPUT, Site, choose, find_sites
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.trace.copies import deep_copy

Insertion = Mapping[str, Any]


def insertions(
    model: nn.Module,
    example: Any,
    patterns: Sequence[str] | None,
    pairs: int,
    *,
    linear: bool = False,
    branches: bool = False,
) -> list[dict[str, Any]]:
    """Which new layers are put where.

    Args:
        model: the teacher; it is not modified.
        example: its input, on its device and in its type.
        patterns: of the names of layers or norms; None: the default sites (see `sites.choose`).
        pairs: how many vertical-horizontal pairs (n x 1, 1 x n), or single layers, at each site.
        linear: without activations between them.
        branches: as residual branches, which fit behind any layer; by default where identities fit, if any does.

    Returns:
        list[dict[str, Any]]: one insertion per site, in the order of the patterns and of the forward pass.

    Raises:
        GrowthError: no layer matches a pattern, or none that does has a place for an identity layer, and why.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(found["after"], found["activation"]) for found in insertions(net, torch.randn(2, 3), None, 1)]
    [('0', 'relu')]
    """
    found = find_sites(model, example, linear=linear)
    if branches and (patterns is not None or all(site.refusal for site in found)):
        keep = [not site.refusal or (patterns is None and site.refusal == IS_OUTPUT) for site in found]
        freed = _anywhere(model, example)
        found = [site if kept else other for site, other, kept in zip(found, freed, keep, strict=True)]
    by_layer = {site.layer: site for site in found}
    chosen = _default(model, found) if patterns is None else _matching(found, patterns)
    if any(not site.module for site in chosen):
        raise GrowthError(
            f"{type(model).__name__} is one layer: a new one stands behind it in nn.Sequential({type(model).__name__})"
        )
    places = [site.module for site in chosen]  # not within each other: of a layer made of layers, the outer one
    chosen = [site for site in chosen if not any(site.module.startswith(f"{place}.") for place in places)]
    made = [_insertion(model, site, by_layer.get(site.follows or ""), pairs) for site in chosen]
    return [{**place, "branch": True} for place in made] if branches else made


def _anywhere(model: nn.Module, example: Any) -> list[Site]:
    """The sites of branches where no identity layer fits: their own activation is ReLU."""
    return [replace(site, activation=("relu",)) for site in find_sites(model, example, linear=True)]


def _default(model: nn.Module, found: Sequence[Site]) -> list[Site]:
    chosen = choose(found)
    if not chosen:
        why = f"{found[0].layer}: {found[0].refusal}" if found else "it has no layer of weights"
        raise GrowthError(
            f"{type(model).__name__} has no place for an identity layer ({why}); a deeper constructor may serve"
        )
    return chosen


def _matching(found: Sequence[Site], patterns: Sequence[str]) -> list[Site]:
    chosen: list[Site] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [s for s in found if fnmatchcase(s.layer, pattern) or fnmatchcase(s.module, pattern)]
        if not matched:
            raise GrowthError(f"no layer matches '{pattern}'{suggest(pattern, [site.layer for site in found])}")
        if all(s.refusal for s in matched):
            raise GrowthError(f"no identity layer fits behind '{matched[0].layer}': {matched[0].refusal}")
        chosen += [s for s in matched if not s.refusal and s not in chosen]
    return chosen


def _insertion(model: nn.Module, site: Site, before: Site | None, pairs: int) -> dict[str, Any]:
    """``before``: the site whose activation feeds this one. An even kernel has no centre: 3 stands for it."""
    n = max(site.kernel, default=0)
    kernels = [[n, 1], [1, n]] if site.vertical_horizontal(before) else [[k if k % 2 else 3 for k in site.kernel]]
    sites = [before, site] if len(kernels) == 2 and before is not None else [site]
    return {
        "after": site.module,
        "behind": [[one.layer, one.module] for one in sites],
        "kernels": [list(kernel) for _ in range(pairs) for kernel in kernels],
        "channels": site.channels,
        "groups": site.groups,
        "activation": plain(site.activation),
        "norm": site.norm if isinstance(model.get_submodule(site.module), BatchNorm) else None,
    }


def insert(model: nn.Module, places: Sequence[Insertion]) -> tuple[nn.Module, list[str]]:
    """A copy of ``model`` in which each named module M became (M, f, layer, norm, f, layer, norm ...), or the same with
    a `Branch` around what a site repeats.

    The model's own activation follows the last, so shared and functional ones serve too.

    Args:
        model: it is not modified.
        places: insertions, as `insertions` makes them and recipes hold them.

    Returns:
        tuple[nn.Module, list[str]]: the student, and the paths of its new layers and norms. Their weights are drawn
        from PyTorch's global random state; `identity.identify` makes them the identity.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> insert(net, insertions(net, torch.randn(2, 3), ["0"], 1))[1]
    ['0.2']
    """
    student = deep_copy(model)
    new: list[str] = []
    for place in places:
        path = place["after"]
        before = student.get_submodule(path)
        reference = next(before.parameters(), next(student.parameters()))
        groups = place["groups"] if "groups" in place else place["channels"] if place["depthwise"] else 1  # old recipes
        body: list[nn.Module] = [before]
        for kernel in place["kernels"]:
            norm = _norm_like(before) if place["norm"] else None
            layers = make_identity(place["channels"], kernel, groups, activation_of(place["activation"]), norm)
            body += [module.to(reference.device, reference.dtype) for module in layers]
        if place.get("branch"):
            each = (len(body) - 1) * len(place["behind"]) // len(place["kernels"])  # modules of a layer or of a pair
            body = [before, *(Branch(*body[i : i + each]) for i in range(1, len(body), each))]
        sequence = nn.Sequential(*body)
        _replace(student, before, sequence)
        own = {id(module) for module in before.modules()}
        added = {name: module for name, module in sequence.named_modules() if id(module) not in own}
        for module in added.values():  # the others keep their modes: some may be frozen
            module.training = model.training
        new += [f"{path}.{name}" for name, module in added.items() if module._parameters]
    return student, new


def _replace(student: nn.Module, module: nn.Module, sequence: nn.Sequential) -> None:
    """Put a sequence, which holds the module, in its place: under all names, as a module may have several."""
    for parent in list(student.modules()):
        if parent is not sequence:
            for key in [key for key, child in parent._modules.items() if child is module]:
                parent._modules[key] = sequence


def sources(student: nn.Module, places: Sequence[Insertion]) -> dict[str, Tensor]:
    """Of every maxout identity layer of a student of `insert`: the unit that each of its outputs copies."""
    found: dict[str, Tensor] = {}
    for place in places:
        source = columns(activation_of(place["activation"]), place["channels"])
        if source is not None:
            for key, module in student.get_submodule(place["after"]).named_children():
                if key != "0" and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    found[f"{place['after']}.{key}"] = source
    return found


def moved(model: nn.Module, places: Sequence[Insertion]) -> dict[str, str]:
    """The teacher's tensors whose module M is the first of a Sequential in the student, and their names there.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> moved(net, insertions(net, torch.randn(2, 3), ["0"], 1))
    {'0.weight': '0.0.weight', '0.bias': '0.0.bias'}
    """
    before = {id(model.get_submodule(place["after"])) for place in places}
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if id(module) in before]
    return {
        name: f"{path}.0{name[len(path) :]}"
        for name in model.state_dict()
        for path in paths
        if name.startswith(f"{path}.")
    }


def _norm_like(norm: nn.Module) -> nn.Module:
    """A fresh batch norm with the settings of another, and with what the identity needs: scale, bias, and running
    statistics (without them it would undo those of one batch, in eval mode too)."""
    assert isinstance(norm, BatchNorm)
    sized = norm.weight if norm.weight is not None else norm.running_mean
    features = norm.num_features if sized is None else len(sized)  # a class of the user's may say another number
    try:
        return type(norm)(features, eps=norm.eps, momentum=norm.momentum)
    except TypeError:  # it takes other arguments
        plain = next(cls for cls in type(norm).__mro__ if cls.__module__.startswith("torch."))
        return plain(features, eps=norm.eps, momentum=norm.momentum)
