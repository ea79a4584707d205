"""Execute: make the calls, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from uuid import uuid4

from pollux_flows.capabilities import implicit_caching
from pollux_flows.errors import PolluxError
from pollux_flows.pipeline.attach import Attachments, attached
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.providers.base import Call
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session
from pollux_flows.result import Answer, CallFailure, Outcome

# How the providers say, among other things, that they do not have the file that a request names.
_MAY_MEAN_FORGOTTEN: Final = {400, 403, 404}


async def execute_plan(
    plan: Plan, session: Session, *, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Answer every call of the plan, each to its own outcome, in the plan's order.

    One call that fails costs the others nothing: nobody is cancelled, and nothing that was answered is dropped.
    """
    if not plan.calls:
        return []
    async with attached(plan, session, uuid4().hex) as attachments:
        await _check(plan, session, attachments)

        async def answer(planned: PlannedCall) -> Outcome:
            outcome = await _answer(session, plan, planned, attachments)
            if on_outcome is not None:
                on_outcome(outcome)
            return outcome

        # Not a TaskGroup: its first failure would cancel siblings whose answers are being paid for.
        outcomes = await asyncio.gather(*map(answer, plan.calls), return_exceptions=True)
    return [_unless_raised(outcome) for outcome in outcomes]


def first_error(outcomes: Sequence[Outcome], provider: str) -> PolluxError | None:
    """The error of the first call that failed at the provider, as an exception to raise."""
    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return next((failure.error(provider) for failure in failures), None)


async def _check(plan: Plan, session: Session, attachments: Attachments) -> None:
    """Refuse what only a finished request shows, for each set of sources that calls are made about."""
    asked = {tuple(_sources(plan, planned)): planned for planned in reversed(plan.calls)}
    for sources, planned in asked.items():
        call = _call(plan, planned, attachments.pretended(sources))
        checked: Attempts[None] = await attempt(
            partial(session.check, call),
            policy=session.config.retry,
            timeout_s=session.config.timeout_s,
            slot=session.slot,
        )
        checked.unwrap()


def _sources(plan: Plan, planned: PlannedCall) -> Sequence[int]:
    return range(len(plan.sources)) if planned.source is None else [planned.source]


def _call(plan: Plan, planned: PlannedCall, materials: tuple[Material, ...]) -> Call:
    return Call(
        model=plan.target.model,
        materials=materials,
        prompt=planned.prompt,
        options=plan.options,
        implicit_caching=implicit_caching(plan.target.provider, plan.options, len(plan.calls)),
    )


async def _forgotten(attachments: Attachments, sources: Sequence[int], materials: tuple[Material, ...]) -> bool:
    try:
        return await attachments.forgotten(sources, materials)
    except PolluxError:
        return False  # nobody can tell, so what the provider said about the call stands


def _unless_raised(outcome: Outcome | BaseException) -> Outcome:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def _answer(session: Session, plan: Plan, planned: PlannedCall, attachments: Attachments) -> Outcome:
    sources = _sources(plan, planned)
    for last_try in (False, True):
        try:
            materials = await attachments.materials(sources)
        except PolluxError as error:
            failure = CallFailure.of(planned.index, error)
            return Outcome(index=planned.index, identity=planned.identity, failure=failure, attempts=0)
        call = _call(plan, planned, materials)
        attempts: Attempts[Answer] = await attempt(
            partial(session.generate, call),
            policy=session.config.retry,
            timeout_s=session.config.timeout_s,
            slot=session.slot,
        )
        refused = attempts.error is not None and attempts.error.status_code in _MAY_MEAN_FORGOTTEN
        if last_try or not refused or not await _forgotten(attachments, sources, materials):
            break
    return Outcome(
        index=planned.index,
        identity=planned.identity,
        answer=attempts.result,
        failure=None if attempts.error is None else CallFailure.of(planned.index, attempts.error),
        attempts=attempts.number,
        unknown_attempts=attempts.unknown,
        waited_s=round(attempts.waited_s, 3),
        duration_s=round(attempts.elapsed_s, 3),
    )
