"""OpenAI's strict mode: checks JSON schemas, with OpenAI's error messages."""

from __future__ import annotations

from typing import Any, Final

from pollux_flows.simulator.schema_check import find_schema_error, resolve

_NOT_PERMITTED: Final = (
    "allOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "prefixItems",
)
_FORMATS: Final = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_TYPE_KEYWORDS: Final = frozenset({"type", "anyOf", "$ref", "enum", "const"})
_DEFINITIONS: Final = ("$defs", "definitions")


def find_problem(schema: Any) -> str | None:
    """Return OpenAI's error message for this schema; None if strict mode accepts it."""
    if problem := find_schema_error(schema):
        return problem
    if not isinstance(schema, dict) or schema.get("type") != "object":
        got = schema.get("type") if isinstance(schema, dict) else schema
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{got}\"'."
    return _node(schema, (), schema)


def _node(node: Any, context: tuple[str, ...], root: dict[str, Any]) -> str | None:
    if not isinstance(node, dict):
        return _in_context(context, f"{node!r} is not of type 'object', 'boolean'.")
    if "$ref" in node:
        return _reference(node, context, root)
    if problem := _keywords(node, context):
        return problem
    for child_context, child in _children(node, context):
        if problem := _node(child, child_context, root):
            return problem
    return None


def _keywords(node: dict[str, Any], context: tuple[str, ...]) -> str | None:
    for keyword in _NOT_PERMITTED:
        if keyword in node:
            return _in_context(context, f"'{keyword}' is not permitted.")
    if not node.keys() & _TYPE_KEYWORDS:
        return _in_context(context, "schema must have a 'type' key.")
    if "format" in node and node["format"] not in _FORMATS:
        return _in_context(context, f"'{node['format']}' is not a valid format.")
    types = node.get("type")
    types = types if isinstance(types, list) else [types]
    if "array" in types and "items" not in node:
        return _in_context(context, "array schema missing items.")
    return _object(node, context) if "object" in types else None


def _reference(node: dict[str, Any], context: tuple[str, ...], root: dict[str, Any]) -> str | None:
    siblings = {key for key in node if key != "$ref" and key not in _DEFINITIONS}
    if siblings:
        return _in_context(context, f"$ref cannot have keywords {siblings!r}.")
    if resolve(str(node["$ref"]), root) is None:
        return _in_context(context, f"reference '{node['$ref']}' can only point to definitions of the schema.")
    return None


def _object(node: dict[str, Any], context: tuple[str, ...]) -> str | None:
    if node.get("additionalProperties") is not False:
        return _in_context(context, "'additionalProperties' is required to be supplied and to be false.")
    properties = node.get("properties") or {}
    required = node.get("required") or []
    rule = "'required' is required to be supplied and to be an array including every key in properties."
    for name in properties:
        if name not in required:
            return _in_context(context, f"{rule} Missing '{name}'.")
    for name in required:
        if name not in properties:
            return _in_context(context, f"{rule} Extra required key '{name}' supplied.")
    return None


def _children(node: dict[str, Any], context: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for keyword in ("properties", *_DEFINITIONS):
        for name, child in (node.get(keyword) or {}).items():
            found.append(((*context, keyword, name), child))
    if "items" in node:
        found.append(((*context, "items"), node["items"]))
    for place, child in enumerate(node.get("anyOf") or []):
        found.append(((*context, "anyOf", str(place)), child))
    return found


def _in_context(context: tuple[str, ...], problem: str) -> str:
    return f"In context={context!r}, {problem}"
