"""From what the user asks for to a new size for every group, and the random mapping of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor, isfinite

import torch
from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth import norms, shuffles
from n2n_cli.growth.axes import Axis, Group, Reason, fix, length, resolve
from n2n_cli.growth.common import tensors
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.infer import Structure

Plan = float | Mapping[str, float] | nn.Module
Sizes = dict[Group, int]


def solve(structure: Structure, plan: Plan, *, coupled: bool = False) -> Sizes:
    """New sizes of all groups.

    ``plan`` is a factor (1.5), a mapping from layer patterns to factors (``{"layer1.*": 1.5}``) or widths
    (``{"fc1": 512}``, whole numbers), or a student built by its own constructor, whose shapes are reached. ``coupled``:
    what layer patterns ask for brings along the widths that are equal to it in the same module.

    Raises:
        GrowthError: the plan shrinks a layer, names none, contradicts a tie, or cannot be reached.
    """
    classes = tie_classes(structure)
    if isinstance(plan, nn.Module):
        return _to_student(structure, classes, plan)
    if isinstance(plan, Mapping):
        return _by_pattern(structure, classes, plan, coupled)
    _check_factor(plan, "the factor")
    groups = [group for group in structure.groups() if not group.fixed]
    sizes = _whole(structure, classes, {group: _scaled(group, plan) for group in groups}, strict=False)
    return fit_shuffles(structure, couple(structure, balance(structure, sizes)))


def _check_factor(factor: float, what: str) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not isfinite(factor) or factor < 1:
        raise GrowthError(f"{what} is {factor!r}: expected a finite number of at least 1 (growth never shrinks)")


def _scaled(group: Group, factor: float) -> int:
    return max(group.n, floor(group.n * factor + 0.5))


@dataclass
class TieClass:
    """Groups that grow by one common whole number; ``fixed`` if one of them cannot grow at all."""

    groups: list[Group]
    reason: str
    fixed: str | None


def tie_classes(structure: Structure) -> list[TieClass]:
    """Merge the ties that share groups."""
    classes: list[TieClass] = []
    for tie in structure.ties:
        runs = resolve(tie.axis)
        merged = TieClass([], tie.reason, next((str(g.fixed) for g, _ in runs if g.fixed), None))
        members = dict.fromkeys(group for group, _ in runs if not group.fixed)
        for other in [c for c in classes if any(group in members for group in c.groups)]:
            classes.remove(other)
            members.update(dict.fromkeys(other.groups))
            merged.fixed = merged.fixed or other.fixed
        merged.groups = list(members)
        if members:
            classes.append(merged)
    return classes


def layers_of(structure: Structure, groups: Iterable[Group]) -> list[str]:
    """The layers that hold any of the groups, in the order of the model."""
    places = structure.groups()
    return list(dict.fromkeys(n.rpartition(".")[0] or n for g in groups for n, _ in places.get(g, [])))


def _whole(structure: Structure, classes: list[TieClass], sizes: Sizes, strict: bool) -> Sizes:
    """Round tied groups to a common whole number; ``strict`` refuses instead of rounding."""
    for tie in classes:
        wanted = {group: sizes.get(group, group.n) for group in tie.groups}
        ratios = [size / group.n for group, size in wanted.items()]
        factor = 1 if tie.fixed else floor(max(ratios) + 0.5)
        if strict and any(ratio != factor for ratio in ratios):
            why = f"{tie.reason}" + (f"; tied to a part that cannot grow ({tie.fixed})" if tie.fixed else "")
            asked = f"{min(ratios):g}" + (f" to {max(ratios):g}" if min(ratios) != max(ratios) else "")
            names = layers_of(structure, tie.groups)
            named = ", ".join(names[:3]) + (" ..." if names[3:] else "")
            raise GrowthError(
                f"the plan asks for {asked} times the units of {named}, but {why}: every unit must be copied the same "
                "whole number of times"
            )
        sizes.update({group: group.n * factor for group in tie.groups})
    return sizes


def rounded(structure: Structure, sizes: Sizes, factor: float) -> bool:
    """Whether whole-number ties were given another size than ``factor`` asks for."""
    groups = [g for tie in tie_classes(structure) if not tie.fixed for g in tie.groups]
    return any(sizes.get(group, group.n) != _scaled(group, factor) for group in groups)


def produced_by(structure: Structure) -> dict[str, list[Axis]]:
    """Layer name -> the axes it produces (out axis of its weight), for patterns and reports."""
    layers: dict[str, list[Axis]] = {}
    for name, axes in structure.axes.items():
        layer, _, leaf = name.rpartition(".")
        if len(axes) >= 2 and "weight" in leaf:
            dims = [d for d in range(2) if (name, d) not in structure.consumed and _has_open(axes[d])]
            layers.setdefault(layer, []).extend(axes[d] for d in dims)
    return layers


def _has_open(axis: Axis) -> bool:
    return any(not group.fixed for group, _ in resolve(axis))


def _by_pattern(structure: Structure, classes: list[TieClass], plan: Mapping[str, float], coupled: bool) -> Sizes:
    layers = produced_by(structure)
    sizes: Sizes = {}
    asked: dict[Group, str] = {}
    for pattern, amount in plan.items():
        if not isinstance(pattern, str):
            raise GrowthError(f"{pattern!r} is no layer pattern: expected text, for example 'layer1.*'")
        matched = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matched:
            raise GrowthError(f"no layer matches '{pattern}'{suggest(pattern, layers)}")
        if not any(layers[layer] for layer in matched):
            reason = next(
                (
                    str(g.fixed)
                    for n, axes in structure.axes.items()
                    if n == f"{matched[0]}.weight"
                    for g, _ in resolve(axes[0])
                    if g.fixed
                ),
                "its output is fixed",
            )
            raise GrowthError(f"layer '{matched[0]}' cannot be widened: {reason}")
        for layer in matched:
            for axis in layers[layer]:
                for group, size in _axis_sizes(layer, axis, amount).items():
                    if sizes.setdefault(group, size) != size:
                        raise GrowthError(
                            f"the plan contradicts itself: layers '{asked[group]}' and '{layer}' share their units "
                            f"(tied) but are asked for {sizes[group]} and {size}"
                        )
                    asked[group] = layer
    sizes = balance(structure, sizes)
    if coupled:
        sizes = couple(structure, sizes, set(asked))
    return fit_shuffles(structure, _whole(structure, classes, sizes, strict=True))


def _axis_sizes(layer: str, axis: Axis, amount: float) -> Sizes:
    """Sizes of an axis's groups for a factor (float) or a width in positions (int)."""
    runs = [(group, k) for group, k in resolve(axis)]
    total = length(axis)
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise GrowthError(f"layer '{layer}': expected a factor (1.5) or a width (96), got {amount!r}")
    if isinstance(amount, float):
        _check_factor(amount, f"the factor of layer '{layer}'")
        return {group: _scaled(group, amount) for group, _ in runs if not group.fixed}
    if amount < total:
        hint = f" (for a factor write {amount}.0)" if amount <= 8 else ""
        raise GrowthError(f"layer '{layer}' has {total} channels and cannot shrink to {amount}{hint}")
    each: dict[Group, int] = {}  # positions that one more unit adds; a grouped layer's units stand there several times
    for group, k in runs:
        if not group.fixed:
            each[group] = each.get(group, 0) + k
    fixed = total - sum(group.n * k for group, k in each.items())
    factor = (amount - fixed) / (total - fixed)
    sizes = {group: _scaled(group, factor) for group in each}
    short = int(amount) - fixed - sum(sizes[group] * k for group, k in each.items())
    if short:
        last, k = list(each.items())[-1]
        if short % k or sizes[last] + short // k < last.n:
            raise GrowthError(f"layer '{layer}' cannot have {amount} channels: its units cover {k} channels each")
        sizes[last] += short // k
    return sizes


