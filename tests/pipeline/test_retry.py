"""Retries: the number of attempts, the waits between them, and errors that are not retried."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from itertools import pairwise
from typing import Any

import pytest

from pollux_flows import APIError, RateLimitError, RetryPolicy, run, run_many
from pollux_flows.config import PROVIDERS, ProviderName
from pollux_flows.pipeline.retry import Attempts, _delay
from pollux_flows.simulator import Fault, Logged, Simulator
from tests.loopback import QUICK, MakeConfig, Reply, asked, every_provider, good, http, outcomes, scripted


def compute_waits(entries: list[Logged]) -> list[float]:
    """Return the time from each answer to the next request, by the server's clock."""
    return [later.received_at - (earlier.answered_at or 0) for earlier, later in pairwise(entries)]


def find_entries(entries: list[Logged], prompt: str) -> list[Logged]:
    """Return the requests with this prompt."""
    return [entry for entry in entries if prompt in str(entry.body)]


async def test_a_retry_waits_for_the_retry_after_of_the_provider(config: MakeConfig, sim: Simulator) -> None:
    """A call with two replies of `Retry-After: 2` makes three requests, and other calls run meanwhile.

    The test takes seconds, so all five providers are tested at once.
    """
    sim.fail(Fault(status=429, retry_after=2), times=2 * len(PROVIDERS), contains="patient")
    runs = [
        run_many(["patient", "quick"], config=config(provider, retry=RetryPolicy(), request_concurrency=1))
        for provider in PROVIDERS
    ]
    for provider, envelope in zip(PROVIDERS, await asyncio.gather(*runs), strict=True):
        entries = [entry for entry in asked(sim) if entry.provider == provider]
        patient, quick = find_entries(entries, "patient"), find_entries(entries, "quick")
        assert envelope.status == "ok"
        assert len(patient) == 3
        assert min(compute_waits(patient)) >= 2
        assert len(quick) == 1
        assert quick[0].received_at < patient[1].received_at
        call = envelope.diagnostics["calls"][0]
        assert call["attempts"] == 3
        assert call["waited_s"] >= 4


@every_provider
async def test_a_retry_after_beyond_the_longest_wait_fails_at_once(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """There is one request, and the error says when to try again."""
    sim.fail(Fault(status=429, retry_after=90), times=None)
    started = time.monotonic()
    with pytest.raises(RateLimitError) as caught:
        await run("p", config=config(provider))
    assert time.monotonic() - started < 5
    assert caught.value.retry_after_s == 90
    assert "90 seconds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@every_provider
async def test_a_retry_after_beyond_the_deadline_fails_at_once(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """A wait that would end after timeout_s does not begin."""
    sim.fail(Fault(status=503, retry_after=5), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider, timeout_s=3.0))
    assert "5 seconds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


def format_date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


async def test_a_retry_after_may_be_a_date() -> None:
    """No provider gets the retry before that date."""

    async def run_with_date(provider: ProviderName) -> tuple[float, float]:
        arrived: list[float] = []
        date = format_date_in(2)

        def reply(_body: bytes) -> Reply:
            arrived.append(time.time())
            return http({}, 429, retry_after=date) if len(arrived) == 1 else http(good(provider))

        async with scripted(reply, by_body=True) as server:
            await run("p", config=server.config(provider, retry=QUICK))
        return arrived[1], parsedate_to_datetime(date).timestamp()

    for arrived, asked_for in await asyncio.gather(*map(run_with_date, PROVIDERS)):
        assert arrived >= asked_for


GOOGLE: dict[str, Any] = {
    "error": {
        "code": 429,
        "message": "slow down",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure"},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.15s"},
        ],
    }
}
UPSTREAM = {"error": {"code": 503, "message": "gone", "availability": {"retryable": True, "retry_after": 0.15}}}
UNDER_200 = {"error": {"code": 429, "message": "slow down"}}
PLACES: list[tuple[ProviderName, bytes]] = [
    ("openai", http({}, 429, retry_after_ms="150")),
    ("anthropic", http({}, 429, retry_after_ms="150")),
    ("openai", http({}, 503, retry_after="0.15")),
    ("gemini", http(GOOGLE, 429)),
    ("openrouter", http(UPSTREAM, 503)),
    ("openrouter", http(UNDER_200, 200, retry_after="0.15")),
]


@pytest.mark.parametrize(("provider", "refusal"), PLACES)
async def test_the_wait_is_read_from_each_place_where_providers_write_it(
    provider: ProviderName, refusal: bytes
) -> None:
    """Places are headers in seconds or milliseconds, Google's RetryInfo, and OpenRouter's body, even of status 200."""
    arrived: list[float] = []

    def reply(_body: bytes) -> Reply:
        arrived.append(time.monotonic())
        return refusal if len(arrived) == 1 else http(good(provider))

    async with scripted(reply, by_body=True) as server:
        envelope = await run("p", config=server.config(provider, retry=QUICK))
    assert envelope.answers == ["fine"]
    assert arrived[1] - arrived[0] >= 0.15


