"""Events, read from the Prefect server."""

from __future__ import annotations

import asyncio
import time

from prefect.client.orchestration import get_client


async def read_events(resource: str, count: int) -> list[str]:
    """Return the last words of the events about a resource, in order, once there are `count` or after ten seconds."""
    body = {"filter": {"resource": {"id": [resource]}, "order": "ASC"}, "limit": 50}
    deadline = time.monotonic() + 10
    async with get_client() as client:
        while True:
            answer = await client.request("POST", "/events/filter", json=body)
            found = [event["event"].rpartition(".")[2] for event in answer.json()["events"]]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.2)
