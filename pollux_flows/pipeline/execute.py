"""Execute: make the calls, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from pollux_flows.capabilities import implicit_caching
from pollux_flows.errors import APIError, RateLimitError
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.providers.base import Call
from pollux_flows.providers.session import Session
from pollux_flows.result import Answer, CallFailure, Outcome


async def execute_plan(
    plan: Plan, session: Session, *, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Answer every call of the plan, each to its own outcome, in the plan's order.

    One call that fails costs the others nothing: nobody is cancelled, and nothing that was answered is dropped.
    """
    if not plan.calls:
        return []
    checked: Attempts[None] = await attempt(
        lambda: session.check(_call(plan, plan.calls[0])),
        policy=session.config.retry,
        timeout_s=session.config.timeout_s,
        slot=session.slot,
    )
    checked.unwrap()

    async def answer(planned: PlannedCall) -> Outcome:
        outcome = await _answer(session, plan, planned)
        if on_outcome is not None:
            on_outcome(outcome)
        return outcome

    # Not a TaskGroup: its first failure would cancel siblings whose answers are being paid for.
    outcomes = await asyncio.gather(*map(answer, plan.calls), return_exceptions=True)
    return [_unless_raised(outcome) for outcome in outcomes]


def first_error(outcomes: Sequence[Outcome], provider: str) -> APIError | None:
    """The error of the first call that failed at the provider, as an exception to raise."""
    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return next((_as_error(failure, provider) for failure in failures), None)


def _call(plan: Plan, planned: PlannedCall) -> Call:
    return Call(
        model=plan.target.model,
        sources=tuple(plan.sources if planned.source is None else [plan.sources[planned.source]]),
        prompt=planned.prompt,
        options=plan.options,
        implicit_caching=implicit_caching(plan.target.provider, plan.options, len(plan.calls)),
    )


def _unless_raised(outcome: Outcome | BaseException) -> Outcome:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def _answer(session: Session, plan: Plan, planned: PlannedCall) -> Outcome:
    call = _call(plan, planned)
    attempts: Attempts[Answer] = await attempt(
        lambda: session.generate(call),
        policy=session.config.retry,
        timeout_s=session.config.timeout_s,
        slot=session.slot,
    )
    return Outcome(
        index=planned.index,
        identity=planned.identity,
        answer=attempts.result,
        failure=None if attempts.error is None else _as_failure(planned.index, attempts.error),
        attempts=attempts.number,
        unknown_attempts=attempts.unknown,
        waited_s=round(attempts.waited_s, 3),
        duration_s=round(attempts.elapsed_s, 3),
    )


def _as_failure(index: int, error: APIError) -> CallFailure:
    return CallFailure(
        index=index,
        kind="rate_limit" if isinstance(error, RateLimitError) else "api_error",
        message=error.message,
        hint=error.hint,
        retryable=bool(error.retryable),
        outcome_unknown=error.outcome_unknown,
        status_code=error.status_code,
        retry_after_s=error.retry_after_s,
        error_category=error.error_category,
    )


def _as_error(failure: CallFailure, provider: str) -> APIError:
    kind = RateLimitError if failure.kind == "rate_limit" else APIError
    return kind(
        failure.message,
        hint=failure.hint,
        retryable=failure.retryable,
        status_code=failure.status_code,
        retry_after_s=failure.retry_after_s,
        provider=provider,
        phase="generate",
        call_idx=failure.index,
        error_category=failure.error_category,
        outcome_unknown=failure.outcome_unknown,
    )
