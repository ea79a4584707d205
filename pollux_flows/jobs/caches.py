"""Cache registry of a Prefect server: a PolluxCache block for each cache, and a variable as the lease on it.

All workers of the server share it, with or without a state store in common.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final
from uuid import UUID

import httpx
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound

from pollux_flows.blocks.cache import PolluxCache
from pollux_flows.blocks.registration import create_document, data_of, read_document, read_documents
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.jobs.connection import describe_refusal, describe_silence, open_client
from pollux_flows.jobs.lease import ServerLease, acquire_server_lease
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, cache_name, load_readable
from pollux_flows.state import leases

# Each waiting process polls no more often than this, to spare a server on SQLite.
_LONGEST_PAUSE_S: Final = 2.0


@contextmanager
def _explain_server_errors() -> Iterator[None]:
    """Turn errors of the Prefect server or the network into a PolluxError, after which calls go on without a cache."""
    try:
        yield
    except httpx.TransportError as error:
        raise PolluxError(describe_silence(error)) from error
    except httpx.HTTPStatusError as error:
        raise PolluxError(describe_refusal(error)) from error
    except (httpx.HTTPError, ObjectNotFound) as error:
        problem = f"The Prefect server, where caches are registered, sent an unexpected response: {error}"
        raise PolluxError(problem, hint="See the server's log, then run again.") from error


class BlockRegistry:
    """The CacheRegistry of a Prefect server."""

    where = "this Prefect server"

    async def find(self, identity: str) -> CacheRecord | None:
        """Return the record, in any state; None if there is none."""
        return await self.find_named(cache_name(identity))

    async def find_named(self, name: str) -> CacheRecord | None:
        """Return the record in the PolluxCache of this name, in any state; None if there is none."""
        document = await _read_document(name)
        return None if document is None else _record_in(document)

    async def list(self) -> list[CacheRecord]:
        """Return all readable records, and warn of the others."""
        with _explain_server_errors():
            async with open_client() as client:
                documents = await read_documents(client, PolluxCache)
        return load_readable(documents, _record_in)

    @asynccontextmanager
    async def lock(self, identity: str, *, patience_s: float | None = None) -> AsyncIterator[CacheLock]:
        """Acquire the lease on this identity, and release it at the end."""
        name = cache_name(identity)
        async for _ in leases.retry_until(patience_s, _LONGEST_PAUSE_S):
            with _explain_server_errors():
                async with acquire_server_lease(f"{name}-lease") as won:
                    if won is not None:
                        yield _BlockLock(won, name, await _read_document(name))
                        return


class _BlockLock:
    """A CacheLock on a block."""

    def __init__(self, won: ServerLease, name: str, document: BlockDocument | None) -> None:
        self._lease, self._name = won, name
        self._id: UUID | None = None if document is None else document.id
        self.record = None if document is None else _record_in(document)

    async def save(self, record: CacheRecord) -> None:
        """Renew the lease and write the record. Raises LeaseLostError, and writes nothing, if the lease was lost."""
        await self._lease.renew()
        async with open_client() as client:
            if self._id is None:
                self._id = (await create_document(client, PolluxCache.of(record), self._name)).id
            else:
                update = BlockDocumentUpdate(data=data_of(PolluxCache.of(record)), merge_existing_data=False)
                try:
                    await client.update_block_document(self._id, update)
                except ObjectNotFound:  # deleted by hand, although the cache may still be billed
                    self._id = (await create_document(client, PolluxCache.of(record), self._name)).id
        self.record = record

    async def remove(self) -> None:
        """Remove the record, or raise LeaseLostError."""
        await self._lease.renew()
        if self._id is not None:
            async with open_client() as client:
                with suppress(ObjectNotFound):
                    await client.delete_block_document(self._id)
        self._id = self.record = None


async def _read_document(name: str) -> BlockDocument | None:
    with _explain_server_errors():
        async with open_client() as client:
            return await read_document(client, PolluxCache, name)


def _record_in(document: BlockDocument) -> CacheRecord:
    record = document.data.get("record")
    if not isinstance(record, dict) or "identity" not in record:
        raise ConfigurationError(
            f"The block {document.name} does not describe a cache: its field `record` was edited or removed.",
            hint="Delete the block: the cache is created again when it is needed.",
        )
    return CacheRecord.model_validate(record)
