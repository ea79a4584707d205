"""The four phases as Prefect tasks. Documents go in, documents come out; no key is among them.

A task finds its connection in the flow that runs it. One that runs elsewhere is told the name of the PolluxProvider
to load, or else uses the environment it runs in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from prefect import task
from prefect.cache_policies import NO_CACHE

from pollux_flows.artifacts import progress
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Config, Target
from pollux_flows.options import Options
from pollux_flows.pipeline.execute import execute_plan
from pollux_flows.pipeline.extract import extract_each as make_envelopes
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import Request, make_request
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.source import Source


class _TaskSettings(TypedDict):
    cache_policy: Any
    persist_result: bool


# Cheap to make again, and the same each time: storing them would cost more than it saves.
_UNSTORED: Final[_TaskSettings] = {"cache_policy": NO_CACHE, "persist_result": False}


@task(name="request", task_run_name="request", **_UNSTORED)
async def request(
    prompts: str | Sequence[str | None] | None,
    target: Target,
    sources: Sequence[Source] = (),
    options: Options | None = None,
    each_source: bool = False,
) -> Request:
    """Validate and normalise what is asked."""
    return make_request(prompts, target=target, sources=sources, options=options, each_source=each_source)


@task(name="plan", task_run_name="plan", **_UNSTORED)
async def plan(request: Request) -> Plan:
    """Read what is to be sent, and work out the calls it comes to."""
    return make_plan(request, await read_sources(request))


@task(name="execute", task_run_name="execute · {plan.target.model} · {plan.size}", **_UNSTORED)
async def execute(plan: Plan, provider: str | None = None) -> list[Outcome]:
    """Make the calls. `provider` names the PolluxProvider with the key, for when no flow is at hand that holds one."""
    async with (
        _session(plan.target, provider) as session,
        progress(len(plan.calls), "Calls answered") as count,
    ):
        return await execute_plan(plan, session, on_outcome=lambda _: count())


@task(name="extract", task_run_name="extract", **_UNSTORED)
async def extract(plan: Plan, outcomes: Sequence[Outcome], duration_s: float = 0.0) -> ResultEnvelope:
    """Build the envelope."""
    return extract_envelope(plan, outcomes, duration_s=duration_s)


@task(name="extract", task_run_name="extract", **_UNSTORED)
async def extract_each(plan: Plan, outcomes: Sequence[Outcome], duration_s: float = 0.0) -> list[ResultEnvelope]:
    """Build one envelope a source."""
    return make_envelopes(plan, outcomes, duration_s=duration_s)


@dataclass(frozen=True)
class _Held:
    session: Session
    loop: asyncio.AbstractEventLoop


_held: ContextVar[_Held | None] = ContextVar("pollux_flows_session", default=None)


@asynccontextmanager
async def holding_session(config: Config) -> AsyncIterator[None]:
    """Connect once for all tasks of a flow; the key stays in this process's memory."""
    async with open_session(config) as session:
        token = _held.set(_Held(session, asyncio.get_running_loop()))
        try:
            yield
        finally:
            _held.reset(token)


@asynccontextmanager
async def _session(target: Target, provider: str | None) -> AsyncIterator[Session]:
    held = _held.get()
    # A connection belongs to its event loop: a task that runs on another one makes its own.
    if held and held.loop is asyncio.get_running_loop() and held.session.config.target == target:
        yield held.session
        return
    config = await (await PolluxProvider.named(provider)).config() if provider else Config(**target.model_dump())
    async with open_session(config) as session:
        yield session
