"""OpenRouter's model catalogue: read once, and before any request that costs money."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pollux_flows import APIError, ConfigurationError, Options, run, run_many
from pollux_flows.providers.openrouter import models
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, MODELS, MakeConfig, asked, good, http, scripted


def count_catalogue_requests(sim: Simulator) -> int:
    return sum(entry.operation == "models" for entry in sim.requests)


async def test_the_catalogue_is_read_once_for_many_runs(config: MakeConfig, sim: Simulator) -> None:
    """The catalogue is cached for five minutes."""
    for _ in range(3):
        await run_many(["a", "b"], config=config("openrouter"))
    assert count_catalogue_requests(sim) == 1
    assert len(asked(sim)) == 6


async def test_the_catalogue_is_read_again_after_five_minutes(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models may have been added or removed."""
    await run("p", config=config("openrouter"))
    (address,) = models._catalogues
    read_at, known = models._catalogues[address]
    monkeypatch.setitem(models._catalogues, address, (read_at - 301, known))
    await run("p", config=config("openrouter"))
    assert count_catalogue_requests(sim) == 2


async def test_an_unknown_model_suggests_close_ones(config: MakeConfig, sim: Simulator) -> None:
    """A misspelled model is refused before any generate request."""
    with pytest.raises(ConfigurationError, match="no model 'openai/gpt-5-nana'") as caught:
        await run("p", config=config("openrouter", model="openai/gpt-5-nana"))
    assert "openai/gpt-5-nano" in str(caught.value.hint)
    assert asked(sim) == []


async def test_a_model_without_close_matches_explains_the_format(config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await run("p", config=config("openrouter", model="zzz"))
    assert "vendor/model" in str(caught.value.hint)


async def test_a_variant_has_the_capabilities_of_its_model(config: MakeConfig) -> None:
    """`:free` and `:nitro` are routes to the same model."""
    assert (await run("p", config=config("openrouter", model="openai/gpt-4.1-mini:nitro"))).status == "ok"


UNSUPPORTED_OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("meta-llama/llama-3.3-70b-instruct", {"response_schema": {"type": "object"}}, "response_schema"),
    ("meta-llama/llama-3.3-70b-instruct", {"tools": [{"name": "f"}]}, "tools"),
    ("openai/gpt-4.1-mini", {"reasoning_effort": "low"}, "reasoning_effort"),
    ("openai/gpt-5-nano", {"temperature": 0.5}, "temperature"),
    ("openai/gpt-5-nano", {"top_p": 0.5}, "top_p"),
]


@pytest.mark.parametrize(("model", "options", "name"), UNSUPPORTED_OPTIONS)
async def test_an_option_that_the_model_does_not_list_is_refused(
    model: str, options: dict[str, Any], name: str, config: MakeConfig, sim: Simulator
) -> None:
    """OpenRouter itself would drop the option silently."""
    with pytest.raises(ConfigurationError, match=f"does not support {name}") as caught:
        await run("p", config=config("openrouter", model=model), options=Options(**options))
    assert caught.value.hint
    assert asked(sim) == []


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(kind="drop"), Fault(kind="malformed")], ids=str)
async def test_reading_the_catalogue_is_retried(fault: Fault, config: MakeConfig, sim: Simulator) -> None:
    """The catalogue is free, so a retry is always safe."""
    sim.fail(fault, operation="models")
    envelope = await run_many(["a", "b"], config=config("openrouter"))
    assert envelope.status == "ok"
    assert count_catalogue_requests(sim) == 2


async def test_an_unreachable_catalogue_is_an_api_error(config: MakeConfig, sim: Simulator) -> None:
    """The error comes after the usual attempts; no generate request was sent, so the outcome is known."""
    sim.fail(Fault(kind="drop"), operation="models", times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config("openrouter"))
    assert (caught.value.phase, caught.value.retryable, caught.value.outcome_unknown) == ("metadata", True, False)
    assert count_catalogue_requests(sim) == 3
    assert asked(sim) == []


MALFORMED = [
    http(b"<html>"),
    http(b"", content_type="text/plain"),
    http([]),
    http({}),
    http({"data": 5}),
    http({"error": "boom"}),
    http({"error": KEY}, 500),
    http(KEY.encode(), 403),
]


@pytest.mark.parametrize("listing", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_malformed_catalogue_is_an_api_error_without_the_key(listing: bytes) -> None:
    async with scripted(http(good("openrouter"))) as server:
        server.listing = listing
        with pytest.raises(APIError) as caught:
            await run("p", config=server.config("openrouter"))
        assert server.requests == []
    assert caught.value.phase == "metadata"
    assert KEY not in f"{caught.value!r}{caught.value}"


ODD_ENTRIES: list[dict[str, Any]] = [
    {},
    {"supported_parameters": None, "architecture": None},
    {"supported_parameters": 5, "architecture": 5},
    {"supported_parameters": [5, "temperature"], "architecture": {"output_modalities": 5}},
]


@pytest.mark.parametrize("entry", ODD_ENTRIES, ids=str)
async def test_an_option_that_the_catalogue_does_not_mention_is_not_refused(entry: dict[str, Any]) -> None:
    """Malformed entries of the catalogue are skipped."""
    async with scripted(http(good("openrouter"))) as server:
        server.listing = http({"data": [None, 5, {"id": 5}, {"id": MODELS["openrouter"], **entry}]})
        envelope = await run("p", config=server.config("openrouter"), options=Options(temperature=0.5))
    assert envelope.answers == ["fine"]


async def test_a_model_without_text_output_is_refused() -> None:
    entry = {"id": MODELS["openrouter"], "architecture": {"output_modalities": ["image"]}}
    async with scripted(http(good("openrouter"))) as server:
        server.listing = http({"data": [entry]})
        with pytest.raises(ConfigurationError, match="does not answer in text"):
            await run("p", config=server.config("openrouter"))
        assert server.requests == []


async def test_a_failed_catalogue_request_is_not_cached(config: MakeConfig, sim: Simulator) -> None:
    sim.fail(Fault(status=400), operation="models")
    with pytest.raises(APIError):
        await run("p", config=config("openrouter"))
    started = time.monotonic()
    assert (await run("p", config=config("openrouter"))).status == "ok"
    assert time.monotonic() - started < 5


def test_every_option_that_a_model_may_lack_is_looked_up() -> None:
    """OpenRouter silently ignores an option that the model lacks. The others are not parameters of a model."""
    others = {
        "system_instruction",
        "history",
        "continue_from",
        "provider_options",
        "implicit_caching",
        # refused for OpenRouter:
        "reasoning_budget_tokens",
        "cache",
        "cache_ttl",
    }
    assert models.NEEDED.keys() | others == Options.model_fields.keys()
