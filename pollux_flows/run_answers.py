"""Load the saved answers of a flow run, even of one that failed or was killed.

They are in the state of the machine that it ran on or, for a deferred run, in its job.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from pollux_flows.answer_rows import AnswerRow, describe_misfit
from pollux_flows.deferred.output import read_rows
from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.connection import open_client
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.jobs.waiters import job_name
from pollux_flows.options import Options
from pollux_flows.pipeline.structured import Reading, read_answers
from pollux_flows.result import Outcome
from pollux_flows.state.index import IndexedCall, RunFacts, read_index
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store


async def load_answers(run: str) -> list[AnswerRow]:
    """Return the answers of a flow run, by its name or id, in the order of its prompts."""
    async with open_client() as client:
        flow_run = await _find_run(client, run)
        outermost = await _outermost_id(client, flow_run)
    store = open_store()
    calls, facts = await read_index(store, outermost, str(flow_run.id))
    if calls:
        journal, names = Journal(store, outermost), [call.identity for call in calls]
        own = await journal.load_own(names)
        reused = await journal.load_reusable([name for name in names if name not in own], None)
        return await asyncio.to_thread(_make_rows, calls, facts, reused | own)
    if rows := await _load_job(job_name(str(flow_run.id))):
        return rows
    raise ConfigurationError(
        f"The state of this machine ({store.where}) has no answers of the run {flow_run.name!r}.",
        hint="Run this command on the machine of the run, or let all machines share one state. The answers of a run of "
        "an earlier version, or whose records were pruned, cannot be listed.",
    )


async def _find_run(client: PrefectClient, run: str) -> FlowRun:
    """Return the flow run of this id, or the one of this name."""
    try:
        return await client.read_flow_run(UUID(run))
    except (ValueError, ObjectNotFound):
        named = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
        found = await client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=5)
    if not found:
        raise ConfigurationError(
            f"The Prefect server has no flow run {run!r}.", hint="Copy its name or its id from its page."
        )
    if len(found) > 1:
        ids = ", ".join(f"{each.id} ({each.expected_start_time:%Y-%m-%d %H:%M})" for each in found)
        raise ConfigurationError(f"Several runs are named {run!r}.", hint=f"Pass the id of one. The latest are {ids}.")
    return found[0]


async def _outermost_id(client: PrefectClient, run: FlowRun) -> str:
    """Return the id of the run that this one is part of, or its own."""
    while run.parent_task_run_id is not None:
        parent = (await client.read_task_run(run.parent_task_run_id)).flow_run_id
        if parent is None:
            break
        run = await client.read_flow_run(parent)
    return str(run.id)


async def _load_job(name: str) -> list[AnswerRow]:
    """Return the answers of a deferred job; none if there is no such job."""
    store = await BlockJobStore.open()
    job = await store.find(name)
    if job is None:
        return []
    if job.manifest is None:
        raise ConfigurationError(f"{name} is not collected yet.", hint="Collect it first: pollux-flows collect.")
    prompts = (await store.load_input(job)).prompts
    return [row async for rows in read_rows(store.storage, job, prompts) for row in rows]


def _make_rows(calls: Sequence[IndexedCall], facts: RunFacts, outcomes: Mapping[str, Outcome]) -> list[AnswerRow]:
    numbers = defaultdict[int | None, Iterator[int]](lambda: count(1))  # the prompt numbers of each source
    found = [outcomes.get(call.identity) for call in calls]
    readings = read_answers(Options(response_schema=facts.schema), [each.answer if each else None for each in found])
    rows = []
    for call, outcome, reading in zip(calls, found, readings or [Reading()] * len(calls), strict=True):
        number = next(numbers[call.source])
        rows.append(
            AnswerRow.of(
                number,
                call.prompt,
                outcome,
                source=None if call.source is None else call.source + 1,
                source_name=None
                if call.source is None or facts.source_names is None
                else facts.source_names[call.source],
                structured=reading.value,
                misfit=reading.problem and describe_misfit(reading.problem),
            )
        )
    return rows
