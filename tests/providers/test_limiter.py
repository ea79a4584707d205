"""The limiter: turns are handed out in order of arrival across threads and event loops, and no turn is lost."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from pollux_flows import APIError, Config, ConfigurationError, RateLimitError
from pollux_flows.config import ProviderName
from pollux_flows.ratelimit import limiter as limiters
from pollux_flows.ratelimit.limiter import Limiter, limiter_of
from pollux_flows.ratelimit.pace import WINDOW_S, Demand
from tests.loopback import KEY


class AlarmClock:
    """A clock that a test moves, and that rings its alarms on the way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._alarms: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def set_alarm(self, seconds: float, ring: Callable[[], None]) -> None:
        self._alarms.append((self.now + seconds, ring))

    async def move(self, seconds: float) -> None:
        goal = self.now + seconds
        while due := [alarm for alarm in self._alarms if alarm[0] <= goal]:
            alarm = min(due, key=lambda each: each[0])
            self._alarms.remove(alarm)
            self.now = alarm[0]
            alarm[1]()
            await settle()
        self.now = goal


@pytest.fixture
def clock() -> AlarmClock:
    return AlarmClock()


def make_limiter(demand: Demand, clock: AlarmClock | None = None) -> Limiter:
    limiter = Limiter(clock, clock.set_alarm) if clock else Limiter()
    limiter.join(demand)
    return limiter


async def settle() -> None:
    """Let every task that can continue do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def run_in_threads(works: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run each coroutine in a thread with its own event loop, and raise the first problem here."""
    problems: list[BaseException] = []

    def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(work())
        except BaseException as problem:  # noqa: BLE001 (raised after the thread has ended)
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert problems == []


def assert_no_turn_is_lost(limiter: Limiter) -> None:
    """Assert that all turns have been returned, no waiter is left, and a new waiter gets a turn at once."""
    assert limiter._held == 0
    assert not limiter._waiting

    async def take_a_turn() -> None:
        async with asyncio.timeout(1):
            await limiter.acquire()
        limiter.release()

    asyncio.run(take_a_turn())


# --- Order --------------------------------------------------------------------------------------------------


async def test_turns_are_handed_out_in_order_of_arrival() -> None:
    limiter, order = make_limiter(Demand(1)), []

    async def take_turn(number: int) -> None:
        await limiter.acquire()
        order.append(number)
        await asyncio.sleep(0)
        limiter.release()

    await asyncio.gather(*map(take_turn, range(100)))
    assert order == list(range(100))


async def test_a_returned_turn_goes_to_the_first_waiter() -> None:
    """A task that asks for a turn before the waiter runs does not overtake it."""
    limiter = make_limiter(Demand(1))
    await limiter.acquire()
    first = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    second = asyncio.create_task(limiter.acquire())
    await settle()
    assert (first.done(), second.done()) == (True, False)
    limiter.release()
    await second
    limiter.release()


async def test_a_turn_after_a_pause_goes_to_the_first_waiter(clock: AlarmClock) -> None:
    """A task that asks for a turn before the alarm rings does not overtake the waiter."""
    limiter = make_limiter(Demand(1), clock)
    limiter.used_up(for_s=20)
    first = asyncio.create_task(limiter.acquire())
    await settle()
    clock.now += 20
    second = asyncio.create_task(limiter.acquire())
    await settle()
    assert (first.done(), second.done()) == (True, False)
    limiter.release()
    await second


def test_event_loops_of_several_threads_share_the_turns() -> None:
    """Six event loops make 600 calls with three turns."""
    limiter, lock = make_limiter(Demand(3)), threading.Lock()
    now = most = done = 0

    async def make_call() -> None:
        nonlocal now, most, done
        await limiter.acquire()
        with lock:
            now += 1
            most = max(most, now)
        await asyncio.sleep(0.001)
        with lock:
            now -= 1
            done += 1
        limiter.release()

    async def work() -> None:
        await asyncio.gather(*(make_call() for _ in range(100)))

    run_in_threads([work] * 6)
    assert (most, done) == (3, 600)
    assert_no_turn_is_lost(limiter)


