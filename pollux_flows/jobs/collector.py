"""The collector: passes over all jobs that are not retired, with few requests to their providers.

Each step of a pass is saved after it is taken, and repeating a step does no harm. So a pass may be killed at any
moment, and several may run at once: a job is locked while one of them works on it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from prefect import get_run_logger, task

from pollux_flows.config import Config
from pollux_flows.deferred.advance import advance
from pollux_flows.deferred.answers import ItemTally, find_retryable, merge_answers, save_answers
from pollux_flows.deferred.budget import check_child_budget
from pollux_flows.deferred.files import release_files
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.output import write_job_output
from pollux_flows.deferred.poll import MOST_REQUESTS, PollResult, poll
from pollux_flows.deferred.report import CollectReport, JobRow, missing_problem, row_of
from pollux_flows.deferred.results import download
from pollux_flows.deferred.store import BusyError, JobLock
from pollux_flows.deferred.submit import create_child
from pollux_flows.errors import BudgetError, ConfigurationError, PolluxError
from pollux_flows.jobs import pages
from pollux_flows.jobs.events import JobEvent, emit_job_event, emit_submission_events, was_emitted
from pollux_flows.jobs.store import BlockJobStore, JobConfigs, unknown_job
from pollux_flows.jobs.waiters import find_cancelled, job_name, resume_runs
from pollux_flows.output import output_path
from pollux_flows.providers.session import Session, open_session
from pollux_flows.state.clock_check import FILE, Expiry, machine_expiry
from pollux_flows.state.home import home, prepare_folder
from pollux_flows.state.leases import LeaseLostError
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import local_folder
from pollux_flows.tasks import UNSTORED

MOST_IN_ONE_ENVELOPE: Final = 10_000
"""A longer job has no envelope: its answers are lines in a file."""

# A Prefect server on SQLite postpones concurrent writes, for seconds: more at once would take longer.
_CONCURRENT_JOBS: Final = 2
# The most expired jobs that one pass removes.
_MOST_REMOVED: Final = 20
# Up to this many jobs are shown as task runs of their own.
_MOST_TASK_RUNS: Final = 50
# A run registers as waiting just before it is suspended. One that is not suspended after this time has died.
_WAITED_FOR_S: Final = 86_400.0


async def collect_jobs(names: Sequence[str] | None = None) -> CollectReport:
    """Run a collector pass over all jobs, or those of these names, and publish and log its report."""
    report = await run_pass(names)
    await pages.publish_report(report)
    for row in report.rows:
        if row.status == "ambiguous":
            get_run_logger().error("%s is lost at the provider. %s", row.job, row.problem or f"Next: {row.next}.")
    get_run_logger().info("%s.", report.headline)
    return report


async def run_pass(names: Sequence[str] | None = None) -> CollectReport:
    """Run a collector pass over all jobs, or those of these names, and return its report."""
    names = names or None  # an empty form field means all
    store = await BlockJobStore.open()
    jobs, unreadable = await store.list_jobs()
    if names is not None:
        existing = {job.name for job in jobs} | unreadable.keys()
        for name in names:
            if name not in existing:
                raise unknown_job(name)
    selected = None if names is None else _with_children(names, jobs)
    active = [job for job in jobs if job.retired_at is None and (selected is None or job.name in selected)]
    collector = CollectorPass(store, jobs, shows_tasks=len(active) <= _MOST_TASK_RUNS)
    await collector.collect(active)
    expiry = open_expiry()
    expired = [job.name for job in jobs if expiry.has_passed(job.retired_at, retention_s())]
    await store.remove_retired(expired[:_MOST_REMOVED])
    rows = collector.rows
    if names is not None:  # retired jobs are reported only by name
        rows |= {job.name: row_of(job, time.time()) for job in jobs if job.name in names and job.retired_at}
    for name, why in unreadable.items():
        if names is None or name in names:
            rows[name] = JobRow(job=name, status="unreadable", problem=why)
    return CollectReport(rows=[rows[name] for name in sorted(rows)], requests=collector.requests)


def _with_children(names: Sequence[str], jobs: Sequence[Job]) -> set[str]:
    """Return these names, and those of all jobs that complete or have completed them."""
    parents = {job.name: job.parent for job in jobs}

    def is_selected(name: str | None) -> bool:
        return name is not None and (name in names or is_selected(parents.get(name)))

    return {name for name in [*names, *parents] if is_selected(name)}


def needs_work(job: Job, now: float) -> bool:
    """Return True if a step is possible for the job now, other than to wait for its provider."""
    if job.manifest is not None:
        return job.retired_at is None and job.child is None
    if job.is_ended or job.is_due(now) or any(part.state == "sending" for part in job.parts):
        return True
    if job.on_lost == "submit" and any(part.state == "lost" and not part.is_missing for part in job.parts):
        return True  # with the key of its submission, it is reconciled again
    if job.state == "ambiguous" and (job.waiting_runs or not was_emitted(job, "ambiguous")):
        return True
    return job.cancelled and any(not part.is_ended and part.batch_state != "cancelling" for part in job.parts)


def open_expiry() -> Expiry:
    """Return the Expiry of this machine, so that a collector with a wrong clock removes no jobs."""
    return machine_expiry(local_folder() / FILE)


class CollectorPass:
    """One pass over jobs: inspects their batches, advances each job, and finishes those whose batches have ended."""

    def __init__(self, store: BlockJobStore, jobs: Iterable[Job], *, shows_tasks: bool) -> None:
        self.rows: dict[str, JobRow] = {}
        self.requests = 0
        self._store, self._shows_tasks = store, shows_tasks
        self._known = [part.batch_id for job in jobs for part in job.parts if part.batch_id]
        self._children: list[str] = []
        """The jobs that were created during this pass to repeat failed prompts."""
        self._slots = asyncio.Semaphore(_CONCURRENT_JOBS)

    async def collect(self, jobs: Sequence[Job]) -> None:
        """Take every step that is possible for these jobs now, account by account."""
        accounts = await self._group_by_account(await self._cancel_abandoned(jobs))
        for number, (config, group) in enumerate(accounts):
            # Later accounts get the requests that an earlier one leaves of its share.
            share = (MOST_REQUESTS - self.requests) // (len(accounts) - number)
            await self._collect_account(config, group, max(1, share))
            while self._children:
                children = [await self._store.find(name) for name in self._children]
                self._children.clear()
                await asyncio.gather(*(self._collect_job(job, config, None) for job in children if job))

    async def _cancel_abandoned(self, jobs: Sequence[Job]) -> list[Job]:
        """Cancel the jobs whose run was cancelled while it waited, unless another run waits for them as well."""
        by_name = {job.name: job for job in jobs}
        cancelled = await find_cancelled({run_id for job in jobs for run_id in job.waiting_runs})
        current = []
        for job in jobs:
            first = job
            while first.parent is not None and first.parent in by_name:  # a child completes the answers of its parent
                first = by_name[first.parent]
            submitters = [run_id for run_id in first.waiting_runs if job_name(run_id) == first.name]
            is_abandoned = bool(submitters) and cancelled.issuperset(first.waiting_runs)
            current.append(await self._mark_cancelled(job) if is_abandoned and not job.is_ended else job)
        return current

    async def _mark_cancelled(self, job: Job) -> Job:
        try:
            async with self._store.lock(job.name) as lock:
                if not lock.job.cancelled:
                    await lock.save(lock.job.model_copy(update={"cancelled": True}))
                    get_run_logger().info("%s is cancelled because the run that submitted it was cancelled.", job.name)
                return lock.job
        except BusyError:  # the next pass tries again
            return job

    async def _group_by_account(self, jobs: Sequence[Job]) -> list[tuple[Config, list[Job]]]:
        """Return the jobs of each account together, so that one list shows the batches of all of them."""
        configs = JobConfigs()
        accounts: dict[tuple[str, str | None, str | None, bool], list[tuple[Config, Job]]] = defaultdict(list)
        for job in jobs:
            try:
                config = await configs.load(job)
            except PolluxError as error:
                self._skip(job, error)
                continue
            accounts[config.provider, config.base_url, config.key(), config.use_mock].append((config, job))
        return [(group[0][0], [job for _, job in group]) for group in accounts.values()]

    async def _collect_account(self, config: Config, jobs: Sequence[Job], most: int) -> None:
        try:
            async with open_session(config) as session:
                polled = await poll(session, jobs, most)
        except PolluxError as error:
            for job in jobs:
                self._skip(job, error)
            return
        self.requests += polled.requests
        now, key, pending = time.time(), config.key(), []
        for job in jobs:
            current = polled.apply(job, key, now)
            self.rows[job.name] = row_of(current, now, missing_problem(current) or polled.explain_refusal(job, key))
            if needs_work(current, now) or current.state != job.state:
                pending.append(job)
        await asyncio.gather(*(self._collect_job(job, config, polled) for job in pending))

    async def _collect_job(self, job: Job, config: Config, polled: PollResult | None) -> None:
        """Advance one job, and update its row. Its errors do not stop the pass."""
        # The jobs of an account may be for several models.
        config = config.model_copy(update={"model": job.target.model})

        async def work() -> Job | None:
            try:
                return await self._advance(job.name, config, polled)
            except (BusyError, LeaseLostError):
                return None  # not a failure of the task

        run = task(name="job", task_run_name=job.name, **UNSTORED)(work) if self._shows_tasks else work
        async with self._slots:
            try:
                if (worked := await run()) is None:
                    row = self.rows.get(job.name) or row_of(job, time.time())
                    self.rows[job.name] = row.model_copy(update={"next": "another process is working on it"})
                    return
                self.rows[job.name] = row_of(worked, time.time())
                if worked.parent is not None and (parent := await self._store.find(worked.parent)):
                    self.rows[parent.name] = row_of(parent, time.time())  # the child may have completed it
            except Exception as error:  # noqa: BLE001 (an error of one job does not stop the others)
                self._skip(job, error)

    def _skip(self, job: Job, error: Exception) -> None:
        get_run_logger().warning("%s is skipped: %s", job.name, error)
        self.rows[job.name] = row_of(job, time.time(), str(error) or type(error).__name__)

    async def _advance(self, name: str, config: Config, polled: PollResult | None) -> Job:
        """Take every step that is possible for one job now, and return it."""
        async with self._store.lock(name) as lock, open_session(config) as session:
            if lock.job.manifest is None:
                await advance(lock, session, self._store, polled=polled, known=self._known)
            await emit_submission_events(lock)
            if lock.job.state == "ambiguous" and lock.job.waiting_runs:  # resumed, they fail with the reason
                waiting = await resume_runs(lock.job.waiting_runs)
                await lock.save(lock.job.model_copy(update={"waiting_runs": waiting}))
            if lock.job.is_ended:
                if lock.job.manifest is None:
                    await self._save_answers(lock, session)
                if lock.job.child is None:  # otherwise the child completes the answers first
                    await self._retire(lock, session)
            return lock.job

    async def _save_answers(self, lock: JobLock, session: Session) -> None:
        """Download and save the answers of a job, and create the child that repeats its failed prompts."""
        job = lock.job
        results = await download(job, session, prepare_folder(_download_folder(job)))
        tally = await save_answers(self._store.storage, job.name, results.items())
        job = await self._publish(job, tally, results.oddities)
        if job.resubmit and not job.cancelled and (indexes := await find_retryable(self._store.storage, job)):
            job = await self._create_child(job, indexes, session)
        await lock.save(job)

    async def _create_child(self, job: Job, indexes: Sequence[int], session: Session) -> Job:
        """Create the job that repeats these prompts, unless they may cost more than is left."""
        try:
            left_usd = await check_child_budget(self._store, job, indexes, session)
        except BudgetError as error:
            get_run_logger().warning("%s: %s", job.name, error)
            return job
        key, resubmit = session.config.key(), job.resubmit - 1
        child = await create_child(job, self._store, indexes, key, resubmit=resubmit, max_cost_usd=left_usd)
        self._children.append(child.name)
        return job.with_child(child)

    async def _publish(self, job: Job, tally: ItemTally, oddities: list[str]) -> Job:
        """Write the output, the envelope and the page of a job, and return it with its manifest."""
        output = output_path(job.output, job.name) if job.output else None
        manifest = tally.make_manifest(oddities=oddities, output=output)
        shows_answers = job.count <= MOST_IN_ONE_ENVELOPE
        needs_prompts = shows_answers or job.output is not None  # a large job has many prompts: not loaded in vain
        prompts = (await self._store.load_input(job)).prompts if needs_prompts else []
        if job.output is not None:
            try:
                await write_job_output(self._store.storage, job, job.output, prompts, manifest)
            except ConfigurationError as error:
                if not job.cancelled:
                    raise  # the next pass tries again, until the job is cancelled
                changes = {"output": None, "oddities": [*manifest.oddities, error.message]}
                manifest = manifest.model_copy(update=changes)
        if shows_answers:
            envelope = await self._store.make_envelope(job, manifest.oddities)
            await self._store.save_envelope(job, envelope)
            await pages.publish_job(job, manifest, prompts, envelope)
        else:
            await pages.publish_job(job, manifest)
        return job.with_manifest(manifest)

    async def _retire(self, lock: JobLock, session: Session) -> None:
        """Take the last steps for a job with saved answers: release its files, complete its parent, emit, resume."""
        job = lock.job
        await release_files(job, session)
        if job.parent is not None and not await self._complete_parent(job.parent, job, session):
            return
        if (manifest := job.manifest) is None:
            return
        event: JobEvent = "collected" if manifest.succeeded else "failed"
        job = await emit_job_event(job, event)
        waiting = await resume_runs(job.waiting_runs)
        if open_expiry().has_passed(manifest.collected_at, _WAITED_FOR_S):
            waiting = []
        is_done = was_emitted(job, event) and not waiting  # otherwise the next pass does the rest
        if is_done:
            shutil.rmtree(_download_folder(job), ignore_errors=True)
        changes = {"waiting_runs": waiting, "retired_at": time.time() if is_done else None}
        await lock.save(job.model_copy(update=changes))

    async def _complete_parent(self, name: str, child: Job, session: Session) -> bool:
        """Merge the child's answers into those of its parent. Return False if that has to wait for another process."""
        if await self._store.find(name) is None:
            return True  # the parent was removed, with its answers
        try:
            async with self._store.lock(name) as lock:
                if lock.job.manifest is None:
                    return False  # the process that created the child has not saved the parent yet
                # That process may have been killed before it saved `child`, so `next_child` counts as well.
                if child.name in {lock.job.child, lock.job.next_child}:
                    tally = await merge_answers(self._store.storage, lock.job, child)
                    job = lock.job.with_child(child) if lock.job.child is None else lock.job
                    job = await self._publish(job, tally, lock.job.manifest.oddities)
                    await lock.save(job.model_copy(update={"child": None}))
                if lock.job.is_complete and lock.job.retired_at is None:
                    await self._retire(lock, session)
        except BusyError:
            return False
        return True


def _download_folder(job: Job) -> Path:
    """Return the folder of the provider's raw results, until the job is retired."""
    return home() / "deferred" / job.name
