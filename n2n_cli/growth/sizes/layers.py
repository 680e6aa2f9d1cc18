"""What a plan asks for: a factor for all groups, or factors and widths for the layers that patterns name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import floor, isfinite
from numbers import Integral, Real
from typing import Any

from n2n_cli.errors import suggest
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.axes import Axis, Group, is_open, length, resolve
from n2n_cli.growth.groups.structure import Sizes, Structure, Wish

MOST_UNITS = 2**24


def by_factor(structure: Structure, factor: float) -> Wish:
    """``factor`` times the units of every group that may grow, rounded half up.

    Raises:
        GrowthError: the factor is no finite number of at least 1.
    """
    factor = plain_number(factor)
    _check_factor(factor, "the factor")
    return Wish(
        {group: grown_units(group, factor) for group in structure.groups() if not group.fixed}, "factor", coupled=True
    )


def by_layer(structure: Structure, plan: Mapping[str, float], *, coupled: bool = False) -> Wish:
    """``{layer pattern: factor (1.5) or width (96)}``.

    Raises:
        GrowthError: a pattern matches no layer or none that may grow, or the amounts contradict each other.
    """
    layers = _produced(structure)
    sizes: Sizes = {}
    asked: dict[Group, str] = {}
    for pattern, given in plan.items():
        amount = plain_number(given)
        if not isinstance(pattern, str):
            raise GrowthError(f"{pattern!r} is no layer pattern: expected text, for example 'layer1.*'")
        matched = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matched:
            raise GrowthError(f"no layer matches '{pattern}'{suggest(pattern, layers)}")
        if not any(layers[layer] for layer in matched):
            weight = structure.axes.get(f"{matched[0]}.weight", [[]])
            reason = next((g.fixed for g, _ in resolve(weight[0]) if g.fixed), "its output is fixed")
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
    return Wish(sizes, "layers", set(asked), coupled)


def plain_number(value: Any) -> Any:
    """NumPy's numbers as Python's; anything else as it is."""
    if isinstance(value, Integral | Real) and not isinstance(value, bool | int | float):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def _check_factor(factor: float, what: str) -> None:
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not isfinite(factor) or factor < 1:
        raise GrowthError(f"{what} is {factor!r}: expected a finite number of at least 1 (growth never shrinks)")


def grown_units(group: Group, factor: float) -> int:
    """``factor`` times the units of a group, rounded half up; never fewer than it has."""
    return max(group.n, floor(group.n * factor + 0.5))


def check_sizes(structure: Structure, sizes: Sizes) -> None:
    """Raises GrowthError where a plan asks for more units than a network can have."""
    for group, size in sizes.items():
        if size > MOST_UNITS:
            layer = next(iter(structure.layers([group])), "a layer")
            raise GrowthError(f"the plan asks for {size:.3g} units of {layer}: expected at most {MOST_UNITS}")


def _produced(structure: Structure) -> dict[str, list[Axis]]:
    """Layer name -> the axes that it produces and that may grow (the output axis of its weight)."""
    layers: dict[str, list[Axis]] = {}
    for name, axes in structure.axes.items():
        layer, _, leaf = name.rpartition(".")
        if len(axes) >= 2 and "weight" in leaf:
            dims = [d for d in range(2) if (name, d) not in structure.consumed and is_open(axes[d])]
            layers.setdefault(layer, []).extend(axes[d] for d in dims)
    return layers


def _axis_sizes(layer: str, axis: Axis, amount: float) -> Sizes:
    """Sizes of an axis's groups for a factor (float) or a width in positions (int)."""
    total = length(axis)
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise GrowthError(f"layer '{layer}': expected a factor (1.5) or a width (96), got {amount!r}")
    if isinstance(amount, float):
        _check_factor(amount, f"the factor of layer '{layer}'")
        return {group: grown_units(group, amount) for group, _ in resolve(axis) if not group.fixed}
    if amount < total:
        hint = f" (for a factor write {amount}.0)" if 1 <= amount <= 8 else ""
        raise GrowthError(f"layer '{layer}' has {total} channels and cannot shrink to {amount}{hint}")
    each: dict[Group, int] = {}  # positions that one more unit adds; a grouped layer's units stand there several times
    for group, k in resolve(axis):
        if not group.fixed:
            each[group] = each.get(group, 0) + k
    fixed = total - sum(group.n * k for group, k in each.items())
    factor = (amount - fixed) / (total - fixed)
    sizes = {group: grown_units(group, factor) for group in each}
    short = int(amount) - fixed - sum(sizes[group] * k for group, k in each.items())
    if short:
        last, k = list(each.items())[-1]
        if short % k or sizes[last] + short // k < last.n:
            raise GrowthError(f"layer '{layer}' cannot have {amount} channels: its units cover {k} channels each")
        sizes[last] += short // k
    return sizes
