"""Each way in which a request can go wrong, at every provider."""

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Fault, Simulator

from .clients import DROPPED, TIMED_OUT, Client, Failed

STATUSES = (400, 401, 403, 404, 413, 429, 500, 503, 529)


@pytest.mark.parametrize("status", STATUSES)
async def test_an_error_status_has_the_providers_own_body(
    status: int, provider: str, client: Client, sim: Simulator
) -> None:
    """The body is worded as the provider words it, so that its SDK finds what it looks for."""
    sim.fail(Fault(status=status))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert failed.value.status == status
    error = failed.value.body["error"]
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
async def test_anthropic_types_its_errors(status: int, kind: str, client: Client, sim: Simulator) -> None:
    """Its SDK chooses an exception by status, and shows the type."""
    sim.fail(Fault(status=status))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert failed.value.body["error"]["type"] == kind
    assert failed.value.body["request_id"] == failed.value.headers["request-id"]


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "INVALID_ARGUMENT"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED"), (503, "UNAVAILABLE")],
)
@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
async def test_gemini_names_its_statuses(status: int, name: str, client: Client, sim: Simulator) -> None:
    """Google's canonical names stand beside the HTTP status."""
    sim.fail(Fault(status=status))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert failed.value.body["error"]["status"] == name


@pytest.mark.parametrize("wait", [2, "Fri, 20 Nov 2026 10:00:00 GMT"])
async def test_retry_after_is_a_header(wait: int | str, client: Client, sim: Simulator) -> None:
    """In seconds or as a date, as the providers send it."""
    sim.fail(Fault(status=429, retry_after=wait))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert failed.value.headers["retry-after"] == str(wait)


@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
async def test_gemini_also_says_in_the_body_how_long_to_wait(client: Client, sim: Simulator) -> None:
    """`RetryInfo` is where Gemini's own clients look."""
    sim.fail(Fault(status=429, retry_after=2.5))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert failed.value.body["error"]["details"][0]["retryDelay"] == "2.5s"


async def test_a_fault_can_bring_its_own_words(client: Client, sim: Simulator, provider: str) -> None:
    """Message, type and headers of a fault stand above the provider's defaults."""
    sim.fail(Fault(status=429, message="No credit", error_type="insufficient_quota", headers={"x-why": "poor"}))
    with pytest.raises(Failed) as failed:
        await client.ask("Hello?")
    assert "No credit" in json.dumps(failed.value.body)
    assert provider == "local" or "insufficient_quota" in json.dumps(failed.value.body)
    assert failed.value.headers["x-why"] == "poor"


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
    """A 400 that no retry heals, whether a fault says so or the prompt really is too long."""
    sim.fail(Fault(kind="context_overflow"))
    for prompt in ("short", "long " * 1_000_000):
        with pytest.raises(Failed) as failed:
            await client.ask(prompt)
        assert failed.value.status == 400
        assert words in json.dumps(failed.value.body)


async def test_a_dropped_request_was_never_answered(client: Client, sim: Simulator) -> None:
    """The socket closes before any byte; the next request is answered as if nothing had been."""
    sim.fail(Fault(kind="drop"))
    with pytest.raises(DROPPED):
        await client.ask("Hello?")
    assert (await client.ask("Hello?")).text == "Simulated answer to: Hello?"
    assert [entry.status for entry in sim.requests] == [None, 200]


async def test_an_answer_that_is_lost_on_the_way_counts_as_given(client: Client, sim: Simulator) -> None:
    """The provider did the work and will charge for it; the client sees only a closed socket."""
    sim.fail(Fault(kind="drop_after"))
    with pytest.raises(DROPPED):
        await client.ask("Hello?")
    assert [(entry.status, entry.fault) for entry in sim.requests] == [(200, "drop_after")]


