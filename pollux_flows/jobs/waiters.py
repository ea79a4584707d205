"""Waiters: flow runs that are suspended until a job is collected, so that nothing runs while the provider works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import asuspend_flow_run
from prefect.runtime import deployment

from pollux_flows.jobs.connection import connected

_LONGEST_S: Final = 14 * 86_400


def may_suspend() -> str | None:
    """The id of the flow run at hand if it can be suspended: one of a deployment, and no part of another run."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None or TaskRunContext.get() is not None or not deployment.id:
        return None
    return None if flow.flow_run.parent_task_run_id else str(flow.flow_run.id)


async def suspend() -> None:
    """Suspend the flow run at hand; when it is resumed, it starts from its first line, and this does nothing."""
    await asuspend_flow_run(timeout=_LONGEST_S)


async def resume_all(run_ids: Sequence[str]) -> list[str]:
    """Resume these flow runs. Those that are not suspended yet are given back, for the next time."""
    return [run_id for run_id in run_ids if not await _resumed(UUID(run_id))]


async def _resumed(run_id: UUID) -> bool:
    async with connected() as client:
        try:
            run = await client.read_flow_run(run_id)
        except ObjectNotFound:
            return True  # nobody waits any more
        if run.state is None or run.state.is_final():
            return True
        if not run.state.is_paused():
            return False  # a resumption that comes before the suspension would be lost
        return (await client.resume_flow_run(run_id)).status == SetStateStatus.ACCEPT
