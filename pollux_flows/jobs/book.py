"""Book: the jobs of a Prefect server, a PolluxDeferredJob each. A block's name is given once, so it is a claim."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from uuid import UUID

from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectAlreadyExists

from pollux_flows.blocks.deferred_job import PolluxDeferredJob
from pollux_flows.blocks.registration import create_document, data_of, read_document, read_documents
from pollux_flows.deferred.book import Asked, BusyError, Hold, no_such_job
from pollux_flows.deferred.job import Job
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.jobs.connection import connected
from pollux_flows.jobs.lease import Lease, lease
from pollux_flows.jobs.shelf import ResultShelf


@dataclass(frozen=True)
class Unreadable:
    """A job that nobody here can read, and why."""

    name: str
    why: str


class BlockBook:
    """The jobs of a Prefect server. What they ask is on the shelf: a block is no place for 50,000 prompts."""

    def __init__(self, shelf: ResultShelf) -> None:
        self.shelf = shelf

    async def ask(self, name: str, asked: Asked) -> None:
        await self.shelf.put(f"{name}/asked", asked)

    async def asked(self, name: str) -> Asked:
        if (asked := await self.shelf.get(f"{name}/asked")) is None:
            raise ConfigurationError(
                f"What the job {name} asks is not in this worker's result storage ({self.shelf.where}).",
                hint="Give all workers that submit and collect the same result storage: set "
                "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK to a storage that they share.",
            )
        if not isinstance(asked, Asked):
            raise ConfigurationError(
                f"What is kept as {name}/asked in {self.shelf.where} is not what a job asks.",
                hint="Collect with the version of pollux_flows that submitted the job, or submit it again.",
            )
        return asked

    async def add(self, job: Job) -> bool:
        async with connected() as client:
            try:
                await create_document(client, PolluxDeferredJob.of(job), job.name)
            except ObjectAlreadyExists:
                # Ours, if the answer was lost and Prefect's client asked again.
                found = await self.find(job.name)
                return found is not None and found.submission == job.submission
        return True

    async def find(self, name: str) -> Job | None:
        document = await _document(name)
        return None if document is None else _job(document)

    async def get(self, name: str) -> Job:
        """The job of that name, or a ConfigurationError."""
        if (job := await self.find(name)) is None:
            raise missing(name)
        return job

    async def all(self) -> tuple[list[Job], list[Unreadable]]:
        """Every job that there is, and those that cannot be read."""
        async with connected() as client:
            documents = await read_documents(client, PolluxDeferredJob)
        jobs, unreadable = [], []
        for document in documents:
            try:
                jobs.append(_job(document))
            except PolluxError as error:
                unreadable.append(Unreadable(str(document.name), str(error)))
        return jobs, unreadable

    async def forget(self, names: Iterable[str]) -> None:
        """Remove jobs that are done and old. What they asked and their answers stay on the shelf."""
        for name in names:
            with suppress(BusyError):
                async with self.alone(name) as hold:
                    if hold.job.retired_at is not None:  # and not asked again meanwhile
                        await hold.remove()

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[Hold]:
        if await _document(name) is None:
            raise missing(name)
        async with lease(f"pollux-at-work-{name}") as won:
            if won is None:
                raise BusyError(name)
            if (document := await _document(name)) is None:
                raise missing(name)
            yield _BlockHold(won, document.id, _job(document))


class _BlockHold:
    def __init__(self, won: Lease, document_id: UUID, job: Job) -> None:
        self._lease, self._id = won, document_id
        self.job = job

    async def save(self, job: Job) -> None:
        await self._lease.check()
        update = BlockDocumentUpdate(data=data_of(PolluxDeferredJob.of(job)), merge_existing_data=False)
        async with connected() as client:
            await client.update_block_document(self._id, update)
        self.job = job

    async def renew(self) -> None:
        await self._lease.renew()

    async def remove(self) -> None:
        await self._lease.check()
        async with connected() as client:
            await client.delete_block_document(self._id)


def missing(name: str) -> ConfigurationError:
    return no_such_job(name, "this Prefect server")


async def _document(name: str) -> BlockDocument | None:
    async with connected() as client:
        return await read_document(client, PolluxDeferredJob, name)


def _job(document: BlockDocument) -> Job:
    said = document.data.get("job")
    if not isinstance(said, dict):
        raise ConfigurationError(
            f"The block {document.name} does not describe a job: its field `job` was edited or removed.",
            hint="Restore that field, or delete the block to give up the job's answers.",
        )
    return Job.model_validate({**said, "name": document.name})
