"""Answer schemas: the schema that each provider gets is accepted, and equivalent to the caller's schema."""

from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, RootModel, create_model

from pollux_flows.schemas.dialects import (
    WireSchema,
    for_anthropic,
    for_gemini,
    for_openai,
    gemini_tool_parameters,
)
from pollux_flows.schemas.validation import Schema, check
from tests.conforming import problems, without_invented_nulls

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def is_valid(value: Any, schema: Schema) -> bool:
    return bool(Draft202012Validator(schema).is_valid(value))


# --- The rules of the services, written independently of the code -----------------------------------------


# fmt: off
KNOWN_TO_BOTH = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items", "anyOf", "$ref",
    "$defs", "definitions", "title", "description",
}
KNOWN_TO_OPENAI = KNOWN_TO_BOTH | {
    "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minItems", "maxItems",
}
NAMES = (
    "properties", "required", "$ref", "type", "items", "additionalProperties", "enum", "const", "default",
    "anyOf", "description", "$defs", "name",
)
# fmt: on


def find_openai_faults(schema: Any, *, is_root: bool = True) -> list[str]:
    """Return the reasons for which OpenAI would refuse the schema in strict mode."""
    if not isinstance(schema, dict):
        return ["a schema must be an object"]
    faults = []
    if "$ref" in schema and set(schema) - {"$ref"}:
        faults.append("$ref has siblings")
    if not set(schema) & {"$ref", "type", "anyOf"}:
        faults.append(f"no type in {schema}")
    if is_root and (schema.get("type") != "object" or "anyOf" in schema):
        faults.append("the root is no object")
    faults += [f"unknown keyword {keyword}" for keyword in schema if keyword not in KNOWN_TO_OPENAI]
    if "object" in schema.get("type", ""):
        if schema.get("additionalProperties") is not False:
            faults.append("an open object")
        if set(schema["required"]) != set(schema["properties"]):
            faults.append("required is incomplete")
    if "array" in schema.get("type", "") and "items" not in schema:
        faults.append("an array without items")
    return faults + [fault for sub in list_subschemas(schema) for fault in find_openai_faults(sub, is_root=False)]


def find_anthropic_faults(schema: Any) -> list[str]:
    """Return the reasons for which Anthropic would refuse the schema in strict mode."""
    faults = []
    if "$ref" in schema and set(schema) - {"$ref"}:
        faults.append("$ref has siblings")
    faults += [
        f"unknown keyword {keyword}" for keyword in schema if keyword not in KNOWN_TO_BOTH | {"format", "minItems"}
    ]
    if schema.get("minItems", 0) not in {0, 1}:
        faults.append("minItems")
    if "object" in schema.get("type", "") and schema.get("additionalProperties") is not False:
        faults.append("an open object")
    return faults + [fault for sub in list_subschemas(schema) for fault in find_anthropic_faults(sub)]


def list_subschemas(schema: Schema) -> list[Any]:
    maps = [sub for keyword in ("properties", "$defs", "definitions") for sub in schema.get(keyword, {}).values()]
    return [*maps, *schema.get("anyOf", []), *([schema["items"]] if "items" in schema else [])]


# --- Schemas as Pydantic makes them, with property names that are keywords ----------------------------------

names = st.sampled_from(NAMES)
leaves = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "boolean", "default": False}),
    st.just({"type": "integer", "minimum": -5, "maximum": 5}),
    st.just({"type": ["string", "null"]}),
    st.just({"const": "type", "type": "string"}),
    st.lists(names, min_size=1, unique=True).map(lambda values: {"enum": values, "type": "string"}),
    st.just({"enum": [1, "properties", None]}),
    st.just({"anyOf": [{"type": "integer"}, {"type": "string"}], "description": "either"}),
)


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Schema], loops: st.SearchStrategy[Schema]) -> Schema:
    """Draw the schema of a model: required properties from `parts`, optional ones also from recursive `loops`."""
    required = draw(st.dictionaries(names, parts, max_size=3))
    optional = draw(st.dictionaries(names.map(lambda name: f"{name}_"), st.one_of(parts, loops), max_size=3))
    closed: Schema = {"additionalProperties": False} if draw(st.booleans()) else {}
    return {"type": "object", "properties": required | optional, "required": list(required), **closed}


