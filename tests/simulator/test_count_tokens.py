"""Token counting endpoints: they count the input that an answer would bill, and refuse all other fields."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest
from google import genai

from pollux_flows.simulator import Fault, Simulator
from tests.simulator.clients import KEY

SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
CLAUDE: dict[str, Any] = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "four"}]}
GEMINI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "four"}]}]}
GEMINI_PATH = "/gemini/v1/models/gemini-2.5-flash:"


async def test_the_sdks_read_the_counts(sim: Simulator, origin: str) -> None:
    """Each SDK counts tokens with its own method, in its strict mode."""
    claude = anthropic.AsyncAnthropic(
        api_key=KEY, base_url=sim.base_url("anthropic", origin), _strict_response_validation=True
    )
    gpt = openai.AsyncOpenAI(api_key=KEY, base_url=sim.base_url("openai", origin), _strict_response_validation=True)
    gemini = genai.Client(
        api_key=KEY, vertexai=False, http_options={"base_url": sim.base_url("gemini", origin), "api_version": "v1"}
    )
    assert (await claude.messages.count_tokens(**CLAUDE)).input_tokens == 1
    assert (await gpt.responses.input_tokens.count(model="gpt-4.1", input="four")).input_tokens == 1
    counted = await gemini.aio.models.count_tokens(model="gemini-2.5-flash", contents="four")
    assert counted.total_tokens == 1
    assert [each.operation for each in sim.requests] == ["count_tokens"] * 3


async def test_a_count_equals_the_billed_input_tokens(http: httpx.AsyncClient) -> None:
    """A count includes instructions, tools and the schema, like the usage of the answer."""
    claude = CLAUDE | {"system": "Be brief.", "tools": [TOOL]}
    usage = (await http.post("/anthropic/v1/messages", json=claude | {"max_tokens": 9})).json()["usage"]
    assert (await http.post("/anthropic/v1/messages/count_tokens", json=claude)).json() == {
        "input_tokens": usage["input_tokens"]
    }
    text = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}
    gpt = {"model": "gpt-4.1", "input": "four", "instructions": "Be brief.", "text": text}
    usage = (await http.post("/openai/v1/responses", json=gpt)).json()["usage"]
    counted = (await http.post("/openai/v1/responses/input_tokens", json=gpt)).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}
    gemini = GEMINI | {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
    }
    usage = (await http.post(f"{GEMINI_PATH}generateContent", json=gemini)).json()["usageMetadata"]
    request = {"generateContentRequest": {"model": "models/gemini-2.5-flash", **gemini}}
    counted = (await http.post(f"{GEMINI_PATH}countTokens", json=request)).json()
    assert counted == {"totalTokens": usage["promptTokenCount"]}


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/anthropic/v1/messages/count_tokens", CLAUDE | {"max_tokens": 9}, "max_tokens: Extra inputs"),
        ("/anthropic/v1/messages/count_tokens", {"model": "claude-haiku-4-5"}, "messages: Field required"),
        ("/anthropic/v1/messages/count_tokens", CLAUDE | {"tools": [{"name": "f"}]}, "input_schema"),
        ("/openai/v1/responses/input_tokens", {"model": "gpt-4.1", "input": "x", "store": False}, "'store'"),
        ("/openai/v1/responses/input_tokens", {"model": "gpt-4.1"}, '"input"'),
        (f"{GEMINI_PATH}countTokens", GEMINI | {"generationConfig": {}}, "generationConfig"),
        (f"{GEMINI_PATH}countTokens", {"generateContentRequest": GEMINI}, "model"),
        (
            f"{GEMINI_PATH}countTokens",
            GEMINI | {"generateContentRequest": {"model": "models/gemini-2.5-flash", **GEMINI}},
            "mutually exclusive",
        ),
        (f"{GEMINI_PATH}countTokens", {"generateContentRequest": {"model": "models/other", **GEMINI}}, "model"),
    ],
)
async def test_an_invalid_count_request_is_refused(http: httpx.AsyncClient, path: str, body: Any, problem: str) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]


async def test_faults_of_generate_do_not_apply_to_counts(sim: Simulator, http: httpx.AsyncClient) -> None:
    """A count meets no queued or prompted fault of a generate request, but can have its own."""
    sim.fail(Fault(status=500))
    prompt = CLAUDE | {"messages": [{"role": "user", "content": "[[simulate: status=429]] four"}]}
    path = "/anthropic/v1/messages/count_tokens"
    assert (await http.post(path, json=prompt)).status_code == 200
    sim.fail(Fault(status=429), operation="count_tokens")
    assert (await http.post(path, json=prompt)).status_code == 429
