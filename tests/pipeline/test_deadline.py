"""Time is bounded: by timeout_s for each call, by whoever cancels for all of them."""

from __future__ import annotations

import asyncio
import time

import pytest

from pollux_flows import APIError, RetryPolicy, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import MakeConfig, asked, every_provider, good, http, outcomes, scripted, until


@every_provider
async def test_a_server_that_hangs_is_left(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """No answer within timeout_s: the error says so, and that the work may have been done. It is not asked again."""
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
async def test_a_server_that_drips_is_left(provider: ProviderName) -> None:
    """A byte now and then keeps every SDK's own timeout asleep; ours is for the whole call."""
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
    """Each attempt is quick enough; together they are not."""
    sim.fail(Fault(status=503, delay_s=0.1), times=None)
    policy = RetryPolicy(max_attempts=50, initial_delay_s=0.01, max_delay_s=0.01)
    started = time.monotonic()
    with pytest.raises(APIError):
        await run("p", config=config(provider, timeout_s=0.5, retry=policy))
    assert time.monotonic() - started < 5
    assert 2 <= len(asked(sim)) <= 5


async def test_standing_in_line_is_not_the_providers_time(config: MakeConfig, sim: Simulator) -> None:
    """With one slot, eight calls of 0.1 s each take 0.8 s; none of them takes longer than its 0.5 s."""
    sim.latency_s = 0.1
    envelope = await run_many(
        [f"p{n}" for n in range(8)], config=config("openai", request_concurrency=1, timeout_s=0.5)
    )
    assert envelope.status == "ok"


async def test_who_ran_out_of_time_in_line_says_what_went_wrong_before(config: MakeConfig, sim: Simulator) -> None:
    """It failed, waited, and found no slot in time: that is told, and nothing is made up about an unsent request."""
    sim.fail(Fault(status=503, message="too busy"), contains="unlucky")
    sim.fail(Fault(kind="slow", delay_s=0.8), contains="long one")
    one_slot = config("openai", request_concurrency=1, timeout_s=0.5)
    started = asyncio.create_task(outcomes(["unlucky", "long one"], one_slot))
    unlucky, long_one = await started
    assert long_one.failure is not None
    assert unlucky.failure is not None
    assert "too busy" in unlucky.failure.message
    assert (unlucky.attempts, unlucky.unknown_attempts) == (1, 0)


@pytest.mark.parametrize("provider", ["gemini", "local"])  # an SDK's, and our own
async def test_a_slow_call_hurts_no_other(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Its siblings keep their answers."""
    sim.fail(Fault(kind="hang"), contains="hangs")
    fast, slow = await outcomes(["fast", "hangs"], config(provider, timeout_s=0.4))
    assert fast.answer is not None
    assert slow.failure is not None


@every_provider
async def test_cancelling_a_run_is_prompt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """All calls are given up at once; those that had not begun never begin."""
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


async def test_cancelling_wakes_those_that_wait(config: MakeConfig, sim: Simulator) -> None:
    """A call that was told to come back in ten seconds does not sleep through a cancellation."""
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
async def test_a_timeout_around_a_run_is_the_callers(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """asyncio.timeout outside means what it means anywhere: TimeoutError there, no APIError of ours."""
    sim.fail(Fault(kind="hang"), times=None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await run("p", config=config(provider))
