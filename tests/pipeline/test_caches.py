"""create_cache: content that Gemini stores, the handle of that cache, and runs that use the handle."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    CacheError,
    CacheHandle,
    ConfigurationError,
    Options,
    RateLimitError,
    Source,
    SourceError,
    create_cache,
    run,
    run_many,
)
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Logged, Simulator
from tests.loopback import KEY, MakeConfig, asked, http, scripted

STORY = Source.from_text("A long story about the sea. " * 50)
TOOL: dict[str, Any] = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own registry."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


def create_requests(sim: Simulator) -> list[Logged]:
    """Return the requests to create a cache."""
    return [entry for entry in sim.requests if entry.operation == "cache.create"]


async def test_all_shared_content_is_sent_in_one_create_request(config: MakeConfig, sim: Simulator) -> None:
    """The request holds the sources, system instruction, tools and time to live, and not the key."""
    await create_cache(
        [STORY, Source.from_json({"n": 1})],
        config=config("gemini"),
        system_instruction="Be brief.",
        tools=[TOOL],
        ttl_seconds=120,
    )
    (entry,) = create_requests(sim)
    body = entry.body
    assert [part["text"] for part in body["contents"][0]["parts"]] == [STORY.text, '{"n": 1}']
    assert body["systemInstruction"]["parts"][0]["text"] == "Be brief."
    assert body["tools"][0]["functionDeclarations"][0]["name"] == "f"
    assert body["ttl"] == "120s"
    assert body["model"] == "models/gemini-2.5-flash-lite"
    assert KEY not in str(entry)


async def test_the_expiry_of_a_handle_is_that_of_the_provider(config: MakeConfig, sim: Simulator) -> None:
    """The clock of the provider counts, not that of this machine."""
    now = time.time() + 10_000
    sim.clock = lambda: now
    handle = await create_cache([STORY], config=config("gemini"), ttl_seconds=60)
    assert handle.expires_at == pytest.approx(now + 60, abs=0.01)
    assert (handle.provider, handle.model) == ("gemini", "gemini-2.5-flash-lite")


async def test_a_handle_comes_back_equal_from_json(config: MakeConfig) -> None:
    """The JSON of a handle holds no key."""
    handle = await create_cache([STORY], config=config("gemini"))
    text = handle.model_dump_json()
    assert CacheHandle.model_validate_json(text) == handle
    assert KEY not in text


async def test_calls_with_a_handle_read_from_the_cache(config: MakeConfig, sim: Simulator) -> None:
    """Only prompts are sent; the envelope reports the tokens that were read from the cache."""
    handle = await create_cache([STORY], config=config("gemini"))
    envelope = await run_many(["a", "b"], config=config("gemini"), options=Options(cache=handle))
    for entry in asked(sim):
        assert entry.body["cachedContent"] == handle.name
        assert "long story" not in str(entry.body)
    assert envelope.metrics["cache_used"] is True
    assert envelope.metrics["cache_mode"] == "persistent"
    assert envelope.usage["cached_tokens"] > 0


async def test_cache_used_is_false_without_a_count_of_the_provider() -> None:
    """A call with a handle counts as a cache hit only if the provider reports cached tokens."""
    handle = CacheHandle(name="cachedContents/a", model="gemini-x", provider="gemini", expires_at=time.time() + 60)
    reply = http({"candidates": [{"content": {"parts": [{"text": "fine"}]}}], "usageMetadata": {"promptTokenCount": 5}})
    async with scripted(reply) as server:
        config = server.config("gemini", model="gemini-x")
        envelope = await run("p", config=config, options=Options(cache=handle))
    assert envelope.metrics["cache_used"] is False
    assert envelope.metrics["cache_mode"] == "persistent"


async def test_without_a_handle_no_cache_is_used(config: MakeConfig) -> None:
    envelope = await run("p", config=config("gemini"))
    assert (envelope.metrics["cache_used"], envelope.metrics["cache_mode"]) == (False, "none")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openrouter", "local"])
async def test_create_cache_is_refused_for_other_providers_than_gemini(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The refusal comes before any request and names Gemini."""
    with pytest.raises(ConfigurationError, match="persistent_cache") as caught:
        await create_cache([STORY], config=config(provider))
    assert "gemini" in str(caught.value.hint)
    assert sim.requests == []


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "60", None])
async def test_a_time_to_live_is_a_number_of_seconds(ttl: Any, config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="ttl_seconds"):
        await create_cache([STORY], config=config("gemini"), ttl_seconds=ttl)
    assert sim.requests == []


async def test_a_cache_without_content_is_refused(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="nothing to cache"):
        await create_cache([], config=config("gemini"))
    assert sim.requests == []


async def test_an_invalid_source_is_named_by_its_index(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(SourceError, match=r"sources\[1\]"):
        await create_cache([STORY, "text"], config=config("gemini"))  # type: ignore[list-item]
    assert sim.requests == []


@pytest.mark.parametrize("content", [{"system_instruction": 5}, {"tools": [{"name": "no spaces please"}]}])
async def test_an_invalid_system_instruction_or_tool_is_refused(
    content: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError):
        await create_cache([STORY], config=config("gemini"), **content)
    assert sim.requests == []


def make_handle(**settings: Any) -> CacheHandle:
    defaults = {"name": "cachedContents/a", "model": "gemini-2.5-flash-lite", "provider": "gemini"}
    return CacheHandle(**{**defaults, "expires_at": time.time() + 60, **settings})


CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"system_instruction": "Be brief."}, "system_instruction"),
    ({"tools": [TOOL]}, "tools"),
    ({"tools": []}, "tools"),
]


