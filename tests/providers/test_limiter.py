"""Turns: whoever waits gets one, in order, in whatever thread and event loop, and none is ever lost."""

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


class Time:
    """A clock that stands still until it is moved, and rings on the way."""

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
def clock() -> Time:
    return Time()


def limiter_for(demand: Demand, clock: Time | None = None) -> Limiter:
    limiter = Limiter(clock, clock.set_alarm) if clock else Limiter()
    limiter.join(demand)
    return limiter


async def settle() -> None:
    """Let everybody who can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def in_threads(works: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Each in a thread with an event loop of its own; what went wrong in one is raised here."""
    problems: list[BaseException] = []

    def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(work())
        except BaseException as problem:  # noqa: BLE001 (a thread tells nobody otherwise)
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert problems == []


def nothing_is_lost(limiter: Limiter) -> None:
    """All turns are back, nobody stands in line, and the next to come gets one at once."""
    assert limiter._held == 0
    assert not limiter._waiting

    async def another() -> None:
        async with asyncio.timeout(1):
            await limiter.acquire()
        limiter.release()

    asyncio.run(another())


# --- In order -----------------------------------------------------------------------------------------------


async def test_whoever_waits_longest_goes_first() -> None:
    """One turn, a hundred who want it."""
    limiter, went = limiter_for(Demand(1)), []

    async def go(number: int) -> None:
        await limiter.acquire()
        went.append(number)
        await asyncio.sleep(0)
        limiter.release()

    await asyncio.gather(*map(go, range(100)))
    assert went == list(range(100))


async def test_nobody_overtakes_a_line() -> None:
    """A turn that came back belongs to those who wait, also before they have noticed."""
    limiter = limiter_for(Demand(1))
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


async def test_nobody_overtakes_a_line_that_has_not_heard_the_alarm(clock: Time) -> None:
    """The pause is over, and whoever comes now finds others who have waited for that."""
    limiter = limiter_for(Demand(1), clock)
    limiter.used_up(for_s=20)
    first = asyncio.create_task(limiter.acquire())
    await settle()
    clock.now += 20
    second = asyncio.create_task(limiter.acquire())
    await settle()
    assert (first.done(), second.done()) == (True, False)
    limiter.release()
    await second


def test_threads_share_the_turns() -> None:
    """Six event loops, six hundred calls, three turns."""
    limiter, lock = limiter_for(Demand(3)), threading.Lock()
    now = most = done = 0

    async def call() -> None:
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
        await asyncio.gather(*(call() for _ in range(100)))

    in_threads([work] * 6)
    assert (most, done) == (3, 600)
    nothing_is_lost(limiter)


