"""Retry: the only place where failed requests are repeated.

`ratelimit/limiter.py` decides how long all calls of an account pause after a refusal.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from pollux_flows.config import Config, RetryPolicy
from pollux_flows.errors import APIError, BudgetError

T = TypeVar("T")


@dataclass
class Attempts(Generic[T]):
    """The attempts at an operation: the result or the last error, their number, and the time they took."""

    result: T | None = None
    error: APIError | None = None
    number: int = 0
    unknown: int = 0
    waited_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def unwrap(self) -> T:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return cast(T, self.result)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


async def attempt(
    operation: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy,
    timeout_s: float,
    slot: AbstractAsyncContextManager[object],
    repeatable: bool = True,
    start: Callable[[int], Awaitable[None]] | None = None,
    save: Callable[[Attempts[T]], Awaitable[None]] | None = None,
) -> Attempts[T]:
    """Run an operation with retries, until it succeeds, must not be retried, or its time is up.

    The slot is acquired for each attempt and released during the backoff, so that a waiting call does not block others.
    The time starts when the slot is first acquired, as queuing is not the provider's time. An operation that is not
    `repeatable` is retried only if it certainly had no effect.

    `start` is called before each attempt, in the slot, with the number of attempts so far; an error of it ends the
    operation. But after an attempt with an unknown outcome, a BudgetError ends it with that attempt's error. `save`
    gets the result in the slot, so that there are never more unsaved results than slots.
    """
    attempts: Attempts[T] = Attempts()
    while True:
        async with slot:
            if not await _may_start(attempts, start, timeout_s):
                return attempts  # with the error of the attempt before
            await _try_once(operation, attempts, timeout_s)
            if attempts.error is None and save is not None:
                await save(attempts)
        if attempts.error is None:
            return attempts
        attempts.unknown += attempts.error.outcome_unknown
        if attempts.error.outcome_unknown and not repeatable:
            return attempts
        if not attempts.error.retryable or attempts.number >= policy.max_attempts:
            return attempts
        delay = _delay(policy, attempts)
        if not _worth_waiting(delay, policy, timeout_s, attempts):
            return attempts
        await asyncio.sleep(delay)
        attempts.waited_s += delay


async def retry_call(operation: Callable[[], Awaitable[T]], config: Config) -> T:
    """Run an operation that needs no slot with retries. Returns its result, or raises its last error."""
    attempts: Attempts[T] = await attempt(
        operation, policy=config.retry, timeout_s=config.timeout_s, slot=nullcontext()
    )
    return attempts.unwrap()


async def _may_start(attempts: Attempts[T], start: Callable[[int], Awaitable[None]] | None, timeout_s: float) -> bool:
    """Return whether the next attempt may be made: time may run out while it is queued. Raises if `start` does."""
    try:
        if start is not None:
            await start(attempts.number)
    except BudgetError:
        if attempts.unknown == 0:
            raise
        return False
    if attempts.number == 0:
        attempts.started = time.monotonic()
    return attempts.number == 0 or attempts.elapsed_s < timeout_s


async def _try_once(operation: Callable[[], Awaitable[T]], attempts: Attempts[T], timeout_s: float) -> None:
    attempts.number += 1
    try:
        async with asyncio.timeout(max(0.0, timeout_s - attempts.elapsed_s)):
            attempts.result = await operation()
        attempts.error = None
    except APIError as error:
        attempts.error = error
    except TimeoutError:
        attempts.error = _no_answer_in_time(timeout_s)


def _delay(policy: RetryPolicy, attempts: Attempts[T]) -> float:
    """Return the delay before the next attempt: our own backoff, but never less than the provider's Retry-After."""
    ours = min(policy.max_delay_s, policy.initial_delay_s * policy.backoff_multiplier ** (attempts.number - 1))
    if policy.jitter:
        ours = random.uniform(0, ours)  # noqa: S311 (spreads calls, guards nothing)
    asked = attempts.error.retry_after_s if attempts.error else None
    return max(ours, asked or 0.0)


def _worth_waiting(delay: float, policy: RetryPolicy, timeout_s: float, attempts: Attempts[T]) -> bool:
    patience = timeout_s - attempts.elapsed_s
    if policy.max_elapsed_s is not None:
        patience = min(patience, policy.max_elapsed_s - attempts.waited_s)
    if delay <= patience:
        return True
    error = attempts.error
    if error is not None and error.retry_after_s:
        error.hint = (
            f"The provider asks to retry in {error.retry_after_s:g} seconds, and this call would wait at most "
            f"{max(0.0, patience):.1f}: try again then, or raise RetryPolicy.max_elapsed_s."
        )
    return False


def _no_answer_in_time(timeout_s: float) -> APIError:
    return APIError(
        f"No answer came within {timeout_s:g} seconds.",
        hint="Raise Config.timeout_s, or ask for a shorter answer.",
        retryable=False,
        error_category="network",
        outcome_unknown=True,
    )
