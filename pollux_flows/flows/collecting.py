"""Collecting: one look at all jobs that are not done, with few requests, and what there is to do for each."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from prefect import get_run_logger, task

from pollux_flows.config import Config
from pollux_flows.deferred.book import BusyError
from pollux_flows.deferred.inspect import with_missing, with_seen
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.poll import MOST_REQUESTS, Seen, poll
from pollux_flows.deferred.report import CollectReport, JobRow, missing_in, row_of
from pollux_flows.errors import PolluxError
from pollux_flows.jobs import pages
from pollux_flows.jobs.book import BlockBook, missing
from pollux_flows.jobs.collecting import Pass, open_expiry, wants_work
from pollux_flows.jobs.configs import Configs
from pollux_flows.jobs.shelf import ResultShelf
from pollux_flows.providers.session import open_session
from pollux_flows.state.bounds import retention_s
from pollux_flows.state.leases import LeaseLostError
from pollux_flows.tasks import UNSTORED

# A Prefect server on SQLite puts off those who write at the same time, for seconds: more at once would take longer.
_AT_ONCE: Final = 2
# Of the jobs that are older than answers are kept, so many are forgotten at a time.
_FORGOTTEN: Final = 20
# A task run for each job, up to so many that a person looks at.
_SHOWN: Final = 50


async def collect_jobs(names: Sequence[str] | None = None) -> CollectReport:
    """Look at the jobs, or at those of these names, do for each what can be done, and leave a report of it."""
    report = await look_at(names)
    await pages.leave_report(report)
    for row in report.rows:
        if row.status == "ambiguous":
            get_run_logger().error("%s is lost at the provider. %s", row.job, row.problem or f"Next: {row.next}.")
    get_run_logger().info("%s.", report.headline)
    return report


async def look_at(names: Sequence[str] | None = None) -> CollectReport:
    """The same without a trace."""
    names = names or None  # an empty form field stands for all
    book = BlockBook(await ResultShelf.open())
    jobs, unreadable = await book.all()
    if names is not None:
        there = {job.name for job in jobs} | {each.name for each in unreadable}
        for name in names:
            if name not in there:
                raise missing(name)
    family = None if names is None else _family(names, jobs)
    wanted = [job for job in jobs if job.retired_at is None and (family is None or job.name in family)]
    known = [part.batch_id for job in jobs for part in job.parts if part.batch_id]
    look = _Look(Pass(book, known), show=len(wanted) <= _SHOWN)
    await look.at_all(wanted)
    expiry = open_expiry()
    old = [job.name for job in jobs if expiry.has_passed(job.retired_at, retention_s())]
    await book.forget(old[:_FORGOTTEN])
    if names is not None:  # what is done already is told again to whoever asks after it
        look.rows |= {job.name: row_of(job, time.time()) for job in jobs if job.name in names and job.retired_at}
    for each in unreadable:
        if names is None or each.name in names:
            look.rows[each.name] = JobRow(job=each.name, status="unreadable", problem=each.why)
    return CollectReport(rows=[look.rows[name] for name in sorted(look.rows)], requests=look.requests)


def _family(names: Sequence[str], jobs: Sequence[Job]) -> set[str]:
    """These jobs, and those that complete them, or have done so."""
    parents = {job.name: job.parent for job in jobs}

    def belongs(name: str | None) -> bool:
        return name is not None and (name in names or belongs(parents.get(name)))

    return {name for name in [*names, *parents] if belongs(name)}


class _Look:
    def __init__(self, one_pass: Pass, *, show: bool) -> None:
        self.rows: dict[str, JobRow] = {}
        self.requests = 0
        self._pass, self._show = one_pass, show
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def at_all(self, jobs: Sequence[Job]) -> None:
        accounts = await self._by_account(jobs)
        for before, (config, some) in enumerate(accounts):
            # What one account leaves of its share, the next ones have.
            share = (MOST_REQUESTS - self.requests) // (len(accounts) - before)
            await self._at_account(config, some, max(1, share))
            while self._pass.made:  # what failed was handed in again: as a job of its own, which is new
                made = [job for name in self._pass.made if (job := await self._pass.book.find(name))]
                self._pass.made.clear()
                await self._work_on({job.name: (job, config) for job in made}, None)

    async def _by_account(self, jobs: Sequence[Job]) -> list[tuple[Config, list[Job]]]:
        """The jobs of each account together, so that one list shows all of them."""
        configs = Configs()
        accounts: dict[tuple[str, str | None, str | None, bool], list[tuple[Config, Job]]] = defaultdict(list)
        for job in jobs:
            try:
                config = await configs.of(job)
            except PolluxError as error:
                self._left_alone(job, error)
                continue
            accounts[config.provider, config.base_url, config.key(), config.use_mock].append((config, job))
        return [(some[0][0], [job for _, job in some]) for some in accounts.values()]

    async def _at_account(self, config: Config, jobs: Sequence[Job], most: int) -> None:
        try:
            async with open_session(config) as session:
                seen = await poll(session, jobs, most)
        except PolluxError as error:
            for job in jobs:
                self._left_alone(job, error)
            return
        self.requests += seen.requests
        now, working = time.time(), {}
        for job in jobs:
            current = with_missing(with_seen(job, seen.batches, now), seen.missing, config.key(), now)
            self.rows[job.name] = row_of(current, now, missing_in(current) or _refusal(job, seen, config.key()))
            if wants_work(current, now) or current.state != job.state:
                # In one account there may be jobs for several models.
                working[job.name] = (job, config.model_copy(update={"model": job.target.model}))
        await self._work_on(working, seen)

    async def _work_on(self, working: Mapping[str, tuple[Job, Config]], seen: Seen | None) -> None:
        async def one(job: Job, config: Config) -> None:
            async with self._turn:
                await self._one(job, config, seen)

        await asyncio.gather(*(one(job, config) for job, config in working.values()))

    async def _one(self, job: Job, config: Config, seen: Seen | None) -> None:
        async def work() -> Job | None:
            try:
                return await self._pass.work_on(job.name, config, seen)
            except (BusyError, LeaseLostError):
                return None  # which is no failure

        shown = task(name="job", task_run_name=job.name, **UNSTORED)(work) if self._show else work
        try:
            if (worked := await shown()) is None:
                row = self.rows.get(job.name) or row_of(job, time.time())
                self.rows[job.name] = row.model_copy(update={"next": "somebody else is at work on it"})
                return
            self.rows[job.name] = row_of(worked, time.time())
            if worked.parent is not None and (parent := await self._pass.book.find(worked.parent)):
                self.rows[parent.name] = row_of(parent, time.time())  # which it may have completed
        except Exception as error:  # noqa: BLE001 (one job, whatever is wrong with it, does not stop the others)
            self._left_alone(job, error)

    def _left_alone(self, job: Job, error: Exception) -> None:
        get_run_logger().warning("%s is left alone: %s", job.name, error)
        self.rows[job.name] = row_of(job, time.time(), str(error) or type(error).__name__)


def _refusal(job: Job, seen: Seen, key: str | None) -> str | None:
    said = [str(seen.refused[part.batch_id]) for part in job.parts if part.batch_id in seen.refused]
    if not said:
        return None
    if seen.missing and not job.was_handed_in_with(key):
        return f"It was handed in with another key, and with this one its batch is not found: {said[0]}"
    return said[0]
