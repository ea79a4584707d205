"""What a provider says about limits, over HTTP, and what becomes of those who wait."""

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
    """A minute that a test can bear."""
    monkeypatch.setattr(pace, "WINDOW_S", MINUTE_S)


def prompts(count: int, name: str = "p") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def at_once(entries: list[Logged]) -> Iterator[int]:
    """With each request that arrived: how many were under way."""
    for entry in entries:
        yield sum(other.received_at <= entry.received_at < (other.answered_at or 0) for other in entries)


# --- Too many requests --------------------------------------------------------------------------------------


@every_provider
@pytest.mark.parametrize("status", [429, 503])
async def test_one_refusal_halves_and_answers_bring_it_back(provider: ProviderName, status: int) -> None:
    """Sixteen at once, after a refusal eight, and sixteen again when enough was answered."""
    now, under_way, all_there = 0, list[int](), asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        """When nobody else comes, which is seen by looking often: on a busy machine no time is long enough."""
        nonlocal now
        await all_there.wait()
        quiet, seen = 0, len(under_way)
        while quiet < 10:
            await asyncio.sleep(0.002)
            quiet, seen = (quiet + 1 if seen == len(under_way) else 0), len(under_way)
        now -= 1
        writer.write(http(good(provider)))

    def reply(_body: bytes) -> Reply:
        nonlocal now
        if len(under_way) == 15:  # the last of the first round is the first to hear
            under_way.append(now + 1)
            all_there.set()
            return http({}, status)
        now += 1
        under_way.append(now)
        return answer

    async with scripted(reply, by_body=True) as server:
        config = server.config(provider, retry=QUICK, request_concurrency=16)
        envelope = await run_many(prompts(180), config=config)
    assert envelope.status == "ok"
    assert max(under_way[:16]) == 16
    # Eight, and one more for each round of answers since.
    assert max(under_way[16:40]) <= 12
    assert max(under_way[-40:]) > 12


@every_provider
async def test_a_queue_does_not_burn_its_attempts_on_an_account_that_is_held(provider: ProviderName) -> None:
    """Refused for half a second, with three attempts a prompt: a hundred prompts cost a few refusals and no answer."""
    refusals = 0
    began = time.monotonic()

    def reply(_body: bytes) -> Reply:
        nonlocal refusals
        if (left := began + 0.5 - time.monotonic()) > 0:
            refusals += 1
            return http({}, 429, retry_after=f"{left + 0.01:.3f}")
        return http(good(provider))

    async with scripted(reply, by_body=True) as server:
        envelope = await run_many(prompts(100), config=server.config(provider, retry=QUICK, request_concurrency=4))
    assert envelope.status == "ok"
    assert 4 <= refusals <= 8


async def test_a_pause_is_not_the_time_of_those_who_wait(config: MakeConfig, sim: Simulator) -> None:
    """Held up for longer than a call may take, they are answered all the same."""
    sim.fail(Fault(status=429, retry_after=1), times=2)
    patient = RetryPolicy(initial_delay_s=0.01, max_delay_s=0.02)
    made = await outcomes(prompts(6), config("openai", request_concurrency=2, timeout_s=0.8, retry=patient))
    # The two that were refused had no time to come back.
    assert [outcome.failure is None for outcome in made] == [False, False, True, True, True, True]
    entries = asked(sim)
    assert entries[2].received_at - entries[1].received_at >= 0.9


