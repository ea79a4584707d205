"""One retry layer: how often, when, and when not."""

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


def waits(entries: list[Logged]) -> list[float]:
    """From each answer to the next request, on the server's clock."""
    return [later.received_at - (earlier.answered_at or 0) for earlier, later in pairwise(entries)]


def about(entries: list[Logged], prompt: str) -> list[Logged]:
    return [entry for entry in entries if prompt in str(entry.body)]


async def test_a_provider_is_given_the_time_it_asks_for(config: MakeConfig, sim: Simulator) -> None:
    """Told twice to come back in two seconds, a call makes three requests, and lets another through meanwhile.

    On all five providers, side by side, since it takes its time.
    """
    sim.fail(Fault(status=429, retry_after=2), times=2 * len(PROVIDERS), contains="patient")
    runs = [
        run_many(["patient", "quick"], config=config(provider, retry=RetryPolicy(), request_concurrency=1))
        for provider in PROVIDERS
    ]
    for provider, envelope in zip(PROVIDERS, await asyncio.gather(*runs), strict=True):
        entries = [entry for entry in asked(sim) if entry.provider == provider]
        patient, quick = about(entries, "patient"), about(entries, "quick")
        assert envelope.status == "ok"
        assert len(patient) == 3
        assert min(waits(patient)) >= 2
        assert len(quick) == 1
        assert quick[0].received_at < patient[1].received_at
        told = envelope.diagnostics["calls"][0]
        assert told["attempts"] == 3
        assert told["waited_s"] >= 4


@every_provider
async def test_more_patience_than_there_is_fails_at_once(
    provider: ProviderName, config: MakeConfig, sim: Simulator
) -> None:
    """One request, and an error that says when to come back."""
    sim.fail(Fault(status=429, retry_after=90), times=None)
    started = time.monotonic()
    with pytest.raises(RateLimitError) as caught:
        await run("p", config=config(provider))
    assert time.monotonic() - started < 5
    assert caught.value.retry_after_s == 90
    assert "90 seconds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


@every_provider
async def test_the_deadline_bounds_patience_too(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """A wait that would outlast timeout_s is not begun."""
    sim.fail(Fault(status=503, retry_after=5), times=None)
    with pytest.raises(APIError) as caught:
        await run("p", config=config(provider, timeout_s=3.0))
    assert "5 seconds" in str(caught.value.hint)
    assert len(asked(sim)) == 1


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


async def test_a_date_is_a_time_to_come_back() -> None:
    """Retry-After may be a date. Never earlier than it says, on any provider."""

    async def come_back(provider: ProviderName) -> tuple[float, float]:
        arrived: list[float] = []
        date = in_seconds(2)

        def reply(_body: bytes) -> Reply:
            arrived.append(time.time())
            return http({}, 429, retry_after=date) if len(arrived) == 1 else http(good(provider))

        async with scripted(reply, by_body=True) as server:
            await run("p", config=server.config(provider, retry=QUICK))
        return arrived[1], parsedate_to_datetime(date).timestamp()

    for arrived, asked_for in await asyncio.gather(*map(come_back, PROVIDERS)):
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
async def test_wherever_it_is_written_it_is_read(provider: ProviderName, refusal: bytes) -> None:
    """In milliseconds, in a header, in Google's RetryInfo, in OpenRouter's body, beside an error under HTTP 200."""
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
async def test_an_absurd_wait_is_no_wait(provider: ProviderName, header: str, value: str) -> None:
    """What is no length of time is not obeyed: our own back-off applies."""
    replies = [http({}, 429, **{header: value}), http(good(provider))]
    async with scripted(lambda _body: replies.pop(0), by_body=True) as server:
        (made,) = await outcomes(["p"], server.config(provider, retry=QUICK))
    assert made.answer is not None
    assert made.attempts == 2
    assert made.waited_s < 1


@every_provider
@pytest.mark.parametrize("value", ["100000", "1e15"])
async def test_a_wait_without_end_is_not_begun(provider: ProviderName, value: str) -> None:
    """The outcome says how long it would have been, and can be written down."""
    async with scripted(http({}, 429, retry_after=value)) as server:
        (made,) = await outcomes(["p"], server.config(provider, retry=QUICK))
    assert made.failure is not None
    assert made.failure.retry_after_s == float(value)
    assert made.attempts == 1
    assert type(made).model_validate_json(made.model_dump_json()) == made


@every_provider
@pytest.mark.parametrize("kind", ["drop", "drop_after", "malformed"])
async def test_a_lost_answer_is_asked_for_again_and_told(
    provider: ProviderName, kind: str, config: MakeConfig, sim: Simulator
) -> None:
    """Whether it was billed nobody knows: the answer comes with a warning that says so."""
    sim.fail(Fault(kind=kind))
    envelope = await run("p", config=config(provider))
    assert envelope.status == "ok"
    (told,) = envelope.diagnostics["calls"]
    assert (told["attempts"], told["unknown_attempts"]) == (2, 1)
    (warning,) = envelope.diagnostics["warnings"]
    assert "billed" in warning


@every_provider
async def test_an_answer_that_stays_lost_is_unknown(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """Not failed, not done: the error says that nobody knows."""
    sim.fail(Fault(kind="drop"), times=None)
    (made,) = await outcomes(["p"], config(provider))
    assert made.failure is not None
    assert made.failure.outcome_unknown is True
    assert made.failure.error_category == "network"
    assert (made.attempts, made.unknown_attempts) == (3, 3)
    assert len(asked(sim)) == 3


@every_provider
async def test_one_attempt_is_one_attempt(provider: ProviderName, config: MakeConfig, sim: Simulator) -> None:
    """max_attempts counts the first."""
    sim.fail(Fault(status=503), times=None)
    with pytest.raises(APIError):
        await run("p", config=config(provider, retry=RetryPolicy(max_attempts=1)))
    assert len(asked(sim)) == 1


async def test_waiting_has_a_bound_of_its_own(config: MakeConfig, sim: Simulator) -> None:
    """max_elapsed_s bounds all waits of a call together, not the time that answers take."""
    sim.fail(Fault(status=503, delay_s=0.15), times=None)
    policy = RetryPolicy(max_attempts=10, initial_delay_s=0.1, backoff_multiplier=1.0, jitter=False, max_elapsed_s=0.25)
    (made,) = await outcomes(["p"], config("openai", retry=policy))
    assert made.attempts == 3
    assert made.waited_s <= 0.25


async def test_each_wait_is_longer_up_to_the_longest(config: MakeConfig, sim: Simulator) -> None:
    """0.05, then twice that, then no longer, since max_delay_s says so."""
    sim.fail(Fault(status=503), times=3)
    policy = RetryPolicy(max_attempts=4, initial_delay_s=0.05, backoff_multiplier=2.0, max_delay_s=0.1, jitter=False)
    (made,) = await outcomes(["p"], config("openai", retry=policy))
    assert made.waited_s == 0.25
    assert all(waited >= least for waited, least in zip(waits(asked(sim)), [0.05, 0.1, 0.1], strict=True))


def test_jitter_never_undercuts_what_was_asked() -> None:
    """Our own wait is random; the provider's is not."""
    error = APIError("later", retryable=True, retry_after_s=1.5)
    attempts: Attempts[None] = Attempts(error=error, number=1)
    assert all(_delay(RetryPolicy(), attempts) >= 1.5 for _ in range(100))
