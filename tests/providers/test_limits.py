"""Rate limits as providers report them over HTTP, and their effect on waiting calls."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pollux_flows import Config, RetryPolicy, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.ratelimit import pace
from pollux_flows.ratelimit.limiter import limiter_of
from pollux_flows.simulator import Fault, Logged, Simulator
from tests.loopback import (
    MODELS,
    QUICK,
    MakeConfig,
    Reply,
    asked,
    every_provider,
    good,
    http,
    outcomes,
    scripted,
    until,
)

MINUTE_S = 0.5


@pytest.fixture
def short_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the minute of all limits to half a second."""
    monkeypatch.setattr(pace, "WINDOW_S", MINUTE_S)


def make_prompts(count: int, name: str = "p") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def count_concurrent(entries: list[Logged]) -> Iterator[int]:
    """Yield, for each request that arrived, how many were in progress."""
    for entry in entries:
        yield sum(other.received_at <= entry.received_at < (other.answered_at or 0) for other in entries)


# --- Refusals for too many requests -------------------------------------------------------------------------


@every_provider
@pytest.mark.parametrize("status", [429, 503])
async def test_a_refusal_halves_the_concurrency_and_answers_raise_it(provider: ProviderName, status: int) -> None:
    """The concurrency falls from sixteen to eight, and rises again after enough answers."""
    in_progress, seen_in_progress, first_round_arrived = 0, list[int](), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        """Answer once no other request arrives: polled, because no fixed delay is long enough on a busy machine."""
        nonlocal in_progress
        await first_round_arrived.wait()
        quiet_polls, count = 0, len(seen_in_progress)
        while quiet_polls < 10:
            await asyncio.sleep(0.002)
            quiet_polls, count = (quiet_polls + 1 if count == len(seen_in_progress) else 0), len(seen_in_progress)
        in_progress -= 1
        writer.write(http(good(provider)))

    def reply(_body: bytes) -> Reply:
        nonlocal in_progress
        if len(seen_in_progress) == 15:  # the last request of the first round is answered first
            seen_in_progress.append(in_progress + 1)
            first_round_arrived.set()
            return http({}, status)
        in_progress += 1
        seen_in_progress.append(in_progress)
        return answer

    async with scripted(reply, by_body=True) as server:
        config = server.config(provider, retry=QUICK, request_concurrency=16)
        envelope = await run_many(make_prompts(180), config=config)
    assert envelope.status == "ok"
    assert max(seen_in_progress[:16]) == 16
    # Eight, plus one for each round of answers since.
    assert max(seen_in_progress[16:40]) <= 12
    assert max(seen_in_progress[-40:]) > 12


@every_provider
async def test_waiting_calls_use_no_attempts_during_a_pause(provider: ProviderName) -> None:
    """The provider refuses for half a second: a hundred prompts cost a few refusals and no answer."""
    refusals = 0
    started = time.monotonic()

    def reply(_body: bytes) -> Reply:
        nonlocal refusals
        if (left := started + 0.5 - time.monotonic()) > 0:
            refusals += 1
            return http({}, 429, retry_after=f"{left + 0.01:.3f}")
        return http(good(provider))

    async with scripted(reply, by_body=True) as server:
        envelope = await run_many(make_prompts(100), config=server.config(provider, retry=QUICK, request_concurrency=4))
    assert envelope.status == "ok"
    assert 4 <= refusals <= 8


async def test_a_pause_does_not_count_against_timeout_s_of_waiting_calls(config: MakeConfig, sim: Simulator) -> None:
    """Calls that wait for longer than timeout_s are answered all the same."""
    sim.fail(Fault(status=429, retry_after=1), times=2)
    retry_policy = RetryPolicy(initial_delay_s=0.01, max_delay_s=0.02)
    results = await outcomes(
        make_prompts(6), config("openai", request_concurrency=2, timeout_s=0.8, retry=retry_policy)
    )
    # The two refused calls had no time left for a retry.
    assert [outcome.failure is None for outcome in results] == [False, False, True, True, True, True]
    entries = asked(sim)
    assert entries[2].received_at - entries[1].received_at >= 0.9


@every_provider
async def test_a_pause_of_one_account_does_not_affect_another(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """The first account waits thirty seconds, with all of its runs."""
    sim.fail(Fault(status=429, retry_after=30), times=None, contains="held")
    retry_policy = RetryPolicy(max_elapsed_s=None)
    paused_config = config(provider, request_concurrency=3, retry=retry_policy, timeout_s=100.0)
    waiting = asyncio.create_task(outcomes(make_prompts(20, "held "), paused_config))
    await until(lambda: limiter_of(paused_config)._pace.opens_at(time.monotonic(), 0) > time.monotonic() + 20)
    # A second run of the same account waits like the rest of the first.
    second_run = asyncio.create_task(run("behind", config=config(provider)))
    started = time.monotonic()
    envelope = await run_many(
        make_prompts(40, "free "), config=config(provider, api_key="another", request_concurrency=3)
    )
    assert time.monotonic() - started < 5
    assert envelope.status == "ok"
    assert not second_run.done()
    refused = [str(entry.body) for entry in asked(sim) if entry.status == 429]
    assert 3 <= len(refused) <= 5
    assert not any("behind" in str(entry.body) for entry in asked(sim))
    for task in (waiting, second_run):
        task.cancel()
    await asyncio.gather(waiting, second_run, return_exceptions=True)


# --- Rate-limit headers -------------------------------------------------------------------------------------


def make_exhausted_headers(provider: ProviderName, seconds: float) -> dict[str, str]:
    """Return this provider's headers for a used-up quota."""
    if provider == "anthropic":
        reset = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        return {"anthropic_ratelimit_input_tokens_remaining": "0", "anthropic_ratelimit_input_tokens_reset": reset}
    return {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": f"{seconds * 1000:.0f}ms"}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openrouter", "local"])
