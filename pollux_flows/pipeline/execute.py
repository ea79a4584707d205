"""Execute: make the calls that are not answered yet, side by side, and keep each answer as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Final
from uuid import uuid4

from pollux_flows.capabilities import implicit_caching
from pollux_flows.config import Config
from pollux_flows.errors import PolluxError
from pollux_flows.pipeline.attach import Attachments, attached
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.retry import Attempts, attempt
from pollux_flows.pipeline.spending import Spending
from pollux_flows.pipeline.terms import Terms
from pollux_flows.pricing import cost_of
from pollux_flows.providers.base import Call
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import Answer, CallFailure, Outcome
from pollux_flows.state.journal import Journal, TakenError
from pollux_flows.state.store import open_store

OnOutcome = Callable[[Outcome], None]

# How the providers say, among other things, that they do not have the file that a request names.
_MAY_MEAN_FORGOTTEN: Final = {400, 403, 404}
# A store that is being restarted, or a disk that somebody makes room on, gets so much time to take a paid answer.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


@asynccontextmanager
async def open_execution(plan: Plan, config: Config, terms: Terms | None = None) -> AsyncIterator[Execution]:
    """What the calls of a plan share, closed whatever happens. The provider is met when the first call needs it."""
    async with AsyncExitStack() as stack:
        execution = Execution(plan, config, terms or Terms(), stack)
        try:
            yield execution
        finally:
            await execution.close()


async def execute_plan(
    plan: Plan, config: Config, terms: Terms | None = None, *, on_outcome: OnOutcome | None = None
) -> list[Outcome]:
    """What becomes of every call of the plan, in its order."""
    async with open_execution(plan, config, terms) as execution:
        return await execution.outcomes(plan.calls, on_outcome)


def first_error(outcomes: Sequence[Outcome], provider: str) -> PolluxError | None:
    """The error of the first call that failed, as an exception to raise."""
    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return next((failure.error(provider) for failure in failures), None)


class Execution:
    """The calls of a plan on their way: one connection, each file uploaded once, one journal, one budget."""

    def __init__(self, plan: Plan, config: Config, terms: Terms, stack: AsyncExitStack) -> None:
        self.plan = plan
        self._config, self._terms, self._stack = config, terms, stack
        self._journal = Journal(open_store(), terms.run_key or uuid4().hex)
        self._spending = Spending(terms.max_cost_usd, config.target)
        self._meeting: asyncio.Task[tuple[Session, Attachments]] | None = None
        # While an answer cannot be written down, nothing new is asked for; and then, why it could not.
        self._well = asyncio.Event()
        self._well.set()
        self._broken: PolluxError | None = None

    async def outcomes(self, calls: Sequence[PlannedCall], on_outcome: OnOutcome | None = None) -> list[Outcome]:
        """What becomes of each of these calls of the plan, in their order.

        One call that fails costs the others nothing: nobody is cancelled, and nothing that was answered is dropped.
        """
        if not calls:
            return []
        seen = on_outcome or _unseen
        async with self._alone(calls):
            found = await self.earlier(calls)
            for outcome in found.values():
                seen(outcome)
            missing = [call for call in calls if call.index not in found]
            if missing:
                await self._begin(missing)
                found |= zip((call.index for call in missing), await self._ask_all(missing, seen), strict=True)
        return [found[call.index] for call in calls]

    # --- Earlier answers ----------------------------------------------------------------------------------------

    async def earlier(self, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        """The outcomes of those calls that are answered already, by the calls' numbers."""
        found = await self._answered(calls)
        self._spending.add(found.values())
        return found

    def _alone(self, calls: Sequence[PlannedCall]) -> AbstractAsyncContextManager[None]:
        """A run that nobody else can know of is alone already."""
        if self._terms.run_key is None:
            return nullcontext()
        return self._journal.alone([call.identity for call in calls])

    async def _answered(self, calls: Sequence[PlannedCall]) -> dict[int, Outcome]:
        terms, names = self._terms, [call.identity for call in calls]
        found: dict[str, Outcome] = {}
        if terms.reuse != "never" and terms.run_key is not None:
            found = await self._journal.own(names)
        if terms.reuse == "always":
            found = await self._journal.anybodys([name for name in names if name not in found], terms.max_age) | found
        return {
            call.index: outcome.model_copy(update={"index": call.index})
            for call in calls
            # What a provider blocked, or left empty, is kept as well; but that is what a retry is for.
            if (outcome := found.get(call.identity)) and outcome.problem is None
        }

    # --- New ones -----------------------------------------------------------------------------------------------

    async def _ask_all(self, calls: Sequence[PlannedCall], seen: OnOutcome) -> list[Outcome]:
        async def settled(planned: PlannedCall) -> Outcome:
            outcome = await self._settled(planned)
            seen(outcome)
            return outcome

        # Not a TaskGroup: its first failure would cancel siblings whose answers are being paid for.
        outcomes = await asyncio.gather(*map(settled, calls), return_exceptions=True)
        return await self._kept_after_all([_unless_raised(outcome) for outcome in outcomes])

    async def _settled(self, planned: PlannedCall) -> Outcome:
        if self._terms.reuse != "always":
            return await self._ask(planned, self._may_begin)
        while True:
            try:
                async with self._journal.asking(planned.identity) as take:
                    return await self._ask(planned, partial(self._may_begin_once, planned, take))
            except TakenError:
                await self._journal.free(planned.identity)
                if answered := await self._answered([planned]):
                    return answered[planned.index]

    async def _may_begin(self) -> None:
        await self._well.wait()
        if self._broken is not None:
            raise self._broken
        self._spending.check()

    async def _may_begin_once(self, planned: PlannedCall, take: Callable[[], Awaitable[None]]) -> None:
        """The same where the call may be somebody else's as well, who may have been quicker."""
        await self._may_begin()
        await take()
        if await self._answered([planned]):
            raise TakenError

    async def _ask(self, planned: PlannedCall, may_begin: Callable[[], Awaitable[None]]) -> Outcome:
        """What comes of asking. An answer is written down before its slot is given back."""
        answered: list[Outcome] = []

        async def keep(attempts: Attempts[Answer]) -> None:
            answered.append(await self._kept(self._outcome(planned, attempts)))

        try:
            attempts = await self._attempts(planned, may_begin, keep)
        except PolluxError as error:  # nothing was asked
            failure = CallFailure.of(planned.index, error)
            return Outcome(index=planned.index, identity=planned.identity, failure=failure, attempts=0)
        return answered[0] if answered else self._outcome(planned, attempts)

    async def _attempts(
        self,
        planned: PlannedCall,
        may_begin: Callable[[], Awaitable[None]],
        keep: Callable[[Attempts[Answer]], Awaitable[None]],
    ) -> Attempts[Answer]:
        session, attachments = await self._met()
        sources = _sources(self.plan, planned)
        begun = False

        async def once(call: Call) -> Answer:
            nonlocal begun
            if not begun:  # asked with the slot in hand: what was answered meanwhile counts
                await may_begin()
                begun = True
            return await session.generate(call)

        for last_try in (False, True):
            materials = await attachments.materials(sources)
            call = _call(self.plan, planned, materials)
            attempts: Attempts[Answer] = await attempt(
                partial(once, call),
                policy=self._config.retry,
                timeout_s=self._config.timeout_s,
                slot=session.slot,
                keep=keep,
            )
            refused = attempts.error is not None and attempts.error.status_code in _MAY_MEAN_FORGOTTEN
            if last_try or not refused or not await _forgotten(attachments, sources, materials):
                break
        return attempts

    def _outcome(self, planned: PlannedCall, attempts: Attempts[Answer]) -> Outcome:
        answer, error = attempts.result, attempts.error
        cost = answer and cost_of(self.plan.target, answer)
        return Outcome(
            index=planned.index,
            identity=planned.identity,
            answer=answer,
            failure=None if error is None else CallFailure.of(planned.index, error),
            attempts=attempts.number,
            unknown_attempts=attempts.unknown,
            waited_s=round(attempts.waited_s, 3),
            duration_s=round(attempts.elapsed_s, 3),
            cost_usd=cost and cost.usd,
            cost_unknown=cost and cost.unknown,
        )

    async def _begin(self, calls: Sequence[PlannedCall]) -> None:
        """Refuse what only a finished request shows, for each set of sources that calls are made about."""
        await self._journal.begin()
        session, attachments = await self._met()
        asked = {tuple(_sources(self.plan, planned)): planned for planned in reversed(calls)}
        for sources, planned in asked.items():
            call = _call(self.plan, planned, attachments.pretended(sources))
            checked: Attempts[None] = await attempt(
                partial(session.check, call),
                policy=self._config.retry,
                timeout_s=self._config.timeout_s,
                slot=nullcontext(),  # a look at what would be sent is no call
            )
            checked.unwrap()

    async def _met(self) -> tuple[Session, Attachments]:
        """The provider's session, opened by the first who asks."""
        if self._meeting is None:
            self._meeting = asyncio.create_task(self._meet())
        return await asyncio.shield(self._meeting)

    async def close(self) -> None:
        """Give up on a session that is still being opened."""
        if self._meeting is not None:
            self._meeting.cancel()
            await asyncio.wait([self._meeting])

    async def _meet(self) -> tuple[Session, Attachments]:
        session = await self._stack.enter_async_context(open_session(self._config))
        return session, await self._stack.enter_async_context(attached(self.plan, session, uuid4().hex))

    # --- Keeping them -------------------------------------------------------------------------------------------

    async def _kept(self, outcome: Outcome) -> Outcome:
        self._spending.add([outcome])
        return await self._written(outcome)

    async def _written(self, outcome: Outcome) -> Outcome:
        """Written down; or with the reason why that was not possible, for the answer is worth having all the same."""
        for pause in (*_PAUSES, None):
            try:
                await self._journal.keep(outcome.identity, outcome)
            except PolluxError as error:
                failure = error
            else:
                self._well.set()
                return outcome
            if pause is None or self._broken is not None:
                break
            self._well.clear()
            await asyncio.sleep(pause)
        self._broken = failure
        self._well.set()  # whoever waited is told
        return outcome.model_copy(update={"unkept": failure.message})

    async def _kept_after_all(self, outcomes: list[Outcome]) -> list[Outcome]:
        """What could not be written down when it came may be now."""
        return [
            outcome if outcome.unkept is None else await self._written(outcome.model_copy(update={"unkept": None}))
            for outcome in outcomes
        ]


def _unseen(_: Outcome) -> None:
    pass


def _sources(plan: Plan, planned: PlannedCall) -> Sequence[int]:
    return range(len(plan.sources)) if planned.source is None else [planned.source]


def _call(plan: Plan, planned: PlannedCall, materials: tuple[Material, ...]) -> Call:
    return Call(
        model=plan.target.model,
        materials=materials,
        prompt=planned.prompt,
        options=plan.options,
        implicit_caching=implicit_caching(plan.target.provider, plan.options, plan.sharing),
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
