"""Networks that are built from a config object (``type(model)(model.config)``, as in Hugging Face transformers): the
settings by which the same class builds the student, so that what is saved with its config can be loaded again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from n2n_cli.growth.build.attributes import set_attributes
from n2n_cli.growth.build.students import Candidate
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.proof.gap import function_gap
from n2n_cli.growth.trace.calls import same_chance
from n2n_cli.growth.trace.copies import named_tensors

NEAR = 1e-4  # relative gap in fp32 between a network and itself, built anew
Shapes = dict[str, tuple[int, ...]]
Settings = dict[str, Any]


def settings_of(teacher: nn.Module, candidate: Candidate) -> Settings | None:
    """The settings in which the student's config must differ from the teacher's; None: no settings build the student.

    Args:
        teacher: with an attribute ``config``; any other network needs no settings: ``{}``.
        candidate: its student, proved.

    A number among the settings may become what an axis of that size, a number of units or a module's attribute of that
    value became. Those are kept with which more axes have the student's sizes; then those that no shape shows, such as
    a number of heads, with which what is built computes what the student does.
    """
    config, student = vars(teacher).get("config"), candidate.student
    wanted = _shapes(student)
    if (
        not hasattr(config, "__dict__")
        or _with(config, {}) is config
        or _built(teacher, config, {}) != _shapes(teacher)
    ):
        return {}
    candidates = list(_candidates(config, _became(teacher, candidate)))
    settings: Settings = {}
    best = _right(_built(teacher, config, settings), wanted)
    for name, value in candidates * 2:  # twice: some take effect beside others only
        with_this = {**settings, name: value}
        right = _right(_built(teacher, config, with_this), wanted)
        if right > best:
            settings, best = with_this, right
    if _built(teacher, config, settings) != wanted:
        return None
    unseen = [(name, value) for name, value in candidates if name not in settings]
    settings |= {name: value for name, value in unseen if isinstance(value, float)}  # the eps of norms
    for one_more in [{}, *({name: value} for name, value in unseen)]:
        if _computes(teacher, config, settings | one_more, student, candidate.structure.examples()[0]):
            return settings | one_more
    return None


def _computes(teacher: nn.Module, config: Any, settings: Settings, student: nn.Module, example: Any) -> bool:
    """Whether what the settings build computes what the student does, with its weights."""
    with suppress(Exception), same_chance():
        built = type(teacher)(_with(config, settings)).to(next(student.parameters()))
        built.load_state_dict(student.state_dict())
        return function_gap(student, built, example, training=False) <= NEAR
    return False


def with_settings(teacher: nn.Module, candidate: Candidate, prove: Callable[[Candidate], None]) -> Candidate:
    """A proved candidate whose config says its sizes, proved again; as it is, and not ``described``, where none can."""
    settings = settings_of(teacher, candidate)
    candidate.described = settings is not None
    own = vars(candidate.student).get("config")
    changed = {f"config.{name}": value for name, value in (settings or {}).items() if getattr(own, name) != value}
    if changed and candidate.given is None:
        before = {name: getattr(own, name.partition(".")[2]) for name in changed}
        set_attributes(candidate.student, {"": changed})
        try:
            prove(candidate)
            candidate.attributes = {**candidate.attributes, "": {**candidate.attributes.get("", {}), **changed}}
        except GrowthError:  # its code reads a setting in another sense than its constructor does
            set_attributes(candidate.student, {"": before})
            candidate.described = False
    return candidate


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model, every_name=True)}


def _with(config: Any, settings: Mapping[str, Any]) -> Any:
    changed = copy.deepcopy(config)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def _built(model: nn.Module, config: Any, settings: Mapping[str, Any]) -> Shapes:
    """The shapes of what the network's class builds with these settings; empty where it refuses them."""
    try:
        with torch.device("meta"), same_chance():
            return _shapes(type(model)(_with(config, settings)))
    except Exception:  # whatever a constructor raises about settings that exclude each other
        return {}


def _right(shapes: Shapes, wanted: Shapes) -> int:
    """How many axes have the student's sizes."""
    return sum(
        a == b for name in shapes.keys() & wanted.keys() for a, b in zip(shapes[name], wanted[name], strict=False)
    )


def _became(teacher: nn.Module, candidate: Candidate) -> dict[Any, set[Any]]:
    """What numbers of the teacher became in the student: sizes of axes, units of groups, attributes of modules."""
    before, after = _shapes(teacher), _shapes(candidate.student)
    pairs: list[tuple[Any, Any]] = [
        pair for name, shape in before.items() for pair in zip(shape, after[name], strict=True)
    ]
    pairs += [(group.n, size) for group, size in candidate.sizes.items()]
    for path, values in candidate.attributes.items():
        module = teacher.get_submodule(path)
        pairs += [(getattr(module, name, None), new) for name, new in values.items()]
    found: dict[Any, set[Any]] = {}
    for old, new in pairs:
        if type(old) is type(new) and isinstance(old, int | float) and old != new:
            found.setdefault(old, set()).add(new)
    return found


def _candidates(config: Any, became: Mapping[Any, set[Any]]) -> Iterator[tuple[str, Any]]:
    """(setting, value) for every number, and every list of numbers, that became something else."""
    for name, value in vars(config).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            for new in sorted(became.get(value, ())):
                yield name, new
        elif isinstance(value, list | tuple) and value and all(type(n) is int for n in value):
            each = [sorted(became.get(n, {n}))[-1] for n in value]
            if each != list(value):
                yield name, type(value)(each)
