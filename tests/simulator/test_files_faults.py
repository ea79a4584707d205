"""Each way in which an upload, or anything else with files, can go wrong."""

import asyncio
import json
import time
from typing import Any

import pytest
from google.genai.errors import UnknownApiResponseError

from pollux_flows.simulator import Fault, Simulator

from .clients import DROPPED, TIMED_OUT, Failed
from .uploaders import Uploader

PDF = b"%PDF-1.7 and so on"


def storing(uploader: Uploader) -> str:
    """The operation whose answer says that the file is stored."""
    return "file.upload_chunk" if uploader.provider == "gemini" else "file.create"


async def test_an_upload_can_be_refused(uploader: Uploader, sim: Simulator) -> None:
    """With any status, in the provider's words, and nothing is stored."""
    sim.fail(Fault(status=503), operation="file.create")
    sim.fail(Fault(status=429, retry_after=3), operation=storing(uploader))
    for status in (503, 429):
        with pytest.raises(Failed) as failed:
            await uploader.upload(PDF)
        assert failed.value.status == status
        assert failed.value.body
    assert sim.files == []
    await uploader.upload(PDF)
    assert len(sim.files) == 1


async def test_a_fault_may_wait_for_a_name(uploader: Uploader, sim: Simulator) -> None:
    """`contains` looks at what the log says of the form."""
    sim.fail(Fault(status=500), operation=storing(uploader), contains="bad.pdf")
    await uploader.upload(PDF, "good.pdf")
    with pytest.raises(Failed):
        await uploader.upload(PDF, "bad.pdf")
    assert [file.filename for file in sim.files] == ["good.pdf"]


async def test_a_dropped_upload_stored_nothing(uploader: Uploader, sim: Simulator) -> None:
    """The socket closes, and it is as if nothing had been sent."""
    sim.fail(Fault(kind="drop"), operation=storing(uploader))
    with pytest.raises(DROPPED):
        await uploader.upload(PDF)
    assert sim.files == []
    assert sim.requests[-1].stored is None


async def test_an_upload_whose_answer_is_lost_is_stored(uploader: Uploader, sim: Simulator) -> None:
    """The client cannot know, but it can find the file in the list."""
    sim.fail(Fault(kind="drop_after"), operation=storing(uploader))
    with pytest.raises(DROPPED):
        await uploader.upload(PDF)
    (file,) = sim.files
    assert file.content() == PDF
    assert (sim.requests[-1].stored, sim.requests[-1].status) == (file.id, 200)
    assert await uploader.ids(10) == [file.id]


async def test_an_upload_that_hangs_ends_with_the_clients_patience(uploader: Uploader, sim: Simulator) -> None:
    """And nothing is stored."""
    sim.fail(Fault(kind="hang"), operation=storing(uploader))
    uploader.patience = 0.2
    with pytest.raises(TIMED_OUT):
        await uploader.upload(PDF)
    assert sim.files == []


async def test_a_slow_upload_is_a_good_upload(uploader: Uploader, sim: Simulator) -> None:
    """It only takes a while."""
    sim.fail(Fault(kind="slow", delay_s=0.2), operation=storing(uploader))
    started = time.monotonic()
    await uploader.upload(PDF)
    assert time.monotonic() - started >= 0.2
    assert len(sim.files) == 1


async def test_a_malformed_answer_to_an_upload_is_cut_json(uploader: Uploader, sim: Simulator) -> None:
    """The file is there, and its id is lost."""
    sim.fail(Fault(kind="malformed"), operation=storing(uploader))
    with pytest.raises((json.JSONDecodeError, UnknownApiResponseError)):
        await uploader.upload(PDF)
    assert len(sim.files) == 1


@pytest.mark.parametrize("operation", ["file.get", "file.list", "file.delete"])
async def test_everything_with_files_can_fail(operation: str, uploader: Uploader, sim: Simulator) -> None:
    """Each operation has a name for faults to wait for."""
    file_id = await uploader.upload(PDF)
    sim.fail(Fault(status=503), operation=operation)
    with pytest.raises(Failed) as failed:
        await operate(uploader, operation, file_id)
    assert (failed.value.status, sim.requests[-1].operation) == (503, operation)
    sim.fail(Fault(kind="drop"), operation=operation)
    with pytest.raises(DROPPED):
        await operate(uploader, operation, file_id)
    assert sim.files[0].is_there
    await operate(uploader, operation, file_id)


async def test_a_deletion_whose_answer_is_lost_has_happened(uploader: Uploader, sim: Simulator) -> None:
    """So the next attempt finds nothing to delete."""
    file_id = await uploader.upload(PDF)
    sim.fail(Fault(kind="drop_after"), operation="file.delete")
    with pytest.raises(DROPPED):
        await uploader.delete(file_id)
    assert not sim.files[0].is_there
    with pytest.raises(Failed):
        await uploader.delete(file_id)


async def operate(uploader: Uploader, operation: str, file_id: str) -> Any:
    match operation:
        case "file.get":
            return await uploader.get(file_id)
        case "file.delete":
            return await uploader.delete(file_id)
        case _:
            return await uploader._told(uploader.ids(10))


async def test_an_upload_that_breaks_off_leaves_nothing(sim: Simulator, origin: str) -> None:
    """As when its process is killed: no file, no answer, and the server goes on."""
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
