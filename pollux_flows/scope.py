"""Scope: which run a call belongs to, so that a retry finds the answers it has paid for.

That is the outermost flow run: Prefect gives a sub-flow that did not complete a new run when its parent is retried.
Whoever asks the same thing several times within a run is told apart by counting, not by any id that a retry changes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext

from pollux_flows.pipeline.plan import Plan
from pollux_flows.state.identity import digest

_REMEMBERED: Final = 10_000
# Who has asked for a plan, within one attempt of one flow run, in the order in which they came.
_asked: Final[defaultdict[tuple[UUID, int, str], list[UUID]]] = defaultdict(list)


async def run_key(plan: Plan) -> str:
    """The name of the run that the calls of this plan belong to. The same in each attempt of that run."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return f"task {task.task_run.id}" if task else uuid4().hex
    asker, home = flow.flow_run.id, flow.flow_run
    if task is not None and task.task_run.flow_run_id == home.id:
        asker = task.task_run.id
    elif home.parent_task_run_id is not None:
        home = await _parent(home.parent_task_run_id)
    while len(_asked) > _REMEMBERED:
        del _asked[next(iter(_asked))]
    others = _asked[home.id, home.run_count, digest("calls", [call.identity for call in plan.calls])]
    if asker not in others:
        others.append(asker)
    return f"{(await _root(home)).id}/{others.index(asker)}"


async def _root(run: FlowRun) -> FlowRun:
    while run.parent_task_run_id is not None:
        run = await _parent(run.parent_task_run_id)
    return run


async def _parent(task_run: UUID) -> FlowRun:
    """The flow run that this task run, which stands for one of its sub-flows, is part of."""
    async with get_client() as client:
        flow_run = (await client.read_task_run(task_run)).flow_run_id
        if flow_run is None:
            raise LookupError
        return await client.read_flow_run(flow_run)
