"""Tests of flows with a named cache: it is found by name, block or handle, and created again if it is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from pollux_flows import ConfigurationError, Options, Source
from pollux_flows.blocks import PolluxCache, PolluxProvider
from pollux_flows.flows import (
    abroadcast,
    afan_in,
    afan_out,
    arealtime,
    broadcast,
    fan_in,
    fan_out,
    realtime,
    warm_cache,
)
from pollux_flows.simulator import Simulator
from tests.prefect.counting import count_calls
from tests.prefect.events import read_events

STORY = Source.from_text("A long story about the sea. " * 50)
FLOWS = [realtime, arealtime, fan_out, afan_out, fan_in, afan_in, broadcast, abroadcast]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    address = simulator.base_url("gemini", origin=world[1])
    return PolluxProvider(provider="gemini", model="gemini-2.5-flash", api_key="gm-never-saved", base_url=address)


@pytest.fixture
def name(gemini: PolluxProvider, request: pytest.FixtureRequest) -> str:
    """Return the name of a warmed cache."""
    return warm_cache([Source.from_text(f"{request.node.name}: {STORY.text}")], gemini)


def count_creations(simulator: Simulator) -> int:
    return sum(entry.operation == "cache.create" for entry in simulator.requests)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: str(flow.fn.__name__))
def test_a_form_offers_auto_saved_caches_and_a_name(flow: Flow[..., Any]) -> None:
    """The form has a tab for each. Handles are only for code."""
    form = parameter_schema(flow)
    shown = form.properties["cache"]
    names = [{"$ref": "#/definitions/PolluxCache"}, {"type": "string", "title": "name"}]
    assert shown["anyOf"] == [
        {"type": "string", "enum": ["auto"], "title": "automatic"},
        *([] if flow.name == "broadcast" else names),  # a broadcast takes sources
        {"type": "null"},
    ]
    assert "auto" in shown["description"]
    assert "cache" not in form.required


def test_a_cache_can_be_passed_as_a_name_block_handle_or_option(
    gemini: PolluxProvider, simulator: Simulator, name: str
) -> None:
    """Prompts that were answered from the cache are not paid for again."""
    block: Any = PolluxCache.load(name)
    first = fan_out(["Who?", "Where?"], gemini, cache=name)
    assert first.metrics["cache_used"] is True
    assert first.usage["cached_tokens"] == 2 * block.tokens
    for arguments in ({"cache": block}, {"cache": block.handle}, {"options": Options(cache=name)}):
        again = fan_out(["Who?", "Where?"], gemini, reuse="always", **arguments)
        assert again.metrics["n_reused"] == 2
    assert count_calls(simulator) == 2


async def test_a_lost_cache_is_created_again(gemini: PolluxProvider, simulator: Simulator, name: str) -> None:
    """One task run creates the cache for all, and updates the block."""
    before: Any = await asyncio.to_thread(PolluxCache.load, name)
    simulator.gemini_caches.clear()
    envelope = await afan_out(["Who?", "Where?", "When?"], gemini, cache=name)
    assert (envelope.status, envelope.metrics["n_cache_hits"]) == ("ok", 3)
    assert count_creations(simulator) == 2
    after: Any = await asyncio.to_thread(PolluxCache.load, name)
    assert after.provider_name != before.provider_name
    assert await read_events(f"pollux.cache.{name}", 3) == ["created", "expired", "created"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": "pollux-cache-unknown"}, "no cache 'pollux-cache-unknown' in this Prefect server"),
        ({"options": Options(cache="pollux-cache-unknown")}, "no cache 'pollux-cache-unknown'"),
        ({"cache": "a", "options": Options(cache="b")}, "Two caches are named"),
    ],
)
def test_an_unknown_or_ambiguous_cache_name_is_refused(
    arguments: dict[str, Any], message: str, gemini: PolluxProvider, simulator: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        realtime("Who?", gemini, **arguments)
    assert caught.value.hint
    assert simulator.requests == []


def test_a_named_cache_with_sources_is_refused(gemini: PolluxProvider, simulator: Simulator, name: str) -> None:
    """The sources of the prompt are those in the cache."""
    with pytest.raises(ConfigurationError, match="sources cannot go along with a cache handle"):
        fan_in("Who?", [STORY], gemini, cache=name)
    assert count_calls(simulator) == 0
