"""Tests of the deferred flows on a real Prefect server and all three batch systems."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import cast

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import AsyncClientContext
from prefect.states import Cancelled
from pydantic import BaseModel

from pollux_flows import ConfigurationError, Options, Source
from pollux_flows.blocks import PolluxDeferredJob, PolluxProvider
from pollux_flows.config import ProviderName
from pollux_flows.flows import (
    acancel,
    acollect,
    adeferred,
    aresubmit,
    asubmit,
    await_for,
    cancel,
    collect,
    deferred,
    submit,
)
from pollux_flows.jobs.names import job_name
from pollux_flows.jobs.store import BlockJobStore
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import SDKS
from tests.prefect.jobs import (
    ANSWERS,
    PROMPTS,
    SaveProvider,
    jobs_home,
    no_jobs_are_left,
    read_job_events,
    save_provider,
)

__all__ = ["jobs_home", "no_jobs_are_left", "save_provider"]

every_batch_system = pytest.mark.parametrize("kind", SDKS)


class City(BaseModel):
    name: str
    people: int


@every_batch_system
async def test_a_job_is_submitted_once_and_collected_once(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    simulator.batch_s = 3600
    name = await asubmit(PROMPTS, await save_provider(kind))
    block = cast(PolluxDeferredJob, await PolluxDeferredJob.aload(name))
    assert (block.state, block.status in {"queued", "running"}, block.prompts) == ("submitted", True, 4)
    assert block.batches == [simulator.batches[0].id]
    assert "sk-deferred-sentinel" not in json.dumps(block.job)
    report = await acollect()
    (row,) = report.rows
    assert (row.job, row.collected, row.pending, row.problem) == (name, False, 4, None)
    simulator.clock = lambda: time.time() + 3601
    try:
        report = await acollect()
    finally:
        simulator.clock = time.time
    (row,) = report.rows
    assert (row.status, row.collected, row.succeeded, row.problem) == ("completed", True, 4, None)
    assert row.cost_usd is not None
    assert (await acollect()).rows == []
    envelope = await await_for(name)
    assert (envelope.status, envelope.answers) == ("ok", ANSWERS)
    assert envelope.metrics["cost_usd"] == pytest.approx(row.cost_usd)
    assert await read_job_events(name) == ["submitted", "collected"]
    assert len(simulator.batches) == 1


def test_deferred_flows_have_a_sync_form(save_provider: SaveProvider) -> None:
    provider = asyncio.run(save_provider("openai"))
    name = submit(PROMPTS, provider)
    assert collect([name]).rows[0].collected
    assert deferred(PROMPTS, provider).answers == ANSWERS


@every_batch_system
async def test_files_schema_and_system_instruction_reach_the_provider(
    kind: ProviderName, save_provider: SaveProvider, tmp_path: Path, simulator: Simulator
) -> None:
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7\n" + bytes(200))
    provider = await save_provider(kind, keep_files_s=0.0)
    options = Options(system_instruction="Be brief.", response_schema=City)
    name = await asubmit(["Which city?"], provider, [Source.from_file(pdf)], options)
    uploaded = {file.id for file in simulator.files}
    assert uploaded
    await acollect()
    (city,) = (await await_for(name)).structured or []
    assert isinstance(city, dict), "a waiting process need not have the class"
    envelope = await adeferred(["Which city?"], provider, [Source.from_file(pdf)], options)
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], City)
    assert [file.id for file in simulator.files if file.id in uploaded and file.deleted_at is None] == []


async def test_the_output_has_a_line_per_prompt_and_a_manifest(
    save_provider: SaveProvider, tmp_path: Path, simulator: Simulator
) -> None:
    simulator.batch(end="partial", answered=0.5)
    output = tmp_path / "out" / "answers.jsonl"
    name = await asubmit(PROMPTS, await save_provider("openai"), output=str(output))
    (row,) = (await acollect([name])).rows
    assert (row.succeeded, row.failed) == (2, 2)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["number"], line["prompt"]) for line in lines] == list(enumerate(PROMPTS, start=1))
    assert [line["status"] for line in lines] == ["answered", "answered", "api_error", "api_error"]
    assert [line["answer"] for line in lines] == [*ANSWERS[:2], None, None]
    manifest = json.loads((tmp_path / "out" / "answers.manifest.json").read_text())
    buckets = ("succeeded", "failed", "expired", "cancelled", "invalid_output", "missing")
    assert sum(manifest[bucket] for bucket in buckets) == manifest["submitted"] == 4
    assert manifest["cost_usd"] == pytest.approx(row.cost_usd)
    assert sorted(path.name for path in output.parent.iterdir()) == ["answers.jsonl", "answers.manifest.json"]


@every_batch_system
async def test_resubmit_submits_only_the_failed_prompts(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider(kind))
    assert (await acollect([name])).rows[0].succeeded == 2
    with pytest.raises(Exception, match="resubmit"):
        await await_for(name)
    child = await aresubmit(name)
    assert await aresubmit(name) == child, "a second call finds the same child"
    await acollect()
    envelope = await await_for(name)
    assert (envelope.status, envelope.answers) == ("ok", ANSWERS)
    assert [batch.rows for batch in simulator.batches] == [4, 2]
    with pytest.raises(ConfigurationError, match="have answers"):
        await aresubmit(name)


async def test_the_collector_resubmits_failed_prompts(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path
) -> None:
    simulator.batch(end="expired", answered=0.5)
    simulator.batch(end="expired", answered=0.5)
    output = tmp_path / "answers.jsonl"
    envelope = await adeferred(PROMPTS, await save_provider("gemini"), resubmit=2, output=str(output))
    assert envelope.answers == ANSWERS
    assert [batch.rows for batch in simulator.batches] == [4, 2, 1]
    assert [json.loads(line)["answer"] for line in output.read_text().splitlines()] == ANSWERS


async def test_failed_prompts_are_resubmitted_to_the_model_of_their_job(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """Jobs for two models of one account share a poll, but not a model, which is part of the URL of a Gemini batch."""
    provider = await save_provider("gemini")
    other = provider.model_copy(update={"model": "gemini-2.5-pro"})
    await other.asave("deferred-gemini-pro", overwrite=True)
    for block in (provider, await PolluxProvider.named("deferred-gemini-pro")):
        simulator.batch(end="expired", answered=0.5)
        await asubmit(PROMPTS, block, resubmit=1)
    await acollect()
    created = Counter(
        entry.path.rpartition("/")[2] for entry in simulator.requests if entry.operation == "batch.create"
    )
    assert created == Counter({f"{model}:batchGenerateContent": 2 for model in (provider.model, other.model)})


async def test_a_retry_of_the_run_finds_its_job(save_provider: SaveProvider, simulator: Simulator) -> None:
    """A run that fails after the submission does not submit a second time."""
    provider = await save_provider("openai")
    names = []

    @flow(retries=1)
    async def nightly() -> None:
        names.append(await asubmit(PROMPTS, provider))
        if len(names) == 1:
            raise RuntimeError("something else went wrong")

    await nightly()
    assert names[0] == names[1]
    assert len(simulator.batches) == 1


@every_batch_system
async def test_a_batch_whose_reply_was_lost_is_collected(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The batch is found at the provider, and not submitted a second time."""
    simulator.fail(Fault(kind="drop_after"), operation="batch.create")
    name = await asubmit(PROMPTS, await save_provider(kind))
    await acollect()
    assert (await await_for(name)).answers == ANSWERS
    assert len(simulator.batches) == 1