def _to_student(structure: Structure, classes: list[TieClass], student: nn.Module) -> Sizes:
    """Solve the sizes from the shapes of a student built by its own constructor."""
    state = dict(student.state_dict(keep_vars=True))
    equations: list[tuple[str, list[tuple[Group, int]], int, int]] = []
    for name, axes in structure.axes.items():
        if name not in state:
            continue
        equations += [(name, resolve(axis), state[name].shape[d], d) for d, axis in enumerate(axes)]
    sizes: Sizes = {}
    pending = equations
    while pending:
        later = []
        for name, runs, target, dim in pending:
            unknown = {group for group, _ in runs if not group.fixed and group not in sizes}
            if len(unknown) > 1:
                later.append((name, runs, target, dim))
                continue
            rest = target - sum(sizes.get(g, g.n) * k for g, k in runs if g not in unknown)
            each = sum(k for g, k in runs if g in unknown)
            for group in unknown:
                if rest < group.n * each or rest % each:
                    _unreachable(structure, name, state[name].shape, runs)
                sizes[group] = rest // each
            if not unknown and rest:
                _unreachable(structure, name, state[name].shape, runs)
        if len(later) == len(pending):  # nothing left that decides: spread one axis in proportion
            name, runs, target, dim = later[0]
            unknown_runs = [(g, k) for g, k in runs if not g.fixed and g not in sizes]
            fixed = sum(sizes.get(g, g.n) * k for g, k in runs if g.fixed or g in sizes)
            factor = (target - fixed) / sum(g.n * k for g, k in unknown_runs)
            if factor < 1:
                _unreachable(structure, name, state[name].shape, runs)
            sizes[unknown_runs[0][0]] = _scaled(unknown_runs[0][0], factor)
        pending = later
    return _whole(structure, classes, balance(structure, sizes), strict=True)