def nest(loops: st.SearchStrategy[Schema], base: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.recursive(
        base,
        lambda parts: st.one_of(
            objects(parts, loops),
            parts.map(lambda part: {"type": "array", "items": part, "maxItems": 3, "default": []}),
            parts.map(lambda part: {"anyOf": [part, {"type": "null"}], "title": "Maybe"}),
            parts.map(lambda part: {"allOf": [part]}),
            st.tuples(objects(parts, loops), objects(parts, loops)).map(make_tagged_union),
        ),
        max_leaves=6,
    )


def make_tagged_union(models: tuple[Schema, Schema]) -> Schema:
    branches = []
    for tag, model in zip(("properties", "enum"), models, strict=True):
        properties = {**model["properties"], "kind": {"const": tag, "type": "string"}}
        branches.append({**model, "properties": properties, "required": [*model["required"], "kind"]})
    return {"oneOf": branches, "discriminator": {"propertyName": "kind"}}


references = st.sampled_from([{"$ref": "#/$defs/properties"}, {"$ref": "#/$defs/Node"}])
anywhere = references | references.map(lambda ref: {**ref, "description": "described", "default": None})
definitions = {
    "recursive": objects(nest(anywhere, leaves), anywhere),
    "finite": objects(nest(leaves, leaves), leaves),
}
roots = objects(nest(anywhere, leaves | anywhere), anywhere)


def schemas(kind: Literal["recursive", "finite"] = "recursive") -> st.SearchStrategy[Schema]:
    node = definitions[kind]
    return st.builds(lambda one, two, root: {"$defs": {"properties": one, "Node": two}, **root}, node, node, roots)


class Answer(NamedTuple):
    plain: Any  # valid by the schema
    filled: Any  # valid in strict mode: a missing value is null, or the constant
    cleaned: Any  # without the invented nulls


@st.composite
def answers(draw: st.DrawFn, schema: Schema) -> Answer:
    return draw_answer(draw, schema, schema, 0)


def draw_answer(draw: st.DrawFn, schema: Schema, root: Schema, depth: int) -> Answer:
    def draw_part(sub: Schema) -> Answer:
        return draw_answer(draw, sub, root, depth + 1)

    if "$ref" in schema:
        return draw_part(root["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    if "allOf" in schema:
        return draw_part(schema["allOf"][0])
    if branches := schema.get("anyOf", schema.get("oneOf")):
        return draw_part(branches[-1] if depth > 5 else draw(st.sampled_from(branches)))  # null comes last
    if "const" in schema or "enum" in schema:
        value = draw(st.sampled_from(schema.get("enum", [schema.get("const")])))
        return Answer(value, value, value)
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    kind = kinds[-1] if depth > 5 else draw(st.sampled_from(kinds))
    if kind == "object":
        return draw_object(draw, schema, root, depth)
    if kind == "array":
        size = 0 if depth > 4 else draw(st.integers(0, 2))
        parts = [draw_part(schema["items"]) for _ in range(size)]
        return Answer([p.plain for p in parts], [p.filled for p in parts], [p.cleaned for p in parts])
    bounds = st.integers(schema.get("minimum", -9), schema.get("maximum", 9))
    scalars = {"string": names, "boolean": st.booleans(), "integer": bounds, "null": st.none()}
    value = draw(scalars[kind])
    return Answer(value, value, value)


def draw_object(draw: st.DrawFn, schema: Schema, root: Schema, depth: int) -> Answer:
    plain, filled, cleaned = {}, {}, {}
    for name, sub in schema["properties"].items():
        if name in schema["required"] or (depth < 4 and draw(st.booleans())):
            part = draw_answer(draw, sub, root, depth + 1)
            plain[name], filled[name], cleaned[name] = part
        elif "const" in (bare := strip_all_of(sub)):
            filled[name] = cleaned[name] = bare["const"]
        else:
            filled[name] = None
            if Draft202012Validator({"$defs": root["$defs"], "allOf": [sub]}).is_valid(None):
                cleaned[name] = None  # the schema allows this null, so it stays
    return Answer(plain, filled, cleaned)


def strip_all_of(schema: Schema) -> Schema:
    return strip_all_of(schema["allOf"][0]) if "allOf" in schema else schema


@quick
@given(schemas())
def test_conversions_do_not_change_the_callers_schema(schema: Schema) -> None:
    before = deepcopy(schema)
    for convert in (for_openai, for_anthropic, for_gemini):
        convert(schema).schema.clear()
    gemini_tool_parameters(schema)
    without_invented_nulls({"name": None}, schema)
    assert schema == before


@quick
@given(schemas())
def test_a_strict_schema_for_openai_follows_its_rules(schema: Schema) -> None:
    wire = for_openai(schema)
    assert wire.strict
    assert find_openai_faults(wire.schema) == []
    assert check(wire.schema) is None


@quick
@given(schemas("finite"))
def test_a_strict_schema_for_anthropic_follows_its_rules(schema: Schema) -> None:
    wire = for_anthropic(schema)
    assert wire.strict
    assert find_anthropic_faults(wire.schema) == []


@quick
@given(schemas())
def test_a_second_conversion_changes_nothing(schema: Schema) -> None:
    for convert in (for_openai, for_anthropic, for_gemini):
        once = convert(schema)
        assert convert(once.schema) == once


@quick
@given(st.data(), schemas())
def test_every_valid_answer_can_be_converted_to_the_openai_form_and_back(data: st.DataObject, schema: Schema) -> None:
    answer = data.draw(answers(schema))
    assert problems(answer.plain, schema) == []
    assert problems(answer.filled, for_openai(schema).schema) == []
    assert without_invented_nulls(answer.filled, schema) == answer.cleaned
    assert problems(answer.cleaned, schema) == []


@quick
@given(st.data(), schemas())
def test_every_answer_in_the_openai_form_is_valid_by_the_callers_schema(data: st.DataObject, schema: Schema) -> None:
    wire = for_openai(schema).schema
    answer = data.draw(answers(wire)).plain
    assert problems(answer, wire) == []
    assert problems(without_invented_nulls(answer, schema), schema) == []


@quick
@given(st.data(), schemas("finite"))
def test_every_valid_answer_is_valid_in_the_anthropic_form(data: st.DataObject, schema: Schema) -> None:
    answer = data.draw(answers(schema)).plain
    assert problems(answer, for_anthropic(schema).schema) == []


# --- Examples -----------------------------------------------------------------------------------------------


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    zip: str | None = None


class Node(BaseModel):
    value: int
    next: Node | None = Field(None, description="the one after this")
    children: list[Node] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str = "Tom"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = "Rex"


class Keywords(BaseModel):
    properties: dict[Literal["a"], int] | None = None
    required: list[str]
    type: str = "x"
    ref: int = Field(alias="$ref")
    additional: Address = Field(alias="additionalProperties")
    enum: Color = Color.RED


def make_schema(**fields: Any) -> Schema:
    model: type[BaseModel] = create_model("Model", **fields)
    return model.model_json_schema()


def test_an_optional_field_becomes_required_and_nullable() -> None:
    schema = make_schema(a=(int, ...), b=(str | None, None), c=(int, 3))
    wire = for_openai(schema)
    assert wire.strict
    assert wire.schema["required"] == ["a", "b", "c"]
    assert wire.schema["properties"]["c"] == {"type": ["integer", "null"], "title": "C"}
    assert wire.schema["properties"]["b"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "B"}
    assert without_invented_nulls({"a": 1, "b": None, "c": None}, schema) == {"a": 1, "b": None}


def test_an_optional_enum_gets_null_as_a_value() -> None:
    wire = for_openai(make_schema(size=(Literal["s", "m"], "s"), mixed=(Literal[1, "a"], 1)))
    size, mixed = wire.schema["properties"].values()
    assert (size["enum"], size["type"]) == (["s", "m", None], ["string", "null"])
    assert (mixed["enum"], mixed["type"]) == ([1, "a", None], ["integer", "string", "null"])


@pytest.mark.parametrize(
    "field",
    [dict[str, int], dict[str, Any], dict, Any, list, tuple[int, str]],
    ids=["map", "free map", "dict", "any", "list", "tuple"],
)
def test_a_schema_that_strict_mode_cannot_express_is_sent_unchanged(field: Any) -> None:
    schema = make_schema(data=(field, ...), note=(str, "-"))
    for convert in (for_openai, for_anthropic):
        assert convert(schema) == WireSchema(schema, strict=False)
    assert for_gemini(schema) == WireSchema(schema, strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {"type": "object", "properties": {}, "patternProperties": {"^x": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"enum": [{"x": 1}]}}},
        {"type": "array", "items": {}},
        {"allOf": [{"type": "object", "properties": {}}, {"properties": {"a": {"type": "string"}}}]},
        {"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]},
    ],
)
def test_a_schema_that_strict_mode_would_make_unsatisfiable_is_sent_unchanged(schema: Schema) -> None:
    assert for_openai(schema) == for_anthropic(schema) == WireSchema(schema, strict=False)


@pytest.mark.parametrize("extra", [{"properties": {}}, {"additionalProperties": False}])
def test_a_tool_without_arguments_is_strict(extra: Schema) -> None:
    wire = for_openai({"type": "object", **extra})
    assert wire.strict
    assert wire.schema == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@pytest.mark.parametrize("model", [list[int], Cat | Dog, int], ids=["array", "union", "number"])
def test_strict_mode_needs_an_object_at_the_root_only_for_openai(model: Any) -> None:
    schema = RootModel[model].model_json_schema()
    assert for_openai(schema) == WireSchema(schema, strict=False)
    assert for_anthropic(schema).strict


def test_a_reference_with_a_description_is_inlined() -> None:
    schema = make_schema(
        color=(Color, Field(description="the paint")),
        home=(Address, Field(description="where")),
        work=(Address, ...),
    )
    for wire in (for_openai(schema), for_anthropic(schema), for_gemini(schema)):
        color, home, work = wire.schema["properties"].values()
        assert (color["enum"], color["description"]) == (["red", "blue"], "the paint")
        assert (home["type"], home["description"]) == ("object", "where")
        assert work == {"$ref": "#/$defs/Address"}


def test_the_schema_of_a_recursive_model_is_finite() -> None:
    schema = Node.model_json_schema()
    wire = for_openai(schema)
    assert wire.strict
    assert wire.schema["type"] == "object"
    answer = {"value": 1, "next": {"value": 2, "next": None, "children": None}, "children": []}
    assert is_valid(answer, wire.schema)
    assert without_invented_nulls(answer, schema) == {
        "value": 1,
        "next": {"value": 2, "next": None},
        "children": [],
    }
    assert not for_anthropic(schema).strict


def test_a_description_beside_a_recursive_reference_is_preserved() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N", "description": "after"}}}
    schema = {"$defs": {"N": node}, "$ref": "#/$defs/N"}
    wrapped = {"anyOf": [{"$ref": "#/$defs/N"}], "description": "after"}
    assert for_gemini(schema).schema["$defs"]["N"]["properties"]["next"] == wrapped
    assert for_openai(schema).schema["properties"]["next"] == {
        **wrapped,
        "anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}],
    }


def test_the_tags_of_a_discriminated_union_are_not_nullable() -> None:
    schema = make_schema(pet=(Annotated[Cat | Dog, Field(discriminator="kind")], ...))
    wire = for_openai(schema)
    assert wire.strict
    assert wire.schema["properties"]["pet"] == {
        "anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "title": "Pet",
    }
    # Both tags have defaults. Were they nullable, {"kind": null, "name": null} would be a cat and a dog.
    assert wire.schema["$defs"]["Dog"]["properties"]["kind"] == {
        "const": "dog",
        "type": "string",
        "title": "Kind",
    }
    assert without_invented_nulls({"pet": {"kind": "dog", "name": None}}, schema) == {"pet": {"kind": "dog"}}


def test_bounds_that_a_service_refuses_become_part_of_the_description() -> None:
    schema = make_schema(
        age=(Annotated[int, Field(ge=0, lt=150, description="In years.")], ...),
        tags=(Annotated[list[Annotated[str, Field(max_length=9)]], Field(min_length=2)], ...),
        price=(Decimal, ...),
    )
    age, tags, price = for_anthropic(schema).schema["properties"].values()
    assert age["description"] == "In years.\n\nMust be less than 150, at least 0."
    assert tags["description"] == "Must be a list of at least 2 items."
    assert tags["items"]["description"] == "Must be at most 9 characters long."
    assert "pattern" not in str(price).replace("regular expression", "")

    wire = for_openai(schema)
    assert find_openai_faults(wire.schema) == []
    age, tags, price = wire.schema["properties"].values()
    assert (age["minimum"], age["exclusiveMaximum"], tags["minItems"]) == (0, 150, 2)
    assert tags["items"]["description"] == "Must be at most 9 characters long."
    assert "(?!" not in str([branch.get("pattern") for branch in price["anyOf"]])


def test_formats_that_a_service_does_not_know_become_part_of_the_description() -> None:
    schema = {
        "type": "object",
        "properties": {"link": {"type": "string", "format": "uri"}},
        "required": ["link"],
    }
    assert for_anthropic(schema).schema["properties"]["link"]["format"] == "uri"
    in_words = {"type": "string", "description": "Must be in the format uri."}
    assert for_openai(schema).schema["properties"]["link"] == in_words


def test_fields_may_be_named_like_keywords() -> None:
    schema = make_schema(properties=(Address, ...), required=(int, 3), items=(list[Color], ...))
    wire = for_openai(schema)
    assert find_openai_faults(wire.schema) == []
    assert list(wire.schema["properties"]) == wire.schema["required"] == ["properties", "required", "items"]
    answer = {"properties": {"street": "x", "zip": None}, "required": None, "items": ["red"]}
    assert is_valid(answer, wire.schema)
    assert without_invented_nulls(answer, schema) == {
        "properties": {"street": "x", "zip": None},
        "items": ["red"],
    }


def test_tools_of_gemini_lose_the_keyword_additional_properties_but_no_property_of_that_name() -> None:
    field = {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "default": {"additionalProperties": 1},
    }
    schema = {"type": "object", "properties": {"additionalProperties": field}, "additionalProperties": False}
    assert gemini_tool_parameters(schema) == {
        "type": "object",
        "properties": {"additionalProperties": {"type": "object", "default": {"additionalProperties": 1}}},
    }


# --- Removing nulls and validation ------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-07/schema#", None])
def test_invented_nulls_below_a_reference_to_the_root_are_removed(draft: str | None) -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "string"}]}}}
    if draft:
        schema["$schema"] = draft
    assert without_invented_nulls({"a": {"a": None}}, schema) == {"a": {}}


