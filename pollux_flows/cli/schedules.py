"""Schedules: check whether scheduled runs on a Prefect server actually start.

Runs are planned by the server's scheduler, whose failures appear only in the server's log, and started by a process
that serves the deployment, which may have ended.
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
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort

# Prefect looks for due runs every ten seconds, and for schedules without runs every minute.
_PATIENCE: Final = timedelta(minutes=2)
_MOST: Final = 200


async def read_scheduled(client: PrefectClient, flow: str | None = None) -> list[DeploymentResponse]:
    """Return the deployments with an active schedule; of one flow, if it is named."""
    of_flow = FlowFilter(name=FlowFilterName(any_=[flow])) if flow else None
    found: list[DeploymentResponse] = []
    while page := await client.read_deployments(flow_filter=of_flow, limit=_MOST, offset=len(found)):
        found += page
        if len(page) < _MOST:
            break
    return [each for each in found if not each.paused and any(schedule.active for schedule in each.schedules)]


async def find_stuck(
    client: PrefectClient, scheduled: Sequence[DeploymentResponse], now: datetime | None = None
) -> dict[UUID, str]:
    """Return a sentence about each of these deployments whose runs do not start, by id."""
    if not scheduled:
        return {}
    now = now or datetime.now(UTC)
    due = await _waiting_runs(client, scheduled, FlowRunFilterExpectedStartTime(before_=now - _PATIENCE))
    ahead = await _waiting_runs(client, scheduled, FlowRunFilterExpectedStartTime(after_=now))
    overdue: dict[UUID, list[FlowRun]] = {}
    for run in due:
        if run.deployment_id is not None:
            overdue.setdefault(run.deployment_id, []).append(run)
    with_runs = {run.deployment_id for run in (*due, *ahead)}
    problems: dict[UUID, str] = {}
    for each in scheduled:
        if runs := overdue.get(each.id):
            problems[each.id] = _overdue(each, runs)
        elif each.id not in with_runs and len(ahead) < _MOST and _should_have_runs(each, now):
            problems[each.id] = (
                f"{each.name}: the Prefect server has planned no run of it. Its scheduler may be failing: see the log "
                "of the server."
            )
    return problems


async def _waiting_runs(
    client: PrefectClient, scheduled: Sequence[DeploymentResponse], start: FlowRunFilterExpectedStartTime
) -> list[FlowRun]:
    """Return planned runs that have not started, the earliest first. A run that waits for a retry has started."""
    not_started = FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", "Late"]))
    return await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[each.id for each in scheduled])),
        flow_run_filter=FlowRunFilter(state=not_started, expected_start_time=start),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=_MOST,
    )


def _should_have_runs(deployment: DeploymentResponse, now: datetime) -> bool:
    """Return whether the schedule has a run in the coming weeks, which the server has had time to plan."""
    return any(
        schedule.active and _is_frequent(schedule.schedule) and (schedule.updated or now) < now - _PATIENCE
        for schedule in deployment.schedules
    )


def _is_frequent(schedule: object) -> bool:
    if isinstance(schedule, IntervalSchedule):
        return schedule.interval <= timedelta(days=31)
    # Every day of every month, but perhaps not every weekday.
    return isinstance(schedule, CronSchedule) and schedule.cron.split()[2:4] == ["*", "*"]


def _overdue(deployment: DeploymentResponse, runs: Sequence[FlowRun]) -> str:
    first = runs[0].expected_start_time
    since = f"{first.astimezone():%Y-%m-%d %H:%M}" if first else "some time"
    how_many = "1 run has" if len(runs) == 1 else f"{len(runs):,} runs have"
    if deployment.status == DeploymentStatus.READY:
        why = "The process that serves it is at its limit of runs, or has stopped starting them: see its log."
    else:
        why = "No process serves it: start pollux-flows serve, or a worker of its work pool."
    return f"{deployment.name}: {how_many} not started, due since {since}. {why}"