def check_names(model: nn.Module, student: nn.Module) -> None:
    """Raises GrowthError at the first tensor of the student that no widening of the teacher's can give."""
    ours, theirs = student.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    for name, tensor in ours.items():
        if name not in theirs:
            raise GrowthError(f"the student cannot be reached: '{name}' is in the student alone, {list(tensor.shape)}")
        have, want = list(theirs[name].shape), list(tensor.shape)
        if len(have) != len(want) or have[2:] != want[2:]:
            raise GrowthError(
                f"the student cannot be reached: '{name}' is {have} in the teacher and {want} in the student"
            )
    for name, tensor in theirs.items():
        if name not in ours:
            raise GrowthError(f"the student cannot be reached: '{name}' is in the teacher alone, {list(tensor.shape)}")


def _unreachable(structure: Structure, name: str, want: tuple[int, ...], runs: list[tuple[Group, int]]) -> None:
    have = [length(axis) for axis in structure.axes[name]]
    reason = next((str(group.fixed) for group, _ in runs if group.fixed), None)
    why = reason or "smaller, or at odds with a layer that shares its units"
    raise GrowthError(
        f"the student cannot be reached: '{name}' is {have} in the teacher and {list(want)} in the student ({why})"
    )


@dataclass
class Remapping:
    """A remapping: ``index[j]`` is the teacher unit that student unit ``j`` copies, ``copies[j]`` how many do.

    ``kind`` tells what a unit beyond the first copies holds: "copy" the same value; "scaled" (RMS norm's stream): every
    copy holds the value over sqrt(copies); "mean" (layer norm's stream): the mean over all units; "zero" (what a layer
    norm makes of those): nothing. ``idle`` units hold what nobody reads (see `shuffles`).
    """

    index: Tensor
    copies: Tensor
    kind: str = "copy"
    idle: Tensor | None = None


