"""Structured output: the schema is sent to the provider, and the answer is checked against it."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from pollux_flows import APIError, ConfigurationError, Options, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.providers.base import Call
from pollux_flows.providers.local import request
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MODELS, MakeConfig, asked, every_provider, good, http, scripted, sent
from tests.providers.shapes import (
    Awkward,
    Bounded,
    Company,
    Invoice,
    Map,
    Node,
    Optionals,
    Painted,
)

INVOICE = Invoice.model_json_schema()
CASES: list[type[BaseModel]] = [Invoice, Optionals, Painted, Map, Company, Awkward, Node]


def read_wire_schema(provider: ProviderName, body: dict[str, Any]) -> Any:
    match provider:
        case "gemini":
            return body["generationConfig"]["responseJsonSchema"]
        case "openai":
            return body["text"]["format"]["schema"]
        case "anthropic":
            return body["output_config"]["format"]["schema"]
        case _:
            return body["response_format"]["json_schema"]["schema"]


@every_provider
@pytest.mark.parametrize("shape", CASES, ids=lambda shape: shape.__name__)
async def test_a_pydantic_model_is_returned_as_an_instance(
    provider: ProviderName, shape: type[BaseModel], config: MakeConfig
) -> None:
    """Each provider accepts optional fields, enums, maps, references and recursion."""
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=shape))
    assert envelope.structured is not None
    assert [type(value) for value in envelope.structured] == [shape]
    assert envelope.status == "ok"
    assert envelope.diagnostics["warnings"] == []


@pytest.mark.parametrize("shape", CASES, ids=lambda shape: shape.__name__)
async def test_openai_models_behind_openrouter_accept_each_schema(shape: type[BaseModel], config: MakeConfig) -> None:
    """Such models are as strict as OpenAI itself."""
    options = Options(response_schema=shape)
    envelope = await run("Fill it in.", config=config("openrouter", model="openai/gpt-5-nano"), options=options)
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], shape)


@every_provider
async def test_bounds_are_sent_as_keywords_or_in_the_description(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The answer is checked against all bounds."""
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=Bounded))
    schema = json.dumps(read_wire_schema(provider, sent(sim)))
    for keyword, words in (
        ('"minimum": 18', "at least 18"),
        ('"minLength": 3', "at least 3 characters long"),
        ('"maxItems": 3', "a list of at most 3 items"),
    ):
        assert keyword in schema or words in schema
    assert len(envelope.diagnostics["warnings"]) == (envelope.structured or []).count(None)


@every_provider
async def test_a_json_schema_is_answered_with_plain_data(provider: ProviderName, config: MakeConfig) -> None:
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=INVOICE))
    assert envelope.structured is not None
    (value,) = envelope.structured
    assert value.keys() == {"number", "total"}
    assert json.loads(envelope.text) == value


@every_provider
async def test_an_import_string_names_the_model(provider: ProviderName, config: MakeConfig) -> None:
    """An import string can be typed into a form."""
    options = Options(response_schema="tests.providers.shapes:Invoice")
    envelope = await run("Fill it in.", config=config(provider), options=options)
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], Invoice)


@every_provider
async def test_an_answer_that_does_not_fit_is_none_with_a_warning(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The text and the other answers are returned."""
    sim.fail(Fault(kind="invalid_json"), contains="second")
    envelope = await run_many(
        ["first", "second", "third"], config=config(provider), options=Options(response_schema=Invoice)
    )
    assert envelope.structured is not None
    assert [type(value).__name__ for value in envelope.structured] == ["Invoice", "NoneType", "Invoice"]
    assert "not the JSON" in envelope.answers[1]
    (warning,) = envelope.diagnostics["warnings"]
    assert "prompts[1]" in warning
    assert envelope.status == "ok"


INVALID_TEXTS = [
    ('{"number": "a"}', "total"),
    ('{"number": "a", "total": "much"}', "total"),
    ('["a"]', ""),
    ('{"number": "a", "total": 1', "JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"number": "\\ud83d", "total": 1}', ""),
    ('{"number": "a", "total": 1e999}', ""),
    ('{"number": "a", "total": NaN}', ""),
]


@pytest.mark.parametrize("schema", [Invoice, INVOICE], ids=["model", "dict"])
@pytest.mark.parametrize(("text", "reason"), INVALID_TEXTS, ids=[text[:30] for text, _ in INVALID_TEXTS])
async def test_an_invalid_structured_answer_does_not_lose_the_envelope(schema: Any, text: str, reason: str) -> None:
    """The structured value is None with a warning, and the text is returned."""
    async with scripted(http(good("local", text))) as server:
        envelope = await run("p", config=server.config("local"), options=Options(response_schema=schema))
    assert envelope.structured == [None]
    assert envelope.answers == [text]
    (warning,) = envelope.diagnostics["warnings"]
    assert reason in warning
    assert type(envelope).model_validate_json(envelope.model_dump_json()) == envelope


async def test_json_in_a_markdown_fence_is_read() -> None:
    """Models write a fence where a server cannot enforce a schema."""
    async with scripted(http(good("local", '```json\n{"number": "a", "total": 1}\n```'))) as server:
        envelope = await run("p", config=server.config("local"), options=Options(response_schema=Invoice))
    assert envelope.structured == [Invoice(number="a", total=1)]


async def test_nulls_added_by_strict_mode_are_removed() -> None:
    """OpenAI's strict mode makes optional fields nullable; null stands for a missing field."""
    text = '{"name": "a", "note": null, "count": null}'
    async with scripted(http(good("openai", text))) as server:
        envelope = await run("p", config=server.config("openai"), options=Options(response_schema=Optionals))
    assert envelope.structured == [Optionals(name="a")]


@every_provider
async def test_a_truncated_answer_has_no_structured_value(provider: ProviderName, config: MakeConfig) -> None:
    """One warning says that the answer was truncated, another that it does not fit the schema."""
    options = Options(response_schema=Company, max_tokens=16)
    envelope = await run("Tell me about a large company, and all its staff.", config=config(provider), options=options)
    assert envelope.structured == [None]
    assert envelope.status == "partial"
    assert len(envelope.diagnostics["warnings"]) == 2


@every_provider
async def test_an_invalid_json_schema_is_refused_unsent(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match="not a usable JSON Schema"):
        await run("p", config=config(provider), options=Options(response_schema={"type": "strnig"}))
    assert asked(sim) == []


async def test_a_schema_without_an_object_at_the_root_is_refused_for_openai(config: MakeConfig, sim: Simulator) -> None:
    """The hint suggests a field of an object."""
    schema = {"type": "array", "items": {"type": "string"}}
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config("openai"), options=Options(response_schema=schema))
    assert "field of an object" in str(caught.value.hint)
    assert sim.requests == []


