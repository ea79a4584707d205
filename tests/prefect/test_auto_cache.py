"""Tests of cache="auto" in flows: a run has a cache where that is cheaper, and pays for no answer twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import flow

from pollux_flows import APIError, ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, broadcast, fan_in, fan_out, realtime, warm_cache
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.counting import caching_operations, count_answers
from tests.prefect.runs import find_newest_run, read_pages

PROMPTS = ["Who was it?", "Where was it?", "When was it?"]


def make_document(letter: str, tokens: int = 10_000) -> Source:
    return Source.from_text(letter * 4 * tokens, identifier=letter)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def gemini(world: tuple[Simulator, str], simulator: Simulator) -> PolluxProvider:
    address = simulator.base_url("gemini", origin=world[1])
    return PolluxProvider(provider="gemini", model="gemini-2.5-flash", api_key="gm-never-saved", base_url=address)


async def test_a_run_creates_a_cache_and_deletes_it(gemini: PolluxProvider, simulator: Simulator) -> None:
    """The task runs share the cache, and the page of the run has a line about it."""
    envelope = await afan_out(PROMPTS, gemini, [make_document("a")], cache="auto")
    assert envelope.metrics["cache_used"] is True
    assert envelope.diagnostics["cache"]["mode"] == "explicit"
    assert caching_operations(simulator) == ["cache.create", "cache.delete"]
    assert not [record for record in await BlockRegistry().list() if record.contents == ["a"]]
    (page,) = [each for each in await read_pages(await find_newest_run("fan-out")) if each.type == "markdown"]
    assert "| Cache | created: the sources in a cache for" in str(page.data)


def test_a_broadcast_has_a_cache_per_source(gemini: PolluxProvider, simulator: Simulator) -> None:
    """A source that is too short for a cache to pay is sent with each prompt."""
    sources = [make_document("b"), make_document("c", 100), make_document("d")]
    envelopes = broadcast(PROMPTS, sources, gemini, cache="auto")
    assert [envelope.status for envelope in envelopes] == ["ok"] * 3
    assert [envelope.metrics["n_cache_hits"] for envelope in envelopes] == [3, 0, 3]
    assert [envelope.metrics["cache_mode"] for envelope in envelopes] == ["persistent", "none", "persistent"]
    assert sorted(caching_operations(simulator)) == ["cache.create"] * 2 + ["cache.delete"] * 2
    created_tokens = [
        envelope.metrics["caching"]["created_tokens"] for envelope in envelopes if "caching" in envelope.metrics
    ]
    assert created_tokens == [envelopes[0].usage["cached_tokens"] / 3, envelopes[2].usage["cached_tokens"] / 3]
    # The second envelope pays for no cache of the others.
    answers_usd = sum(call["cost_usd"] for call in envelopes[1].diagnostics["calls"])
    assert envelopes[1].metrics["cost_usd"] == pytest.approx(answers_usd)


def test_a_run_with_one_prompt_creates_no_cache(gemini: PolluxProvider, simulator: Simulator) -> None:
    for envelope in (
        realtime("Who?", gemini, [make_document("e")], cache="auto"),
        fan_in("Who?", [make_document("e")], gemini, cache="auto"),
    ):
        assert "no two prompts" in envelope.diagnostics["cache"]["why"]
    assert caching_operations(simulator) == []


def test_no_cache_is_created_at_a_provider_with_automatic_caching(provider: PolluxProvider) -> None:
    envelope = fan_out(PROMPTS, provider, [make_document("f")], cache="auto")
    assert envelope.status == "ok"
    assert "caches repeated prefixes" in envelope.diagnostics["cache"]["why"]


def test_a_warmed_cache_is_used_and_not_deleted(gemini: PolluxProvider, simulator: Simulator) -> None:
    warm_cache([make_document("g")], gemini)
    envelope = fan_out(PROMPTS, gemini, [make_document("g")], cache="auto")
    assert envelope.metrics["cache_used"] is True
    assert caching_operations(simulator) == ["cache.create"]


# --- Repeated runs ------------------------------------------------------------------------------------------


def test_a_run_replaces_a_cache_that_the_provider_lost(gemini: PolluxProvider, simulator: Simulator) -> None:
    """A retry of the run asks only the prompt without an answer."""
    warm_cache([make_document("h")], gemini)
    simulator.gemini_caches.clear()
    simulator.fail(Fault(status=400, message="not now"), contains="Where")

    @flow(retries=1, retry_delay_seconds=0)
    def nightly() -> ResultEnvelope:
        return fan_out(PROMPTS, gemini, [make_document("h")], cache="auto")

    envelope = nightly()
    assert envelope.metrics["n_reused"] == 2
    assert caching_operations(simulator).count("cache.create") == 2
    assert count_answers(simulator) == 3


async def test_a_failed_run_deletes_its_cache(gemini: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError):
        await afan_out(PROMPTS, gemini, [make_document("j")], cache="auto")
    assert caching_operations(simulator) == ["cache.create", "cache.delete"]