@every_provider
async def test_one_account_waits_and_the_other_goes_on(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """One is told to come back in thirty seconds: those behind it stand still, the other account notices nothing."""
    sim.fail(Fault(status=429, retry_after=30), times=None, contains="held")
    patient = RetryPolicy(max_elapsed_s=None)
    held_config = config(provider, request_concurrency=3, retry=patient, timeout_s=100.0)
    held = asyncio.create_task(outcomes(prompts(20, "held "), held_config))
    await until(lambda: limiter_of(held_config)._pace.opens_at(time.monotonic(), 0) > time.monotonic() + 20)
    # A second run of the same account waits like the rest of the first.
    behind = asyncio.create_task(run("behind", config=config(provider)))
    started = time.monotonic()
    envelope = await run_many(prompts(40, "free "), config=config(provider, api_key="another", request_concurrency=3))
    assert time.monotonic() - started < 5
    assert envelope.status == "ok"
    assert not behind.done()
    told = [str(entry.body) for entry in asked(sim) if entry.status == 429]
    assert 3 <= len(told) <= 5
    assert not any("behind" in str(entry.body) for entry in asked(sim))
    for task in (held, behind):
        task.cancel()
    await asyncio.gather(held, behind, return_exceptions=True)


# --- What the headers say -----------------------------------------------------------------------------------


def used_up(provider: ProviderName, seconds: float) -> dict[str, str]:
    """Nothing is left, as this provider says it."""
    if provider == "anthropic":
        reset = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        return {"anthropic_ratelimit_input_tokens_remaining": "0", "anthropic_ratelimit_input_tokens_reset": reset}
    return {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": f"{seconds * 1000:.0f}ms"}


@pytest.mark.parametrize("provider", ["openai", "anthropic", "openrouter", "local"])
@pytest.mark.parametrize("status", [200, 429])
async def test_nothing_left_is_nothing_asked(provider: ProviderName, status: int) -> None:
    """The answer, or the refusal, that says so is the last until the reset; also for a run that begins meanwhile."""
    arrived: list[float] = []

    def reply(_body: bytes) -> Reply:
        arrived.append(time.monotonic())
        if len(arrived) > 1:
            return http(good(provider))
        headers: dict[str, Any] = used_up(provider, 0.5)
        return http(good(provider), status, **headers)

    async with scripted(reply, by_body=True) as server:
        config = server.config(provider, request_concurrency=1, retry=QUICK)
        await outcomes(["first"], config)
        again = [run("second", config=config), run_many(prompts(3), config=config)]
        assert [envelope.status for envelope in await asyncio.gather(*again)] == ["ok", "ok"]
    assert arrived[1] - arrived[0] >= 0.45


async def test_what_is_left_for_looking_is_another_matter() -> None:
    """OpenRouter's catalogue may be read no more for now; asking goes on."""
    async with scripted(http(good("openrouter"))) as server:
        headers: dict[str, Any] = used_up("openrouter", 30)
        server.listing = http({"data": [{"id": MODELS["openrouter"]}]}, **headers)
        async with asyncio.timeout(5):
            await run("p", config=server.config("openrouter"))
    assert server.listings == 1


async def test_a_header_that_lies_holds_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always nothing left, for a day: each answer proves it wrong, and each pause has an end."""
    monkeypatch.setattr(pace, "LONGEST_PAUSE_S", 0.05)
    headers: dict[str, Any] = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "24h0m0s"}
    async with scripted(http(good("openai"), **headers)) as server:
        started = time.monotonic()
        envelope = await run_many(prompts(10), config=server.config("openai", request_concurrency=1))
    assert envelope.status == "ok"
    assert 0.4 < time.monotonic() - started < 5


@every_provider
async def test_what_the_simulators_headers_say_holds_nobody(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """There is plenty left, and it says so with each answer."""
    started = time.monotonic()
    await run_many(prompts(20), config=config(provider))
    assert time.monotonic() - started < 5
    assert len(asked(sim)) == 20


# --- Threads ------------------------------------------------------------------------------------------------


@every_provider
def test_flows_in_many_threads_are_one_account(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Four event loops, three calls at once in all, everything answered."""
    sim.latency_s = 0.01
    problems: list[BaseException] = []

    def work(name: str) -> None:
        try:
            envelope = asyncio.run(run_many(prompts(15, name), config=config(provider, request_concurrency=3)))
            assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in prompts(15, name)]
        except BaseException as problem:  # noqa: BLE001 (a thread tells nobody otherwise)
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    entries = asked(sim)
    assert len(entries) == 60
    assert max(at_once(entries)) == 3


# --- So many a minute ---------------------------------------------------------------------------------------


@every_provider
@pytest.mark.usefixtures("short_minute")
async def test_requests_a_minute_are_counted_where_they_go_out(
    provider: ProviderName, config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six a minute: twelve prompts and two retries are fourteen requests, and that takes two minutes."""
    went_out: list[float] = []
    start = pace.Pace.started

    def noting(self: pace.Pace, now: float) -> int:
        went_out.append(now)
        return start(self, now)

    monkeypatch.setattr(pace.Pace, "started", noting)
    sim.fail(Fault(status=500), times=2)
    envelope = await run_many(prompts(12), config=config(provider, request_concurrency=4, requests_per_minute=6))
    assert envelope.status == "ok"
    assert len(asked(sim)) == len(went_out) == 14
    assert all(later - earlier >= MINUTE_S for earlier, later in zip(went_out, went_out[6:], strict=False))


@every_provider
async def test_looking_before_asking_is_not_a_request(provider: ProviderName, config: MakeConfig) -> None:
    """One a minute is enough for one prompt, checks included."""
    async with asyncio.timeout(5):
        assert (await run("p", config=config(provider, requests_per_minute=1))).status == "ok"


@every_provider
async def test_what_answers_took_is_known_to_the_account(provider: ProviderName, config: MakeConfig) -> None:
    """As the envelope tells it."""
    settings = config(provider, tokens_per_minute=10**9)
    envelope = await run_many(prompts(5), config=settings)
    assert envelope.usage["total_tokens"] > 0
    assert limiter_of(settings)._pace._taken == envelope.usage["total_tokens"]


@pytest.mark.usefixtures("short_minute")
async def test_tokens_a_minute_are_what_the_answers_took() -> None:
    """A thousand a minute, three hundred an answer: three a minute."""
    usage: dict[str, Any] = {"usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}}
    arrived: list[float] = []

    def reply(body: bytes) -> Reply:
        assert json.loads(body)
        arrived.append(time.monotonic())
        return http(good("local", **usage))

    async with scripted(reply, by_body=True) as server:
        config: Config = server.config("local", request_concurrency=10, tokens_per_minute=1000)
        await run_many(prompts(8), config=config)
    assert len(arrived) == 8
    assert all(later - earlier >= MINUTE_S for earlier, later in zip(arrived, arrived[3:], strict=False))
