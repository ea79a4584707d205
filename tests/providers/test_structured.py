"""Structured output: the shape that was asked for, held by the provider and checked by us."""

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


def wire_schema(provider: ProviderName, body: dict[str, Any]) -> Any:
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
async def test_a_model_comes_back_as_its_instance(
    provider: ProviderName, shape: type[BaseModel], config: MakeConfig
) -> None:
    """Whatever the shape (optional fields, enums, maps, references, recursion), the provider accepts it."""
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=shape))
    assert envelope.structured is not None
    assert [type(value) for value in envelope.structured] == [shape]
    assert envelope.status == "ok"
    assert envelope.diagnostics["warnings"] == []


@pytest.mark.parametrize("shape", CASES, ids=lambda shape: shape.__name__)
async def test_openai_models_behind_openrouter_take_it_too(shape: type[BaseModel], config: MakeConfig) -> None:
    """They are as strict as OpenAI itself."""
    options = Options(response_schema=shape)
    envelope = await run("Fill it in.", config=config("openrouter", model="openai/gpt-5-nano"), options=options)
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], shape)


@every_provider
async def test_bounds_are_sent_or_said(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A bound that a provider refuses goes into the description; none is lost, and the answer is checked for it."""
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=Bounded))
    schema = json.dumps(wire_schema(provider, sent(sim)))
    for keyword, words in (
        ('"minimum": 18', "at least 18"),
        ('"minLength": 3', "at least 3 characters long"),
        ('"maxItems": 3', "a list of at most 3 items"),
    ):
        assert keyword in schema or words in schema
    assert len(envelope.diagnostics["warnings"]) == (envelope.structured or []).count(None)


@every_provider
async def test_a_plain_schema_comes_back_as_plain_data(provider: ProviderName, config: MakeConfig) -> None:
    """A dict in, a dict out, checked against the schema."""
    envelope = await run("Fill it in.", config=config(provider), options=Options(response_schema=INVOICE))
    assert envelope.structured is not None
    (value,) = envelope.structured
    assert value.keys() == {"number", "total"}
    assert json.loads(envelope.text) == value


@every_provider
async def test_an_import_string_is_the_model_it_names(provider: ProviderName, config: MakeConfig) -> None:
    """What a person can type into a form."""
    options = Options(response_schema="tests.providers.shapes:Invoice")
    envelope = await run("Fill it in.", config=config(provider), options=options)
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], Invoice)


@every_provider
async def test_every_prompt_has_its_own_entry(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """An answer that is not what was asked for is None with a reason; its text stays, and so do the others."""
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


NOT_THE_SHAPE = [
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
@pytest.mark.parametrize(("text", "reason"), NOT_THE_SHAPE, ids=[text[:30] for text, _ in NOT_THE_SHAPE])
async def test_whatever_a_model_writes_the_envelope_comes_back(schema: Any, text: str, reason: str) -> None:
    """Half a JSON, another shape, nesting without end, half a character, infinity: None, a reason, and the text."""
    async with scripted(http(good("local", text))) as server:
        envelope = await run("p", config=server.config("local"), options=Options(response_schema=schema))
    assert envelope.structured == [None]
    assert envelope.answers == [text]
    (warning,) = envelope.diagnostics["warnings"]
    assert reason in warning
    assert type(envelope).model_validate_json(envelope.model_dump_json()) == envelope


async def test_json_in_a_fence_is_json() -> None:
    """Where a server cannot hold a model to a schema, models put their JSON into Markdown."""
    async with scripted(http(good("local", '```json\n{"number": "a", "total": 1}\n```'))) as server:
        envelope = await run("p", config=server.config("local"), options=Options(response_schema=Invoice))
    assert envelope.structured == [Invoice(number="a", total=1)]


async def test_invented_nulls_are_taken_back() -> None:
    """OpenAI's strict mode makes an optional field nullable; the null that comes back means: left out."""
    text = '{"name": "a", "note": null, "count": null}'
    async with scripted(http(good("openai", text))) as server:
        envelope = await run("p", config=server.config("openai"), options=Options(response_schema=Optionals))
    assert envelope.structured == [Optionals(name="a")]


@every_provider
async def test_a_cut_answer_is_no_structure(provider: ProviderName, config: MakeConfig) -> None:
    """Half a JSON is told twice: that it was cut, and that it does not fit."""
    options = Options(response_schema=Company, max_tokens=16)
    envelope = await run("Tell me about a large company, and all its staff.", config=config(provider), options=options)
    assert envelope.structured == [None]
    assert envelope.status == "partial"
    assert len(envelope.diagnostics["warnings"]) == 2


@every_provider
async def test_a_schema_that_is_none_is_refused(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A typing error in a schema is found before it is paid for."""
    with pytest.raises(ConfigurationError, match="not a usable JSON Schema"):
        await run("p", config=config(provider), options=Options(response_schema={"type": "strnig"}))
    assert asked(sim) == []


async def test_openai_wants_an_object_at_the_root(config: MakeConfig, sim: Simulator) -> None:
    """A list at the root is refused with what to do instead."""
    schema = {"type": "array", "items": {"type": "string"}}
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config("openai"), options=Options(response_schema=schema))
    assert "field of an object" in str(caught.value.hint)
    assert sim.requests == []


async def test_a_map_stays_a_map(config: MakeConfig, sim: Simulator) -> None:
    """Closed into an empty object, a free-form map could only come back empty."""
    for provider in MODELS:
        await run("p", config=config(provider), options=Options(response_schema=Map))
    for entry in asked(sim):
        if entry.provider == "anthropic":
            (tool,) = entry.body["tools"]
            schema = tool["input_schema"]
        else:
            schema = wire_schema(entry.provider, entry.body)  # type: ignore[arg-type]
        assert schema["properties"]["counts"]["additionalProperties"] == {"type": "integer"}


@pytest.mark.parametrize("shape", [Map, Node])
async def test_anthropic_answers_in_a_call_where_it_has_no_format(
    shape: type[BaseModel], config: MakeConfig, sim: Simulator
) -> None:
    """What output_config refuses comes as the arguments of a forced call, and reads as an answer, not a call."""
    envelope = await run("p", config=config("anthropic"), options=Options(response_schema=shape))
    assert sent(sim)["tool_choice"]["type"] == "tool"
    assert sent(sim)["tools"][0]["input_schema"]["type"] == "object"
    assert envelope.tool_calls is None
    assert envelope.metrics["finish_reasons"] == ["stop"]
    assert shape.model_validate_json(envelope.text) == (envelope.structured or [None])[0]


@pytest.mark.parametrize("more", [{"tools": [{"name": "f"}]}, {"reasoning_effort": "low"}])
async def test_anthropic_refuses_what_such_a_call_excludes(
    more: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    """A forced call leaves no room for tools or thinking: told before the request."""
    with pytest.raises(ConfigurationError, match="response_schema"):
        await run("p", config=config("anthropic"), options=Options(response_schema=Map, **more))
    assert sim.requests == []


class Peculiar(BaseModel):
    """Validators of a caller's own, which may raise anything."""

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
        (Peculiar, '{"choice": "unknown"}'),
        ({"type": "array", "items": {"$ref": "#"}}, "[" * 200 + "]" * 200),
        ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.01}}}, '{"a": ' + "9" * 400 + "}"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}, '{"a": "b"}'),
    ],
)
async def test_whatever_goes_wrong_while_an_answer_is_looked_at_its_text_stays(schema: Any, text: str) -> None:
    """And the siblings' answers, which were paid for as well."""
    async with scripted(http(good("local", text))) as server:
        config = server.config("local")
        envelope = await run_many(["one", "two"], config=config, options=Options(response_schema=schema))
    assert envelope.answers == [text, text]
    assert envelope.structured == [None, None]
    assert len(envelope.diagnostics["warnings"]) == 2


async def test_aliases_are_what_the_json_says(config: MakeConfig) -> None:
    """An envelope's JSON fits the schema that was sent, and the model when it is read back."""
    envelope = await run("Give one.", config=config("openai"), options=Options(response_schema=Aliased))
    stored = json.loads(envelope.model_dump_json())["structured"][0]
    assert set(stored) == {"class"}
    assert Aliased.model_validate(stored) == envelope["structured"][0]


@pytest.mark.parametrize(
    "said", ["json_schema is not supported", "unknown response_format type", "no structured output"]
)
async def test_a_local_server_without_schemas_is_asked_for_json_as_the_hint_says(said: str) -> None:
    """The hint is code: pasted, it asks for JSON without a schema."""
    async with scripted(http({"error": said}, 400)) as server:
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config("local"), options=Options(response_schema={"type": "object"}))
    pasted = re.search(r"provider_options=(\{.*\})\)", caught.value.hint or "")
    assert pasted is not None
    options = Options(provider_options=ast.literal_eval(pasted[1]))
    call = Call(model="m", materials=(), prompt="p", options=options)
    assert request(call)["response_format"] == {"type": "json_object"}
