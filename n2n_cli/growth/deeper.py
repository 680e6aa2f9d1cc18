"""Net2DeeperNet on any module (paper section 2.4): identity layers, batch norm undone from statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.prove import function_gap, in_double, outputs, prepared, prove, small
from n2n_cli.growth.record import copied
from n2n_cli.growth.sites import Site, find_sites, make_identity, set_identity
from n2n_cli.growth.wider import GroupInfo, Growth

BatchNorm = nn.modules.batchnorm._BatchNorm


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
            its own constructor, that holds the teacher's layers under their names; None: behind every
            vertical-horizontal pair, or, in a network that has none, behind every layer that allows it.
        pairs: vertical-horizontal pairs at each site, where a pair stands; elsewhere single identity layers.
        calibration: batches of training data for the statistics that batch norm undoes; None: the example alone.
            Exact on any batch in eval mode; in train mode exact on a single calibration batch, and as close as batch
            statistics are to the mean over several.

    Returns:
        Growth: ``.gap`` is the proof in fp64, in both modes, with statistics of the proof's own batch.

    Raises:
        GrowthError: an activation is not idempotent (it is named), no layer matches, or the proof failed.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    >>> [name for name, _ in deepen(net, torch.randn(4, 3, 8, 8)).student.named_parameters()][4:]
    ['1.2.weight', '1.3.weight', '1.3.bias']
    """
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise GrowthError(f"pairs is {pairs!r}: expected a whole number of at least 1")
    if isinstance(sites, nn.Module):
        deeper, new, recipe = _to_student(model, sites)
    else:
        insertions = _insertions(model, prepared(model, example_input), sites, pairs)
        deeper, new = insert(model, insertions)
        recipe = {"op": "deeper", "insert": insertions}
    deeper.train(model.training)
    batches = [example_input] if calibration is None else list(calibration)
    if not batches:
        raise GrowthError("calibration holds no batch")

    double = in_double(deeper)
    batch = small(example_input, 8)
    _identify(double, new, [batch])
    gap = prove(in_double(model), double, batch)
    dead = _identify(deeper, new, batches)
    # the statistics of several batches are not this batch's: in eval mode it is exact all the same
    eval_gap = function_gap(model, deeper, batch, training=False)
    if not eval_gap <= max(1e-2 if _half(model) else 1e-3, 1000 * gap.eval):
        raise GrowthError(
            f"the student's function differs from the teacher's in eval mode: relative gap {eval_gap:.1e}"
        )
    drift = function_gap(model, deeper, batch, training=True)
    notes = [f"in train mode, with the statistics of {len(batches)} calibration batches: gap {drift:.1e}"]
    if dead:
        notes.append(f"{dead} channels never vary on the calibration data (their scale is sqrt(eps))")
    groups = [GroupInfo([name], 0, 1, None, None) for name in new]
    return Growth(deeper, gap, recipe, notes, groups)


def _half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


# --- where -------------------------------------------------------------------------------------------------


def _insertions(model: nn.Module, example: Any, patterns: Sequence[str] | None, pairs: int) -> list[dict[str, Any]]:
    """What is put where, as plain data: {"after": module, "kernels": [[3, 1], [1, 3]], ...} a site."""
    found = find_sites(model, example)
    by_layer = {site.layer: site for site in found}

    def pair(site: Site) -> bool:
        return site.vertical_horizontal(by_layer.get(site.follows or ""))

    if patterns is None:
        chosen = [s for s in found if pair(s) and not s.refusal] or [s for s in found if not s.refusal]
        if not chosen:
            why = "; ".join(dict.fromkeys(f"{s.layer}: {s.refusal}" for s in found[:3])) or "it has no layer of weights"
            raise GrowthError(f"{type(model).__name__} has no place for an identity layer ({why})")
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
                "depthwise": site.depthwise,
                "activation": site.activation,
                "norm": site.norm if site.norm and site.norm.startswith("BatchNorm") else None,
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
        parent_path, _, leaf = path.rpartition(".")
        parent = student.get_submodule(parent_path)
        before = student.get_submodule(path)
        reference = next(before.parameters())
        site = Site("", path, plan["activation"], plan["channels"], (), plan["depthwise"], plan["norm"])
        body: list[nn.Module] = [before]
        for kernel in plan["kernels"]:
            norm = _norm_like(before) if plan["norm"] else None
            for module in make_identity(site, tuple(kernel), norm):
                body.append(module.to(reference.device, reference.dtype))
                if any(True for _ in module.parameters()):
                    new.append(f"{path}.{len(body) - 1}")
        setattr(parent, leaf, nn.Sequential(*body))
    return student.train(model.training), new


