"""Numbers that modules hold about their own widths, and what they become in the student.

The layers of ``torch.nn`` say what their attributes mean. Any other module is read: an attribute (an integer, a
tuple or list of them, one level of a dict or config object) that equals a size that the module's own operations
saw change, follows. What is ambiguous is a list of options; ``proof/mend`` tries them where the student goes astray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from n2n_cli.growth.build.maps import grown_length
from n2n_cli.growth.groups.axes import Axis, length, resolve
from n2n_cli.growth.groups.structure import Attributes, Remappings, Structure
from n2n_cli.growth.trace.record import Op

MADE_OF = ("weight_v", "weight_orig", "parametrizations.weight.original1", "parametrizations.weight.original")
"""Parameters of a weight's shape that a weight is computed from: by weight norm, spectral norm, pruning."""
READ = (nn.Unflatten, nn.Transformer)  # of torch.nn, and yet read like a user's module


@dataclass
class Option:
    """An attribute that may have to follow: the values that it may take, the likeliest first, and its ``own``."""

    path: str
    attribute: str
    values: list[Any]
    own: Any


def follow(model: nn.Module, structure: Structure, remappings: Remappings) -> Attributes:
    """The attributes that change, at first guess."""
    out: Attributes = {}
    shape = {name: [grown_length(axis, remappings) for axis in axes] for name, axes in structure.axes.items()}
    for path, module in model.named_modules():
        held = [n for n, _ in module.named_parameters(recurse=False)] + [
            n for n, _ in module.named_buffers(recurse=False)
        ]
        own = {n: structure.aliases[f"{path}.{n}" if path else n] for n in held}
        for made_of in MADE_OF if "weight" not in own else ():
            full = f"{path}.{made_of}" if path else made_of
            if full in structure.aliases:
                own["weight"] = structure.aliases[full]
        new = documented(module, {n: shape[full] for n, full in own.items()}, structure, own)
        changed = {k: v for k, v in new.items() if getattr(module, k, v) != v}
        if changed:
            out[path] = changed
    for option in options(model, structure, remappings):
        if option.values[0] != option.own:
            out.setdefault(option.path, {}).setdefault(option.attribute, option.values[0])
    for path, values in told_by_relations(structure, remappings).items():
        out.setdefault(path, {}).update(values)
    return out


def told_by_relations(structure: Structure, remappings: Remappings) -> Attributes:
    """What relations ask for, such as the eps of relaxed norms: numbers that no constructor sets."""
    out: Attributes = {}
    for relation in structure.relations:
        for path, values in relation.attributes(remappings).items():
            out.setdefault(path, {}).update(values)
    return out


