"""The jobs of a Prefect server: a PolluxDeferredJob block for each, and a variable as the lease on it.

A server refuses a second block of the same name, so exactly one of many processes can create a job. Requests and
answers are in the result storage of the workers, as 50,000 prompts are too many for a block.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast
from uuid import UUID

from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectAlreadyExists
from prefect.results import ResultStore, aget_default_result_storage

from pollux_flows.blocks.deferred_job import PolluxDeferredJob
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.blocks.registration import create_document, data_of, read_document, read_documents
from pollux_flows.config import Config
from pollux_flows.deferred.answers import first_piece, read_items
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.results import make_envelope
from pollux_flows.deferred.store import BusyError, JobLock, JobRequest, no_such_job
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.jobs.connection import open_client
from pollux_flows.jobs.lease import ServerLease, acquire_server_lease
from pollux_flows.pages import RunInput
from pollux_flows.pipeline.saved_answers import Saved
from pollux_flows.result import ResultEnvelope
from pollux_flows.serializer import DOCUMENTS

_FOLDER: Final = "pollux-deferred"


class ResultStorage:
    """Values by name in the worker's result storage. Workers that share jobs must share it."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store

    @classmethod
    async def open(cls) -> ResultStorage:
        storage = await aget_default_result_storage()
        return cls(ResultStore(result_storage=storage, serializer=DOCUMENTS, cache_result_in_memory=False))

    @property
    def where(self) -> str:
        """The place, for people."""
        storage = self._store.result_storage
        return str(getattr(storage, "basepath", None) or getattr(storage, "_block_document_name", None) or storage)

    async def put(self, name: str, value: Any) -> None:
        """Save a value under this name, replacing an earlier one."""
        await self._store.awrite(value, key=f"{_FOLDER}/{name}")

    async def has(self, name: str) -> bool:
        """Return True if there is a value of this name."""
        return await self._store.aexists(f"{_FOLDER}/{name}")

    async def get(self, name: str) -> Any:
        """Return the value of this name; None if there is none."""
        return cast(Any, await self._store.aread(f"{_FOLDER}/{name}")).result if await self.has(name) else None


class BlockJobStore:
    """The JobStore of a Prefect server."""

    def __init__(self, storage: ResultStorage) -> None:
        self.storage = storage

    @classmethod
    async def open(cls) -> BlockJobStore:
        return cls(await ResultStorage.open())

    async def save_request(self, name: str, request: JobRequest) -> None:
        await self.storage.put(f"{name}/asked", request)

    async def load_request(self, name: str) -> JobRequest:
        if (request := await self.storage.get(f"{name}/asked")) is None:
            raise ConfigurationError(
                f"The request of the job {name} is not in this worker's result storage ({self.storage.where}).",
                hint="All workers that submit and collect need the same result storage: set "
                "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK to a storage that they share.",
            )
        if not isinstance(request, JobRequest):
            raise ConfigurationError(
                f"{name}/asked in {self.storage.where} is not the request of a job.",
                hint="Collect with the version of pollux_flows that submitted the job, or submit it again.",
            )
        return request

    async def load_input(self, job: Job) -> RunInput:
        """Return the input of the job, for its pages; without prompts if it is not in this result storage."""
        try:
            request = (await self.load_request(job.name)).request
        except ConfigurationError:
            return RunInput(job.target, [None] * job.count, options=job.options)
        prompts = [request.prompts[index] for index in job.prompt_indexes()]
        return RunInput(job.target, prompts, request.sources, request.options)

    async def make_envelope(self, job: Job, oddities: Sequence[str]) -> ResultEnvelope:
        """Return a new envelope of the job's saved answers."""
        items = [item async for item in read_items(self.storage, job)]
        return await asyncio.to_thread(make_envelope, job, items, oddities=oddities)

    async def save_envelope(self, job: Job, envelope: ResultEnvelope) -> None:
        await self.storage.put(f"{job.name}/envelope", envelope)

    async def load_envelope(self, job: Job) -> ResultEnvelope:
        """Return the envelope of a complete job. The envelope of a long job is not saved, but made of its answers."""
        found = await self.storage.get(f"{job.name}/envelope")
        if isinstance(found, ResultEnvelope):
            return found
        return await self.make_envelope(job, job.manifest.oddities if job.manifest else [])

    async def find_saved(self, job: Job) -> Saved:
        """Return whether the answers and the request of the job are still in the result storage."""
        is_saved = await self.storage.has(first_piece(job)) and await self.storage.has(f"{job.name}/asked")
        return Saved(f"this worker's result storage ({self.storage.where})", is_saved)

    async def create(self, job: Job) -> bool:
        async with open_client() as client:
            try:
                await create_document(client, PolluxDeferredJob.of(job), job.name)
            except ObjectAlreadyExists:
                # Perhaps by this call: if its reply was lost, Prefect's client has repeated it.
                found = await self.find(job.name)
                return found is not None and found.submission == job.submission
        return True

    async def find(self, name: str) -> Job | None:
        document = await _read_document(name)
        return None if document is None else _read_job(document)

    async def get(self, name: str) -> Job:
        """Return the job of this name, or raise a ConfigurationError."""
        if (job := await self.find(name)) is None:
            raise unknown_job(name)
        return job

    async def list_jobs(self) -> tuple[list[Job], dict[str, str]]:
        """Return all readable jobs, and the reasons by name why the others cannot be read."""
        async with open_client() as client:
            documents = await read_documents(client, PolluxDeferredJob)
        jobs: list[Job] = []
        unreadable: dict[str, str] = {}
        for document in documents:
            try:
                jobs.append(_read_job(document))
            except PolluxError as error:
                unreadable[str(document.name)] = str(error)
        return jobs, unreadable

    async def remove_retired(self, names: Iterable[str]) -> None:
        """Remove the blocks of retired jobs. Their requests and answers stay in the result storage."""
        for name in names:
            with suppress(BusyError):
                async with self.lock(name) as lock:
                    if lock.job.retired_at is not None:  # unless it was resubmitted meanwhile
                        await lock.remove()

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[JobLock]:
        if await _read_document(name) is None:
            raise unknown_job(name)
        async with acquire_server_lease(f"pollux-at-work-{name}") as lease:
            if lease is None:
                raise BusyError(name)
            if (document := await _read_document(name)) is None:
                raise unknown_job(name)
            yield _BlockJobLock(lease, document.id, _read_job(document))


