"""The tables of ``n2n inspect``, as lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from n2n_cli.growth.depth.sites import Site
from n2n_cli.growth.survey import GroupRow, Survey
from n2n_cli.models import describe

NAMES = 44  # characters for the layers that make or read a group
LINE = 118


def layers(found: list[describe.Layer], rows: int | None) -> list[str]:
    """One line a layer."""
    head = ("layer", "kind", "weight", "output", "parameters", "MACs")
    cells = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.weight_shape)) or "-",
            "x".join(map(str, layer.output_shape[1:])) or "-",
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
        )
        for layer in found
    ]
    return _table(head, cells, "<<<<>>", rows)


def groups(found: Survey, rows: int | None) -> list[str]:
    """A headline, one line a group, and a line for every reason."""
    count = Counter(group.growing for group in found.groups)
    kinds = [f"{n} {'fixed' if kind == 'fixed' else f'by {kind}'}" for kind, n in sorted(count.items())]
    found_reasons = reasons(found.groups)
    letters = {group.number: f" ({_letter(at)})" for at, (_, held) in enumerate(found_reasons) for group in held}
    cells = [
        (
            str(group.number),
            _units(group, found.student is not None),
            _names(group.produced_by),
            _names(group.read_by) or "-",
            group.growing + letters.get(group.number, "") + _with(group) + (f", {group.start}" if group.start else ""),
        )
        for group in found.groups
    ]
    head = ("group", "units", "made by", "read by", "grows by")
    lines = [f"{len(found.groups)} groups of units that grow together: {', '.join(kinds)}"]
    lines += _table(head, cells, ">><<<", rows)
    lines += [f"  ({_letter(at)}) {reason}" for at, (reason, _) in enumerate(found_reasons)]
    copied: dict[str, list[int]] = {}
    for group in found.groups:
        if group.copied is not None:
            copied.setdefault(group.copied.text, []).append(group.number)
    return lines + [f"  copies: groups {', '.join(map(str, n))}: {why}" for why, n in copied.items()]


def reasons(groups: Sequence[GroupRow]) -> list[tuple[str, list[GroupRow]]]:
    """Why groups do not grow freely, or how they can all the same, and which; one operation in many modules is told
    once."""
    found: dict[tuple[str, ...], list[GroupRow]] = {}
    places: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        if hold := group.fixed or group.tied or group.moved:
            key = (group.growing, hold.operation, hold.text)
            found.setdefault(key, []).append(group)
            places.setdefault(key, []).append(hold.path or "the top module")
    told = []
    for (how, operation, text), held in found.items():
        modules = places[how, operation, text]
        others = len(set(modules)) - 1
        at = f"{operation} at {modules[0]}{f' and {others} more' if others else ''}: " if operation else ""
        copied = " (every unit must be copied equally often)" if how == "whole numbers" else ""
        told.append((f"{at}{text}{copied}", held))
    return told


def sites(found: Sequence[Site]) -> list[str]:
    """Where identity layers fit, and why not elsewhere: one line a reason."""
    fit = [site.layer for site in found if not site.refusal]
    lines = [f"identity layers fit behind {len(fit)} of {len(found)} layers (--op deeper)"]
    if fit:
        lines.append(f"  fit: {_names(fit, LINE - 7)}")
    refusals: dict[str, list[str]] = {}
    for site in found:
        if site.refusal:
            refusals.setdefault(site.refusal.partition(", and an identity layer")[0], []).append(site.layer)
    for why, refused in refusals.items():
        lines.append(f"  not, {why}: {_names(refused, max(NAMES, LINE - 9 - len(why)))}")
    if any(site.refusal and ", and an identity layer" in site.refusal for site in found):
        lines.append("  (an identity layer needs an activation f with f(f(v)) = f(v), such as ReLU)")
    return lines


def dry_run(dry: dict[str, Any], words: str) -> list[str]:
    """What a plan would make of the network."""
    lines = [f"dry run of {words}: nothing is written, no proof is run"]
    if dry["behind"] is not None:
        behind = dry["behind"]
        lines.append(f"  new layers behind {len(behind)}: {_names(behind, LINE - 22)}")
    numbers = [dry[key][when] or 0 for key in ("parameters", "macs") for when in ("before", "after")]
    wide = max(len(f"{number:,}") for number in numbers)
    for key, name in (("parameters", "parameters"), ("macs", "MACs")):
        before, after = dry[key]["before"], dry[key]["after"]
        if after is None:
            lines.append(
                f"  {name:<10}  {before:>{wide},} -> unknown: the modules' own numbers are only settled by growing"
            )
        else:
            lines.append(f"  {name:<10}  {before:>{wide},} -> {after:>{wide},}  ({after / max(before, 1):.2f} times)")
    return lines


def _with(group: GroupRow) -> str:
    return f" with {_names([str(number) for number in group.together], 16)}" if group.together else ""


def _units(group: GroupRow, planned: bool) -> str:
    each = f" x {group.positions}" if group.positions > 1 else ""
    return f"{group.units}{each}{f' -> {group.grown}{each}' if planned and group.grown != group.units else ''}"


def _letter(at: int) -> str:
    return (_letter(at // 26 - 1) if at >= 26 else "") + chr(ord("a") + at % 26)


def _names(names: Sequence[str], width: int = NAMES) -> str:
    """As many names as fit, and how many more there are; a long one keeps its end."""
    shown: list[str] = []
    for name in names:
        rest = len(names) - len(shown) - 1
        tail = f" +{rest}" if rest else ""
        if shown and len(", ".join([*shown, name])) + len(tail) > width:
            break
        shown.append(name if len(name) <= width - 6 else "..." + name[-(width - 9) :])
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" +{rest}" if rest else "")


def _table(head: Sequence[str], cells: Sequence[Sequence[str]], align: str, rows: int | None) -> list[str]:
    """Columns aligned; at most ``rows`` lines below the head."""
    shown = cells if rows is None or len(cells) <= rows + 3 else cells[:rows]
    widths = [max(len(row[column]) for row in (head, *shown)) for column in range(len(head))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in (head, *shown)
    ]
    if len(shown) < len(cells):
        lines.append(f"... {len(cells) - len(shown)} more (--rows null shows all, --json too)")
    return lines
