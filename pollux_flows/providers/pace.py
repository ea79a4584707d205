"""Pace: when an account may be asked again. Numbers and times only; who waits for that, and how, is for limits.py."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
# However long a provider asks for: its word may be wrong, and asking again costs next to nothing.
LONGEST_PAUSE_S: Final = 60.0
# Where nothing has come of so many pauses in a row, calls had better fail and say why.
MOST_PAUSES: Final = 3


class Demand(NamedTuple):
    """What a session asks for."""

    concurrency: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Pace:
    """What the sessions ask for, what the provider has said so far, and what follows from both."""

    def __init__(self) -> None:
        self._demands: Counter[Demand] = Counter()
        self._requests_per_minute: int | None = None
        self._tokens_per_minute: int | None = None
        self._concurrency = _Concurrency()
        self._asking = 0
        self._starts = _LastMinute()
        self._tokens = _LastMinute()
        self._told = 0  # answers that said what they took
        self._taken = 0  # and what that was, in all
        self._refusals = _Refusals()
        self._told_to_wait = _Pause()
        self._used_up = _Pause()

    @property
    def unused(self) -> bool:
        return not self._demands

    def join(self, demand: Demand) -> None:
        """A session opens."""
        self._demands[demand] += 1
        self._adapt()

    def leave(self, demand: Demand) -> None:
        """A session closes."""
        self._demands -= Counter([demand])
        if self.unused:  # whoever was spared a refusal is gone; the next to come asks for itself
            self._refusals, self._told_to_wait = _Refusals(), _Pause()
        self._adapt()

    def started(self, now: float) -> int:
        """A request goes out. Returns the round it belongs to."""
        self._asking += 1
        self._starts.add(now, 1)
        return self._concurrency.round

    def answered(self, now: float, tokens: int | None) -> None:
        """It was answered."""
        self._asking -= 1
        self._concurrency.more()
        self._refusals = _Refusals()
        self._told_to_wait.helped = self._used_up.helped = True
        if tokens is not None:
            self._told += 1
            self._taken += tokens
        self._spend(now, tokens)

    def refused(self, now: float, round_: int, retry_after_s: float | None) -> None:
        """It was too much for the provider."""
        self._concurrency.less(round_)
        self._refusals.add(self._asking, now + (retry_after_s or 0.0))
        # One that was told to wait holds nobody up. But where a whole round was, so would be all who come after it.
        if self._refusals.whole_round:
            self._told_to_wait.begin(now, self._refusals.until)
            self._refusals = _Refusals()
        self._asking -= 1

    def failed(self, now: float, *, maybe_done: bool) -> None:
        """It went wrong in a way that says nothing about limits; but it may have been paid for."""
        self._asking -= 1
        if maybe_done:
            self._spend(now, None)

    def used_up(self, now: float, for_s: float) -> None:
        """The provider says that nothing is left, and for how long."""
        self._used_up.begin(now, now + for_s)

    def opens_at(self, now: float, held: int) -> float:
        """When the next turn may begin while `held` others have theirs; infinity if that depends on these alone."""
        if held >= self._concurrency.now:
            return math.inf
        opens_at = max(self._told_to_wait.until, self._used_up.until)
        about_to_start = held - self._asking
        requests, tokens = self._requests_per_minute, self._tokens_per_minute
        if requests is not None and self._starts.total(now) + about_to_start >= requests:
            opens_at = max(opens_at, self._starts.next_change)
        if tokens is not None and not self._fits(now, held, tokens):
            opens_at = max(opens_at, self._tokens.next_change)
        return opens_at

    def _fits(self, now: float, held: int, tokens_per_minute: int) -> bool:
        """Whether one more call is likely to stay within the tokens. One that never would goes alone."""
        spent = self._tokens.total(now)
        if held == 0 and spent == 0:
            return True
        return self._told > 0 and spent + (held + 1) * self._mean <= tokens_per_minute

    def _spend(self, now: float, tokens: int | None) -> None:
        self._tokens.add(now, self._mean if tokens is None else tokens)

    @property
    def _mean(self) -> float:
        return self._taken / self._told if self._told else 0.0

    def _adapt(self) -> None:
        requests = (each.requests_per_minute for each in self._demands)
        tokens = (each.tokens_per_minute for each in self._demands)
        self._requests_per_minute = min((each for each in requests if each is not None), default=None)
        self._tokens_per_minute = min((each for each in tokens if each is not None), default=None)
        self._concurrency.ceiling = max((each.concurrency for each in self._demands), default=1)


class _Concurrency:
    """As many calls at once as a session asks for; where that is too much half as many, and slowly more again."""

    def __init__(self) -> None:
        self.ceiling = 1
        self.round = 0
        self._learned = math.inf

    @property
    def now(self) -> int:
        return int(min(self._learned, self.ceiling))

    def more(self) -> None:
        """One more a round, since a round is as many answers as there are calls at once."""
        self._learned = self._learned + 1 / self._learned if self._learned < self.ceiling else math.inf

    def less(self, round_: int) -> None:
        """Half, once a round: what went out before the last cut says nothing about it."""
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
    def whole_round(self) -> bool:
        return self._count >= self._round


class _Pause:
    """A time in which nothing new begins."""

    def __init__(self) -> None:
        self.until = -math.inf
        self.helped = True
        self._in_vain = 0

    def begin(self, now: float, until: float) -> None:
        """Or, while it lasts, go on for longer."""
        if until <= now:
            return
        if self.until <= now:
            self._in_vain = 0 if self.helped else self._in_vain + 1
            self.helped = False
        if self._in_vain < MOST_PAUSES:
            self.until = max(self.until, min(until, now + LONGEST_PAUSE_S))


class _LastMinute:
    """What has come together within the last minute."""

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
        """When the oldest of it is no longer within the minute."""
        return self._amounts[0][0] + WINDOW_S if self._amounts else math.inf

    def _forget(self, now: float) -> None:
        while self._amounts and self._amounts[0][0] + WINDOW_S <= now:
            self._sum -= self._amounts.popleft()[1]
        if not self._amounts:
            self._sum = 0.0  # and not what rounding has left of it
