"""Warm batches, through the real SDK over loopback: one prompt goes first and writes, the rest follows and reads."""

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
from tests.providers.test_prefix_caching import DOCUMENT, DOCUMENT_TOKENS, TEN, WARM, documents_billed, marks

WARM_HOUR = WARM.model_copy(update={"cache_ttl": "1h"})


@pytest.fixture(autouse=True)
def _whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator keeps all that it was sent."""
    monkeypatch.setattr(Spool, "keep_little", lambda _: None)


def rows(sim: Simulator) -> list[list[Any]]:
    """The bodies of the rows of each batch that was accepted."""
    return [[json.loads(line)["params"] for line in batch.input] for batch in sim.batches]


async def collected(handle: DeferredHandle, sim: Simulator, config: MakeConfig) -> ResultEnvelope:
    """The answers, an hour after each time that they were not ready."""
    for _ in range(3):
        try:
            return await collect_deferred(handle, config=config("anthropic"))
        except DeferredNotReadyError:
            passed = sim.clock() + 61 - time.time()
            sim.clock = lambda passed=passed: time.time() + passed  # type: ignore[misc]
    raise AssertionError("it does not end")


@pytest.mark.parametrize("options", [WARM, WARM_HOUR])
async def test_one_goes_first_and_the_rest_reads(options: Options, sim: Simulator, config: MakeConfig) -> None:
    """Two documents for the write that lasts an hour, and a tenth for each that reads: 2.9 instead of 10."""
    sim.batch_s = 60
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=options)
    assert [batch.rows for batch in sim.batches] == [1]
    envelope = await collected(handle, sim, config)
    assert [batch.rows for batch in sim.batches] == [1, 9]
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in TEN]
    metrics = envelope.metrics
    assert (metrics["n_cache_hits"], metrics["cache_mode"]) == (9, "implicit")
    assert metrics["cache_write_tokens"] == DOCUMENT_TOKENS
    assert documents_billed(envelope.usage) + 0.75 == pytest.approx(2.9, abs=0.01)  # an hour costs 2, not 1.25
    # At the price of a batch, $1.50 a million tokens: nine reads save 0.9 documents each, the write costs one more.
    assert metrics["caching"]["saved_usd"] == pytest.approx(1.5e-6 * DOCUMENT_TOKENS * (9 * 0.9 - 1))
    assert envelope.diagnostics["warnings"] == []
    for row in (row for batch in rows(sim) for row in batch):
        document, prompt = row["messages"][0]["content"]
        assert document["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
        assert marks(prompt) == 0


async def test_without_it_there_is_one_batch(sim: Simulator, config: MakeConfig) -> None:
    """Which caches nothing."""
    sim.batch_s = 0
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"))
    envelope = await collected(handle, sim, config)
    assert ([batch.rows for batch in sim.batches], marks(rows(sim))) == ([10], 0)
    assert documents_billed(envelope.usage) == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("prompts", "source", "model"),
    [
        (TEN[:2], DOCUMENT, "claude-sonnet-5"),
        (TEN, Source.from_text("short"), "claude-sonnet-5"),
        (TEN, Source.from_text("x" * 8_000), "claude-haiku-4-5"),
    ],
)
async def test_where_it_does_not_pay_there_is_one_batch(
    prompts: list[str], source: Source, model: str, sim: Simulator, config: MakeConfig
) -> None:
    """Two prompts, or what the model does not cache: handed in together, and the envelope says so."""
    sim.batch_s = 0
    handle = await defer_many(prompts, sources=[source], config=config("anthropic", model=model), options=WARM)
    envelope = await collected(handle, sim, config)
    assert ([batch.rows for batch in sim.batches], marks(rows(sim))) == ([len(prompts)], 0)
    assert any("had no effect" in warning for warning in envelope.diagnostics["warnings"])


async def test_a_first_that_fails_keeps_nothing_back(sim: Simulator, config: MakeConfig) -> None:
    """The rest follows all the same, and writes nothing: each of its rows would pay for it."""
    sim.batch_s = 0
    sim.fail(Fault(kind="status", status=529), operation="batch.row")
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    envelope = await collected(handle, sim, config)
    assert [marks(batch) for batch in rows(sim)] == [1, 0]
    assert (envelope.status, envelope.metrics["cache_write_tokens"]) == ("partial", 0)


async def test_a_rest_that_comes_too_late_writes_nothing(
    sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then there is nothing to read, which the envelope says."""
    monkeypatch.setattr("pollux_flows.deferred.warm._READABLE_S", -1e9)
    sim.batch_s = 0
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    envelope = await collected(handle, sim, config)
    assert [marks(batch) for batch in rows(sim)] == [1, 0]
    assert any("No prompt read" in warning for warning in envelope.diagnostics["warnings"])


async def test_the_first_is_handed_in_once(sim: Simulator, config: MakeConfig) -> None:
    """However often it is looked at; and what waits is shown as to come."""
    sim.batch_s = 3600
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM, run_key="nightly")
    again = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM, run_key="nightly")
    assert again.job_id == handle.job_id
    for _ in range(2):
        seen = await inspect_deferred(handle, config=config("anthropic"))
        assert (seen.pending, seen.is_terminal) == (10, False)
    assert [batch.rows for batch in sim.batches] == [1]


async def test_what_is_cancelled_is_not_handed_in(sim: Simulator, config: MakeConfig) -> None:
    """The rest of a job that nobody wants any more stays here."""
    sim.batch_s = 60
    handle = await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
    await cancel_deferred(handle, config=config("anthropic"))
    envelope = await collected(handle, sim, config)
    assert [batch.rows for batch in sim.batches] == [1]
    assert envelope.status == "error"


async def test_what_is_refused_at_once_leaves_no_job(sim: Simulator, config: MakeConfig) -> None:
    """Both parts were refused, so the reason is raised."""
    sim.fail(Fault(kind="status", status=400, message="refused by the test"), times=None, operation="batch.create")
    with pytest.raises(APIError, match="refused by the test"):
        await defer_many(TEN, sources=[DOCUMENT], config=config("anthropic"), options=WARM)
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
async def test_what_a_batch_cannot_do_is_refused(
    provider: ProviderName, options: Options, hint: str, sim: Simulator, config: MakeConfig
) -> None:
    """Before anything is sent, with what to do instead."""
    with pytest.raises(ConfigurationError) as caught:
        await defer_many(["a", "b"], config=config(provider), options=options)
    assert hint in str(caught.value.hint)
    assert sim.requests == []
