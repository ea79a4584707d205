"""What OpenAI's Files API does in its own way."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest

from pollux_flows.simulator import Simulator

from .conftest import Time
from .uploaders import OpenAI

FILES = "/openai/v1/files"
FILE = {"file": ("a.pdf", b"%PDF", "application/pdf")}
LINES = b'{"custom_id":"r0"}\n' * 200_000


@pytest.fixture
async def sdk(sim: Simulator, origin: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with AsyncExitStack() as stack:
        yield (await OpenAI.open(sim.base_url("openai", origin), stack)).sdk


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no purpose": ({}, "purpose", "Missing required parameter: 'purpose'"),
    "an unknown purpose": ({"purpose": "fun"}, "purpose", "Invalid value: 'fun'"),
    "no anchor": ({"purpose": "user_data", "expires_after[seconds]": "3600"}, "expires_after.anchor", "Missing"),
    "another anchor": (
        {"purpose": "user_data", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
        "expires_after.anchor",
        "Invalid value: 'now'",
    ),
    "no seconds": ({"purpose": "user_data", "expires_after[anchor]": "created_at"}, "expires_after.seconds", "Missing"),
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
    "seconds that are none": (
        {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
        "expires_after.seconds",
        "expected an integer",
    ),
    "an expiry that is none": ({"purpose": "user_data", "expires_after": "1"}, "expires_after", "expected an object"),
    "an unknown field": ({"purpose": "user_data", "colour": "red"}, "colour", "Unknown parameter"),
    "a batch that is no JSONL": ({"purpose": "batch"}, "file", "Must be .jsonl"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_openai_refuses_a_form(name: str, http: httpx.AsyncClient, sim: Simulator) -> None:
    """And names the field that is wrong."""
    fields, param, words = REFUSED[name]
    answer = await http.post(FILES, data=fields, files=FILE)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert sim.files == []


async def test_a_form_without_a_file_is_refused(http: httpx.AsyncClient) -> None:
    """A field called `file` is not a file."""
    answer = await http.post(FILES, files={"purpose": (None, "user_data"), "file": (None, "text")})
    assert answer.json()["error"]["message"] == "Missing required parameter: 'file'."


async def test_the_purpose_may_come_after_the_file(http: httpx.AsyncClient, sim: Simulator) -> None:
    """The order of a form's fields is its client's affair."""
    for purpose, is_kept in (("user_data", False), ("batch", True)):
        answer = await http.post(FILES, files={"file": ("in.jsonl", LINES), "purpose": (None, purpose)})
        assert answer.status_code == 200, answer.text
        spool = sim.files[-1].spool
        assert spool is not None
        assert spool.is_kept is is_kept


async def test_without_an_expiry_a_file_stays(sdk: openai.AsyncOpenAI, clock: Time) -> None:
    """Except a batch's input, which goes after 30 days."""
    stays = await sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")
    goes = await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    assert (stays.expires_at, goes.expires_at) == (None, int(clock.now) + 30 * 86_400)
    clock.now += 31 * 86_400
    assert [file.id async for file in sdk.files.list()] == [stays.id]


async def test_what_the_user_gave_cannot_be_downloaded(sdk: openai.AsyncOpenAI) -> None:
    """What is meant for a job can, to the last byte, however long it is."""
    for purpose in ("user_data", "vision", "assistants"):
        file = await sdk.files.create(file=("a.pdf", b"%PDF"), purpose=purpose)
        with pytest.raises(openai.BadRequestError, match=f"Not allowed to download files of purpose: {purpose}"):
            await sdk.files.content(file.id)
    job = await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    assert (await sdk.files.content(job.id)).content == LINES


async def test_the_bytes_of_a_job_can_be_read_again(sdk: openai.AsyncOpenAI, sim: Simulator) -> None:
    """By the simulator itself, when it runs the job."""
    await sdk.files.create(file=("a.jsonl", LINES), purpose="batch")
    (file,) = sim.files
    assert len(LINES) > 1024 * 1024
    assert file.content() == LINES


async def test_a_list_can_be_of_one_purpose_and_in_either_order(sdk: openai.AsyncOpenAI) -> None:
    """And begins after a file that is named."""
    ids = [(await sdk.files.create(file=("a.pdf", b"%PDF"), purpose="user_data")).id for _ in range(4)]
    other = await sdk.files.create(file=("a.png", b"png"), purpose="vision")
    assert [file.id async for file in sdk.files.list(purpose="vision")] == [other.id]
    assert [file.id async for file in sdk.files.list(order="asc", purpose="user_data", limit=3)] == ids
    assert [file.id async for file in sdk.files.list(order="asc", after=ids[1])] == [*ids[2:], other.id]


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 10_001}, {"limit": "x"}, {"order": "up"}, {"after": "x"}])
async def test_a_list_that_makes_no_sense_is_refused(query: dict[str, Any], http: httpx.AsyncClient) -> None:
    """Not answered with whatever comes to mind."""
    answer = await http.get(FILES, params=query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == next(iter(query))


async def test_a_batch_has_a_smaller_limit(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB instead of 512."""
    monkeypatch.setattr("pollux_flows.simulator.openai.files.BATCH_LIMIT_BYTES", 10)
    for purpose, status in (("batch", 413), ("user_data", 200)):
        answer = await http.post(FILES, data={"purpose": purpose}, files={"file": ("a.jsonl", bytes(11))})
        assert answer.status_code == status
