"""Faults of file operations: each way in which an upload, a list, a fetch or a deletion can go wrong."""

import asyncio
import json
import time
from typing import Any

import pytest
from google.genai.errors import UnknownApiResponseError

from pollux_flows.simulator import Fault, Simulator

from .clients import DROPPED, TIMED_OUT, ErrorResponse, unify_errors
from .uploaders import Uploader

PDF = b"%PDF-1.7 and so on"


def storing_operation(uploader: Uploader) -> str:
    """Return the operation whose response confirms that the file is stored."""
    return "file.upload_chunk" if uploader.provider == "gemini" else "file.create"


async def test_an_upload_can_be_refused(uploader: Uploader, sim: Simulator) -> None:
    """A refused upload has the provider's error body and stores nothing."""
    sim.fail(Fault(status=503), operation="file.create")
    sim.fail(Fault(status=429, retry_after=3), operation=storing_operation(uploader))
    for status in (503, 429):
        with pytest.raises(ErrorResponse) as caught:
            await uploader.upload(PDF)
        assert caught.value.status == status
        assert caught.value.body
    assert sim.files == []
    await uploader.upload(PDF)
    assert len(sim.files) == 1


async def test_a_fault_may_require_a_file_name(uploader: Uploader, sim: Simulator) -> None:
    """`contains` is searched in the logged form of an upload."""
    sim.fail(Fault(status=500), operation=storing_operation(uploader), contains="bad.pdf")
    await uploader.upload(PDF, "good.pdf")
    with pytest.raises(ErrorResponse):
        await uploader.upload(PDF, "bad.pdf")
    assert [file.filename for file in sim.files] == ["good.pdf"]


async def test_a_dropped_upload_stored_nothing(uploader: Uploader, sim: Simulator) -> None:
    """A dropped upload stores nothing."""
    sim.fail(Fault(kind="drop"), operation=storing_operation(uploader))
    with pytest.raises(DROPPED):
        await uploader.upload(PDF)
    assert sim.files == []
    assert sim.requests[-1].stored is None


async def test_an_upload_whose_answer_is_lost_is_stored(uploader: Uploader, sim: Simulator) -> None:
    """The client cannot know that the file was stored, but finds it in the list."""
    sim.fail(Fault(kind="drop_after"), operation=storing_operation(uploader))
    with pytest.raises(DROPPED):
        await uploader.upload(PDF)
    (file,) = sim.files
    assert file.content() == PDF
    assert (sim.requests[-1].stored, sim.requests[-1].status) == (file.id, 200)
    assert await uploader.list_ids(10) == [file.id]


async def test_a_hanging_upload_stores_nothing(uploader: Uploader, sim: Simulator) -> None:
    """An upload that hangs ends with the client's timeout, and nothing is stored."""
    sim.fail(Fault(kind="hang"), operation=storing_operation(uploader))
    uploader.timeout_s = 0.2
    with pytest.raises(TIMED_OUT):
        await uploader.upload(PDF)
    assert sim.files == []


async def test_a_slow_upload_is_stored(uploader: Uploader, sim: Simulator) -> None:
    """A slow upload takes at least `delay_s`, and is stored."""
    sim.fail(Fault(kind="slow", delay_s=0.2), operation=storing_operation(uploader))
    started = time.monotonic()
    await uploader.upload(PDF)
    assert time.monotonic() - started >= 0.2
    assert len(sim.files) == 1


async def test_a_malformed_upload_response_is_cut_json(uploader: Uploader, sim: Simulator) -> None:
    """The file is stored although the client cannot parse the response."""
    sim.fail(Fault(kind="malformed"), operation=storing_operation(uploader))
    with pytest.raises((json.JSONDecodeError, UnknownApiResponseError)):
        await uploader.upload(PDF)
    assert len(sim.files) == 1


@pytest.mark.parametrize("operation", ["file.get", "file.list", "file.delete"])
async def test_every_file_operation_can_fail(operation: str, uploader: Uploader, sim: Simulator) -> None:
    """Each file operation has a name for which faults can be queued."""
    file_id = await uploader.upload(PDF)
    sim.fail(Fault(status=503), operation=operation)
    with pytest.raises(ErrorResponse) as caught:
        await run_operation(uploader, operation, file_id)
    assert (caught.value.status, sim.requests[-1].operation) == (503, operation)
    sim.fail(Fault(kind="drop"), operation=operation)
    with pytest.raises(DROPPED):
        await run_operation(uploader, operation, file_id)
    assert sim.files[0].is_there
    await run_operation(uploader, operation, file_id)


async def test_a_deletion_whose_answer_is_lost_is_done(uploader: Uploader, sim: Simulator) -> None:
    """The file is deleted although the client gets no response, so the next attempt finds no file."""
    file_id = await uploader.upload(PDF)
    sim.fail(Fault(kind="drop_after"), operation="file.delete")
    with pytest.raises(DROPPED):
        await uploader.delete(file_id)
    assert not sim.files[0].is_there
    with pytest.raises(ErrorResponse):
        await uploader.delete(file_id)


async def run_operation(uploader: Uploader, operation: str, file_id: str) -> Any:
    match operation:
        case "file.get":
            return await uploader.get(file_id)
        case "file.delete":
            return await uploader.delete(file_id)
        case _:
            return await unify_errors(uploader.list_ids(10))


async def test_an_interrupted_upload_stores_nothing(sim: Simulator, origin: str) -> None:
    """A connection that closes during an upload, as of a killed client, leaves no file."""
    host, port = origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /openai/v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        b'Content-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n' + bytes(200_000)
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert sim.files == []
    assert [(entry.operation, entry.status) for entry in sim.requests] == [("file.create", None)]
