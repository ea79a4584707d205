"""Execute: make the calls without a saved answer concurrently, and save each answer when it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.errors import APIError, PolluxError, raise_if_error
from pollux_flows.handles import CacheHandle
from pollux_flows.pipeline.answers import Answers, MayAsk
from pollux_flows.pipeline.attach import Attachments, open_attachments, text_size
from pollux_flows.pipeline.cache_use import CacheUse, strip_cached_options
from pollux_flows.pipeline.caches import CacheRegistry
from pollux_flows.pipeline.conversation import attach_history
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.prefix import WarmUps, prefix_key
from pollux_flows.pipeline.retry import Attempts, attempt, retry_call
from pollux_flows.pipeline.savings import UsedCache
from pollux_flows.pipeline.terms import Terms
from pollux_flows.pipeline.worst_case import WorstCase, find_worst_case
from pollux_flows.pricing import cost_of
from pollux_flows.providers.base import Call
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import Answer, CallFailure, Outcome
from pollux_flows.state.budget import Reservation
from pollux_flows.state.journal import CallLeasedError
from pollux_flows.state.slots import RunScope

OnOutcome = Callable[[Outcome], None]


@asynccontextmanager
async def open_execution(
    plan: Plan,
    config: Config,
    terms: Terms | None = None,
    scope: RunScope | None = None,
    *,
    caches: CacheRegistry | None = None,
    session: Session | None = None,
) -> AsyncIterator[Execution]:
    """Open the execution of a plan: the session, attachments and caches that its calls share.

    The session is opened when the first call needs it, unless an open `session` is passed, which stays open. Without a
    `scope`, the run is the one that the terms name. With `caches`, the plan's cache is created, extended and created
    again as its calls need it.
    """
    async with AsyncExitStack() as stack:
        terms = terms or Terms()
        answers = Answers(config.target, terms, scope, plan.facts, concurrency=config.request_concurrency)
        execution = Execution(plan, config, answers, stack, caches=caches, session=session)
        run = (scope.flow_run or scope.run) if scope else terms.run_key
        execution.created_by = f"run {run or uuid4().hex}"
        try:
            yield execution
        finally:
            await execution.answers.close()  # other executions may then make the unanswered calls


def first_error(outcomes: Sequence[Outcome], provider: str) -> PolluxError | None:
    """Return the error of the first call that failed, as an exception to raise; None if none failed."""
    failures = (outcome.failure for outcome in outcomes if outcome.failure is not None)
    return next((failure.error(provider) for failure in failures), None)


class Execution:
    """Makes the calls of a plan over one connection, uploads each file once, and saves each answer when it arrives."""

    def __init__(
        self,
        plan: Plan,
        config: Config,
        answers: Answers,
        stack: AsyncExitStack,
        *,
        caches: CacheRegistry | None = None,
        session: Session | None = None,
    ) -> None:
        self.answers = answers
        self.config = config
        self.caches = caches
        self.created_by: str | None = None
        """The creator that the records of its caches name."""
        self._stack = stack
        self._session = session
        self._opening = asyncio.Lock()
        self._opened: tuple[Session, Attachments] | None = None
        # Enough calls to fill the slots. Queuing ten thousand at once would take a second at the start.
        self._line = asyncio.Semaphore(2 * config.request_concurrency)
        self.use_plan(plan)

    def use_plan(self, plan: Plan) -> None:
        """Set the plan. Before the first call, it may be replaced by a plan with different caching."""
        self.plan = plan
        self._warm_ups = WarmUps(plan)
        self._prefix_keys: dict[tuple[int, ...], str | None] = {}
        self._worst_cases: dict[tuple[int, ...], WorstCase] = {}
        self._cache_uses: dict[int | None, CacheUse] = {}

    @property
    def cache(self) -> CacheUse:
        """The cache that all calls use."""
        return self.find_cache(None)

    @property
    def cache_uses(self) -> Sequence[CacheUse]:
        """The caches of the calls: one, or one per source."""
        return list(self._cache_uses.values())

    @property
    def used_caches(self) -> list[UsedCache]:
        """The registered caches that calls used, for the metrics of the run."""
        return [used for use in self._cache_uses.values() for used in use.used]

    def find_cache(self, source: int | None) -> CacheUse:
        """Return the cache of the calls about that source."""
        if source not in self._cache_uses:
            self._cache_uses[source] = CacheUse(
                self.plan, self.config, self.caches, source=source, created_by=self.created_by
            )
        return self._cache_uses[source]

    async def answer_calls(
        self, calls: Sequence[PlannedCall], on_outcome: OnOutcome | None = None, turn: QueuePlace | None = None
    ) -> list[Outcome]:
        """Make these calls of the plan, and return their outcomes in order.

        A failed call does not cancel the others, and no answer is dropped. `turn` is closed once all calls are queued.
        """
        if not calls:
            return []
        on_outcome = on_outcome or _ignore
        found = await self.answers.load_reusable(calls)
        for outcome in found.values():
            on_outcome(outcome)
        missing = [call for call in calls if call.index not in found]
        if missing:
            await self._begin(missing)
        # Not a TaskGroup: its first failure would cancel siblings whose answers are being paid for.
        asking: list[asyncio.Task[Outcome]] = []
        try:
            for planned in missing:
                await self._line.acquire()
                asking.append(asyncio.create_task(self._answer_call(planned, QueuePlace(self._line), on_outcome)))
            if turn is not None:
                turn.close()
        finally:
            if len(asking) < len(missing):  # cancelled while queuing
                for each in asking:
                    each.cancel()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
        for planned, outcome in zip(missing, map(raise_if_error, outcomes), strict=True):
            found[planned.index] = await self.answers.save_late(outcome)
        return [found[call.index] for call in calls]

    async def _answer_call(self, planned: PlannedCall, place: QueuePlace, on_outcome: OnOutcome) -> Outcome:
        with closing(place):
            if self._warm_ups.is_needed(planned.source):
                place.close()  # it may wait for another call, which must not wait for this place in the queue
            async with self._warm_ups.take_turn(planned.source):
                await place.reopen()
                outcome = await _CallRun(self, planned, place).run()
                self._warm_ups.record(planned.source, outcome)
        on_outcome(outcome)
        return outcome

    async def _begin(self, calls: Sequence[PlannedCall]) -> None:
        """Check the finished request of one call for each set of sources, and the budget, before anything is sent."""
        await self.answers.begin()
        await self.cache.open()
        asked = {tuple(self.plan.sources_of(planned)): planned for planned in reversed(calls)}
        for planned in asked.values():
            if planned.sources is None:
                await self.check_call(planned)
        if self.answers.spending.is_limited:
            await self.check_budget([planned for planned in calls if planned.sources is None])

    async def check_call(self, planned: PlannedCall) -> None:
        """Check the finished request of a call, before a file is uploaded for it."""
        session, attachments = await self.open_session()
        call = self.make_call(planned, attachments.make_placeholders(self.plan.sources_of(planned)))
        await retry_call(partial(session.check, call), self.config)

    async def check_budget(self, calls: Sequence[PlannedCall]) -> None:
        """Refuse a budget below the worst case of the cheapest of these calls."""
        shortest: dict[int | None, PlannedCall] = {}
        for planned in calls:
            found = shortest.setdefault(planned.source, planned)
            if len(planned.prompt or "") < len(found.prompt or ""):
                shortest[planned.source] = planned
        worst_cases = [(await self.find_worst_case(planned), planned.prompt) for planned in shortest.values()]
        if worst_cases:
            self.answers.spending.check_fits(*min(worst_cases, key=lambda each: each[0].usd(each[1])))

    async def find_worst_case(self, planned: PlannedCall) -> WorstCase:
        """Return the worst case of the calls about the same sources as this one."""
        sources = tuple(self.plan.sources_of(planned))
        if (known := self._worst_cases.get(sources)) is not None:
            return known
        session, attachments = await self.open_session()
        call = replace(self.make_call(planned, attachments.make_placeholders(sources)), prompt=planned.prompt and "")
        sizes = [text_size(self.plan, index) for index in sources]
        found = find_worst_case(self.plan.target, call, session.provider.generate.request(call), sizes)
        if planned.sources is None:  # otherwise no other call is about the same sources
            self._worst_cases[sources] = found
        return found

    def make_call(
        self, planned: PlannedCall, materials: tuple[Material, ...], cache: CacheHandle | None = None
    ) -> Call:
        plan, own = self.plan, len(materials) - len(self.plan.history.attached)
        sources = tuple(plan.sources_of(planned))
        if sources not in self._prefix_keys:
            self._prefix_keys[sources] = prefix_key(plan, sources)
        return Call(
            model=plan.target.model,
            materials=materials[:own],
            prompt=planned.prompt,
            options=plan.options if cache is None else strip_cached_options(plan.options, cache),
            implicit_caching=self._warm_ups.caches(planned.source),
            is_one_of_many=plan.sharing > 1,
            prefix_key=self._prefix_keys[sources],
            history=tuple(attach_history(plan.history.turns, materials[own:])),
            response_id=plan.history.response_id,
        )

    async def open_session(self) -> tuple[Session, Attachments]:
        """Return the provider's session and the plan's attachments, opened by the first call."""
        async with self._opening:
            if self._opened is None:
                session = self._session
                if session is None:
                    session = await self._stack.enter_async_context(open_session(self.config))
                attachments = await self._stack.enter_async_context(open_attachments(self.plan, session, uuid4().hex))
                self._opened = session, attachments
        return self._opened


class _CallRun:
    """The execution of one call, from claiming it in the state to saving its answer."""

    def __init__(self, execution: Execution, planned: PlannedCall, place: QueuePlace) -> None:
        self._execution, self._planned, self._place = execution, planned, place
        self._answers = execution.answers
        self._use = execution.find_cache(planned.source)
        self._check_permission: MayAsk = self._answers.check_may_ask
        self._cache: CacheHandle | None = None
        self._sources: Sequence[int] = ()
        self._materials: tuple[Material, ...] = ()
        self._saved: Outcome | None = None
        self._worst_case: WorstCase | None = None
        self._reservation = Reservation()

    async def run(self) -> Outcome:
        """Make the call, or wait for the answer if another execution makes it. An error fails only this call."""
        try:
            while True:
                with suppress(CallLeasedError):
                    async with self._answers.claim_call(self._planned) as self._check_permission:
                        return await self._ask()
                if (outcome := await self._answers.wait_for_other(self._planned)) is not None:
                    return outcome
        except PolluxError as error:
            return make_unasked_outcome(self._planned, error)

    async def _ask(self) -> Outcome:
        """Call the provider until it answers, with a new cache or new files if it lost those."""
        await self._answers.check_may_ask()  # before a file is uploaded for it
        if self._planned.sources is not None:  # a call with its own sources is checked here, and fails without others
            await self._execution.check_call(self._planned)
        if self._answers.spending.is_limited:
            self._worst_case = await self._execution.find_worst_case(self._planned)
            self._answers.spending.check_fits(self._worst_case, self._planned.prompt)
        config = self._execution.config
        session, attachments = await self._execution.open_session()
        has_reattached = False
        while True:
            await self._prepare(attachments)
            try:
                attempts: Attempts[Answer] = await attempt(
                    partial(self._generate, session),
                    policy=config.retry,
                    timeout_s=config.timeout_s,
                    slot=session.slot,
                    start=self._start,
                    save=self._save,
                )
            finally:
                self._reservation.end()
            if await self._use.replace_lost(self._cache, attempts.error):
                continue
            if has_reattached or not await attachments.has_lost_files(attempts.error, self._sources, self._materials):
                return self._saved or self._make_outcome(attempts)
            has_reattached = True

    async def _prepare(self, attachments: Attachments) -> None:
        """Acquire the cache, and the materials that are sent with it. Not in a slot, as creating a cache takes one."""
        plan = self._execution.plan
        if self._worst_case is not None:
            async with self._use.creating:
                if self._use.is_to_create:
                    await self._answers.spending.create_cache(self._use, self._worst_case, self._planned.prompt)
        self._cache = await self._use.acquire()
        self._answers.spending.add_caches(self._use.used)
        # Sources in the cache are not sent; those that were attached to prior turns are.
        self._sources = plan.sources_of(self._planned)[plan.own_sources if self._use.holds_sources else 0 :]
        self._materials = await attachments.materials(self._sources)

    async def _start(self, attempts: int) -> None:
        """Leave the queue, reserve budget, and check once more that the call may be made. Called in a slot.

        Budget is reserved for one attempt at a time, while the call has the slot, as others may wait for that budget.
        """
        self._place.close()
        if self._worst_case is not None:  # first, as it may have to wait
            self._reservation = await self._answers.spending.reserve(self._worst_case, self._planned.prompt)
        if attempts == 0:
            await self._check_permission()

    async def _generate(self, session: Session) -> Answer:
        call = self._execution.make_call(self._planned, self._materials, self._cache)
        self._reservation.mark_sent()
        try:
            return await session.generate(call)
        except APIError as error:  # a refused request is not billed
            self._reservation.settle(None if error.outcome_unknown else 0.0)
            raise

    async def _save(self, attempts: Attempts[Answer]) -> None:
        """Save the answer before the slot is released."""
        outcome = self._make_outcome(attempts)
        self._answers.spending.settle(self._reservation, outcome)
        self._saved = await self._answers.save_outcome(outcome)

    def _make_outcome(self, attempts: Attempts[Answer]) -> Outcome:
        plan, answer, error = self._execution.plan, attempts.result, attempts.error
        if answer is not None and not answer.tool_calls and plan.sharing > 1:
            answer = answer.by_itself()
        cost = answer and cost_of(plan.target, answer)
        return Outcome(
            index=self._planned.index,
            identity=self._answers.identity(self._planned),
            answer=answer,
            failure=None if error is None else CallFailure.of(self._planned.index, error),
            attempts=attempts.number,
            unknown_attempts=attempts.unknown,
            waited_s=round(attempts.waited_s, 3),
            duration_s=round(attempts.elapsed_s, 3),
            cost_usd=cost and cost.usd,
            cost_unknown=cost and cost.unknown,
            counted_in=self._answers.spending.ledger,
        )


class QueuePlace:
    """A place in a queue, which the next in the queue gets once it is closed."""

    def __init__(self, line: asyncio.Semaphore) -> None:
        self._line, self._is_held = line, True

    def close(self) -> None:
        if self._is_held:
            self._is_held = False
            self._line.release()

    async def reopen(self) -> None:
        """Queue again, unless the place is still open."""
        if not self._is_held:
            await self._line.acquire()
            self._is_held = True


def make_unasked_outcome(planned: PlannedCall, error: PolluxError) -> Outcome:
    """Return the outcome of a call that could not be made."""
    failure = CallFailure.of(planned.index, error)
    return Outcome(index=planned.index, identity=planned.identity, failure=failure, attempts=0)


def _ignore(_: Outcome) -> None:
    pass
