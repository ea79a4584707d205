"""Cache events: what happens to a cache, as events of the Prefect server, so that automations can react."""

from __future__ import annotations

from typing import Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect.events import Event

from pollux_flows.jobs.events import emit_event, make_resource, related_run
from pollux_flows.pipeline.caches import CacheRecord, cache_name
from pollux_flows.pipeline.execute import Execution

_RESOURCE: Final = "pollux.cache"


async def emit_cache_changes(execution: Execution) -> None:
    """Emit, best effort, which caches an execution has created, and which had expired or were lost."""
    for use in execution.cache_uses:
        for record in use.expired:
            await emit_cache_event(record, "expired")
        for record in use.created:
            await emit_cache_event(record, "created")


async def emit_cache_event(record: CacheRecord, happened: Literal["created", "expired"]) -> None:
    """Emit `pollux.cache.created` or `.expired`, best effort. One that is emitted twice counts once."""
    name = cache_name(record.identity)
    event = Event(
        id=uuid5(NAMESPACE_URL, f"{_RESOURCE}/{record.display_name}/{happened}"),
        event=f"{_RESOURCE}.{happened}",
        resource=make_resource(_RESOURCE, name, record.target),
        related=related_run(),
        payload={"cache": name, "provider_name": record.name, "tokens": record.tokens, "contents": record.contents},
    )
    await emit_event(event)
