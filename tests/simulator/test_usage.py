"""Tokens can be counted by hand, and each provider reports them in its own way."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pollux_flows.simulator import Fault, Simulator
from pollux_flows.simulator.tokens import of_attachment, of_text

from .clients import Client

LONG = "x" * 8_000  # 2000 tokens
PNG = "data:image/png;base64," + "A" * 400


def test_a_token_is_four_characters() -> None:
    """Rounded up, text by text."""
    assert [of_text(text) for text in ("", "a", "four", "fives")] == [0, 1, 1, 2]


def test_other_bytes_cost_by_the_32_kib() -> None:
    """258 for each started block; a mere reference is one block."""
    assert [of_attachment(size) for size in (0, 1, 32 * 1024, 32 * 1024 + 1)] == [258, 258, 258, 516]


async def test_input_and_output_are_counted_honestly(client: Client) -> None:
    """What was sent and what came back, at every provider alike."""
    said = await client.ask("four", before=("a source",))
    assert (said.input_tokens, said.output_tokens) == (2 + 1, 7)


async def test_more_was_sent_more_is_counted(client: Client) -> None:
    """A schema and tools are read too, so they cost."""
    plain = await client.ask("four")
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert (await client.ask("four", schema=schema)).input_tokens == plain.input_tokens + 19
    assert (await client.ask("four", tools={"f": schema})).input_tokens > plain.input_tokens + 19


async def test_an_image_costs_by_its_bytes(http: httpx.AsyncClient) -> None:
    """In base64 or by reference."""
    for url in (PNG, "https://e.x/a.png"):
        content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "four"}]
        ask = {"model": "gpt-4.1", "input": [{"role": "user", "content": content}]}
        usage = (await http.post("/openai/v1/responses", json=ask)).json()["usage"]
        assert usage["input_tokens"] == 258 + 1


async def openai_usage(http: httpx.AsyncClient, prompt: str, model: str = "gpt-4.1") -> Any:
    content = [{"type": "input_text", "text": LONG}, {"type": "input_text", "text": prompt}]
    ask = {"model": model, "input": [{"role": "user", "content": content}]}
    return (await http.post("/openai/v1/responses", json=ask)).json()["usage"]


async def test_openai_counts_cached_tokens_within_the_input(http: httpx.AsyncClient) -> None:
    """A beginning of 1024 tokens or more is remembered without being asked."""
    first, second = await openai_usage(http, "four"), await openai_usage(http, "five")
    assert (first["input_tokens"], first["input_tokens_details"]["cached_tokens"]) == (2001, 0)
    assert (second["input_tokens"], second["input_tokens_details"]["cached_tokens"]) == (2001, 2000)
    assert second["total_tokens"] == second["input_tokens"] + second["output_tokens"]


async def test_openai_counts_cache_writes_from_gpt_5_6_on(http: httpx.AsyncClient) -> None:
    """They were free before."""
    old, new = await openai_usage(http, "four", "gpt-5"), await openai_usage(http, "four", "gpt-5.6")
    assert old["input_tokens_details"]["cache_write_tokens"] == 0
    assert new["input_tokens_details"]["cache_write_tokens"] == 2001


async def claude_usage(http: httpx.AsyncClient, prompt: str, **more: Any) -> Any:
    source = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    ask: dict[str, Any] = {
        "model": "claude-sonnet-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [source, {"type": "text", "text": prompt}]}],
    }
    return (await http.post("/anthropic/v1/messages", json=ask | more)).json()["usage"]


def parts(usage: Any) -> tuple[int, int, int]:
    return usage["input_tokens"], usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]


async def test_anthropic_counts_the_cache_beside_the_input(http: httpx.AsyncClient) -> None:
    """First it is written, then read; the three numbers together are the prompt."""
    assert parts(await claude_usage(http, "four")) == (1, 2000, 0)
    assert parts(await claude_usage(http, "five")) == (1, 0, 2000)


async def test_without_a_breakpoint_nothing_is_cached(http: httpx.AsyncClient) -> None:
    """Anthropic caches only what it was told to."""
    plain = {"messages": [{"role": "user", "content": LONG}]}
    for _ in range(2):
        assert parts(await claude_usage(http, "", **plain)) == (2000, 0, 0)


async def test_a_breakpoint_at_the_top_covers_the_whole_request(http: httpx.AsyncClient) -> None:
    """And a conversation that grows reads what it had and writes what is new."""
    top = {"cache_control": {"type": "ephemeral"}}
    said = [{"role": "user", "content": LONG}]
    assert parts(await claude_usage(http, "", messages=said, **top)) == (0, 2000, 0)
    said += [{"role": "assistant", "content": "four"}, {"role": "user", "content": "four"}]
    assert parts(await claude_usage(http, "", messages=said, **top)) == (0, 2, 2000)


async def test_an_hour_costs_otherwise_than_five_minutes(http: httpx.AsyncClient) -> None:
    """So writes are told apart by how long they last."""
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    plain = {"messages": [{"role": "user", "content": "four"}]}
    usage = await claude_usage(http, "", system=system, **plain)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2000}


async def test_a_cached_beginning_is_forgotten_in_time(http: httpx.AsyncClient, sim: Simulator) -> None:
    """Five minutes on the simulator's own clock."""
    real, now = sim.clock, 1_000_000.0
    sim.clock = lambda: now
    try:
        assert parts(await claude_usage(http, "four")) == (1, 2000, 0)
        now += 299
        assert parts(await claude_usage(http, "four")) == (1, 0, 2000)
        now += 301
        assert parts(await claude_usage(http, "four")) == (1, 2000, 0)
    finally:
        sim.clock = real


