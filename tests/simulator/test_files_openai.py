"""OpenAI's Files API: behaviour that other providers do not share."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Simulator

from .conftest import Clock
from .uploaders import OpenAI

FILES = "/openai/v1/files"
FILE = {"file": ("a.pdf", b"%PDF", "application/pdf")}
LINES = b'{"custom_id":"r0"}\n' * 200_000


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with AsyncExitStack() as stack:
        yield (await OpenAI.open(sim.base_url("openai", origin), stack)).sdk


REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no purpose": ({}, "purpose", "Missing required parameter: 'purpose'"),
    "unknown purpose": ({"purpose": "fun"}, "purpose", "Invalid value: 'fun'"),
    "no anchor of the expiry": (
        {"purpose": "user_data", "expires_after[seconds]": "3600"},
        "expires_after.anchor",
        "Missing",
    ),
    "unknown anchor of the expiry": (
        {"purpose": "user_data", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
        "expires_after.anchor",
        "Invalid value: 'now'",
    ),
    "no seconds of the expiry": (
        {"purpose": "user_data", "expires_after[anchor]": "created_at"},
        "expires_after.seconds",
        "Missing",
    ),
    "too few seconds": (
        {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
        "expires_after.seconds",
        "below minimum",
    ),
    "too many seconds": (
        {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
        "expires_after.seconds",
        "above maximum",
    ),
    "seconds that are not a number": (
        {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
        "expires_after.seconds",
        "expected an integer",
    ),
    "expiry that is not an object": (
        {"purpose": "user_data", "expires_after": "1"},
        "expires_after",
        "expected an object",
    ),
    "unknown field": ({"purpose": "user_data", "colour": "red"}, "colour", "Unknown parameter"),
    "batch input that is not JSONL": ({"purpose": "batch"}, "file", "Must be .jsonl"),
}


@pytest.mark.parametrize("name", REFUSED_REQUESTS)
async def test_openai_refuses_an_upload_form(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """An invalid upload form is refused with the name of the field."""
    fields, param, words = REFUSED_REQUESTS[name]
    answer = await http.post(FILES, data=fields, files=FILE)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert sim.files == []


async def test_a_form_without_a_file_is_refused(http: httpx.AsyncClient) -> None:
    """A form with a plain text field called `file` has no file."""
    answer = await http.post(FILES, files={"purpose": (None, "user_data"), "file": (None, "text")})
    assert answer.json()["error"]["message"] == "Missing required parameter: 'file'."


async def test_the_purpose_may_come_after_the_file(http: httpx.AsyncClient, sim: Simulator) -> None:
    """The fields of a form may come in any order; the purpose still decides whether the content is stored."""
    for purpose, is_stored in (("user_data", False), ("batch", True)):
        answer = await http.post(FILES, files={"file": ("in.jsonl", LINES), "purpose": (None, purpose)})
        assert answer.status_code == 200, answer.text
        spool = sim.files[-1].spool
        assert spool is not None
        assert spool.has_content is is_stored


async def test_only_batch_files_expire_by_default(sdk: openai.AsyncOpenAI, clock: Clock) -> None:
    """A file without an expiry never expires, except the input of batches after 30 days."""
    permanent = await sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")
    batch_input = await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    assert (permanent.expires_at, batch_input.expires_at) == (None, int(clock.now) + 30 * 86_400)
    clock.now += 31 * 86_400
    assert [file.id async for file in sdk.files.list()] == [permanent.id]


async def test_the_purpose_decides_whether_a_file_can_be_downloaded(sdk: openai.AsyncOpenAI) -> None:
    """Batch input can be downloaded, byte for byte; files for prompts cannot."""
    for purpose in ("user_data", "vision", "assistants"):
        file = await sdk.files.create(file=("a.pdf", b"%PDF"), purpose=purpose)
        with pytest.raises(openai.BadRequestError, match=f"Not allowed to download files of purpose: {purpose}"):
            await sdk.files.content(file.id)
    job = await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    assert (await sdk.files.content(job.id)).content == LINES


async def test_the_content_of_batch_input_is_stored(sdk: openai.AsyncOpenAI, sim: Simulator) -> None:
    """Large batch input can be read again, as the simulator does when it runs the batch."""
    await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    (file,) = sim.files
    assert len(LINES) > 1024 * 1024
    assert file.content() == LINES


async def test_files_are_listed_by_purpose_order_and_position(sdk: openai.AsyncOpenAI) -> None:
    """A list can be limited to a purpose, in either order, after the file with an id."""
    ids = [(await sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")).id for _ in range(4)]
    other = await sdk.files.create(file=("a.png", b"png"), purpose="vision")
    assert [file.id async for file in sdk.files.list(purpose="vision")] == [other.id]
    assert [file.id async for file in sdk.files.list(order="asc", purpose="user_data", limit=3)] == ids
    assert [file.id async for file in sdk.files.list(order="asc", after=ids[1])] == [*ids[2:], other.id]


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 10_001}, {"limit": "x"}, {"order": "up"}, {"after": "x"}])
async def test_an_invalid_list_query_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """An invalid list query is refused with the name of the parameter."""
    answer = await http.get(FILES, params=query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == next(iter(query))


async def test_batch_input_has_a_smaller_size_limit(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's limits are 200 MB for batch input and 512 MB for other files."""
    monkeypatch.setattr("pollux_flows.simulator.openai.files.BATCH_LIMIT_BYTES", 10)
    for purpose, status in (("batch", 413), ("user_data", 200)):
        answer = await http.post(FILES, data={"purpose": purpose}, files={"file": ("a.jsonl", bytes(11))})
        assert answer.status_code == status
