"""Suspended flow runs: they wait for a job without a process, and the collector resumes them once it is complete.

A person may cancel a suspended run. It has no process that could react, so the collector cancels the job of the run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final
from uuid import UUID

from prefect.client.schemas import StateType
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment

from pollux_flows.jobs.connection import open_client
from pollux_flows.state.identity import digest

SUSPENDED_S: Final = 14 * 86_400


def job_name(run_id: str) -> str:
    """Return the name of the job that an outermost flow run submits."""
    return f"deferred-{digest('deferred', run_id)[:12]}"


def suspendable_run() -> str | None:
    """Return the id of the current flow run if it can be suspended: a deployed one that is not part of another run."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None or TaskRunContext.get() is not None or not deployment.id:
        return None
    return None if flow.flow_run.parent_task_run_id else str(flow.flow_run.id)


async def resume_runs(run_ids: Sequence[str]) -> list[str]:
    """Resume these flow runs. Return those that are not suspended yet, for the next pass."""
    return [run_id for run_id in run_ids if not await _resume(UUID(run_id))]


async def find_cancelled(run_ids: Collection[str]) -> set[str]:
    """Return those of these flow runs that a person has cancelled, or is cancelling."""
    if not run_ids:
        return set()
    runs = FlowRunFilter(
        id=FlowRunFilterId(any_=[UUID(run_id) for run_id in run_ids]),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.CANCELLED, StateType.CANCELLING]),
        ),
    )
    async with open_client() as client:
        return {str(run.id) for run in await client.read_flow_runs(flow_run_filter=runs)}


async def _resume(run_id: UUID) -> bool:
    async with open_client() as client:
        try:
            run = await client.read_flow_run(run_id)
        except ObjectNotFound:
            return True  # the run was deleted
        if run.state is None or run.state.is_final():
            return True
        if not run.state.is_paused():
            return False  # resuming before the suspension would have no effect
        return (await client.resume_flow_run(run_id)).status == SetStateStatus.ACCEPT
