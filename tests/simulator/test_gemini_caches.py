"""Gemini's cachedContents: made, used, extended, and gone when their time is over."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from google import genai
from google.genai import errors, types

from pollux_flows.simulator import Fault, Simulator

from .clients import Gemini

FLASH = "gemini-2.5-flash"
CONTENT = types.CreateCachedContentConfig(contents="word " * 800, display_name="run-abc", ttl="3600s")  # 1000 tokens


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[genai.Client]:
    async with AsyncExitStack() as stack:
        yield (await Gemini.open(sim.base_url("gemini", origin), stack)).sdk


async def ask(sdk: genai.Client, cache: str, **config: object) -> types.GenerateContentResponse:
    asked = types.GenerateContentConfig.model_validate({"cached_content": cache, **config})
    return await sdk.aio.models.generate_content(model=FLASH, contents="four", config=asked)


async def made(sdk: genai.Client) -> str:
    cache = await sdk.aio.caches.create(model=FLASH, config=CONTENT)
    assert cache.name is not None
    return cache.name


async def test_a_cache_says_what_it_holds(sdk: genai.Client) -> None:
    """Its tokens are counted when it is made."""
    cache = await sdk.aio.caches.create(model=FLASH, config=CONTENT)
    assert (cache.model, cache.display_name) == (f"models/{FLASH}", "run-abc")
    assert cache.usage_metadata is not None
    assert cache.usage_metadata.total_token_count == 1000
    assert cache.expire_time is not None
    assert cache.create_time is not None
    assert (cache.expire_time - cache.create_time).total_seconds() == 3600


async def test_a_request_counts_the_cache_that_it_uses(sdk: genai.Client) -> None:
    """The prompt includes the cached tokens, and says how many they are."""
    response = await ask(sdk, await made(sdk))
    assert response.text == "Simulated answer to: four"
    assert response.usage_metadata is not None
    assert response.usage_metadata.prompt_token_count == 1001
    assert response.usage_metadata.cached_content_token_count == 1000


async def test_caches_are_listed_until_they_are_deleted(sdk: genai.Client) -> None:
    """Page by page, if it must be."""
    names = [await made(sdk) for _ in range(3)]
    assert [cache.name async for cache in await sdk.aio.caches.list(config={"page_size": 2})] == names
    for name in names:
        await sdk.aio.caches.delete(name=name)
    assert [cache.name async for cache in await sdk.aio.caches.list()] == []


async def test_a_cache_expires(sdk: genai.Client, sim: Simulator) -> None:
    """Past its time it is as if it had never been: 403, which Gemini also says to strangers."""
    real, now = sim.clock, 1_000_000.0
    sim.clock = lambda: now
    try:
        name = await made(sdk)
        now += 3601
        for attempt in (ask(sdk, name), sdk.aio.caches.get(name=name), sdk.aio.caches.delete(name=name)):
            with pytest.raises(errors.ClientError) as refused:
                await attempt
            assert (refused.value.code, refused.value.status) == (403, "PERMISSION_DENIED")
    finally:
        sim.clock = real


async def test_a_cache_can_be_given_more_time(sdk: genai.Client, sim: Simulator) -> None:
    """From now on, not from its creation."""
    real, now = sim.clock, 1_000_000.0
    sim.clock = lambda: now
    try:
        name = await made(sdk)
        now += 3599
        updated = await sdk.aio.caches.update(name=name, config={"ttl": "100s"})
        assert updated.expire_time is not None
        assert updated.expire_time.timestamp() == now + 100
        now += 99
        assert (await ask(sdk, name)).text
    finally:
        sim.clock = real


async def test_an_unknown_cache_is_forbidden(sdk: genai.Client) -> None:
    """Like one of somebody else."""
    with pytest.raises(errors.ClientError, match="CachedContent not found"):
        await ask(sdk, "cachedContents/never")


async def test_what_belongs_into_the_cache_may_not_stand_beside_it(sdk: genai.Client) -> None:
    """A system instruction, tools and their config are part of what was cached."""
    name = await made(sdk)
    with pytest.raises(errors.ClientError, match="CachedContent can not be used"):
        await ask(sdk, name, system_instruction="Be brief.")
    with pytest.raises(errors.ClientError, match="CachedContent can not be used"):
        await ask(sdk, name, tools=[{"google_search": {}}])


async def test_a_cache_belongs_to_its_model(sdk: genai.Client) -> None:
    """Another model cannot read it."""
    name = await made(sdk)
    config = types.GenerateContentConfig(cached_content=name)
    with pytest.raises(errors.ClientError, match="has to be the same"):
        await sdk.aio.models.generate_content(model="gemini-2.5-pro", contents="four", config=config)


async def test_tools_in_a_cache_can_be_called(sdk: genai.Client) -> None:
    """They are declared once, when the cache is made."""
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="weather")])
    config = types.CreateCachedContentConfig(contents="word", tools=[tool])
    cache = await sdk.aio.caches.create(model=FLASH, config=config)
    response = await sdk.aio.models.generate_content(
        model=FLASH,
        contents="Rain? [[simulate: tool_call]]",
        config=types.GenerateContentConfig(cached_content=cache.name),
    )
    assert [call.name for call in response.function_calls or []] == ["weather"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"contents": "word", "ttl": "soon"}, "ttl"),
        ({"contents": "word", "ttl": "0s"}, "must be in the future"),
        ({}, "no content to cache"),
    ],
)
async def test_a_cache_that_makes_no_sense_is_refused(config: dict[str, str], words: str, sdk: genai.Client) -> None:
    """Before anything is paid."""
    with pytest.raises(errors.ClientError, match=words):
        await sdk.aio.caches.create(model=FLASH, config=types.CreateCachedContentConfig.model_validate(config))


async def test_making_a_cache_can_fail_too(sdk: genai.Client, sim: Simulator) -> None:
    """Every operation has a name for faults to wait for."""
    sim.fail(Fault(status=503), operation="cache.create")
    with pytest.raises(errors.ServerError):
        await made(sdk)
    assert [(entry.operation, entry.status) for entry in sim.requests] == [("cache.create", 503)]


async def test_another_account_has_no_part_in_a_cache(sdk: genai.Client, sim: Simulator, origin: str) -> None:
    """It is neither listed for it nor found, and cannot be deleted."""
    name = await made(sdk)
    stranger = genai.Client(
        api_key="sk-stranger",
        http_options=types.HttpOptions(base_url=sim.base_url("gemini", origin), api_version="v1"),
    )
    assert [cache.name async for cache in await stranger.aio.caches.list()] == []
    for attempt in (ask(stranger, name), stranger.aio.caches.get(name=name), stranger.aio.caches.delete(name=name)):
        with pytest.raises(errors.ClientError, match="CachedContent not found"):
            await attempt
    assert (await ask(sdk, name)).text


async def test_a_lost_cache_is_as_one_that_never_was(sdk: genai.Client, sim: Simulator) -> None:
    """Before its time is over, too: a provider promises nothing."""
    name = await made(sdk)
    sim.gemini_caches.clear()
    with pytest.raises(errors.ClientError, match="CachedContent not found"):
        await ask(sdk, name)


async def test_a_model_without_caches_makes_none(sdk: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match="not supported for createCachedContent"):
        await sdk.aio.caches.create(model="gemini-4-flash", config=CONTENT)


async def test_too_little_is_not_cached(sdk: genai.Client, sim: Simulator) -> None:
    """Where the world has Gemini's minimum."""
    sim.gemini_cache_minimum = 1001
    try:
        with pytest.raises(errors.ClientError, match=r"total_token_count=1000, min_total_token_count=1001"):
            await made(sdk)
        sim.gemini_cache_minimum = 1000
        await made(sdk)
    finally:
        sim.gemini_cache_minimum = 0
