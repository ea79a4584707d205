"""Merges two JSON schemas that must both hold into one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any] | bool


def merge(one: Schema, other: Schema) -> Schema:
    """Merge two schemas, as far as people and libraries combine keywords with `allOf`."""
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    both = dict(one)
    for name, value in other.items():
        both[name] = _both(name, both[name], value) if name in both else value
    return both


def _both(name: str, one: Any, other: Any) -> Any:
    way = _WAYS.get(name)
    return other if one == other or way is None else way(one, other)


def _by_name(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, **{name: merge(one[name], part) if name in one else part for name, part in other.items()}}


def _union(one: list[Any], other: list[Any]) -> list[Any]:
    return [*one, *(value for value in other if value not in one)]


def _intersection(one: list[Any], other: list[Any]) -> list[Any]:
    return [value for value in one if value in other]


def _product(one: list[Any], other: list[Any]) -> list[Any]:
    return [merge(left, right) for left in one for right in other]


def _types(one: str | list[str], other: str | list[str]) -> list[str]:
    left = [one] if isinstance(one, str) else one
    right = [other] if isinstance(other, str) else other
    found = [kind for kind in left if kind in right]
    if "integer" in {*left, *right} and "number" in {*left, *right} and "integer" not in found:
        found.append("integer")
    return found


_WAYS: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("properties", "$defs", "definitions", "patternProperties"), _by_name),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), merge),
    **dict.fromkeys(("anyOf", "oneOf"), _product),
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "multipleOf"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "required": _union,
    "allOf": _union,
    "enum": _intersection,
    "type": _types,
    "uniqueItems": operator.or_,
}
