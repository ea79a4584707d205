"""Tests of warm batches over loopback: the first prompt writes the cache, the others follow and read it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    ConfigurationError,
    DeferredHandle,
    DeferredNotReadyError,
    Options,
    ResultEnvelope,
    Source,
    cancel_deferred,
    collect_deferred,
    defer_many,
    inspect_deferred,
)
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.simulator.spool import Spool
from tests.loopback import MakeConfig
from tests.providers.test_prefix_caching import (
    DOCUMENT,
    DOCUMENT_TOKENS,
    TEN_PROMPTS,
    WARM,
    count_billed_documents,
    count_breakpoints,
)

WARM_HOUR = WARM.model_copy(update={"cache_ttl": "1h"})


@pytest.fixture(autouse=True)
def _complete_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the simulator store complete rows."""
    monkeypatch.setattr(Spool, "keep_little", lambda _: None)


def list_row_bodies(sim: Simulator) -> list[list[Any]]:
    """Return the bodies of the rows of each accepted batch."""
    return [[json.loads(line)["params"] for line in batch.input] for batch in sim.batches]


async def collect_later(handle: DeferredHandle, sim: Simulator, config: MakeConfig) -> ResultEnvelope:
    """Collect the answers, an hour later each time that they are not ready."""
    for _ in range(3):
        try:
            return await collect_deferred(handle, config=config("anthropic"))
        except DeferredNotReadyError:
            passed = sim.clock() + 61 - time.time()
            sim.clock = lambda passed=passed: time.time() + passed  # type: ignore[misc]
    raise AssertionError("the job does not end")


@pytest.mark.parametrize("options", [WARM, WARM_HOUR])
async def test_the_first_prompt_writes_the_cache_and_the_others_read_it(
    options: Options, sim: Simulator, config: MakeConfig
) -> None:
    """The write costs two documents, and each read a tenth: 2.9 documents instead of 10."""
    sim.batch_s = 60
    handle = await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=options)
    assert [batch.rows for batch in sim.batches] == [1]
    envelope = await collect_later(handle, sim, config)
    assert [batch.rows for batch in sim.batches] == [1, 9]
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in TEN_PROMPTS]
    metrics = envelope.metrics
    assert (metrics["n_cache_hits"], metrics["cache_mode"]) == (9, "implicit")
    assert metrics["cache_write_tokens"] == DOCUMENT_TOKENS
    assert count_billed_documents(envelope.usage) + 0.75 == pytest.approx(2.9, abs=0.01)  # an hour costs 2, not 1.25
    # At the price of a batch, $1.50 a million tokens: nine reads save 0.9 documents each, the write costs one more.
    assert metrics["caching"]["saved_usd"] == pytest.approx(1.5e-6 * DOCUMENT_TOKENS * (9 * 0.9 - 1))
    assert envelope.diagnostics["warnings"] == []
    for row in (row for batch in list_row_bodies(sim) for row in batch):
        document, prompt = row["messages"][0]["content"]
        assert document["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert count_breakpoints(prompt) == 0


async def test_without_the_option_there_is_one_batch(sim: Simulator, config: MakeConfig) -> None:
    """The rows of that batch have no cache breakpoints."""
    sim.batch_s = 0
    handle = await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"))
    envelope = await collect_later(handle, sim, config)
    assert ([batch.rows for batch in sim.batches], count_breakpoints(list_row_bodies(sim))) == ([10], 0)
    assert count_billed_documents(envelope.usage) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("prompts", "source", "model"),
    [
        (TEN_PROMPTS[:2], DOCUMENT, "claude-sonnet-5"),
        (TEN_PROMPTS, Source.from_text("short"), "claude-sonnet-5"),
        (TEN_PROMPTS, Source.from_text("x" * 8_000), "claude-haiku-4-5"),
    ],
)
async def test_there_is_one_batch_where_caching_does_not_pay(
    prompts: list[str], source: Source, model: str, sim: Simulator, config: MakeConfig
) -> None:
    """With two prompts, or sources too short to cache, the envelope warns that the option had no effect."""
    sim.batch_s = 0
    handle = await defer_many(prompts, sources=[source], config=config("anthropic", model=model), options=WARM)
    envelope = await collect_later(handle, sim, config)
    assert ([batch.rows for batch in sim.batches], count_breakpoints(list_row_bodies(sim))) == ([len(prompts)], 0)
    assert any("had no effect" in warning for warning in envelope.diagnostics["warnings"])


