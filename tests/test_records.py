"""Results, jobs, answers, handles and conversations that an earlier version stored can still be read.

The files in `records/0.1.0` were written by that version and must not change. A new format gets another folder.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore

import pollux_flows
from pollux_flows import (
    CacheHandle,
    Config,
    DeferredHandle,
    Options,
    ResultEnvelope,
    flows,
    run_many,
)
from pollux_flows.blocks import PolluxDeferredJob
from pollux_flows.config import Target
from pollux_flows.deferred.answers import read_items
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.report import CollectReport
from pollux_flows.deferred.store import JobRequest
from pollux_flows.document import Document
from pollux_flows.jobs.store import ResultStorage
from pollux_flows.pipeline.request import make_request
from pollux_flows.result import SweepReport
from pollux_flows.serializer import _MODULE_PATHS, DOCUMENTS, KINDS, decode
from pollux_flows.state.store import open_store

RECORDS = Path(__file__).parent / "records" / "0.1.0"
JOB = "deferred-330d58e38766"


def load_record(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text())


def load_result(name: str) -> Any:
    """Return the result in this file, read as Prefect reads it."""
    return DOCUMENTS.loads((RECORDS / f"{name}.json").read_bytes())


# --- Records of 0.1.0 -----------------------------------------------------------------------------------------------


def test_stored_results_of_flows_can_be_read() -> None:
    envelopes = load_result("result-list-of-envelopes")
    assert [type(envelope) for envelope in envelopes] == [ResultEnvelope, ResultEnvelope]
    assert envelopes[1].answers == ["Simulated answer to: Who?"]
    report = load_result("result-collect")
    assert isinstance(report, CollectReport)
    assert [(row.job, row.collected) for row in report.rows] == [(JOB, True)]
    assert load_result("result-sweep") == SweepReport()


def test_a_stored_conversation_can_be_continued() -> None:
    envelope = load_result("result-conversation")
    target = Target(provider="openai", model="gpt-4.1-mini")
    request = make_request("Who am I?", target=target, options=Options(continue_from=envelope))
    assert [turn.role for turn in request.history.turns] == ["user", "assistant"]
    assert request.history.response_id == "resp_00000002"


@pytest.fixture
def storage(tmp_path: Path) -> ResultStorage:
    """The result storage of a worker that has submitted and collected a job."""
    folder = tmp_path / "pollux-deferred" / JOB
    folder.mkdir(parents=True)
    for name, stored_as in {"asked": "asked", "answers": "answers-0000", "envelope": "envelope"}.items():
        (folder / stored_as).write_bytes((RECORDS / f"shelf-{name}.json").read_bytes())
    storage = LocalFileSystem(basepath=str(tmp_path))
    return ResultStorage(ResultStore(result_storage=storage, serializer=DOCUMENTS, cache_result_in_memory=False))


async def test_a_stored_job_and_its_answers_can_be_read(storage: ResultStorage) -> None:
    block = load_record("block-deferred-job")
    job = Job.model_validate({**block["data"]["job"], "name": block["name"]})
    assert PolluxDeferredJob.model_validate(block["data"]).handle.request_count == 2
    request = await storage.get(f"{JOB}/asked")
    assert isinstance(request, JobRequest)
    assert [call.prompt for call in request.plan(job).calls] == ["one", "two"]
    assert [item.bucket async for item in read_items(storage, job)] == ["succeeded", "succeeded"]
    envelope = await storage.get(f"{JOB}/envelope")
    assert isinstance(envelope, ResultEnvelope)
    assert envelope.answers == ["Simulated answer to: one", "Simulated answer to: two"]


def test_stored_handles_can_be_read() -> None:
    deferred = DeferredHandle.from_dict(load_record("handle-deferred"))
    assert Job.model_validate((deferred.provider_state or {})["job"]).is_submitted
    assert CacheHandle.model_validate(load_record("handle-cache")).provider == "gemini"


@pytest.mark.parametrize(("reuse", "run_key"), [("run", "nightly"), ("always", "another")])
async def test_a_stored_answer_of_the_journal_is_reused(
    reuse: Any, run_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own run and other runs find the answer. Nothing listens at the address of the provider."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))
    monkeypatch.setenv("POLLUX_STATE_KEEP_DAYS", "36500")
    journal = load_record("journal")
    await open_store().put_many(journal["records"])
    config = Config(
        provider="gemini",
        model="gemini-2.5-flash-lite",
        api_key="k-x",
        base_url=load_record("handle-deferred")["provider_state"]["job"]["target"]["base_url"],
    )
    envelope = await run_many(["Who?"], config=config, run_key=run_key, reuse=reuse)
    assert envelope.answers == ["Simulated answer to: Who?"]
    assert envelope.metrics["n_reused"] == 1


def test_a_record_of_the_current_format_can_be_read() -> None:
    stored = {"pollux_document": "cache-handle", "version": 1, "json": json.dumps(load_record("handle-cache"))}
    assert decode(stored) == CacheHandle.model_validate(load_record("handle-cache"))


# --- Stored names ---------------------------------------------------------------------------------------------------

# These are stored only within other documents, or in records of another form.
PARTS = {
    "Amount", "Attached", "Billing", "CacheChoice", "Chunk", "ChunkAnswers", "Content", "Conversation",
    "DamageReport", "Entry", "Exchange", "Failure", "Leftover", "MapSpec", "MappedAnswer", "Ownership", "Part",
    "PlannedCall", "Pruned", "Record", "RetryPolicy", "RunSummary", "SharedBudget", "StoredConversation", "Survey",
    "SweptFile", "Terms", "ToolCall", "Turn", "UploadKey", "Uploaded", "UsedCache", "VideoSettings", "_AnyManifest",
    "_Unquoted",
}  # fmt: skip


def find_documents(base: type[Document] = Document) -> Iterator[type[Document]]:
    for kind in base.__subclasses__():
        yield kind
        yield from find_documents(kind)


def test_every_document_has_a_stored_name_or_is_a_part_of_others() -> None:
    """A new class must be added to KINDS or, if it is only stored within others, to PARTS."""
    for module in pkgutil.walk_packages(pollux_flows.__path__, "pollux_flows."):
        importlib.import_module(module.name)
    ours = {kind for kind in find_documents() if kind.__module__.startswith("pollux_flows.")}
    stored = {kind.document for kind in KINDS.values()}
    assert {kind.__name__ for kind in ours - stored} == PARTS
    assert len(stored) == len(KINDS)


def find_documents_in(annotation: Any) -> set[type[Document]]:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return {annotation}
    return {found for each in typing.get_args(annotation) for found in find_documents_in(each)}


@pytest.mark.parametrize("name", flows.__all__)
def test_every_flow_returns_documents_with_a_stored_name(name: str) -> None:
    returned = typing.get_type_hints(getattr(flows, name).fn)["return"]
    assert find_documents_in(returned) <= {kind.document for kind in KINDS.values()}


def test_stored_names_never_change() -> None:
    """New names may be added; without an old name, stored results would be unreadable."""
    of_0_1_0 = {
        "answer", "cache-handle", "call-failure", "collect-report", "config", "deferred-handle", "deferred-snapshot",
        "job", "job-item", "job-request", "job-row", "manifest", "options", "outcome", "plan", "request",
        "result-envelope", "source", "sweep-report", "target",
    }  # fmt: skip
    assert of_0_1_0 | {"cache-record", "cache-request"} <= KINDS.keys()
    assert set(_MODULE_PATHS.values()) == of_0_1_0