NONSENSE = [
    "-5", "soon", "inf", "-inf", "nan", "1e999", "9" * 400, "Fri, 99 Xxx 2026", "Mon, 01 Jan 0001 00:00:00 +1400",
]  # fmt: skip


ABSURD: list[tuple[ProviderName, str, str]] = [(provider, "retry_after", "inf") for provider in PROVIDERS]
ABSURD += [("local", header, value) for header in ("retry_after", "retry_after_ms") for value in NONSENSE]


@pytest.mark.parametrize(("provider", "header", "value"), ABSURD)
async def test_an_invalid_retry_after_is_ignored(provider: ProviderName, header: str, value: str) -> None:
    """The wait is then that of the retry policy."""
    replies = [http({}, 429, **{header: value}), http(good(provider))]
    async with scripted(lambda _body: replies.pop(0), by_body=True) as server:
        (made,) = await outcomes(["p"], server.config(provider, retry=QUICK))
    assert made.answer is not None
    assert made.attempts == 2
    assert made.waited_s < 1


@every_provider
@pytest.mark.parametrize("value", ["100000", "1e15"])
async def test_a_very_long_retry_after_fails_at_once(provider: ProviderName, value: str) -> None:
    """The outcome names the wait, and comes back equal from JSON."""
    async with scripted(http({}, 429, retry_after=value)) as server:
        (made,) = await outcomes(["p"], server.config(provider, retry=QUICK))
    assert made.failure is not None
    assert made.failure.retry_after_s == float(value)
    assert made.attempts == 1
    assert type(made).model_validate_json(made.model_dump_json()) == made


@every_provider
@pytest.mark.parametrize("kind", ["drop", "drop_after", "malformed"])
async def test_a_call_whose_answer_was_lost_is_retried_with_a_warning(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    """The warning says that the lost answer may have been billed."""
    sim.fail(Fault(kind=kind))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "ok"
    (call,) = envelope.diagnostics["calls"]
    assert (call["attempts"], call["unknown_attempts"]) == (2, 1)
    (warning,) = envelope.diagnostics["warnings"]
    assert "billed" in warning


@every_provider
async def test_a_call_whose_answers_are_all_lost_has_an_unknown_outcome(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(kind="drop"), times=None)
    (made,) = await outcomes(["p"], config(provider))
    assert made.failure is not None
    assert made.failure.outcome_unknown is True
    assert made.failure.error_category == "network"
    assert (made.attempts, made.unknown_attempts) == (3, 3)
    assert len(asked(sim)) == 3


@every_provider
async def test_max_attempts_counts_the_first_attempt(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    sim.fail(Fault(status=503), times=None)
    with pytest.raises(APIError):
        await run("p", config=config(provider, retry=RetryPolicy(max_attempts=1)))
    assert len(asked(sim)) == 1


async def test_max_elapsed_s_bounds_the_waits_of_a_call(config: MakeConfig, sim: Simulator) -> None:
    """Only the sum of the waits counts, not the time that attempts take."""
    sim.fail(Fault(status=503, delay_s=0.15), times=None)
    policy = RetryPolicy(max_attempts=10, initial_delay_s=0.1, backoff_multiplier=1.0, jitter=False, max_elapsed_s=0.25)
    (made,) = await outcomes(["p"], config("openai", retry=policy))
    assert made.attempts == 3
    assert made.waited_s <= 0.25


async def test_waits_grow_up_to_max_delay_s(config: MakeConfig, sim: Simulator) -> None:
    """With a multiplier of 2 and a max_delay_s of 0.1, the waits are 0.05, 0.1 and 0.1 s."""
    sim.fail(Fault(status=503), times=3)
    policy = RetryPolicy(max_attempts=4, initial_delay_s=0.05, backoff_multiplier=2.0, max_delay_s=0.1, jitter=False)
    (made,) = await outcomes(["p"], config("openai", retry=policy))
    assert made.waited_s == 0.25
    assert all(wait >= least for wait, least in zip(compute_waits(asked(sim)), [0.05, 0.1, 0.1], strict=True))


def test_jitter_never_shortens_the_retry_after_of_the_provider() -> None:
    error = APIError("later", retryable=True, retry_after_s=1.5)
    attempts: Attempts[None] = Attempts(error=error, number=1)
    assert all(_delay(RetryPolicy(), attempts) >= 1.5 for _ in range(100))
