"""Anthropic's structured output: checks JSON schemas, with Anthropic's error messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pollux_flows.simulator.schema_check import find_schema_error, resolve

_UNSUPPORTED: Final[Mapping[str, tuple[str, ...]]] = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems"),
    "object": ("minProperties", "maxProperties", "patternProperties", "propertyNames"),
}
_UNSUPPORTED_ANYWHERE: Final = ("oneOf", "not", "if", "then", "else", "dependentSchemas", "dependentRequired")
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)


def find_problem(schema: Any) -> str | None:
    """Return the API's error message for this schema; None if the API accepts it."""
    return find_schema_error(schema) or next(_problems(schema, schema, ()), None)


def _problems(node: Any, root: Any, above: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(node, dict):
        yield f"{node!r} is not a schema"
        return
    if "$ref" in node:
        yield from _reference(str(node["$ref"]), root, above)
    for keyword in _UNSUPPORTED_ANYWHERE:
        if keyword in node:
            yield f"Schema type '{keyword}' is not supported"
    types = node.get("type")
    for kind in types if isinstance(types, list) else [types]:
        yield from _type_problems(node, str(kind))
    for child in _children(node):
        yield from _problems(child, root, above)


def _type_problems(node: dict[str, Any], kind: str) -> Iterator[str]:
    for keyword in _UNSUPPORTED.get(kind, ()):
        if keyword in node:
            yield f"For '{kind}' type, property '{keyword}' is not supported"
    if kind == "object" and node.get("additionalProperties") is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if kind == "array" and node.get("minItems", 0) not in (0, 1):
        yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if kind == "string" and node.get("format", "date") not in _FORMATS:
        yield f"For 'string' type, format '{node['format']}' is not supported"


def _reference(target: str, root: Any, above: tuple[str, ...]) -> Iterator[str]:
    if target in above:
        yield f"Circular reference detected in schema definitions: {' -> '.join((*above, target))}"
        return
    node = resolve(target, root)
    if node is None:
        yield f"Reference '{target}' cannot be resolved"
    else:
        yield from _problems(node, root, (*above, target))


def _children(node: dict[str, Any]) -> Iterator[Any]:
    yield from (node.get("properties") or {}).values()
    if "items" in node:
        yield node["items"]
    for keyword in ("anyOf", "allOf"):
        yield from node.get(keyword) or ()
    if not node.keys() & {"$ref"}:
        for keyword in ("$defs", "definitions"):
            yield from (node.get(keyword) or {}).values()
