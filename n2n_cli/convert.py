"""Plain data -> dataclasses by their type hints, with one line that names the key where they do not fit."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from n2n_cli.errors import N2NError, suggest


class Rule(NamedTuple):
    """A range: how it reads in an error, and whether a value lies in it."""

    text: str
    holds: Callable[[Any], bool]


def takes(hint: Any, kind: type) -> bool:
    """Whether a value of ``kind`` (bool, list, ...) fits the type."""
    if hint is kind or get_origin(hint) is kind:
        return True
    if get_origin(hint) is Annotated:
        return takes(get_args(hint)[0], kind)
    return get_origin(hint) in (Union, types.UnionType) and any(takes(part, kind) for part in get_args(hint))


class _Mismatch(Exception):
    """A value that does not fit; the message says what was expected."""


def convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` (plain data) as the type ``hint``: a dataclass, a union, Annotated with a `Rule`, ...

    ``where``: its key, for errors. A whole number becomes a float where the type takes no whole number. A dataclass
    with a ``choose(value, where)`` says itself which of its subclasses is meant. Raises N2NError.
    """
    if value == "???":
        raise N2NError(f"{where}: a value is needed: {where}=VALUE")
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    try:
        return _value(hint, value, where)
    except _Mismatch as expected:
        words = [str(part) for part in get_args(hint) if isinstance(part, str)] or [
            str(word) for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part)
        ]
        raise N2NError(f"{where}: expected {expected}, got {value!r}{suggest(str(value), words)}") from None


def _dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise N2NError(f"{where}: expected keys and values, got {value!r}")
    if choose := getattr(cls, "choose", None):
        cls = choose(value, where)
    hints = get_type_hints(cls, include_extras=True)
    dot = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise N2NError(f"unknown key '{dot}{key}'{suggest(str(key), hints)}")
    missing = [key for key in hints if key not in value]
    if missing:
        raise N2NError(f"{dot}{missing[0]}: a value is needed: {dot}{missing[0]}=VALUE")
    return cls(**{key: convert(hint, value[key], f"{dot}{key}") for key, hint in hints.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        rule: Rule = args[1]
        try:
            found = _value(args[0], value, where)
        except _Mismatch:
            raise _Mismatch(rule.text) from None
        if not rule.holds(found):
            raise _Mismatch(rule.text)
        return found
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, where)
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in args:
            return None
        expected = []
        for part in args:
            try:
                return _value(part, value, where)
            except _Mismatch as mismatch:
                expected.append(str(mismatch))
        raise _Mismatch(", or ".join(expected))
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise _Mismatch(" | ".join(map(str, args)))
    if origin is list:
        if not isinstance(value, list) or not value:
            raise _Mismatch("a list [...]" if value != [] else "a list that is not empty")
        return [convert(args[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _Mismatch("keys and values {key: value}")
        return {str(key): convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is types.NoneType:
        if value is None:
            return None
        raise _Mismatch("null")
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return str(value)
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if hint is int and isinstance(value, int):
            return value
        if hint is float and math.isfinite(value):
            return float(value)
    raise _Mismatch({bool: "true or false", str: "a text", int: "a whole number", float: "a number"}[hint])


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys: ``{"optim": {"lr": 0.1}}`` -> ``{"optim.lr": 0.1}``; empty ones stay."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, Mapping) and value else {f"{where}{key}": value}
    return found
