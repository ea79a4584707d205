"""Events: what happens to deferred jobs, told to the Prefect server, so that automations can start what comes next."""

from __future__ import annotations

from typing import Any, Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.runtime import flow_run

from pollux_flows.deferred.job import Job

Happened = Literal["submitted", "collected", "failed", "ambiguous"]

_RESOURCE: Final = "pollux.deferred-job"


async def tell(happened: Happened, job: Job, **payload: Any) -> None:
    """Say that this happened to the job. Said again, after a crash perhaps, it is the same event, which counts once."""
    event = Event(
        id=uuid5(NAMESPACE_URL, f"{_RESOURCE}/{job.submission}/{happened}"),
        event=f"pollux.deferred.{happened}",
        resource=Resource(
            {
                "prefect.resource.id": f"{_RESOURCE}.{job.name}",
                "prefect.resource.name": job.name,
                "provider": job.target.provider,
                "model": job.target.model,
            }
        ),
        related=_run(),
        payload={"job": job.name, "state": job.state, "prompts": job.count, **payload},
    )
    try:
        async with get_events_client() as client:
            await client.emit(event)
    except Exception as error:  # noqa: BLE001 (whatever the server or the network did: the answers matter more)
        get_run_logger().warning("The event pollux.deferred.%s of %s could not be sent: %s", happened, job.name, error)


def _run() -> list[RelatedResource]:
    if not (run_id := flow_run.id):
        return []
    return [RelatedResource({"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"})]
