"""Equal lengths: axes that must stay as long as each other, though their units are remapped apart.

``chunk`` cuts a tensor into parts of equal size: each may have a remapping of its own, as long as the parts stay
equal. Rounding can set them apart: by 1.5, 3 units of two positions become 5 (10 positions), but 6 units of one
position become 9. The axis with the larger units decides then.

`Widths` is the same for lengths that a module's code takes for granted. An attention module meets a width of 6, and 3
heads of 2: two groups, one length. By 1.5 the width becomes 9 and the heads 5 times 2, which are 10. The larger unit
decides (the width becomes 10), unless one side was asked for by name, or may only grow by whole numbers.
"""

from __future__ import annotations

from typing import Any

from n2n_cli.growth.groups.axes import Axis, Group, resolve, unify
from n2n_cli.growth.groups.structure import Context, Hold, Relation, Sizes, Structure, Wish
from n2n_cli.growth.trace.record import Op


class EqualLengths(Relation):
    """``relate(axis, axis)``: where their units differ in size, they share the remapping as well."""

    name = "equal"

    def __init__(self) -> None:
        self.found: list[tuple[Axis, Axis]] = []

    def relate(self, ctx: Context, op: Op, *facts: Any) -> bool:
        a, b = facts
        left, right = resolve(a), resolve(b)
        if [(g.n, k, bool(g.fixed)) for g, k in left] == [(g.n, k, bool(g.fixed)) for g, k in right]:
            self.found.append((a, b))
        else:
            unify(a, b)
        return True

    def fit(self, structure: Structure, sizes: Sizes, wish: Wish) -> tuple[Sizes, list[Hold]]:
        sizes = dict(sizes)
        for a, b in self.found:
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
        return sizes, []

    def bonds(self) -> list[list[Group]]:
        return [[group for axis in pair for group, _ in resolve(axis)] for pair in self.found]


class Widths(Relation):
    """Found in the recordings, not by rules: axes of one length that the operations of one module meet."""

    name = "width"

    def fit(self, structure: Structure, sizes: Sizes, wish: Wish) -> tuple[Sizes, list[Hold]]:
        """Only where the plan leaves sizes free: by a factor, or ``coupled``."""
        if not wish.coupled:
            return sizes, []
        sizes, tied = dict(sizes), structure.tied()
        equal = [relation for relation in structure.relations if isinstance(relation, EqualLengths)]
        for relation in equal:
            sizes, _ = relation.fit(structure, sizes, wish)
        apart = self._apart(structure)
        for _ in range(len(apart)):  # one correction may set another pair apart: repeat, at most once per set of axes
            before = dict(sizes)
            for axes in apart:
                if len({sizes.get(g, g.n) * k for g, k in axes}) < 2:
                    continue
                group, k = max(
                    axes,
                    key=lambda span: (span[0] in wish.groups, span[0] in tied, span[1], sizes.get(span[0], span[0].n)),
                )
                length = sizes.get(group, group.n) * k
                for other, m in axes:
                    free = other not in tied and other not in wish.groups
                    if free and length % m == 0 and length // m >= other.n:
                        sizes[other] = length // m
            for relation in equal:
                sizes, _ = relation.fit(structure, sizes, wish)
            if sizes == before:
                break
        return sizes, []

    @staticmethod
    def _apart(structure: Structure) -> list[list[tuple[Group, int]]]:
        by_length: dict[tuple[str, int], dict[tuple[tuple[Group, int], ...], None]] = {}
        for recording, labels in zip(structure.recordings, structure.labels, strict=True):
            for op in recording.ops:
                for tensor in [*op.tensors(), *op.outputs]:
                    for axis, n in zip(labels.get(id(tensor), []), tensor.shape, strict=False):
                        spans = tuple(resolve(axis))
                        if len(spans) == 1 and not spans[0][0].fixed:
                            by_length.setdefault((op.path, n), {})[spans] = None
        return [[spans[0] for spans in axes] for axes in by_length.values() if len(axes) > 1]
