"""Tests of warm fan-outs and broadcasts: the task runs of a run share one first call per source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from pollux_flows import Options, ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, broadcast, fan_out
from pollux_flows.simulator import Fault, Simulator

DOCUMENT_TOKENS = 100_000
WARM = Options(implicit_caching="warm")
PROMPTS = [f"Question {number:02}?" for number in range(10)]


@pytest.fixture
def claude(world: tuple[Simulator, str], simulator: Simulator) -> Iterator[PolluxProvider]:
    simulator.latency_s = 0.1
    yield PolluxProvider(
        provider="anthropic",
        model="claude-sonnet-4-6",
        api_key="sk-never-saved",
        base_url=simulator.base_url("anthropic", origin=world[1]),
    )
    simulator.latency_s = 0.0


def make_document(letter: str = "x", count: int = DOCUMENT_TOKENS) -> Source:
    return Source.from_text(letter * 4 * count, identifier=letter)


def caching_metrics(envelope: ResultEnvelope) -> tuple[int, int, int]:
    metrics = envelope.metrics
    return metrics["n_cache_hits"], metrics["cache_write_tokens"], metrics["cached_tokens"]


@pytest.mark.parametrize("calls_per_task", [None, 3])
def test_a_warm_fan_out_writes_its_cache_once(claude: PolluxProvider, calls_per_task: int | None) -> None:
    """The task runs have one call each, or a chunk of calls."""
    envelope = fan_out(PROMPTS, claude, [make_document()], WARM, calls_per_task=calls_per_task)
    assert caching_metrics(envelope) == (9, DOCUMENT_TOKENS, 9 * DOCUMENT_TOKENS)


async def test_the_page_shows_what_caching_saved(claude: PolluxProvider) -> None:
    """The page compares tokens with a run without caching, and counts the surcharge of a write."""
    envelope = await afan_out(PROMPTS, claude, [make_document("p")], WARM)
    caching = envelope.metrics["caching"]
    assert caching["saved_tokens"] == 9 * DOCUMENT_TOKENS
    async with get_client() as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["pollux-fan-out"]))
        (page,) = await client.read_artifacts(artifact_filter=key, sort=ArtifactSort.CREATED_DESC, limit=1)
    assert "tokens sent, 900,000 read from cache, 100,000 written |" in str(page.data)
    assert f"| Saved by caching | 900,000 of {caching['naive_tokens']:,} tokens" in str(page.data)
    assert "in money: $2." in str(page.data)


def test_a_warm_broadcast_writes_one_cache_per_source(claude: PolluxProvider) -> None:
    """Each source has its own first call."""
    sources = [make_document(letter, 2_000) for letter in "abc"]
    envelopes = broadcast(PROMPTS[:3], sources, claude, WARM)
    assert [caching_metrics(envelope) for envelope in envelopes] == [(2, 2_000, 4_000)] * 3


def test_the_next_task_run_writes_the_cache_if_the_first_fails(claude: PolluxProvider, simulator: Simulator) -> None:
    """The failed call is reported, and the others read the cache."""
    simulator.fail(Fault(kind="status", status=400), contains=PROMPTS[0])
    envelope = fan_out(PROMPTS, claude, [make_document()], WARM, on_partial="complete")
    assert envelope.status == "partial"
    assert caching_metrics(envelope) == (8, DOCUMENT_TOKENS, 8 * DOCUMENT_TOKENS)


def test_a_fan_out_without_warming_writes_no_cache(claude: PolluxProvider) -> None:
    """By default, each call sends the document at the plain price."""
    envelope = fan_out(PROMPTS, claude, [make_document()])
    assert caching_metrics(envelope) == (0, 0, 0)
    assert envelope.usage["input_tokens"] >= 10 * DOCUMENT_TOKENS
