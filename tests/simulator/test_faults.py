"""Faults: each way in which a request to a provider can go wrong."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Fault, Simulator

from .clients import DROPPED, TIMED_OUT, Client, ErrorResponse

STATUSES = (400, 401, 403, 404, 413, 429, 500, 503, 529)


@pytest.mark.parametrize("status", STATUSES)
async def test_an_error_status_has_the_providers_own_body(
    status: int, provider: str, client: Client, sim: Simulator
) -> None:
    """Each provider's error body has its own format, in which its SDK finds the message."""
    sim.fail(Fault(status=status))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert caught.value.status == status
    error = caught.value.body["error"]
    if provider == "local":
        assert isinstance(error, str)
    elif provider in ("gemini", "openrouter"):
        assert error["code"] == status
        assert error["message"]
    else:
        assert error["type"]
        assert error["message"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("provider", ["anthropic"], indirect=True)
async def test_anthropic_errors_have_types(status: int, kind: str, client: Client, sim: Simulator) -> None:
    """Anthropic's error type depends on the status, and the body repeats the request id of the header."""
    sim.fail(Fault(status=status))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert caught.value.body["error"]["type"] == kind
    assert caught.value.body["request_id"] == caught.value.headers["request-id"]


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "INVALID_ARGUMENT"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE")],
)
@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
async def test_gemini_errors_have_canonical_statuses(status: int, name: str, client: Client, sim: Simulator) -> None:
    """Google's canonical status name is in the body, beside the HTTP status."""
    sim.fail(Fault(status=status))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert caught.value.body["error"]["status"] == name


@pytest.mark.parametrize("wait", [2, "Fri, 20 Nov 2026 10:00:00 GMT"])
async def test_retry_after_is_a_header(wait: int | str, client: Client, sim: Simulator) -> None:
    """`retry_after` becomes a header, in seconds or as an HTTP date."""
    sim.fail(Fault(status=429, retry_after=wait))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert caught.value.headers["retry-after"] == str(wait)


@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
async def test_gemini_errors_contain_the_retry_delay(client: Client, sim: Simulator) -> None:
    """A Gemini error has the delay in `RetryInfo` in its body, where Gemini's own clients look."""
    sim.fail(Fault(status=429, retry_after=2.5))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert caught.value.body["error"]["details"][0]["retryDelay"] == "2.5s"


async def test_a_fault_can_set_message_type_and_headers(client: Client, sim: Simulator, provider: str) -> None:
    """Message, type and headers of a fault replace the provider's defaults."""
    sim.fail(Fault(status=429, message="No credit", error_type="insufficient_quota", headers={"x-why": "poor"}))
    with pytest.raises(ErrorResponse) as caught:
        await client.ask("Hello?")
    assert "No credit" in json.dumps(caught.value.body)
    assert provider == "local" or "insufficient_quota" in json.dumps(caught.value.body)
    assert caught.value.headers["x-why"] == "poor"


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("openai", "exceeds the context window"),
        ("anthropic", "prompt is too long"),
        ("gemini", "exceeds the maximum number of tokens"),
        ("openrouter", "maximum context length"),
        ("local", "exceeds the available context size"),
    ],
    indirect=["provider"],
)
async def test_a_prompt_that_is_too_long_is_refused_in_the_providers_words(
    client: Client, sim: Simulator, words: str
) -> None:
    """A prompt that is too long, really or by a fault, is refused with 400 in the provider's words."""
    sim.fail(Fault(kind="context_overflow"))
    for prompt in ("short", "long " * 1_000_000):
        with pytest.raises(ErrorResponse) as caught:
            await client.ask(prompt)
        assert caught.value.status == 400
        assert words in json.dumps(caught.value.body)


async def test_a_dropped_request_has_no_answer(client: Client, sim: Simulator) -> None:
    """The socket closes before any byte of a response; the next request is answered normally."""
    sim.fail(Fault(kind="drop"))
    with pytest.raises(DROPPED):
        await client.ask("Hello?")
    assert (await client.ask("Hello?")).text == "Simulated answer to: Hello?"
    assert [entry.status for entry in sim.requests] == [None, 200]


async def test_a_lost_answer_counts_as_answered(client: Client, sim: Simulator) -> None:
    """With `drop_after`, the provider does the work and logs status 200; the client sees a closed socket."""
    sim.fail(Fault(kind="drop_after"))
    with pytest.raises(DROPPED):
        await client.ask("Hello?")
    assert [(entry.status, entry.fault) for entry in sim.requests] == [(200, "drop_after")]


