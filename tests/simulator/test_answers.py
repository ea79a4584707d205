"""The simulator's answers depend on the request only."""

import json

import httpx
import jsonschema
import pytest

from pollux_flows.simulator import Simulator

from .clients import CLIENTS, Client

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
        "inner": {"anyOf": [{"$ref": "#/$defs/Inner"}, {"type": "null"}]},
    },
    "required": ["title", "score", "tags", "inner"],
    "additionalProperties": False,
    "$defs": {
        "Inner": {
            "type": "object",
            "properties": {"day": {"type": "string", "format": "date"}},
            "required": ["day"],
            "additionalProperties": False,
        }
    },
}
REASONERS = [name for name in CLIENTS if name != "local"]


async def test_a_plain_answer_repeats_the_prompt(client: Client) -> None:
    """An answer contains its prompt, so that a test can see when answers are mixed up."""
    assert (await client.ask("What is this?")).text == "Simulated answer to: What is this?"


async def test_sources_before_the_prompt_are_not_the_prompt(client: Client) -> None:
    """The prompt is the last text of the last user turn; the texts before it are sources."""
    answer = await client.ask("Sum it up.", sources=("A long source.", "Another one."))
    assert answer.text == "Simulated answer to: Sum it up."


async def test_an_answer_repeats_200_characters_of_a_long_prompt(client: Client) -> None:
    """An answer collapses white space in the prompt and repeats its first 200 characters."""
    answer = await client.ask("word \n\t " * 100)
    assert answer.text == "Simulated answer to: " + ("word " * 40)[:200]


async def test_equal_requests_get_equal_answers(client: Client) -> None:
    """Two answers to equal requests differ in their ids only."""
    first, second = await client.ask("Again?"), await client.ask("Again?")
    assert (first.text, first.stop, first.input_tokens, first.output_tokens) == (
        second.text,
        second.stop,
        second.input_tokens,
        second.output_tokens,
    )


async def test_ids_are_unique_and_start_again_after_a_reset(sim: Simulator, http: httpx.AsyncClient) -> None:
    """A counter makes the ids, so a run can be repeated exactly."""
    body = {"model": "gpt-4.1", "input": "Who?"}
    first = (await http.post("/openai/v1/responses", json=body)).json()["id"]
    second = (await http.post("/openai/v1/responses", json=body)).json()["id"]
    sim.reset()
    again = (await http.post("/openai/v1/responses", json=body)).json()["id"]
    assert first == again != second


async def test_a_structured_answer_fits_its_schema(client: Client) -> None:
    """With a schema, the text of the answer is JSON that validates against it."""
    answer = await client.ask("Describe it.", schema=SCHEMA)
    assert answer.text is not None
    content = json.loads(answer.text)
    jsonschema.validate(content, SCHEMA)
    assert "Describe it." in content["title"]


@pytest.mark.parametrize("provider", REASONERS, indirect=True)
async def test_requested_reasoning_is_returned_and_counted(client: Client) -> None:
    """Every provider that reasons returns the reasoning and counts it as output tokens."""
    plain, reasoned = await client.ask("Why?"), await client.ask("Why?", reasoning=True)
    assert plain.reasoning is None
    assert reasoned.reasoning == "Simulated reasoning about: Why?"
    assert reasoned.output_tokens == plain.output_tokens + 8  # its 31 characters


@pytest.mark.parametrize(
    ("provider", "stop"),
    [
        ("openai", "incomplete"),
        ("anthropic", "max_tokens"),
        ("gemini", "MAX_TOKENS"),
        ("openrouter", "length"),
        ("local", "length"),
    ],
    indirect=["provider"],
)
async def test_max_tokens_cuts_the_answer(client: Client, stop: str) -> None:
    """An answer ends exactly at the token limit, and its stop reason says so."""
    answer = await client.ask("Tell me everything. " * 10, max_tokens=16)
    assert (answer.output_tokens, answer.stop) == (16, stop)
    assert answer.text == ("Simulated answer to: " + "Tell me everything. " * 10)[:64]


async def test_reasoning_uses_up_the_token_limit_first(http: httpx.AsyncClient) -> None:
    """Reasoning that uses up the token limit leaves no room for text, although its tokens are billed."""
    body = {
        "model": "gpt-5-nano",
        "input": "Think about this for a very long time, and then some more.",
        "reasoning": {"effort": "high", "summary": "auto"},
        "max_output_tokens": 16,
    }
    response = (await http.post("/openai/v1/responses", json=body)).json()
    assert [item["type"] for item in response["output"]] == ["reasoning"]
    assert response["usage"]["output_tokens"] == response["usage"]["output_tokens_details"]["reasoning_tokens"] == 16
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_newer_claude_models_hide_thinking_by_default(http: httpx.AsyncClient) -> None:
    """From Opus 4.7 on, thinking without `display: summarized` is billed but not returned."""
    body = {
        "model": "claude-opus-4-7",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Why?"}],
        "thinking": {"type": "adaptive"},
    }
    silent = (await http.post("/anthropic/v1/messages", json=body)).json()
    body["thinking"] = {"type": "adaptive", "display": "summarized"}
    shown = (await http.post("/anthropic/v1/messages", json=body)).json()
    assert silent["content"][0]["thinking"] == ""
    assert shown["content"][0]["thinking"] == "Simulated reasoning about: Why?"
    assert silent["usage"] == shown["usage"]


async def test_a_stop_sequence_ends_the_answer(http: httpx.AsyncClient) -> None:
    """The text ends before the stop sequence, and Anthropic's answer names the sequence."""
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "one STOP two"}],
        "stop_sequences": ["STOP"],
    }
    message = (await http.post("/anthropic/v1/messages", json=body)).json()
    assert message["content"] == [{"type": "text", "text": "Simulated answer to: one "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "STOP")


async def test_json_mode_without_a_schema_returns_json(http: httpx.AsyncClient) -> None:
    """With `json_object`, the answer is JSON that follows no schema."""
    body = {
        "model": "local-model",
        "messages": [{"role": "user", "content": "as json"}],
        "response_format": {"type": "json_object"},
    }
    answer = (await http.post("/local/v1/chat/completions", json=body)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"answer": "Simulated answer to: as json"}
