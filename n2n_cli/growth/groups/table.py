"""What growth knows of an operation: one row. The rows themselves stand in ``operations``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.trace.record import Op

Rule = Callable[[Any, Op], None]
"""``rule(ctx, op)``: see `structure.Context`, whose verbs a rule speaks."""


@dataclass(frozen=True)
class Operation:
    """All that growth knows of an operation.

    ``rule``: which axes of its arguments and results must grow together.
    ``linear``: whether each unit of its result is linear in that unit of its argument, in the same way for all units.
    ``moves``: its result holds entries of its first argument (or zeros), and computes nothing.
    ``weight``, ``bias``: at which argument they stand; ``norm``: it is a normalization; ``transposed``: the
    weight's first axis is what it reads; ``largest``: it takes the largest value along an axis.
    ``zero``: which arguments make the result zero if they are zero, while gradients still reach them: the "first",
    "all" of ``terms`` (argument indices), or "any" one of them; "always": the result is zero whatever they are; None:
    unknown. ``signs``: it adds its first two arguments, with these signs.
    ``idempotent``: the module class of an activation f with f(f(v)) = f(v), built from ``numbers`` (name, default),
    which follow the first argument; ``reads_as``: with these numbers, the (name, numbers) of a simpler one that it
    equals; ``homogeneous``: f(c v) = c f(v) for c > 0; ``jumps``: f is not continuous.
    ``blank``: the values of its result are not compared where a fault is located (random, not initialized, or a
    constant that is only being set up).
    ``without_chance``: what stands for it where nothing may be drawn, called with (func, args, kwargs);
    ``parts_copies``: what it draws differs from unit to unit. ``on_meta``: a cheaper way to the shape of its result.
    ``picks``: of equal values it takes one, which alone gets the gradient, where it also tells its place.
    ``writes``: the arguments that it writes although its schema does not say so (running statistics).
    """

    rule: Rule
    linear: Callable[[Op], bool] | bool = False
    moves: bool = False
    weight: int | None = None
    bias: int | None = None
    norm: bool = False
    transposed: bool = False
    largest: bool = False
    zero: Literal["first", "all", "any", "always"] | None = None
    terms: tuple[int, ...] = (0, 1)
    signs: tuple[int, ...] = ()
    idempotent: type[nn.Module] | None = None
    numbers: tuple[tuple[str, Any], ...] = ()
    reads_as: Callable[..., tuple[Any, ...] | None] | None = None
    homogeneous: bool = False
    jumps: bool = False
    blank: bool = False
    without_chance: Callable[..., Any] | None = None
    parts_copies: bool = False
    on_meta: Callable[..., Any] | None = None
    picks: bool = False
    writes: tuple[int, ...] = ()

    def check(self, name: str) -> None:
        """Whether every field holds what is expected of it.

        Raises:
            GrowthError: one does not; ``name`` is the operation's.
        """
        kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "rule": ("a function of (ctx, op)", callable),
            "linear": ("true, false or a function of (op)", lambda v: isinstance(v, bool) or callable(v)),
            "zero": ('"first", "all", "any", "always" or None', lambda v: v in ("first", "all", "any", "always", None)),
            "idempotent": ("a module class or None", lambda v: v is None or isinstance(v, type)),
            **dict.fromkeys(
                ("weight", "bias"), ("the number of an argument or None", lambda v: v is None or type(v) is int)
            ),
        }
        for field, (expected, right) in kinds.items():
            if not right(getattr(self, field)):
                raise GrowthError(f"the row of '{name}': {field} is {getattr(self, field)!r}: expected {expected}")

    @property
    def is_dropout(self) -> bool:
        """Whether it drops entries at random and only scales the others."""
        return self.parts_copies and self.zero == "first"

    def is_linear(self, op: Op) -> bool:
        return self.linear(op) if callable(self.linear) else self.linear


def row_name(func: Any) -> str:
    """PyTorch's own operations go by their name, others with their library: ``my_library::scale``."""
    name = str(getattr(func, "overloadpacket", func).__name__)  # higher-order operators have no overloads
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"


class Table:
    """The rows by operation name (``conv2d``, ``add_``, ``my_library::scale``); what PyTorch marks as pointwise needs
    none.

    ``elementwise``: the row of pointwise operations that have none; ``unknown``: of all others.
    """

    def __init__(self, rows: dict[str, Operation], elementwise: Operation, unknown: Operation) -> None:
        self.rows, self.elementwise, self.unknown = rows, elementwise, unknown

    def __iter__(self) -> Iterator[tuple[str, Operation]]:
        return iter(self.rows.items())

    def find(self, func: Any) -> Operation | None:
        """The row of an ``OpOverload``, or None."""
        name = row_name(func)
        row = self.rows.get(name)
        if row is None and torch.Tag.pointwise in getattr(func, "tags", ()):
            in_place_of = self.rows.get(name.removesuffix("_"))
            same = in_place_of is not None and in_place_of.rule is self.elementwise.rule
            return in_place_of if same else self.elementwise
        return row

    def of(self, op: Op) -> Operation:
        """The row of a recorded operation."""
        return self.find(op.func) or self.unknown

    # what the dispatch modes ask (see `trace.dispatch.Known`)
    def stays_whole(self, func: Any) -> bool:
        return self.find(func) is not None

    def on_meta(self, func: Any) -> Callable[..., Any] | None:
        row = self.rows.get(row_name(func))
        return row.on_meta if row else None

    def without_chance(self, func: Any) -> Callable[..., Any] | None:
        row = self.rows.get(row_name(func))
        return row.without_chance if row else None

    def writes(self, func: Any) -> tuple[int, ...]:
        row = self.rows.get(row_name(func))
        return row.writes if row else ()
