"""What the batch systems of all providers do alike, through their real SDKs."""

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
from tests.providers.batching import Batching, batching, call
from tests.providers.test_lies import ANYWHERE

PROMPTS = [f"Question {number}" for number in range(8)]
KEYS = {f"r{number}" for number in range(8)}
WORDS = {
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
async def b(provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[Batching]:
    async with batching(config(provider), sim, tmp_path) as opened:
        yield opened


# --- From the first to the last -----------------------------------------------------------------------------------


async def test_a_batch_goes_its_way(b: Batching) -> None:
    """Accepted, working, done; with the counts and times that there are."""
    starting, running, finishing, completed, _ = WORDS[b.provider]
    created = await b.submit(b.rows(*PROMPTS), "tag-7")
    queued = "running" if b.provider == "anthropic" else "queued"
    assert (created.state, created.native, created.is_ended) == (queued, starting, False)
    assert (created.total, created.succeeded, created.failed, created.results) == (8, 0, 0, ())
    assert (created.tag, created.created_at) == (None if b.provider == "anthropic" else "tag-7", b.clock.now)
    for seconds, word in ((50, running), (45, finishing)):
        batch = await b.after(created, seconds)
        assert (batch.id, batch.state, batch.native, batch.ended_at) == (created.id, "running", word, None)
    batch = await b.after(created, 5)
    assert (batch.state, batch.native, batch.is_ended) == ("completed", completed, True)
    assert (batch.total, batch.succeeded, batch.failed, batch.problem) == (8, 8, 0, None)
    assert (batch.tag, batch.ended_at) == (created.tag, b.clock.now)
    results = await b.results(batch)
    assert {result.key for result in results} == KEYS
    assert [result.key for result in results] != sorted(KEYS)
    assert {result.status for result in results} == {"succeeded"}


async def test_a_row_is_answered_as_a_call_of_its_own(b: Batching) -> None:
    """Same request, same answer, same tokens."""
    options = Options(system_instruction="Be brief.", max_tokens=500, response_schema=SCHEMA)
    made = [call(b.provider, prompt, options) for prompt in PROMPTS[:3]]
    rows = b.write(*(b.session.batches.row(each, f"r{place}") for place, each in enumerate(made)))
    results = await b.by_key(await b.after(await b.submit(rows)))
    for place, each in enumerate(made):
        alone, answer = await b.session.generate(each), b.answer(results[f"r{place}"])
        assert (answer.text, answer.finish_reason, answer.usage) == (alone.text, alone.finish_reason, alone.usage)
        assert isinstance(json.loads(answer.text)["n"], int)
        assert answer.usage["total_tokens"] > 0


async def test_a_row_may_have_a_file(b: Batching) -> None:
    """One that was uploaded before, and more than one row may have it."""
    uploaded = await b.upload("report.pdf", "application/pdf", PDF)
    (b.folder / "report.pdf").write_bytes(PDF)
    material = Material(Source.from_file(b.folder / "report.pdf"), "application/pdf", file=uploaded)
    made = [call(b.provider, prompt, Options(system_instruction="Read."), [material]) for prompt in PROMPTS[:2]]
    rows = b.write(*(b.session.batches.row(each, f"r{place}") for place, each in enumerate(made)))
    results = await b.by_key(await b.after(await b.submit(rows)))
    for place, each in enumerate(made):
        assert b.answer(results[f"r{place}"]).text == (await b.session.generate(each)).text


async def test_rows_need_no_last_end_of_line(b: Batching) -> None:
    """Nor does one that is long, or holds what looks like an end, become two."""
    prompts = ["a\nb\r\nc\u2028d", "x" * 3_000_000, "ä" * 1000]
    made = [b.session.batches.row(call(b.provider, prompt), f"r{place}") for place, prompt in enumerate(prompts)]
    assert not any(b"\n" in each for each in made)
    await b.submit(b.write(*made, last_end=b""))
    await b.submit(b.write(*made))
    for batch in b.sim.batches:
        sent = list(batch.requests())
        assert [prompt in _texts(each) for each, prompt in zip(sent, prompts, strict=True)] == [True] * 3


async def test_a_batch_is_created_with_one_request(b: Batching) -> None:
    await b.submit(b.rows("Hello?"))
    assert (b.asked("batch.create"), len(b.sim.batches)) == (1, 1)


# --- Ends ---------------------------------------------------------------------------------------------------------


async def test_a_word_that_nobody_knows_is_running(b: Batching) -> None:
    """Never an end."""
    word = "BATCH_STATE_PONDERING" if b.provider == "gemini" else "pondering"
    b.sim.batch(status=word)
    created = await b.submit(b.rows("Hello?"))
    assert (created.state, created.native) == ("running", word)
    batch = await b.after(created, 50)
    assert (batch.state, batch.native, batch.is_ended) == ("running", word, False)
    assert (await b.after(created, 50)).state == "completed"


async def test_some_rows_may_fail(b: Batching) -> None:
    b.sim.batch(end="partial")
    batch = await b.ended(*PROMPTS)
    assert (batch.state, batch.total, batch.succeeded, batch.failed) == ("completed", 8, 4, 4)
    results = await b.by_key(batch)
    assert {key for key, result in results.items() if result.status == "succeeded"} == {"r0", "r1", "r2", "r3"}
    for key in ("r4", "r5", "r6", "r7"):
        failed = results[key]
        assert (failed.status, failed.retryable, failed.response) == ("failed", True, None)
        assert failed.error


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_may_stop_half_way(end: Any, b: Batching) -> None:
    """Anthropic's has ended, and its rows say how; without rows, Gemini's is what it says it is."""
    b.sim.batch(end=end)
    batch = await b.ended(*PROMPTS)
    if b.provider == "gemini":
        assert (batch.state, batch.succeeded, batch.failed, batch.results) == (end, 0, 8, ())
        assert await b.results(batch) == []
        return
    assert batch.state == ("completed" if b.provider == "anthropic" else end)
    assert (batch.total, batch.succeeded, batch.failed) == (8, 4, 4)
    results = await b.by_key(batch)
    assert {results[key].status for key in ("r0", "r1", "r2", "r3")} == {"succeeded"}
    for key in ("r4", "r5", "r6", "r7"):
        assert (results[key].status, results[key].retryable, results[key].response) == (end, True, None)
        assert results[key].error


@pytest.mark.parametrize("end", ["expired", "cancelled"])
async def test_a_batch_may_stop_before_its_first_answer(end: Any, b: Batching) -> None:
    b.sim.batch(end=end, answered=0)
    batch = await b.ended(*PROMPTS)
    assert (batch.state, batch.succeeded, batch.failed) == (end, 0, 8)
    assert {result.status for result in await b.results(batch)} == {end}


async def test_a_batch_may_fail_as_a_whole(b: Batching) -> None:
    """Except at Anthropic, where each row does."""
    b.sim.batch(end="failed", message="It is no good.")
    batch = await b.ended(*PROMPTS)
    if b.provider == "anthropic":
        assert (batch.state, batch.failed, batch.problem) == ("completed", 8, None)
        assert {result.error for result in await b.results(batch)} == {"It is no good."}
    else:
        assert (batch.state, batch.total, batch.failed, batch.problem) == ("failed", 8, 8, "It is no good.")
        assert await b.results(batch) == []
    assert not batch.queue_full


async def test_a_full_queue_may_show_later(b: Batching) -> None:
    """As a batch that failed for that alone; Anthropic says it at once."""
    b.sim.batch(end="queue_full")
    batch = await b.ended(*PROMPTS)
    assert batch.queue_full == (batch.state == "failed") == (b.provider != "anthropic")


async def test_a_full_queue_may_show_at_once(b: Batching) -> None:
    """As a refusal: surely nothing was created."""
    b.sim.fail(Fault(kind="queue_full"), operation="batch.create")
    with pytest.raises(RateLimitError) as told:
        await b.submit(b.rows("Hello?"))
    assert (told.value.retryable, told.value.outcome_unknown, told.value.phase) == (True, False, "batch_submit")
    assert b.sim.batches == []


async def test_a_batch_is_cancelled(b: Batching) -> None:
    created = await b.submit(b.rows(*PROMPTS))
    await b.after(created, 50)
    await b.session.cancel_batch(created.id)
    batch = await b.after(created, 0)
    assert batch.native == WORDS[b.provider][4]
    assert batch.state == ("running" if b.provider == "gemini" else "cancelling")
    batch = await b.after(created, 10)
    assert (batch.is_ended, batch.ended_at) == (True, b.clock.now)
    with pytest.raises(APIError) as told:
        await b.session.cancel_batch(created.id)
    assert (told.value.phase, told.value.outcome_unknown, told.value.retryable) == ("batch_cancel", False, False)


# --- Rows ---------------------------------------------------------------------------------------------------------


async def test_rows_that_are_missing_or_too_many_pass_through(b: Batching) -> None:
    """Whoever asked knows what to make of them."""
    b.sim.batch(missing=2, duplicates=1, unknown=1)
    keys = [result.key for result in await b.results(await b.ended(*PROMPTS))]
    assert len(keys) == 8
    assert len(set(keys)) == 7
    assert len(set(keys) - KEYS) == 1


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (403, False), (404, False), (429, True), (500, True), (503, True)]
)
async def test_a_row_that_failed_says_whether_to_try_again(status: int, retryable: bool, b: Batching) -> None:
    b.sim.fail(Fault(status=status, message="Not like this."), operation="batch.row", contains="Question 1")
    results = await b.by_key(await b.ended(*PROMPTS[:2]))
    failed = results["r1"]
    assert (failed.status, failed.error, failed.retryable) == ("failed", "Not like this.", retryable)
    assert failed.code
    assert results["r0"].status == "succeeded"


