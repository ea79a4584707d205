"""The four phases as Prefect tasks. Their arguments and results are documents, and contain no key.

A task uses the connection of the flow that runs it. A task on another machine loads the PolluxProvider that it is
passed the name of, or otherwise uses its own environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypedDict, cast

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from pollux_flows.artifacts import Progress, show_progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config, Target
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.options import Options
from pollux_flows.pages import count_of
from pollux_flows.pipeline.caches import CacheRequest
from pollux_flows.pipeline.execute import Execution, QueuePlace, open_execution
from pollux_flows.pipeline.extract import extract_each as make_envelopes
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import LONGEST_S as LONGEST_READ_S
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import Request, make_request
from pollux_flows.pipeline.savings import UsedCache
from pollux_flows.pipeline.structured import LONGEST_S
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.run_store import confirm_store
from pollux_flows.scope import Lineage, lineage, task_scope
from pollux_flows.source import Source


class _TaskSettings(TypedDict):
    cache_policy: Any
    persist_result: bool


# These results are cheap to compute again: storing them would cost more than it saves.
UNSTORED: Final[_TaskSettings] = {"cache_policy": NO_CACHE, "persist_result": False}


@task(name="request", task_run_name="request", **UNSTORED)
async def request(
    prompts: str | Sequence[str | None] | None,
    target: Target,
    sources: Sequence[Source] = (),
    options: Options | None = None,
    each_source: bool = False,
    *,
    sources_by_prompt: Sequence[Sequence[int]] | None = None,
) -> Request:
    """Validate and normalise the prompts, sources and options of a run."""
    return make_request(
        prompts,
        target=target,
        sources=sources,
        options=options,
        each_source=each_source,
        sources_by_prompt=sources_by_prompt,
    )


@task(name="plan", task_run_name="plan", **UNSTORED)
async def plan(request: Request, limit_s: float = LONGEST_READ_S, cache_request: CacheRequest | None = None) -> Plan:
    """Read the sources, and return the calls of the run.

    `cache_request` says how to create the cache of the options again if the provider has lost it.
    """
    contents = await read_sources(request, limit_s=limit_s)
    # Off the event loop: 50,000 calls take a second.
    return await asyncio.to_thread(make_plan, request, contents, cache_request=cache_request)


@task(name="execute", task_run_name="{plan.title}", **UNSTORED)
async def execute(plan: Plan, provider: str | None = None, terms: Terms | None = None) -> list[Outcome]:
    """Make the calls that have no saved answer.

    `provider` names the PolluxProvider with the key, for a task that runs outside the flow's process. A call belongs to
    the flow run, unless `terms` names another run.
    """
    return await execute_calls(plan, provider, terms)


async def execute_calls(plan: Plan, provider: str | None, terms: Terms | None) -> list[Outcome]:
    """Make the calls of the plan.

    Separate from the task, which is pickled by value, with everything that it refers to, when it is sent to another
    machine. This function is pickled by name.
    """
    shared = _shared.get()
    # A connection belongs to its event loop, and files to their plan: any other task opens its own.
    if shared and shared.loop is asyncio.get_running_loop() and shared.execution.plan.sources is plan.sources:
        outcomes = await shared.execution.answer_calls(plan.calls, shared.progress.add, _turn.get())
        # The failed state is for people who look at the run; the flow reads the outcomes from it.
        return _mark_failed(outcomes) if any(outcome.problem for outcome in outcomes) else outcomes
    config = await (await PolluxProvider.named(provider)).config() if provider else Config(**plan.target.model_dump())
    async with share_execution(plan, config, terms or Terms()) as found:
        await found.confirm_store()
        return await found.execution.answer_calls(plan.calls, found.progress.add)


@task(name="extract", task_run_name="extract", **UNSTORED)
async def extract(
    plan: Plan,
    outcomes: Sequence[Outcome],
    duration_s: float = 0.0,
    limit_s: float = LONGEST_S,
    caches: Sequence[UsedCache] = (),
) -> ResultEnvelope:
    """Build the envelope of a run. `caches` are the registered caches that the calls used, for its metrics."""
    return await asyncio.to_thread(
        extract_envelope, plan, outcomes, duration_s=duration_s, limit_s=limit_s, caches=caches
    )


@task(name="extract", task_run_name="extract", **UNSTORED)
async def extract_each(
    plan: Plan,
    outcomes: Sequence[Outcome],
    duration_s: float = 0.0,
    limit_s: float = LONGEST_S,
    caches: Sequence[UsedCache] = (),
) -> list[ResultEnvelope]:
    """Build one envelope per source."""
    return await asyncio.to_thread(
        make_envelopes, plan, outcomes, duration_s=duration_s, limit_s=limit_s, caches=caches
    )


def _mark_failed(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes as the data of a failed state."""
    problems = [problem.message for outcome in outcomes if (problem := outcome.problem) is not None]
    message = problems[0] if len(outcomes) == 1 else f"{len(problems)} of {len(outcomes)} failed: {problems[0]}"
    # A task that returns a state ends in that state.
    return cast(list[Outcome], Failed(data=_UnquotedOutcomes(outcomes), message=message))


class _UnquotedOutcomes(list[Outcome]):
    """Outcomes with a short repr: Prefect writes the data of a failed state to the log."""

    def __repr__(self) -> str:
        return f"{len(self)} outcomes"


@dataclass(frozen=True)
class SharedExecution:
    """The execution of a flow run, for its tasks in this process."""

    execution: Execution
    loop: asyncio.AbstractEventLoop
    progress: Progress
    lineage: Lineage | None

    async def confirm_store(self) -> None:
        """Refuse, before the first call, if an earlier attempt of the run has saved its answers in another state."""
        if self.lineage is not None:
            await confirm_store(self.lineage)


_shared: ContextVar[SharedExecution | None] = ContextVar("pollux_flows_execution", default=None)
_turn: ContextVar[QueuePlace | None] = ContextVar("pollux_flows_turn", default=None)


@contextmanager
def take_turn(turn: QueuePlace) -> Iterator[None]:
    """Pass `turn` to the task that is called in the block, which closes it once its calls are queued."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)


@asynccontextmanager
async def share_execution(plan: Plan, config: Config, terms: Terms) -> AsyncIterator[SharedExecution]:
    """Open the execution that all tasks of a flow share. The key stays in this process's memory."""
    here = await lineage() if terms.run_key is None else None
    scope = here.scope if here else task_scope() if terms.run_key is None else None
    async with (
        open_execution(plan, config, terms, scope, caches=BlockRegistry()) as execution,
        show_progress(len(plan.calls), "Calls answered") as progress,
    ):
        shared = SharedExecution(execution, asyncio.get_running_loop(), progress, here)
        token = _shared.set(shared)
        try:
            yield shared
        except asyncio.CancelledError:
            get_run_logger().warning(
                "Cancelled with %s of %s answered. These answers are saved: a retry asks only the others.",
                f"{progress.done:,}",
                count_of(progress.total, "call"),
            )
            raise
        finally:
            _shared.reset(token)