async def test_a_request_that_hangs_ends_with_the_clients_patience(client: Client, sim: Simulator) -> None:
    """No answer comes until the client goes away."""
    sim.fail(Fault(kind="hang"))
    with pytest.raises(TIMED_OUT):
        await client.ask("Hello?", patience=0.1)
    assert [entry.status for entry in sim.requests] == [None]


async def test_a_slow_answer_is_a_good_answer(client: Client, sim: Simulator) -> None:
    """It only takes a while."""
    sim.fail(Fault(kind="slow", delay_s=0.1))
    started = time.monotonic()
    assert (await client.ask("Hello?")).text == "Simulated answer to: Hello?"
    assert time.monotonic() - started >= 0.1


async def test_a_malformed_answer_is_cut_json(client: Client, sim: Simulator) -> None:
    """200, `application/json`, and then only half of it: whether it was paid for, nobody can tell."""
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
    "gemini": (
        "/gemini/v1/models/gemini-2.5-flash:generateContent",
        {"contents": [{"parts": [{"text": "x"}]}]},
        {},
    ),
    "openrouter": (
        "/openrouter/api/v1/chat/completions",
        {"model": "openai/gpt-5-nano", "messages": [{"role": "user", "content": "x"}]},
        {},
    ),
    "local": ("/local/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}, {}),
}


@pytest.mark.parametrize("name", IN_200)
async def test_an_error_may_hide_behind_200(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """Each protocol has its way to say 200 and mean an error."""
    sim.fail(Fault(kind="error_200", message="Boom"))
    path, ask, parts = IN_200[name]
    answer = await http.post(path, json=ask)
    assert answer.status_code == 200
    assert "Boom" in json.dumps(answer.json()["error"])
    assert parts.items() <= answer.json().items()


async def test_openai_raises_nothing_for_a_failed_response(sim: Simulator, origin: str) -> None:
    """The body of a failed response is whole, so the SDK's strict mode takes it."""
    sim.fail(Fault(kind="error_200"))
    sdk = openai.AsyncOpenAI(
        api_key="k", base_url=sim.base_url("openai", origin), max_retries=0, _strict_response_validation=True
    )
    async with sdk:
        response = await sdk.responses.create(model="gpt-4.1", input="x")
    assert (response.status, response.usage) == ("failed", None)
    assert response.error is not None


async def test_an_empty_answer_says_nothing(client: Client, sim: Simulator) -> None:
    """A good status, a normal end, and not a word."""
    sim.fail(Fault(kind="empty"))
    said = await client.ask("Hello?")
    assert not said.text
    assert said.stop in ("completed", "end_turn", "STOP", "stop")


async def test_a_blocked_prompt_is_told_in_the_providers_manner(client: Client, sim: Simulator, provider: str) -> None:
    """A refusal item, a stop reason, a prompt without candidates, a finish reason."""
    sim.fail(Fault(kind="blocked"))
    said = await client.ask("Hello?")
    match provider:
        case "openai":
            assert said.stop == "completed"
            assert said.raw.output[0].content[0].type == "refusal"
        case "anthropic":
            assert (said.stop, said.raw.content) == ("refusal", [])
            assert said.raw.stop_details.type == "refusal"
        case "gemini":
            assert said.raw.candidates is None
            assert said.raw.prompt_feedback.block_reason == "SAFETY"
        case _:
            assert (said.stop, said.text) == ("content_filter", "")


async def test_a_content_filter_stops_an_answer_half_way(client: Client, sim: Simulator, provider: str) -> None:
    """Unlike a blocked prompt, this one had begun to be answered."""
    sim.fail(Fault(kind="content_filter"))
    said = await client.ask("Hello?")
    match provider:
        case "openai":
            assert said.raw.incomplete_details.reason == "content_filter"
        case "anthropic":
            assert said.stop == "refusal"
        case "gemini":
            assert (said.stop, said.text) == ("SAFETY", None)
        case _:
            assert said.stop == "content_filter"


async def test_a_truncated_answer_ends_as_at_the_token_limit(client: Client, sim: Simulator) -> None:
    """Half an answer, with the protocol's own mark for it."""
    sim.fail(Fault(kind="truncated"))
    said = await client.ask("Hello?")
    assert said.text == "Simulated answer to: Hello?"[:13]
    assert said.stop in ("incomplete", "max_tokens", "MAX_TOKENS", "length")


async def test_invalid_json_is_not_what_the_schema_asked_for(client: Client, sim: Simulator) -> None:
    """Structured output can fail although the provider promised it."""
    sim.fail(Fault(kind="invalid_json"))
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    said = await client.ask("Hello?", schema=schema)
    assert said.text
    with pytest.raises(json.JSONDecodeError):
        json.loads(said.text)


async def test_local_servers_may_reason_unasked(sim: Simulator, http: httpx.AsyncClient) -> None:
    """Some put `reasoning_content` beside the content whatever was asked."""
    sim.fail(Fault(kind="reasoning"))
    ask = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}
    message = (await http.post("/local/v1/chat/completions", json=ask)).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "Simulated reasoning about: Why?"
    assert message["content"] == "Simulated answer to: Why?"


