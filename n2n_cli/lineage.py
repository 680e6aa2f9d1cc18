"""How a network came to be: its constructor and the growth steps since, as plain data in every checkpoint.

``build`` makes the architecture again from this data alone. It calls constructors by *name*, from our families
and torchvision's; a checkpoint can never name code to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from n2n_cli import models
from n2n_cli.errors import N2NError
from n2n_cli.growth import deeper, wider

REBUILD = {
    "wider": wider.rebuild,
    "random_pad": wider.rebuild,
    "random_init": wider.rebuild,
    "deeper": deeper.rebuild,
    "deep_random_init": deeper.rebuild,
}


def start(name: str, num_classes: int, **kwargs: Any) -> dict[str, Any]:
    """The lineage of a network fresh from its constructor (arguments as for ``models.build``)."""
    return {"steps": [{"op": "build", "name": name, "num_classes": num_classes, "kwargs": dict(kwargs)}]}


def grow(lineage: Mapping[str, Any], recipe: Mapping[str, Any], to: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The lineage with one step more. ``recipe`` is a ``Growth``'s; ``to`` the constructor's arguments if the student
    was built by its own constructor (``models.build``'s, with ``name`` and ``num_classes``)."""
    step = dict(recipe)
    if to is not None:
        step = {k: v for k, v in step.items() if k not in ("shapes", "attributes", "insert")} | {"to": dict(to)}
    return {"steps": [*lineage["steps"], step]}


def constructor(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of ``models.build`` that give this very architecture; None if growth left the constructors."""
    last = lineage["steps"][-1]
    if last["op"] == "build":
        return {"name": last["name"], "num_classes": last["num_classes"], **last["kwargs"]}
    return dict(last["to"]) if "to" in last else None


def build(lineage: Mapping[str, Any]) -> nn.Module:
    """The network of a lineage, with weights that are still to be loaded.

    Raises:
        N2NError: the lineage is damaged, or names a network that this installation does not have.
    """
    steps = lineage.get("steps") if isinstance(lineage, Mapping) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
        raise N2NError("the checkpoint's lineage is damaged: expected a list of steps")
    first = max((i for i, step in enumerate(steps) if step.get("op") == "build" or "to" in step), default=None)
    if first is None:
        raise N2NError("the checkpoint's lineage is damaged: no step says how the network was built")
    try:
        model = _construct(steps[first])
        for step in steps[first + 1 :]:
            model = REBUILD[step["op"]](model, step)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise N2NError(f"the checkpoint's lineage cannot be replayed: {type(error).__name__}: {error}") from error
    return model


def _construct(step: Mapping[str, Any]) -> nn.Module:
    if "to" in step:
        return models.build(**step["to"])
    return models.build(step["name"], step["num_classes"], **step["kwargs"])


def describe(lineage: Mapping[str, Any]) -> list[str]:
    """One line a step, for people."""
    return [_sentence(step) for step in lineage.get("steps", [])]


def _sentence(step: Mapping[str, Any]) -> str:
    if step["op"] == "build":
        return f"built {_network(step['name'], step['num_classes'], step['kwargs'])}"
    if "to" in step:
        rest = {k: v for k, v in step["to"].items() if k not in ("name", "num_classes")}
        how = f"to {_network(step['to']['name'], step['to']['num_classes'], rest)}"
    elif "insert" in step:
        how = f"identity layers behind {len(step['insert'])} layers"
    else:
        how = f"by {step['plan']}"
    noise = f", noise {step['noise']:g}" if step.get("noise") else ""
    seed = f", seed {step['seed']}" if "seed" in step else ""
    return f"{step['op']} {how}{noise}{seed}"


def _network(name: str, num_classes: int, kwargs: Mapping[str, Any]) -> str:
    rest = "".join(
        f", {key}={value:.4g}" if isinstance(value, float) else f", {key}={value}" for key, value in kwargs.items()
    )
    return f"{name}({num_classes} classes{rest})"