async def test_a_line_that_is_cut_is_a_line_that_cannot_be_read(b: Batching) -> None:
    b.sim.fail(Fault(kind="malformed"), operation="batch.row")
    taken = io.BytesIO()
    await b.session.download_batch(await b.ended(*PROMPTS), taken)
    read: list[Result] = []
    for line in taken.getvalue().splitlines():
        try:
            read.append(b.session.batches.result(line))
        except ValueError:
            continue
    assert len(read) == 7


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"7", b'{"custom_id": "r0", "key": "r0"}', b"\xff", b"{", b"[" * 200_000, b"{}"]
)
async def test_a_line_that_says_nothing_cannot_be_read(line: bytes, b: Batching) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        b.session.batches.result(line)


# --- Downloads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut", "drop", "drop_after"])
async def test_results_that_are_cut_are_an_error(kind: str, b: Batching) -> None:
    """And nothing that was paid for: they can be fetched again."""
    batch = await b.ended(*PROMPTS)
    operation = "batch.results" if b.provider == "anthropic" else "file.content"
    b.sim.fail(Fault(kind=kind), operation=operation)
    with pytest.raises(APIError) as told:
        await b.session.download_batch(batch, io.BytesIO())
    assert (told.value.phase, told.value.retryable, told.value.outcome_unknown) == ("batch_collect", True, False)
    assert len(await b.results(batch)) == 8


