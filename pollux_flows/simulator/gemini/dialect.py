"""Translates Gemini's own schema dialect into JSON Schema."""

from __future__ import annotations

from typing import Any

_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def to_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    meant = {name: value for name, value in schema.items() if name not in ("nullable", "example", "propertyOrdering")}
    if "type" in schema:
        kind = schema["type"].lower()
        meant["type"] = [kind, "null"] if schema.get("nullable") else kind
    for name in _COUNTS:
        if name in schema:
            # An int64 may be sent as a string.
            meant[name] = int(schema[name])
    if "properties" in schema:
        meant["properties"] = {name: to_json_schema(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        meant["items"] = to_json_schema(schema["items"])
    if "anyOf" in schema:
        meant["anyOf"] = [to_json_schema(part) for part in schema["anyOf"]]
    return meant