def draw(structure: Structure, sizes: Sizes, seed: int) -> dict[Group, Remapping]:
    """A random mapping for every group that grows (paper section 2.3): the first ``n`` units are the teacher's,
    the others drawn uniformly with replacement; tied groups copy every unit equally often, moved groups as far as
    their fates allow. The draw comes from a CPU generator, so that every machine and rank gets the same one.

    Raises:
        GrowthError: with these sizes a channel shuffle would lose a unit.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = {group for tie in tie_classes(structure) for group in tie.groups}
    kinds = norms.kinds(structure.norms)
    moved = _moved(structure, sizes, generator)
    mappings: dict[Group, Remapping] = {}
    for group in structure.groups():
        size = sizes.get(group, group.n)
        if group in moved:
            index, idle = moved[group]
            counts = torch.bincount(index[~idle], minlength=group.n).clamp(min=1)
            mappings[group] = Remapping(index, counts[index], idle=idle if idle.any() else None)
        elif size == group.n or group.fixed:
            continue
        elif group in tied:
            index = torch.arange(group.n).repeat(size // group.n)
            mappings[group] = _counted(index, group)
        else:
            extra = torch.randint(group.n, (size - group.n,), generator=generator)
            mappings[group] = _counted(torch.cat([torch.arange(group.n), extra]), group)
            mappings[group].kind = kinds.get(group, "copy")
    for norm in structure.norms:  # an RMS norm's result copies what its stream copies
        stream, out = norm.groups()
        if norm.kind == "rms" and stream in mappings:
            mappings[out] = Remapping(mappings[stream].index, mappings[stream].copies)
    return mappings


def _counted(index: Tensor, group: Group) -> Remapping:
    return Remapping(index, torch.bincount(index, minlength=group.n)[index])


def _moved(structure: Structure, sizes: Sizes, generator: torch.Generator) -> dict[Group, tuple[Tensor, Tensor]]:
    involved = [group for part in shuffles.components(structure.shuffles) for group in part]
    if all(sizes.get(group, group.n) == group.n for group in involved):
        return {}
    moved = shuffles.draw(structure, sizes, generator)
    if moved is None:
        site = structure.shuffles[0].site
        raise GrowthError(
            f"the student cannot be reached: with these widths the channel shuffle at {site[0]} would lose a unit"
        )
    return moved


def fit_shuffles(structure: Structure, sizes: Sizes) -> Sizes:
    """Groups that channel shuffles connect, at the size nearest to the asked one at which no unit gets lost."""
    for part in shuffles.components(structure.shuffles):
        old, wanted = {group.n for group in part}, {sizes.get(group, group.n) for group in part}
        here = replace(structure, shuffles=[s for s in structure.shuffles if s.groups()[0] in part])
        n, target = min(old), min(wanted)
        near = sorted(range(n + 1, 2 * target + 2), key=lambda s: (abs(s - target), s))
        alike = [{group: group.n * size // n for group in part} for size in near]
        trials = [sizes, *({**sizes, **widths} for widths in alike if _proportional(widths))]
        wide = next((t for t in trials if shuffles.draw(here, t, torch.Generator()) is not None), None)
        sizes = wide or {**sizes, **{group: group.n for group in part}}
        if wide is None and wanted != old:
            site = here.shuffles[0].site
            fix([(group, 1) for group in part], Reason(f"{site[1]} at {site[0]}: a wider channel shuffle loses a unit"))
    return sizes


def _proportional(widths: Sizes) -> bool:
    """Whether no width was rounded."""
    return len({Fraction(size, group.n) for group, size in widths.items()}) == 1


def balance(structure: Structure, sizes: Sizes) -> Sizes:
    """Axes that must keep equal lengths: where rounding set them apart the one with the larger units decides."""
    sizes = dict(sizes)
    for a, b in structure.equal:
        left, right = resolve(a), resolve(b)
        if len(left) != 1 or len(right) != 1 or left[0][0].fixed or right[0][0].fixed:
            continue
        (g, k), (h, m) = left[0], right[0]
        if sizes.get(g, g.n) * k == sizes.get(h, h.n) * m:
            continue
        if (k, sizes.get(g, g.n)) < (m, sizes.get(h, h.n)):
            (g, k), (h, m) = (h, m), (g, k)
        if sizes.get(g, g.n) * k % m == 0:
            sizes[h] = max(h.n, sizes.get(g, g.n) * k // m)
    return sizes


def couple(structure: Structure, sizes: Sizes, asked: Collection[Group] = ()) -> Sizes:
    """Axes of one length that one module's operations meet (a width, and its heads times their width) stay so.

    Rounding may set them apart: 4.5 heads become 5. What was ``asked`` for decides, then what may only grow by whole
    numbers, or else the larger unit.
    """
    sizes = dict(sizes)
    tied = {group for tie in tie_classes(structure) for group in tie.groups}
    by_length: dict[tuple[str, int], dict[tuple[tuple[Group, int], ...], None]] = {}
    for recording, labels in zip(structure.recordings, structure.labels, strict=True):
        for op in recording.ops:
            for tensor in [*tensors(op), *op.outputs]:
                for axis, n in zip(labels.get(id(tensor), []), tensor.shape, strict=False):
                    runs = tuple(resolve(axis))
                    if len(runs) == 1 and not runs[0][0].fixed:
                        by_length.setdefault((op.path, n), {})[runs] = None
    apart = [[runs[0] for runs in axes] for axes in by_length.values() if len(axes) > 1]
    for _ in range(len(apart)):
        before = dict(sizes)
        for axes in apart:
            lengths = {sizes.get(g, g.n) * k for g, k in axes}
            if len(lengths) < 2:
                continue
            group, k = max(axes, key=lambda run: (run[0] in asked, run[0] in tied, run[1], sizes.get(run[0], run[0].n)))
            length = sizes.get(group, group.n) * k
            for other, m in axes:
                if other not in tied and other not in asked and length % m == 0 and length // m >= other.n:
                    sizes[other] = length // m
        sizes = balance(structure, sizes)
        if sizes == before:
            break
    return sizes