async def test_a_disk_that_is_full_is_no_bug(b: Batching) -> None:
    batch = await b.ended("Hello?")
    full: Any = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)
    with full, pytest.raises(ConfigurationError, match="cannot be saved: No space left"):
        await b.session.download_batch(batch, full)


async def test_results_come_in_blocks(b: Batching) -> None:
    """However many they are."""
    sizes: list[int] = []

    class Into(io.BytesIO):
        def write(self, block: Any) -> int:
            sizes.append(len(block))
            return super().write(block)

    batch = await b.ended(*(f"Question {number}" for number in range(6000)))
    into = Into()
    await b.session.download_batch(batch, into)
    assert len(into.getvalue().splitlines()) == 6000
    assert max(sizes) <= 1 << 20
    assert len(sizes) > 1


# --- Lists --------------------------------------------------------------------------------------------------------


async def test_all_batches_are_listed(b: Batching) -> None:
    """The newest first, in pages as large as the provider makes them."""
    assert await b.listed() == []
    rows = b.rows("Hello?")
    file_id = await b.file(rows)
    made = [(await b.session.submit_batch(f"tag-{number}", rows, file_id)) for number in range(250)]
    before = b.asked("batch.list")
    pages = await b.listed()
    assert [batch.id for page in pages for batch in page] == [batch.id for batch in made[::-1]]
    assert [len(page) for page in pages] == ([250] if b.provider == "anthropic" else [100, 100, 50])
    assert b.asked("batch.list") - before == len(pages)
    if b.provider != "anthropic":
        assert pages[0][0].tag == "tag-249"


