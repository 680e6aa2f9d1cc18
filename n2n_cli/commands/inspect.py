"""``n2n inspect``: a network's layers, the groups that grow together, sites for depth, and the dry run of a plan."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from n2n_cli import config, lineage, models, ops, schema
from n2n_cli.commands import networks, tables
from n2n_cli.commands.evaluate import stored_config
from n2n_cli.commands.grow import deeper_constructor
from n2n_cli.errors import N2NError
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.sizes.solve import Plan
from n2n_cli.growth.survey import GroupRow, Survey, deepened, survey
from n2n_cli.models import custom, describe
from n2n_cli.training import checkpoint


def run(cfg: schema.Inspect) -> None:
    """Prints what there is to know of a named network or a checkpoint; writes nothing but ``cfg.picture``.

    Raises:
        N2NError: no such network, checkpoint or folder of the picture; or the op cannot be met.
    """
    if cfg.picture is not None and not Path(cfg.picture).absolute().parent.is_dir():
        raise N2NError(f"picture: no such folder: {Path(cfg.picture).parent}")
    if Path(cfg.target).exists():
        path = checkpoint.resolve(Path(cfg.target))
        model, state = networks.stored(path, config.functions(cfg))
        steps = state["lineage"]
        title = f"{path} (step {state['step']})"
        size = cfg.image_size or stored_config(state, path).data.image_size or 224
    else:
        small = {"stem": "small"} if cfg.target.endswith("_tiny") else {}
        arguments: dict[str, Any] = {"name": cfg.target, "num_classes": cfg.num_classes, "width": cfg.width}
        arguments |= {**small, **cfg.kwargs}
        if custom.is_spec(cfg.target) or cfg.weights is not None:
            model, steps = networks.shown(cfg, arguments)
        else:
            model, steps = _build(arguments), lineage.start(**arguments)
        title = cfg.target
        size = cfg.image_size or (32 if small else 299 if cfg.target == "inception_v3" else 224)
    layers = describe.layers(model, size)
    image = torch.zeros(1, 3, size, size)
    found: Survey | None = None
    try:
        start = {"new": cfg.op.new, "split": cfg.op.split} if isinstance(cfg.op, ops.Wider) else {}
        found = survey(model, image, _plan(cfg.op, steps), **start)
    except GrowthError as error:
        if cfg.op is not None or cfg.picture is not None:
            raise
        why = str(error)  # the layers can be shown all the same
    totals = {"parameters": describe.count_parameters(model), "macs": describe.macs(model, size)}
    dry = _dry_run(model, image, cfg.op, steps, found, totals) if cfg.op is not None and found else None
    if cfg.picture is not None and found:
        from n2n_cli.commands import picture

        after = f", {_words(cfg.op)}" if found.student is not None else ""
        picture.save(picture.draw(found, f"{title}{after}"), Path(cfg.picture))
    if cfg.json:
        plain = {
            "target": cfg.target,
            "image_size": size,
            **totals,
            "layers": [asdict(layer) for layer in layers],
            "lineage": steps,
            "groups": [_plain_group(group) for group in found.groups] if found else None,
            "sites": [asdict(site) for site in found.sites] if found else None,
            "plan": dry,
        }
        print(json.dumps(plain), flush=True)
        return
    print(title, flush=True)
    print(f"{totals['parameters']:,} parameters, {totals['macs']:,} MACs an image of {size} x {size}", flush=True)
    print("lineage: " + "; ".join(lineage.describe(steps)), flush=True)
    show = cfg.show or _shown(cfg.op)
    parts = [tables.layers(layers, cfg.rows)] if "layers" in show else []
    if found is None:
        parts.append([f"no groups: {why}"])
    elif "groups" in show:
        parts.append(tables.groups(found, cfg.rows))
    if found is not None and "sites" in show:
        parts.append(tables.sites(found.sites))
    if dry is not None:
        parts.append(tables.dry_run(dry, _words(cfg.op)))
    if cfg.picture is not None:
        parts.append([f"picture: {cfg.picture}"])
    for part in parts:
        for line in ("", *part):
            print(line, flush=True)


def _plain_group(group: GroupRow) -> dict[str, Any]:
    def plain(reason: Reason | None) -> dict[str, str] | None:
        if reason is None:
            return None
        return {"operation": reason.operation, "module": reason.path, "kind": reason.kind, "text": reason.text}

    reasons = {name: plain(getattr(group, name)) for name in ("tied", "moved", "fixed", "copied")}
    return {**asdict(group), **reasons, "growing": group.growing}


def _shown(op: ops.Op | None) -> tuple[str, ...]:
    """The tables that go with an op: all without one."""
    return ("layers", "groups", "sites") if op is None else ("groups" if isinstance(op, ops.ToWider) else "sites",)


def _words(op: ops.Op | None) -> str:
    """The op as one types it."""
    if op is None:
        return ""
    if isinstance(op, ops.ToWider):
        if op.factor is not None:
            return f"{op.name} by {op.factor:g}"
        layers = ", ".join(f"{name}: {amount:g}" for name, amount in op.layers.items())
        network = "the standard network" if op.to_width is None else f"the network of width {op.to_width:g}"
        return f"{op.name}, {layers or network}"
    assert isinstance(op, ops.ToDeeper)
    return f"{op.name}{' behind ' + ', '.join(op.sites) if op.sites else ''}"


class _Shapes(TorchFunctionMode):
    """New tensors, a layer's weights, have shapes but no values; what a constructor computes with stays real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _build(arguments: dict[str, Any]) -> nn.Module:
    """A named network without weights (even the largest takes a second), or with them where that is not possible."""
    try:
        with _Shapes():
            return models.build(**arguments)
    except N2NError:
        raise
    except Exception:  # a constructor that looks at its own tensors
        return models.build(**arguments)


