"""Cache registry of a Prefect server: a PolluxCache block for each cache, and a variable as the lease on it.

All workers of the server share it, with or without a state store in common.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument

from pollux_flows.blocks.cache import PolluxCache
from pollux_flows.blocks.registration import create_document, data_of, read_document, read_documents
from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.connection import connected
from pollux_flows.jobs.lease import Lease, lease
from pollux_flows.pipeline.caches import CacheLock, CacheRecord, cache_name, load_readable
from pollux_flows.state import leases

_LONGEST_PAUSE_S: Final = 2.0  # a server on SQLite is asked no more often than that by each of those who wait


def block_name(identity: str) -> str:
    """Return the name of the PolluxCache block with this identity."""
    return cache_name(identity)


class BlockRegistry:
    """The CacheRegistry of a Prefect server."""

    where = "this Prefect server"

    async def find(self, identity: str) -> CacheRecord | None:
        """Return the record, whatever its state; None if there is none."""
        return await self.find_named(block_name(identity))

    async def find_named(self, name: str) -> CacheRecord | None:
        """Return the record in the PolluxCache of this name, whatever its state; None if there is none."""
        document = await _read_document(name)
        return None if document is None else _record_in(document)

    async def list(self) -> list[CacheRecord]:
        """Return all records that can be read, by identity, and warn of the others."""
        async with connected() as client:
            documents = await read_documents(client, PolluxCache)
        return load_readable(documents, _record_in)

    @asynccontextmanager
    async def lock(self, identity: str, *, patience_s: float | None = None) -> AsyncIterator[CacheLock]:
        """Acquire the lease on this identity, and release it at the end."""
        name = block_name(identity)
        give_up = None if patience_s is None else time.monotonic() + patience_s
        for pause in leases.backoff_pauses(longest_s=_LONGEST_PAUSE_S):
            async with lease(f"{name}-lease") as won:
                if won is not None:
                    yield _BlockLock(won, name, await _read_document(name))
                    return
            if give_up is not None and time.monotonic() + pause > give_up:
                raise TimeoutError
            await asyncio.sleep(pause)


class _BlockLock:
    """A CacheLock on a block."""

    def __init__(self, won: Lease, name: str, document: BlockDocument | None) -> None:
        self._lease, self._name = won, name
        self._id: UUID | None = None if document is None else document.id
        self.record = None if document is None else _record_in(document)

    async def save(self, record: CacheRecord) -> None:
        """Write the record and renew the lease; LeaseLostError, and nothing written, if another has taken over."""
        await self._lease.renew()
        async with connected() as client:
            if self._id is None:
                self._id = (await create_document(client, PolluxCache.of(record), self._name)).id
            else:
                update = BlockDocumentUpdate(data=data_of(PolluxCache.of(record)), merge_existing_data=False)
                await client.update_block_document(self._id, update)
        self.record = record

    async def remove(self) -> None:
        """Remove the record, or raise LeaseLostError."""
        await self._lease.renew()
        if self._id is not None:
            async with connected() as client:
                await client.delete_block_document(self._id)
        self._id = self.record = None


async def _read_document(name: str) -> BlockDocument | None:
    async with connected() as client:
        return await read_document(client, PolluxCache, name)


def _record_in(document: BlockDocument) -> CacheRecord:
    record = document.data.get("record")
    if not isinstance(record, dict) or "identity" not in record:
        raise ConfigurationError(
            f"The block {document.name} does not describe a cache: its field `record` was edited or removed.",
            hint="Delete the block: the cache is made again when it is needed.",
        )
    return CacheRecord.model_validate(record)
