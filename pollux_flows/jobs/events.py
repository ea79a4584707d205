"""Events of jobs and caches on the Prefect server, so that automations can react. Each event is emitted once.

An event that was emitted just before its process was killed is emitted again with the same id, and counts once.
"""

from __future__ import annotations

from typing import Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.runtime import flow_run

from pollux_flows.config import Target
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.store import JobLock
from pollux_flows.pipeline.caches import CacheRecord, cache_name
from pollux_flows.pipeline.execute import Execution

JobEvent = Literal["submitted", "collected", "failed", "ambiguous"]

_RESOURCE: Final = "pollux.deferred-job"
_CACHE_RESOURCE: Final = "pollux.cache"


async def emit_job_event(job: Job, event: JobEvent) -> Job:
    """Emit the event unless it was emitted before, and return the job with the event recorded.

    If the server cannot be reached, the job is returned unchanged, so that the event is emitted the next time.
    """
    if was_emitted(job, event) or not await emit_event(_make_event(job, event)):
        return job
    return job.model_copy(update={"emitted": [*job.emitted, _event_key(job, event)]})


def was_emitted(job: Job, event: JobEvent) -> bool:
    """Return True if this event was emitted for the job in its current state."""
    return _event_key(job, event) in job.emitted


async def emit_submission_events(lock: JobLock) -> None:
    """Emit the events about the submission of a job, and save that they were emitted."""
    job = lock.job
    if job.is_submitted:
        job = await emit_job_event(job, "submitted")
    if job.state == "ambiguous":
        job = await emit_job_event(job, "ambiguous")
    if job is not lock.job:
        await lock.save(job)


def _event_key(job: Job, event: JobEvent) -> str:
    """Return the identity of an event. A job can be collected once for each child, so the number of these is in it."""
    return f"{event}-{job.children}" if event in {"collected", "failed"} and job.children else event


def _make_event(job: Job, event: JobEvent) -> Event:
    numbers = job.manifest.model_dump(mode="json") if job.manifest else {}
    return Event(
        id=uuid5(NAMESPACE_URL, f"{_RESOURCE}/{job.submission}/{_event_key(job, event)}"),
        event=f"pollux.deferred.{event}",
        resource=make_resource(_RESOURCE, job.name, job.target),
        related=related_run(),
        payload={"job": job.name, "state": job.state, "prompts": job.count, **numbers},
    )


async def emit_cache_changes(execution: Execution) -> None:
    """Emit, best effort, events for the caches that an execution has created or found expired or lost."""
    for use in execution.cache_uses:
        for record in use.expired:
            await emit_cache_event(record, "expired")
        for record in use.created:
            await emit_cache_event(record, "created")


async def emit_cache_event(record: CacheRecord, change: Literal["created", "expired"]) -> None:
    """Emit `pollux.cache.created` or `.expired`, best effort. An event that is emitted twice counts once."""
    name = cache_name(record.identity)
    event = Event(
        id=uuid5(NAMESPACE_URL, f"{_CACHE_RESOURCE}/{record.display_name}/{change}"),
        event=f"{_CACHE_RESOURCE}.{change}",
        resource=make_resource(_CACHE_RESOURCE, name, record.target),
        related=related_run(),
        payload={"cache": name, "provider_name": record.name, "tokens": record.tokens, "contents": record.contents},
    )
    await emit_event(event)


async def emit_event(event: Event) -> bool:
    """Emit an event, best effort, and return whether it was emitted."""
    try:
        async with get_events_client() as client:
            await client.emit(event)
    except Exception as error:  # noqa: BLE001 (best effort: no error of the server or the network fails the run)
        get_run_logger().warning("%s of %s could not be emitted: %s", event.event, event.resource.name, error)
        return False
    return True


def make_resource(kind: str, name: str, target: Target) -> Resource:
    """Return a job or cache as the resource of an event."""
    return Resource(
        {
            "prefect.resource.id": f"{kind}.{name}",
            "prefect.resource.name": name,
            "provider": target.provider,
            "model": target.model,
        }
    )


def related_run() -> list[RelatedResource]:
    """Return the current flow run as a related resource of an event."""
    if not (run_id := flow_run.id):
        return []
    return [RelatedResource({"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"})]
