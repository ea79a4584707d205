"""Telling: what happens to a job, as events of the Prefect server, so that automations can start what comes next."""

from __future__ import annotations

from typing import Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger
from prefect.events import Event, RelatedResource, Resource, get_events_client
from prefect.runtime import flow_run

from pollux_flows.deferred.book import Hold
from pollux_flows.deferred.job import Job

Happened = Literal["submitted", "collected", "failed", "ambiguous"]

_RESOURCE: Final = "pollux.deferred-job"


async def told(job: Job, happened: Happened) -> Job:
    """Say once that this happened to the job, which then knows that it was said.

    Where the server cannot be told, the job is given as it is, so that it is said the next time. An event that was sent
    just before its sender was killed is sent again under the same id, and counts once.
    """
    if was_told(job, happened):
        return job
    try:
        async with get_events_client() as client:
            await client.emit(_event(job, happened))
    except Exception as error:  # noqa: BLE001 (whatever the server or the network did: the answers matter more)
        get_run_logger().warning("pollux.deferred.%s of %s could not be told: %s", happened, job.name, error)
        return job
    return job.model_copy(update={"told": [*job.told, _once(job, happened)]})


def was_told(job: Job, happened: Happened) -> bool:
    """Whether that was said of the job as it is."""
    return _once(job, happened) in job.told


async def tell_of_submission(hold: Hold) -> None:
    """Say what came of handing it in, and write that down."""
    job = hold.job
    if job.is_handed_in:
        job = await told(job, "submitted")
    if job.state == "ambiguous":
        job = await told(job, "ambiguous")
    if job is not hold.job:
        await hold.save(job)


def _once(job: Job, happened: Happened) -> str:
    """What is said once: a job whose failed prompts were asked again is collected again."""
    return f"{happened}-{job.children}" if happened in {"collected", "failed"} and job.children else happened


def _event(job: Job, happened: Happened) -> Event:
    numbers = job.manifest.model_dump(mode="json") if job.manifest else {}
    return Event(
        id=uuid5(NAMESPACE_URL, f"{_RESOURCE}/{job.submission}/{_once(job, happened)}"),
        event=f"pollux.deferred.{happened}",
        resource=Resource(
            {
                "prefect.resource.id": f"{_RESOURCE}.{job.name}",
                "prefect.resource.name": job.name,
                "provider": job.target.provider,
                "model": job.target.model,
            }
        ),
        related=related_run(),
        payload={"job": job.name, "state": job.state, "prompts": job.count, **numbers},
    )


def related_run() -> list[RelatedResource]:
    """Return the flow run at hand, as an event names it."""
    if not (run_id := flow_run.id):
        return []
    return [RelatedResource({"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"})]