async def test_a_fault_is_used_up(client: Client, sim: Simulator) -> None:
    """`times` says for how many requests; then all is well."""
    sim.fail(Fault(status=503), times=2)
    for _ in range(2):
        with pytest.raises(Failed):
            await client.ask("Hello?")
    assert (await client.ask("Hello?")).text


async def test_a_fault_may_stay_for_ever(client: Client, sim: Simulator) -> None:
    """`times=None` is an outage; only a reset ends it."""
    sim.fail(Fault(status=503), times=None)
    for _ in range(3):
        with pytest.raises(Failed):
            await client.ask("Hello?")
    sim.reset()
    assert (await client.ask("Hello?")).text


async def test_a_fault_may_wait_for_certain_words(client: Client, sim: Simulator) -> None:
    """`contains` lets one prompt of many fail, whichever comes first."""
    sim.fail(Fault(status=400), contains="poison")
    assert (await client.ask("food")).text
    with pytest.raises(Failed):
        await client.ask("this is poison")


async def test_a_fault_may_wait_for_a_provider_and_an_operation(sim: Simulator, http: httpx.AsyncClient) -> None:
    """Others go by untouched."""
    sim.fail(Fault(status=500), provider="openrouter", operation="models")
    assert (await http.get("/local/v1/models")).status_code == 200
    path, ask, _ = IN_200["openrouter"]
    assert (await http.post(path, json=ask)).status_code == 200
    assert (await http.get("/openrouter/api/v1/models")).status_code == 500


async def test_faults_meet_requests_in_the_order_in_which_they_were_queued(client: Client, sim: Simulator) -> None:
    """First one, then the other."""
    sim.fail(Fault(status=429))
    sim.fail(Fault(status=503))
    seen = []
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            await client.ask("Hello?")
        seen.append(failed.value.status)
    assert seen == [429, 503]


async def test_many_at_once_share_a_fault_fairly(client: Client, sim: Simulator) -> None:
    """Of twenty requests at a time exactly the number that was asked for fails."""
    sim.fail(Fault(status=429), times=7)
    answers = await asyncio.gather(*(client.ask(f"{n}?") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, Failed) for answer in answers) == 7
    assert [entry.status for entry in sim.requests].count(200) == 13


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "needs a status"),
        ({"status": 200}, "between 400 and 599"),
        ({"kind": "explode"}, "unknown kind"),
        ({"kind": "slow", "delay_s": -1}, "negative"),
        ({"kind": "tool_call", "count": 0}, "at least 1"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_at_once(said: dict[str, Any], problem: str) -> None:
    """And not when it is met, far from where it was written."""
    with pytest.raises(ValueError, match=problem):
        Fault(**said)


def test_a_fault_for_an_unknown_provider_would_never_be_met(sim: Simulator) -> None:
    """So it is refused."""
    with pytest.raises(ValueError, match="unknown provider"):
        sim.fail(Fault(status=500), provider="openia")
