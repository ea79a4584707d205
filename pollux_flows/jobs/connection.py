"""Connection: the one to the Prefect server that the flow run at hand has, or a new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import AsyncClientContext


@asynccontextmanager
async def connected() -> AsyncIterator[PrefectClient]:
    """A client that is open."""
    context = AsyncClientContext.get()
    if context is not None and context.client.loop is asyncio.get_running_loop():
        yield context.client
        return
    async with get_client() as client:
        yield client