async def test_a_hanging_request_ends_with_the_clients_timeout(client: Client, sim: Simulator) -> None:
    """A hanging request is never answered; it ends when the client disconnects."""
    sim.fail(Fault(kind="hang"))
    with pytest.raises(TIMED_OUT):
        await client.ask("Hello?", timeout_s=0.1)
    assert [entry.status for entry in sim.requests] == [None]


async def test_a_slow_answer_is_complete(client: Client, sim: Simulator) -> None:
    """A slow answer comes after `delay_s`, and is otherwise normal."""
    sim.fail(Fault(kind="slow", delay_s=0.1))
    started = time.monotonic()
    assert (await client.ask("Hello?")).text == "Simulated answer to: Hello?"
    assert time.monotonic() - started >= 0.1


async def test_a_malformed_answer_is_cut_json(client: Client, sim: Simulator) -> None:
    """A malformed answer has status 200 and half of its JSON."""
    sim.fail(Fault(kind="malformed"))
    with pytest.raises(json.JSONDecodeError):
        await client.ask("Hello?")
    assert [entry.status for entry in sim.requests] == [200]


IN_200: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "openai": ("/openai/v1/responses", {"model": "gpt-4.1", "input": "x"}, {"status": "failed", "output": []}),
    "anthropic": (
        "/anthropic/v1/messages",
        {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
        {"type": "error"},
    ),
    "gemini": ("/gemini/v1/models/gemini-2.5-flash:generateContent", {"contents": [{"parts": [{"text": "x"}]}]}, {}),
    "openrouter": (
        "/openrouter/api/v1/chat/completions",
        {"model": "openai/gpt-5-nano", "messages": [{"role": "user", "content": "x"}]},
        {},
    ),
    "local": ("/local/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}, {}),
}


@pytest.mark.parametrize("name", IN_200)
async def test_a_200_response_may_contain_an_error(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """Each protocol has its own format for an error with status 200."""
    sim.fail(Fault(kind="error_200", message="Boom"))
    path, body, parts = IN_200[name]
    answer = await http.post(path, json=body)
    assert answer.status_code == 200
    assert "Boom" in json.dumps(answer.json()["error"])
    assert parts.items() <= answer.json().items()


async def test_the_openai_sdk_accepts_a_failed_response(sim: Simulator, origin: str) -> None:
    """The body of a failed response is complete, so the SDK's strict mode accepts it and raises nothing."""
    sim.fail(Fault(kind="error_200"))
    sdk = openai.AsyncOpenAI(
        api_key="k", base_url=sim.base_url("openai", origin), max_retries=0, _strict_response_validation=True
    )
    async with sdk:
        response = await sdk.responses.create(model="gpt-4.1", input="x")
    assert (response.status, response.usage) == ("failed", None)
    assert response.error is not None


async def test_an_empty_answer_has_no_text(client: Client, sim: Simulator) -> None:
    """An empty answer has a normal status and stop reason."""
    sim.fail(Fault(kind="empty"))
    answer = await client.ask("Hello?")
    assert not answer.text
    assert answer.stop in ("completed", "end_turn", "STOP", "stop")


async def test_a_blocked_prompt_has_the_providers_format(client: Client, sim: Simulator, provider: str) -> None:
    """A refusal is an item, a stop reason, an answer without candidates, or a finish reason."""
    sim.fail(Fault(kind="blocked"))
    answer = await client.ask("Hello?")
    match provider:
        case "openai":
            assert answer.stop == "completed"
            assert answer.raw.output[0].content[0].type == "refusal"
        case "anthropic":
            assert (answer.stop, answer.raw.content) == ("refusal", [])
            assert answer.raw.stop_details.type == "refusal"
        case "gemini":
            assert answer.raw.candidates is None
            assert answer.raw.prompt_feedback.block_reason == "SAFETY"
        case _:
            assert (answer.stop, answer.text) == ("content_filter", "")


async def test_a_content_filter_stops_an_answer_half_way(client: Client, sim: Simulator, provider: str) -> None:
    """A filtered answer has begun and is cut, unlike the answer to a blocked prompt."""
    sim.fail(Fault(kind="content_filter"))
    answer = await client.ask("Hello?")
    match provider:
        case "openai":
            assert answer.raw.incomplete_details.reason == "content_filter"
        case "anthropic":
            assert answer.stop == "refusal"
        case "gemini":
            assert (answer.stop, answer.text) == ("SAFETY", None)
        case _:
            assert answer.stop == "content_filter"


async def test_a_truncated_answer_ends_as_at_the_token_limit(client: Client, sim: Simulator) -> None:
    """A truncated answer has half of its text, and the stop reason of the token limit."""
    sim.fail(Fault(kind="truncated"))
    answer = await client.ask("Hello?")
    assert answer.text == "Simulated answer to: Hello?"[:13]
    assert answer.stop in ("incomplete", "max_tokens", "MAX_TOKENS", "length")


async def test_structured_output_can_be_invalid_json(client: Client, sim: Simulator) -> None:
    """With `invalid_json`, the answer is not JSON although the request has a schema."""
    sim.fail(Fault(kind="invalid_json"))
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    answer = await client.ask("Hello?", schema=schema)
    assert answer.text
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)


async def test_local_servers_may_reason_without_being_asked(sim: Simulator, http: httpx.AsyncClient) -> None:
    """A local server may add `reasoning_content` to any answer."""
    sim.fail(Fault(kind="reasoning"))
    body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    message = (await http.post("/local/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "Simulated reasoning about: Why?"
    assert message["content"] == "Simulated answer to: Why?"


async def test_a_fault_applies_to_a_number_of_requests(client: Client, sim: Simulator) -> None:
    """After `times` requests the next one is answered."""
    sim.fail(Fault(status=503), times=2)
    for _ in range(2):
        with pytest.raises(ErrorResponse):
            await client.ask("Hello?")
    assert (await client.ask("Hello?")).text


async def test_a_fault_may_apply_until_a_reset(client: Client, sim: Simulator) -> None:
    """With `times=None` a fault is an outage that only a reset ends."""
    sim.fail(Fault(status=503), times=None)
    for _ in range(3):
        with pytest.raises(ErrorResponse):
            await client.ask("Hello?")
    sim.reset()
    assert (await client.ask("Hello?")).text


async def test_a_fault_may_require_words_in_the_prompt(client: Client, sim: Simulator) -> None:
    """With `contains`, only requests whose body contains the words fail, in any order."""
    sim.fail(Fault(status=400), contains="poison")
    assert (await client.ask("food")).text
    with pytest.raises(ErrorResponse):
        await client.ask("this is poison")


async def test_a_fault_may_require_a_provider_and_an_operation(sim: Simulator, http: httpx.AsyncClient) -> None:
    """Requests to other providers or operations are answered normally."""
    sim.fail(Fault(status=500), provider="openrouter", operation="models")
    assert (await http.get("/local/v1/models")).status_code == 200
    path, body, _ = IN_200["openrouter"]
    assert (await http.post(path, json=body)).status_code == 200
    assert (await http.get("/openrouter/api/v1/models")).status_code == 500


async def test_faults_apply_in_the_order_in_which_they_were_queued(client: Client, sim: Simulator) -> None:
    sim.fail(Fault(status=429))
    sim.fail(Fault(status=503))
    seen = []
    for _ in range(2):
        with pytest.raises(ErrorResponse) as caught:
            await client.ask("Hello?")
        seen.append(caught.value.status)
    assert seen == [429, 503]


async def test_concurrent_requests_share_a_fault(client: Client, sim: Simulator) -> None:
    """Of twenty concurrent requests, exactly `times` fail."""
    sim.fail(Fault(status=429), times=7)
    answers = await asyncio.gather(*(client.ask(f"{n}?") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, ErrorResponse) for answer in answers) == 7
    assert [entry.status for entry in sim.requests].count(200) == 13


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "needs a status"),
        ({"status": 200}, "between 400 and 599"),
        ({"kind": "explode"}, "unknown kind"),
        ({"kind": "slow", "delay_s": -1}, "negative"),
        ({"kind": "tool_call", "count": 0}, "at least 1"),
    ],
)
def test_an_invalid_fault_is_refused_when_created(fields: dict[str, Any], problem: str) -> None:
    """An invalid fault raises when it is created, not when a request meets it."""
    with pytest.raises(ValueError, match=problem):
        Fault(**fields)


def test_a_fault_for_an_unknown_provider_is_refused(sim: Simulator) -> None:
    with pytest.raises(ValueError, match="unknown provider"):
        sim.fail(Fault(status=500), provider="openia")
