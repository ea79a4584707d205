"""Schedules: whether the runs that are due on a Prefect server do start.

A schedule that exists says little. Its runs are started by a process that serves the deployment, which may be gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import DeploymentStatus, FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

# Prefect looks for due runs every ten seconds.
_PATIENCE: Final = timedelta(minutes=2)
_MOST: Final = 200


async def read_scheduled(client: PrefectClient, flow: str | None = None) -> list[DeploymentResponse]:
    """Return the deployments with a schedule that is switched on; those of one flow, if it is named."""
    of_flow = FlowFilter(name=FlowFilterName(any_=[flow])) if flow else None
    found: list[DeploymentResponse] = []
    while page := await client.read_deployments(flow_filter=of_flow, limit=_MOST, offset=len(found)):
        found += page
        if len(page) < _MOST:
            break
    return [each for each in found if not each.paused and any(schedule.active for schedule in each.schedules)]


async def find_stuck(client: PrefectClient, scheduled: Sequence[DeploymentResponse]) -> dict[UUID, str]:
    """Return a sentence for each of these deployments whose runs do not start, by its id."""
    if not scheduled:
        return {}
    # A run that waits for a retry is in another state: it has started.
    not_started = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", "Late"]))
    due = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) - _PATIENCE)
    runs = await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[each.id for each in scheduled])),
        flow_run_filter=FlowRunFilter(state=not_started, expected_start_time=due),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=_MOST,
    )
    overdue = {each.id: [run for run in runs if run.deployment_id == each.id] for each in scheduled}
    return {each.id: _describe_overdue(each, overdue[each.id]) for each in scheduled if overdue[each.id]}


def _describe_overdue(deployment: DeploymentResponse, runs: Sequence[FlowRun]) -> str:
    first = runs[0].expected_start_time
    since = f"{first.astimezone():%Y-%m-%d %H:%M}" if first else "some time"
    how_many = "1 run has" if len(runs) == 1 else f"{len(runs):,} runs have"
    if deployment.status == DeploymentStatus.READY:
        why = "The process that serves it has no room for more runs or has stopped starting them: see its log."
    else:
        why = "No process serves it: start pollux-flows serve, or a worker of its work pool."
    return f"{deployment.name}: {how_many} not started, due since {since}. {why}"
