"""Schema size: the length of an answer that fits a JSON Schema, in characters of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Schema = Mapping[str, Any]

TEXT_CHARACTERS: Final = 80
"""Assumed for a text without a length limit: a short sentence."""
ITEMS: Final = 3
"""Assumed for a list or a map without a length limit."""
_KEY_CHARACTERS: Final = 10
_DEEPEST: Final = 12
_PUNCTUATION: Final = 2  # the quotes or brackets of a text, a list or an object
_FORMATS: Final = {
    "date": 10,
    "time": 9,
    "date-time": 20,
    "duration": 4,
    "uuid": 36,
    "email": 24,
    "uri": 40,
    "ipv4": 13,
}
_SIMPLE: Final = {"boolean": (4.5, 4.0), "integer": (3.0, 1.0), "number": (4.0, 1.0), "null": (4.0, 4.0)}


@dataclass(frozen=True)
class Size:
    """A number of characters."""

    expected: float
    least: float

    def __add__(self, other: Size) -> Size:
        return Size(self.expected + other.expected, self.least + other.least)


def size_of_answer(schema: Schema) -> Size:
    """Return the expected and the least length of an answer in this schema."""
    return _Measure(schema).measure(schema, 0)


class _Measure:
    def __init__(self, root: Schema) -> None:
        self._root = root

    def measure(self, schema: Any, depth: int) -> Size:
        if not isinstance(schema, Mapping):
            return _text({})
        if depth > _DEEPEST:
            return Size(0.0, 0.0)
        if "$ref" in schema:
            return self.measure(self._target(schema["$ref"]), depth + 1)
        if "const" in schema:
            return _constant_size([schema["const"]])
        if values := schema.get("enum"):
            return _constant_size(values)
        if parts := schema.get("allOf"):
            sizes = [self.measure(part, depth + 1) for part in parts]
            return max(sizes, key=lambda size: size.expected)
        for union in ("anyOf", "oneOf"):
            if branches := schema.get(union):
                return self._union(branches, depth)
        return self._of_type(schema, depth)

    def _union(self, branches: list[Any], depth: int) -> Size:
        sizes = [self.measure(branch, depth + 1) for branch in branches]
        full = [
            size
            for size, branch in zip(sizes, branches, strict=True)
            if not (isinstance(branch, Mapping) and branch.get("type") == "null")
        ] or sizes
        return Size(sum(size.expected for size in full) / len(full), min(size.least for size in sizes))

    def _of_type(self, schema: Schema, depth: int) -> Size:
        kinds = schema.get("type")
        kind = next((each for each in kinds if each != "null"), "null") if isinstance(kinds, list) else kinds
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return Size(*_SIMPLE[kind]) if kind in _SIMPLE else _text(schema)

    def _object(self, schema: Schema, depth: int) -> Size:
        properties, required = schema.get("properties") or {}, set(schema.get("required") or ())
        total = Size(_PUNCTUATION, _PUNCTUATION)
        for name, part in properties.items():
            size = self.measure(part, depth + 1) + _entry(len(str(name)))
            total += size if name in required else Size(size.expected, 0.0)
        more = schema.get("additionalProperties")
        if not properties and isinstance(more, Mapping):
            entry = self.measure(more, depth + 1) + _entry(_KEY_CHARACTERS)
            total += Size(ITEMS * entry.expected, 0.0)
        return total

    def _array(self, schema: Schema, depth: int) -> Size:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        number = max(least, ITEMS if most is None else min(ITEMS, most))
        item = self.measure(schema.get("items", {}), depth + 1) + Size(1.0, 1.0)
        return Size(_PUNCTUATION + number * item.expected, _PUNCTUATION + least * item.least)

    def _target(self, reference: Any) -> Any:
        found: Any = self._root
        for step in str(reference).removeprefix("#").strip("/").split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) and name else found
        return found if found is not None else {}


def _entry(name: int) -> Size:
    """Return the size of a key with its quotes, the colon and the comma."""
    return Size(name + 4.0, name + 4.0)


def _constant_size(values: list[Any]) -> Size:
    lengths = [len(json.dumps(value, ensure_ascii=False)) for value in values]
    return Size(sum(lengths) / len(lengths), float(min(lengths)))


def _text(schema: Schema) -> Size:
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    usual = _FORMATS.get(str(schema.get("format")), TEXT_CHARACTERS)
    usual = max(least, usual if most is None else min(usual, most))
    return Size(float(usual + _PUNCTUATION), float(least + _PUNCTUATION))