async def test_other_models_have_other_caches(http: httpx.AsyncClient) -> None:
    """What one model read, another has not."""
    await claude_usage(http, "four")
    assert parts(await claude_usage(http, "four", model="claude-opus-4-8")) == (1, 2000, 0)


@pytest.mark.parametrize(
    ("model", "least"),
    [("claude-opus-5", 512), ("claude-sonnet-5", 1024), ("claude-opus-4-7", 2048), ("claude-haiku-4-5", 4096)],
)
async def test_a_short_beginning_is_not_cached(model: str, least: int, http: httpx.AsyncClient) -> None:
    """And nothing is said about it: the usage alone shows it."""
    for length, written in ((least - 1, 0), (least, least)):
        marked = {"type": "text", "text": "x" * 4 * length, "cache_control": {"type": "ephemeral"}}
        messages = [{"role": "user", "content": [marked, {"type": "text", "text": "four"}]}]
        usage = await claude_usage(http, "", model=model, messages=messages)
        assert parts(usage) == (length + 1 - written, written, 0)


@pytest.fixture
def slow(sim: Simulator) -> Iterator[Simulator]:
    """Answers that take long enough for others to be asked meanwhile."""
    sim.latency_s = 0.2
    yield sim
    sim.latency_s = 0.0


async def test_calls_side_by_side_each_write(http: httpx.AsyncClient, slow: Simulator) -> None:
    """None finds what the others have not finished writing; the next one does."""
    found = await asyncio.gather(*(claude_usage(http, "four") for _ in range(3)))
    assert [parts(usage) for usage in found] == [(1, 2000, 0)] * 3
    assert parts(await claude_usage(http, "four")) == (1, 0, 2000)
    assert len(slow.requests) == 4


async def test_a_call_that_failed_has_written_nothing(http: httpx.AsyncClient, sim: Simulator) -> None:
    """The next one pays for the write."""
    sim.fail(Fault(kind="status", status=529))
    source = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    ask = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": [source]}]}
    assert (await http.post("/anthropic/v1/messages", json=ask)).status_code == 529
    assert parts(await claude_usage(http, "four")) == (1, 2000, 0)


async def test_reading_keeps_a_beginning_alive(http: httpx.AsyncClient, sim: Simulator) -> None:
    """Each read begins its five minutes anew."""
    real, now = sim.clock, 1_000_000.0
    sim.clock = lambda: now
    try:
        await claude_usage(http, "four")
        for _ in range(3):
            now += 200
            assert parts(await claude_usage(http, "four")) == (1, 0, 2000)
    finally:
        sim.clock = real


async def test_two_lifetimes_in_one_request(http: httpx.AsyncClient) -> None:
    """What stands before the longer one is counted as that, the rest as the shorter."""
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    usage = await claude_usage(http, "four", system=system)
    assert parts(usage) == (1, 4000, 0)
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 2000, "ephemeral_1h_input_tokens": 2000}


async def test_openai_caches_by_key(http: httpx.AsyncClient) -> None:
    """Another key is another machine, which has not read it; and how long a write lasts is counted."""
    content = [{"type": "input_text", "text": LONG}]
    ask = {"model": "gpt-5.6", "input": [{"role": "user", "content": content}], "prompt_cache_options": {"ttl": "12h"}}
    details = []
    for key in ("a", "b", "a"):
        answer = await http.post("/openai/v1/responses", json={**ask, "prompt_cache_key": key})
        details.append(answer.json()["usage"]["input_tokens_details"])
    assert [each["cached_tokens"] for each in details] == [0, 0, 2000]
    assert details[0]["cache_write_tokens_details"] == {"ttl_30m_tokens": 0, "ttl_12h_tokens": 2000}


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4.6", "openai/gpt-4.1-mini"])
async def test_openrouter_passes_the_cache_of_its_route_through(model: str, http: httpx.AsyncClient) -> None:
    """Anthropic's where it is marked, OpenAI's by itself; and the price follows."""
    marked = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    ask = {"model": model, "messages": [{"role": "user", "content": [marked, {"type": "text", "text": "four"}]}]}
    answers = [(await http.post("/openrouter/api/v1/chat/completions", json=ask)).json() for _ in range(2)]
    first, second = (answer["usage"] for answer in answers)
    written = 2000 if model.startswith("anthropic") else 0
    assert first["prompt_tokens_details"]["cache_write_tokens"] == written
    assert second["prompt_tokens_details"]["cached_tokens"] == (2000 if written else 2001)
    assert second["cost"] < first["cost"]


async def test_gemini_adds_thoughts_to_the_total(http: httpx.AsyncClient) -> None:
    """Candidates and thoughts are counted apart; only the total has both."""
    ask = {
        "contents": [{"parts": [{"text": "four"}]}],
        "generationConfig": {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 100}},
    }
    answer = (await http.post("/gemini/v1/models/gemini-2.5-flash:generateContent", json=ask)).json()
    assert answer["usageMetadata"] == {
        "promptTokenCount": 1,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 8,
        "totalTokenCount": 16,
    }


async def test_openrouter_says_what_it_cost(http: httpx.AsyncClient) -> None:
    """By the prices of its own catalogue; reasoning is part of the completion."""
    ask = {
        "model": "anthropic/claude-sonnet-4.6",
        "messages": [{"role": "user", "content": "four"}],
        "reasoning": {"effort": "low", "exclude": True},
    }
    answer = (await http.post("/openrouter/api/v1/chat/completions", json=ask)).json()
    usage = answer["usage"]
    assert answer["choices"][0]["message"]["reasoning"] is None
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (15, 8)
    assert usage["cost"] == pytest.approx(0.000003 + 15 * 0.000015)
