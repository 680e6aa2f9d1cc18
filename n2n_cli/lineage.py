"""How a network came to be: its constructor and the growth steps since, as plain data in every checkpoint.

A lineage also names the network's classes (``classes``, in the order of its outputs), if it was trained by n2n.

``build`` makes the architecture again from this data alone. It calls constructors by *name*, from our families
and torchvision's. A name ``package.module:function`` is information only: `build` imports it if its caller says
that the user typed this very name in this command. A checkpoint alone can never make n2n import code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from n2n_cli import models
from n2n_cli.errors import N2NError
from n2n_cli.growth import deeper, wider
from n2n_cli.growth.build.attributes import set_attributes
from n2n_cli.models import custom

REBUILD = {
    "wider": wider.rebuild,
    "random_pad": wider.rebuild,
    "random_init": wider.rebuild,
    "deeper": deeper.rebuild,
    "deep_random_init": deeper.rebuild,
    "continue": wider.rebuild,
    "distill": wider.rebuild,
    "feature_prediction": wider.rebuild,
}


def start(name: str, num_classes: int, **kwargs: Any) -> dict[str, Any]:
    """The lineage of a network fresh from its constructor (arguments as for ``models.build``)."""
    return {"steps": [{"op": "build", "name": name, "num_classes": num_classes, "kwargs": dict(kwargs)}]}


def with_weights(lineage: Mapping[str, Any], file: str, sha256: str) -> dict[str, Any]:
    """The lineage whose last network got its weights from a file."""
    *before, last = lineage["steps"]
    return {**lineage, "steps": [*before, {**last, "weights": {"file": file, "sha256": sha256}}]}


def grow(lineage: Mapping[str, Any], recipe: Mapping[str, Any], to: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The lineage with one step more. ``recipe`` is a ``Growth``'s; ``to`` the constructor's arguments if the student
    was built by its own constructor (``models.build``'s, with ``name`` and ``num_classes``)."""
    step = dict(recipe)
    if to is not None:
        step = {k: v for k, v in step.items() if k not in ("shapes", "insert")} | {"to": dict(to)}
    return {**lineage, "steps": [*lineage["steps"], step]}


def constructor(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of ``models.build`` that give this very architecture; None if growth left the constructors."""
    last = lineage["steps"][-1]
    if last["op"] == "build":
        return {"name": last["name"], "num_classes": last["num_classes"], **last["kwargs"]}
    return dict(last["to"]) if "to" in last else None


def build(lineage: Mapping[str, Any], typed: Collection[str] = (), key: str = "model") -> nn.Module:
    """The network of a lineage, with weights that are still to be loaded.

    ``typed``: every ``package.module:function`` that the user typed in this command; ``key``: where to type one.

    Raises:
        N2NError: the lineage is damaged, or names a network that this installation does not have, or a function of
            the user's that was not typed; nothing is imported then.
    """
    steps = lineage.get("steps") if isinstance(lineage, Mapping) else None
    if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
        raise N2NError("the checkpoint's lineage is damaged: expected a list of steps")
    first = max((i for i, step in enumerate(steps) if step.get("op") == "build" or "to" in step), default=None)
    if first is None:
        raise N2NError("the checkpoint's lineage is damaged: no step says how the network was built")
    try:
        step = steps[first]
        arguments = step.get("to") or {**step["kwargs"], "name": step["name"], "num_classes": step["num_classes"]}
        model = construct(arguments, typed, key)
        if "run_once" in step:
            custom.run_once(model, step["run_once"])
        set_attributes(model, step.get("attributes") or {})  # such as an eps that no argument sets
        for step in steps[first + 1 :]:
            model = REBUILD[step["op"]](model, step)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise N2NError(f"the checkpoint's lineage cannot be replayed: {type(error).__name__}: {error}") from error
    return model


def construct(arguments: Mapping[str, Any], typed: Collection[str] = (), key: str = "model") -> nn.Module:
    """The network of a constructor's arguments; ``typed`` and ``key`` as for `build`. Raises N2NError."""
    name = arguments["name"]
    rest = {word: value for word, value in arguments.items() if word != "name"}
    if not custom.is_spec(name):
        return models.build(name, **rest)
    if name not in typed:
        # The arguments come from the checkpoint too, and may make a harmless function do harm: show them.
        given = ", ".join(f"{word}={value!r}" for word, value in rest.items() if word != "num_classes")
        call = f"{name}({given})" if given else name
        raise N2NError(f"this checkpoint was built by {call}; type {key}={name} to allow importing it")
    return custom.build(name, **rest)


def describe(lineage: Mapping[str, Any]) -> list[str]:
    """One line a step, for people. Raises N2NError for a damaged lineage."""
    try:
        return [_sentence(step) for step in lineage.get("steps", [])]
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise N2NError(f"a lineage is damaged: {type(error).__name__}: {error}") from error


def _sentence(step: Mapping[str, Any]) -> str:
    if step["op"] == "build":
        file = f", weights of {step['weights']['file']}" if "weights" in step else ""
        return f"built {_network(step['name'], step['num_classes'], step['kwargs'])}{file}"
    if step["op"] == "continue":
        return "trained on"
    if "to" in step:
        rest = {k: v for k, v in step["to"].items() if k not in ("name", "num_classes")}
        how = f"to {_network(step['to']['name'], step['to']['num_classes'], rest)}"
    elif "insert" in step:
        how = f"new layers behind {len(step['insert'])} layers"
    else:
        how = f"by {step['plan']}"
    ways = step if step["op"] == "wider" else {}
    new = f", {step['new']} units" if ways.get("new", "copy") != "copy" else ""
    split = f", {step['split']} shares" if ways.get("split", "equal") != "equal" else ""
    noise = f", noise {step['noise']:g}" if step.get("noise") else ""
    if "wider" in step:
        new = f", of width {next(iter(step['wider']['plan'].values())):g}"
    seed = f", seed {step['seed']}" if "seed" in step else ""
    return f"{step['op']} {how}{new}{split}{noise}{seed}"


def _network(name: str, num_classes: int, kwargs: Mapping[str, Any]) -> str:
    rest = "".join(
        f", {key}={value:.4g}" if isinstance(value, float) else f", {key}={value}" for key, value in kwargs.items()
    )
    return f"{name}({num_classes} classes{rest})"
