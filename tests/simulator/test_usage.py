"""Usage: token counts follow a simple rule, and each provider reports them in its own fields."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Fault, Simulator
from pollux_flows.simulator.tokens import of_attachment, of_text

from .clients import Client
from .conftest import Clock

LONG = "x" * 8_000  # 2000 tokens
PNG = "data:image/png;base64," + "A" * 400


def test_a_token_is_four_characters() -> None:
    """The tokens of each text are rounded up."""
    assert [of_text(text) for text in ("", "a", "four", "fives")] == [0, 1, 1, 2]


def test_an_attachment_costs_tokens_per_32_kib() -> None:
    """An attachment costs 258 tokens for each started block of 32 KiB; a URL counts as one block."""
    assert [of_attachment(size) for size in (0, 1, 32 * 1024, 32 * 1024 + 1)] == [258, 258, 258, 516]


async def test_all_providers_count_input_and_output_alike(client: Client) -> None:
    answer = await client.ask("four", sources=("a source",))
    assert (answer.input_tokens, answer.output_tokens) == (2 + 1, 7)


async def test_schema_and_tools_count_as_input(client: Client) -> None:
    plain = await client.ask("four")
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert (await client.ask("four", schema=schema)).input_tokens == plain.input_tokens + 19
    assert (await client.ask("four", tools={"f": schema})).input_tokens > plain.input_tokens + 19


async def test_an_image_costs_tokens(http: httpx.AsyncClient) -> None:
    """An image costs 258 tokens, in base64 or by URL."""
    for url in (PNG, "https://e.x/a.png"):
        content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "four"}]
        body = {"model": "gpt-4.1", "input": [{"role": "user", "content": content}]}
        usage = (await http.post("/openai/v1/responses", json=body)).json()["usage"]
        assert usage["input_tokens"] == 258 + 1


async def openai_usage(http: httpx.AsyncClient, prompt: str, model: str = "gpt-4.1") -> Any:
    content = [{"type": "input_text", "text": LONG}, {"type": "input_text", "text": prompt}]
    body = {"model": model, "input": [{"role": "user", "content": content}]}
    return (await http.post("/openai/v1/responses", json=body)).json()["usage"]


async def test_openai_counts_cached_tokens_within_the_input(http: httpx.AsyncClient) -> None:
    """OpenAI caches prefixes of 1024 tokens or more automatically; cached tokens are part of the input."""
    first, second = await openai_usage(http, "four"), await openai_usage(http, "five")
    assert (first["input_tokens"], first["input_tokens_details"]["cached_tokens"]) == (2001, 0)
    assert (second["input_tokens"], second["input_tokens_details"]["cached_tokens"]) == (2001, 2000)
    assert second["total_tokens"] == second["input_tokens"] + second["output_tokens"]


async def test_openai_counts_cache_writes_from_gpt_5_6_on(http: httpx.AsyncClient) -> None:
    """Older models report no cache writes."""
    old, new = await openai_usage(http, "four", "gpt-5"), await openai_usage(http, "four", "gpt-5.6")
    assert old["input_tokens_details"]["cache_write_tokens"] == 0
    assert new["input_tokens_details"]["cache_write_tokens"] == 2001


async def claude_usage(http: httpx.AsyncClient, prompt: str, **more: Any) -> Any:
    source = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    body: dict[str, Any] = {
        "model": "claude-sonnet-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [source, {"type": "text", "text": prompt}]}],
    }
    return (await http.post("/anthropic/v1/messages", json=body | more)).json()["usage"]


def cache_counts(usage: Any) -> tuple[int, int, int]:
    return usage["input_tokens"], usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]


async def test_anthropic_counts_the_cache_beside_the_input(http: httpx.AsyncClient) -> None:
    """Input, cache writes and cache reads are three numbers, whose sum is the prompt."""
    assert cache_counts(await claude_usage(http, "four")) == (1, 2000, 0)
    assert cache_counts(await claude_usage(http, "five")) == (1, 0, 2000)


async def test_anthropic_caches_nothing_without_a_breakpoint(http: httpx.AsyncClient) -> None:
    plain = {"messages": [{"role": "user", "content": LONG}]}
    for _ in range(2):
        assert cache_counts(await claude_usage(http, "", **plain)) == (2000, 0, 0)


async def test_a_top_level_breakpoint_covers_the_request(http: httpx.AsyncClient) -> None:
    """A conversation that grows reads its former turns from the cache and writes the new ones."""
    top = {"cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": LONG}]
    assert cache_counts(await claude_usage(http, "", messages=messages, **top)) == (0, 2000, 0)
    messages += [{"role": "assistant", "content": "four"}, {"role": "user", "content": "four"}]
    assert cache_counts(await claude_usage(http, "", messages=messages, **top)) == (0, 2, 2000)


async def test_cache_writes_are_counted_by_lifetime(http: httpx.AsyncClient) -> None:
    """Writes for an hour and for five minutes are separate numbers."""
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    plain = {"messages": [{"role": "user", "content": "four"}]}
    usage = await claude_usage(http, "", system=system, **plain)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2000}


async def test_a_cached_prefix_expires(http: httpx.AsyncClient, clock: Clock) -> None:
    """A prefix expires five minutes after its last use, by the simulator's clock."""
    assert cache_counts(await claude_usage(http, "four")) == (1, 2000, 0)
    clock.now += 299
    assert cache_counts(await claude_usage(http, "four")) == (1, 0, 2000)
    clock.now += 301
    assert cache_counts(await claude_usage(http, "four")) == (1, 2000, 0)


