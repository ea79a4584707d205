"""create_cache: content that Gemini keeps, the handle to it, and what the handle stands for."""

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
    """A registry of its own for each test."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


def created(sim: Simulator) -> list[Logged]:
    return [entry for entry in sim.requests if entry.operation == "cache.create"]


async def test_everything_goes_into_the_cache(config: MakeConfig, sim: Simulator) -> None:
    """Sources, system instruction, tools and the time to live: one request, no key in it."""
    await create_cache(
        [STORY, Source.from_json({"n": 1})],
        config=config("gemini"),
        system_instruction="Be brief.",
        tools=[TOOL],
        ttl_seconds=120,
    )
    (entry,) = created(sim)
    body = entry.body
    assert [part["text"] for part in body["contents"][0]["parts"]] == [STORY.text, '{"n": 1}']
    assert body["systemInstruction"]["parts"][0]["text"] == "Be brief."
    assert body["tools"][0]["functionDeclarations"][0]["name"] == "f"
    assert body["ttl"] == "120s"
    assert body["model"] == "models/gemini-2.5-flash-lite"
    assert KEY not in str(entry)


async def test_the_handle_expires_when_the_server_says(config: MakeConfig, sim: Simulator) -> None:
    """Its clock counts, not ours."""
    now = time.time() + 10_000
    sim.clock = lambda: now
    handle = await create_cache([STORY], config=config("gemini"), ttl_seconds=60)
    assert handle.expires_at == pytest.approx(now + 60, abs=0.01)
    assert (handle.provider, handle.model) == ("gemini", "gemini-2.5-flash-lite")


async def test_a_handle_goes_through_json(config: MakeConfig) -> None:
    """It can be kept, sent and read back, and holds no key."""
    handle = await create_cache([STORY], config=config("gemini"))
    text = handle.model_dump_json()
    assert CacheHandle.model_validate_json(text) == handle
    assert KEY not in text


async def test_the_handle_answers(config: MakeConfig, sim: Simulator) -> None:
    """Prompts travel alone; the tokens that came from the cache are counted, and that is what cache_used tells."""
    handle = await create_cache([STORY], config=config("gemini"))
    envelope = await run_many(["a", "b"], config=config("gemini"), options=Options(cache=handle))
    for entry in asked(sim):
        assert entry.body["cachedContent"] == handle.name
        assert "long story" not in str(entry.body)
    assert envelope.metrics["cache_used"] is True
    assert envelope.metrics["cache_mode"] == "persistent"
    assert envelope.usage["cached_tokens"] > 0


async def test_a_hit_that_nobody_counted_is_no_hit() -> None:
    """Passing a handle proves nothing: the provider's count does."""
    handle = CacheHandle(name="cachedContents/a", model="gemini-x", provider="gemini", expires_at=time.time() + 60)
    reply = http({"candidates": [{"content": {"parts": [{"text": "fine"}]}}], "usageMetadata": {"promptTokenCount": 5}})
    async with scripted(reply) as server:
        config = server.config("gemini", model="gemini-x")
        envelope = await run("p", config=config, options=Options(cache=handle))
    assert envelope.metrics["cache_used"] is False
    assert envelope.metrics["cache_mode"] == "persistent"


async def test_no_handle_no_use(config: MakeConfig) -> None:
    envelope = await run("p", config=config("gemini"))
    assert (envelope.metrics["cache_used"], envelope.metrics["cache_mode"]) == (False, "none")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openrouter", "local"])
async def test_only_gemini_has_handles(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Everywhere else it is refused with what to use instead, before any request."""
    with pytest.raises(ConfigurationError, match="persistent_cache") as caught:
        await create_cache([STORY], config=config(provider))
    assert "gemini" in str(caught.value.hint)
    assert sim.requests == []


@pytest.mark.parametrize("ttl", [0, -1, 1.5, True, "60", None])
async def test_a_time_to_live_is_a_number_of_seconds(ttl: Any, config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="ttl_seconds"):
        await create_cache([STORY], config=config("gemini"), ttl_seconds=ttl)
    assert sim.requests == []


async def test_nothing_cannot_be_kept(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="nothing to cache"):
        await create_cache([], config=config("gemini"))
    assert sim.requests == []


async def test_what_is_no_source_is_named(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(SourceError, match=r"sources\[1\]"):
        await create_cache([STORY, "text"], config=config("gemini"))  # type: ignore[list-item]
    assert sim.requests == []


@pytest.mark.parametrize("given", [{"system_instruction": 5}, {"tools": [{"name": "no spaces please"}]}])
async def test_what_is_no_instruction_and_no_tool_is_refused(
    given: dict[str, Any], config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError):
        await create_cache([STORY], config=config("gemini"), **given)
    assert sim.requests == []


def handle_for(**settings: Any) -> CacheHandle:
    given = {"name": "cachedContents/a", "model": "gemini-2.5-flash-lite", "provider": "gemini"}
    return CacheHandle(**{**given, "expires_at": time.time() + 60, **settings})


CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"system_instruction": "Be brief."}, "system_instruction"),
    ({"tools": [TOOL]}, "tools"),
    ({"tools": []}, "tools"),
]


@pytest.mark.parametrize(("given", "name"), CLASHES)
async def test_what_is_in_the_cache_is_not_said_again(
    given: dict[str, Any], name: str, config: MakeConfig, sim: Simulator
) -> None:
    """Gemini would refuse it; the hint says where it belongs."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        await run("p", config=config("gemini"), options=Options(cache=handle_for(), **given))
    assert "create_cache" in str(caught.value.hint)
    assert sim.requests == []


async def test_no_sources_beside_a_cache(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="sources"):
        await run("p", source=STORY, config=config("gemini"), options=Options(cache=handle_for()))
    assert sim.requests == []


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model": "gemini-2.5-pro"}, "gemini-2.5-pro"),
    ({"expires_at": time.time() - 5}, "expired"),
]