def listing(provider: ProviderName, ids: list[str], **more: Any) -> bytes:
    """A page of a list, as it comes over the wire."""
    if provider == "gemini":
        said = [{"name": f"batches/{each}", "metadata": {"state": "BATCH_STATE_RUNNING"}} for each in ids]
        return http({"operations": said, **more})
    status = "status" if provider == "openai" else "processing_status"
    return http({"data": [{"id": each, status: "in_progress"} for each in ids], **more})


@pytest.mark.parametrize("more", [{"has_more": True, "nextPageToken": "again"}, {"nextPageToken": "again"}])
async def test_a_list_that_goes_round_ends(more: dict[str, Any], provider: ProviderName) -> None:
    """The same page for ever, whatever it says of more."""
    async with scripted(listing(provider, ["b1", "b2"], **more)) as server, session_at(server, provider) as session:
        pages = [page async for page in session.batch_pages()]
    assert [len(page) for page in pages] == [2, 2]
    assert len(server.requests) == 2


async def test_what_cannot_be_read_in_a_list_is_passed_over(provider: ProviderName) -> None:
    said = json.loads(listing(provider, ["b1"]).partition(b"\r\n\r\n")[2])
    (entries,) = (said[name] for name in ("data", "operations") if name in said)
    entries[:0] = [None, 5, {}, {"id": 7}, {"name": 7}]
    async with scripted(http({**said, "has_more": False})) as server, session_at(server, provider) as session:
        ids = [[batch.id for batch in page] async for page in session.batch_pages()]
    assert ids == [["batches/b1" if provider == "gemini" else "b1"]]


async def test_pages_end_even_when_they_are_new_for_ever() -> None:
    """A provider that makes up ids, too."""
    asked = 0

    async def page(_cursor: str | None) -> tuple[list[Batch], str | None]:
        nonlocal asked
        asked += 1
        return [Batch(f"b{asked}", "running", "running")], str(asked)

    assert len([each async for each in paginate(page)]) == asked == 2000


# --- What goes wrong ----------------------------------------------------------------------------------------------

UNKNOWN = [
    Fault(status=500), Fault(status=503), Fault(status=504), Fault(kind="drop"), Fault(kind="drop_after"),
    Fault(kind="cut"), Fault(kind="malformed"),
]  # fmt: skip