async def test_a_failed_first_prompt_does_not_stop_the_others(sim: Simulator, config: MakeConfig) -> None:
    """The other prompts use no cache, because each row would pay for a write."""
    sim.batch_s = 0
    sim.fail(Fault(kind="status", status=529), operation="batch.row")
    handle = await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    envelope = await collect_later(handle, sim, config)
    assert [count_breakpoints(batch) for batch in list_row_bodies(sim)] == [1, 0]
    assert (envelope.status, envelope.metrics["cache_write_tokens"]) == ("partial", 0)


async def test_prompts_that_follow_too_late_use_no_cache(
    sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has expired by then, and the envelope warns of it."""
    monkeypatch.setattr("pollux_flows.deferred.warm._READABLE_S", -1e9)
    sim.batch_s = 0
    handle = await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    envelope = await collect_later(handle, sim, config)
    assert [count_breakpoints(batch) for batch in list_row_bodies(sim)] == [1, 0]
    assert any("No prompt read" in warning for warning in envelope.diagnostics["warnings"])


async def test_the_first_prompt_is_submitted_once(sim: Simulator, config: MakeConfig) -> None:
    """Repeated inspections submit nothing, and count the waiting prompts as pending."""
    sim.batch_s = 3600
    handle = await defer_many(
        TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM, run_key="nightly"
    )
    again = await defer_many(
        TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM, run_key="nightly"
    )
    assert again.job_id == handle.job_id
    for _ in range(2):
        seen = await inspect_deferred(handle, config=config("anthropic"))
        assert (seen.pending, seen.is_terminal) == (10, False)
    assert [batch.rows for batch in sim.batches] == [1]


async def test_the_rest_of_a_cancelled_job_is_not_submitted(sim: Simulator, config: MakeConfig) -> None:
    """Only the batch with the first prompt exists."""
    sim.batch_s = 60
    handle = await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    await cancel_deferred(handle, config=config("anthropic"))
    envelope = await collect_later(handle, sim, config)
    assert [batch.rows for batch in sim.batches] == [1]
    assert envelope.status == "error"


async def test_a_job_whose_parts_are_all_refused_is_removed(sim: Simulator, config: MakeConfig) -> None:
    """The reason is raised."""
    sim.fail(Fault(kind="status", status=400, message="refused by the test"), times=None, operation="batch.create")
    with pytest.raises(APIError, match="refused by the test"):
        await defer_many(TEN_PROMPTS, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    assert sim.batches == []


@pytest.mark.parametrize(
    ("provider", "options", "hint"),
    [
        ("openai", WARM, "caches by itself"),
        ("gemini", WARM, "use openai, anthropic, openrouter"),
        ("anthropic", Options(implicit_caching=True), "'warm'"),
        ("anthropic", Options(cache_ttl="1h"), "keeps its cache for an hour"),
        ("anthropic", WARM.model_copy(update={"cache_ttl": "5m"}), "keeps its cache for an hour"),
    ],
)
async def test_cache_options_that_a_batch_cannot_use_are_refused(
    provider: ProviderName, options: Options, hint: str, sim: Simulator, config: MakeConfig
) -> None:
    """Nothing is sent, and the error says what to do instead."""
    with pytest.raises(ConfigurationError) as caught:
        await defer_many(["a", "b"], config=config(provider), options=options)
    assert hint in str(caught.value.hint)
    assert sim.requests == []
