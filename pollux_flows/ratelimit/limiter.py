"""Rate limiting: one limiter for each account in a process, which adapts to the provider's responses.

All sessions of the account share it, across threads and event loops.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from pollux_flows.config import Config
from pollux_flows.errors import APIError, PolluxError
from pollux_flows.ratelimit.pace import WINDOW_S, Demand, Pace

_OVERLOAD_STATUSES: Final = {429, 503, 529}
_SHORTEST_ALARM_S: Final = 0.01


@contextmanager
def slot(config: Config) -> Iterator[Slot]:
    """Join the limiter of the account while a session is open, and yield the session's slot."""
    limiter = limiter_of(config)
    demand = Demand(config.request_concurrency, config.requests_per_minute, config.tokens_per_minute)
    limiter.join(demand)
    try:
        yield Slot(limiter, demand.concurrency)
    finally:
        limiter.leave(demand)


def limiter_of(config: Config) -> Limiter:
    """Return the limiter that all sessions of this account share. A forked process gets a new one."""
    account = (os.getpid(), config.provider, config.base_url, config.use_mock, config.api_key)
    with _guard:
        for idle in [each for each, limiter in _limiters.items() if limiter.idle]:
            del _limiters[idle]
        return _limiters.setdefault(account, Limiter())


class Slot:
    """The concurrency limit of a session, within that of its account.

    Held while one request is under way. It belongs to the session's event loop.
    """

    def __init__(self, limiter: Limiter, size: int) -> None:
        self._limiter = limiter
        self._room = asyncio.Semaphore(size)

    async def __aenter__(self) -> None:
        await self._room.acquire()
        try:
            await self._limiter.acquire()
        except BaseException:
            self._room.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._limiter.release()
        self._room.release()

    def report_outcome(self) -> OutcomeReporter:
        """Return a context manager to enter around a request, while holding the slot."""
        return OutcomeReporter(self._limiter)


class OutcomeReporter:
    """A context manager around one request, which reports its outcome to the limiter."""

    tokens: int | None = None  # the tokens of the answer, if reported

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def __enter__(self) -> Self:
        self._round = self._limiter.started()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._limiter.ended(self._round, error, self.tokens)


class Limiter:
    """Hands out turns in order of arrival; each turn permits one request."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        alarm: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._clock = clock
        self._set_alarm = alarm or _after
        self._alarm_at = math.inf
        # Reentrant: the garbage collector may close a coroutine that has a turn while this very lock is held.
        self._lock = threading.RLock()
        self._pace = Pace()
        self._held = 0
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()
        self._left_at = clock()

    @property
    def idle(self) -> bool:
        """Return whether the limiter has no sessions, and its state is out of date."""
        return self._pace.unused and self._clock() - self._left_at > WINDOW_S

    def join(self, demand: Demand) -> None:
        """Register the demand of a session that opens."""
        with self._lock:
            self._pace.join(demand)
            self._serve()

    def leave(self, demand: Demand) -> None:
        """Remove the demand of a session that closes."""
        with self._lock:
            self._pace.leave(demand)
            self._left_at = self._clock()
            self._serve()

    async def acquire(self) -> None:
        """Wait for a turn."""
        with self._lock:
            now = self._clock()
            if not self._waiting and self._pace.opens_at(now, self._held) <= now:
                self._held += 1
                return
            waiter = _Waiter()
            self._waiting[waiter] = None
            self._serve()
        try:
            await waiter.woken
        except BaseException:
            with self._lock:
                self._waiting.pop(waiter, None)
                self._take_back(waiter)
                self._serve()
            raise

    def release(self) -> None:
        """Return the turn."""
        with self._lock:
            self._held -= 1
            self._serve()

    def started(self) -> int:
        """Record the start of a request; return the round that it belongs to."""
        with self._lock:
            round_ = self._pace.started(self._clock())
            self._serve()  # only now is it known when the next may start
            return round_

    def ended(self, round_: int, error: BaseException | None, tokens: int | None) -> None:
        """Record the end of a request: its answer or its error."""
        with self._lock:
            now = self._clock()
            if error is None:
                self._pace.answered(now, tokens)
            elif isinstance(error, APIError) and error.retryable and error.status_code in _OVERLOAD_STATUSES:
                self._pace.refused(now, round_, error.retry_after_s)
            else:  # an error that is unrelated to limits, or an unknown outcome
                unknown = error.outcome_unknown if isinstance(error, APIError) else not isinstance(error, PolluxError)
                self._pace.failed(now, maybe_done=unknown)

    def used_up(self, for_s: float) -> None:
        """Record that the account's quota is used up for so long."""
        with self._lock:
            self._pace.used_up(self._clock(), for_s)

    def _serve(self) -> None:
        """Hand out the available turns, or set an alarm for the time of the next one."""
        while self._waiting:
            now = self._clock()
            opens_at = self._pace.opens_at(now, self._held)
            if opens_at > now:
                self._schedule_alarm(opens_at, now)
                return
            waiter, _ = self._waiting.popitem(last=False)
            waiter.has_turn = True
            self._held += 1
            try:
                waiter.loop.call_soon_threadsafe(waiter.wake)
            except RuntimeError:  # its event loop is closed
                self._take_back(waiter)

    def _take_back(self, waiter: _Waiter) -> None:
        if waiter.has_turn:
            waiter.has_turn = False
            self._held -= 1

    def _schedule_alarm(self, at: float, now: float) -> None:
        if at < self._alarm_at:
            self._alarm_at = at
            self._set_alarm(max(at - now, _SHORTEST_ALARM_S), self._ring)

    def _ring(self) -> None:
        with self._lock:
            self._alarm_at = math.inf
            self._serve()


class _Waiter:
    """A waiting request, and its event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.woken = self.loop.create_future()
        self.has_turn = False

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


def _after(seconds: float, ring: Callable[[], None]) -> None:
    """Call `ring` after a delay, on a thread, as the event loop of any waiter may be closed by then."""
    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()


_limiters: Final[dict[tuple[object, ...], Limiter]] = {}
_guard: Final = threading.Lock()
