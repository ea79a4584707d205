"""What Gemini's batches do in their own way."""

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
from tests.providers.batching import Batching, batching, call
from tests.providers.test_batch_all import session_at

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
async def b(config: MakeConfig, sim: Simulator, tmp_path: Path) -> AsyncIterator[Batching]:
    async with batching(config("gemini"), sim, tmp_path) as opened:
        yield opened


def materials() -> list[Material]:
    """One of every kind."""
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


def plain(value: Any) -> Any:
    """A message in one spelling, to be compared with another."""
    return fields.normal(json.loads(value))


@pytest.mark.parametrize("model", ["gemini-2.5-flash-lite", "gemini-3-flash"])
@pytest.mark.parametrize("with_sources", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
async def test_a_row_asks_what_a_call_asks(name: str, with_sources: bool, model: str) -> None:
    """To the last field: the SDK sends the one, and we write the other."""
    if with_sources and name == "raw search":
        pytest.skip("a source that is opened brings a tool of its own, and tools are said once")
    made = Call(model, tuple(materials() if with_sources else ()), "Hello?", Options(**OPTIONS[name]))
    async with scripted(http(good("gemini"))) as server, session_at(server, "gemini") as session:
        await session.generate(made)
    row = json.loads(module.row(made, "some_key"))
    assert row.keys() == {"key", "request"}
    assert row["key"] == "some_key"
    assert plain(json.dumps(row["request"])) == plain(server.requests[0])


async def test_a_row_has_the_file_that_a_call_has(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    uploaded = Uploaded(file_id="files/abc", uri="https://example.org/v1/files/abc")
    material = Material(Source.from_file(tmp_path / "a.pdf"), "application/pdf", file=uploaded)
    made = call("gemini", "Hello?", None, [material])
    async with scripted(http(good("gemini"))) as server, session_at(server, "gemini") as session:
        await session.generate(made)
    assert plain(json.dumps(json.loads(module.row(made, "r0"))["request"])) == plain(server.requests[0])


async def test_what_is_sent(b: Batching) -> None:
    """The model, the file, and our name for it."""
    rows = b.rows("Hello?")
    file_id = await b.file(rows)
    await b.session.submit_batch("tag-7", rows, file_id)
    create = b.sim.requests[-1]
    assert create.path.endswith("/v1/models/gemini-2.5-flash-lite:batchGenerateContent")
    assert create.body == {"batch": {"displayName": "tag-7", "inputConfig": {"fileName": file_id}}}
    (file,) = b.sim.files
    assert file.mime_type == "application/jsonl"


async def test_what_the_sdk_drops_is_there(b: Batching) -> None:
    """Counts, and the reason why it failed."""
    batch = await b.ended("Fine", "[[simulate: status=500]]", "Fine, too")
    assert (batch.total, batch.succeeded, batch.failed, batch.problem) == (3, 2, 1, None)
    b.sim.batch(end="failed", message="It broke", code="INTERNAL")
    batch = await b.ended("Hello?")
    assert (batch.state, batch.problem, batch.queue_full) == ("failed", "It broke", False)


async def test_a_page_in_the_middle_may_be_empty() -> None:
    """The SDK gives up there."""
    one = {"operations": [{"name": "batches/b1"}], "nextPageToken": "2"}
    last = {"operations": [{"name": "batches/b2", "metadata": {"state": "JOB_STATE_SUCCEEDED"}}]}
    replies = iter([one, {"nextPageToken": "3"}, {"operations": [], "nextPageToken": "4"}, last])
    async with (
        scripted(lambda _body: http(next(replies)), by_body=True) as server,
        session_at(server, "gemini") as session,
    ):
        pages = [page async for page in session.batch_pages()]
    assert [[(batch.id, batch.state) for batch in page] for page in pages] == [
        [("batches/b1", "running")],
        [("batches/b2", "completed")],
    ]
    assert len(server.requests) == 4


async def test_empty_pages_in_a_circle_end() -> None:
    async with (
        scripted(http({"operations": [], "nextPageToken": "again"})) as server,
        session_at(server, "gemini") as session,
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
def test_every_state_has_its_word(word: Any, state: str) -> None:
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


async def test_an_answer_in_snake_case_is_read_as_well(b: Batching) -> None:
    """A file of results may have it so; what a function is called with stays as it is."""
    result = module.result(json.dumps({"key": "r0", "response": RESPONSE}).encode())
    assert (result.key, result.status) == ("r0", "succeeded")
    answer = b.answer(result)
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
def test_a_row_that_failed_says_how(name: str, code: Any, status: str, retryable: bool | None) -> None:
    result = module.result(json.dumps({"key": "r0", name: {"code": code, "message": "m"}}).encode())
    assert (result.key, result.status, result.error, result.retryable) == ("r0", status, "m", retryable)
    assert result.code == (str(code) if isinstance(code, int) else None)


async def test_the_connection_shows_no_key(b: Batching) -> None:
    assert str(b.session.config.key()) not in repr(b.session.client)
