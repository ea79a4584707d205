"""Files: what a job has at its provider. They are its own until its answers are kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from pollux_flows.access import limited
from pollux_flows.deferred.job import Job
from pollux_flows.pipeline.attach import Attachments, Holding
from pollux_flows.pipeline.cleanup import give_back, open_ledger
from pollux_flows.pipeline.plan import Plan
from pollux_flows.providers.batches import Rows
from pollux_flows.providers.content import Content
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session
from pollux_flows.source import Source

# A batch takes a day at the most, and what it was made from has to be there for its last row.
_NEEDED_S: Final = 26 * 3600.0
# Nobody collects a job later than its files could last.
_OWNED_S: Final = 3 * 86_400.0
_ROWS: Final = "application/jsonl"


@dataclass(frozen=True)
class JobFiles:
    """The files of one job, each uploaded once."""

    plan: Plan
    session: Session
    attachments: Attachments
    holding: Holding

    async def materials(self) -> tuple[Material, ...]:
        """The sources, in the form they are sent in."""
        return await self.attachments.materials(range(len(self.plan.sources)))

    async def upload_rows(self, rows: Rows) -> str:
        """The provider's file with these rows."""
        source = Source.from_file(rows.path, mime_type=_ROWS)
        content = Content(
            sha256=await asyncio.to_thread(_hash, rows), size_bytes=rows.path.stat().st_size, mime_type=_ROWS
        )
        with limited(None):  # a temporary file of ours, which no starter of a run has named
            return (await self.holding.file(self.session, source, content, purpose="batch")).file_id


@asynccontextmanager
async def job_files(job: Job, plan: Plan, session: Session) -> AsyncIterator[JobFiles]:
    """What the job has at the provider, or is about to have. It keeps that."""
    ledger = open_ledger(session.config)
    account = await ledger.derive_account(session.config.key())
    holding = Holding(ledger, account, job.submission, owner_s=_OWNED_S, margin_s=_NEEDED_S)
    attachments = Attachments(plan, session, holding)
    try:
        yield JobFiles(plan, session, attachments, holding)
    finally:
        await attachments.close()


async def give_back_files(job: Job, session: Session) -> None:
    """The job is done with its files: those that nobody else uses are deleted."""
    await give_back(session, open_ledger(session.config), job.submission)


def _hash(rows: Rows) -> str:
    with rows.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
