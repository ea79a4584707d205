"""Tests of deferred jobs in trouble: lost, changed or incomplete data costs no answer, and is always reported."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from pydantic import SecretStr

from pollux_flows import ConfigurationError, Options, PolluxError, Source
from pollux_flows.blocks import PolluxDeferredJob
from pollux_flows.config import ProviderName
from pollux_flows.deferred.answers import find_unanswered
from pollux_flows.deferred.budget import price_job
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.submit import create_child
from pollux_flows.flows import acancel, acollect, adeferred, aresubmit, asubmit, await_for
from pollux_flows.jobs.store import BlockJobStore, ResultStorage
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.clock_check import Expiry
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

WAITING = str(uuid4())


async def load_job(name: str) -> Job:
    job = await (await BlockJobStore.open()).find(name)
    assert job is not None
    return job


async def find_folder(name: str) -> Path:
    """Return the folder of the job in this machine's result storage."""
    return Path((await ResultStorage.open()).where) / "pollux-deferred" / name


async def test_answers_in_another_result_storage_are_an_error(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """The child that would complete them reports it, and leaves the output unchanged."""
    simulator.batch(end="expired", answered=0.5)
    output = tmp_path / "answers.jsonl"
    name = await asubmit(PROMPTS, await save_provider("openai"), output=str(output))
    await acollect()
    await aresubmit(name)
    stored = await find_folder(name)
    shutil.move(stored, tmp_path / "elsewhere")
    lines = output.read_text()
    rows = {row.job: row for row in (await acollect()).rows}
    assert "or some of them, are not in this worker's result storage" in (rows[f"{name}-r1"].problem or "")
    assert output.read_text() == lines
    shutil.move(tmp_path / "elsewhere", stored)
    await acollect()
    assert (await await_for(name)).answers == ANSWERS


@pytest.mark.parametrize("lost", ["", "answers-0000", "asked"])
async def test_an_error_calls_answers_saved_only_if_they_are(
    save_provider: SaveProvider, simulator: Simulator, lost: str
) -> None:
    """The result storage may have lost the answers or the request, and still have the envelope."""
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    if lost:
        (await find_folder(name) / lost).unlink()
    with pytest.raises(PolluxError) as caught:
        await await_for(name)
    hint = caught.value.hint or ""
    assert (f"is saved: resubmit('{name}') asks only the others" in hint) is not bool(lost)
    assert ("is no longer in this worker's result storage" in hint and "pays for, everything again" in hint) is bool(
        lost
    )


async def test_a_retry_needs_neither_the_sources_nor_the_provider_of_a_submitted_job(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """The file may have been deleted since, and the saved provider may have another model."""
    text = tmp_path / "report.txt"
    text.write_text("first")
    provider, sources = await save_provider("openai"), [Source.from_file(text)]
    names = []

    @flow(retries=1)
    async def nightly() -> None:
        names.append(await asubmit(PROMPTS, provider, sources))
        if len(names) == 1:
            text.unlink()
            raise RuntimeError("something else went wrong")

    await nightly()
    assert names[0] == names[1]
    assert len(simulator.batches) == 1


async def test_unavailable_results_and_outputs_are_retried_until_the_job_is_cancelled(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path
) -> None:
    """Each pass reports the reason."""
    (tmp_path / "file").touch()
    name = await asubmit(PROMPTS, await save_provider("openai"), output=str(tmp_path / "file" / "answers.jsonl"))
    (row,) = (await acollect()).rows
    assert "could not be written" in (row.problem or "")
    await acancel(name)
    (row,) = (await acollect()).rows
    assert (row.collected, row.succeeded) == (True, 4)
    assert (await await_for(name)).answers == ANSWERS
    gone = await asubmit(["gone"], await save_provider("openai"))
    simulator.fail(Fault(status=404, message="no such file"), operation="file.content", times=2)
    (row,) = (await acollect()).rows
    assert "no such file" in (row.problem or "")
    await acancel(gone)
    (row,) = (await acollect()).rows
    assert (row.collected, row.failed) == (True, 1)


async def test_a_retry_of_the_run_resubmits_the_failed_prompts(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """Each retry submits them once."""
    simulator.batch(end="expired", answered=0.5)
    simulator.batch(end="expired", answered=0.5)
    provider, attempts = await save_provider("openai"), []

    @flow(retries=2)
    async def nightly() -> list[str]:
        attempts.append(1)
        return (await adeferred(PROMPTS, provider)).answers

    assert await nightly() == ANSWERS
    assert len(attempts) == 3
    assert [batch.rows for batch in simulator.batches] == [4, 2, 1]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_job_of_another_version_is_collected_a_week_later(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The other version stores fields that this one does not know, and lacks others."""
    name = await asubmit(PROMPTS, await save_provider(kind))
    block = cast(PolluxDeferredJob, await PolluxDeferredJob.aload(name))
    document = {**block.job, "something_new": {"a": [1]}}
    del document["told"]
    document["parts"] = [{**part, "something_new": True} for part in document["parts"]]
    block.job = document
    await block.asave(name, overwrite=True)
    simulator.clock = lambda: time.time() + 7 * 86_400
    try:
        (row,) = (await acollect()).rows
    finally:
        simulator.clock = time.time
    assert (row.collected, row.succeeded) == (True, 4)
    assert (await await_for(name)).answers == ANSWERS


class Machine:
    """Sets both clocks of a machine with collectors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.now, self.ahead_s = time.time(), 0.0
        self.expiry = Expiry(file, clock=lambda: self.now + self.ahead_s, monotonic=lambda: self.now)
        monkeypatch.setattr("pollux_flows.jobs.collector.open_expiry", lambda: self.expiry)


async def test_retired_jobs_are_removed_after_the_retention_time(
    save_provider: SaveProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two passes of the collector must confirm the clock first."""
    machine = Machine(monkeypatch, tmp_path / "clock.json")
    name = await asubmit(PROMPTS, await save_provider("openai"))
    assert (await acollect()).rows[0].collected
    machine.now += 91 * 86_400
    await acollect()
    assert (await load_job(name)).retired_at is not None
    machine.now += 3600
    await acollect()
    await acollect()
    with pytest.raises(ConfigurationError, match="no job named"):
        await await_for(name)


async def test_a_collector_with_a_wrong_clock_removes_no_job(
    save_provider: SaveProvider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The collector does not drop the runs that wait for a job either."""
    machine = Machine(monkeypatch, tmp_path / "clock.json")
    monkeypatch.setattr("pollux_flows.jobs.collector.resume_runs", _resume_no_run)
    provider = await save_provider("openai")
    name, waited_for = await asubmit(PROMPTS, provider), await asubmit(["waited for"], provider)
    async with (await BlockJobStore.open()).lock(waited_for) as lock:
        await lock.save(lock.job.model_copy(update={"waiting_runs": [WAITING]}))
    await acollect()
    machine.ahead_s = 100 * 86_400
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr("pollux_flows.jobs.collector.time.time", lambda: real() + machine.ahead_s)
        for _ in range(3):
            await acollect()
    assert (await load_job(name)).retired_at is not None
    assert (await load_job(waited_for)).waiting_runs == [WAITING]
    assert (await await_for(name)).answers == ANSWERS


async def _resume_no_run(run_ids: list[str]) -> list[str]:
    return run_ids


async def test_an_error_about_one_batch_does_not_stop_the_collector(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    provider = await save_provider("openai")
    names = [await asubmit([*PROMPTS, str(number)], provider) for number in range(3)]
    simulator.fail(Fault(status=403, message="not yours"), operation="batch.get")
    rows = (await acollect()).rows
    assert sorted(row.collected for row in rows) == [False, True, True]
    assert [row.job for row in rows if "not yours" in (row.problem or "")] == [
        row.job for row in rows if not row.collected
    ]
    (row,) = (await acollect()).rows
    assert (row.job in names, row.collected) == (True, True)


async def test_cancel_gives_up_a_batch_that_the_provider_no_longer_has(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    simulator.batch_s = 3600
    name = await asubmit(PROMPTS, await save_provider("gemini"))
    for operation in ("batch.get", "batch.cancel", "batch.list"):
        simulator.fail(Fault(status=404, message="no such batch"), operation=operation, times=10)
    (row,) = (await acollect()).rows
    assert "no such batch" in (row.problem or "")
    await acancel(name)
    (row,) = (await acollect()).rows
    assert (row.collected, row.failed) == (True, 4)
    simulator.faults.clear()
    simulator.batch_s = 0
    await aresubmit(name)
    await acollect()
    assert (await await_for(name)).answers == ANSWERS


@pytest.fixture
def _without_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch that is not found count as missing at once."""
    monkeypatch.setattr("pollux_flows.deferred.poll.SETTLED_S", 0.0)


@pytest.mark.usefixtures("_without_settling")
@pytest.mark.parametrize("kind", ["gemini", "openai", "anthropic"])
async def test_a_missing_batch_fails_the_waiting_flow(
    kind: ProviderName, save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The error says what to do. Nothing is resubmitted without a decision, and no file is deleted."""
    simulator.batch_s = 3600
    name = await asubmit(PROMPTS, await save_provider(kind))
    (batch,) = simulator.batches
    simulator.batch_store.delete(batch)
    before = [file.state for file in simulator.files]
    with pytest.raises(ConfigurationError, match="no longer has the batch") as caught:
        await await_for(name)
    assert batch.id in str(caught.value)
    assert f"resubmit('{name}')" in (caught.value.hint or "")
    for _ in range(2):
        report = await acollect()
        (row,) = report.rows
        assert (row.status, row.collected) == ("ambiguous", False)
        assert "no longer has the batch" in (row.problem or "")
        assert "resubmit" in row.next
        assert "1 lost at the provider" in report.headline
    assert await read_job_events(name, 2) == ["submitted", "ambiguous"]
    assert (await load_job(name)).parts[0].batch_id == batch.id
    assert [file.state for file in simulator.files] == before
    assert len(simulator.batches) == 1
    simulator.batch_s = 0
    assert await aresubmit(name) == name
    await acollect()
    assert (await await_for(name)).answers == ANSWERS
    assert len(simulator.batches) == 2


@pytest.mark.usefixtures("_without_settling")
async def test_a_run_with_a_missing_batch_fails_until_it_is_resubmitted(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """A retry does not pay for the batch a second time."""
    provider, attempts = await save_provider("openai"), []
    simulator.batch_s = 3600

    @flow(retries=1)
    async def nightly() -> None:
        attempts.append(1)
        name = await asubmit(PROMPTS, provider)
        if len(attempts) == 1:
            simulator.batch_store.delete(simulator.batches[0])
        await await_for(name)

    with pytest.raises(ConfigurationError, match="no longer has the batch"):
        await nightly()
    assert (len(attempts), len(simulator.batches)) == (2, 1)


@pytest.mark.usefixtures("_without_settling")
async def test_a_missing_batch_that_reappears_is_collected(save_provider: SaveProvider, simulator: Simulator) -> None:
    """A provider that was wrong for an hour does not cost a second batch."""
    name = await asubmit(PROMPTS, await save_provider("openai"))
    simulator.fail(Fault(status=404, message="no such batch"), operation="batch.get", times=1)
    await acollect()
    assert (await load_job(name)).state == "ambiguous"
    simulator.batches[0].takes_s = 3600
    await acollect()
    assert (await load_job(name)).state == "submitted"
    simulator.batches[0].takes_s = 0
    assert (await await_for(name)).answers == ANSWERS
    assert len(simulator.batches) == 1


@pytest.mark.usefixtures("_without_settling")
async def test_suspended_runs_are_resumed_when_a_batch_is_lost(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    name = await asubmit(PROMPTS, await save_provider("openai"))
    async with (await BlockJobStore.open()).lock(name) as lock:
        await lock.save(lock.job.model_copy(update={"waiting_runs": [str(uuid4())]}))
    simulator.batch_store.delete(simulator.batches[0])
    await acollect()
    assert (await load_job(name)).waiting_runs == []


@pytest.mark.usefixtures("_without_settling")
async def test_a_batch_that_another_key_does_not_find_is_not_lost(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The batch may belong to another account."""
    provider = await save_provider("openai")
    name = await asubmit(PROMPTS, provider)
    other = provider.model_copy(update={"api_key": SecretStr("sk-another-account")})
    await other.asave("deferred-openai", overwrite=True)
    (row,) = (await acollect()).rows
    assert "submitted with another key" in (row.problem or "")
    assert (await load_job(name)).state == "submitted"
    await save_provider("openai")
    await acollect()
    assert (await await_for(name)).answers == ANSWERS
    assert len(simulator.batches) == 1


async def test_a_batch_that_was_just_accepted_is_never_missing(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """A provider may take a while to find a new batch."""
    name = await asubmit(PROMPTS, await save_provider("openai"))
    simulator.fail(Fault(status=404, message="no such batch"), operation="batch.get")
    (row,) = (await acollect()).rows
    assert "no such batch" in (row.problem or "")
    assert (await load_job(name)).state == "submitted"


@pytest.mark.usefixtures("_without_settling")
async def test_cancel_ends_a_lost_job(save_provider: SaveProvider, simulator: Simulator) -> None:
    name = await asubmit(PROMPTS, await save_provider("openai"))
    simulator.batch_store.delete(simulator.batches[0])
    await acollect()
    await acancel(name)
    (row,) = (await acollect()).rows
    assert (row.collected, row.failed) == (True, 4)


async def test_the_waiting_flow_fails_if_a_lost_submission_is_only_reported(
    save_provider: SaveProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pollux_flows.deferred.reconcile.SETTLED_S", 0.0)
    simulator.fail(Fault(kind="drop"), operation="batch.create")
    with pytest.raises(PolluxError, match="does not have its batch"):
        await adeferred(PROMPTS, await save_provider("openai"), on_lost="report")
    (row,) = (await acollect()).rows
    assert row.status == "ambiguous"
    assert await read_job_events(row.job, 1) == ["ambiguous"]
    assert await aresubmit(row.job) == row.job
    await acollect()
    assert (await await_for(row.job)).answers == ANSWERS
    assert len(simulator.batches) == 1


async def test_a_child_completes_a_parent_that_does_not_know_it(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The process that created it was killed before it saved that in the parent."""
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    store = await BlockJobStore.open()
    job = await load_job(name)
    child = await create_child(job, store, await find_unanswered(store.storage, job), "sk-deferred-sentinel")
    await acollect()
    await acollect()
    assert (await load_job(child.name)).retired_at is not None
    assert (await await_for(name)).answers == ANSWERS
    assert (await load_job(name)).children == 1


async def test_the_cost_includes_answers_that_were_replaced(save_provider: SaveProvider, simulator: Simulator) -> None:
    """An answer in the wrong shape costs as much as any other."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    simulator.fail(Fault(kind="invalid_json"), operation="batch.row")
    name = await asubmit(["one"], await save_provider("gemini"), options=Options(response_schema=schema))
    (row,) = (await acollect()).rows
    assert row.cost_usd is not None
    assert row.succeeded == 0
    await aresubmit(name)
    await acollect()
    envelope = await await_for(name)
    assert envelope.status == "ok"
    assert envelope.metrics["cost_usd"] > row.cost_usd
    manifest = (await load_job(name)).manifest
    assert manifest is not None
    assert manifest.cost_usd == pytest.approx(envelope.metrics["cost_usd"])


async def test_the_cost_includes_every_answer_in_the_wrong_shape(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    simulator.fail(Fault(kind="invalid_json"), operation="batch.row", times=2)
    name = await asubmit(["one"], await save_provider("gemini"), options=Options(response_schema=schema), resubmit=1)
    costs = []
    for _ in range(3):
        await acollect()
    for each in (name, f"{name}-r1"):
        manifest = (await load_job(each)).manifest
        assert manifest is not None
        assert manifest.invalid_output == 1
        costs.append(manifest.cost_usd or 0.0)
    assert costs[0] > costs[1] > 0


@pytest.mark.parametrize("resubmit", [0, 1])
async def test_resubmitted_prompts_must_fit_into_the_budget(
    resubmit: int, save_provider: SaveProvider, simulator: Simulator
) -> None:
    """A retry of the run or the collector resubmits them. Empty answers that were paid for count."""
    options = Options(max_tokens=50)
    simulator.fail(Fault(kind="empty"), operation="batch.row", times=None)
    provider, attempts = await save_provider("gemini"), []
    config = await provider.config()
    async with open_session(config) as session:
        most = price_job(make_plan(make_request(["one"], target=config.target, options=options)), session)

    @flow(retries=1)
    async def nightly() -> None:
        attempts.append(1)
        await adeferred(["one"], provider, options=options, resubmit=resubmit, max_cost_usd=most)

    with pytest.raises(PolluxError):
        await nightly()
    assert len(attempts) == 2
    assert len(simulator.batches) == 1


async def test_cancel_also_cancels_the_child(save_provider: SaveProvider, simulator: Simulator) -> None:
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    simulator.batch_s = 3600
    await aresubmit(name)
    await acancel(name)
    assert simulator.batches[1].cancel_asked_at is not None


async def test_cancel_with_the_key_of_another_account_is_refused(save_provider: SaveProvider) -> None:
    """The batch may exist in the account that it was submitted to."""
    provider = await save_provider("openai")
    name = await asubmit(PROMPTS, provider)
    other = provider.model_copy(update={"api_key": SecretStr("sk-another-account")})
    await other.asave("deferred-openai", overwrite=True)
    with pytest.raises(ConfigurationError, match="submitted with another key"):
        await acancel(name)
    await save_provider("openai")
    await acollect()
    assert (await await_for(name)).answers[:2] == ANSWERS[:2]


async def test_a_parent_and_its_child_emit_their_own_events(save_provider: SaveProvider, simulator: Simulator) -> None:
    """Both are submitted and collected, and the parent is collected again when it is complete."""
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    await aresubmit(name)
    await acollect()
    assert await read_job_events(name, 3) == ["submitted", "collected", "collected"]
    assert await read_job_events(f"{name}-r1") == ["submitted", "collected"]


async def test_a_child_whose_parent_was_removed_is_retired(save_provider: SaveProvider, simulator: Simulator) -> None:
    simulator.batch(end="expired", answered=0.5)
    name = await asubmit(PROMPTS, await save_provider("openai"))
    await acollect()
    child = await aresubmit(name)
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, "pollux-deferred-job")
        await client.delete_block_document(document.id)
    (row,) = (await acollect()).rows
    assert (row.job, row.collected, row.problem) == (child, True, None)


async def test_unusable_outputs_are_refused(save_provider: SaveProvider, simulator: Simulator, tmp_path: Path) -> None:
    provider = await save_provider("openai")
    for output, message in (
        ("", "blank"),
        (" ", "blank"),
        (str(tmp_path), "is a folder"),
        ("nowhere://x", "cannot be"),
        ("s3://a:b@c/d", "password"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            await asubmit(PROMPTS, provider, output=output)
    with pytest.raises(ConfigurationError, match="resubmit is -1"):
        await asubmit(PROMPTS, provider, resubmit=-1)
    assert simulator.batches == []
    name = await asubmit(PROMPTS, provider, output=f"{tmp_path}/")
    await acollect()
    assert len((tmp_path / f"{name}.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("name", ["Upper", "a/b", "no such", "x" * 300, "-"])
async def test_names_that_no_job_can_have_are_refused(name: str) -> None:
    for call in (acancel(name), aresubmit(name), await_for(name), acollect([name])):
        with pytest.raises(ConfigurationError, match="no job named"):
            await call