@pytest.mark.parametrize("fault", UNKNOWN, ids=str)
async def test_a_create_of_which_nobody_knows_is_unknown(fault: Fault, b: Batching) -> None:
    """The batch may be there, or may not be: one request, and no word of a refusal."""
    rows = b.rows("Hello?")
    file_id = await b.file(rows)
    b.sim.fail(fault, operation="batch.create")
    with pytest.raises(APIError) as told:
        await b.session.submit_batch("tag-1", rows, file_id)
    assert (told.value.outcome_unknown, told.value.phase) == (True, "batch_submit")
    assert b.asked("batch.create") == 1
    assert len(b.sim.batches) == (fault.kind in {"drop_after", "cut", "malformed"})
    if b.sim.batches and b.provider != "anthropic":
        ((found,),) = await b.listed()
        assert (found.id, found.tag) == (b.sim.batches[0].id, "tag-1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429])
async def test_a_create_that_is_refused_is_surely_not_done(status: int, b: Batching) -> None:
    rows = b.rows("Hello?")
    file_id = await b.file(rows)
    b.sim.fail(Fault(status=status), operation="batch.create")
    with pytest.raises(APIError) as told:
        await b.session.submit_batch("tag-1", rows, file_id)
    assert (told.value.outcome_unknown, told.value.status_code) == (False, status)
    assert b.sim.batches == []


async def test_a_provider_that_is_not_there_has_created_nothing(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    async with batching(config(provider, base_url="http://127.0.0.1:9"), sim, tmp_path) as b:
        with pytest.raises(APIError) as told:
            await b.session.submit_batch("tag-1", b.rows("Hello?"), "file-1")
    assert (told.value.outcome_unknown, told.value.error_category) == (False, "network")


@pytest.mark.parametrize("name", ANYWHERE)
async def test_a_create_that_is_answered_with_nonsense_is_unknown(
    name: str, provider: ProviderName, tmp_path: Path
) -> None:
    """Whatever it says, there is no batch in it, and no refusal; and it keeps the key to itself."""
    (tmp_path / "rows").write_bytes(b"{}\n")
    async with scripted(ANYWHERE[name]) as server, session_at(server, provider) as session:
        with pytest.raises(APIError) as told:
            await session.submit_batch("tag-1", Rows(tmp_path / "rows", 1), "file-1")
        assert told.value.outcome_unknown
        assert len(server.requests) == 1
        asking: list[Awaitable[Any]] = [session.inspect_batch("batches/b1")]
        if (provider, name) != ("gemini", "object"):  # which is how Gemini says that there are none
            asking.append(anext(session.batch_pages()))
        for each in asking:
            with pytest.raises(APIError) as told:
                await each
            assert (told.value.outcome_unknown, told.value.phase) == (False, "batch_inspect")
            assert KEY not in str(told.value)


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(kind="drop"), Fault(kind="malformed")], ids=str)
async def test_looking_costs_nothing(fault: Fault, b: Batching) -> None:
    batch = await b.submit(b.rows("Hello?"))
    b.sim.fail(fault, operation="batch.get")
    b.sim.fail(fault, operation="batch.list")
    b.sim.fail(fault, operation="batch.cancel")
    told: list[APIError] = []
    for asking in (b.session.inspect_batch(batch.id), b.listed(), b.session.cancel_batch(batch.id)):
        try:
            await asking
        except APIError as error:
            told.append(error)
    assert [(each.retryable, each.outcome_unknown) for each in told] == [(True, False)] * 3
    assert [each.phase for each in told] == ["batch_inspect", "batch_inspect", "batch_cancel"]


async def test_a_batch_that_is_not_there_is_told_so(b: Batching) -> None:
    with pytest.raises(APIError, match="no longer exist") as told:
        await b.session.inspect_batch({"gemini": "batches/nobodys"}.get(b.provider, "nobodys"))
    assert (told.value.status_code, told.value.retryable) == (404, False)


# --- Files --------------------------------------------------------------------------------------------------------


async def test_the_file_with_the_rows_is_found_by_its_name(b: Batching) -> None:
    """As any other that nobody knows of any more."""
    if not b.session.batches.TAKES_A_FILE:
        pytest.skip("Anthropic takes the rows themselves")
    await b.upload("marker-a.pdf", "application/pdf", PDF)
    file_id = await b.file(b.rows("Hello?"), "marker-b.jsonl")
    found = await b.session.find_files(["marker-a", "marker-b"])
    assert [len(ids) for ids in found.values()] == [1, 1]
    assert found["marker-b"] == [file_id]
    await b.session.delete_file(str(file_id))
    assert (await b.session.find_files(["marker-b"]))["marker-b"] == []


async def test_the_rows_are_sent_as_a_source_is(b: Batching) -> None:
    """Under a marker of ours, with the ending and the purpose that the provider wants to see."""
    if not b.session.batches.TAKES_A_FILE:
        pytest.skip("Anthropic takes the rows themselves")
    rows = b.rows(*PROMPTS)
    source = Source.from_file(rows.path, mime_type="application/jsonl")
    (content,) = await examine([source])

    async def leave(*_: Any, **__: Any) -> None:
        raise AssertionError("there is nothing to leave")

    uploaded = await upload_file(b.session, source, content, "marker", leave, purpose="batch")
    (file,) = b.sim.files
    assert (file.filename, file.mime_type) == ("marker-0001.jsonl", "application/jsonl")
    batch = await b.after(await b.session.submit_batch("tag-1", rows, uploaded.file_id))
    assert (batch.state, batch.succeeded) == ("completed", 8)


def session_at(server: Scripted, provider: ProviderName) -> AbstractAsyncContextManager[Session]:
    return open_session(server.config(provider))


def _texts(value: Any) -> list[str]:
    """Every text in a document."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for each in inner for text in _texts(each)]
