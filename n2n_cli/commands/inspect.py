"""``n2n inspect``: the layers of a checkpoint or of a named network, their shapes, parameters and MACs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from n2n_cli import config, lineage, models
from n2n_cli.commands import common
from n2n_cli.commands.common import say
from n2n_cli.commands.evaluate import stored_config
from n2n_cli.models import describe


def run(cfg: config.Inspect, command: str) -> None:
    state: dict[str, Any] = {}
    size = cfg.image_size
    if Path(cfg.target).exists():
        path = common.resolve(Path(cfg.target))
        model, state = common.load_network(path)
        steps = state["lineage"]
        title = f"{path} (step {state['step']})"
        size = size or stored_config(state, path).data.image_size
    else:
        small = {"stem": "small"} if cfg.target.endswith("_tiny") else {}
        arguments: dict[str, Any] = {"name": cfg.target, "num_classes": cfg.num_classes, "width": cfg.width}
        arguments |= {**small, **cfg.kwargs}
        model, steps, title = models.build(**arguments), lineage.start(**arguments), cfg.target
        size = size or (32 if small else 299 if cfg.target == "inception_v3" else None)
    size = size or 224
    layers = describe.layers(model, size)
    totals = {"parameters": describe.count_parameters(model), "macs": describe.macs(model, size)}
    if cfg.json:
        rows = [asdict(layer) for layer in layers]
        say(json.dumps({"target": cfg.target, "image_size": size, **totals, "layers": rows, "lineage": steps}))
        return
    say(title)
    for row in table(layers):
        say(row)
    say(f"{totals['parameters']:,} parameters, {totals['macs']:,} MACs an image of {size} x {size}")
    say("lineage: " + "; ".join(lineage.describe(steps)))


def table(layers: list[describe.Layer]) -> list[str]:
    """One line a layer, columns aligned."""
    head = ("layer", "kind", "weight", "output", "parameters", "MACs")
    rows = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.weight_shape)) or "-",
            "x".join(map(str, layer.output_shape[1:])) or "-",
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
        )
        for layer in layers
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(
            f"{cell:>{width}}" if column > 3 else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
