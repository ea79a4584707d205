"""Submit: hand a job in, so that each of its prompts is paid for once, whatever happens on the way.

Before a batch is asked for, the job says so: from then on the provider may have it. Whoever finds a job that says so
and does not say what came of it looks for the batch at the provider, and never simply asks again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from pollux_flows.capabilities import check_deferred
from pollux_flows.deferred.book import Asked, Book, BusyError, Hold
from pollux_flows.deferred.files import JobFiles, give_back_files, job_files
from pollux_flows.deferred.job import Job, Part, key_of, new_job, tag_of
from pollux_flows.deferred.reconcile import SETTLED_S, find_batch
from pollux_flows.deferred.rows import check_row, write_rows
from pollux_flows.deferred.warm import caches_part, goes_first
from pollux_flows.errors import APIError, ConfigurationError, PolluxError
from pollux_flows.pipeline.attach import Attachments
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.pipeline.prefix import prefix_key
from pollux_flows.pipeline.request import Request
from pollux_flows.pipeline.retry import Attempts, attempt, insist
from pollux_flows.providers.base import Call
from pollux_flows.providers.batches import Batch, Limits, Rows
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session
from pollux_flows.result import CallFailure
from pollux_flows.state.leases import Clock

_NOT_FOUND: Final = 404
# A provider that says "not now" of a batch means minutes.
_WAIT_S: Final = 60.0
_LONGEST_WAIT_S: Final = 1800.0
# After a reply that was lost, the batch most often shows at once.
_LOOKS_S: Final = (0.0, 0.5, 1.0, 2.0)


def check(request: Request) -> None:
    """Refuse, before anything is read, written or sent, what cannot be deferred."""
    check_deferred(request.target, request.options)
    if not request.prompts:
        raise ConfigurationError("There is nothing to defer: no prompts.", hint="Pass one prompt at least.")


async def check_finished(session: Session, plan: Plan) -> None:
    """Refuse, before any upload, what only a finished request shows."""
    materials = Attachments(plan, session).pretended(range(len(plan.sources)))
    longest = max(plan.calls, key=lambda call: len(call.prompt or ""))
    call = _call(plan, longest, materials)
    await insist(partial(session.check, call), session.config)
    check_row(session.batches.row(call, key_of(tag_of("pollux", 0, 1), 0)), session.batches.LIMITS, longest.index)


async def claim(book: Book, name: str, asked: Asked, plan: Plan, key: str | None, **more: Any) -> Job:
    """The job of that name: a new one or, when this was done before, the one that there is."""
    job = new_job(name, plan, time.time(), key, **more)
    found = await book.find(name)
    if found is None:
        await book.ask(name, asked)  # before the job: whoever finds one finds what it asks
        if await book.add(job):
            return job
        found = await book.find(name)
    if found is not None and found.fingerprint != job.fingerprint:
        raise ConfigurationError(
            f"The job {name} is there already, and asks something else.",
            hint="Give this one another name, or another run_key.",
        )
    return found or job


async def hand_in_first(
    book: Book,
    name: str,
    session: Session,
    plan: Plan | None = None,
    then: Callable[[Hold], Awaitable[None]] | None = None,
) -> Job:
    """Hand in what a job that was claimed has left. If nothing of it is taken, it is forgotten and the reason raised.

    `plan` is what it asks, where that is at hand; `then` is done with the job in hand once the provider has it.
    """
    try:
        async with book.alone(name) as hold:
            if not hold.job.is_handed_in:
                try:
                    await settle(hold, session)
                    await hand_in(hold, session, plan or await planned(book, hold.job))
                except PolluxError:
                    await _forgotten(hold, session)
                    raise
            problems = [part.problem for part in hold.job.parts if part.state == "refused" and part.problem]
            if len(problems) == len(hold.job.parts) and await _forgotten(hold, session):
                raise problems[0].error(hold.job.target.provider)
            if then is not None:
                await then(hold)
            return hold.job
    except BusyError:
        # Somebody who found it unfinished is at work on it: what that came to, the job will say.
        if (job := await book.find(name)) is None:
            raise ConfigurationError(f"Nothing of {name} was taken.", hint="Whoever handed it in knows why.") from None
        return job


async def planned(book: Book, job: Job) -> Plan:
    """The calls of a job that is on record."""
    # Off the event loop: 50,000 of them take a second.
    return await asyncio.to_thread((await book.asked(job.name)).plan, job)


async def hand_in(
    hold: Hold, session: Session, plan: Plan, *, known: Collection[str] = (), clock: Clock = time.time
) -> None:
    """Hand in what is due, until the provider has it, or has said why not, or wants it later.

    What may have been handed in is to be settled before. `known` are batches of this account that belong to other jobs.
    """
    await _HandingIn(hold, session, plan, known, clock).all()


async def settle(
    hold: Hold, session: Session, *, known: Collection[str] = (), lost: bool = False, clock: Clock = time.time
) -> None:
    """Find out what became of parts that may have been handed in; with `lost`, also of those that were given up.

    It needs nothing but the job. A batch that was accepted and is missing is handed in again by a person only: the
    provider may have answered it, and billed it.
    """
    for number, part in enumerate(hold.job.parts):
        again = lost or (hold.job.on_lost == "submit" and hold.job.was_handed_in_with(session.config.key()))
        if part.is_missing:
            if lost:
                await _look_again(hold, session, number)
        elif part.state == "sending" or (again and part.state == "lost"):
            await _settled(hold, session, number, known, clock())


class _HandingIn:
    def __init__(self, hold: Hold, session: Session, plan: Plan, known: Collection[str], clock: Clock) -> None:
        self._hold, self._session, self._plan, self._known, self._clock = hold, session, plan, known, clock

    async def all(self) -> None:
        # A job that somebody wants no more of is never due.
        if self._hold.job.is_due(self._clock()):
            async with job_files(self._hold.job, self._plan, self._session) as files:
                with tempfile.TemporaryDirectory(prefix="pollux-rows-") as folder:
                    materials = await files.materials()
                    written = await self._split(materials, Path(folder)) if not self._hold.job.parts else {}
                    done: set[int] = set()
                    # Where the first is refused, those that follow it are due at once.
                    while due := [number for number in self._hold.job.due(self._clock()) if number not in done]:
                        for number in due:
                            rows = written.get(number) or await self._written(number, materials, Path(folder))
                            await self._hand_in(number, rows, files)
                            rows.path.unlink()
                        done.update(due)

    async def _split(self, materials: Sequence[Material], folder: Path) -> dict[int, Rows]:
        """All rows; and, in the job, which parts they make."""
        module = self._session.batches
        # Several attempts have names of the same length, so what fits once fits again.
        calls, limits, is_warm = self._plan.calls, module.LIMITS, goes_first(self._plan)
        row = self._row(materials, 1, caches=is_warm)
        rows = await asyncio.to_thread(write_rows, calls[:1], row, limits, folder) if is_warm else []
        rows += await asyncio.to_thread(write_rows, calls[len(rows) :], row, limits, folder, len(rows))
        parts, first = [], 0
        for number, each in enumerate(rows):
            parts.append(Part(first=first, count=each.count, follows=is_warm and number > 0))
            first += each.count
        await self._hold.save(self._hold.job.with_parts(parts))
        if not is_warm:
            return dict(enumerate(rows))
        for each in rows[1:]:  # made anew when they are due: whether they have something to read shows then
            each.path.unlink()
        return {0: rows[0]}

    async def _written(self, number: int, materials: Sequence[Material], folder: Path) -> Rows:
        """The rows of one part, which were split off earlier."""
        part = self._hold.job.parts[number]
        calls = self._plan.calls[part.first : part.first + part.count]
        caches = caches_part(self._hold.job, number, self._clock())
        row = self._row(materials, part.attempt + 1, caches=caches)
        limits = Limits(rows=part.count, size_bytes=1 << 62)
        (rows,) = await asyncio.to_thread(write_rows, calls, row, limits, folder, number)
        return rows

    def _row(self, materials: Sequence[Material], attempt: int, *, caches: bool) -> Callable[[PlannedCall, int], bytes]:
        make, submission = self._session.batches.row, self._hold.job.submission
        key = prefix_key(self._plan, range(len(self._plan.sources)))

        def row(planned: PlannedCall, number: int) -> bytes:
            call = _call(self._plan, planned, materials, key=key, caches=caches)
            return make(call, key_of(tag_of(submission, number, attempt), planned.index))

        return row

    async def _hand_in(self, number: int, rows: Rows, files: JobFiles) -> None:
        hold, session = self._hold, self._session
        file_id = await files.upload_rows(rows) if session.batches.TAKES_A_FILE else None
        part = hold.job.parts[number]
        handed_in = {"attempt": part.attempt + 1, "state": "sending", "sent_at": self._clock()}
        intent = part.again().model_copy(update=handed_in)
        await hold.save(hold.job.with_part(number, intent))
        create = partial(session.submit_batch, hold.job.tag(number), rows, file_id)
        config = session.config
        attempts: Attempts[Batch] = await attempt(
            create, policy=config.retry, timeout_s=config.timeout_s, slot=_Turn(hold), repeatable=False
        )
        if attempts.error is None:
            await hold.save(hold.job.with_part(number, intent.seen(attempts.unwrap())))
        elif attempts.error.outcome_unknown:
            await hold.save(hold.job.with_part(number, intent.model_copy(update={"lost_at": self._clock()})))
            await self._look(number)
        elif attempts.error.retryable:
            await hold.save(hold.job.with_part(number, self._waiting(intent, attempts.error)))
        elif attempts.error.error_category == "auth":
            await hold.save(hold.job.with_part(number, part))
            raise attempts.error
        else:
            refused = intent.model_copy(
                update={"state": "refused", "sent_at": None, "problem": CallFailure.of(0, attempts.error)}
            )
            await hold.save(hold.job.with_part(number, refused))

    async def _look(self, number: int) -> None:
        for pause in _LOOKS_S:
            await asyncio.sleep(pause)
            with suppress(APIError):  # whoever comes next looks again
                await _settled(self._hold, self._session, number, self._known, self._clock())
            if self._hold.job.parts[number].state != "sending":
                return

    def _waiting(self, part: Part, error: APIError) -> Part:
        wait_s = max(error.retry_after_s or 0.0, waiting_s(part.attempt))
        return part.waits(self._clock() + wait_s, CallFailure.of(0, error))


class _Turn:
    """Around each try: nobody has taken the job over who might be handing it in as well."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    async def __aenter__(self) -> None:
        await self._hold.renew()

    async def __aexit__(self, *_: object) -> None:
        pass


