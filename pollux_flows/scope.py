"""Scope: which run a call belongs to, so that a retry finds the answers it has paid for.

That is the place in the outermost flow run: Prefect gives a sub-flow that did not complete a new run when its parent is
retried, but in the same place, which it numbers by the order in which tasks and sub-flows are called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from uuid import UUID, uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TaskRunContext

from pollux_flows.pipeline.plan import Plan
from pollux_flows.state.identity import digest

_REMEMBERED: Final = 10_000
# Prefect numbers sub-flows by their order, tasks it does not: those that came first to do a thing, in one attempt.
_came: Final[defaultdict[tuple[UUID, int, str], list[UUID]]] = defaultdict(list)
_within: Final[ContextVar[str | None]] = ContextVar("pollux_flows_within", default=None)


@contextmanager
def entering() -> Iterator[None]:
    """Around the call of a flow: notes the task that calls it, if one does."""
    flow, task, place = FlowRunContext.get(), TaskRunContext.get(), None
    if flow is not None and flow.flow_run is not None and task is not None:
        attempt = (task.task_run.id, task.task_run.run_count, "")
        place = f"{_place(flow.flow_run, task.task_run, task.task_run.task_key)}.{_number(attempt, uuid4())}"
    token = _within.set(place)
    try:
        yield
    finally:
        _within.reset(token)


async def run_key(plan: Plan | None = None) -> str:
    """The name of the run that the calls of this plan belong to. The same in each attempt of that run.

    A flow needs no plan to tell: there is one for each run of it.
    """
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is None or flow.flow_run is None:
        return f"task {task.task_run.id}" if task else uuid4().hex
    run, places = flow.flow_run, []
    if plan is not None and task is not None and task.task_run.flow_run_id == run.id:
        places.append(_place(run, task.task_run, digest("calls", [call.identity for call in plan.calls])))
    called_by = _within.get()
    while run.parent_task_run_id is not None:
        caller, run = await _caller(run.parent_task_run_id)
        places.append(called_by or f"{caller.task_key}-{caller.dynamic_key}")
        called_by = None
    return "/".join([str(run.id), *reversed(places)])


async def attempt() -> str:
    """Which attempt this is at the flow run at hand, and at those that it is part of."""
    flow = FlowRunContext.get()
    if flow is None or flow.flow_run is None:
        return "1"
    run, attempts = flow.flow_run, [flow.flow_run.run_count]
    while run.parent_task_run_id is not None:
        _, run = await _caller(run.parent_task_run_id)
        attempts.append(run.run_count)
    return "/".join(map(str, reversed(attempts)))


def _place(run: FlowRun, task: TaskRun, what: str) -> str:
    return f"{what}-{_number((run.id, run.run_count, what), task.id)}"


def _number(what: tuple[UUID, int, str], who: UUID) -> int:
    while len(_came) > _REMEMBERED:
        del _came[next(iter(_came))]
    others = _came[what]
    if who not in others:
        others.append(who)
    return others.index(who)


async def _caller(task_run_id: UUID) -> tuple[TaskRun, FlowRun]:
    """The task run that stands for a sub-flow, and the flow run that it is part of."""
    async with get_client() as client:
        task = await client.read_task_run(task_run_id)
        if task.flow_run_id is None:
            raise LookupError(f"The task run {task.name!r} stands for a sub-flow and belongs to no flow run.")
        return task, await client.read_flow_run(task.flow_run_id)