# --- Cancelled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_a_storm_of_cancellations_costs_no_turn(seed: int) -> None:
    """Before, while and after they get their turn: at the end all turns are back."""
    chance = random.Random(seed)  # noqa: S311 (the same storm each time)
    limiter = limiter_for(Demand(chance.randint(1, 5)))
    holding = most = 0

    async def call() -> None:
        nonlocal holding, most
        await limiter.acquire()
        holding += 1
        most = max(most, holding)
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        finally:
            holding -= 1
            limiter.release()

    tasks = [asyncio.create_task(call()) for _ in range(200)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        for task in chance.sample(tasks, 3):
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 5
    await asyncio.to_thread(nothing_is_lost, limiter)


@pytest.mark.parametrize("seed", range(5))
def test_a_storm_over_several_threads_costs_no_turn(seed: int) -> None:
    """The turn may be on its way from one thread when the other gives up."""
    limiter = limiter_for(Demand(2))

    def storm(number: int) -> Callable[[], Coroutine[Any, Any, None]]:
        chance = random.Random(seed * 100 + number)  # noqa: S311 (the same storm each time)

        async def call() -> None:
            await limiter.acquire()
            try:
                await asyncio.sleep(0)
            finally:
                limiter.release()

        async def work() -> None:
            for _ in range(30):
                tasks = [asyncio.create_task(call()) for _ in range(10)]
                await asyncio.sleep(chance.choice([0, 0, 0.0005]))
                for task in chance.sample(tasks, 7):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return work

    in_threads([storm(number) for number in range(4)])
    nothing_is_lost(limiter)


async def test_a_turn_that_arrives_with_the_cancellation_goes_on_to_the_next() -> None:
    """Both in the same moment."""
    limiter = limiter_for(Demand(1))
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
    await asyncio.to_thread(nothing_is_lost, limiter)


# --- Event loops that went away -----------------------------------------------------------------------------


def left_waiting(limiter: Limiter) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]:
    """An event loop that was closed while one of its tasks stood in line; the task was told nothing."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(limiter.acquire())
    loop.run_until_complete(settle())
    assert len(limiter._waiting) == 1
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return loop, task


async def test_a_closed_loop_gives_its_place_to_the_next() -> None:
    """Somebody still holds the task, so nobody has collected it."""
    limiter = limiter_for(Demand(1))
    await limiter.acquire()
    _loop, task = await asyncio.to_thread(left_waiting, limiter)
    alive = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.release()
    async with asyncio.timeout(1):
        await alive
    limiter.release()
    assert not task.done()
    await asyncio.to_thread(nothing_is_lost, limiter)


async def test_a_closed_loop_does_not_take_the_alarm_with_it(clock: Time) -> None:
    """It was first in line until the minute was over."""
    limiter = limiter_for(Demand(5, requests_per_minute=1), clock)
    await limiter.acquire()
    limiter.ended(limiter.started(), None, None)
    limiter.release()
    _loop, task = await asyncio.to_thread(left_waiting, limiter)
    alive = asyncio.create_task(limiter.acquire())
    await clock.move(WINDOW_S)
    async with asyncio.timeout(1):
        await alive
    assert not task.done()


def test_a_turn_that_a_closed_loop_had_comes_back_with_its_memory() -> None:
    """The garbage collector ends the task that held it."""
    limiter = limiter_for(Demand(1))

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
    nothing_is_lost(limiter)


def test_a_turn_may_come_back_while_another_is_given_out() -> None:
    """The garbage collector chooses its moment: here, in the middle of it."""
    abandoned: list[Any] = []

    def collecting() -> float:
        if abandoned:
            abandoned.clear()
            gc.collect()
        return 0.0

    limiter = Limiter(collecting)
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
    abandoned.append(task)
    del task, loop
    asyncio.run(limiter.acquire())
    assert limiter._held == 1
    limiter.release()
    nothing_is_lost(limiter)


# --- On the clock -------------------------------------------------------------------------------------------


async def call(limiter: Limiter, error: BaseException | None = None, tokens: int | None = None) -> None:
    await limiter.acquire()
    limiter.ended(limiter.started(), error, tokens)
    limiter.release()


async def test_requests_wait_for_the_minute(clock: Time) -> None:
    """Three a minute: of ten calls three go at once, three a minute later, and so on."""
    limiter = limiter_for(Demand(50, requests_per_minute=3), clock)
    tasks = [asyncio.create_task(call(limiter)) for _ in range(10)]
    gone = []
    for _ in range(4):
        await settle()
        gone.append(sum(task.done() for task in tasks))
        await clock.move(WINDOW_S - 1)
        assert sum(task.done() for task in tasks) == gone[-1]
        await clock.move(1)
    assert gone == [3, 6, 9, 10]


async def test_a_long_request_delays_the_next_by_a_minute_only(clock: Time) -> None:
    """The next may start a minute after its start, not after its end."""
    limiter = limiter_for(Demand(50, requests_per_minute=1), clock)
    await limiter.acquire()
    waiting = asyncio.create_task(limiter.acquire())
    await settle()
    limiter.started()
    await clock.move(WINDOW_S)
    async with asyncio.timeout(1):
        await waiting


async def test_tokens_wait_for_the_minute(clock: Time) -> None:
    """A thousand a minute, three hundred a call: one to see what a call takes, then two more, then three a minute."""
    limiter = limiter_for(Demand(50, tokens_per_minute=1000), clock)
    tasks = [asyncio.create_task(call(limiter, tokens=300)) for _ in range(7)]
    gone = []
    for _ in range(3):
        await settle()
        gone.append(sum(task.done() for task in tasks))
        await clock.move(WINDOW_S)
    assert gone == [3, 6, 7]


async def test_a_pause_holds_those_who_come_and_those_who_wait(clock: Time) -> None:
    """And lets all go when it is over."""
    limiter = limiter_for(Demand(2), clock)
    limiter.used_up(for_s=20)
    tasks = [asyncio.create_task(call(limiter)) for _ in range(5)]
    await settle()
    await clock.move(19.9)
    assert not any(task.done() for task in tasks)
    await clock.move(0.1)
    assert all(task.done() for task in tasks)


TOO_MUCH = RateLimitError("Slow down.", retryable=True, status_code=429, retry_after_s=20.0)
OVERLOADED = APIError("Too busy.", retryable=True, status_code=529, retry_after_s=20.0)
NO_FUNDS = RateLimitError("Pay.", retryable=False, status_code=429, retry_after_s=20.0)
BROKEN = APIError("Broken.", retryable=True, status_code=500, retry_after_s=20.0)


@pytest.mark.parametrize(
    ("error", "counts"),
    [(TOO_MUCH, True), (OVERLOADED, True), (NO_FUNDS, False), (BROKEN, False), (ConfigurationError("No."), False)],
)
async def test_only_what_waiting_cures_is_waited_for(error: Exception, counts: bool, clock: Time) -> None:
    """A bill that nobody paid and a server that is broken teach nothing about speed."""
    limiter = limiter_for(Demand(2), clock)
    for _ in range(2):
        await call(limiter, error)
    waiting = asyncio.create_task(limiter.acquire())
    await settle()
    assert waiting.done() is not counts
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


# --- Whose it is --------------------------------------------------------------------------------------------


def config_of(provider: ProviderName = "openai", **settings: Any) -> Config:
    return Config(provider=provider, **{"model": "m", "api_key": KEY, "base_url": "http://h/v1", **settings})


def test_an_account_is_a_provider_an_address_and_a_key() -> None:
    """Whatever else is asked for."""
    limiters._limiters.clear()
    assert limiter_of(config_of()) is limiter_of(config_of(model="another", request_concurrency=3, timeout_s=1.0))
    others = [
        config_of("local"),
        config_of(api_key="another"),
        config_of(base_url="http://another/v1"),
        config_of(use_mock=True),
    ]
    assert len({id(limiter_of(each)) for each in [config_of(), *others]}) == 5


def test_nobody_sees_the_key() -> None:
    """Not even who prints all that there is."""
    limiters._limiters.clear()
    limiter_of(config_of())
    assert KEY not in repr(limiters._limiters)
    assert "SecretStr" in repr(limiters._limiters)


def test_an_account_that_nobody_uses_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute after its last session: what was learned is too old then, and a process may see many keys."""
    limiters._limiters.clear()
    clock = Time()
    monkeypatch.setattr(limiters, "Limiter", lambda: Limiter(clock, clock.set_alarm))
    with limiters.slot(config_of()):
        used = limiter_of(config_of())
        clock.now += 2 * WINDOW_S
        limiter_of(config_of(api_key="another"))
        assert limiter_of(config_of()) is used
    clock.now += WINDOW_S
    assert limiter_of(config_of()) is used
    clock.now += 1
    limiter_of(config_of(api_key="another"))
    assert limiter_of(config_of()) is not used


def test_a_session_that_was_dropped_asks_for_nothing_any_more() -> None:
    """Nobody closed it; it was collected."""
    limiters._limiters.clear()
    with limiters.slot(config_of(request_concurrency=2)):
        limiter = limiter_of(config_of())
        dropped = limiters.slot(config_of(request_concurrency=50))
        dropped.__enter__()
        assert limiter._pace.opens_at(0, 2) <= 0
        del dropped
        gc.collect()
        assert limiter._pace.opens_at(0, 2) > 0