async def test_a_free_form_map_is_not_closed(config: MakeConfig, sim: Simulator) -> None:
    """A map closed to additional properties could only be empty."""
    for provider in MODELS:
        await run("p", config=config(provider), options=Options(response_schema=Map))
    for entry in asked(sim):
        if entry.provider == "anthropic":
            (tool,) = entry.body["tools"]
            schema = tool["input_schema"]
        else:
            schema = read_wire_schema(entry.provider, entry.body)  # type: ignore[arg-type]
        assert schema["properties"]["counts"]["additionalProperties"] == {"type": "integer"}


@pytest.mark.parametrize("shape", [Map, Node])
async def test_anthropic_answers_an_unsupported_schema_through_a_forced_tool_call(
    shape: type[BaseModel], config: MakeConfig, sim: Simulator
) -> None:
    """The arguments are returned as the answer, not as a tool call."""
    envelope = await run("p", config=config("anthropic"), options=Options(response_schema=shape))
    assert sent(sim)["tool_choice"]["type"] == "tool"
    assert sent(sim)["tools"][0]["input_schema"]["type"] == "object"
    assert envelope.tool_calls is None
    assert envelope.metrics["finish_reasons"] == ["stop"]
    assert shape.model_validate_json(envelope.text) == (envelope.structured or [None])[0]


@pytest.mark.parametrize("more", [{"tools": [{"name": "f"}]}, {"reasoning_effort": "low"}])
async def test_tools_and_reasoning_are_refused_with_a_forced_tool_call(
    more: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match="response_schema"):
        await run("p", config=config("anthropic"), options=Options(response_schema=Map, **more))
    assert sim.requests == []


class RaisingModel(BaseModel):
    """A model whose validator may raise any error."""

    choice: str

    @field_validator("choice")
    @classmethod
    def _look_up(cls, value: str) -> str:
        return {"known": "fine"}[value]


class Aliased(BaseModel):
    kind: str = Field(alias="class")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (RaisingModel, '{"choice": "unknown"}'),
        ({"type": "array", "items": {"$ref": "#"}}, "[" * 200 + "]" * 200),
        ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.01}}}, '{"a": ' + "9" * 400 + "}"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}, '{"a": "b"}'),
    ],
)
async def test_an_error_during_validation_does_not_lose_the_texts(schema: Any, text: str) -> None:
    async with scripted(http(good("local", text))) as server:
        config = server.config("local")
        envelope = await run_many(["one", "two"], config=config, options=Options(response_schema=schema))
    assert envelope.answers == [text, text]
    assert envelope.structured == [None, None]
    assert len(envelope.diagnostics["warnings"]) == 2


async def test_the_json_of_an_envelope_uses_field_aliases(config: MakeConfig) -> None:
    """The JSON fits the schema that was sent, and can be read back into the model."""
    envelope = await run("Give one.", config=config("openai"), options=Options(response_schema=Aliased))
    stored = json.loads(envelope.model_dump_json())["structured"][0]
    assert set(stored) == {"class"}
    assert Aliased.model_validate(stored) == envelope["structured"][0]


@pytest.mark.parametrize(
    "message", ["json_schema is not supported", "unknown response_format type", "no structured output"]
)
async def test_the_hint_for_a_local_server_without_schemas_can_be_pasted(message: str) -> None:
    """The pasted code requests JSON without a schema."""
    async with scripted(http({"error": message}, 400)) as server:
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config("local"), options=Options(response_schema={"type": "object"}))
    match = re.search(r"provider_options=(\{.*\})\)", caught.value.hint or "")
    assert match is not None
    options = Options(provider_options=ast.literal_eval(match[1]))
    call = Call(model="m", materials=(), prompt="p", options=options)
    assert request(call)["response_format"] == {"type": "json_object"}
