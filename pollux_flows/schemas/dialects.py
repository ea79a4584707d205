"""Dialects: write answer schemas in the form that each provider accepts.

Every provider supports its own subset of JSON Schema. The functions below rewrite a schema into that subset if it
can express the same constraints. If it cannot, they return `strict=False` with the schema unchanged: an answer that has
to be checked afterwards is better than a request with a different schema.
They never change their argument, which `validation.check` must have accepted.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from pollux_flows.errors import ConfigurationError
from pollux_flows.schemas.validation import DEFINITIONS, References, Schema, make_validator, map_subschemas

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class WireSchema:
    schema: Schema  # what goes on the wire
    strict: bool  # whether the provider may be asked to enforce it


def _once(write: Callable[[Schema], WireSchema]) -> Callable[[Schema], WireSchema]:
    """Cache the written schemas and return copies of them, as a batch needs the same one for every row."""
    written = lru_cache(maxsize=64)(lambda text: write(json.loads(text)))

    @wraps(write)
    def cached(schema: Schema) -> WireSchema:
        return deepcopy(written(json.dumps(schema)))

    return cached


@_once
def for_openai(schema: Schema) -> WireSchema:
    """Write a schema for OpenAI, OpenRouter, local servers, and their tools; `without_invented_nulls` undoes it.

    Strict mode closes every object and requires every property, so an optional property becomes nullable.
    Bounds that it does not know move into the description. Not strict: a root that is not an object, and schemas that
    strict mode cannot express (maps, tuples, `Any`, conditions, an `allOf` whose parts overlap).
    """
    try:
        wire = _Writer(schema, _OPENAI).write_root(schema)
    except _Inexpressible:
        return WireSchema(schema, strict=False)
    has_object_root = wire.get("type") == "object"
    return WireSchema(wire if has_object_root else schema, strict=has_object_root)


@_once
def for_anthropic(schema: Schema) -> WireSchema:
    """Write a schema for Anthropic's `output_config.format`; `strict=False` means that the API would refuse it.

    Bounds and lengths move into the description in words; optional properties stay optional. The API refuses
    mostly maps and recursion. (Anthropic's SDK closes a map into an object, whose only answer is then `{}`.
    Here the schema is returned unchanged, for the caller to refuse it before the call, or to put
    it into the prompt and check the answer.)
    """
    try:
        return WireSchema(_Writer(schema, _ANTHROPIC).write_root(schema), strict=True)
    except _Inexpressible:
        return WireSchema(schema, strict=False)


@_once
def for_gemini(schema: Schema) -> WireSchema:
    """Write a schema for Gemini's `response_json_schema`, which accepts only `$...` keywords beside a `$ref`."""
    references = References(schema)
    recursive = references.recursive()

    def part_references(sub: Any) -> Any:
        if not isinstance(sub, dict):
            return sub
        while "$ref" in sub and not all(keyword.startswith("$") for keyword in sub):
            sub = _inline(sub, references, recursive)
        return map_subschemas(sub, part_references)

    try:
        return WireSchema(part_references(schema), strict=True)
    except _Inexpressible:
        return WireSchema(schema, strict=False)


def resolve_root(schema: Schema) -> Schema:
    """Return the schema with the `$ref` at its root resolved, behind which Pydantic puts a recursive model."""
    references = References(schema)
    try:
        while "$ref" in schema:
            schema = _merge(_without(schema, "$ref"), references.target(schema["$ref"]))
    except _Inexpressible:
        pass  # the keywords beside the `$ref` contradict its target
    return schema


def gemini_tool_parameters(schema: Schema) -> Schema:
    """Write tool parameters for Gemini, whose API refuses the keyword `additionalProperties` in them."""

    def strip(sub: Any) -> Any:
        return map_subschemas(_without(sub, "additionalProperties"), strip) if isinstance(sub, dict) else sub

    stripped: Schema = strip(schema)
    return stripped


def tool_schema(tool: dict[str, Any]) -> WireSchema:
    """Write a tool's parameters for OpenAI: unchanged if the tool is marked as not strict, or as strict as possible."""
    parameters = tool.get("parameters") or {"type": "object", "properties": {}}
    if tool.get("strict") is False:
        return WireSchema(parameters, strict=False)
    wire = for_openai(parameters)
    if tool.get("strict") and not wire.strict:
        raise ConfigurationError(
            f"Tool {tool['name']!r} requests strict mode, which its parameters do not allow.",
            hint="Use objects with named properties only (no free-form maps), or leave strict out.",
        )
    return wire


