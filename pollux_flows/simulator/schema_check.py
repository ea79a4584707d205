"""Checks that JSON schemas are valid, and resolves their references."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson


def find_schema_error(schema: Any) -> str | None:
    """Return why this is not a valid JSON schema; None if it is one."""
    problem = _find_schema_error(orjson.dumps(schema))
    return f"Invalid JSON schema: {problem}" if problem else None


def resolve(reference: str, root: Any) -> Any:
    """Return the part of the schema that a reference points to; None if there is none."""
    node = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


@lru_cache(maxsize=256)
def _find_schema_error(schema: bytes) -> str | None:
    # Imported here because it takes a while to load and most requests have no schema.
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(orjson.loads(schema))
    except SchemaError as error:
        return f"{error.json_path}: {error.message}"
    return None
