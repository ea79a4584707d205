"""Validation of JSON Schemas: check that a schema is usable, and find its subschemas and references.

`dialects.py` writes schemas for the providers, `conformance.py` checks answers against them. All of them walk a schema
by structure, never by the name of a key: `properties` is a keyword in a schema, an ordinary name among the properties,
and plain data in an enum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Schema: TypeAlias = dict[str, Any]

# The keywords that hold subschemas. All others (enum, const, default, examples ...) hold data and are never entered.
# fmt: off
_HOLDS_ONE = {
    "items", "additionalItems", "unevaluatedItems", "contains", "contentSchema",
    "additionalProperties", "unevaluatedProperties", "propertyNames", "not", "if", "then", "else",
}
_HOLDS_LIST = {"allOf", "anyOf", "oneOf", "prefixItems", "items"}
_HOLDS_MAP = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}

DEFINITIONS = {"$defs", "definitions"}
# The keywords that apply to the same value as the schema, not to a part of it.
_IN_PLACE = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas"}
# fmt: on

_LONGEST_MESSAGE = 300


def map_subschemas(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """Return the schema with `change` applied to its direct subschemas (true and false are schemas too)."""
    return {keyword: _map_keyword(keyword, value, change) for keyword, value in schema.items()}


def _map_keyword(keyword: str, value: Any, change: Callable[[Any], Any]) -> Any:
    if keyword in _HOLDS_MAP and isinstance(value, dict):
        # Draft 7 `dependencies` may also hold lists of names.
        return {name: change(sub) if isinstance(sub, dict | bool) else sub for name, sub in value.items()}
    if keyword in _HOLDS_LIST and isinstance(value, list):
        return [change(sub) for sub in value]
    if keyword in _HOLDS_ONE and isinstance(value, dict | bool):
        return change(value)
    return value


class References:
    """The `$ref`s of one schema, resolved inside that schema and nowhere else."""

    def __init__(self, root: Schema) -> None:
        from referencing.jsonschema import DRAFT202012

        self._root = root
        self._resolver = offline().resolver_with_root(DRAFT202012.create_resource(root))

    def target(self, reference: str) -> Any:
        from referencing.exceptions import Unresolvable

        try:
            return self._resolver.lookup(reference).contents
        except Unresolvable:
            raise LookupError(reference) from None

    def recursive(self) -> set[str]:
        """Return the references whose target contains them again, at any depth."""
        return self._on_a_cycle(_references_within)

    def endless(self) -> set[str]:
        """Return the references that lead back to themselves without ever descending into the value."""
        return self._on_a_cycle(_references_in_place)

    def reachable(self) -> set[str]:
        return self._reach(_references_everywhere(self._root), _references_within)

    def _on_a_cycle(self, follow: Callable[[Any], set[str]]) -> set[str]:
        return {ref for ref in self.reachable() if ref in self._reach(follow(self.target(ref)), follow)}

    def _reach(self, start: Iterable[str], follow: Callable[[Any], set[str]]) -> set[str]:
        seen: set[str] = set()
        ahead = list(start)
        while ahead:
            reference = ahead.pop()
            if reference not in seen:
                seen.add(reference)
                ahead.extend(follow(self.target(reference)))
        return seen


def check(schema: Any) -> str | None:
    """Return the reason why this cannot be used as an answer's JSON Schema; None if it can."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema, dict):
        return f"a JSON Schema is an object, not {type(schema).__name__}"
    if not isinstance(schema.get("$schema", ""), str):
        return "$schema is the address of a dialect"
    try:
        dialect(schema).check_schema(schema)
    except SchemaError as error:
        return describe(error)
    return _find_moved_base(schema) or _find_bad_reference(schema) or _find_unsafe_pattern(schema)


def has_no_keyword(schema: Schema) -> bool:
    """Return whether a non-empty schema has no keyword of JSON Schema: most likely it is a map of fields."""
    annotations = {"$schema", "$id", "$comment", "title", "description", "default", "examples", *DEFINITIONS}
    return bool(schema.keys() - annotations) and not schema.keys() & dialect(schema).VALIDATORS.keys()


def _find_moved_base(root: Schema) -> str | None:
    if any("$id" in schema for schema in walk_schema(root) if schema is not root):
        return "$id below the root changes what the references mean; put the definitions into $defs without it"
    return None


def _find_bad_reference(root: Schema) -> str | None:
    references = References(root)
    try:
        for reference in sorted(references.reachable()):
            if not isinstance(references.target(reference), dict | bool):
                return f"$ref {reference!r} does not point to a schema"
    except LookupError as error:
        (reference,) = error.args
        if reference.startswith("#"):
            return f"$ref {reference!r} points to nothing"
        return f"$ref {reference!r} points outside the schema, and nothing is fetched; copy its target into $defs"
    for reference in sorted(references.endless()):
        return f"$ref {reference!r} refers to itself endlessly"
    return None


def _find_unsafe_pattern(root: Schema) -> str | None:
    keywords = {keyword for schema in walk_schema(root) for keyword in schema}
    if {"patternProperties", "unevaluatedProperties"} <= keywords:
        # jsonschema matches these names itself, with an engine that has no timeout.
        return "unevaluatedProperties cannot be checked beside patternProperties; use additionalProperties"
    return None


def make_validator(schema: Schema) -> Any:
    return dialect(schema)(schema, registry=offline())


def dialect(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)


def offline() -> Any:
    """Return an empty registry, which unlike jsonschema's default fetches nothing from the network."""
    from referencing import Registry

    return Registry()


def describe(error: Any) -> str:
    message = error.message
    if len(message) > _LONGEST_MESSAGE:  # it begins with the value, which may be long, and ends with the fault
        message = f"{message[:100]} ... {message[-180:]}"
    return f"{error.json_path}: {message}"


def _children(schema: Schema) -> list[Any]:
    found: list[Any] = []

    def note(sub: Any) -> Any:
        found.append(sub)
        return sub

    map_subschemas(schema, note)
    return found


def walk_schema(schema: Any) -> list[Schema]:
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for child in _children(schema) for found in walk_schema(child))]


def _references_everywhere(schema: Any) -> set[str]:
    return {sub[keyword] for sub in walk_schema(schema) for keyword in ("$ref", "$dynamicRef") if keyword in sub}


def _references_within(schema: Any) -> set[str]:
    # A definition counts only once something refers to it.
    return _references_everywhere(select_keywords(schema, lambda keyword: keyword not in DEFINITIONS))


def _references_in_place(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if "$ref" in schema else set()
    return own.union(*map(_references_in_place, _children(select_keywords(schema, _IN_PLACE.__contains__))))


def select_keywords(schema: Any, keep: Callable[[str], bool]) -> Schema:
    if not isinstance(schema, dict):
        return {}
    return {keyword: value for keyword, value in schema.items() if keep(keyword)}
