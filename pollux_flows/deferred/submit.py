"""Submission of a job, so that each of its prompts is paid for once, even if the process is killed.

Before a batch is created at the provider, the job is saved with that intent: from then on the provider may have the
batch. A process that finds such an intent without an outcome reconciles it before it submits anything.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from pollux_flows.capabilities import check_deferred
from pollux_flows.deferred.files import MakeRow, check_row, open_files, release_files, write_rows
from pollux_flows.deferred.job import Job, Part, new_job, row_key, tag_of, to_ranges
from pollux_flows.deferred.reconcile import reconcile, reconcile_part
from pollux_flows.deferred.store import BusyError, JobLock, JobRequest, JobStore
from pollux_flows.deferred.warm import caches_part, goes_first
from pollux_flows.errors import APIError, ConfigurationError, PolluxError
from pollux_flows.pipeline.attach import Attachments
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.prefix import prefix_key
from pollux_flows.pipeline.request import Request
from pollux_flows.pipeline.retry import Attempts, attempt, retry_call
from pollux_flows.providers.base import Call
from pollux_flows.providers.batches import Batch, BatchLimits, Rows
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session
from pollux_flows.result import CallFailure
from pollux_flows.state.leases import Clock

# After a lost reply, the batch is usually listed at once.
_SEARCH_PAUSES_S: Final = (0.0, 0.5, 1.0, 2.0)


def check_request(request: Request) -> None:
    """Raise a ConfigurationError for a request that cannot be deferred, before anything is read, saved or sent."""
    check_deferred(request.target, request.options)
    if not request.prompts:
        raise ConfigurationError("There is nothing to defer: no prompts.", hint="Pass at least one prompt.")


async def check_plan(session: Session, plan: Plan) -> None:
    """Check the longest call as the provider would receive it, before any upload."""
    longest = max(plan.calls, key=lambda call: len(call.prompt or ""))
    materials = Attachments(plan, session).make_placeholders(plan.sources_of(longest))
    call = make_call(plan, longest, materials)
    await retry_call(partial(session.check, call), session.config)
    check_row(session.batches.row(call, row_key(tag_of("pollux", 0, 1), 0)), session.batches.LIMITS, longest.index)


async def create_job(store: JobStore, name: str, request: JobRequest, plan: Plan, key: str | None, **more: Any) -> Job:
    """Create a job under this name, or return the one that an earlier attempt has created."""
    job = new_job(name, plan, time.time(), key, **more)
    found = await store.find(name)
    if found is None:
        await store.save_request(name, request)  # first: every job that is found has its request
        if await store.create(job):
            return job
        found = await store.find(name)
    if found is not None and found.fingerprint != job.fingerprint:
        raise ConfigurationError(
            f"The job {name} exists already, with other prompts, sources or options.",
            hint="Give this one another name, or another run_key.",
        )
    return found or job


async def create_child(
    job: Job,
    store: JobStore,
    indexes: Sequence[int],
    key: str | None,
    *,
    resubmit: int = 0,
    max_cost_usd: float | None = None,
) -> Job:
    """Create the job that repeats these prompts, or return the one that an earlier attempt has created."""
    request, rows = await store.load_request(job.name), to_ranges(indexes)
    request.plan(job)  # refused if its calls have changed
    child = new_job(
        job.next_child,
        request.plan_rows(rows),
        time.time(),
        key,
        rows=rows,
        parent=job.name,
        resubmit=resubmit,
        on_lost=job.on_lost,
        provider_block=job.provider_block,
        max_cost_usd=max_cost_usd,
    )
    await store.save_request(child.name, request)
    return child if await store.create(child) else await store.find(child.name) or child


async def load_plan(store: JobStore, job: Job) -> Plan:
    """Return the plan of a stored job."""
    # Off the event loop: 50,000 calls take a second.
    return await asyncio.to_thread((await store.load_request(job.name)).plan, job)


async def submit_created_job(
    store: JobStore,
    name: str,
    session: Session,
    plan: Plan | None = None,
    on_submitted: Callable[[JobLock], Awaitable[None]] | None = None,
) -> Job:
    """Submit the rest of a created job. If the provider accepts no part of it, remove it and raise the reason.

    `plan` is loaded if it is not passed. `on_submitted` runs before the lock is released.
    """
    try:
        async with store.lock(name) as lock:
            if not lock.job.is_submitted:
                try:
                    await reconcile(lock, session)
                    await submit_due_parts(lock, session, plan or await load_plan(store, lock.job))
                except PolluxError:
                    await _remove_unsent(lock, session)
                    raise
            problems = [part.problem for part in lock.job.parts if part.state == "refused" and part.problem]
            if len(problems) == len(lock.job.parts) and await _remove_unsent(lock, session):
                raise problems[0].error(lock.job.target.provider)
            if on_submitted is not None:
                await on_submitted(lock)
            return lock.job
    except BusyError:
        # Another process has found the unfinished job and works on it: the job will show the outcome.
        if (job := await store.find(name)) is None:
            raise ConfigurationError(
                f"The provider accepted no part of {name}.", hint="See the error in the process that submitted it."
            ) from None
        return job


async def submit_due_parts(
    lock: JobLock, session: Session, plan: Plan, *, known: Collection[str] = (), clock: Clock = time.time
) -> None:
    """Submit all due parts, until the provider has accepted, refused or postponed each.

    Parts that may have been submitted must be reconciled before. `known` are the batches of this account that belong to
    other jobs.
    """
    if lock.job.is_due(clock()):  # a cancelled job never is
        await _Submission(lock, session, plan, known, clock).submit()


class _Submission:
    def __init__(self, lock: JobLock, session: Session, plan: Plan, known: Collection[str], clock: Clock) -> None:
        self._lock, self._session, self._plan, self._known, self._clock = lock, session, plan, known, clock

    async def submit(self) -> None:
        async with open_files(self._lock.job, self._plan, self._session) as files:
            with tempfile.TemporaryDirectory(prefix="pollux-rows-") as folder:
                self._files, self._folder, self._materials = files, Path(folder), await files.materials()
                written = {} if self._lock.job.parts else await self._split()
                done: set[int] = set()
                # If the first part is refused, those that follow it are due at once.
                while due := [number for number in self._lock.job.due_parts(self._clock()) if number not in done]:
                    for number in due:
                        rows = written.get(number) or await self._write_part(number)
                        await self._submit_part(number, rows)
                        rows.path.unlink()
                    done.update(due)

    async def _split(self) -> dict[int, Rows]:
        """Write all rows, split them into parts, and save these in the job."""
        # The tags of later attempts have the same length, so rows that fit now fit again.
        calls, limits, is_warm = self._plan.calls, self._session.batches.LIMITS, goes_first(self._plan)
        write = partial(write_rows, make_row=self._row_maker(1, caches=is_warm), limits=limits, folder=self._folder)
        rows = await asyncio.to_thread(write, calls[:1]) if is_warm else []
        rows += await asyncio.to_thread(write, calls[len(rows) :], first_part=len(rows))
        parts, first = [], 0
        for number, each in enumerate(rows):
            parts.append(Part(first=first, count=each.count, follows=is_warm and number > 0))
            first += each.count
        await self._lock.save(self._lock.job.with_parts(parts))
        if not is_warm:
            return dict(enumerate(rows))
        for each in rows[1:]:  # written again when they are due, as only then is it known if there is a cache to read
            each.path.unlink()
        return {0: rows[0]}

    async def _write_part(self, number: int) -> Rows:
        part = self._lock.job.parts[number]
        calls = self._plan.calls[part.first : part.first + part.count]
        make_row = self._row_maker(part.attempt + 1, caches=caches_part(self._lock.job, number, self._clock()))
        limits = BatchLimits(rows=part.count, size_bytes=1 << 62)
        (rows,) = await asyncio.to_thread(write_rows, calls, make_row, limits, self._folder, number)
        return rows

    def _row_maker(self, attempt: int, *, caches: bool) -> MakeRow:
        plan, materials = self._plan, self._materials
        make, submission = self._session.batches.row, self._lock.job.submission
        key = cache(lambda sources: prefix_key(plan, sources))

        def make_row(planned: PlannedCall, number: int) -> bytes:
            sources = tuple(plan.sources_of(planned))
            its = [materials[each] for each in sources]
            call = make_call(plan, planned, its, key=key(sources), caches=caches)
            return make(call, row_key(tag_of(submission, number, attempt), planned.index))

        return make_row

    async def _submit_part(self, number: int, rows: Rows) -> None:
        session, part = self._session, self._lock.job.parts[number]
        file_id = await self._files.upload_rows(rows) if session.batches.TAKES_A_FILE else None
        intent = part.mark_sending(self._clock())
        await self._save(number, intent)
        create = partial(session.submit_batch, self._lock.job.tag(number), rows, file_id)
        policy, timeout_s = session.config.retry, session.config.timeout_s
        attempts: Attempts[Batch] = await attempt(
            create, policy=policy, timeout_s=timeout_s, slot=_RenewedLease(self._lock), repeatable=False
        )
        if (error := attempts.error) is None:
            await self._save(number, intent.with_batch(attempts.unwrap()))
        elif error.outcome_unknown:
            await self._save(number, intent.model_copy(update={"lost_at": self._clock()}))
            await self._search(number)
        elif error.retryable:
            await self._save(number, intent.postpone(self._clock(), CallFailure.of(0, error), error.retry_after_s))
        elif error.error_category == "auth":
            await self._save(number, part)
            raise error
        else:
            changes = {"state": "refused", "sent_at": None, "problem": CallFailure.of(0, error)}
            await self._save(number, intent.model_copy(update=changes))

    async def _save(self, number: int, part: Part) -> None:
        await self._lock.save(self._lock.job.with_part(number, part))

    async def _search(self, number: int) -> None:
        for pause in _SEARCH_PAUSES_S:
            await asyncio.sleep(pause)
            with suppress(APIError):  # a later process looks again
                await reconcile_part(self._lock, self._session, number, self._known, self._clock())
            if self._lock.job.parts[number].state != "sending":
                return


class _RenewedLease:
    """Renews the lease before each attempt, as a process that has taken the job over may be submitting it as well."""

    def __init__(self, lock: JobLock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        await self._lock.renew()

    async def __aexit__(self, *_: object) -> None:
        pass


async def _remove_unsent(lock: JobLock, session: Session) -> bool:
    """Remove the job if none of it can be at the provider and no other job relies on it; return True if so."""
    job = lock.job
    is_unsent = all(part.state in {"waiting", "refused"} and part.attempt <= 1 for part in job.parts)
    waits = any(part.not_before is not None for part in job.parts)
    if not is_unsent or waits or job.parent is not None or job.cancelled:
        return False
    await lock.remove()
    await release_files(job, session)
    return True


def make_call(
    plan: Plan,
    planned: PlannedCall,
    materials: Sequence[Material],
    *,
    key: str | None = None,
    caches: bool = False,
) -> Call:
    """Return the call of a row in a batch."""
    options = plan.options.model_copy(update={"cache_ttl": "1h"}) if caches else plan.options
    return Call(
        model=plan.target.model,
        materials=tuple(materials),
        prompt=planned.prompt,
        options=options,
        implicit_caching=caches,
        is_one_of_many=True,
        prefix_key=key,
    )
