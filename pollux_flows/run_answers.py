"""Answers of a run, listed later: of any run, also one that failed or was killed.

The state of this machine has the index of each run and its answers; a deferred run has them in its job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, Field

from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.connection import open_client
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.jobs.waiters import job_name
from pollux_flows.result import CallFailure, Outcome
from pollux_flows.state.index import IndexedCall, read_index
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import open_store


class AnswerRow(BaseModel):
    """A prompt of a run and its answer."""

    number: int = Field(description="The prompt's number, from 1.")
    source: int | None = Field(default=None, description="The source's number, of a broadcast.")
    prompt: str | None
    status: str = Field(description="answered, no answer, or the kind of the failure.")
    answer: str | None = None
    structured: Any = None
    reasoning: str | None = None
    error: str | None = None
    hint: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] = Field(default_factory=dict)
    cost_usd: float | None = None


async def load_answers(run: str) -> list[AnswerRow]:
    """Return the answers of a flow run, by its name or id, in the order of its prompts."""
    async with open_client() as client:
        flow_run = await _find_run(client, run)
        outermost = await _outermost_id(client, flow_run)
    store = open_store()
    calls = await read_index(store, outermost, str(flow_run.id))
    if calls:
        journal, names = Journal(store, outermost), [call.identity for call in calls]
        own = await journal.load_own(names)
        reused = await journal.load_reusable([name for name in names if name not in own], None)
        outcomes = reused | own
        numbers = defaultdict[int | None, Iterator[int]](lambda: count(1))  # of the prompts, a source
        return [_row_of_call(next(numbers[call.source]), call, outcomes.get(call.identity)) for call in calls]
    if rows := await _load_job(job_name(str(flow_run.id))):
        return rows
    raise ConfigurationError(
        f"The state of this machine ({store.where}) has no answers of the run {flow_run.name!r}.",
        hint="Its answers are where it ran: type this there, or let all machines share one state. A run of an earlier "
        "version, or one whose records were pruned, cannot be listed.",
    )


async def _find_run(client: PrefectClient, run: str) -> FlowRun:
    """Return the flow run of this id, or the latest of this name."""
    try:
        return await client.read_flow_run(UUID(run))
    except (ValueError, ObjectNotFound):
        named = FlowRunFilter(name=FlowRunFilterName(any_=[run]))
        found = await client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    if not found:
        raise ConfigurationError(
            f"The Prefect server has no flow run {run!r}.", hint="Copy its name or its id from its page."
        )
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
    envelope = await store.load_envelope(job)
    failures = envelope.errors or [None] * len(prompts)
    structured = envelope.structured or [None] * len(prompts)
    return [
        _row(index + 1, prompt, answer, failure, structured=parsed)
        for index, (prompt, answer, failure, parsed) in enumerate(
            zip(prompts, envelope.answers, failures, structured, strict=True)
        )
    ]


def _row_of_call(number: int, call: IndexedCall, outcome: Outcome | None) -> AnswerRow:
    source = None if call.source is None else call.source + 1
    if outcome is None:
        return AnswerRow(number=number, source=source, prompt=call.prompt, status="no answer")
    answer = outcome.answer
    return _row(
        number,
        call.prompt,
        answer.text if answer else None,
        outcome.problem,
        source=source,
        reasoning=answer.reasoning if answer else None,
        finish_reason=answer.finish_reason if answer else None,
        usage=answer.usage if answer else {},
        cost_usd=outcome.cost_usd,
    )


def _row(number: int, prompt: str | None, answer: str | None, failure: CallFailure | None, **facts: Any) -> AnswerRow:
    if failure is None:
        return AnswerRow(number=number, prompt=prompt, status="answered", answer=answer, **facts)
    problem = {"status": failure.kind, "error": failure.message, "hint": failure.hint}
    return AnswerRow(number=number, prompt=prompt, answer=answer or None, **problem, **facts)
