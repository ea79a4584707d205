"""Deferred work without Prefect: defer, inspect, collect and cancel."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pollux_flows.config import Config
from pollux_flows.deferred.advance import advance, cancel
from pollux_flows.deferred.files import release_files
from pollux_flows.deferred.job import Job, fingerprint
from pollux_flows.deferred.poll import poll_job
from pollux_flows.deferred.report import job_id_of, snapshot, submitted_at
from pollux_flows.deferred.results import Results, download, make_envelope, with_instances
from pollux_flows.deferred.store import BusyError, JobLock, JobRequest, StateJobStore
from pollux_flows.deferred.submit import check_plan, check_request, create_job, submit_created_job
from pollux_flows.errors import APIError, ConfigurationError, DeferredNotReadyError, SourceError
from pollux_flows.frames import Column
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
    """Submit one prompt about one source, or without a source. For `run_key` see `defer_many`."""
    if source is not None and not isinstance(source, Source):
        raise SourceError(
            f"source is a {type(source).__name__}.", hint="For several sources use defer_many(sources=[…])."
        )
    return await defer_many(
        prompt, sources=() if source is None else (source,), config=config, options=options, run_key=run_key
    )


async def defer_many(
    prompts: str | Sequence[str | None] | Column | None = None,
    *,
    sources: Sequence[Source] = (),
    config: Config,
    options: Options | None = None,
    run_key: str | None = None,
) -> DeferredHandle:
    """Submit prompts about the same sources to the provider's batch system, and return the handle that collects them.

    The job is saved before anything is sent. If this process dies, or the provider's reply is lost, call this again: it
    looks for the batch at the provider and continues with it. To make repeated calls idempotent even after a handle
    was returned, pass a `run_key`: with the same `run_key`, the same prompts are submitted once.
    """
    if not isinstance(config, Config):
        raise ConfigurationError(f"config is a {type(config).__name__}.", hint="Pass Config(provider=…, model=…).")
    run_key = Terms(run_key=run_key).run_key
    request = make_request(prompts, target=config.target, sources=sources, options=options)
    check_request(request)
    job_request = JobRequest.of(request, await read_sources(request, limit_s=config.timeout_s))
    # Off the event loop, as all that takes seconds for 50,000 prompts.
    plan = await asyncio.to_thread(make_plan, request, job_request.contents)
    store = StateJobStore(store_of(config))
    async with open_session(config) as session:
        await check_plan(session, plan)
        name = await _choose_name(store, plan, run_key)
        await create_job(store, name, job_request, plan, config.key())
        job = await submit_created_job(store, name, session, plan)
    if any(part.state == "lost" for part in job.parts):
        raise ConfigurationError(
            "The provider never confirmed the batch of this run_key, which was submitted with another API key.",
            hint="Call this again with that key: it looks for the batch in the account that it was submitted to.",
        )
    if any(part.state == "sending" for part in job.parts) or not job.parts:
        raise APIError(
            f"{config.provider} may or may not have accepted the batch: its reply was lost, and no list shows it yet.",
            hint="Call this again with the same arguments in half a minute: it looks for the batch, and submits it "
            "only if there is none.",
            retryable=True,
            provider=config.provider,
            phase="batch_submit",
            outcome_unknown=True,
        )
    return handle_of(job)


async def inspect_deferred(handle: DeferredHandle, *, config: Config | None = None) -> DeferredSnapshot:
    """Return the progress of deferred work. Parts that wait for room at the provider are submitted."""
    async with open_session(_resolve_config(handle, config)) as session:
        return snapshot(await _advance(handle, session), handle.job_id)


async def collect_deferred(
    handle: DeferredHandle,
    *,
    response_schema: type | dict[str, Any] | None = None,
    config: Config | None = None,
) -> ResultEnvelope:
    """Return the answers in the order of the prompts. Raises DeferredNotReadyError while the provider works on them.

    With the `response_schema` that the work was submitted with, `structured` holds instances of it. A prompt that
    failed, expired or was cancelled has no answer, and its reason in `errors`.
    """
    _check_schema(handle, response_schema)
    started = time.monotonic()
    config = _resolve_config(handle, config)
    async with open_session(config) as session:
        job = await _advance(handle, session)
        if not job.is_ended:
            seen = snapshot(job, handle.job_id)
            raise DeferredNotReadyError(
                f"{handle.provider} is not done with {handle.job_id}: {seen.status}, {seen.pending} of "
                f"{seen.request_count} answers pending.",
                hint="Collect it later; inspect_deferred shows its progress.",
                snapshot=seen,
            )
        with tempfile.TemporaryDirectory(prefix="pollux-results-") as folder:
            results = await download(job, session, Path(folder))
            envelope = await asyncio.to_thread(_make_envelope, job, results, started)
        await release_files(job, session)
    return await asyncio.to_thread(with_instances, envelope, Options(response_schema=response_schema))


def _make_envelope(job: Job, results: Results, started: float) -> ResultEnvelope:
    items = list(results.items())
    return make_envelope(job, items, oddities=results.oddities, duration_s=time.monotonic() - started)


async def cancel_deferred(handle: DeferredHandle, *, config: Config | None = None) -> None:
    """Ask the provider to stop. Finished answers can still be collected; work that has ended does not change."""
    config = _resolve_config(handle, config)
    async with open_session(config) as session:
        store = StateJobStore(store_of(config))
        if await _find(store, handle) is None:
            await cancel(JobLock(_read_job(handle)), session)
            return
        try:
            async with store.lock(_read_job(handle).name) as lock:
                await cancel(lock, session)
        except BusyError:
            raise ConfigurationError(
                f"Another process is working on {handle.job_id}.", hint="Cancel it again in a moment."
            ) from None


def handle_of(job: Job) -> DeferredHandle:
    """Return the handle of a job, which is enough to collect it on any machine."""
    schema = job.options.response_json_schema()
    public = job.model_copy(update={"options": Options(response_schema=schema)})  # nothing else of the request
    return DeferredHandle(
        job_id=job_id_of(job),
        provider=job.target.provider,
        model=job.target.model,
        request_count=job.count,
        submitted_at=submitted_at(job),
        schema_hash=schema_hash(schema),
        provider_state={"job": public.model_dump(mode="json", exclude_defaults=True)},
    )


def schema_hash(schema: dict[str, Any] | None) -> str | None:
    """Return a digest of the schema that does not depend on the order of its fields."""
    if schema is None:
        return None
    return hashlib.sha256(json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def _choose_name(store: StateJobStore, plan: Plan, run_key: str | None) -> str:
    """Return the name of the job: that of this run or, without a run, of a job that was left unfinished."""
    calls = fingerprint(plan)[:20]
    if run_key is not None:
        return digest("deferred run", [run_key, calls])[:32]
    for name in await store.list_names(f"{calls}-"):
        job = await store.find(name)
        if job is not None and job.state == "submitting":
            try:
                async with store.lock(name):
                    return name
            except BusyError:  # another process is submitting equal work at the same time
                continue
    return f"{calls}-{uuid4().hex[:12]}"


async def _advance(handle: DeferredHandle, session: Session) -> Job:
    """Take every step that is possible for the job now, and return it."""
    store = StateJobStore(store_of(session.config))
    if (job := await _find(store, handle)) is not None:
        with suppress(BusyError):
            async with store.lock(job.name) as lock:
                await advance(lock, session, store)
                return lock.job
    elif not (job := _read_job(handle)).is_submitted:
        raise ConfigurationError(
            f"A part of {handle.job_id} was not submitted yet, which needs the state of the machine that deferred it.",
            hint="Collect it where it was deferred, or set POLLUX_STATE_URL so that both machines share their state.",
        )
    return (await poll_job(job, session)).apply(job, session.config.key(), time.time())


async def _find(store: StateJobStore, handle: DeferredHandle) -> Job | None:
    """Return the stored job of the handle, which is newer than the job in the handle; None if it is not stored here."""
    job = _read_job(handle)
    found = await store.find(job.name)
    return found if found is not None and found.submission == job.submission else None


def _read_job(handle: DeferredHandle) -> Job:
    if not isinstance(handle, DeferredHandle):
        raise ConfigurationError(
            f"handle is a {type(handle).__name__}.",
            hint="Pass the handle that defer returned, or DeferredHandle.from_dict(…).",
        )
    try:
        return Job.model_validate((handle.provider_state or {})["job"])
    except KeyError:
        raise ConfigurationError(
            f"The handle of {handle.job_id} does not describe a job: its provider_state is not that of this package.",
            hint="Store everything that DeferredHandle.to_dict() returns.",
        ) from None


def _resolve_config(handle: DeferredHandle, config: Config | None) -> Config:
    """Return the Config for the handle's provider, with the key of `config` or of the environment."""
    target = _read_job(handle).target
    if config is None:
        return Config(**target.model_dump())
    if (config.provider, config.base_url, config.use_mock) != (target.provider, target.base_url, target.use_mock):
        raise ConfigurationError(
            f"The handle of {handle.job_id} belongs to {target.provider} at {target.base_url or 'its own address'}, "
            f"and config is for {config.provider} at {config.base_url or 'its own address'}.",
            hint="Pass a Config with the provider and base_url that it was submitted with.",
        )
    return config


def _check_schema(handle: DeferredHandle, schema: type | dict[str, Any] | None) -> None:
    if schema is None:
        return
    if handle.schema_hash is None:
        raise ConfigurationError("The work was submitted without a response_schema.", hint="Leave it out.")
    if schema_hash(Options(response_schema=schema).response_json_schema()) != handle.schema_hash:
        raise ConfigurationError(
            "response_schema is not the one that the work was submitted with.",
            hint="Pass the original one, or leave it out to get plain values.",
        )
