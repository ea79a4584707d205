"""Deadlines and cancellation: timeout_s bounds each call, and a cancelled run ends at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from pollux_flows import APIError, RetryPolicy, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MakeConfig, asked, every_provider, good, http, outcomes, scripted, until


@every_provider
async def test_a_call_to_a_hanging_server_times_out(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """The error names timeout_s and says that the outcome is unknown. The call is not repeated."""
    sim.fail(Fault(kind="hang"), times=None)
    started = time.monotonic()
    with pytest.raises(APIError, match=r"within 0\.2 seconds") as caught:
        await run("p", config=config(provider, timeout_s=0.2))
    assert 0.2 <= time.monotonic() - started < 5
    error = caught.value
    assert (error.outcome_unknown, error.retryable, error.error_category) == (True, False, "network")
    assert (error.provider, error.phase, error.call_idx) == (provider, "generate", 0)
    assert "timeout_s" in str(error.hint)
    assert len(asked(sim)) == 1


@every_provider
async def test_a_call_to_a_server_that_sends_slowly_times_out(provider: ProviderName) -> None:
    """The timeouts of the SDKs restart with each byte; timeout_s bounds the whole call."""
    answer = http(good(provider))

    async def drip(writer: asyncio.StreamWriter) -> None:
        for place in range(len(answer)):
            writer.write(answer[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0.05)

    async with scripted(lambda _body: drip, by_body=True) as server:
        started = time.monotonic()
        (made,) = await outcomes(["p"], server.config(provider, timeout_s=0.2))
        assert time.monotonic() - started < 5
    assert made.failure is not None
    assert made.failure.outcome_unknown is True


@pytest.mark.parametrize("provider", ["gemini", "local"])  # an SDK's, and our own
async def test_the_deadline_covers_all_attempts(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """No single attempt takes longer than timeout_s, but all of them together do."""
    sim.fail(Fault(status=503, delay_s=0.1), times=None)
    policy = RetryPolicy(max_attempts=50, initial_delay_s=0.01, max_delay_s=0.01)
    started = time.monotonic()
    with pytest.raises(APIError):
        await run("p", config=config(provider, timeout_s=0.5, retry=policy))
    assert time.monotonic() - started < 5
    assert 2 <= len(asked(sim)) <= 5


async def test_waiting_for_a_free_slot_does_not_count_against_timeout_s(config: MakeConfig, sim: Simulator) -> None:
    """With one slot, eight calls of 0.1 s each take 0.8 s, but none of them takes longer than timeout_s, 0.5 s."""
    sim.latency_s = 0.1
    envelope = await run_many(
        [f"p{n}" for n in range(8)], config=config("openai", request_concurrency=1, timeout_s=0.5)
    )
    assert envelope.status == "ok"


async def test_a_timeout_while_a_retry_waits_for_a_slot_reports_the_error_of_the_attempt(
    config: MakeConfig, sim: Simulator
) -> None:
    """The retry was not sent, so its outcome is not reported as unknown."""
    sim.fail(Fault(status=503, message="too busy"), contains="unlucky")
    sim.fail(Fault(kind="slow", delay_s=0.8), contains="long one")
    one_slot = config("openai", request_concurrency=1, timeout_s=0.5)
    running = asyncio.create_task(outcomes(["unlucky", "long one"], one_slot))
    unlucky, long_one = await running
    assert long_one.failure is not None
    assert unlucky.failure is not None
    assert "too busy" in unlucky.failure.message
    assert (unlucky.attempts, unlucky.unknown_attempts) == (1, 0)


@pytest.mark.parametrize("provider", ["gemini", "local"])  # an SDK's, and our own
async def test_a_timeout_of_one_call_does_not_affect_the_others(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(kind="hang"), contains="hangs")
    fast, slow = await outcomes(["fast", "hangs"], config(provider, timeout_s=0.4))
    assert fast.answer is not None
    assert slow.failure is not None


@every_provider
async def test_a_cancelled_run_ends_promptly(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Calls under way are cancelled at once, and the other calls never start."""
    sim.fail(Fault(kind="hang"), times=None)
    prompts = [f"p{n}" for n in range(10)]
    running = asyncio.create_task(run_many(prompts, config=config(provider, request_concurrency=3)))
    await until(lambda: len(asked(sim)) == 3)
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 1
    await asyncio.sleep(0.05)
    assert len(asked(sim)) == 3


async def test_a_cancelled_run_does_not_wait_for_a_retry(config: MakeConfig, sim: Simulator) -> None:
    """A call with a Retry-After of ten seconds is cancelled while it waits."""
    sim.fail(Fault(status=429, retry_after=10), times=None)
    running = asyncio.create_task(run("p", config=config("openai")))
    await until(lambda: asked(sim) and asked(sim)[0].status == 429)
    await asyncio.sleep(0.05)
    running.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 1


@every_provider
async def test_a_timeout_around_a_run_raises_timeout_error(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """asyncio.timeout around a run is not turned into an APIError."""
    sim.fail(Fault(kind="hang"), times=None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await run("p", config=config(provider))