def _plan(op: ops.Op | None, steps: dict[str, Any]) -> Plan | None:
    """What `survey` takes: the op's factor or layers, else our families' standard network. Raises N2NError."""
    if op is not None and not isinstance(op, ops.ToWider | ops.ToDeeper):
        raise N2NError(f"op: {op.name} grows nothing; choose from wider, deeper or a baseline of theirs")
    if not isinstance(op, ops.ToWider):
        return None
    if op.factor is not None or op.layers:
        return op.factor if op.factor is not None else dict(op.layers)
    theirs = lineage.constructor(steps)
    width = op.to_width or 1.0
    if theirs is None or theirs["name"] not in models.OURS or theirs.get("width", 1.0) == width:
        raise N2NError("op: give op.factor=1.5 or op.layers={PATTERN: FACTOR}")
    return _build({**theirs, "width": width})


def _dry_run(
    model: nn.Module,
    image: Tensor,
    op: ops.Op,
    steps: dict[str, Any],
    found: Survey,
    before: dict[str, int],
) -> dict[str, Any]:
    """Parameters and MACs before and after; for deeper the modules that identity layers would stand behind."""
    behind: list[str] | None = None
    student = found.student
    if isinstance(op, ops.ToDeeper):
        student, behind = _deeper(model, image, op, steps)
    assert student is not None
    after: dict[str, int | None] = {"parameters": describe.count_parameters(student), "macs": None}
    with contextlib.suppress(N2NError):  # a module may hold numbers that only the proof settles
        after["macs"] = describe.macs(student, image.shape[-1])
    told = {"op": asdict(op), "dry_run": True, "behind": behind}
    return {**told, **{key: {"before": before[key], "after": after[key]} for key in after}}


def _deeper(model: nn.Module, image: Tensor, op: ops.ToDeeper, steps: dict[str, Any]) -> tuple[nn.Module, list[str]]:
    """The deeper network that ``n2n grow`` would make, and what its new layers stand behind."""
    to = deeper_constructor(steps, op)
    if to is None:
        ways: dict[str, Any] = {"new": op.new, "width": op.width} if isinstance(op, ops.Deeper) else {}
        return deepened(model, image, op.sites, pairs=op.pairs, activation=op.activation, **ways)
    student = _build(to)
    old = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    behind, last = [], ""
    for name in dict.fromkeys(name.rpartition(".")[0] for name, _ in student.named_parameters()):
        if name in old:
            last = name
        elif last and last not in behind:
            behind.append(last)
    return student, behind
