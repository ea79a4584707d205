"""Generates a value that fits a JSON schema, always the same for the same schema and hint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from typing import Any

from pollux_flows.simulator.pattern_instance import generate_match
from pollux_flows.simulator.schema_check import resolve
from pollux_flows.simulator.schema_merge import Schema, merge

#: Schemas that refer to each other multiply. Beyond this many nodes only required properties are generated,
MANY_NODES = 2_000
#: and beyond this many no reference is followed.
TOO_MANY_NODES = 50_000
TEXT_CHARS = 80
MAX_WHOLE = 2**53
FEW = 2
#: Keywords that a value can violate although each of its parts is valid: candidates are then validated.
_NEEDS_VALIDATION = ("oneOf", "not", "if", "dependentRequired", "dependentSchemas", "patternProperties")
_TRIES = 6
_KEYWORDS_OF: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties", "propertyNames", "minProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_FORMATS = {
    "date": "{year}-01-01",
    "date-time": "{year}-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "P{number}D",
    "email": "simulated{number}@example.com",
    "hostname": "host{number}.example.com",
    "ipv4": "192.0.2.{number}",
    "ipv6": "2001:db8::{number}",
    "uri": "https://example.com/{number}",
    "uri-reference": "https://example.com/{number}",
    "url": "https://example.com/{number}",
    "uuid": "00000000-0000-4000-8000-{number:012}",
    "uuid4": "00000000-0000-4000-8000-{number:012}",
    "json-pointer": "/{number}",
}


def generate_instance(schema: Any, hint: str = "") -> Any:
    """Return a value that fits the schema; `hint` is part of free texts, so that answers to prompts differ."""
    generator = _Generator(schema, hint)
    try:
        return generator.make(schema, "", 0)
    except _Endless:
        # No finite value fits; an empty object is the least wrong.
        return {}


class _Endless(Exception):  # noqa: N818 (never leaves this module: another branch is tried)
    """A reference that leads back into itself."""


class _Generator:
    def __init__(self, root: Any, hint: str) -> None:
        self.root = root
        self.hint = hint
        self.nodes = 0
        self.open_references: list[str] = []

    def make(self, schema: Any, name: str, salt: int) -> Any:
        """Return a value for the property `name`, different for another `salt` if the schema allows it."""
        self.nodes += 1
        if not isinstance(schema, dict) or not schema:
            return self._text({}, name, salt)
        if "$ref" in schema:
            return self._follow_reference(schema, name, salt)
        if "allOf" in schema:
            rest: Schema = {key: value for key, value in schema.items() if key != "allOf"}
            with self._inside([part["$ref"] for part in schema["allOf"] if isinstance(part, dict) and "$ref" in part]):
                for part in schema["allOf"]:
                    rest = merge(rest, self._resolve_root(part))
                return self.make(rest, name, salt)
        if any(keyword in schema for keyword in _NEEDS_VALIDATION):
            return self._first_valid(schema, name, salt)
        return self._generate(schema, name, salt)

    def _generate(self, schema: Mapping[str, Any], name: str, salt: int) -> Any:
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return next(self._branches(schema, union, name, salt))
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            values = [value for value in schema["enum"] if value is not None] or schema["enum"]
            return values[salt % len(values)]
        return self._of_type(schema, name, salt)

    def _first_valid(self, schema: Mapping[str, Any], name: str, salt: int) -> Any:
        """Return the first candidate that validates against the schema, else the first candidate."""
        candidates: list[Any] = []
        for number in range(salt, salt + _TRIES):
            if "oneOf" in schema:
                candidates += list(self._branches(schema, "oneOf", name, number))
            else:
                candidates.append(self._generate(schema, name, number))
            for candidate in candidates:
                if self._accepts(schema, candidate):
                    return candidate
        return candidates[0]

    def _branches(self, schema: Mapping[str, Any], union: str, name: str, salt: int) -> Iterator[Any]:
        """Iterate over a value for each satisfiable branch of a union, `null` last."""
        rest = {key: value for key, value in schema.items() if key != union}
        branches = sorted(schema[union], key=_is_null)
        start = salt % len(branches)
        found = False
        for branch in branches[start:] + branches[:start]:
            both = merge(rest, branch)
            if both is False:
                continue
            try:
                value = self.make(both, name, salt)
            except _Endless:
                continue
            found = True
            yield value
        if not found:
            raise _Endless

    def _follow_reference(self, schema: Mapping[str, Any], name: str, salt: int) -> Any:
        with self._inside([schema["$ref"]]):
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.make(merge(self._target(schema["$ref"]), rest), name, salt)

    @contextmanager
    def _inside(self, references: list[str]) -> Iterator[None]:
        """Enter references; raise _Endless if one is open already, or if there are too many nodes."""
        if self.nodes > TOO_MANY_NODES or any(reference in self.open_references for reference in references):
            raise _Endless
        before = len(self.open_references)
        self.open_references += references
        try:
            yield
        finally:
            del self.open_references[before:]

    def _resolve_root(self, schema: Any) -> Any:
        """Return a schema with the reference at its root resolved, to be merged with others."""
        seen = set()
        while isinstance(schema, dict) and "$ref" in schema:
            reference = schema["$ref"]
            if reference in seen:
                raise _Endless
            seen.add(reference)
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = merge(self._target(reference), rest)
        return schema

    def _target(self, reference: str) -> Any:
        target = resolve(reference, self.root)
        # An unresolvable reference allows anything.
        return {} if target is None else target

    def _of_type(self, schema: Mapping[str, Any], name: str, salt: int) -> Any:
        match _type(schema):
            case "object":
                return self._object(schema, salt)
            case "array":
                return self._array(schema, name, salt)
            case "integer":
                return _number(schema, salt, is_integer=True)
            case "number":
                return _number(schema, salt, is_integer=False)
            case "boolean":
                return salt % 2 == 0
            case "null":
                return None
            case _:
                return self._text(schema, name, salt)

    def _object(self, schema: Mapping[str, Any], salt: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        most = schema.get("maxProperties", math.inf)
        extra = schema.get("additionalProperties", True)
        members: dict[str, Any] = {}
        for name in required:
            members[name] = self.make(properties.get(name, extra), name, salt)
        for name, part in properties.items():
            if name in members or part is False or len(members) >= most or self.nodes > MANY_NODES:
                continue
            try:
                members[name] = self.make(part, name, salt)
            except _Endless:
                continue
        least = schema.get("minProperties", 0)
        if isinstance(extra, dict) and not properties and not members and most:
            # A map gets one entry as an example.
            least = max(least, 1)
        number = 0
        while len(members) < least and extra is not False:
            key = self.make(schema.get("propertyNames", {"const": f"key{number}"}), "key", number)
            try:
                members.setdefault(str(key), self.make(extra, str(key), salt))
            except _Endless:
                break
            number += 1
            if number > least + _TRIES:
                break
        return {name: members[name] for name in (*properties, *members) if name in members}

    def _array(self, schema: Mapping[str, Any], name: str, salt: int) -> list[Any]:
        items = schema.get("items", True)
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", math.inf)
        first = list(schema.get("prefixItems") or [])
        if "contains" in schema:
            first.append({"allOf": [items, schema["contains"]]})
        if isinstance(items, list):
            first, items = items, schema.get("additionalItems", True)
        length = max(least, len(first) or (0 if items in (False, True, {}) else 1))
        array: list[Any] = []
        seen: set[str] = set()
        number = salt
        while len(array) < min(length, most):
            part = first[len(array)] if len(array) < len(first) else items
            if part is False:
                break
            try:
                item = self.make(part, name, number)
            except _Endless:
                if len(array) < least:
                    raise
                break
            number += 1
            text = json.dumps(item, sort_keys=True)
            if not schema.get("uniqueItems") or text not in seen:
                array.append(item)
                seen.add(text)
            elif number > salt + length + 10 * _TRIES:
                break
        return array

    def _text(self, schema: Mapping[str, Any], name: str, salt: int) -> str:
        least = schema.get("minLength", 0)
        most = schema.get("maxLength")
        if "pattern" in schema and (match := generate_match(schema["pattern"], least, most)) is not None:
            return match
        shape = _FORMATS.get(schema.get("format", ""))
        if shape is not None:
            return shape.format(number=salt + 1, year=2000 + salt)
        text = f"Simulated {name}: {self.hint}" if name else f"Simulated: {self.hint}"
        if salt:
            # In front, where a short maxLength does not cut it off.
            text = f"{salt} {text}"
        text = text[:TEXT_CHARS].ljust(least, ".")
        return text if most is None else text[:most]

    def _accepts(self, schema: Mapping[str, Any], value: Any) -> bool:
        return bool(self._validator.evolve(schema=schema).is_valid(value))

    @cached_property
    def _validator(self) -> Any:
        # Imported here because few schemas need it and it takes a while to load.
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.root)


def _is_null(branch: Any) -> bool:
    return isinstance(branch, dict) and branch.get("type") == "null"


def _type(schema: Mapping[str, Any]) -> str:
    type_ = schema.get("type")
    if isinstance(type_, list):
        return next((kind for kind in type_ if kind != "null"), "null")
    if type_ is not None:
        return str(type_)
    for kind, keywords in _KEYWORDS_OF.items():
        if any(keyword in schema for keyword in keywords):
            return kind
    return "string"


def _number(schema: Mapping[str, Any], salt: int, *, is_integer: bool) -> int | float:
    """Return the allowed number nearest to zero on the grid of multiples, moved on by `salt`."""
    low, low_open = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, high_open = _bound(schema, "maximum", "exclusiveMaximum", min)
    step, origin = _grid(schema, low, high, is_integer=is_integer)
    first = None if low is None else math.ceil((low - origin) / step)
    if first is not None and low_open and origin + first * step == low:
        first += 1
    last = None if high is None else math.floor((high - origin) / step)
    if last is not None and high_open and origin + last * step == high:
        last -= 1
    return _plain(origin + _place(first, last, salt, 0 if origin else 1) * step)


def _grid(
    schema: Mapping[str, Any], low: Fraction | None, high: Fraction | None, *, is_integer: bool
) -> tuple[Fraction, Fraction]:
    """Return the step between candidate numbers, and their origin."""
    if "multipleOf" in schema:
        step = Fraction(str(schema["multipleOf"]))
        return (Fraction(step.numerator) if is_integer else step), Fraction(0)
    if is_integer or low is None or high is None or high - low > FEW:
        return Fraction(1), Fraction(0)
    # Bounds that are close together get a grid with points between them.
    return (high - low) / 4 or Fraction(1), low


def _place(first: int | None, last: int | None, salt: int, start: int) -> int:
    """Return the `salt`-th place on the grid: from `start` up to the last one, then down from `start`."""
    if first is not None:
        start = max(start, first)
    if last is not None:
        start = min(start, last)
    if last is None or start + salt <= last:
        return start + salt
    below = start - (salt - (last - start))
    return below if first is None else max(first, below)


def _bound(schema: Mapping[str, Any], closed: str, opened: str, tighter: Any) -> tuple[Fraction | None, bool]:
    bounds = [
        (Fraction(str(schema[name])), is_open) for name, is_open in ((closed, False), (opened, True)) if name in schema
    ]
    if not bounds:
        return None, False
    value = tighter(bound for bound, _ in bounds)
    return value, any(is_open for bound, is_open in bounds if bound == value)


def _plain(value: Fraction) -> int | float:
    # An integer that JSON libraries cannot represent exactly becomes a float.
    return int(value) if value.denominator == 1 and abs(value) <= MAX_WHOLE else float(value)
