"""Behaviour that the batch systems of all providers share, through their real SDKs."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, ConfigurationError, Options, RateLimitError, Source
from pollux_flows.config import ProviderName
from pollux_flows.files.content import examine
from pollux_flows.pipeline.upload_file import upload_file
from pollux_flows.providers.batches import Batch, Result, Rows, paginate
from pollux_flows.providers.material import Material
from pollux_flows.providers.session import Session, open_session
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, SDKS, MakeConfig, Scripted, http, scripted
from tests.providers.batching import BatchSession, make_call, open_batch_session
from tests.providers.test_malformed_answers import NONSENSE_REPLIES

PROMPTS = [f"Question {number}" for number in range(8)]
KEYS = {f"r{number}" for number in range(8)}
NATIVE_STATES = {
    "openai": ("validating", "in_progress", "finalizing", "completed", "cancelling"),
    "anthropic": ("in_progress", "in_progress", "in_progress", "ended", "canceling"),
    "gemini": (
        "BATCH_STATE_PENDING", "BATCH_STATE_RUNNING", "BATCH_STATE_RUNNING", "BATCH_STATE_SUCCEEDED",
        "BATCH_STATE_RUNNING",
    ),
}  # fmt: skip
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 4
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(params=SDKS)
def provider(request: pytest.FixtureRequest) -> ProviderName:
    name: ProviderName = request.param
    return name


@pytest.fixture
async def b(provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[BatchSession]:
    async with open_batch_session(config(provider), sim, tmp_path) as opened:
        yield opened


# --- The life of a batch ------------------------------------------------------------------------------------------


async def test_a_batch_reports_each_state_until_it_is_completed(b: BatchSession) -> None:
    """The batch is accepted, running and completed, with the counts and times that the provider reports."""
    starting, running, finishing, completed, _ = NATIVE_STATES[b.provider]
    created = await b.submit(b.make_rows(*PROMPTS), "tag-7")
    queued = "running" if b.provider == "anthropic" else "queued"
    assert (created.state, created.native, created.is_ended) == (queued, starting, False)
    assert (created.total, created.succeeded, created.failed, created.results) == (8, 0, 0, ())
    assert (created.tag, created.created_at) == (None if b.provider == "anthropic" else "tag-7", b.clock.now)
    for seconds, word in ((50, running), (45, finishing)):
        batch = await b.inspect_after(created, seconds)
        assert (batch.id, batch.state, batch.native, batch.ended_at) == (created.id, "running", word, None)
    batch = await b.inspect_after(created, 5)
    assert (batch.state, batch.native, batch.is_ended) == ("completed", completed, True)
    assert (batch.total, batch.succeeded, batch.failed, batch.problem) == (8, 8, 0, None)
    assert (batch.tag, batch.ended_at) == (created.tag, b.clock.now)
    results = await b.download_results(batch)
    assert {result.key for result in results} == KEYS
    assert [result.key for result in results] != sorted(KEYS)
    assert {result.status for result in results} == {"succeeded"}


async def test_a_row_is_answered_like_a_realtime_call(b: BatchSession) -> None:
    """A row and a realtime call have equal texts, finish reasons and tokens."""
    options = Options(system_instruction="Be brief.", max_tokens=500, response_schema=SCHEMA)
    calls = [make_call(b.provider, prompt, options) for prompt in PROMPTS[:3]]
    rows = b.write_rows(*(b.session.batches.row(call, f"r{place}") for place, call in enumerate(calls)))
    results = await b.download_by_key(await b.inspect_after(await b.submit(rows)))
    for place, call in enumerate(calls):
        realtime, answer = await b.session.generate(call), b.read_answer(results[f"r{place}"])
        assert (answer.text, answer.finish_reason, answer.usage) == (
            realtime.text,
            realtime.finish_reason,
            realtime.usage,
        )
        assert isinstance(json.loads(answer.text)["n"], int)
        assert answer.usage["total_tokens"] > 0


async def test_rows_can_share_an_uploaded_file(b: BatchSession) -> None:
    uploaded = await b.upload("report.pdf", "application/pdf", PDF)
    (b.folder / "report.pdf").write_bytes(PDF)
    material = Material(Source.from_file(b.folder / "report.pdf"), "application/pdf", file=uploaded)
    calls = [make_call(b.provider, prompt, Options(system_instruction="Read."), [material]) for prompt in PROMPTS[:2]]
    rows = b.write_rows(*(b.session.batches.row(call, f"r{place}") for place, call in enumerate(calls)))
    results = await b.download_by_key(await b.inspect_after(await b.submit(rows)))
    for place, call in enumerate(calls):
        assert b.read_answer(results[f"r{place}"]).text == (await b.session.generate(call)).text


async def test_rows_are_split_at_newlines_only(b: BatchSession) -> None:
    """The last newline may be missing; a long prompt, or one with line separators, stays one row."""
    prompts = ["a\nb\r\nc\u2028d", "x" * 3_000_000, "ä" * 1000]
    lines = [b.session.batches.row(make_call(b.provider, prompt), f"r{place}") for place, prompt in enumerate(prompts)]
    assert not any(b"\n" in line for line in lines)
    await b.submit(b.write_rows(*lines, last_end=b""))
    await b.submit(b.write_rows(*lines))
    for batch in b.sim.batches:
        sent = list(batch.requests())
        assert [prompt in _collect_texts(each) for each, prompt in zip(sent, prompts, strict=True)] == [True] * 3


async def test_a_batch_is_created_with_one_request(b: BatchSession) -> None:
    await b.submit(b.make_rows("Hello?"))
    assert (b.count_requests("batch.create"), len(b.sim.batches)) == (1, 1)


# --- How batches end ----------------------------------------------------------------------------------------------


async def test_an_unknown_state_counts_as_running(b: BatchSession) -> None:
    """An unknown state never ends a batch."""
    word = "BATCH_STATE_PONDERING" if b.provider == "gemini" else "pondering"
    b.sim.batch(status=word)
    created = await b.submit(b.make_rows("Hello?"))
    assert (created.state, created.native) == ("running", word)
    batch = await b.inspect_after(created, 50)
    assert (batch.state, batch.native, batch.is_ended) == ("running", word, False)
    assert (await b.inspect_after(created, 50)).state == "completed"


async def test_failed_rows_are_reported_beside_succeeded_ones(b: BatchSession) -> None:
    """The batch is completed, and each failed row has an error and may be retried."""
    b.sim.batch(end="partial")
    batch = await b.run_batch(*PROMPTS)
    assert (batch.state, batch.total, batch.succeeded, batch.failed) == ("completed", 8, 4, 4)
    results = await b.download_by_key(batch)
    assert {key for key, result in results.items() if result.status == "succeeded"} == {"r0", "r1", "r2", "r3"}
    for key in ("r4", "r5", "r6", "r7"):
        failed = results[key]
        assert (failed.status, failed.retryable, failed.response) == ("failed", True, None)
        assert failed.error


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_that_stops_half_way_reports_how_each_row_ended(end: Any, b: BatchSession) -> None:
    """Anthropic's batch is completed, with the other rows expired or cancelled; Gemini's has no rows."""
    b.sim.batch(end=end)
    batch = await b.run_batch(*PROMPTS)
    if b.provider == "gemini":
        assert (batch.state, batch.succeeded, batch.failed, batch.results) == (end, 0, 8, ())
        assert await b.download_results(batch) == []
        return
    assert batch.state == ("completed" if b.provider == "anthropic" else end)
    assert (batch.total, batch.succeeded, batch.failed) == (8, 4, 4)
    results = await b.download_by_key(batch)
    assert {results[key].status for key in ("r0", "r1", "r2", "r3")} == {"succeeded"}
    for key in ("r4", "r5", "r6", "r7"):
        assert (results[key].status, results[key].retryable, results[key].response) == (end, True, None)
        assert results[key].error


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_that_stops_before_its_first_answer_has_no_succeeded_row(end: Any, b: BatchSession) -> None:
    b.sim.batch(end=end, answered=0)
    batch = await b.run_batch(*PROMPTS)
    assert (batch.state, batch.succeeded, batch.failed) == (end, 0, 8)
    assert {result.status for result in await b.download_results(batch)} == {end}


async def test_a_failed_batch_states_its_problem(b: BatchSession) -> None:
    """Anthropic completes the batch instead, with every row failed."""
    b.sim.batch(end="failed", message="It is no good.")
    batch = await b.run_batch(*PROMPTS)
    if b.provider == "anthropic":
        assert (batch.state, batch.failed, batch.problem) == ("completed", 8, None)
        assert {result.error for result in await b.download_results(batch)} == {"It is no good."}
    else:
        assert (batch.state, batch.total, batch.failed, batch.problem) == ("failed", 8, 8, "It is no good.")
        assert await b.download_results(batch) == []
    assert not batch.queue_full


async def test_a_queue_that_is_full_after_acceptance_fails_the_batch(b: BatchSession) -> None:
    """OpenAI and Gemini fail the batch with `queue_full` set; Anthropic reports a full queue only at creation."""
    b.sim.batch(end="queue_full")
    batch = await b.run_batch(*PROMPTS)
    assert batch.queue_full == (batch.state == "failed") == (b.provider != "anthropic")


async def test_a_full_queue_at_creation_is_a_rate_limit_error(b: BatchSession) -> None:
    """The refusal means that no batch was created."""
    b.sim.fail(Fault(kind="queue_full"), operation="batch.create")
    with pytest.raises(RateLimitError) as caught:
        await b.submit(b.make_rows("Hello?"))
    assert (caught.value.retryable, caught.value.outcome_unknown, caught.value.phase) == (True, False, "batch_submit")
    assert b.sim.batches == []


async def test_a_batch_can_be_cancelled_until_it_has_ended(b: BatchSession) -> None:
    created = await b.submit(b.make_rows(*PROMPTS))
    await b.inspect_after(created, 50)
    await b.session.cancel_batch(created.id)
    batch = await b.inspect_after(created, 0)
    assert batch.native == NATIVE_STATES[b.provider][4]
    assert batch.state == ("running" if b.provider == "gemini" else "cancelling")
    batch = await b.inspect_after(created, 10)
    assert (batch.is_ended, batch.ended_at) == (True, b.clock.now)
    with pytest.raises(APIError) as caught:
        await b.session.cancel_batch(created.id)
    assert (caught.value.phase, caught.value.outcome_unknown, caught.value.retryable) == ("batch_cancel", False, False)


# --- Results ------------------------------------------------------------------------------------------------------


async def test_missing_duplicate_and_unknown_rows_are_returned_as_they_are(b: BatchSession) -> None:
    """The caller reconciles them with the rows it submitted."""
    b.sim.batch(missing=2, duplicates=1, unknown=1)
    keys = [result.key for result in await b.download_results(await b.run_batch(*PROMPTS))]
    assert len(keys) == 8
    assert len(set(keys)) == 7
    assert len(set(keys) - KEYS) == 1


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (403, False), (404, False), (429, True), (500, True), (503, True)]
)
async def test_a_failed_row_states_whether_a_retry_can_succeed(status: int, retryable: bool, b: BatchSession) -> None:
    b.sim.fail(Fault(status=status, message="Not like this."), operation="batch.row", contains="Question 1")
    results = await b.download_by_key(await b.run_batch(*PROMPTS[:2]))
    failed = results["r1"]
    assert (failed.status, failed.error, failed.retryable) == ("failed", "Not like this.", retryable)
    assert failed.code
    assert results["r0"].status == "succeeded"


async def test_a_truncated_result_line_leaves_the_others_readable(b: BatchSession) -> None:
    b.sim.fail(Fault(kind="malformed"), operation="batch.row")
    downloaded = io.BytesIO()
    await b.session.download_batch(await b.run_batch(*PROMPTS), downloaded)
    read: list[Result] = []
    for line in downloaded.getvalue().splitlines():
        try:
            read.append(b.session.batches.result(line))
        except ValueError:
            continue
    assert len(read) == 7


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"7", b'{"custom_id": "r0", "key": "r0"}', b"\xff", b"{", b"[" * 200_000, b"{}"]
)
async def test_a_result_line_without_a_result_raises_value_error(line: bytes, b: BatchSession) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        b.session.batches.result(line)


# --- Downloads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "drop", "drop_after"])
async def test_a_download_that_breaks_off_can_be_retried(kind: str, b: BatchSession) -> None:
    """The results are still at the provider, so nothing is lost."""
    batch = await b.run_batch(*PROMPTS)
    operation = "batch.results" if b.provider == "anthropic" else "file.content"
    b.sim.fail(Fault(kind=kind), operation=operation)
    with pytest.raises(APIError) as caught:
        await b.session.download_batch(batch, io.BytesIO())
    assert (caught.value.phase, caught.value.retryable, caught.value.outcome_unknown) == ("batch_collect", True, False)
    assert len(await b.download_results(batch)) == 8


async def test_a_full_disk_during_a_download_is_a_configuration_error(b: BatchSession) -> None:
    batch = await b.run_batch("Hello?")
    full: Any = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)
    with full, pytest.raises(ConfigurationError, match="cannot be saved: No space left"):
        await b.session.download_batch(batch, full)


async def test_results_are_written_in_blocks_of_bounded_size(b: BatchSession) -> None:
    sizes: list[int] = []

    class RecordingFile(io.BytesIO):
        def write(self, block: Any) -> int:
            sizes.append(len(block))
            return super().write(block)

    batch = await b.run_batch(*(f"Question {number}" for number in range(6000)))
    into = RecordingFile()
    await b.session.download_batch(batch, into)
    assert len(into.getvalue().splitlines()) == 6000
    assert max(sizes) <= 1 << 20
    assert len(sizes) > 1


# --- Listing batches ----------------------------------------------------------------------------------------------


async def test_all_batches_are_listed_page_by_page(b: BatchSession) -> None:
    """The newest batch comes first, and a page is as large as the provider makes it."""
    assert await b.list_pages() == []
    rows = b.make_rows("Hello?")
    file_id = await b.upload_rows(rows)
    created = [(await b.session.submit_batch(f"tag-{number}", rows, file_id)) for number in range(250)]
    before = b.count_requests("batch.list")
    pages = await b.list_pages()
    assert [batch.id for page in pages for batch in page] == [batch.id for batch in created[::-1]]
    assert [len(page) for page in pages] == ([250] if b.provider == "anthropic" else [100, 100, 50])
    assert b.count_requests("batch.list") - before == len(pages)
    if b.provider != "anthropic":
        assert pages[0][0].tag == "tag-249"


def make_listing(provider: ProviderName, ids: list[str], **more: Any) -> bytes:
    """Return an HTTP response with one page of a list."""
    if provider == "gemini":
        data = [{"name": f"batches/{each}", "metadata": {"state": "BATCH_STATE_RUNNING"}} for each in ids]
        return http({"operations": data, **more})
    status = "status" if provider == "openai" else "processing_status"
    return http({"data": [{"id": each, status: "in_progress"} for each in ids], **more})


@pytest.mark.parametrize("more", [{"has_more": True, "nextPageToken": "again"}, {"nextPageToken": "again"}])
async def test_a_list_that_repeats_its_page_ends(more: dict[str, Any], provider: ProviderName) -> None:
    """The provider returns one page again and again, with or without `has_more`."""
    async with (
        scripted(make_listing(provider, ["b1", "b2"], **more)) as server,
        open_session_at(server, provider) as session,
    ):
        pages = [page async for page in session.batch_pages()]
    assert [len(page) for page in pages] == [2, 2]
    assert len(server.requests) == 2


async def test_unreadable_entries_of_a_list_are_skipped(provider: ProviderName) -> None:
    data = json.loads(make_listing(provider, ["b1"]).partition(b"\r\n\r\n")[2])
    (entries,) = (data[name] for name in ("data", "operations") if name in data)
    entries[:0] = [None, 5, {}, {"id": 7}, {"name": 7}]
    async with scripted(http({**data, "has_more": False})) as server, open_session_at(server, provider) as session:
        ids = [[batch.id for batch in page] async for page in session.batch_pages()]
    assert ids == [["batches/b1" if provider == "gemini" else "b1"]]


async def test_listing_stops_after_2000_pages() -> None:
    """A provider may return new ids for ever."""
    asked = 0

    async def fetch_page(_cursor: str | None) -> tuple[list[Batch], str | None]:
        nonlocal asked
        asked += 1
        return [Batch(f"b{asked}", "running", "running")], str(asked)

    assert len([each async for each in paginate(fetch_page)]) == asked == 2000


# --- Failed requests ----------------------------------------------------------------------------------------------

UNKNOWN_OUTCOME_FAULTS = [
    Fault(status=500), Fault(status=503), Fault(status=504), Fault(kind="drop"), Fault(kind="drop_after"),
    Fault(kind="cut"), Fault(kind="malformed"),
]  # fmt: skip


@pytest.mark.parametrize("fault", UNKNOWN_OUTCOME_FAULTS, ids=str)
async def test_the_outcome_of_a_create_that_failed_midway_is_unknown(fault: Fault, b: BatchSession) -> None:
    """The batch may exist or not: one request is sent, and the error is no refusal."""
    rows = b.make_rows("Hello?")
    file_id = await b.upload_rows(rows)
    b.sim.fail(fault, operation="batch.create")
    with pytest.raises(APIError) as caught:
        await b.session.submit_batch("tag-1", rows, file_id)
    assert (caught.value.outcome_unknown, caught.value.phase) == (True, "batch_submit")
    assert b.count_requests("batch.create") == 1
    assert len(b.sim.batches) == (fault.kind in {"drop_after", "cut", "malformed"})
    if b.sim.batches and b.provider != "anthropic":
        ((found,),) = await b.list_pages()
        assert (found.id, found.tag) == (b.sim.batches[0].id, "tag-1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429])
async def test_a_refused_create_has_a_known_outcome(status: int, b: BatchSession) -> None:
    rows = b.make_rows("Hello?")
    file_id = await b.upload_rows(rows)
    b.sim.fail(Fault(status=status), operation="batch.create")
    with pytest.raises(APIError) as caught:
        await b.session.submit_batch("tag-1", rows, file_id)
    assert (caught.value.outcome_unknown, caught.value.status_code) == (False, status)
    assert b.sim.batches == []


async def test_an_unreachable_provider_has_created_no_batch(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    async with open_batch_session(config(provider, base_url="http://127.0.0.1:9"), sim, tmp_path) as b:
        with pytest.raises(APIError) as caught:
            await b.session.submit_batch("tag-1", b.make_rows("Hello?"), "file-1")
    assert (caught.value.outcome_unknown, caught.value.error_category) == (False, "network")


@pytest.mark.parametrize("name", NONSENSE_REPLIES)
async def test_the_outcome_of_a_create_answered_with_nonsense_is_unknown(
    name: str, provider: ProviderName, tmp_path: Path
) -> None:
    """The response holds neither a batch nor a refusal, and the error does not show the key."""
    (tmp_path / "rows").write_bytes(b"{}\n")
    async with scripted(NONSENSE_REPLIES[name]) as server, open_session_at(server, provider) as session:
        with pytest.raises(APIError) as caught:
            await session.submit_batch("tag-1", Rows(tmp_path / "rows", 1), "file-1")
        assert caught.value.outcome_unknown
        assert len(server.requests) == 1
        asking: list[Awaitable[Any]] = [session.inspect_batch("batches/b1")]
        if (provider, name) != ("gemini", "object"):  # an empty object is Gemini's empty list
            asking.append(anext(session.batch_pages()))
        for each in asking:
            with pytest.raises(APIError) as caught:
                await each
            assert (caught.value.outcome_unknown, caught.value.phase) == (False, "batch_inspect")
            assert KEY not in str(caught.value)


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(kind="drop"), Fault(kind="malformed")], ids=str)
async def test_failed_inspections_and_cancellations_can_be_retried(fault: Fault, b: BatchSession) -> None:
    batch = await b.submit(b.make_rows("Hello?"))
    b.sim.fail(fault, operation="batch.get")
    b.sim.fail(fault, operation="batch.list")
    b.sim.fail(fault, operation="batch.cancel")
    errors: list[APIError] = []
    for asking in (b.session.inspect_batch(batch.id), b.list_pages(), b.session.cancel_batch(batch.id)):
        try:
            await asking
        except APIError as error:
            errors.append(error)
    assert [(each.retryable, each.outcome_unknown) for each in errors] == [(True, False)] * 3
    assert [each.phase for each in errors] == ["batch_inspect", "batch_inspect", "batch_cancel"]


async def test_an_unknown_batch_id_is_an_api_error(b: BatchSession) -> None:
    with pytest.raises(APIError, match="no longer exist") as caught:
        await b.session.inspect_batch({"gemini": "batches/unknown"}.get(b.provider, "unknown"))
    assert (caught.value.status_code, caught.value.retryable) == (404, False)


# --- The file with the rows ---------------------------------------------------------------------------------------


async def test_the_file_with_the_rows_is_found_by_its_marker(b: BatchSession) -> None:
    """`find_files` finds files by their names, for sources and for rows."""
    if not b.session.batches.TAKES_A_FILE:
        pytest.skip("Anthropic takes the rows themselves")
    await b.upload("marker-a.pdf", "application/pdf", PDF)
    file_id = await b.upload_rows(b.make_rows("Hello?"), "marker-b.jsonl")
    found = await b.session.find_files(["marker-a", "marker-b"])
    assert [len(ids) for ids in found.values()] == [1, 1]
    assert found["marker-b"] == [file_id]
    await b.session.delete_file(str(file_id))
    assert (await b.session.find_files(["marker-b"]))["marker-b"] == []


async def test_the_rows_can_be_uploaded_like_a_source(b: BatchSession) -> None:
    """The file's name is the marker with the suffix that the provider requires, and its purpose is `batch`."""
    if not b.session.batches.TAKES_A_FILE:
        pytest.skip("Anthropic takes the rows themselves")
    rows = b.make_rows(*PROMPTS)
    source = Source.from_file(rows.path, mime_type="application/jsonl")
    (content,) = await examine([source])

    async def delete_later(*_: Any, **__: Any) -> None:
        raise AssertionError("there is nothing to delete")

    uploaded = await upload_file(b.session, source, content, "marker", delete_later, purpose="batch")
    (file,) = b.sim.files
    assert (file.filename, file.mime_type) == ("marker-0001.jsonl", "application/jsonl")
    batch = await b.inspect_after(await b.session.submit_batch("tag-1", rows, uploaded.file_id))
    assert (batch.state, batch.succeeded) == ("completed", 8)


def open_session_at(server: Scripted, provider: ProviderName) -> AbstractAsyncContextManager[Session]:
    return open_session(server.config(provider))


def _collect_texts(value: Any) -> list[str]:
    """Return every text in a document."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in inner for text in _collect_texts(each)]
