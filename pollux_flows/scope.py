"""Scope: which run a call belongs to, and where in that run it is made.

The run is the outermost flow run, whose id stays the same when it is retried. The place in it is a chain of flow runs
and tasks, each with a mark that changes whenever it starts again: the latest Running state of a flow run (its run count
does not change when it is resumed), and the run count of a task.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound

from pollux_flows.state.identity import digest
from pollux_flows.state.slots import Chain, RunScope


@dataclass(frozen=True)
class Link:
    """A flow run, and its tasks that are running in this context, outermost first."""

    run: FlowRun
    mark: str
    tasks: Chain

    @property
    def chain(self) -> Chain:
        return ((str(self.run.id), self.mark), *self.tasks)


def find_start(run: FlowRun) -> float:
    """Return when a flow run first started, as seconds since 1970; now for one that the server has not seen start."""
    return time.time() if run.start_time is None else run.start_time.timestamp()


@dataclass(frozen=True)
class Lineage:
    """The current flow run and those that it is part of."""

    outermost: FlowRun
    chain: Chain
    flow_run: FlowRun
    caller: Link | None
    """The flow run that called this one."""
    parameters_digest: str
    """A digest of the flow's name and parameters; empty for a flow that is not one of ours."""
    is_deep: bool
    """True if there is a task, or another flow run, between the current flow run and the outermost one."""

    @property
    def scope(self) -> RunScope:
        """The scope of calls that are made here."""
        run = self.outermost
        is_repeated = run.run_count > 1 or bool(run.empirical_policy.pause_keys)
        return RunScope(str(run.id), self.chain, str(self.flow_run.id), is_repeated, *self._as_sub_flow())

    def _as_sub_flow(self) -> tuple[str, str]:
        # Prefect does not look for the result of a sub-flow that a task called.
        if self.caller is None or self.caller.tasks or not self.parameters_digest:
            return "", ""
        return digest("sub-flow", [str(self.caller.run.id), self.parameters_digest]), str(
            self.flow_run.parent_task_run_id
        )

    @property
    def is_outermost(self) -> bool:
        """Return whether the current flow run is not part of another."""
        return self.flow_run.id == self.outermost.id

    @property
    def sub_flow_chain(self) -> Chain:
        """The chain of a sub-flow; empty for a flow run that is not part of another."""
        return () if self.is_outermost else self.chain

    @property
    def attempt(self) -> str:
        """An id of this attempt, which changes when the current flow run or one that it is part of starts again."""
        return " ".join(mark for _, mark in self.chain)


@dataclass(frozen=True)
class FlowCall:
    """The call of a flow: a digest of its parameters, and the flow runs that made it, innermost first.

    Recorded when the call is made, as its callers may have started again by the time the flow runs.
    """

    parameters_digest: str
    callers: tuple[Link, ...]


_call: Final[ContextVar[FlowCall | None]] = ContextVar("pollux_flows_call", default=None)


@contextmanager
def remember(call: FlowCall) -> Iterator[None]:
    """Make the call of a flow available to `lineage` while the flow runs."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def callers() -> tuple[Link, ...]:
    """Return the flow runs that are running in this context, innermost first."""
    tasks = [context.task_run for context in _open_contexts(TaskRunContext)]
    return tuple(
        Link(
            run, _mark(run.state) or str(run.run_count), _chain([task for task in tasks if task.flow_run_id == run.id])
        )
        for run in (context.flow_run for context in _open_contexts(FlowRunContext))
        if run is not None
    )


async def lineage() -> Lineage | None:
    """Return the lineage of the current flow run; None outside a flow run."""
    here = callers()
    if not here:
        return None
    call = _call.get()
    links = [here[0], *(here[1:] if call is None else call.callers)]
    if links[-1].run.parent_task_run_id is not None:  # its parent is in another process
        async with get_client() as client:
            while (parent := links[-1].run.parent_task_run_id) is not None:
                links.append(await _read_parent(client, parent))
    chain = tuple(each for link in reversed(links) for each in link.chain)
    caller = links[1] if len(links) > 1 else None
    is_deep = len(links) > 2 or any(link.tasks for link in links[1:])  # noqa: PLR2004 (itself and its caller)
    return Lineage(links[-1].run, chain, links[0].run, caller, call.parameters_digest if call else "", is_deep)


def task_scope() -> RunScope | None:
    """Return the scope for the calls of a task that is not part of a flow run; None outside a task."""
    context = TaskRunContext.get()
    if context is None:
        return None
    task = str(context.task_run.id)
    return RunScope(f"task {task}", ((task, str(context.task_run.run_count)),))


async def _read_parent(client: PrefectClient, task_run_id: UUID) -> Link:
    """Read the flow run that a sub-flow is part of, by the task run that represents the sub-flow in it."""
    tracking = await client.read_task_run(task_run_id)
    if tracking.flow_run_id is None:
        raise LookupError(f"The task run {tracking.name!r} represents a sub-flow and belongs to no flow run.")
    run = await client.read_flow_run(tracking.flow_run_id)
    mark = _mark(run.state)
    if mark is None:
        states = await client.read_flow_run_states(run.id)
        mark = next((found for state in reversed(states) if (found := _mark(state))), str(run.run_count))
    tasks: list[TaskRun] = []
    seen = tracking
    while inputs := seen.task_inputs.get("__parents__"):
        caller = next((each.id for each in inputs if each.input_type == "task_run"), None)
        try:
            seen = await client.read_task_run(caller) if caller is not None else tracking
        except ObjectNotFound:  # task runs are recorded with a delay
            break
        if seen is tracking:
            break
        tasks.append(seen)
    return Link(run, mark, _chain(tasks))


def _chain(tasks: list[TaskRun]) -> Chain:
    """Return the ids and run counts of these task runs, outermost first."""
    return tuple((str(task.id), str(task.run_count)) for task in reversed(tasks))


def _mark(state: State[Any] | None) -> str | None:
    return str(state.id) if state is not None and state.is_running() else None


def _open_contexts(kind: type[Any]) -> Iterator[Any]:
    """Yield the contexts of this kind that are entered, innermost first."""
    context: Any = kind.get()
    while context is not None:
        yield context
        # Prefect has no public access to the context around the current one.
        token = context._token  # noqa: SLF001
        outer = Token.MISSING if token is None else token.old_value
        context = None if outer is Token.MISSING else outer
