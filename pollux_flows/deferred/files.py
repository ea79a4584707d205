"""The files of a job at its provider: its rows, split into batches, and its uploaded sources.

The job owns its uploads until its answers are saved.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pollux_flows.access import apply_restrictions
from pollux_flows.deferred.job import Job
from pollux_flows.errors import ConfigurationError
from pollux_flows.files.content import Content
from pollux_flows.pipeline.attach import Attachments, FileOwner
from pollux_flows.pipeline.cleanup import open_ledger, release_owner
from pollux_flows.pipeline.plan import Plan, PlannedCall
from pollux_flows.providers.batches import BatchLimits, Rows
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session
from pollux_flows.source import Source

MakeRow = Callable[[PlannedCall, int], bytes]
"""Returns a call as a row of the part with this number."""

# A batch takes a day at most, and its last row still needs the uploads.
_NEEDED_S: Final = 26 * 3600.0
# An abandoned job owns its files no longer than this.
_OWNED_S: Final = 3 * 86_400.0
_ROWS: Final = "application/jsonl"
_BUFFER: Final = 1 << 20


@dataclass(frozen=True)
class JobFiles:
    """The uploads of one job, each made once."""

    plan: Plan
    session: Session
    attachments: Attachments
    owner: FileOwner

    async def materials(self) -> tuple[Material, ...]:
        """Return the sources in the form that the provider accepts."""
        return await self.attachments.materials(range(len(self.plan.sources)))

    async def upload_rows(self, rows: Rows) -> str:
        """Upload the rows of a batch, and return the id of the provider's file."""
        source = Source.from_file(rows.path, mime_type=_ROWS)
        content = Content(
            sha256=await asyncio.to_thread(_hash, rows), size_bytes=rows.path.stat().st_size, mime_type=_ROWS
        )
        with apply_restrictions(None):  # a temporary file of our own, which needs no permission
            return (await self.owner.file(self.session, source, content, purpose="batch")).file_id


@asynccontextmanager
async def open_files(job: Job, plan: Plan, session: Session) -> AsyncIterator[JobFiles]:
    """Open the uploads of a job. The job remains their owner afterwards."""
    ledger = open_ledger(session.config)
    account = await ledger.derive_account(session.config.key())
    owner = FileOwner(ledger, account, job.submission, owner_s=_OWNED_S, margin_s=_NEEDED_S)
    attachments = Attachments(plan, session, owner)
    try:
        yield JobFiles(plan, session, attachments, owner)
    finally:
        await attachments.close()


async def release_files(job: Job, session: Session) -> None:
    """Release the uploads of a job, and delete those without another owner."""
    await release_owner(session, open_ledger(session.config), job.submission)


def write_rows(
    calls: Iterable[PlannedCall], make_row: MakeRow, limits: BatchLimits, folder: Path, first_part: int = 0
) -> list[Rows]:
    """Write the rows of these calls in order, and begin another file when a batch is full."""
    written: list[Rows] = []
    with ExitStack() as stack:
        file: BinaryIO | None = None
        count = size = 0
        for call in calls:
            number = first_part + len(written)
            line = make_row(call, number) + b"\n"
            check_row(line, limits, call.index)
            if file is not None and (count == limits.rows or size + len(line) > limits.size_bytes):
                file.close()
                written.append(Rows(_path(folder, number), count))
                file, count, size = None, 0, 0
                number += 1
                line = make_row(call, number) + b"\n"
            if file is None:
                file = stack.enter_context(_path(folder, number).open("wb", _BUFFER))
            file.write(line)
            count, size = count + 1, size + len(line)
        if file is not None:
            written.append(Rows(_path(folder, first_part + len(written)), count))
    return written


def check_row(line: bytes, limits: BatchLimits, index: int) -> None:
    """Raise a ConfigurationError if a row exceeds the limit of a batch."""
    if len(line) > limits.size_bytes:
        raise ConfigurationError(
            f"prompts[{index}] is a row of {len(line):,} bytes; a batch accepts {limits.size_bytes:,}.",
            hint="Pass long texts as files (Source.from_file), or shorten the prompt.",
        )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.jsonl"


def _hash(rows: Rows) -> str:
    with rows.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