@pytest.mark.parametrize("status", [200, 429])
async def test_an_exhausted_quota_stops_requests_until_its_reset(provider: ProviderName, status: int) -> None:
    """The quota is reported with an answer or a refusal, and applies to runs that begin meanwhile, too."""
    arrived: list[float] = []

    def reply(_body: bytes) -> Reply:
        arrived.append(time.monotonic())
        if len(arrived) > 1:
            return http(good(provider))
        headers: dict[str, Any] = make_exhausted_headers(provider, 0.5)
        return http(good(provider), status, **headers)

    async with scripted(reply, by_body=True) as server:
        config = server.config(provider, request_concurrency=1, retry=QUICK)
        await outcomes(["first"], config)
        later_runs = [run("second", config=config), run_many(make_prompts(3), config=config)]
        assert [envelope.status for envelope in await asyncio.gather(*later_runs)] == ["ok", "ok"]
    assert arrived[1] - arrived[0] >= 0.45


async def test_the_quota_of_the_catalogue_does_not_limit_calls() -> None:
    """OpenRouter's catalogue has a quota of its own."""
    async with scripted(http(good("openrouter"))) as server:
        headers: dict[str, Any] = make_exhausted_headers("openrouter", 30)
        server.listing = http({"data": [{"id": MODELS["openrouter"]}]}, **headers)
        async with asyncio.timeout(5):
            await run("p", config=server.config("openrouter"))
    assert server.listings == 1


async def test_a_wrong_header_pauses_only_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer reports a quota used up for a day, and each next answer disproves it."""
    monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.05)
    headers: dict[str, Any] = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "24h0m0s"}
    async with scripted(http(good("openai"), **headers)) as server:
        started = time.monotonic()
        envelope = await run_many(make_prompts(10), config=server.config("openai", request_concurrency=1))
    assert envelope.status == "ok"
    assert 0.4 < time.monotonic() - started < 5


@every_provider
async def test_headers_with_quota_left_cause_no_pause(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    started = time.monotonic()
    await run_many(make_prompts(20), config=config(provider))
    assert time.monotonic() - started < 5
    assert len(asked(sim)) == 20


# --- Threads ------------------------------------------------------------------------------------------------


@every_provider
def test_runs_in_several_threads_share_the_concurrency_limit(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """Four event loops make three calls at a time in total."""
    sim.latency_s = 0.01
    problems: list[BaseException] = []

    def work(name: str) -> None:
        try:
            envelope = asyncio.run(run_many(make_prompts(15, name), config=config(provider, request_concurrency=3)))
            assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in make_prompts(15, name)]
        except BaseException as problem:  # noqa: BLE001 (raised after the thread has ended)
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    entries = asked(sim)
    assert len(entries) == 60
    assert max(count_concurrent(entries)) == 3


# --- Limits per minute --------------------------------------------------------------------------------------


@every_provider
@pytest.mark.usefixtures("short_minute")
async def test_requests_per_minute_includes_retries(
    provider: ProviderName, config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve prompts and two retries at six a minute take two minutes."""
    start_times: list[float] = []
    record_start = pace.Pace.started

    def note_start(self: pace.Pace, now: float) -> int:
        start_times.append(now)
        return record_start(self, now)

    monkeypatch.setattr(pace.Pace, "started", note_start)
    sim.fail(Fault(status=500), times=2)
    envelope = await run_many(make_prompts(12), config=config(provider, request_concurrency=4, requests_per_minute=6))
    assert envelope.status == "ok"
    assert len(asked(sim)) == len(start_times) == 14
    assert all(later - earlier >= MINUTE_S for earlier, later in zip(start_times, start_times[6:], strict=False))


@every_provider
async def test_requests_per_minute_does_not_count_catalogue_requests(
    provider: ProviderName, config: MakeConfig
) -> None:
    async with asyncio.timeout(5):
        assert (await run("p", config=config(provider, requests_per_minute=1))).status == "ok"


@every_provider
async def test_the_limiter_counts_the_tokens_of_the_envelope(provider: ProviderName, config: MakeConfig) -> None:
    settings = config(provider, tokens_per_minute=10**9)
    envelope = await run_many(make_prompts(5), config=settings)
    assert envelope.usage["total_tokens"] > 0
    assert limiter_of(settings)._pace._taken == envelope.usage["total_tokens"]


@pytest.mark.usefixtures("short_minute")
async def test_tokens_per_minute_counts_the_tokens_of_answers() -> None:
    """At 1,000 tokens a minute and 300 an answer, three answers fit into a minute."""
    usage: dict[str, Any] = {"usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}}
    arrived: list[float] = []

    def reply(body: bytes) -> Reply:
        assert json.loads(body)
        arrived.append(time.monotonic())
        return http(good("local", **usage))

    async with scripted(reply, by_body=True) as server:
        config: Config = server.config("local", request_concurrency=10, tokens_per_minute=1000)
        await run_many(make_prompts(8), config=config)
    assert len(arrived) == 8
    assert all(later - earlier >= MINUTE_S for earlier, later in zip(arrived, arrived[3:], strict=False))
