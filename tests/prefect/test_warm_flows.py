"""A warm fan-out and a warm broadcast as flows: the task runs of a run share one first call a source."""

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


def document(letter: str = "x", count: int = DOCUMENT_TOKENS) -> Source:
    return Source.from_text(letter * 4 * count, identifier=letter)


def counted(envelope: ResultEnvelope) -> tuple[int, int, int]:
    metrics = envelope.metrics
    return metrics["n_cache_hits"], metrics["cache_write_tokens"], metrics["cached_tokens"]


@pytest.mark.parametrize("calls_per_task", [None, 3])
def test_a_fan_out_writes_once(claude: PolluxProvider, calls_per_task: int | None) -> None:
    """As one task run a call, and in chunks: 1.25 + 0.9 documents."""
    envelope = fan_out(PROMPTS, claude, [document()], WARM, calls_per_task=calls_per_task)
    assert counted(envelope) == (9, DOCUMENT_TOKENS, 9 * DOCUMENT_TOKENS)


async def test_the_page_says_what_caching_saved(claude: PolluxProvider) -> None:
    """Tokens beside the naive way, and money, in which the write costs a quarter more."""
    envelope = await afan_out(PROMPTS, claude, [document("p")], WARM)
    caching = envelope.metrics["caching"]
    assert caching["saved_tokens"] == 9 * DOCUMENT_TOKENS
    async with get_client() as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["pollux-fan-out"]))
        (page,) = await client.read_artifacts(artifact_filter=key, sort=ArtifactSort.CREATED_DESC, limit=1)
    assert "tokens sent, 900,000 read from cache, 100,000 written |" in str(page.data)
    assert f"| Saved by caching | 900,000 of {caching['naive_tokens']:,} tokens" in str(page.data)
    assert "in money: $2." in str(page.data)


def test_a_broadcast_writes_once_a_source(claude: PolluxProvider) -> None:
    """Each source has a first call of its own."""
    sources = [document(letter, 2_000) for letter in "abc"]
    envelopes = broadcast(PROMPTS[:3], sources, claude, WARM)
    assert [counted(envelope) for envelope in envelopes] == [(2, 2_000, 4_000)] * 3


def test_when_the_first_task_run_fails_the_next_writes(claude: PolluxProvider, simulator: Simulator) -> None:
    """The one that failed is reported, the others have cost what they should."""
    simulator.fail(Fault(kind="status", status=400), contains=PROMPTS[0])
    envelope = fan_out(PROMPTS, claude, [document()], WARM, on_partial="complete")
    assert envelope.status == "partial"
    assert counted(envelope) == (8, DOCUMENT_TOKENS, 8 * DOCUMENT_TOKENS)


def test_without_it_a_fan_out_writes_nothing(claude: PolluxProvider) -> None:
    """The default stands: ten documents, at the plain price."""
    envelope = fan_out(PROMPTS, claude, [document()])
    assert counted(envelope) == (0, 0, 0)
    assert envelope.usage["input_tokens"] >= 10 * DOCUMENT_TOKENS
