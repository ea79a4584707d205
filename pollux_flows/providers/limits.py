"""Limits: whose turn it is to ask. One limiter a process and account, which learns from what the provider says.

All sessions of the account share it, in whatever threads and event loops they are.
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
from pollux_flows.providers.pace import WINDOW_S, Demand, Pace

_TOO_MUCH: Final = {429, 503, 529}
_SHORTEST_ALARM_S: Final = 0.01


@contextmanager
def slot(config: Config) -> Iterator[Slot]:
    """A session's room at the limiter of its account, for as long as the session is open."""
    limiter = limiter_of(config)
    demand = Demand(config.request_concurrency, config.requests_per_minute, config.tokens_per_minute)
    limiter.join(demand)
    try:
        yield Slot(limiter, demand.concurrency)
    finally:
        limiter.leave(demand)


def limiter_of(config: Config) -> Limiter:
    """The one that all sessions of this account share. The key stays the secret it is; a forked process starts anew."""
    account = (os.getpid(), config.provider, config.base_url, config.use_mock, config.api_key)
    with _guard:
        for idle in [each for each, limiter in _limiters.items() if limiter.idle]:
            del _limiters[idle]
        return _limiters.setdefault(account, Limiter())


class Slot:
    """A session's room: so many calls at once, and of these as many as its account is good for.

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

    def asking(self) -> Asking:
        """For whoever holds the slot, around the request."""
        return Asking(self._limiter)


class Asking:
    """One request, from its start to what became of it."""

    tokens: int | None = None  # what the answer took, if it says so

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def __enter__(self) -> Self:
        self._round = self._limiter.started()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._limiter.ended(self._round, error, self.tokens)


class Limiter:
    """Turns, for those who have waited longest first. Whoever has one may make one request."""

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
        """Whether all that it has learned is too old to matter."""
        return self._pace.unused and self._clock() - self._left_at > WINDOW_S

    def join(self, demand: Demand) -> None:
        """A session opens."""
        with self._lock:
            self._pace.join(demand)
            self._serve()

    def leave(self, demand: Demand) -> None:
        """A session closes."""
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
        """Give the turn back."""
        with self._lock:
            self._held -= 1
            self._serve()

    def started(self) -> int:
        """A request goes out. Returns the round it belongs to."""
        with self._lock:
            round_ = self._pace.started(self._clock())
            self._serve()  # only now is it known when the next may start
            return round_

    def ended(self, round_: int, error: BaseException | None, tokens: int | None) -> None:
        """An answer came, or an error."""
        with self._lock:
            now = self._clock()
            if error is None:
                self._pace.answered(now, tokens)
            elif isinstance(error, APIError) and error.retryable and error.status_code in _TOO_MUCH:
                self._pace.refused(now, round_, error.retry_after_s)
            else:  # a refusal of another kind, or an end that leaves open what the provider did
                unknown = error.outcome_unknown if isinstance(error, APIError) else not isinstance(error, PolluxError)
                self._pace.failed(now, maybe_done=unknown)

    def used_up(self, for_s: float) -> None:
        """The provider says that nothing is left of what the account may use, and for how long."""
        with self._lock:
            self._pace.used_up(self._clock(), for_s)

    def _serve(self) -> None:
        """Give out what turns there are, or see to it that somebody looks again when there are some."""
        while self._waiting:
            now = self._clock()
            opens_at = self._pace.opens_at(now, self._held)
            if opens_at > now:
                self._look_again_at(opens_at, now)
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

    def _look_again_at(self, at: float, now: float) -> None:
        if at < self._alarm_at:
            self._alarm_at = at
            self._set_alarm(max(at - now, _SHORTEST_ALARM_S), self._ring)

    def _ring(self) -> None:
        with self._lock:
            self._alarm_at = math.inf
            self._serve()


class _Waiter:
    """One who waits, and the event loop it waits in."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.woken = self.loop.create_future()
        self.has_turn = False

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


def _after(seconds: float, ring: Callable[[], None]) -> None:
    """On a thread: an event loop of those who wait may be closed before it has told the others."""
    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()


_limiters: Final[dict[tuple[object, ...], Limiter]] = {}
_guard: Final = threading.Lock()