@pytest.mark.parametrize(("options", "name"), CLASHES)
async def test_options_that_belong_into_the_cache_are_refused_beside_a_handle(
    options: dict[str, Any], name: str, config: MakeConfig, sim: Simulator
) -> None:
    """Gemini would refuse such a request; the hint says to pass them to create_cache."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        await run("p", config=config("gemini"), options=Options(cache=make_handle(), **options))
    assert "create_cache" in str(caught.value.hint)
    assert sim.requests == []


async def test_sources_beside_a_handle_are_refused(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="sources"):
        await run("p", source=STORY, config=config("gemini"), options=Options(cache=make_handle()))
    assert sim.requests == []


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model": "gemini-2.5-pro"}, "gemini-2.5-pro"),
    ({"expires_at": time.time() - 5}, "expired"),
]


@pytest.mark.parametrize(("settings", "words"), OTHERS)
async def test_a_handle_of_another_model_or_an_expired_one_is_refused(
    settings: dict[str, Any], words: str, config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        await run("p", config=config("gemini"), options=Options(cache=make_handle(**settings)))
    assert "create_cache" in str(caught.value.hint)
    assert sim.requests == []


async def test_a_handle_is_refused_by_another_provider(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        await run("p", config=config("openai"), options=Options(cache=make_handle()))
    assert sim.requests == []


async def test_the_error_about_a_deleted_cache_advises_create_cache(config: MakeConfig, sim: Simulator) -> None:
    """Gemini replies "permission denied" although the key is valid, so the hint does not mention the key."""
    with pytest.raises(APIError, match="CachedContent not found") as caught:
        await run("p", config=config("gemini"), options=Options(cache=make_handle()))
    assert "create_cache" in str(caught.value.hint)
    assert "GEMINI_API_KEY" not in str(caught.value.hint)
    assert caught.value.error_category is None
    assert len(asked(sim)) == 1


async def test_a_create_request_is_retried_after_a_503(config: MakeConfig, sim: Simulator) -> None:
    """A request that was refused for the moment has created no cache."""
    sim.fail(Fault(status=503), operation="cache.create")
    await create_cache([STORY], config=config("gemini"))
    assert len(create_requests(sim)) == 2


async def test_a_cache_whose_reply_was_lost_is_adopted(config: MakeConfig, sim: Simulator) -> None:
    """The cache is found by its display name, so that it is created and paid for once."""
    sim.fail(Fault(kind="drop_after"), operation="cache.create", times=None)
    handle = await create_cache([STORY], config=config("gemini"))
    assert len(create_requests(sim)) == 1
    assert (await run("p", config=config("gemini"), options=Options(cache=handle))).metrics["cache_used"] is True


async def test_a_create_request_of_unknown_outcome_is_not_repeated(config: MakeConfig, sim: Simulator) -> None:
    """The cache may exist, and two caches cost twice; the error says that the outcome is unknown."""
    sim.fail(Fault(kind="drop_after"), operation="cache.create", times=None)
    sim.fail(Fault(status=503), operation="cache.list", times=None)
    with pytest.raises(CacheError) as caught:
        await create_cache([STORY], config=config("gemini"))
    assert caught.value.outcome_unknown is True
    assert (caught.value.provider, caught.value.phase) == ("gemini", "cache")
    assert len(create_requests(sim)) == 1
    sim.faults.clear()
    await create_cache([STORY], config=config("gemini"))
    assert len(create_requests(sim)) == 1  # the search finds the cache


async def test_a_create_request_that_hangs_times_out(config: MakeConfig, sim: Simulator) -> None:
    sim.fail(Fault(kind="hang"), operation="cache.create", times=None)
    with pytest.raises(APIError, match="No answer came") as caught:
        await create_cache([STORY], config=config("gemini", timeout_s=0.2))
    assert (caught.value.provider, caught.value.phase) == ("gemini", "cache")
    assert caught.value.outcome_unknown is True


@pytest.mark.parametrize(("status", "kind"), [(400, CacheError), (403, CacheError), (429, RateLimitError)])
async def test_a_refused_create_request_is_a_cache_error(
    status: int, kind: type[APIError], config: MakeConfig, sim: Simulator
) -> None:
    """A 429 is a RateLimitError instead."""
    sim.fail(Fault(status=status), operation="cache.create", times=None)
    with pytest.raises(APIError) as caught:
        await create_cache([STORY], config=config("gemini"))
    assert type(caught.value) is kind
    assert caught.value.hint


INVALID_REPLIES = [
    b"null",
    b"[]",
    b"{}",
    b"<html>",
    b'{"name": 5}',
    b'{"name": ""}',
    b'{"name": "a", "expireTime": "soon"}',
]


@pytest.mark.parametrize("reply", INVALID_REPLIES)
async def test_an_invalid_reply_to_a_create_request_is_a_cache_error(reply: bytes) -> None:
    async with scripted(http(reply)) as server:
        with pytest.raises(CacheError) as caught:
            await create_cache([STORY], config=server.config("gemini"))
    assert caught.value.hint


async def test_without_an_expiry_in_the_reply_the_time_to_live_counts() -> None:
    """The time to live counts from the request, so that the handle expires rather too early than too late."""
    before = time.time()
    async with scripted(http({"name": "cachedContents/a"})) as server:
        handle = await create_cache([STORY], config=server.config("gemini"), ttl_seconds=60)
    assert before + 60 <= handle.expires_at <= time.time() + 60


async def test_an_expiry_in_another_time_zone_is_converted() -> None:
    when = datetime(2100, 1, 1, tzinfo=UTC)
    async with scripted(http({"name": "cachedContents/a", "expireTime": "2100-01-01T02:00:00+02:00"})) as server:
        handle = await create_cache([STORY], config=server.config("gemini"))
    assert handle.expires_at == when.timestamp()
