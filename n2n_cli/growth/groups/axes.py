"""The algebra of tensor axes: which positions of which tensors must grow together.

An **axis** of a tensor is a sequence of **spans** ``(group, k)``: the group has ``n`` units and each unit
covers ``k`` consecutive positions, so the span is ``n * k`` long. Growing a group from ``n`` to ``n'`` units
with a remapping ``g`` (student unit ``j`` copies teacher unit ``g[j]``) re-indexes every axis it is part of.

A worked example, one Inception module: branch A ends in a convolution with 64 filters, branch B in one with
96. Their weights' output axes are ``[(A, 1)]`` and ``[(B, 1)]``, batch norm unifies its own axes with them, and
the concatenation's channel axis is ``[(A, 1), (B, 1)]``. The 1x1 convolution that reads it has an input axis
of 160 positions, at first one open group ``[(W, 1)]``; unifying the two axes splits ``W`` at position 64 and
joins the halves with A and B. Flattening 7x7 maps for a linear layer gives ``[(A, 49), (B, 49)]``.

Nothing here knows about layers or operations: see ``rules/`` for these.

>>> a, b = Group(64), Group(96)
>>> concatenated, read = [(a, 1), (b, 1)], fresh(160)
>>> unify(concatenated, read)
>>> resolve(read) == resolve(concatenated)
True
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import lcm

from n2n_cli.growth.groups.reasons import Reason


class Group:
    """``n`` units with one common remapping. ``fixed`` tells why it may not grow.

    ``n`` never changes. A group that is joined, split or made coarser is replaced by others: ``forward`` then holds the
    spans ``(group, factor)`` that stand for it.
    """

    __slots__ = ("fixed", "forward", "n")

    def __init__(self, n: int, fixed: Reason | None = None) -> None:
        self.n = n
        self.fixed = fixed
        self.forward: list[tuple[Group, int]] | None = None

    def __repr__(self) -> str:
        return f"<{self.n}{' fixed' if self.fixed else ''}>"


Span = tuple[Group, int]
Axis = list[Span]


def fresh(n: int) -> Axis:
    """An open axis of ``n`` units."""
    return [(Group(n), 1)] if n else []


def constant(n: int, reason: Reason) -> Axis:
    """An axis of ``n`` positions that may not grow."""
    return [(Group(n, reason), 1)] if n else []


def resolve(axis: Axis) -> Axis:
    """The axis, with every group that was replaced written as the groups that stand for it now."""
    out: Axis = []
    for group, k in axis:
        if group.forward is None:
            out.append((group, k))
        else:
            out.extend((part, k * c) for part, c in _flattened(group))
    return out


def _flattened(group: Group) -> Axis:
    """What stands for a group at last, remembered as its ``forward``; chains may be long, so without recursion."""
    flat: Axis = []
    pending: Axis = [(group, 1)]
    while pending:
        part, k = pending.pop()
        if part.forward is None:
            flat.append((part, k))
        else:
            pending.extend((inner, k * c) for inner, c in reversed(part.forward))
    group.forward = flat
    return flat


def length(axis: Axis) -> int:
    """Its number of positions."""
    return sum(group.n * k for group, k in axis)


def is_open(axis: Axis) -> bool:
    """Whether any part of the axis may grow."""
    return any(not group.fixed for group, _ in resolve(axis))


def fix(axis: Iterable[Span], reason: Reason) -> None:
    """Forbid every unit of the axis to grow; the first reason given stays."""
    for group, _ in resolve(list(axis)):
        group.fixed = group.fixed or reason


def split(group: Group, at: int) -> None:
    """Cut a group into its first ``at`` units and the rest."""
    group.forward = [(Group(at, group.fixed), 1), (Group(group.n - at, group.fixed), 1)]


def _isolate_straddled(queue: deque[Span], at: int, reason: Reason) -> None:
    """``at`` falls inside a unit of the first span: fix this unit, and this unit alone."""
    group, k = queue.popleft()
    unit = at // k
    parts = [Group(unit), Group(1, reason), Group(group.n - unit - 1)]
    group.forward = [(part, 1) for part in parts if part.n]
    queue.extendleft(reversed([(part, k) for part in parts if part.n]))


STRADDLE = Reason("other", "two boundaries cut through one unit")


def unify(a: Axis, b: Axis) -> None:
    """Make two axes of equal length grow alike.

    Groups are split where span boundaries differ and made coarser to the least common multiple where unit sizes
    differ; a unit that a boundary cuts through is fixed; fixed spans fix what lies against them.

    Raises:
        ValueError: the axes have different lengths.
    """
    if length(a) != length(b):
        raise ValueError(f"axes of {length(a)} and {length(b)} positions cannot be unified")
    left, right = deque(a), deque(b)
    while left and right:
        for queue in (left, right):
            if queue[0][0].forward is not None:
                queue.extendleft(reversed(resolve([queue.popleft()])))
        (g, k), (h, m) = left[0], right[0]
        if g is h and k == m:
            left.popleft()
            right.popleft()
        elif g.fixed or h.fixed:
            reason, positions = g.fixed or h.fixed, min(g.n * k, h.n * m)
            assert reason is not None
            _take_fixed(left, positions, reason)
            _take_fixed(right, positions, reason)
        elif g.n * k != h.n * m:
            queue, cut = (left, h.n * m) if g.n * k > h.n * m else (right, g.n * k)
            group, size = queue[0]
            if cut % size:
                _isolate_straddled(queue, cut, STRADDLE)
            else:
                split(group, cut // size)
        elif k == m:
            h.forward = [(g, 1)]
        else:
            common = lcm(k, m)
            coarse = Group(g.n * k // common)
            g.forward, h.forward = [(coarse, common // k)], [(coarse, common // m)]


def _take_fixed(queue: deque[Span], positions: int, reason: Reason) -> None:
    """Drop the next ``positions`` positions, fixing every unit that they touch."""
    group, k = queue.popleft()
    if group.fixed:
        queue.extendleft(constant(group.n * k - positions, group.fixed))
        return
    units = -(-positions // k)
    if units < group.n:
        split(group, units)
        (group, _), (rest, _) = group.forward or []
        queue.appendleft((rest, k))
    group.fixed = reason
    queue.extendleft(constant(units * k - positions, reason))


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """The positions ``start`` to ``stop`` of the axis; a unit that a boundary cuts through is fixed."""
    out: Axis = []
    queue, at = deque(resolve(axis)), 0
    while queue and at < stop:
        group, k = queue[0]
        if group.forward is not None:
            queue.extendleft(reversed(resolve([queue.popleft()])))
            continue
        end = at + group.n * k
        inside = [p for p in (start, stop) if at < p < end]
        if not inside:
            if at >= start:
                out.append((group, k))
            queue.popleft()
            at = end
        elif group.fixed:
            queue.popleft()
            parts = [inside[0] - at, end - inside[0]]
            queue.extendleft(reversed([span for n in parts for span in constant(n, group.fixed)]))
        elif (inside[0] - at) % k:
            _isolate_straddled(queue, inside[0] - at, STRADDLE)
        else:
            split(group, (inside[0] - at) // k)
    return out


def scaled(axis: Axis, factor: int) -> Axis:
    """Every position becomes ``factor`` consecutive ones (an inner axis was merged into this one)."""
    return [(group, k * factor) for group, k in resolve(axis)]
