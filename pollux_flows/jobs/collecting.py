"""Collecting: one pass over jobs. Each step is written down after it is done, and doing it twice does no harm.

So a pass may be killed anywhere, and several may go on at once: a job is worked on by one at a time.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pollux_flows.config import Config
from pollux_flows.deferred.advance import advance
from pollux_flows.deferred.book import BusyError, Hold
from pollux_flows.deferred.collect import download, make_envelope
from pollux_flows.deferred.files import give_back_files
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.keep import Tally, first_piece, keep, kept, overlay, worth_another_try
from pollux_flows.deferred.manifest import Manifest
from pollux_flows.deferred.output import output_of, write_output
from pollux_flows.deferred.poll import Seen
from pollux_flows.deferred.resubmit import again, next_child, with_child
from pollux_flows.deferred.submit import planned
from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs import pages
from pollux_flows.jobs.book import BlockBook
from pollux_flows.jobs.telling import Happened, tell_of_submission, told, was_told
from pollux_flows.jobs.waiters import resume_all
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.saved import Saved
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import ResultEnvelope
from pollux_flows.state.expiry import FILE, Expiry, machine_expiry
from pollux_flows.state.home import home, prepare_folder
from pollux_flows.state.store import local_folder

MOST_IN_ONE_ENVELOPE: Final = 10_000
"""Of a longer job there is no envelope: its answers are lines in a file."""

# A run notes that it waits, and is suspended a moment later: one that still is not, has died.
_WAITED_FOR_S: Final = 86_400.0


def wants_work(job: Job, now: float) -> bool:
    """Whether there is anything to do for it but to wait."""
    if job.manifest is not None:
        return job.retired_at is None and job.child is None
    if job.is_ended or job.is_due(now) or any(part.state == "sending" for part in job.parts):
        return True
    if job.on_lost == "submit" and any(part.state == "lost" and not part.is_missing for part in job.parts):
        return True  # with the key that it was handed in with, it is looked for again
    if job.state == "ambiguous" and (job.waiting_runs or not was_told(job, "ambiguous")):
        return True
    return job.cancelled and any(not part.is_ended and part.batch_state != "cancelling" for part in job.parts)


@dataclass
class Pass:
    """One pass over the jobs of a server."""

    book: BlockBook
    known: Collection[str] = ()
    """All batches that belong to a job."""
    made: list[str] = field(default_factory=list)
    """Jobs that came up on the way: what failed, handed in again."""

    async def work_on(self, name: str, config: Config, seen: Seen | None = None) -> Job:
        """Do all that can be done for a job now, and give it as it is then. BusyError where somebody else does."""
        async with self.book.alone(name) as hold, open_session(config) as session:

            async def plan() -> Plan:
                return await planned(self.book, hold.job)

            if hold.job.manifest is None:
                await advance(hold, session, plan, seen=seen, known=self.known)
            await tell_of_submission(hold)
            if hold.job.state == "ambiguous" and hold.job.waiting_runs:  # those who wait are told as well
                waiting = await resume_all(hold.job.waiting_runs)
                await hold.save(hold.job.model_copy(update={"waiting_runs": waiting}))
            if hold.job.is_ended:
                await self._finish(hold, session)
            return hold.job

    async def _finish(self, hold: Hold, session: Session) -> None:
        if hold.job.manifest is None:
            results = await download(hold.job, session, prepare_folder(_folder(hold.job)))
            tally = await keep(self.book.shelf, hold.job.name, results.items())
            manifest = self._manifest(hold.job, tally, results.oddities)
            manifest = await self._left(hold.job, manifest)
            await hold.save(await self._tried_again(hold.job.collected(manifest), session))
        if hold.job.child is None:  # else that will bring what is not there yet
            await self._retire(hold, session)

    async def _tried_again(self, job: Job, session: Session) -> Job:
        """The job, after what failed of it was handed in again, where that is wanted and worth it."""
        if job.cancelled or not job.resubmit:
            return job
        if not (indexes := await worth_another_try(self.book.shelf, job)):
            return job
        child = await again(job, self.book, indexes, session.config.key(), resubmit=job.resubmit - 1)
        self.made.append(child.name)
        return with_child(job, child)

    async def _retire(self, hold: Hold, session: Session) -> None:
        """All that is to be done once the answers are kept."""
        job = hold.job
        await give_back_files(job, session)
        if job.parent is not None and not await self._completed(job.parent, job, session):
            return
        if (manifest := job.manifest) is None:
            return
        happened: Happened = "collected" if manifest.succeeded else "failed"
        job = await told(job, happened)
        waiting = await resume_all(job.waiting_runs)
        if open_expiry().has_passed(manifest.collected_at, _WAITED_FOR_S):
            waiting = []
        done = was_told(job, happened) and not waiting  # else the rest is done the next time
        if done:
            shutil.rmtree(_folder(job), ignore_errors=True)
        retired_at = time.time() if done else None
        await hold.save(job.model_copy(update={"waiting_runs": waiting, "retired_at": retired_at}))

    async def _completed(self, name: str, child: Job, session: Session) -> bool:
        """Complete the parent's answers with the child's. False if somebody is at work on it: later, then."""
        if await self.book.find(name) is None:
            return True  # somebody has removed it, and wants no more of it
        try:
            async with self.book.alone(name) as hold:
                if hold.job.manifest is None:
                    return False  # it was about to note that it has this child
                # Whoever made the child may have been killed before that was noted.
                if child.name in {hold.job.child, next_child(hold.job)}:
                    tally = await overlay(self.book.shelf, hold.job, child)
                    manifest = self._manifest(hold.job, tally, hold.job.manifest.oddities)
                    manifest = await self._left(hold.job, manifest)
                    completed = with_child(hold.job, child) if hold.job.child is None else hold.job
                    await hold.save(completed.model_copy(update={"manifest": manifest, "child": None}))
                if hold.job.is_complete and hold.job.retired_at is None:
                    await self._retire(hold, session)
        except BusyError:
            return False
        return True

    def _manifest(self, job: Job, tally: Tally, oddities: list[str]) -> Manifest:
        output = output_of(job.output, job.name) if job.output else None
        return tally.manifest(oddities=oddities, output=output)

    async def _left(self, job: Job, manifest: Manifest) -> Manifest:
        """The manifest, after all that people and programs find was left: the lines, the envelope, the page."""
        if job.output is not None:
            try:
                await write_output(self.book.shelf, job, job.output, manifest)
            except ConfigurationError as error:
                if not job.cancelled:
                    raise  # until it can be written, or somebody gives up
                oddities = [*manifest.oddities, error.message]
                manifest = manifest.model_copy(update={"output": None, "oddities": oddities})
        if job.count <= MOST_IN_ONE_ENVELOPE:
            items = [item async for item in kept(self.book.shelf, job)]
            envelope = await asyncio.to_thread(make_envelope, job, items, oddities=manifest.oddities)
            await self.book.shelf.put(f"{job.name}/envelope", envelope)
            await pages.leave_job(job, manifest, await self._prompts(job), envelope)
        else:
            await pages.leave_job(job, manifest)
        return manifest

    async def _prompts(self, job: Job) -> list[str | None]:
        """What the job asks, for a page; nothing where that is kept elsewhere."""
        try:
            prompts = (await self.book.asked(job.name)).request.prompts
        except ConfigurationError:
            return [None] * job.count
        return [prompts[index] for index in job.indexes()]

    async def look_for_saved(self, job: Job) -> Saved:
        """Look whether the result storage still has the answers of a job, and what it asks."""
        shelf = self.book.shelf
        are_there = await shelf.has(first_piece(job)) and await shelf.has(f"{job.name}/asked")
        return Saved(f"this worker's result storage ({shelf.where})", are_there)

    async def envelope(self, job: Job) -> ResultEnvelope:
        """The answers of a job that is complete."""
        found = await self.book.shelf.get(f"{job.name}/envelope")
        if isinstance(found, ResultEnvelope):
            return found
        items = [item async for item in kept(self.book.shelf, job)]
        oddities = job.manifest.oddities if job.manifest else []
        return await asyncio.to_thread(make_envelope, job, items, oddities=oddities)


def open_expiry() -> Expiry:
    """Return what tells how old a job is, as `state.expiry` explains: a collector whose clock is wrong removes none."""
    return machine_expiry(local_folder() / FILE)


def _folder(job: Job) -> Path:
    """Where the provider's own words are until the job is retired."""
    return home() / "deferred" / job.name