# --- Cancellation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_many_cancellations_lose_no_turn(seed: int) -> None:
    """Tasks are cancelled before, while and after they get a turn."""
    chance = random.Random(seed)  # noqa: S311 (a seed makes it reproducible)
    limiter = make_limiter(Demand(chance.randint(1, 5)))
    concurrent = most = 0

    async def make_call() -> None:
        nonlocal concurrent, most
        await limiter.acquire()
        concurrent += 1
        most = max(most, concurrent)
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        finally:
            concurrent -= 1
            limiter.release()

    tasks = [asyncio.create_task(make_call()) for _ in range(200)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        for task in chance.sample(tasks, 3):
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 5
    await asyncio.to_thread(assert_no_turn_is_lost, limiter)


@pytest.mark.parametrize("seed", range(5))
def test_many_cancellations_in_several_threads_lose_no_turn(seed: int) -> None:
    """A turn may be on its way from one thread when the other cancels."""
    limiter = make_limiter(Demand(2))

    def make_work(number: int) -> Callable[[], Coroutine[Any, Any, None]]:
        chance = random.Random(seed * 100 + number)  # noqa: S311 (a seed makes it reproducible)

        async def make_call() -> None:
            await limiter.acquire()
            try:
                await asyncio.sleep(0)
            finally:
                limiter.release()

        async def work() -> None:
            for _ in range(30):
                tasks = [asyncio.create_task(make_call()) for _ in range(10)]
                await asyncio.sleep(chance.choice([0, 0, 0.0005]))
                for task in chance.sample(tasks, 7):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return work

    run_in_threads([make_work(number) for number in range(4)])
    assert_no_turn_is_lost(limiter)


async def test_a_turn_handed_to_a_task_that_is_cancelled_goes_to_the_next() -> None:
    limiter = make_limiter(Demand(1))
    await limiter.acquire()
    unlucky = asyncio.create_task(limiter.acquire())
    next_one = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    async with asyncio.timeout(1):
        await next_one
    limiter.release()
    await asyncio.to_thread(assert_no_turn_is_lost, limiter)


# --- Closed event loops -------------------------------------------------------------------------------------


def wait_in_closed_loop(limiter: Limiter) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]:
    """Return an event loop that was closed while one of its tasks waited for a turn, and that task."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(limiter.acquire())
    loop.run_until_complete(settle())
    assert len(limiter._waiting) == 1
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return loop, task


async def test_a_waiter_of_a_closed_loop_is_skipped() -> None:
    """The task is still referenced, so the garbage collector does not end it."""
    limiter = make_limiter(Demand(1))
    await limiter.acquire()
    _loop, task = await asyncio.to_thread(wait_in_closed_loop, limiter)
    next_task = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    async with asyncio.timeout(1):
        await next_task
    limiter.release()
    assert not task.done()
    await asyncio.to_thread(assert_no_turn_is_lost, limiter)


async def test_an_alarm_reaches_waiters_behind_one_of_a_closed_loop(clock: AlarmClock) -> None:
    """The waiter of the closed loop is first in line until the minute is over."""
    limiter = make_limiter(Demand(5, requests_per_minute=1), clock)
    await limiter.acquire()
    limiter.ended(limiter.started(), None, None)
    limiter.release()
    _loop, task = await asyncio.to_thread(wait_in_closed_loop, limiter)
    next_task = asyncio.create_task(limiter.acquire())
    await clock.move(WINDOW_S)
    async with asyncio.timeout(1):
        await next_task
    assert not task.done()


def test_a_turn_held_in_a_closed_loop_returns_at_garbage_collection() -> None:
    """The garbage collector closes the coroutine that held it."""
    limiter = make_limiter(Demand(1))

    async def hold() -> None:
        await limiter.acquire()
        try:
            await asyncio.Event().wait()
        finally:
            limiter.release()

    loop = asyncio.new_event_loop()
    task = loop.create_task(hold())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(settle())
    loop.close()
    assert limiter._held == 1
    del task, loop
    gc.collect()
    assert_no_turn_is_lost(limiter)


def test_a_turn_can_return_while_another_is_handed_out() -> None:
    """The garbage collector may close the holder of a turn at any moment."""
    abandoned_tasks: list[Any] = []

    def collect_garbage() -> float:
        if abandoned_tasks:
            abandoned_tasks.clear()
            gc.collect()
        return 0.0

    limiter = Limiter(collect_garbage)
    limiter.join(Demand(2))

    async def hold() -> None:
        await limiter.acquire()
        try:
            await asyncio.Event().wait()
        finally:
            limiter.release()

    loop = asyncio.new_event_loop()
    task = loop.create_task(hold())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(settle())
    loop.close()
    abandoned_tasks.append(task)
    del task, loop
    asyncio.run(limiter.acquire())
    assert limiter._held == 1
    limiter.release()
    assert_no_turn_is_lost(limiter)


# --- Limits per minute and pauses ---------------------------------------------------------------------------


async def make_call(limiter: Limiter, error: BaseException | None = None, tokens: int | None = None) -> None:
    await limiter.acquire()
    limiter.ended(limiter.started(), error, tokens)
    limiter.release()


async def test_requests_are_limited_per_minute(clock: AlarmClock) -> None:
    """Of ten calls with three requests a minute, three start at once and three more each minute."""
    limiter = make_limiter(Demand(50, requests_per_minute=3), clock)
    tasks = [asyncio.create_task(make_call(limiter)) for _ in range(10)]
    done_counts = []
    for _ in range(4):
        await settle()
        done_counts.append(sum(task.done() for task in tasks))
        await clock.move(WINDOW_S - 1)
        assert sum(task.done() for task in tasks) == done_counts[-1]
        await clock.move(1)
    assert done_counts == [3, 6, 9, 10]


async def test_the_minute_counts_from_the_start_of_a_request(clock: AlarmClock) -> None:
    limiter = make_limiter(Demand(50, requests_per_minute=1), clock)
    await limiter.acquire()
    waiting = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.started()
    await clock.move(WINDOW_S)
    async with asyncio.timeout(1):
        await waiting


async def test_tokens_are_limited_per_minute(clock: AlarmClock) -> None:
    """At 1,000 tokens a minute and 300 a call, one call runs to measure, then two more, then three a minute."""
    limiter = make_limiter(Demand(50, tokens_per_minute=1000), clock)
    tasks = [asyncio.create_task(make_call(limiter, tokens=300)) for _ in range(7)]
    done_counts = []
    for _ in range(3):
        await settle()
        done_counts.append(sum(task.done() for task in tasks))
        await clock.move(WINDOW_S)
    assert done_counts == [3, 6, 7]


async def test_a_pause_stops_all_calls_until_it_ends(clock: AlarmClock) -> None:
    limiter = make_limiter(Demand(2), clock)
    limiter.used_up(for_s=20)
    tasks = [asyncio.create_task(make_call(limiter)) for _ in range(5)]
    await settle()
    await clock.move(19.9)
    assert not any(task.done() for task in tasks)
    await clock.move(0.1)
    assert all(task.done() for task in tasks)


TOO_MANY_REQUESTS = RateLimitError("Slow down.", retryable=True, status_code=429, retry_after_s=20.0)
OVERLOADED = APIError("Too busy.", retryable=True, status_code=529, retry_after_s=20.0)
NO_FUNDS = RateLimitError("Pay.", retryable=False, status_code=429, retry_after_s=20.0)
BROKEN = APIError("Broken.", retryable=True, status_code=500, retry_after_s=20.0)


@pytest.mark.parametrize(
    ("error", "slows_down"),
    [
        (TOO_MANY_REQUESTS, True),
        (OVERLOADED, True),
        (NO_FUNDS, False),
        (BROKEN, False),
        (ConfigurationError("No."), False),
    ],
)
async def test_only_refusals_for_too_many_requests_slow_down(
    error: Exception, slows_down: bool, clock: AlarmClock
) -> None:
    """An unpaid bill or a server error says nothing about the rate."""
    limiter = make_limiter(Demand(2), clock)
    for _ in range(2):
        await make_call(limiter, error)
    waiting = asyncio.create_task(limiter.acquire())
    await settle()
    assert waiting.done() is not slows_down
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


# --- One limiter for each account ---------------------------------------------------------------------------


def make_config(provider: ProviderName = "openai", **settings: Any) -> Config:
    return Config(provider=provider, **{"model": "m", "api_key": KEY, "base_url": "http://h/v1", **settings})


def test_a_limiter_belongs_to_a_provider_an_address_and_a_key() -> None:
    limiters._limiters.clear()
    assert limiter_of(make_config()) is limiter_of(make_config(model="another", request_concurrency=3, timeout_s=1.0))
    others = [
        make_config("local"),
        make_config(api_key="another"),
        make_config(base_url="http://another/v1"),
        make_config(use_mock=True),
    ]
    assert len({id(limiter_of(each)) for each in [make_config(), *others]}) == 5


def test_the_repr_of_limiters_does_not_show_the_key() -> None:
    limiters._limiters.clear()
    limiter_of(make_config())
    assert KEY not in repr(limiters._limiters)
    assert "SecretStr" in repr(limiters._limiters)


def test_an_unused_limiter_is_removed_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limiter's measurements are out of date by then, and a process may see many keys."""
    limiters._limiters.clear()
    clock = AlarmClock()
    monkeypatch.setattr(limiters, "Limiter", lambda: Limiter(clock, clock.set_alarm))
    with limiters.slot(make_config()):
        limiter = limiter_of(make_config())
        clock.now += 2 * WINDOW_S
        limiter_of(make_config(api_key="another"))
        assert limiter_of(make_config()) is limiter
    clock.now += WINDOW_S
    assert limiter_of(make_config()) is limiter
    clock.now += 1
    limiter_of(make_config(api_key="another"))
    assert limiter_of(make_config()) is not limiter


def test_the_demand_of_a_garbage_collected_session_is_removed() -> None:
    """The session was collected without having been closed."""
    limiters._limiters.clear()
    with limiters.slot(make_config(request_concurrency=2)):
        limiter = limiter_of(make_config())
        abandoned_slot = limiters.slot(make_config(request_concurrency=50))
        abandoned_slot.__enter__()
        assert limiter._pace.opens_at(0, 2) <= 0
        del abandoned_slot
        gc.collect()
        assert limiter._pace.opens_at(0, 2) > 0