def _norm_like(norm: nn.Module) -> nn.Module:
    assert isinstance(norm, BatchNorm)
    return type(norm)(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, track_running_stats=norm.track_running_stats
    )


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a deeper recipe made from ``model``; the new layers' weights are to be loaded."""
    return insert(model, recipe["insert"])[0]


def _to_student(model: nn.Module, student: nn.Module) -> tuple[nn.Module, list[str], dict[str, Any]]:
    """A constructor's deeper student with the teacher's weights, and the names of its new layers in forward order."""
    student = copied(student)
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    student.to(reference.device, reference.dtype)
    ours, theirs = student.state_dict(), model.state_dict()
    for name, tensor in theirs.items():
        if name not in ours:
            raise GrowthError(f"the student lacks the teacher's '{name}'{suggest(name, ours)}")
        if ours[name].shape != tensor.shape:
            raise GrowthError(
                f"'{name}' is {list(tensor.shape)} in the teacher and {list(ours[name].shape)} in the student: "
                "deepen adds layers, widen them first"
            )
    student.load_state_dict({name: theirs.get(name, tensor) for name, tensor in ours.items()})
    extra = [name.rpartition(".")[0] for name in ours if name not in theirs]
    new = list(dict.fromkeys(extra))
    if not new:
        raise GrowthError("the student has no layer that the teacher lacks")
    return student, new, {"op": "deeper", "new": new}


# --- the identity ------------------------------------------------------------------------------------------


@torch.no_grad()
def _identify(student: nn.Module, new: Sequence[str], batches: Sequence[Any]) -> int:
    """Make the new layers the identity; each new batch norm undoes the statistics it meets.

    Runs the student in train mode over the batches. Every new batch norm is set to undo the very batch that enters
    it before it runs, so that everything behind it sees the teacher's activations; at the end it gets the
    pooled biased statistics. Returns the number of channels that never vary.
    """
    modules = {name: student.get_submodule(name) for name in new}
    norms = {name: m for name, m in modules.items() if isinstance(m, BatchNorm)}
    for name, module in modules.items():
        if name in norms:
            continue
        try:
            set_identity(module)
        except ValueError as error:
            raise GrowthError(f"the new layer '{name}' cannot be an identity: {error}") from error
    moments: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in norms}

    def undo(module: nn.Module, args: Any, name: str) -> None:
        assert isinstance(module, BatchNorm)
        x = args[0]
        over = [d for d in range(x.ndim) if d != 1]
        var, mean = torch.var_mean(x.double() if x.dtype != torch.float64 else x, dim=over, correction=0)
        moments[name].append((mean, var))
        _set_norm(module, name, mean, var)

    hooks = [
        module.register_forward_pre_hook(lambda m, a, name=name: undo(m, a, name)) for name, module in norms.items()
    ]
    try:
        for batch in batches:
            outputs(student, prepared(student, batch), training=True)
    finally:
        for hook in hooks:
            hook.remove()
    dead = 0
    for name, norm in norms.items():
        if not moments[name]:
            raise GrowthError(f"the new layer '{name}' was not reached in the forward pass")
        means = torch.stack([mean for mean, _ in moments[name]])
        mean = means.mean(0)
        var = torch.stack([var for _, var in moments[name]]).mean(0)
        _set_norm(norm, name, mean, var)
        dead += int((var <= 1e-12).sum())
    return dead


@torch.no_grad()
def _set_norm(norm: nn.modules.batchnorm._BatchNorm, name: str, mean: Tensor, var: Tensor) -> None:
    """weight = sqrt(var + eps), bias = mean, with the very tensors that are stored as running statistics."""
    if norm.weight is None or norm.bias is None:
        raise GrowthError(f"the new batch norm '{name}' has no scale and bias (affine=False): it cannot be undone")
    mean, var = mean.to(norm.weight.dtype), var.to(norm.weight.dtype)
    norm.weight.copy_(torch.sqrt(var + norm.eps))
    norm.bias.copy_(mean)
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