def test_nulls_are_removed_only_where_the_schema_forbids_them() -> None:
    item = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": ["integer", "null"]}}}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": item}, "must": {"type": "integer"}},
        "additionalProperties": item,
        "required": ["must"],
    }
    value = {"list": [{"x": None, "y": None}], "must": None, "other": {"x": None}, "unknown": None}
    assert without_invented_nulls(value, schema) == {
        "list": [{"y": None}],
        "must": None,
        "other": {},
        "unknown": None,
    }


def test_a_null_is_removed_if_only_a_branch_without_the_property_would_allow_it() -> None:
    small: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    large = {**small, "properties": {**small["properties"], "n": {"type": "string"}}}
    assert without_invented_nulls({"a": 1, "n": None}, {"anyOf": [small, large]}) == {"a": 1}


def test_problems_name_the_path_and_the_fault() -> None:
    schema = make_schema(items=(list[Address], ...), pet=(Annotated[Cat | Dog, Field(discriminator="kind")], ...))
    answer = {"items": [{"street": "x"}, {"street": 3}], "pet": {"kind": "dog", "name": 4}}
    assert problems(answer, schema) == [
        "$.items[1].street: 3 is not of type 'string'",
        "$.pet.name: 4 is not of type 'string'",
    ]
    assert problems("2024-13-01", {"format": "date"}) == ["$: '2024-13-01' is not a 'date'"]
    assert problems("2024-01-01T00:00:00", {"format": "date-time"}) == []
    assert len(problems("x" * 10_000, {"type": "integer"})[0]) < 400


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (["type"], "a JSON Schema is an object, not list"),
        ({"type": "objekt"}, "'objekt' is not valid under any of the given schemas"),
        ({"properties": {"a": {"pattern": "("}}}, "$.properties.a.pattern: '(' is not a 'regex'"),
        ({"$ref": "#/$defs/A"}, "$ref '#/$defs/A' points to nothing"),
        ({"items": {"$ref": "https://example.com/a.json"}}, "nothing is fetched"),
        ({"title": "t", "items": {"$ref": "#/title"}}, "does not point to a schema"),
        ({"$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}, "$ref": "#/$defs/A"}, "refers to itself endlessly"),
        ({"properties": {"a": {"$id": "https://example.com/", "type": "string"}}}, "$id below the root"),
    ],
)
def test_an_unusable_schema_is_refused_with_the_reason(schema: Any, reason: str) -> None:
    assert reason in str(check(schema))


def test_a_usable_schema_is_not_refused() -> None:
    for model in (Keywords, Node, Cat):
        assert check(model.model_json_schema()) is None
    assert check({"properties": {"$id": {"type": "string"}, "$ref": {"const": {"$ref": "#/no"}}}}) is None
