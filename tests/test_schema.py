"""Answer schemas: what each provider is told, and that it means what the caller asked for."""

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


# --- What the services accept, written down once more and independently of the code -----------------------


# fmt: off
BOTH_KNOW = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items", "anyOf", "$ref",
    "$defs", "definitions", "title", "description",
}
OPENAI_KNOWS = BOTH_KNOW | {
    "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minItems", "maxItems",
}
NAMES = (
    "properties", "required", "$ref", "type", "items", "additionalProperties", "enum", "const", "default",
    "anyOf", "description", "$defs", "name",
)
# fmt: on


def openai_refuses(schema: Any, *, is_root: bool = True) -> list[str]:
    """What OpenAI would answer 400 for, in strict mode."""
    if not isinstance(schema, dict):
        return ["a schema must be an object"]
    faults = []
    if "$ref" in schema and set(schema) - {"$ref"}:
        faults.append("$ref has siblings")
    if not set(schema) & {"$ref", "type", "anyOf"}:
        faults.append(f"no type in {schema}")
    if is_root and (schema.get("type") != "object" or "anyOf" in schema):
        faults.append("the root is no object")
    faults += [f"unknown keyword {keyword}" for keyword in schema if keyword not in OPENAI_KNOWS]
    if "object" in schema.get("type", ""):
        if schema.get("additionalProperties") is not False:
            faults.append("an open object")
        if set(schema["required"]) != set(schema["properties"]):
            faults.append("required is incomplete")
    if "array" in schema.get("type", "") and "items" not in schema:
        faults.append("an array without items")
    return faults + [fault for sub in subschemas(schema) for fault in openai_refuses(sub, is_root=False)]


def anthropic_refuses(schema: Any) -> list[str]:
    faults = []
    if "$ref" in schema and set(schema) - {"$ref"}:
        faults.append("$ref has siblings")
    faults += [f"unknown keyword {keyword}" for keyword in schema if keyword not in BOTH_KNOW | {"format", "minItems"}]
    if schema.get("minItems", 0) not in {0, 1}:
        faults.append("minItems")
    if "object" in schema.get("type", "") and schema.get("additionalProperties") is not False:
        faults.append("an open object")
    return faults + [fault for sub in subschemas(schema) for fault in anthropic_refuses(sub)]


def subschemas(schema: Schema) -> list[Any]:
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
    """A model: required properties from `parts`; optional ones also from `loops`, which may lead back."""
    required = draw(st.dictionaries(names, parts, max_size=3))
    optional = draw(st.dictionaries(names.map(lambda name: f"{name}_"), st.one_of(parts, loops), max_size=3))
    closed: Schema = {"additionalProperties": False} if draw(st.booleans()) else {}
    return {"type": "object", "properties": required | optional, "required": list(required), **closed}