class _BlockJobLock(JobLock):
    def __init__(self, lease: ServerLease, document_id: UUID, job: Job) -> None:
        super().__init__(job)
        self._lease, self._id = lease, document_id

    async def save(self, job: Job) -> None:
        await self._lease.check()
        update = BlockDocumentUpdate(data=data_of(PolluxDeferredJob.of(job)), merge_existing_data=False)
        async with open_client() as client:
            await client.update_block_document(self._id, update)
        self.job = job

    async def renew(self) -> None:
        await self._lease.renew()

    async def remove(self) -> None:
        await self._lease.check()
        async with open_client() as client:
            await client.delete_block_document(self._id)


class JobConfigs:
    """Returns the Config of each job from the PolluxProvider that submitted it. Each block is loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[str, Config] = {}

    async def load(self, job: Job) -> Config:
        """Return the Config. Raises a ConfigurationError if the block or its key is gone, or has changed."""
        target, name = job.target, job.provider_block
        if name is None:
            return Config(**target.model_dump())
        if name not in self._loaded:
            self._loaded[name] = await (await PolluxProvider.named(name)).config()
        config = self._loaded[name]
        if (config.provider, config.base_url, config.use_mock) != (target.provider, target.base_url, target.use_mock):
            raise ConfigurationError(
                f"The saved PolluxProvider {name!r} has changed since {job.name} was submitted.",
                hint=f"Restore its provider ({target.provider}) and base_url.",
            )
        return config if config.model == target.model else config.model_copy(update={"model": target.model})


def unknown_job(name: str) -> ConfigurationError:
    """Return the error for a job that does not exist."""
    return no_such_job(name, "this Prefect server")


async def _read_document(name: str) -> BlockDocument | None:
    async with open_client() as client:
        return await read_document(client, PolluxDeferredJob, name)


def _read_job(document: BlockDocument) -> Job:
    fields = document.data.get("job")
    if not isinstance(fields, dict):
        raise ConfigurationError(
            f"The block {document.name} does not describe a job: its field `job` was edited or removed.",
            hint="Restore that field, or delete the block to give up the job's answers.",
        )
    return Job.model_validate({**fields, "name": document.name})
