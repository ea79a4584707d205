"""Behaviour of Gemini's batches that differs from other providers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import Options, Source
from pollux_flows.providers.base import Call
from pollux_flows.providers.gemini import batch as module
from pollux_flows.providers.material import Material
from pollux_flows.simulator import Simulator
from pollux_flows.simulator.gemini import fields
from pollux_flows.state.upload import Uploaded
from tests.loopback import MakeConfig, good, http, scripted
from tests.providers.batching import BatchSession, make_call, open_batch_session
from tests.providers.test_batch_all import open_session_at

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "kind": {"enum": ["a_b", None]},
    },
    "required": ["first_name"],
}
TOOL = {
    "name": "look_up",
    "description": "Looks something up",
    "parameters": {"type": "object", "properties": {"some_name": {"type": "string", "default": None}}},
}
RAW = {
    "top_k": 7,
    "seed": 3,
    "stop_sequences": ["END"],
    "presence_penalty": 0.5,
    "response_logprobs": True,
    "logprobs": 2,
    "media_resolution": "MEDIA_RESOLUTION_LOW",
    "response_modalities": ["TEXT"],
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    "labels": {"some_team": "x"},
    "service_tier": "flex",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "system": {"system_instruction": "Be brief."},
    "sampling": {"temperature": 0.0, "top_p": 0.5, "max_tokens": 300},
    "schema": {"response_schema": SCHEMA, "system_instruction": "Be brief."},
    "budget": {"reasoning_budget_tokens": 1024},
    "no budget": {"reasoning_budget_tokens": 0},
    "level": {"reasoning_effort": "high"},
    "tools": {"tools": [TOOL, {"name": "bare"}], "tool_choice": {"name": "look_up"}},
    "raw": {"provider_options": {"gemini": RAW}},
    "raw in the API's spelling": {"provider_options": {"gemini": {"topK": 7, "stopSequences": ["END"]}}},
    "raw search": {"provider_options": {"gemini": {"tools": [{"google_search": {}}]}}},
    "raw schema": {
        "provider_options": {
            "gemini": {"response_mime_type": "application/json", "response_schema": {"type": "STRING"}}
        }
    },
    "raw system": {
        "provider_options": {"gemini": {"system_instruction": {"role": "user", "parts": [{"text": "Be brief."}]}}}
    },
    "everything": {
        "system_instruction": "Be brief.",
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 500,
        "reasoning_effort": "low",
        "response_schema": SCHEMA,
        "provider_options": {"gemini": RAW},
    },
}


@pytest.fixture
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[BatchSession]:
    async with open_batch_session(config("gemini"), sim, tmp_path) as opened:
        yield opened


def make_materials() -> list[Material]:
    """Return one material of every kind."""
    video = Source.from_youtube("https://www.youtube.com/watch?v=dQw4w9WgXcQ").with_gemini_video_settings(
        start_offset="10s", end_offset="20s", fps=2.0
    )
    page = Source.from_uri("https://example.org/some_page").with_gemini_url_context()
    return [
        Material(Source.from_text("A text."), "text/plain", text="A text."),
        Material(video, "video/mp4"),
        Material(page, "text/html"),
        Material(Source.from_uri("https://example.org/a_b.pdf", mime_type="application/pdf"), "application/pdf"),
    ]


def normalise(value: Any) -> Any:
    """Parse a message, with its field names in one spelling."""
    return fields.normal(json.loads(value))


@pytest.mark.parametrize("model", ["gemini-2.5-flash-lite", "gemini-3-flash"])
@pytest.mark.parametrize("with_sources", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
async def test_a_row_equals_the_request_of_a_realtime_call(name: str, with_sources: bool, model: str) -> None:
    """The SDK writes the realtime request, this project writes the row; all fields are compared."""
    if with_sources and name == "raw search":
        pytest.skip("a source that is opened brings a tool of its own, and tools may be set only once")
    call = Call(model, tuple(make_materials() if with_sources else ()), "Hello?", Options(**OPTIONS[name]))
    async with scripted(http(good("gemini"))) as server, open_session_at(server, "gemini") as session:
        await session.generate(call)
    row = json.loads(module.row(call, "some_key"))
    assert row.keys() == {"key", "request"}
    assert row["key"] == "some_key"
    assert normalise(json.dumps(row["request"])) == normalise(server.requests[0])


async def test_a_row_refers_to_an_uploaded_file_like_a_realtime_call(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    uploaded = Uploaded(file_id="files/abc", uri="https://example.org/v1/files/abc")
    material = Material(Source.from_file(tmp_path / "a.pdf"), "application/pdf", file=uploaded)
    call = make_call("gemini", "Hello?", None, [material])
    async with scripted(http(good("gemini"))) as server, open_session_at(server, "gemini") as session:
        await session.generate(call)
    assert normalise(json.dumps(json.loads(module.row(call, "r0"))["request"])) == normalise(server.requests[0])


async def test_creating_a_batch_sends_model_file_and_tag(b: BatchSession) -> None:
    rows = b.make_rows("Hello?")
    file_id = await b.upload_rows(rows)
    await b.session.submit_batch("tag-7", rows, file_id)
    create = b.sim.requests[-1]
    assert create.path.endswith("/v1/models/gemini-2.5-flash-lite:batchGenerateContent")
    assert create.body == {"batch": {"displayName": "tag-7", "inputConfig": {"fileName": file_id}}}
    (file,) = b.sim.files
    assert file.mime_type == "application/jsonl"


async def test_counts_and_the_reason_of_a_failure_are_read(b: BatchSession) -> None:
    """The SDK drops the counts and the reason."""
    batch = await b.run_batch("Fine", "[[simulate: status=500]]", "Fine, too")
    assert (batch.total, batch.succeeded, batch.failed, batch.problem) == (3, 2, 1, None)
    b.sim.batch(end="failed", message="It broke", code="INTERNAL")
    batch = await b.run_batch("Hello?")
    assert (batch.state, batch.problem, batch.queue_full) == ("failed", "It broke", False)


async def test_listing_goes_on_after_an_empty_page() -> None:
    """The SDK itself would stop at an empty page."""
    one = {"operations": [{"name": "batches/b1"}], "nextPageToken": "2"}
    last = {"operations": [{"name": "batches/b2", "metadata": {"state": "JOB_STATE_SUCCEEDED"}}]}
    replies = iter([one, {"nextPageToken": "3"}, {"operations": [], "nextPageToken": "4"}, last])
    async with (
        scripted(lambda _body: http(next(replies)), by_body=True) as server,
        open_session_at(server, "gemini") as session,
    ):
        pages = [page async for page in session.batch_pages()]
    assert [[(batch.id, batch.state) for batch in page] for page in pages] == [
        [("batches/b1", "running")],
        [("batches/b2", "completed")],
    ]
    assert len(server.requests) == 4


async def test_listing_stops_when_empty_pages_repeat() -> None:
    async with (
        scripted(http({"operations": [], "nextPageToken": "again"})) as server,
        open_session_at(server, "gemini") as session,
    ):
        assert [page async for page in session.batch_pages()] == []
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("BATCH_STATE_PENDING", "queued"), ("JOB_STATE_QUEUED", "queued"), ("BATCH_STATE_RUNNING", "running"),
        ("JOB_STATE_PAUSED", "running"), ("JOB_STATE_UPDATING", "running"), ("JOB_STATE_CANCELLING", "cancelling"),
        ("BATCH_STATE_SUCCEEDED", "completed"), ("JOB_STATE_PARTIALLY_SUCCEEDED", "completed"),
        ("BATCH_STATE_FAILED", "failed"), ("BATCH_STATE_CANCELLED", "cancelled"), ("BATCH_STATE_EXPIRED", "expired"),
        ("BATCH_STATE_UNSPECIFIED", "running"), ("succeeded", "running"), (None, "running"), (5, "running"),
    ],
)  # fmt: skip
def test_each_native_state_maps_to_a_state(word: Any, state: str) -> None:
    assert module._batch({"name": "batches/b1", "metadata": {"state": word}, "done": True}).state == state


RESPONSE = {
    "candidates": [
        {
            "content": {
                "parts": [
                    {"text": "Hm.", "thought": True},
                    {"text": "ok_ay"},
                    {"function_call": {"name": "look_up", "args": {"some_name": {"a_b": 1}}}},
                ]
            },
            "finish_reason": "STOP",
        }
    ],
    "usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 5, "thoughts_token_count": 2},
    "model_version": "gemini-x",
    "response_id": "rid",
}


async def test_a_response_in_snake_case_is_read(b: BatchSession) -> None:
    """Result files may use snake_case; the arguments of a function call are not changed."""
    result = module.result(json.dumps({"key": "r0", "response": RESPONSE}).encode())
    assert (result.key, result.status) == ("r0", "succeeded")
    answer = b.read_answer(result)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("ok_ay", "Hm.", "tool_calls")
    assert (answer.usage["input_tokens"], answer.usage["output_tokens"]) == (10, 7)
    assert (answer.model, answer.response_id) == ("gemini-x", "rid")
    assert json.loads(answer.tool_calls[0].arguments) == {"some_name": {"a_b": 1}}


@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        (1, "cancelled", True), (4, "expired", True), (8, "failed", True), (13, "failed", True), (14, "failed", True),
        (3, "failed", False), (5, "failed", False), (7, "failed", False), (2, "failed", None), (None, "failed", None),
        (429, "failed", True), (400, "failed", False), ("3", "failed", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["error", "status"])
def test_the_code_of_an_error_decides_status_and_retryable(
    name: str, code: Any, status: str, retryable: bool | None
) -> None:
    result = module.result(json.dumps({"key": "r0", name: {"code": code, "message": "m"}}).encode())
    assert (result.key, result.status, result.error, result.retryable) == ("r0", status, "m", retryable)
    assert result.code == (str(code) if isinstance(code, int) else None)


async def test_the_repr_of_the_client_does_not_show_the_key(b: BatchSession) -> None:
    assert str(b.session.config.key()) not in repr(b.session.client)
