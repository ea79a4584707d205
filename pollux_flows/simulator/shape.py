"""Checks of the shape of JSON documents: small checks that combine into large ones.

A check takes a value and its path, and raises `Mismatch` with the first problem. Each provider turns a `Mismatch` into
its own error message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Path = tuple[str | int, ...]
Check = Callable[[Any, Path], None]
Problem = Literal["unknown", "missing", "type", "value", "minimum", "maximum"]


@dataclass(eq=False)
class Mismatch(Exception):  # noqa: N818 (always turned into a provider's own error)
    """The first difference between a document and its shape."""

    path: Path
    problem: Problem
    expected: str = ""
    value: Any = None


def anything(value: Any, path: Path) -> None:
    """Accept any value."""


def text(value: Any, path: Path) -> None:
    if not isinstance(value, str):
        raise Mismatch(path, "type", "a string", value)


def boolean(value: Any, path: Path) -> None:
    if not isinstance(value, bool):
        raise Mismatch(path, "type", "a boolean", value)


def mapping(value: Any, path: Path) -> None:
    if not isinstance(value, dict):
        raise Mismatch(path, "type", "an object", value)


def integer(minimum: int | None = None, maximum: int | None = None) -> Check:
    def check(value: Any, path: Path) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Mismatch(path, "type", "an integer", value)
        _within(value, path, minimum, maximum)

    return check


def number(minimum: float | None = None, maximum: float | None = None) -> Check:
    def check(value: Any, path: Path) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Mismatch(path, "type", "a number", value)
        _within(value, path, minimum, maximum)

    return check


def _within(value: float, path: Path, minimum: float | None, maximum: float | None) -> None:
    if minimum is not None and value < minimum:
        raise Mismatch(path, "minimum", f"{minimum:g}", value)
    if maximum is not None and value > maximum:
        raise Mismatch(path, "maximum", f"{maximum:g}", value)


def one_of(*values: str) -> Check:
    def check(value: Any, path: Path) -> None:
        text(value, path)
        if value not in values:
            raise Mismatch(path, "value", ", ".join(f"'{known}'" for known in values), value)

    return check


def nullable(inner: Check) -> Check:
    def check(value: Any, path: Path) -> None:
        if value is not None:
            inner(value, path)

    return check


def items(inner: Check, at_least: int = 0) -> Check:
    def check(value: Any, path: Path) -> None:
        if not isinstance(value, list):
            raise Mismatch(path, "type", "an array", value)
        if len(value) < at_least:
            raise Mismatch(path, "minimum", f"{at_least} items", value)
        for place, item in enumerate(value):
            inner(item, (*path, place))

    return check


def values(inner: Check) -> Check:
    def check(value: Any, path: Path) -> None:
        mapping(value, path)
        for name, item in value.items():
            inner(item, (*path, name))

    return check


def string_or(inner: Check) -> Check:
    def check(value: Any, path: Path) -> None:
        if not isinstance(value, str):
            inner(value, path)

    return check


def record(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, is_open: bool = False
) -> Check:
    """Return a check for an object with these fields, and no others unless it is open."""
    known = {**(optional or {}), **required}

    def check(value: Any, path: Path) -> None:
        mapping(value, path)
        for name in required:
            if name not in value:
                raise Mismatch((*path, name), "missing")
        for name, item in value.items():
            inner = known.get(name)
            if inner is not None:
                inner(item, (*path, name))
            elif not is_open:
                raise Mismatch((*path, name), "unknown")

    return check


def tagged(tag: str, variants: Mapping[str, Check], default: str | None = None) -> Check:
    """Return a check for an object whose field `tag` selects the variant."""

    def check(value: Any, path: Path) -> None:
        mapping(value, path)
        kind = value.get(tag, default)
        if kind is None:
            raise Mismatch((*path, tag), "missing")
        text(kind, (*path, tag))
        variant = variants.get(kind)
        if variant is None:
            raise Mismatch((*path, tag), "value", ", ".join(f"'{known}'" for known in variants), kind)
        variant(value, path)

    return check