class _Inexpressible(Exception):  # noqa: N818 (always caught in this module)
    """The provider's subset of JSON Schema cannot express this."""


@dataclass(frozen=True)
class _Grammar:
    takes: dict[str, Callable[[Any], bool]]  # constraint -> with which values; the others go into words
    has_optional: bool  # properties may be left out
    has_recursion: bool


def _is_plain_pattern(pattern: str) -> bool:
    # Neither service uses a backtracking engine. Pydantic writes a lookahead for every Decimal.
    return re.search(r"\(\?[=!<]|\\[1-9]", pattern) is None


def _always(_: Any) -> bool:
    return True


def _never(_: Any) -> bool:
    return False


_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems")
_OPENAI = _Grammar(
    takes={
        **dict.fromkeys(_BOUNDS, _always),
        "pattern": _is_plain_pattern,
        "format": _FORMATS.__contains__,
    },
    has_optional=False,
    has_recursion=True,
)
_ANTHROPIC = _Grammar(
    takes={"minItems": (0, 1).__contains__, "format": (_FORMATS | {"uri"}).__contains__},
    has_optional=True,
    has_recursion=False,
)

# Constraints that can be expressed in words, after "Must be".
_PHRASES = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters long",
    "maxLength": "at most {} characters long",
    "pattern": "a match for the regular expression {}",
    "format": "in the format {}",
    "minItems": "a list of at least {} items",
    "maxItems": "a list of at most {} items",
    "uniqueItems": "a list without repeated items",
    "minProperties": "an object of at least {} properties",
    "maxProperties": "an object of at most {} properties",
}
# Keywords that hold schemas or conditions: a description in words would not replace them.
# fmt: off
_BEYOND = {
    "patternProperties", "propertyNames", "unevaluatedProperties",
    "dependentRequired", "dependentSchemas", "dependencies",
    "prefixItems", "additionalItems", "unevaluatedItems", "contains", "minContains", "maxContains",
    "not", "if", "then", "else", "$dynamicRef", "$recursiveRef",
}
_LABELS = {"title", "description"}
_PLAIN = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items",
    "anyOf", "oneOf", "allOf", "$ref",
}
# fmt: on
# All other keywords (default, examples, discriminator, $comment ...) do not constrain an answer, and are dropped.
_BINDING = _PLAIN | _LABELS | DEFINITIONS | _BEYOND | _PHRASES.keys()

# A pointer into a property would refer to its nullable form. The root and the definitions keep their meaning.
_STABLE_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[^/]+)?")
_NULL = {"type": "null"}
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class _Writer:
    """Writes one schema in one provider's grammar."""

    def __init__(self, root: Schema, grammar: _Grammar) -> None:
        self._grammar = grammar
        self._references = References(root)
        self._recursive = self._references.recursive()
        self._original = make_validator(root)

    def write_root(self, root: Schema) -> Schema:
        # Pydantic puts a recursive model behind a $ref, but the root must be an object: resolve that one.
        while "$ref" in root:
            root = _merge(_without(root, "$ref"), self._references.target(root["$ref"]))
        return self.write(root)

    def write(self, schema: Any) -> Schema:
        schema = _name_type(self._flatten(schema))
        self._check_expressible(schema)
        schema = self._describe_constraints(schema)
        return self._write_object(schema) if _is_object(schema) else map_subschemas(schema, self.write)

    def _flatten(self, schema: Any) -> Schema:
        """Return the schema without annotations, `oneOf`, `allOf`, and `$ref` beside other keywords."""
        if not isinstance(schema, dict):  # true accepts anything, false nothing
            raise _Inexpressible
        flat = {keyword: value for keyword, value in schema.items() if keyword in _BINDING}
        if "oneOf" in flat:
            flat = _merge(_without(flat, "oneOf"), {"anyOf": flat["oneOf"]})
        for part in flat.pop("allOf", ()):
            flat = _merge(flat, self._flatten(part))
        if "$ref" in flat and len(flat) > 1:
            return self._flatten(_inline(flat, self._references, self._recursive))
        return flat

    def _check_expressible(self, schema: Schema) -> None:
        is_beyond = (
            bool(schema.keys() & _BEYOND)
            or ("$ref" in schema and not _STABLE_REFERENCE.fullmatch(schema["$ref"]))
            or (schema.get("$ref") in self._recursive and not self._grammar.has_recursion)
            or ("array" in _types_of(schema) and "items" not in schema)
            or (_is_object(schema) and not _is_closable(schema))
        )
        if is_beyond:
            raise _Inexpressible

    def _describe_constraints(self, schema: Schema) -> Schema:
        refused = {
            keyword: value
            for keyword, value in schema.items()
            if keyword in _PHRASES and not self._grammar.takes.get(keyword, _never)(value)
        }
        schema = _without(schema, *refused)
        phrases = [_PHRASES[key].format(value) for key, value in refused.items() if value is not False]
        if phrases:
            sentence = f"Must be {', '.join(phrases)}."
            schema["description"] = "\n\n".join(filter(None, (schema.get("description"), sentence)))
        return schema

    def _write_object(self, schema: Schema) -> Schema:
        schema = {"properties": {}, **_without(schema, "additionalProperties")}
        written = map_subschemas(schema, self.write)
        if not self._grammar.has_optional:
            for name in written["properties"].keys() - set(schema.get("required", ())):
                if not self._original.evolve(schema=schema["properties"][name]).is_valid(None):
                    written["properties"][name] = _make_nullable(written["properties"][name])
            written["required"] = list(written["properties"])
        return {**written, "additionalProperties": False}


