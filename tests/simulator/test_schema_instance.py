"""Generated values fit their schemas."""

import re
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import UUID4, AwareDatetime, BaseModel, ConfigDict, Field, HttpUrl

from pollux_flows.simulator.pattern_instance import generate_match
from pollux_flows.simulator.schema_instance import generate_instance

CHECKED_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def assert_fits(value: Any, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=CHECKED_FORMATS).validate(value)


def between(low: str, high: str, numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of either bound, both or none, with the lower one first."""
    return st.fixed_dictionaries({}, optional={low: numbers, high: numbers}).map(
        lambda found: {low: min(found.values()), high: max(found.values())} if len(found) == 2 else found
    )


whole_numbers = st.integers(-1_000, 1_000)
dyadic = st.integers(-4_000, 4_000).map(lambda n: n / 16)  # exact in binary, so that nothing is rounded
sizes = st.integers(0, 30)
integers = st.builds(
    lambda bounds, more: {"type": "integer", **bounds, **more},
    between("minimum", "maximum", whole_numbers),
    st.just({}),
)
multiples = st.builds(
    lambda step, low: {"type": "integer", "multipleOf": step, "minimum": low}, st.integers(1, 50), whole_numbers
)
numbers = st.builds(lambda bounds: {"type": "number", **bounds}, between("minimum", "maximum", dyadic))
open_numbers = st.builds(
    lambda low, width: {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + width},
    dyadic,
    st.sampled_from([0.125, 1, 2, 3, 1_000]),
)
strings = st.builds(lambda bounds: {"type": "string", **bounds}, between("minLength", "maxLength", sizes))
formats = st.sampled_from(
    ["date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"]
).map(lambda name: {"type": "string", "format": name})
patterns = st.sampled_from(
    [r"^\d{4}-\d{2}$", r"^[A-Z]{2,3}$", "^(foo|bar)+$", r"^[a-z]+(?:-[a-z]+)*$", r"^\+?[0-9 ]{7,}$", "x", "^[^a-z]$"]
).map(lambda pattern: {"type": "string", "pattern": pattern})
constants = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"const": {"a": [1]}},
        {"enum": ["a", 1, None]},
        {"type": ["string", "null"]},
        {"type": ["null", "integer"], "minimum": 3},
        {},
        True,
    ]
)
leaves = st.one_of(integers, multiples, numbers, open_numbers, strings, formats, patterns, constants)
names = st.text("abcdefgh$/~ é", min_size=1, max_size=4)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(parts: dict[str, Any], required: set[int], is_open: Any) -> dict[str, Any]:
        known = list(parts)
        return {
            "type": "object",
            "properties": parts,
            "required": sorted({known[place % len(known)] for place in required}) if known else [],
            "additionalProperties": is_open,
        }

    return st.builds(
        build, st.dictionaries(names, inner, max_size=4), st.sets(st.integers(0, 9), max_size=4), st.booleans()
    )


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    bounds = between("minItems", "maxItems", st.integers(0, 5))
    return st.builds(lambda item, bound: {"type": "array", "items": item, **bound}, inner, bounds)


def combinations(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        objects(inner),
        arrays(inner),
        inner.map(lambda part: {"type": "object", "additionalProperties": part}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": [*parts, {"type": "null"}], "title": "t"}),
        st.lists(inner, max_size=3).map(lambda parts: {"type": "array", "prefixItems": parts, "items": False}),
        inner.map(lambda part: {"allOf": [part, {"description": "d"}]}),
    )


schemas = st.recursive(leaves, combinations, max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(schemas, st.text(max_size=20))
def test_a_generated_value_fits_its_schema(schema: Any, hint: str) -> None:
    """A generated value validates against its schema, for any hint."""
    assert_fits(generate_instance(schema, hint), schema)


@settings(max_examples=50, deadline=None)
@given(schemas)
def test_generated_values_are_deterministic(schema: Any) -> None:
    """Equal schemas and hints give equal values."""
    assert generate_instance(schema, "x") == generate_instance(schema, "x")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "maxLength": 3},
            {"type": "integer", "minimum": -3, "maximum": 9},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "format": "date"},
            {"enum": list("abcdefgh")},
            {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        ]
    ),
    st.integers(0, 5),
)
def test_unique_items_are_unique(item: Any, count: int) -> None:
    """With `uniqueItems`, the array has at least `minItems` items, and no two are equal."""
    schema = {"type": "array", "items": item, "uniqueItems": True, "minItems": count}
    assert_fits(generate_instance(schema, "hint"), schema)


SPECIAL_SCHEMAS: dict[str, Any] = {
    "recursion through an optional property": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"$ref": "#"}},
        "required": ["name"],
    },
    "recursion through a list": {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
    },
    "recursion through a union": {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
        "additionalProperties": False,
    },
    "recursion through a union with a title": {
        "type": "object",
        "properties": {"left": {"title": "Left", "anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
        "additionalProperties": False,
    },
    "recursion through a map": {"type": "object", "additionalProperties": {"$ref": "#"}},
    "a reference with siblings": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A", "minimum": 7}},
        "required": ["a"],
        "$defs": {"A": {"type": "integer", "maximum": 9}},
    },
    "oneOf that overlaps": {"oneOf": [{"type": "integer", "multipleOf": 1}, {"type": "number", "minimum": 100}]},
    "oneOf with a tag": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]},
        ]
    },
    "allOf of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 3}, "b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    "allOf of references": {
        "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "$defs": {
            "A": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            "B": {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        },
    },
    "not": {"type": "integer", "not": {"const": 1}},
    "a map with chosen keys": {
        "type": "object",
        "propertyNames": {"enum": ["red", "green"]},
        "additionalProperties": {"type": "integer"},
        "minProperties": 2,
    },
    "minProperties": {"type": "object", "minProperties": 3},
    "maxProperties": {
        "type": "object",
        "properties": {"a": {}, "b": {}, "c": {}},
        "required": ["c"],
        "maxProperties": 2,
    },
    "required but not described": {"type": "object", "required": ["a"]},
    "contains": {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 50}},
    "no type": {"properties": {"a": {"minimum": 3}}, "required": ["a"]},
    "number that JSON cannot represent as an integer": {"type": "number", "minimum": 1e300},
    "an escaped reference": {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": {"type": "integer"}}},
    "integer with a fractional minimum": {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 1.5},
}


@pytest.mark.parametrize("name", SPECIAL_SCHEMAS)
def test_values_fit_schemas_with_recursion_and_combinations(name: str) -> None:
    """Recursion ends, and combinations schemas all hold."""
    schema = SPECIAL_SCHEMAS[name]
    assert_fits(generate_instance(schema, "hint"), schema)


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["leaf"]
    seen: AwareDatetime
    home: HttpUrl
    key: UUID4
    weight: float = Field(gt=0, lt=1)


class Branch(BaseModel):
    kind: Literal["branch"]
    parts: list["Branch | Leaf"] = Field(min_length=1, max_length=3)
    names: set[str] = Field(min_length=2)
    lookup: dict[str, int]
    pair: tuple[int, str]
    note: str | None = Field(default=None, pattern="^[a-z]{3}$")
    code: int = Field(multiple_of=5, ge=11)


def test_pydantic_accepts_values_for_its_own_schemas() -> None:
    """A value for the schema of a Pydantic model validates as that model."""
    Branch.model_validate(generate_instance(Branch.model_json_schema(), "hint"))


def test_mutually_recursive_schemas_end() -> None:
    """Twelve models that refer to each other would expand to millions of nodes."""
    every = {f"M{n}": {"$ref": f"#/$defs/M{n}"} for n in range(12)}
    models = {name: {"type": "object", "properties": every} for name in every}
    assert_fits(generate_instance({"$ref": "#/$defs/M0", "$defs": models}), {"$ref": "#/$defs/M0", "$defs": models})


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"type": "array", "minItems": 1, "items": {"$ref": "#"}}]
)
def test_a_schema_without_any_finite_value_gives_an_empty_object(schema: Any) -> None:
    assert generate_instance(schema) == {}


def test_the_hint_is_part_of_free_texts() -> None:
    """Different hints make different texts, so that answers to different prompts differ."""
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    assert generate_instance(schema, "What?") == {"title": "Simulated title: What?"}


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "abc",
        "a|b",
        "^a.c$",
        r"\d+\.\d*",
        "(?:ab){2}",
        "(?P<year>[0-9]{4})-x",
        r"[\w-]{3,}?",
        r"\bword\b",
        "[^abc]",
        r"\$\{x\}",
    ],
)
def test_a_generated_string_matches_its_pattern(pattern: str) -> None:
    text = generate_match(pattern)
    assert text is not None
    assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "(?<!a)(?<=b)c", r"(a)\1{2}b", r"\p{L}", "(?P<x"])
def test_a_pattern_that_is_too_complex_is_ignored(pattern: str) -> None:
    """A pattern that cannot be generated gives an ordinary text."""
    assert generate_match(pattern) is None
    assert isinstance(generate_instance({"type": "string", "pattern": pattern}), str)


def test_a_string_for_a_pattern_can_have_a_length() -> None:
    """A string has the required length if the quantifiers of its pattern allow it."""
    assert generate_match("^a*$", 5, 7) == "aaaaa"
    assert generate_match("^a$", 5) is None