@pytest.mark.parametrize(("settings", "says"), OTHERS)
async def test_a_handle_is_good_for_its_model_and_its_time(
    settings: dict[str, Any], says: str, config: MakeConfig, sim: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        await run("p", config=config("gemini"), options=Options(cache=handle_for(**settings)))
    assert "create_cache" in str(caught.value.hint)
    assert sim.requests == []


async def test_another_provider_knows_no_handle(config: MakeConfig, sim: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="persistent_cache"):
        await run("p", config=config("openai"), options=Options(cache=handle_for()))
    assert sim.requests == []


async def test_a_cache_that_is_gone_says_so(config: MakeConfig, sim: Simulator) -> None:
    """Gemini says "permission denied"; the key is fine, and the hint does not send anybody after it."""
    with pytest.raises(APIError, match="CachedContent not found") as caught:
        await run("p", config=config("gemini"), options=Options(cache=handle_for()))
    assert "create_cache" in str(caught.value.hint)
    assert "GEMINI_API_KEY" not in str(caught.value.hint)
    assert caught.value.error_category is None
    assert len(asked(sim)) == 1


async def test_a_stumble_is_retried(config: MakeConfig, sim: Simulator) -> None:
    """A refusal that may pass made no cache."""
    sim.fail(Fault(status=503), operation="cache.create")
    await create_cache([STORY], config=config("gemini"))
    assert len(created(sim)) == 2


async def test_a_cache_whose_reply_was_lost_is_adopted(config: MakeConfig, sim: Simulator) -> None:
    """It was made and paid for: its display name finds it, and it is not asked for again."""
    sim.fail(Fault(kind="drop_after"), operation="cache.create", times=None)
    handle = await create_cache([STORY], config=config("gemini"))
    assert len(created(sim)) == 1
    assert (await run("p", config=config("gemini"), options=Options(cache=handle))).metrics["cache_used"] is True


async def test_a_create_that_broke_off_is_not_repeated(config: MakeConfig, sim: Simulator) -> None:
    """It may have been done, and two caches cost twice: the error says that the outcome is unknown."""
    sim.fail(Fault(kind="drop_after"), operation="cache.create", times=None)
    sim.fail(Fault(status=503), operation="cache.list", times=None)
    with pytest.raises(CacheError) as caught:
        await create_cache([STORY], config=config("gemini"))
    assert caught.value.outcome_unknown is True
    assert (caught.value.provider, caught.value.phase) == ("gemini", "cache")
    assert len(created(sim)) == 1
    sim.faults.clear()
    await create_cache([STORY], config=config("gemini"))
    assert len(created(sim)) == 1  # looked for, and found


async def test_a_create_that_hangs_ends(config: MakeConfig, sim: Simulator) -> None:
    sim.fail(Fault(kind="hang"), operation="cache.create", times=None)
    with pytest.raises(APIError, match="No answer came") as caught:
        await create_cache([STORY], config=config("gemini", timeout_s=0.2))
    assert (caught.value.provider, caught.value.phase) == ("gemini", "cache")
    assert caught.value.outcome_unknown is True


@pytest.mark.parametrize(("status", "kind"), [(400, CacheError), (403, CacheError), (429, RateLimitError)])
async def test_a_refusal_is_a_cache_error(
    status: int, kind: type[APIError], config: MakeConfig, sim: Simulator
) -> None:
    """Unless it is about the rate."""
    sim.fail(Fault(status=status), operation="cache.create", times=None)
    with pytest.raises(APIError) as caught:
        await create_cache([STORY], config=config("gemini"))
    assert type(caught.value) is kind
    assert caught.value.hint


LIES = [b"null", b"[]", b"{}", b"<html>", b'{"name": 5}', b'{"name": ""}', b'{"name": "a", "expireTime": "soon"}']


@pytest.mark.parametrize("lie", LIES)
async def test_a_cache_that_is_none_is_an_error(lie: bytes) -> None:
    """Whatever comes instead of one."""
    async with scripted(http(lie)) as server:
        with pytest.raises(CacheError) as caught:
            await create_cache([STORY], config=server.config("gemini"))
    assert caught.value.hint


async def test_without_an_expiry_the_time_to_live_counts() -> None:
    """From when it was asked for: rather too early than too late."""
    before = time.time()
    async with scripted(http({"name": "cachedContents/a"})) as server:
        handle = await create_cache([STORY], config=server.config("gemini"), ttl_seconds=60)
    assert before + 60 <= handle.expires_at <= time.time() + 60


async def test_an_expiry_in_another_zone_is_the_same_moment() -> None:
    when = datetime(2100, 1, 1, tzinfo=UTC)
    async with scripted(http({"name": "cachedContents/a", "expireTime": "2100-01-01T02:00:00+02:00"})) as server:
        handle = await create_cache([STORY], config=server.config("gemini"))
    assert handle.expires_at == when.timestamp()