def _name_type(schema: Schema) -> Schema:
    """Return the schema with a `type`: OpenAI requires one, and Pydantic writes none for a mixed Literal."""
    literals = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if any(isinstance(value, dict | list) for value in literals):
        raise _Inexpressible
    if schema.keys() & {"type", "anyOf", "$ref"}:
        return schema
    if literals:
        types = list(dict.fromkeys(_JSON_TYPES[type(value)] for value in literals))
        return {"type": types[0] if len(types) == 1 else types, **schema}
    if "properties" in schema:
        return {"type": "object", **schema}
    raise _Inexpressible  # it accepts anything


def _is_object(schema: Schema) -> bool:
    return "object" in _types_of(schema) or "properties" in schema


def _is_closable(schema: Schema) -> bool:
    # With neither keyword, the object is a map, which could only be empty if it were closed.
    is_map = schema.get("additionalProperties", "properties" not in schema) is not False
    # If properties are declared both here and in a branch, closing either one excludes those of the other.
    is_spread = "anyOf" in schema
    names_others = not set(schema.get("required", ())) <= schema.get("properties", {}).keys()
    return not (is_map or is_spread or names_others)


def _make_nullable(schema: Schema) -> Schema:
    if "const" in schema:
        # Not nullable, as a model always writes a constant, and a union's branches are told apart by it.
        return schema
    if "anyOf" in schema and schema.keys() <= _LABELS | {"anyOf"}:
        return {**schema, "anyOf": [*schema["anyOf"], _NULL]}
    types = _types_of(schema)
    if schema.keys() & {"anyOf", "$ref"} or {"object", "array"} & set(types):
        return {"anyOf": [schema, _NULL]}
    nullable = {**schema, "type": list(dict.fromkeys([*types, "null"]))}
    if "enum" in schema:
        nullable["enum"] = [*(value for value in schema["enum"] if value is not None), None]
    return nullable


def _types_of(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else types


def _inline(schema: Schema, references: References, recursive: set[str]) -> Schema:
    """Return an equal schema without a `$ref` beside other keywords."""
    reference = schema["$ref"]
    rest = _without(schema, "$ref")
    if reference not in recursive:
        try:
            return _merge(rest, references.target(reference))
        except _Inexpressible:
            pass  # one schema cannot hold both
    # Inlining a recursive target would never end; a union of one branch is equivalent.
    return _merge(rest, {"anyOf": [{"$ref": reference}]})


def _merge(outer: Schema, inner: Any) -> Schema:
    """Merge two schemas of the same value. Title and description are those of the outer one, nearer to its use."""
    if not isinstance(inner, dict):
        raise _Inexpressible
    inner = _without(inner, *DEFINITIONS)
    shared = outer.keys() & inner.keys() - _LABELS
    is_clash = any(outer[keyword] != inner[keyword] for keyword in shared)
    # `additionalProperties` depends on the properties beside it, so the two cannot both describe an object.
    shape = {"properties", "additionalProperties"}
    if is_clash or (outer.keys() & shape and inner.keys() & shape):
        raise _Inexpressible
    return {**inner, **outer}


def _without(schema: Schema, *keywords: str) -> Schema:
    return {keyword: value for keyword, value in schema.items() if keyword not in keywords}