@every_batch_system
async def test_a_job_that_the_provider_refuses_is_removed(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    """A retry can submit it again."""
    simulator.fail(Fault(status=400, message="not like this"), operation="batch.create")
    provider = await save_provider(kind)
    with pytest.raises(Exception, match="not like this"):
        await asubmit(PROMPTS, provider)
    async with get_client() as client:
        assert await client.read_block_documents_by_type("pollux-deferred-job") == []
    assert simulator.batches == []


async def test_concurrent_collectors_collect_each_job_once(save_provider: SaveProvider, simulator: Simulator) -> None:
    provider = await save_provider("anthropic")
    names = [await asubmit([*PROMPTS, str(number)], provider) for number in range(3)]
    await asyncio.gather(acollect(), acollect(), acollect(names))
    for name in names:
        assert await read_job_events(name) == ["submitted", "collected"]
        assert (await await_for(name)).status == "ok"
    assert len(simulator.batches) == 3


async def test_a_job_without_its_provider_does_not_stop_the_collector(save_provider: SaveProvider) -> None:
    gone = await asubmit(PROMPTS, await save_provider("openai"))
    fine = await asubmit(PROMPTS, await save_provider("gemini"))
    edited = await asubmit(["edited"], await save_provider("gemini"))
    async with get_client() as client:
        document = await client.read_block_document_by_name("deferred-openai", "pollux-provider")
        await client.delete_block_document(document.id)
    block = cast(PolluxDeferredJob, await PolluxDeferredJob.aload(edited))
    block.job = {"version": 99}
    await block.asave(edited, overwrite=True)
    rows = {row.job: row for row in (await acollect()).rows}
    assert rows[fine].collected
    assert "no PolluxProvider named" in (rows[gone].problem or "")
    assert rows[edited].problem
    await save_provider("openai")
    assert (await acollect([gone])).rows[0].collected


async def test_a_cancelled_job_is_collected(save_provider: SaveProvider, simulator: Simulator) -> None:
    simulator.batch_s = 3600
    name = await asubmit(PROMPTS, await save_provider("openai"))
    block = await PolluxDeferredJob.aload(name)
    assert await acancel(cast(str, block)) == "cancelling"
    simulator.clock = lambda: time.time() + 3600
    try:
        (row,) = (await acollect()).rows
    finally:
        simulator.clock = time.time
    assert (row.status, row.collected, row.failed) == ("cancelled", True, 4)
    assert await read_job_events(name) == ["submitted", "failed"]


@pytest.mark.parametrize("another_waits", [False, True])
async def test_the_batch_of_a_waiting_run_that_is_cancelled_is_cancelled(
    save_provider: SaveProvider, simulator: Simulator, another_waits: bool
) -> None:
    """The next pass of the collector cancels the batch, unless another run waits for the job."""
    simulator.batch_s = 3600
    provider = await save_provider("openai")
    name, other = await asubmit(PROMPTS, provider), await asubmit(["another"], provider)
    store = await BlockJobStore.open()
    async with get_client() as client:
        latest = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=2)
        runs = {job_name(str(run.id)): run.id for run in latest}
        await client.set_flow_run_state(runs[name], Cancelled(), force=True)
    async with store.lock(name) as lock:
        waiting = [str(runs[name]), *([str(runs[other])] if another_waits else [])]
        await lock.save(lock.job.model_copy(update={"waiting_runs": waiting}))
    rows = {row.job: row.status for row in (await acollect()).rows}
    assert rows == {name: "queued" if another_waits else "cancelling", other: "queued"}
    assert (await store.get(name)).cancelled is not another_waits
    for each in (name, other):
        await acancel(each)