def documented(
    module: nn.Module, shapes: dict[str, list[int]], structure: Structure, own: dict[str, str]
) -> dict[str, Any]:
    """What the layers of torch.nn say about themselves. ``shapes``: new shapes of the tensors that it holds."""
    weight = shapes.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        groups = module.groups
        if structure.grouped.get(own["weight"]):
            groups = weight[0] * groups // (module.in_channels if module.transposed else module.out_channels)
        a, b = weight[0], weight[1] * groups
        ins, outs = (a, b) if module.transposed else (b, a)
        return {"in_channels": ins, "out_channels": outs, "groups": groups}
    if isinstance(module, nn.MultiheadAttention):
        inner = shapes["in_proj_weight" if "in_proj_weight" in shapes else "q_proj_weight"]
        rows, width = (inner[0] // 3 if "in_proj_weight" in shapes else inner[0]), inner[1]
        keys, values = ((shapes[n][1] if n in shapes else width) for n in ("k_proj_weight", "v_proj_weight"))
        return {
            "embed_dim": width,
            "kdim": keys,
            "vdim": values,
            "num_heads": max(1, rows // module.head_dim),
        }
    if isinstance(module, nn.Linear) and weight:
        return {"in_features": weight[1], "out_features": weight[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        size = weight or shapes.get("running_mean")
        return {"num_features": size[0]} if size else {}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight:
        return {"normalized_shape": tuple(weight)}
    if isinstance(module, nn.GroupNorm) and weight:
        return {"num_channels": weight[0]}
    if isinstance(module, nn.Embedding) and weight:
        return {"embedding_dim": weight[1]}
    if isinstance(module, nn.PReLU) and weight:
        return {"num_parameters": weight[0]}
    return {}


@dataclass
class Seen:
    """Sizes that a module's operations met: old -> new ones, and whole shapes that lists may spell out."""

    sizes: dict[int, set[int]] = field(default_factory=dict)
    shapes: set[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=set)

    def add(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        if old and (old, new) not in self.shapes:
            self.shapes.add((old, new))
            for was, now in zip(old, new, strict=True):
                self.sizes.setdefault(was, set()).add(now)

    def values(self, value: Any) -> list[Any]:
        """What an attribute may become, the likeliest first; the value itself is always among them."""
        if type(value) is int:
            became = sorted(self.sizes.get(value, {value}) - {value})
            first = became if len(became) == 1 and value > 1 else []
            return list(dict.fromkeys([*first, value, *became]))
        found: list[Any] = []
        wide = tuple(value)
        for old, new in sorted(self.shapes):
            for at in range(len(old) - len(wide) + 1):
                if old[at : at + len(wide)] == wide:
                    found.append(type(value)(new[at : at + len(wide)]))
        found.sort(key=lambda v: v == value)
        each = type(value)(self.values(n)[0] for n in wide)
        return _unique([*found, value, each])


def _unique(values: list[Any]) -> list[Any]:
    out: list[Any] = []
    for value in values:
        if value not in out:
            out.append(value)
    return out


def seen(structure: Structure, remappings: Remappings) -> dict[str, Seen]:
    """Module path -> the sizes that its own operations saw, in either mode."""
    found: dict[str, Seen] = {}
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops:
            here = found.setdefault(op.path, Seen())
            for tensor in [*op.outputs, *op.tensors()]:
                axes = labels.get(id(tensor))
                if axes:
                    here.add(tuple(tensor.shape), tuple(grown_length(axis, remappings) for axis in axes))
            if len(op.outputs) > 1:  # the sizes of a split
                for dim in range(op.outputs[0].ndim):
                    olds = tuple(t.shape[dim] for t in op.outputs if t.ndim > dim)
                    news = tuple(grown_length(labels[id(t)][dim], remappings) for t in op.outputs if t.ndim > dim)
                    here.add(olds, news)
            for old, new in _made_beside(op, labels, remappings):
                here.add(old, new)
    return found


def _made_beside(
    op: Op, labels: dict[int, list[Axis]], remappings: Remappings
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """How many positions an operation puts beside those that it was given (a padding of channels), old and new; and
    the list of numbers, if it got one, that says how many."""
    axes = [resolve(axis) for out in op.outputs for axis in labels.get(id(out), [])]
    axes = [axis for axis in axes if len(axis) > 1]
    if not axes:
        return
    given = {group for t in op.tensors() for axis in labels.get(id(t), []) for group, _ in resolve(axis)}
    made: dict[int, int] = {}
    for axis in axes:
        for new, spans in groupby(axis, lambda span: span[0] not in given):
            part = list(spans)
            if new and len(part) < len(axis):
                made[length(part)] = grown_length(part, remappings)
    for old, grown in made.items():
        yield (old,), (grown,)
    lists = [list[int](arg) for arg in op.args if isinstance(arg, list | tuple) and all(type(n) is int for n in arg)]
    for amounts in lists:
        if made.keys() & set(amounts):
            yield tuple(amounts), tuple(made.get(n, n) for n in amounts)


def options(
    model: nn.Module, structure: Structure, remappings: Remappings, *, below: bool = False, above: bool = False
) -> list[Option]:
    """Attributes of users' modules (and attention) that equal a size that changed.

    ``below``: seen by the module's own operations or by those of modules inside it (to which it may have passed them);
    ``above``: or by those of the module that holds it (which may have called its methods).
    """
    sizes = seen(structure, remappings)
    if above:
        for path, _ in reversed(list(model.named_modules())):
            for old, new in list(sizes.get(path.rpartition(".")[0], Seen()).shapes) if path else []:
                sizes.setdefault(path, Seen()).add(old, new)
    if below:
        for path in list(sizes):
            parent = path
            while parent:
                parent = parent.rpartition(".")[0]
                for old, new in list(sizes[path].shapes):
                    sizes.setdefault(parent, Seen()).add(old, new)
    found: list[Option] = []
    holders: dict[tuple[int, str], Seen] = {}  # a config object that several modules share has seen what they all saw
    places: dict[tuple[int, str], tuple[str, str]] = {}
    for path, module in model.named_modules():
        bare = isinstance(module, nn.modules.batchnorm._NormBase) and not any(True for _ in module.parameters())
        kind = type_before_parametrizations(module)
        if kind.__module__.startswith("torch.nn.modules") and not isinstance(module, READ) and not bare:
            continue
        for holder, name in numbers(module):
            key = (id(holder), name.rpartition(".")[2])
            places.setdefault(key, (path, name))
            merged = holders.setdefault(key, Seen())
            for old, new in sizes.get(path, Seen()).shapes:
                merged.add(old, new)
    for (path, name), merged in zip(places.values(), holders.values(), strict=True):
        own = _get(model, path, name)
        values = merged.values(own)
        if len(values) > 1:
            found.append(Option(path, name, values, own))
    return found


def numbers(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """(holder, dotted name) of a module's whole numbers and lists of them, and of those one level down."""
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if _counts(value):
            yield module, name
        elif not isinstance(value, nn.Module | Tensor | type):
            inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
            if isinstance(inner, dict) and not callable(value):
                for key, number in inner.items():
                    if isinstance(key, str) and not key.startswith("_") and _counts(number):
                        yield value, f"{name}.{key}"


def _counts(value: Any) -> bool:
    return type(value) is int or (
        type(value) in (tuple, list) and len(value) > 0 and all(type(n) is int for n in value)
    )


def _get(model: nn.Module, path: str, attribute: str) -> Any:
    name, _, inner = attribute.partition(".")
    value = getattr(model.get_submodule(path), name)
    if not inner:
        return value
    return value[inner] if isinstance(value, dict) else getattr(value, inner)


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Write them into ``model`` (they come back from a checkpoint with lists for tuples)."""
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for attribute, value in values.items():
            name, _, inner = attribute.partition(".")
            old = _get(model, path, attribute)
            if isinstance(old, tuple) and isinstance(value, list):
                value = tuple(value)
            if not inner:
                setattr(module, name, value)
            elif isinstance(getattr(module, name), dict):
                getattr(module, name)[inner] = value
            else:
                object.__setattr__(getattr(module, name), inner, value)