def nested(loops: st.SearchStrategy[Schema], base: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.recursive(
        base,
        lambda parts: st.one_of(
            objects(parts, loops),
            parts.map(lambda part: {"type": "array", "items": part, "maxItems": 3, "default": []}),
            parts.map(lambda part: {"anyOf": [part, {"type": "null"}], "title": "Maybe"}),
            parts.map(lambda part: {"allOf": [part]}),
            st.tuples(objects(parts, loops), objects(parts, loops)).map(tagged_union),
        ),
        max_leaves=6,
    )


def tagged_union(models: tuple[Schema, Schema]) -> Schema:
    branches = []
    for tag, model in zip(("properties", "enum"), models, strict=True):
        properties = {**model["properties"], "kind": {"const": tag, "type": "string"}}
        branches.append({**model, "properties": properties, "required": [*model["required"], "kind"]})
    return {"oneOf": branches, "discriminator": {"propertyName": "kind"}}


references = st.sampled_from([{"$ref": "#/$defs/properties"}, {"$ref": "#/$defs/Node"}])
anywhere = references | references.map(lambda ref: {**ref, "description": "described", "default": None})
definitions = {
    "recursive": objects(nested(anywhere, leaves), anywhere),
    "finite": objects(nested(leaves, leaves), leaves),
}
roots = objects(nested(anywhere, leaves | anywhere), anywhere)


def schemas(kind: Literal["recursive", "finite"] = "recursive") -> st.SearchStrategy[Schema]:
    node = definitions[kind]
    return st.builds(lambda one, two, root: {"$defs": {"properties": one, "Node": two}, **root}, node, node, roots)


class Answer(NamedTuple):
    plain: Any  # valid under the schema
    filled: Any  # as strict mode has it: what is missing is null, or the constant
    cleaned: Any  # what is left once the invented nulls are gone


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
        elif "const" in (bare := without_all_of(sub)):
            filled[name] = cleaned[name] = bare["const"]
        else:
            filled[name] = None
            if Draft202012Validator({"$defs": root["$defs"], "allOf": [sub]}).is_valid(None):
                cleaned[name] = None  # it might have been meant
    return Answer(plain, filled, cleaned)


def without_all_of(schema: Schema) -> Schema:
    return without_all_of(schema["allOf"][0]) if "allOf" in schema else schema


@quick
@given(schemas())
def test_the_callers_schema_is_never_changed(schema: Schema) -> None:
    before = deepcopy(schema)
    for write in (for_openai, for_anthropic, for_gemini):
        write(schema).schema.clear()
    gemini_tool_parameters(schema)
    without_invented_nulls({"name": None}, schema)
    assert schema == before


@quick
@given(schemas())
def test_openai_accepts_what_is_called_strict(schema: Schema) -> None:
    wire = for_openai(schema)
    assert wire.strict
    assert openai_refuses(wire.schema) == []
    assert check(wire.schema) is None


@quick
@given(schemas("finite"))
def test_anthropic_accepts_what_is_called_strict(schema: Schema) -> None:
    wire = for_anthropic(schema)
    assert wire.strict
    assert anthropic_refuses(wire.schema) == []


@quick
@given(schemas())
def test_writing_twice_is_writing_once(schema: Schema) -> None:
    for write in (for_openai, for_anthropic, for_gemini):
        once = write(schema)
        assert write(once.schema) == once


@quick
@given(st.data(), schemas())
def test_every_answer_can_be_given_in_the_openai_form_and_comes_back(data: st.DataObject, schema: Schema) -> None:
    answer = data.draw(answers(schema))
    assert problems(answer.plain, schema) == []
    assert problems(answer.filled, for_openai(schema).schema) == []
    assert without_invented_nulls(answer.filled, schema) == answer.cleaned
    assert problems(answer.cleaned, schema) == []


@quick
@given(st.data(), schemas())
def test_every_answer_in_the_openai_form_is_one_that_was_asked_for(data: st.DataObject, schema: Schema) -> None:
    wire = for_openai(schema).schema
    answer = data.draw(answers(wire)).plain
    assert problems(answer, wire) == []
    assert problems(without_invented_nulls(answer, schema), schema) == []


@quick
@given(st.data(), schemas("finite"))
def test_every_answer_can_be_given_in_the_anthropic_form(data: st.DataObject, schema: Schema) -> None:
    answer = data.draw(answers(schema)).plain
    assert problems(answer, for_anthropic(schema).schema) == []


# --- One example for each thing that people write -----------------------------------------------------------


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


def schema_of(**fields: Any) -> Schema:
    model: type[BaseModel] = create_model("Model", **fields)
    return model.model_json_schema()


def test_an_optional_field_becomes_required_and_nullable() -> None:
    schema = schema_of(a=(int, ...), b=(str | None, None), c=(int, 3))
    wire = for_openai(schema)
    assert wire.strict
    assert wire.schema["required"] == ["a", "b", "c"]
    assert wire.schema["properties"]["c"] == {"type": ["integer", "null"], "title": "C"}
    assert wire.schema["properties"]["b"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "B"}
    assert without_invented_nulls({"a": 1, "b": None, "c": None}, schema) == {"a": 1, "b": None}


def test_null_joins_the_values_of_an_optional_enum() -> None:
    wire = for_openai(schema_of(size=(Literal["s", "m"], "s"), mixed=(Literal[1, "a"], 1)))
    size, mixed = wire.schema["properties"].values()
    assert (size["enum"], size["type"]) == (["s", "m", None], ["string", "null"])
    assert (mixed["enum"], mixed["type"]) == ([1, "a", None], ["integer", "string", "null"])


@pytest.mark.parametrize(
    "field",
    [dict[str, int], dict[str, Any], dict, Any, list, tuple[int, str]],
    ids=["map", "free map", "dict", "any", "list", "tuple"],
)
def test_what_strict_mode_cannot_say_is_sent_as_it_is(field: Any) -> None:
    schema = schema_of(data=(field, ...), note=(str, "-"))
    for write in (for_openai, for_anthropic):
        assert write(schema) == WireSchema(schema, strict=False)
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
def test_so_is_what_closing_would_make_impossible(schema: Schema) -> None:
    assert for_openai(schema) == for_anthropic(schema) == WireSchema(schema, strict=False)


@pytest.mark.parametrize("extra", [{"properties": {}}, {"additionalProperties": False}])
def test_a_tool_without_arguments_is_strict(extra: Schema) -> None:
    wire = for_openai({"type": "object", **extra})
    assert wire.strict
    assert wire.schema == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@pytest.mark.parametrize("model", [list[int], Cat | Dog, int], ids=["array", "union", "number"])
def test_openai_wants_an_object_at_the_root_and_anthropic_does_not(model: Any) -> None:
    schema = RootModel[model].model_json_schema()
    assert for_openai(schema) == WireSchema(schema, strict=False)
    assert for_anthropic(schema).strict


def test_a_described_reference_is_opened() -> None:
    schema = schema_of(
        color=(Color, Field(description="the paint")),
        home=(Address, Field(description="where")),
        work=(Address, ...),
    )
    for wire in (for_openai(schema), for_anthropic(schema), for_gemini(schema)):
        color, home, work = wire.schema["properties"].values()
        assert (color["enum"], color["description"]) == (["red", "blue"], "the paint")
        assert (home["type"], home["description"]) == ("object", "where")
        assert work == {"$ref": "#/$defs/Address"}


def test_a_recursive_model_stays_finite() -> None:
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


def test_a_description_beside_a_recursive_reference_survives() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/N", "description": "after"}}}
    schema = {"$defs": {"N": node}, "$ref": "#/$defs/N"}
    opened = {"anyOf": [{"$ref": "#/$defs/N"}], "description": "after"}
    assert for_gemini(schema).schema["$defs"]["N"]["properties"]["next"] == opened
    assert for_openai(schema).schema["properties"]["next"] == {
        **opened,
        "anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}],
    }


def test_a_discriminated_union_keeps_its_tags() -> None:
    schema = schema_of(pet=(Annotated[Cat | Dog, Field(discriminator="kind")], ...))
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


def test_bounds_go_into_words_where_they_are_refused() -> None:
    schema = schema_of(
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
    assert openai_refuses(wire.schema) == []
    age, tags, price = wire.schema["properties"].values()
    assert (age["minimum"], age["exclusiveMaximum"], tags["minItems"]) == (0, 150, 2)
    assert tags["items"]["description"] == "Must be at most 9 characters long."
    assert "(?!" not in str([branch.get("pattern") for branch in price["anyOf"]])


def test_formats_that_a_service_does_not_know_go_into_words() -> None:
    schema = {
        "type": "object",
        "properties": {"link": {"type": "string", "format": "uri"}},
        "required": ["link"],
    }
    assert for_anthropic(schema).schema["properties"]["link"]["format"] == "uri"
    in_words = {"type": "string", "description": "Must be in the format uri."}
    assert for_openai(schema).schema["properties"]["link"] == in_words


def test_fields_may_be_named_like_keywords() -> None:
    schema = schema_of(properties=(Address, ...), required=(int, 3), items=(list[Color], ...))
    wire = for_openai(schema)
    assert openai_refuses(wire.schema) == []
    assert list(wire.schema["properties"]) == wire.schema["required"] == ["properties", "required", "items"]
    answer = {"properties": {"street": "x", "zip": None}, "required": None, "items": ["red"]}
    assert is_valid(answer, wire.schema)
    assert without_invented_nulls(answer, schema) == {
        "properties": {"street": "x", "zip": None},
        "items": ["red"],
    }


def test_gemini_tools_lose_the_keyword_and_keep_the_property() -> None:
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


# --- Undoing and checking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-07/schema#", None])
def test_nulls_are_found_through_the_root(draft: str | None) -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "string"}]}}}
    if draft:
        schema["$schema"] = draft
    assert without_invented_nulls({"a": {"a": None}}, schema) == {"a": {}}


def test_nulls_go_only_where_the_schema_forbids_them() -> None:
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


def test_a_branch_that_never_heard_of_the_property_does_not_claim_it() -> None:
    small: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    large = {**small, "properties": {**small["properties"], "n": {"type": "string"}}}
    assert without_invented_nulls({"a": 1, "n": None}, {"anyOf": [small, large]}) == {"a": 1}


def test_problems_name_the_place_and_the_fault() -> None:
    schema = schema_of(items=(list[Address], ...), pet=(Annotated[Cat | Dog, Field(discriminator="kind")], ...))
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
