"""Net2DeeperNet on any module (paper section 2.4): identity layers, batch norm undone from statistics; new blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.constructors import Change, explained, same_rates, to_student
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.identity import BatchNorm, activation_of, columns, identify, make_identity, plain
from n2n_cli.growth.prove import function_gap, in_double, prepared, prove, runs_as_it_is, small
from n2n_cli.growth.record import copied
from n2n_cli.growth.sites import Site, choose, find_sites
from n2n_cli.growth.wider import GroupInfo, Growth


def deepen(
    model: nn.Module,
    example_input: Any,
    sites: Sequence[str] | nn.Module | None = None,
    *,
    pairs: int = 1,
    calibration: Iterable[Any] | None = None,
) -> Growth:
    """Net2DeeperNet: a deeper student that computes the teacher's function.

    Args:
        model: the teacher; it is not modified and shares no storage with the student.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes.
        sites: patterns of layer names, behind whose activation identity layers are put; or a deeper student built by
            its own constructor, that holds the teacher's layers in their order: its new residual blocks get a last
            norm, scale or projection of zero, its other new layers become the identity; None: behind every
            vertical-horizontal pair, or, in a network that has none, behind every layer that allows it (where
            depthwise layers alone read a layer's channels, behind the depthwise ones).
        pairs: vertical-horizontal pairs at each site, where a pair stands; elsewhere single identity layers.
        calibration: batches of training data for the statistics that batch norm undoes; None: the example alone.
            Exact on any batch in eval mode; in train mode exact on a single calibration batch, and as close as batch
            statistics are to the mean over several.

    Returns:
        Growth: ``.gap`` is the proof in fp64, in both modes, with statistics of the proof's own batch; ``.renamed``
        the teacher's tensors that have another name in the student.

    Raises:
        GrowthError: an activation is not idempotent or a block cannot start as nothing (it is named), no layer
            matches, or the proof failed.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    >>> [name for name, _ in deepen(net, torch.randn(4, 3, 8, 8)).student.named_parameters()][4:]
    ['1.2.weight', '1.3.weight', '1.3.bias']
    """
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise GrowthError(f"pairs is {pairs!r}: expected a whole number of at least 1")
    batches = [example_input] if calibration is None else list(calibration)
    if not batches:
        raise GrowthError("calibration holds no batch")
    recipe: dict[str, Any]
    if isinstance(sites, nn.Module):
        deeper, change = to_student(model, sites, example_input)
        recipe = {"op": "deeper", "new": [*change.layers, *change.zeros]}
    else:
        found = insertions(model, prepared(model, example_input), sites, pairs)
        with torch.random.fork_rng(devices=[]):  # the identity's first, random weights are nobody's
            deeper, new = insert(model, found)
        change = Change(new, _sources(deeper, found), renamed=_moved(model, found))
        recipe = {"op": "deeper", "insert": found}
    deeper.train(model.training)

    with torch.no_grad():
        for name in change.zeros:
            deeper.get_parameter(name).zero_()
    teacher, double = in_double(model), in_double(deeper)
    batch = small(example_input, 8)
    if isinstance(sites, nn.Module):
        same_rates(teacher, double)
    identify(double, change.layers, change.sources, [batch])
    try:
        gap = prove(teacher, double, batch)
    except GrowthError as error:
        raise GrowthError(explained(str(error), double, change, batch)) from error
    runs_as_it_is(deeper, batch)
    dead = identify(deeper, change.layers, change.sources, batches)
    # the statistics of several batches are not this batch's: in eval mode it is exact all the same
    eval_gap = function_gap(model, deeper, batch, training=False)
    if not eval_gap <= max(1e-2 if _half(model) else 1e-3, 1000 * gap.eval):
        raise GrowthError(
            f"the student's function differs from the teacher's in eval mode: relative gap {eval_gap:.1e}"
        )
    notes = []
    if change.layers:
        drift = function_gap(model, deeper, batches[0], training=True)
        notes.append(
            f"new batch norms undo the mean statistics of {len(batches)} calibration batches: exact in eval mode; one "
            f"such batch alone is {drift:.1e} off in train mode"
        )
    if change.zeros:
        named = f"{', '.join(change.zeros[:2])}{' ...' if len(change.zeros) > 2 else ''}"
        notes.append(f"{len(change.blocks)} new blocks add nothing at first; zero are {named}")
    if dead:
        notes.append(f"{dead} channels never vary on the calibration data (their scale is sqrt(eps))")
    groups = [GroupInfo([name], 0, 1, None, None) for name in [*change.layers, *change.blocks]]
    return Growth(deeper, gap, recipe, notes, groups, renamed=change.renamed)


def _half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


# --- where -------------------------------------------------------------------------------------------------


def insertions(model: nn.Module, example: Any, patterns: Sequence[str] | None, pairs: int) -> list[dict[str, Any]]:
    """What is put where, as plain data: {"after": module, "kernels": [[3, 1], [1, 3]], ...} a site."""
    found = find_sites(model, example)
    by_layer = {site.layer: site for site in found}

    def pair(site: Site) -> bool:
        return site.vertical_horizontal(by_layer.get(site.follows or ""))

    if patterns is None:
        chosen = choose(found)
        if not chosen:
            why = f"{found[0].layer}: {found[0].refusal}" if found else "it has no layer of weights"
            raise GrowthError(
                f"{type(model).__name__} has no place for an identity layer ({why}); a deeper constructor may serve"
            )
    else:
        chosen = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = [s for s in found if fnmatchcase(s.layer, pattern) or fnmatchcase(s.module, pattern)]
            if not matched:
                raise GrowthError(f"no layer matches '{pattern}'{suggest(pattern, by_layer)}")
            if all(s.refusal for s in matched):
                raise GrowthError(f"no identity layer fits behind '{matched[0].layer}': {matched[0].refusal}")
            chosen += [s for s in matched if not s.refusal and s not in chosen]
    plans = []
    for site in chosen:
        n = max(site.kernel, default=0)
        kernel = tuple(k if k % 2 else 3 for k in site.kernel)
        kernels = [(n, 1), (1, n)] if pair(site) else [kernel]
        plans.append(
            {
                "after": site.module,
                "kernels": [list(k) for k in kernels] * pairs,
                "channels": site.channels,
                "groups": site.groups,
                "activation": plain(site.activation),
                "norm": site.norm if isinstance(model.get_submodule(site.module), BatchNorm) else None,
            }
        )
    return plans


def insert(model: nn.Module, insertions: Sequence[Mapping[str, Any]]) -> tuple[nn.Module, list[str]]:
    """A copy of ``model`` in which each named module M became (M, f, layer, norm, f, layer, norm ...).

    The model's own activation follows, so shared and functional ones serve too. Returns the names of the new modules.
    """
    student = copied(model)
    new: list[str] = []
    for plan in insertions:
        path = plan["after"]
        before = student.get_submodule(path)
        reference = next(before.parameters(), next(student.parameters()))
        groups = plan["groups"] if "groups" in plan else plan["channels"] if plan["depthwise"] else 1
        body: list[nn.Module] = [before]
        for kernel in plan["kernels"]:
            norm = _norm_like(before) if plan["norm"] else None
            for module in make_identity(plan["channels"], kernel, groups, activation_of(plan["activation"]), norm):
                body.append(module.to(reference.device, reference.dtype))
                if any(True for _ in module.parameters()):
                    new.append(f"{path}.{len(body) - 1}")
        sequence = nn.Sequential(*body)
        for parent in list(student.modules()):  # a module may be held under several names
            if parent is not sequence:
                for key in [key for key, child in parent._modules.items() if child is before]:
                    parent._modules[key] = sequence
    return student.train(model.training), new


def _sources(student: nn.Module, insertions: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Of every maxout identity layer: the unit that each of its outputs copies."""
    found: dict[str, Tensor] = {}
    for plan in insertions:
        source = columns(activation_of(plan["activation"]), plan["channels"])
        if source is not None:
            for key, module in student.get_submodule(plan["after"]).named_children():
                if key != "0" and isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    found[f"{plan['after']}.{key}"] = source
    return found


def _moved(model: nn.Module, insertions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The teacher's tensors whose module M is now the first of a Sequential."""
    before = {id(model.get_submodule(plan["after"])) for plan in insertions}
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if id(module) in before]
    return {
        name: f"{path}.0{name[len(path) :]}"
        for name in model.state_dict()
        for path in paths
        if name.startswith(f"{path}.")
    }


def _norm_like(norm: nn.Module) -> nn.Module:
    assert isinstance(norm, BatchNorm)
    return type(norm)(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, track_running_stats=norm.track_running_stats
    )


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a deeper recipe made from ``model``; the new layers' weights are to be loaded."""
    if "insert" not in recipe:
        raise GrowthError("a deeper step to another constructor's network does not say which (lineage.grow's `to`)")
    return insert(model, recipe["insert"])[0]