def waiting_s(attempt: int) -> float:
    """How long a part waits that there was no room for at that attempt."""
    return min(_WAIT_S * 2.0 ** max(0, attempt - 1), _LONGEST_WAIT_S)


async def _look_again(hold: Hold, session: Session, number: int) -> None:
    """Ask once more for a batch that was missing."""
    part = hold.job.parts[number]
    try:
        batch = await insist(partial(session.inspect_batch, part.batch_id or ""), session.config)
    except APIError as error:
        if error.status_code != _NOT_FOUND:
            raise
    else:
        await hold.save(hold.job.with_part(number, part.seen(batch)))


async def _settled(hold: Hold, session: Session, number: int, known: Collection[str], now: float) -> None:
    """Write down what is found of a part that may have been handed in."""
    job, part = hold.job, hold.job.parts[number]
    own = [each.batch_id for each in job.parts if each.batch_id is not None]
    found = await find_batch(session, part, job.tag(number), now, known={*known, *own})
    if found == "unknown":
        if part.state == "lost":  # given up too early: it is looked for again
            await hold.save(job.with_part(number, part.model_copy(update={"state": "sending"})))
        return
    if found is not None:
        settled = part.seen(found)
    elif part.lost_at is None:
        # Whoever handed it in is gone. What was on its way then may still arrive.
        settled = part.model_copy(update={"lost_at": now})
    elif now - part.lost_at < SETTLED_S:
        return
    elif job.on_lost == "submit" and job.was_handed_in_with(session.config.key()):
        settled = part.again()
    elif part.state == "lost":
        return
    else:  # with another key, another account's batches were looked through
        settled = part.model_copy(update={"state": "lost"})
    await hold.save(job.with_part(number, settled))


async def _forgotten(hold: Hold, session: Session) -> bool:
    """Forget the job if nothing of it can be at the provider, and nobody else relies on it; tell whether that is so."""
    job = hold.job
    unsent = all(part.state in {"waiting", "refused"} and part.attempt <= 1 for part in job.parts)
    waits = any(part.not_before is not None for part in job.parts)
    if not unsent or waits or job.parent is not None or job.cancelled:
        return False
    await hold.remove()
    await give_back_files(job, session)
    return True


def _call(
    plan: Plan,
    planned: PlannedCall,
    materials: Sequence[Material],
    *,
    key: str | None = None,
    caches: bool = False,
) -> Call:
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
