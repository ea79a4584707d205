"""Pacing: computes when an account's next request may start. Pure arithmetic; the waiting is in limiter.py."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
# An upper bound on the provider's Retry-After, which may be wrong; another attempt costs very little.
LONGEST_PAUSE_S: Final = 60.0
# After this many pauses in a row without an answer, calls fail instead of waiting.
MOST_PAUSES: Final = 3


class Demand(NamedTuple):
    """The limits that a session requests."""

    concurrency: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Pace:
    """The pacing state of an account: the demands of its sessions and the provider's responses so far."""

    def __init__(self) -> None:
        self._demands: Counter[Demand] = Counter()
        self._requests_per_minute: int | None = None
        self._tokens_per_minute: int | None = None
        self._concurrency = _Concurrency()
        self._asking = 0
        self._starts = _LastMinute()
        self._tokens = _LastMinute()
        self._reported = 0  # answers that reported their tokens
        self._taken = 0  # the sum of those tokens
        self._refusals = _Refusals()
        self._retry_pause = _Pause()
        self._used_up = _Pause()

    @property
    def unused(self) -> bool:
        return not self._demands

    def join(self, demand: Demand) -> None:
        """Add the demand of a session that opens."""
        self._demands[demand] += 1
        self._adapt()

    def leave(self, demand: Demand) -> None:
        """Remove the demand of a session that closes."""
        self._demands -= Counter([demand])
        if self.unused:  # a later session starts without the pauses of earlier ones
            self._refusals, self._retry_pause = _Refusals(), _Pause()
        self._adapt()

    def started(self, now: float) -> int:
        """Record the start of a request; return the round that it belongs to."""
        self._asking += 1
        self._starts.add(now, 1)
        return self._concurrency.round

    def answered(self, now: float, tokens: int | None) -> None:
        """Record an answer, and the tokens that it took."""
        self._asking -= 1
        self._concurrency.more()
        self._refusals = _Refusals()
        self._retry_pause.helped = self._used_up.helped = True
        if tokens is not None:
            self._reported += 1
            self._taken += tokens
        self._spend(now, tokens)

    def refused(self, now: float, round_: int, retry_after_s: float | None) -> None:
        """Record a refusal for too many requests."""
        self._concurrency.less(round_)
        self._refusals.add(self._asking, now + (retry_after_s or 0.0))
        # A single refusal delays no other request. After a full round of refusals, later requests would be refused too.
        if self._refusals.fill_a_round:
            self._retry_pause.begin(now, self._refusals.until)
            self._refusals = _Refusals()
        self._asking -= 1

    def failed(self, now: float, *, maybe_done: bool) -> None:
        """Record a failure that is unrelated to limits; with `maybe_done`, its tokens may have been spent."""
        self._asking -= 1
        if maybe_done:
            self._spend(now, None)

    def used_up(self, now: float, for_s: float) -> None:
        """Record that the quota is used up for so long."""
        self._used_up.begin(now, now + for_s)

    def opens_at(self, now: float, held: int) -> float:
        """Return when the next turn may begin while `held` are taken; infinity if one of those must end first."""
        if held >= self._concurrency.now:
            return math.inf
        opens_at = max(self._retry_pause.until, self._used_up.until)
        about_to_start = held - self._asking
        requests, tokens = self._requests_per_minute, self._tokens_per_minute
        if requests is not None and self._starts.total(now) + about_to_start >= requests:
            opens_at = max(opens_at, self._starts.next_change)
        if tokens is not None and not self._fits(now, held, tokens):
            opens_at = max(opens_at, self._tokens.next_change)
        return opens_at

    def _fits(self, now: float, held: int, tokens_per_minute: int) -> bool:
        """Return whether one more call likely stays within the token limit; a first call always does."""
        spent = self._tokens.total(now)
        if held == 0 and spent == 0:
            return True
        return self._reported > 0 and spent + (held + 1) * self._mean <= tokens_per_minute

    def _spend(self, now: float, tokens: int | None) -> None:
        self._tokens.add(now, self._mean if tokens is None else tokens)

    @property
    def _mean(self) -> float:
        return self._taken / self._reported if self._reported else 0.0

    def _adapt(self) -> None:
        requests = (each.requests_per_minute for each in self._demands)
        tokens = (each.tokens_per_minute for each in self._demands)
        self._requests_per_minute = min((each for each in requests if each is not None), default=None)
        self._tokens_per_minute = min((each for each in tokens if each is not None), default=None)
        self._concurrency.ceiling = max((each.concurrency for each in self._demands), default=1)


class _Concurrency:
    """The concurrency limit: halved after a refusal, then raised slowly up to the sessions' demand."""

    def __init__(self) -> None:
        self.ceiling = 1
        self.round = 0
        self._learned = math.inf

    @property
    def now(self) -> int:
        return int(min(self._learned, self.ceiling))

    def more(self) -> None:
        """Raise the limit by one per round. A round is as many answers as there are concurrent calls."""
        self._learned = self._learned + 1 / self._learned if self._learned < self.ceiling else math.inf

    def less(self, round_: int) -> None:
        """Halve the limit, once per round: refusals of requests that were sent before the last cut do not count."""
        if round_ == self.round:
            self._learned = max(1.0, min(self._learned, self.ceiling) / 2)
            self.round += 1


class _Refusals:
    """Refusals with no answer between them."""

    def __init__(self) -> None:
        self.until = -math.inf
        self._count = 0
        self._round = 2

    def add(self, under_way: int, until: float) -> None:
        if self._count == 0:
            self._round = max(2, under_way)
        self._count += 1
        self.until = max(self.until, until)

    @property
    def fill_a_round(self) -> bool:
        return self._count >= self._round


class _Pause:
    """A time in which no request starts."""

    def __init__(self) -> None:
        self.until = -math.inf
        self.helped = True
        self._in_vain = 0

    def begin(self, now: float, until: float) -> None:
        """Begin the pause or, while it lasts, extend it."""
        if until <= now:
            return
        if self.until <= now:
            self._in_vain = 0 if self.helped else self._in_vain + 1
            self.helped = False
        if self._in_vain < MOST_PAUSES:
            self.until = max(self.until, min(until, now + LONGEST_PAUSE_S))


class _LastMinute:
    """The sum of the amounts of the last minute."""

    def __init__(self) -> None:
        self._amounts: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, now: float, amount: float) -> None:
        self._forget(now)
        self._amounts.append((now, amount))
        self._sum += amount

    def total(self, now: float) -> float:
        self._forget(now)
        return self._sum

    @property
    def next_change(self) -> float:
        """Return when the oldest amount leaves the window."""
        return self._amounts[0][0] + WINDOW_S if self._amounts else math.inf

    def _forget(self, now: float) -> None:
        while self._amounts and self._amounts[0][0] + WINDOW_S <= now:
            self._sum -= self._amounts.popleft()[1]
        if not self._amounts:
            self._sum = 0.0  # drops the rounding error
