"""Collect: bring the results of a job here, and make one envelope of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pollux_flows.deferred.inspect import id_of, snapshot, submitted_at
from pollux_flows.deferred.job import Job, Part
from pollux_flows.deferred.results import Item, Results
from pollux_flows.deferred.warm import warm_warnings
from pollux_flows.errors import APIError
from pollux_flows.options import Options
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.retry import insist
from pollux_flows.pipeline.structured import Reading, read_instances
from pollux_flows.pricing import total
from pollux_flows.providers.batches import Batch
from pollux_flows.providers.session import Session
from pollux_flows.result import ResultEnvelope

_NOT_FOUND: Final = 404


async def download(job: Job, session: Session, folder: Path) -> Results:
    """The results of all its parts as they come, in files. What is there already is not fetched again.

    Of a cancelled job, what the provider does not have any more is given up.
    """
    files: dict[int, Path] = {}
    for number, part in enumerate(job.parts):
        if part.batch_id is None or not part.results:
            continue
        path = folder / f"{job.tag(number)}.jsonl"
        try:
            if not path.exists():
                await insist(partial(_fetch, session, part, path), session.config)
        except APIError as error:
            if error.status_code == _NOT_FOUND and job.cancelled:
                continue
            raise
        files[number] = path
    # Off the event loop: to find 50,000 results takes seconds.
    return await asyncio.to_thread(Results, job, files)


async def _fetch(session: Session, part: Part, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        await session.download_batch(_batch(part), file)
    unfinished.replace(path)


def _batch(part: Part) -> Batch:
    return Batch(
        id=part.batch_id or "",
        state=part.batch_state or "running",
        native=part.native,
        results=tuple(part.results),
    )


def make_envelope(
    job: Job, items: Sequence[Item], *, oddities: Sequence[str] = (), duration_s: float = 0.0
) -> ResultEnvelope:
    """One envelope of what became of its prompts, in their order."""
    plan = Plan.model_construct(
        target=job.target, options=_without_caching(job.options), sources=[], contents=[], calls=[], sharing=job.count
    )
    outcomes = [item.outcome for item in items]
    is_warm = any(part.follows for part in job.parts)
    # Each answer was read when its item was made: a caller's validators run once.
    readings = None if job.options.response_schema is None else [Reading(item.structured) for item in items]
    envelope = extract_envelope(plan, outcomes, duration_s=duration_s, readings=readings, batch=True)
    misfits = [item.warning for item in items if item.warning]
    more = {
        "metrics": {
            **envelope.metrics,
            **_cost(items),
            "deferred": True,
            "cache_mode": "implicit" if is_warm else "none",
        },
        "diagnostics": {
            **envelope.diagnostics,
            "warnings": [*misfits, *envelope.diagnostics["warnings"], *warm_warnings(job, outcomes), *oddities],
            "deferred": {**_course(job), "items": [_told(item) for item in items]},
        },
    }
    # All of it comes from documents: to look at it again would take another copy of all answers.
    return envelope.model_construct(**{**dict(envelope), **more})


def _without_caching(options: Options) -> Options:
    """The options without what means something else in a batch."""
    return options.model_copy(update={"implicit_caching": None, "cache_ttl": None})


def as_instances(envelope: ResultEnvelope, options: Options) -> ResultEnvelope:
    """The envelope with `structured` as instances of the caller's own model, where there is one. Blocks.

    What fits the schema that was sent, and not the model as it is now, is None, and its reason a warning.
    """
    model = options.response_model()
    if model is None or envelope.structured is None:
        return envelope
    readings = read_instances(model, envelope.structured)
    values = [reading.instance for reading in readings]
    warnings = [*envelope.diagnostics.get("warnings", [])]
    warnings += [
        f"The answer to prompts[{index}] does not fit {model.__name__} as it is now: {reading.problem}"
        for index, reading in enumerate(readings)
        if reading.problem
    ]
    diagnostics = {**envelope.diagnostics, "warnings": warnings}
    return envelope.model_copy(update={"structured": values, "diagnostics": diagnostics})


def _cost(items: Sequence[Item]) -> dict[str, Any]:
    """What all of it cost, with what was answered and did not count in the end."""
    cost = total(cost for item in items for _, cost in item.paid)
    return {"cost_usd": cost.usd, **({} if cost.unknown is None else {"cost_unknown": cost.unknown})}


def _course(job: Job) -> dict[str, Any]:
    at, ended_at = submitted_at(job), snapshot(job).completed_at
    return {
        "job_id": id_of(job),
        "job": job.name,
        "batches": [part.batch_id for part in job.parts if part.batch_id],
        "submitted_at": at,
        "completed_at": ended_at,
        "elapsed_s": None if ended_at is None else round(max(0.0, ended_at - at), 3),
    }


def _told(item: Item) -> dict[str, Any]:
    problem, answer = item.outcome.problem, item.outcome.answer
    return {
        "request_id": item.key,
        "status": item.bucket,
        "error": problem.message if problem else item.warning,
        "provider_status": item.code,
        "finish_reason": answer and answer.finish_reason,
    }
