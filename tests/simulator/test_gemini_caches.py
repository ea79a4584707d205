"""Gemini's cachedContents: they are created, used, extended, deleted, and expire."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from google import genai
from google.genai import errors, types

from pollux_flows.simulator import Fault, Simulator

from .clients import Gemini
from .conftest import Clock

FLASH = "gemini-2.5-flash"
CONTENT = types.CreateCachedContentConfig(contents="word " * 800, display_name="run-abc", ttl="3600s")  # 1000 tokens


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[genai.Client]:
    async with AsyncExitStack() as stack:
        yield (await Gemini.open(sim.base_url("gemini", origin), stack)).sdk


async def ask(sdk: genai.Client, cache: str, **config: object) -> types.GenerateContentResponse:
    settings = types.GenerateContentConfig.model_validate({"cached_content": cache, **config})
    return await sdk.aio.models.generate_content(model=FLASH, contents="four", config=settings)


async def create_cache(sdk: genai.Client) -> str:
    cache = await sdk.aio.caches.create(model=FLASH, config=CONTENT)
    assert cache.name is not None
    return cache.name


async def test_a_new_cache_returns_its_tokens_and_times(sdk: genai.Client) -> None:
    """A cache returns its model, name, token count and lifetime."""
    cache = await sdk.aio.caches.create(model=FLASH, config=CONTENT)
    assert (cache.model, cache.display_name) == (f"models/{FLASH}", "run-abc")
    assert cache.usage_metadata is not None
    assert cache.usage_metadata.total_token_count == 1000
    assert cache.expire_time is not None
    assert cache.create_time is not None
    assert (cache.expire_time - cache.create_time).total_seconds() == 3600


async def test_usage_includes_the_cached_tokens(sdk: genai.Client) -> None:
    """The prompt tokens include the cached tokens, which are also reported separately."""
    response = await ask(sdk, await create_cache(sdk))
    assert response.text == "Simulated answer to: four"
    assert response.usage_metadata is not None
    assert response.usage_metadata.prompt_token_count == 1001
    assert response.usage_metadata.cached_content_token_count == 1000


async def test_caches_are_listed_page_by_page(sdk: genai.Client) -> None:
    """The pages of a list have all caches that are not deleted."""
    names = [await create_cache(sdk) for _ in range(3)]
    assert [cache.name async for cache in await sdk.aio.caches.list(config={"page_size": 2})] == names
    for name in names:
        await sdk.aio.caches.delete(name=name)
    assert [cache.name async for cache in await sdk.aio.caches.list()] == []


async def test_a_cache_expires(sdk: genai.Client, clock: Clock) -> None:
    """An expired cache is refused with 403, like one of another account."""
    name = await create_cache(sdk)
    clock.now += 3601
    for attempt in (ask(sdk, name), sdk.aio.caches.get(name=name), sdk.aio.caches.delete(name=name)):
        with pytest.raises(errors.ClientError) as caught:
            await attempt
        assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


async def test_a_cache_can_be_extended(sdk: genai.Client, clock: Clock) -> None:
    """A new lifetime counts from the update, not from the creation."""
    name = await create_cache(sdk)
    clock.now += 3599
    updated = await sdk.aio.caches.update(name=name, config={"ttl": "100s"})
    assert updated.expire_time is not None
    assert updated.expire_time.timestamp() == clock.now + 100
    clock.now += 99
    assert (await ask(sdk, name)).text


async def test_an_unknown_cache_is_forbidden(sdk: genai.Client) -> None:
    """An unknown cache is refused with 403, like one of another account."""
    with pytest.raises(errors.ClientError, match="CachedContent not found"):
        await ask(sdk, "cachedContents/never")


async def test_a_request_with_a_cache_cannot_set_cached_fields(sdk: genai.Client) -> None:
    """System instruction and tools are part of a cache, so a request with a cache cannot set them."""
    name = await create_cache(sdk)
    with pytest.raises(errors.ClientError, match="CachedContent can not be used"):
        await ask(sdk, name, system_instruction="Be brief.")
    with pytest.raises(errors.ClientError, match="CachedContent can not be used"):
        await ask(sdk, name, tools=[{"google_search": {}}])


async def test_a_cache_belongs_to_its_model(sdk: genai.Client) -> None:
    """A cache cannot be used with another model."""
    name = await create_cache(sdk)
    config = types.GenerateContentConfig(cached_content=name)
    with pytest.raises(errors.ClientError, match="has to be the same"):
        await sdk.aio.models.generate_content(model="gemini-2.5-pro", contents="four", config=config)


async def test_tools_in_a_cache_can_be_called(sdk: genai.Client) -> None:
    """A request can call the tools that are declared in its cache."""
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
async def test_an_invalid_cache_is_refused(config: dict[str, str], words: str, sdk: genai.Client) -> None:
    """A cache with an invalid lifetime or without content is refused."""
    with pytest.raises(errors.ClientError, match=words):
        await sdk.aio.caches.create(model=FLASH, config=types.CreateCachedContentConfig.model_validate(config))


async def test_cache_creation_can_fail(sdk: genai.Client, sim: Simulator) -> None:
    """Cache operations have names for which faults can be queued."""
    sim.fail(Fault(status=503), operation="cache.create")
    with pytest.raises(errors.ServerError):
        await create_cache(sdk)
    assert [(entry.operation, entry.status) for entry in sim.requests] == [("cache.create", 503)]


async def test_a_cache_of_another_account_is_not_found(sdk: genai.Client, sim: Simulator, origin: str) -> None:
    """Another account can neither list, use, fetch nor delete a cache."""
    name = await create_cache(sdk)
    other = genai.Client(
        api_key="sk-other", http_options=types.HttpOptions(base_url=sim.base_url("gemini", origin), api_version="v1")
    )
    assert [cache.name async for cache in await other.aio.caches.list()] == []
    for attempt in (ask(other, name), other.aio.caches.get(name=name), other.aio.caches.delete(name=name)):
        with pytest.raises(errors.ClientError, match="CachedContent not found"):
            await attempt
    assert (await ask(sdk, name)).text


async def test_a_cache_can_be_lost_before_it_expires(sdk: genai.Client, sim: Simulator) -> None:
    """A request with a lost cache is refused like one with an unknown cache."""
    name = await create_cache(sdk)
    sim.gemini_caches.clear()
    with pytest.raises(errors.ClientError, match="CachedContent not found"):
        await ask(sdk, name)


async def test_a_model_without_caching_refuses_a_cache(sdk: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match="not supported for createCachedContent"):
        await sdk.aio.caches.create(model="gemini-4-flash", config=CONTENT)


async def test_a_cache_may_need_a_minimum_of_tokens(sdk: genai.Client, sim: Simulator) -> None:
    """A cache below `gemini_cache_minimum` is refused, if the simulator has such a minimum."""
    sim.gemini_cache_minimum = 1001
    try:
        with pytest.raises(errors.ClientError, match=r"total_token_count=1000, min_total_token_count=1001"):
            await create_cache(sdk)
        sim.gemini_cache_minimum = 1000
        await create_cache(sdk)
    finally:
        sim.gemini_cache_minimum = 0