async def test_an_unknown_job_is_refused() -> None:
    for call in (acollect(["unknown"]), acancel("unknown"), aresubmit("unknown"), await_for("unknown")):
        with pytest.raises(ConfigurationError, match="no job named 'unknown'"):
            await call
    with pytest.raises(ConfigurationError, match="no job named"):
        await asyncio.to_thread(cancel, "unknown")


async def test_a_job_waits_while_the_queue_of_the_provider_is_full(
    save_provider: SaveProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later pass of the collector submits the job again."""
    monkeypatch.setattr("pollux_flows.deferred.job._WAIT_S", 0.0)
    simulator.batch(end="queue_full")
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    await acollect()
    await acollect()
    assert (await await_for(name)).answers == ANSWERS
    assert len(simulator.batches) == 2


async def test_pending_jobs_of_an_account_are_inspected_with_one_list(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """24 batches in three accounts, of which five end."""
    simulator.batch_s = 3600
    store = await BlockJobStore.open()
    for kind in SDKS:
        name = await asubmit(PROMPTS, await save_provider(kind))
        job, request, batch = await store.find(name), await store.load_request(name), simulator.batches[-1]
        assert job is not None
        async with AsyncClientContext():
            for number in range(7):
                copy = replace(batch, id=f"{batch.id}{number:03}", settling=Lock())
                if kind == "gemini" and number < 5:
                    copy.takes_s = 60
                simulator.batch_store.add(copy)
                part = job.parts[0].model_copy(update={"batch_id": copy.id})
                await store.save_request(f"{name}-{number:03}", request)
                assert await store.create(job.model_copy(update={"name": f"{name}-{number:03}", "parts": [part]}))
    before = len(simulator.requests)
    report = await acollect()
    assert [row.problem for row in report.rows if row.problem or row.collected] == []
    assert (len(report.rows), len(simulator.requests) - before) == (24, report.requests)
    assert report.requests == len(SDKS)
    simulator.clock = lambda: time.time() + 61
    try:
        report = await acollect()
    finally:
        simulator.clock = time.time
    assert sum(row.collected and row.succeeded == len(PROMPTS) for row in report.rows) == 5
    assert [row.problem for row in report.rows if row.problem] == []
    assert len(report.rows) == 24
