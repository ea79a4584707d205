"""defer and its companions: hand work in, look at it, collect it. No Prefect, no server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.deferred.advance import advance, cancel
from pollux_flows.deferred.book import Asked, BusyError, StoreBook
from pollux_flows.deferred.collect import as_instances, download, make_envelope
from pollux_flows.deferred.files import give_back_files
from pollux_flows.deferred.inspect import id_of, look, snapshot, submitted_at
from pollux_flows.deferred.job import Job, fingerprint
from pollux_flows.deferred.results import Results
from pollux_flows.deferred.submit import check, check_finished, claim, hand_in_first, planned
from pollux_flows.errors import APIError, ConfigurationError, DeferredNotReadyError, SourceError
from pollux_flows.handles import DeferredHandle, DeferredSnapshot
from pollux_flows.options import Options
from pollux_flows.pipeline.cleanup import store_of
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.terms import Terms
from pollux_flows.providers.session import Session, open_session
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source
from pollux_flows.state.identity import digest


async def defer(
    prompt: str | None = None,
    *,
    source: Source | None = None,
    config: Config,
    options: Options | None = None,
    run_key: str | None = None,
) -> DeferredHandle:
    """Hand in one prompt, about one source or none. `run_key` is that of `defer_many`."""
    if source is not None and not isinstance(source, Source):
        raise SourceError(
            f"source is a {type(source).__name__}.", hint="For several sources use defer_many(sources=[…])."
        )
    return await defer_many(
        prompt, sources=() if source is None else (source,), config=config, options=options, run_key=run_key
    )


async def defer_many(
    prompts: str | Sequence[str | None] | None = None,
    *,
    sources: Sequence[Source] = (),
    config: Config,
    options: Options | None = None,
    run_key: str | None = None,
) -> DeferredHandle:
    """Hand several prompts about the same sources in to the provider's batch system. Keep the handle: it collects.

    Before anything is sent, it is written down. If this process dies on the way, or the provider's reply is lost, call
    it again: it then looks for what was handed in and takes that over. To have it so after the handle was given as
    well, name the run: with the same `run_key`, the same prompts are handed in once.
    """
    if not isinstance(config, Config):
        raise ConfigurationError(f"config is a {type(config).__name__}.", hint="Pass Config(provider=…, model=…).")
    run_key = Terms(run_key=run_key).run_key
    request = make_request(prompts, target=config.target, sources=sources, options=options)
    check(request)
    asked = Asked.by(request, await read_sources(request, limit_s=config.timeout_s))
    # Off the event loop, as all that takes seconds for 50,000 prompts.
    plan = await asyncio.to_thread(make_plan, request, asked.contents)
    book = StoreBook(store_of(config))
    async with open_session(config) as session:
        await check_finished(session, plan)
        name = await _name(book, plan, run_key)
        await claim(book, name, asked, plan, config.key())
        job = await hand_in_first(book, name, session, plan)
    if any(part.state == "lost" for part in job.parts):
        raise ConfigurationError(
            "What was handed in under this run_key was never answered for, and its key was another.",
            hint="Call this again with that key: it looks for the batch in the account that it was handed in to.",
        )
    if any(part.state == "sending" for part in job.parts) or not job.parts:
        raise APIError(
            f"{config.provider} may have taken the batch, or not: its reply was lost, and no list shows it yet.",
            hint="Call this again with the same arguments in half a minute: it looks for the batch, and hands it in "
            "only if there is none.",
            retryable=True,
            provider=config.provider,
            phase="batch_submit",
            outcome_unknown=True,
        )
    return handle_of(job)


async def inspect_deferred(handle: DeferredHandle, *, config: Config | None = None) -> DeferredSnapshot:
    """How far the work is. What the provider had no room for yet is handed in; nothing is deleted."""
    async with open_session(_config(handle, config)) as session:
        return snapshot(await _advanced(handle, session), handle.job_id)


async def collect_deferred(
    handle: DeferredHandle,
    *,
    response_schema: type | dict[str, Any] | None = None,
    config: Config | None = None,
) -> ResultEnvelope:
    """The answers, in the order of the prompts; a DeferredNotReadyError while the provider works on them.

    With the `response_schema` that the work was submitted with, `structured` holds instances of it. What failed,
    expired or was cancelled has no answer, and its reason in `errors`.
    """
    _check_schema(handle, response_schema)
    began = time.monotonic()
    config = _config(handle, config)
    async with open_session(config) as session:
        job = await _advanced(handle, session)
        if not job.is_ended:
            seen = snapshot(job, handle.job_id)
            raise DeferredNotReadyError(
                f"{handle.provider} is not done with {handle.job_id}: {seen.status}, {seen.pending} of "
                f"{seen.request_count} to come.",
                hint="Collect it later; inspect_deferred says how far it is.",
                snapshot=seen,
            )
        with tempfile.TemporaryDirectory(prefix="pollux-results-") as folder:
            results = await download(job, session, Path(folder))
            envelope = await asyncio.to_thread(_envelope, job, results, began)
        await give_back_files(job, session)
    return await asyncio.to_thread(as_instances, envelope, Options(response_schema=response_schema))


def _envelope(job: Job, results: Results, began: float) -> ResultEnvelope:
    items = list(results.items())
    return make_envelope(job, items, oddities=results.oddities, duration_s=time.monotonic() - began)


async def cancel_deferred(handle: DeferredHandle, *, config: Config | None = None) -> None:
    """Ask the provider to stop. What was answered by then can be collected; work that is done stays as it is."""
    config = _config(handle, config)
    async with open_session(config) as session:
        book = StoreBook(store_of(config))
        if await _known(book, handle) is None:
            await cancel(_Loose(_job_in(handle)), session)
            return
        try:
            async with book.alone(_job_in(handle).name) as hold:
                await cancel(hold, session)
        except BusyError:
            raise ConfigurationError(
                f"Somebody is at work on {handle.job_id} just now.", hint="Cancel it again in a moment."
            ) from None


def handle_of(job: Job) -> DeferredHandle:
    """What the caller keeps of a job: enough to collect it anywhere."""
    schema = job.options.response_json_schema()
    kept = job.model_copy(update={"options": Options(response_schema=schema)})  # nothing else of what was asked
    return DeferredHandle(
        job_id=id_of(job),
        provider=job.target.provider,
        model=job.target.model,
        request_count=job.count,
        submitted_at=submitted_at(job),
        schema_hash=schema_hash(schema),
        provider_state={"job": kept.model_dump(mode="json", exclude_defaults=True)},
    )


def schema_hash(schema: dict[str, Any] | None) -> str | None:
    """A name of the schema. The order of its fields is no part of it."""
    if schema is None:
        return None
    return hashlib.sha256(json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def _name(book: StoreBook, plan: Plan, run_key: str | None) -> str:
    """What the job is called: what this run called it before or, without a run, what was left unfinished."""
    asks = fingerprint(plan)[:20]
    if run_key is not None:
        return digest("deferred run", [run_key, asks])[:32]
    for name in await book.names(f"{asks}-"):
        job = await book.find(name)
        if job is not None and job.state == "submitting":
            try:
                async with book.alone(name):
                    return name
            except BusyError:  # not unfinished but under way: somebody else asks the same at the same time
                continue
    return f"{asks}-{uuid4().hex[:12]}"


async def _advanced(handle: DeferredHandle, session: Session) -> Job:
    """The job as it is now, after all that could be done for it."""
    book = StoreBook(store_of(session.config))
    known = await _known(book, handle)
    if known is None:
        if not (job := _job_in(handle)).is_handed_in:
            raise ConfigurationError(
                f"A part of {handle.job_id} was still to be handed in, which only the machine can do that has it.",
                hint="Collect it where it was deferred, or let both places share their state: POLLUX_STATE_URL.",
            )
        return await look(job, session)
    try:
        async with book.alone(known.name) as hold:

            async def plan() -> Plan:
                return await planned(book, hold.job)

            await advance(hold, session, plan)
            return hold.job
    except BusyError:
        return await look(known, session)


async def _known(book: StoreBook, handle: DeferredHandle) -> Job | None:
    """The job of the handle, if this machine has it on record: then that says more."""
    job = _job_in(handle)
    found = await book.find(job.name)
    return found if found is not None and found.submission == job.submission else None


def _job_in(handle: DeferredHandle) -> Job:
    if not isinstance(handle, DeferredHandle):
        raise ConfigurationError(
            f"handle is a {type(handle).__name__}.", hint="Pass what defer gave, or DeferredHandle.from_dict(…)."
        )
    try:
        return Job.model_validate((handle.provider_state or {})["job"])
    except KeyError:
        raise ConfigurationError(
            f"The handle of {handle.job_id} does not say how to find it: its provider_state is not that of this "
            "package.",
            hint="Keep all of what DeferredHandle.to_dict() gives.",
        ) from None


def _config(handle: DeferredHandle, config: Config | None) -> Config:
    """Who to ask. The key is the given Config's, or that of the environment."""
    target = _job_in(handle).target
    if config is None:
        return Config(**target.model_dump())
    if (config.provider, config.base_url, config.use_mock) != (target.provider, target.base_url, target.use_mock):
        raise ConfigurationError(
            f"The handle of {handle.job_id} belongs to {target.provider} at {target.base_url or 'its own address'}, "
            f"and config is for {config.provider} at {config.base_url or 'its own address'}.",
            hint="Pass a Config like the one it was submitted with.",
        )
    return config


def _check_schema(handle: DeferredHandle, given: type | dict[str, Any] | None) -> None:
    if given is None:
        return
    if handle.schema_hash is None:
        raise ConfigurationError(
            "response_schema was given, and the work was submitted without one.", hint="Leave it out."
        )
    if schema_hash(Options(response_schema=given).response_json_schema()) != handle.schema_hash:
        raise ConfigurationError(
            "response_schema is not the one that the work was submitted with.",
            hint="Pass that one, or leave it out to have plain values.",
        )


class _Loose:
    """A job of which only a handle is left: what is learnt of it is not written down."""

    def __init__(self, job: Job) -> None:
        self.job = job

    async def save(self, job: Job) -> None:
        self.job = job

    async def renew(self) -> None:
        pass

    async def remove(self) -> None:
        pass