async def test_each_model_has_its_own_cache(http: httpx.AsyncClient) -> None:
    """A prefix that one model cached is not found by another."""
    await claude_usage(http, "four")
    assert cache_counts(await claude_usage(http, "four", model="claude-opus-4-8")) == (1, 2000, 0)


@pytest.mark.parametrize(
    ("model", "least"),
    [("claude-opus-5", 512), ("claude-sonnet-5", 1024), ("claude-opus-4-7", 2048), ("claude-haiku-4-5", 4096)],
)
async def test_a_short_prefix_is_not_cached(model: str, least: int, http: httpx.AsyncClient) -> None:
    """A prefix below the model's minimum is not cached, without an error."""
    for length, written in ((least - 1, 0), (least, least)):
        marked = {"type": "text", "text": "x" * 4 * length, "cache_control": {"type": "ephemeral"}}
        messages = [{"role": "user", "content": [marked, {"type": "text", "text": "four"}]}]
        usage = await claude_usage(http, "", model=model, messages=messages)
        assert cache_counts(usage) == (length + 1 - written, written, 0)


@pytest.fixture
def slow(sim: Simulator) -> Iterator[Simulator]:
    """Make answers slow, so that requests overlap."""
    sim.latency_s = 0.2
    yield sim
    sim.latency_s = 0.0


async def test_concurrent_requests_each_write_the_cache(http: httpx.AsyncClient, slow: Simulator) -> None:
    """No request reads what a concurrent one writes; the next request does."""
    found = await asyncio.gather(*(claude_usage(http, "four") for _ in range(3)))
    assert [cache_counts(usage) for usage in found] == [(1, 2000, 0)] * 3
    assert cache_counts(await claude_usage(http, "four")) == (1, 0, 2000)
    assert len(slow.requests) == 4


async def test_a_failed_request_writes_no_cache(http: httpx.AsyncClient, sim: Simulator) -> None:
    """The next request pays for the cache write."""
    sim.fail(Fault(kind="status", status=529))
    source = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    body = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": [source]}]}
    assert (await http.post("/anthropic/v1/messages", json=body)).status_code == 529
    assert cache_counts(await claude_usage(http, "four")) == (1, 2000, 0)


async def test_reading_extends_the_lifetime_of_a_prefix(http: httpx.AsyncClient, clock: Clock) -> None:
    await claude_usage(http, "four")
    for _ in range(3):
        clock.now += 200
        assert cache_counts(await claude_usage(http, "four")) == (1, 0, 2000)


async def test_one_request_may_write_two_lifetimes(http: httpx.AsyncClient) -> None:
    """The tokens up to the longer breakpoint count for an hour, the rest for five minutes."""
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    usage = await claude_usage(http, "four", system=system)
    assert cache_counts(usage) == (1, 4000, 0)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 2000}


async def test_openai_has_a_cache_for_each_key(http: httpx.AsyncClient) -> None:
    """Each `prompt_cache_key` has its own cache, and writes are counted by lifetime."""
    content = [{"type": "input_text", "text": LONG}]
    body = {"model": "gpt-5.6", "input": [{"role": "user", "content": content}], "prompt_cache_options": {"ttl": "12h"}}
    details = []
    for key in ("a", "b", "a"):
        answer = await http.post("/openai/v1/responses", json={**body, "prompt_cache_key": key})
        details.append(answer.json()["usage"]["input_tokens_details"])
    assert [each["cached_tokens"] for each in details] == [0, 0, 2000]
    assert details[0]["cache_write_tokens_details"] == {"ttl_30m_tokens": 0, "ttl_12h_tokens": 2000}


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4.6", "openai/gpt-4.1-mini"])
async def test_openrouter_caches_like_its_route(model: str, http: httpx.AsyncClient) -> None:
    """Anthropic's models cache at breakpoints and OpenAI's automatically; cached tokens cost less."""
    marked = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    body = {"model": model, "messages": [{"role": "user", "content": [marked, {"type": "text", "text": "four"}]}]}
    answers = [(await http.post("/openrouter/api/v1/chat/completions", json=body)).json() for _ in range(2)]
    first, second = (answer["usage"] for answer in answers)
    written = 2000 if model.startswith("anthropic") else 0
    assert first["prompt_tokens_details"]["cache_write_tokens"] == written
    assert second["prompt_tokens_details"]["cached_tokens"] == (2000 if written else 2001)
    assert second["cost"] < first["cost"]


async def test_gemini_adds_thoughts_to_the_total(http: httpx.AsyncClient) -> None:
    """Candidates and thoughts are separate numbers; the total includes both."""
    body = {
        "contents": [{"parts": [{"text": "four"}]}],
        "generationConfig": {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 100}},
    }
    answer = (await http.post("/gemini/v1/models/gemini-2.5-flash:generateContent", json=body)).json()
    assert answer["usageMetadata"] == {
        "promptTokenCount": 1,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 8,
        "totalTokenCount": 16,
    }


async def test_openrouter_returns_the_cost(http: httpx.AsyncClient) -> None:
    """The cost follows from the prices of the catalogue; reasoning counts as completion."""
    body = {
        "model": "anthropic/claude-sonnet-4.6",
        "messages": [{"role": "user", "content": "four"}],
        "reasoning": {"effort": "low", "exclude": True},
    }
    answer = (await http.post("/openrouter/api/v1/chat/completions", json=body)).json()
    usage = answer["usage"]
    assert answer["choices"][0]["message"]["reasoning"] is None
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (15, 8)
    assert usage["cost"] == pytest.approx(0.000003 + 15 * 0.000015)
