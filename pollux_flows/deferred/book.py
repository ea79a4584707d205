"""Book: where jobs are written down, and who works on one. A small protocol, and the book in the state store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol
from uuid import uuid4

from pollux_flows.deferred.job import Job, as_sent, fingerprint
from pollux_flows.document import Record
from pollux_flows.errors import ConfigurationError
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import Request
from pollux_flows.providers.content import Content
from pollux_flows.state import leases
from pollux_flows.state.bounds import retention_s
from pollux_flows.state.leases import Lease, LeaseLostError
from pollux_flows.state.store import Json, Store


class BusyError(Exception):
    """Somebody else is at work on the job."""


class Asked(Record):
    """What a job asks: kept, so that any process can hand in what is left of it, or what failed."""

    request: Request
    contents: list[Content | None]

    @classmethod
    def by(cls, request: Request, contents: Sequence[Content | None]) -> Asked:
        """What is asked by a request, in a form that means the same anywhere."""
        if (options := as_sent(request.options)) is not request.options:
            request = request.model_copy(update={"options": options})
        return cls(request=request, contents=list(contents))

    def about(self, rows: list[tuple[int, int]] | None) -> Plan:
        """Its calls; only those about some prompts, given as first and last."""
        plan = make_plan(self.request, self.contents)
        if rows is None:
            return plan
        wanted = {index for first, last in rows for index in range(first, last + 1)}
        return plan.model_construct(**{**dict(plan), "calls": [call for call in plan.calls if call.index in wanted]})

    def plan(self, job: Job) -> Plan:
        """The calls of that job."""
        plan = self.about(job.rows)
        if fingerprint(plan) != job.fingerprint:
            raise ConfigurationError(
                f"The job {job.name} cannot be handed in: this version of pollux_flows would ask something else.",
                hint="Let the version that submitted it hand in the rest, or submit it anew.",
            )
        return plan


class Hold(Protocol):
    """One job, for whoever works on it alone. What the holder writes down, it writes here."""

    job: Job
    """As it was last written down."""

    async def save(self, job: Job) -> None:
        """Write it down; LeaseLostError if somebody else has taken over."""
        ...

    async def renew(self) -> None:
        """Make sure that nobody else has taken over, or raise LeaseLostError."""
        ...

    async def remove(self) -> None:
        """Forget the job: nothing came of it."""
        ...


class Book(Protocol):
    """Jobs by name, for many processes at once."""

    async def ask(self, name: str, asked: Asked) -> None:
        """Write down what a job of that name asks. It comes before the job itself."""
        ...

    async def asked(self, name: str) -> Asked: ...

    async def add(self, job: Job) -> bool:
        """Write the job down if there is none of that name. Of all who try, exactly one is told True."""
        ...

    async def find(self, name: str) -> Job | None: ...

    def alone(self, name: str) -> AbstractAsyncContextManager[Hold]:
        """Nobody else works on the job meanwhile; BusyError where somebody does."""
        ...


def no_such_job(name: str, where: str) -> ConfigurationError:
    return ConfigurationError(
        f"There is no job called {name!r} in {where}.", hint="Its name is what `submit` gave; look for it there."
    )


class StoreBook:
    """The book of those who have no Prefect server: in the state store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def ask(self, name: str, asked: Asked) -> None:
        await self.store.put(_asked(name), asked.model_dump(mode="json"), ttl_s=retention_s())

    async def asked(self, name: str) -> Asked:
        if (record := await self.store.get(_asked(name))) is None:
            raise ConfigurationError(
                f"What the job {name} asks is not known in {self.store.where}, so the rest of it cannot be handed in.",
                hint="Do it where it was submitted, or share the state of both places: POLLUX_STATE_URL.",
            )
        return Asked.model_validate(record)

    async def add(self, job: Job) -> bool:
        return await self.store.add(_key(job.name), _record(job), ttl_s=retention_s())

    async def find(self, name: str) -> Job | None:
        record = leases.strip_lease(await self.store.get(_key(name)))
        return Job.model_validate(record) if record else None

    async def names(self, prefix: str = "") -> list[str]:
        """The names of its jobs that begin so."""
        return [name.removeprefix("job/") async for name in self.store.list_keys(_key(prefix))]

    @asynccontextmanager
    async def alone(self, name: str) -> AsyncIterator[Hold]:
        lease = await leases.acquire_lease(self.store, _key(name), uuid4().hex, intent=lambda record: record or None)
        if lease is None:
            if await self.find(name) is None:
                raise no_such_job(name, self.store.where)
            raise BusyError(name)
        hold = _StoreHold(lease, Job.model_validate(leases.strip_lease(await self.store.get(_key(name)))))
        try:
            async with lease.keep_alive():
                yield hold
        finally:
            await leases.run_to_completion(hold.end())


class _StoreHold:
    def __init__(self, lease: Lease, job: Job) -> None:
        self._lease = lease
        self._removed = False
        self.job = job

    async def save(self, job: Job) -> None:
        await self._lease.write(lambda _: _record(job))
        self.job = job

    async def renew(self) -> None:
        await self._lease.renew()

    async def remove(self) -> None:
        await self._lease.renew()
        self._removed = True
        await self._lease.store.delete(_asked(self.job.name))

    async def end(self) -> None:
        if self._removed:
            await self._lease.finish(lambda _: None)
        else:
            with suppress(LeaseLostError):
                await self._lease.finish(lambda record: record or None, ttl_of=lambda _: retention_s())


def _record(job: Job) -> Json:
    return job.model_dump(mode="json")


def _key(name: str) -> str:
    return f"job/{name}"


def _asked(name: str) -> str:
    return f"asked/{name}"
