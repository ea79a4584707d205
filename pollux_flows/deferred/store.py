"""The protocol for storing deferred jobs, and its implementation on the state store.

Exactly one of many processes can create a job under a name. To change a job, a process locks it: it acquires a lease
and renews it while it works, and every write confirms that no other process has taken the lease over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from uuid import uuid4

from pollux_flows.deferred.job import Job, fingerprint, resolve_schema
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.files.content import Content
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import Request
from pollux_flows.state import leases
from pollux_flows.state.leases import Lease
from pollux_flows.state.retention import retention_s
from pollux_flows.state.store import Json, Store


class BusyError(Exception):
    """Another process is working on the job."""


class JobRequest(Record):
    """The request behind a job, stored so that any process can submit the rest of it, or its failed prompts."""

    request: Request
    contents: list[Content | None]

    @classmethod
    def of(cls, request: Request, contents: Sequence[Content | None]) -> JobRequest:
        """Return the request in a form that does not depend on the classes of this process."""
        if (options := resolve_schema(request.options)) is not request.options:
            request = request.model_copy(update={"options": options})
        return cls(request=request, contents=list(contents))

    def plan_rows(self, rows: list[tuple[int, int]] | None) -> Plan:
        """Return the plan for the prompts in these ranges, or for all prompts."""
        plan = make_plan(self.request, self.contents)
        if rows is None:
            return plan
        wanted = {index for first, last in rows for index in range(first, last + 1)}
        return plan.model_construct(**{**dict(plan), "calls": [call for call in plan.calls if call.index in wanted]})

    def plan(self, job: Job) -> Plan:
        """Return the plan of this job; raise a ConfigurationError if its calls have changed since it was created."""
        plan = self.plan_rows(job.rows)
        if fingerprint(plan) != job.fingerprint:
            raise ConfigurationError(
                f"The job {job.name} cannot be submitted: this version of pollux_flows would send other requests.",
                hint="Submit the rest with the version that created it, or submit all prompts as a new job.",
            )
        return plan


class JobLock:
    """Exclusive access to one job. This base class stores nothing, for a job that is known only by its handle."""

    def __init__(self, job: Job) -> None:
        self.job = job
        """The job as it was last saved."""

    async def save(self, job: Job) -> None:
        """Save the job; raise LeaseLostError if another process has taken over."""
        self.job = job

    async def renew(self) -> None:
        """Renew the lease, or raise LeaseLostError."""

    async def remove(self) -> None:
        """Remove a job of which nothing was submitted."""


class JobStore(Protocol):
    """Jobs by name, shared by many processes."""

    async def save_request(self, name: str, request: JobRequest) -> None:
        """Save the request of a job that is about to be created."""
        ...

    async def load_request(self, name: str) -> JobRequest:
        """Return the request of a job, or raise a ConfigurationError."""
        ...

    async def create(self, job: Job) -> bool:
        """Save a new job, and return True. Return False if its name is taken: exactly one of many callers wins."""
        ...

    async def find(self, name: str) -> Job | None:
        """Return the job of this name; None if there is none."""
        ...

    def lock(self, name: str) -> AbstractAsyncContextManager[JobLock]:
        """Lock a job, or raise a BusyError if another process works on it."""
        ...


def no_such_job(name: str, where: str) -> ConfigurationError:
    """Return the error for a job that does not exist."""
    return ConfigurationError(
        f"There is no job named {name!r} in {where}.", hint="Pass the name that `submit` returned."
    )


class StateJobStore:
    """Jobs in the state store, for use without a Prefect server."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def save_request(self, name: str, request: JobRequest) -> None:
        await self.store.put(_request_key(name), request.model_dump(mode="json"), ttl_s=retention_s())

    async def load_request(self, name: str) -> JobRequest:
        if (record := await self.store.get(_request_key(name))) is None:
            raise ConfigurationError(
                f"The request of the job {name} is not in {self.store.where}, so the rest of it cannot be submitted.",
                hint="Continue where it was submitted, or set POLLUX_STATE_URL so that both share their state.",
            )
        return JobRequest.model_validate(record)

    async def create(self, job: Job) -> bool:
        return await self.store.add(_key(job.name), _record(job), ttl_s=retention_s())

    async def find(self, name: str) -> Job | None:
        record = leases.strip_lease(await self.store.get(_key(name)))
        return Job.model_validate(record) if record else None

    async def list_names(self, prefix: str = "") -> list[str]:
        """Return the names of the jobs with this prefix."""
        return [name.removeprefix("job/") async for name in self.store.list_keys(_key(prefix))]

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[JobLock]:
        lease = await leases.acquire_lease(self.store, _key(name), uuid4().hex, intent=lambda record: record or None)
        if lease is None:
            if await self.find(name) is None:
                raise no_such_job(name, self.store.where)
            raise BusyError(name)
        lock = _StateJobLock(lease, Job.model_validate(leases.strip_lease(await self.store.get(_key(name)))))
        async with leases.use_lease(lease, lock.strip_removed, ttl_of=lambda _: retention_s()):
            yield lock


class _StateJobLock(JobLock):
    def __init__(self, lease: Lease, job: Job) -> None:
        super().__init__(job)
        self._lease = lease
        self._is_removed = False

    async def save(self, job: Job) -> None:
        await self._lease.write(lambda _: _record(job))
        self.job = job

    async def renew(self) -> None:
        await self._lease.renew()

    async def remove(self) -> None:
        await self._lease.renew()
        self._is_removed = True
        await self._lease.store.delete(_request_key(self.job.name))

    def strip_removed(self, record: Json) -> Json | None:
        """Return the record to leave in the store at the end of the lease; None if the job was removed."""
        return None if self._is_removed else record or None


def _record(job: Job) -> Json:
    return job.model_dump(mode="json")


def _key(name: str) -> str:
    return f"job/{name}"


def _request_key(name: str) -> str:
    return f"asked/{name}"
