"""The common behaviour of all Files APIs: files are stored, found, used, deleted, and expire."""

import asyncio
import hashlib
import io
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from pollux_flows.simulator import Simulator, StoredFile

from .clients import KEY, ErrorResponse
from .conftest import Clock
from .uploaders import UPLOADERS, Uploader

PDF = b"%PDF-1.7 " + bytes(range(256)) * 9 + b"\r\n--boundary\r\n"


def only_file(sim: Simulator) -> StoredFile:
    (file,) = sim.files
    return file


async def test_an_uploaded_file_is_stored_unchanged(uploader: Uploader, sim: Simulator) -> None:
    """A stored file has the name, type and exact bytes of the upload."""
    file_id = await uploader.upload(PDF)
    file = only_file(sim)
    assert (file.id, file.provider, file.filename, file.mime_type) == (
        file_id,
        uploader.provider,
        "a.pdf",
        "application/pdf",
    )
    assert (file.size, file.sha256) == (len(PDF), hashlib.sha256(PDF).hexdigest())
    assert file.content() == PDF
    assert (file.state, file.is_there) == ("active", True)


async def test_a_large_upload_is_hashed_and_not_stored(uploader: Uploader, sim: Simulator, tmp_path: Path) -> None:
    """A large upload has the right hash; neither the store nor the log holds its content."""
    path = tmp_path / "large.pdf"
    path.write_bytes(PDF * 4000)
    with path.open("rb") as opened:
        await uploader.upload(opened)
    file = only_file(sim)
    assert (file.size, file.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(LookupError, match="did not store"):
        file.content()
    assert len(str(sim.requests)) < 20_000


async def test_the_log_names_the_stored_file(uploader: Uploader, sim: Simulator) -> None:
    """The request that stored a file has its id, and the form without the bytes."""
    file_id = await uploader.upload(PDF, "report.pdf")
    last = sim.requests[-1]
    assert (last.operation, last.status, last.stored) == (
        "file.upload_chunk" if uploader.provider == "gemini" else "file.create",
        200,
        file_id,
    )
    assert "report.pdf" in str(last.body)
    assert str(len(PDF)) in str(last.body)
    assert [entry.stored for entry in sim.requests[:-1]] == [None] * (len(sim.requests) - 1)
    assert KEY not in str(sim.requests)


async def test_a_files_metadata_can_be_fetched(uploader: Uploader) -> None:
    """The metadata is complete: the SDK's strict mode accepts it."""
    file_id = await uploader.upload(PDF, "report.pdf")
    found = await uploader.get(file_id)
    metadata = found.model_dump()
    assert file_id in (metadata.get("id"), metadata.get("name"))
    assert "report.pdf" in (metadata.get("filename"), metadata.get("display_name"))
    assert len(PDF) in (metadata.get("bytes"), metadata.get("size_bytes"))


async def test_files_are_listed_page_by_page(uploader: Uploader) -> None:
    """Files are listed newest first in pages of any size, without deleted ones."""
    ids = [await uploader.upload(PDF) for _ in range(5)]
    assert await uploader.list_ids(2) == ids[::-1]
    assert await uploader.list_ids(100) == ids[::-1]
    await uploader.delete(ids[0])
    assert await uploader.list_ids(2) == ids[:0:-1]


async def test_a_request_can_use_a_file(uploader: Uploader) -> None:
    """A file costs input tokens by its size, like an inline attachment."""
    assert await uploader.ask(await uploader.upload(PDF)) == 258 + 1
    assert await uploader.ask(await uploader.upload(b"%PDF" + bytes(64 * 1024))) == 3 * 258 + 1
    assert await uploader.ask(await uploader.upload(b"x" * 4000, "a.txt", "text/plain")) == 1000 + 1
    assert await uploader.ask(await uploader.upload(b"png", "a.png", "image/png"), "image") == 258 + 1


async def test_a_deleted_file_is_not_found(uploader: Uploader, sim: Simulator, clock: Clock) -> None:
    """A provider no longer finds a deleted file; the simulator remembers that it existed."""
    file_id = await uploader.upload(PDF)
    clock.now += 5
    await uploader.delete(file_id)
    file = only_file(sim)
    assert (file.state, file.is_there, file.deleted_at) == ("deleted", False, clock.now)
    with pytest.raises(LookupError):
        file.content()
    await assert_unknown(uploader, file_id)


async def test_a_file_expires(uploader: Uploader, sim: Simulator, clock: Clock) -> None:
    """A file expires after the requested time; at Gemini after 48 hours."""
    file_id = await uploader.upload(PDF)
    lifetime_s = 48 * 3600 if uploader.provider == "gemini" else 86_400
    assert only_file(sim).expires_at == clock.now + lifetime_s
    clock.now += lifetime_s - 1
    assert await uploader.ask(file_id)
    clock.now += 1
    assert (only_file(sim).state, only_file(sim).deleted_at) == ("expired", None)
    assert await uploader.list_ids(10) == []
    await assert_unknown(uploader, file_id)


async def test_files_of_another_account_are_not_found(uploader: Uploader, sim: Simulator, origin: str) -> None:
    """Files belong to the account of their API key."""
    file_id = await uploader.upload(PDF)
    async with AsyncExitStack() as stack:
        other = await type(uploader).open(sim.base_url(uploader.provider, origin), stack, key="another")
        assert await other.list_ids(10) == []
        await assert_unknown(other, file_id)
    assert await uploader.ask(file_id)


async def test_an_unknown_file_id_is_not_found(uploader: Uploader) -> None:
    """A file that was never uploaded can be neither fetched, deleted nor used."""
    await assert_unknown(uploader, uploader.unknown_id)


async def assert_unknown(uploader: Uploader, file_id: str) -> None:
    status = 403 if uploader.provider == "gemini" else 404
    for attempt in (uploader.get(file_id), uploader.delete(file_id), uploader.ask(file_id)):
        with pytest.raises(ErrorResponse) as caught:
            await attempt
        assert caught.value.status == status
        assert file_id.removeprefix("files/") in str(caught.value.body)


async def test_an_empty_file_is_refused(uploader: Uploader, sim: Simulator) -> None:
    with pytest.raises(ErrorResponse) as caught:
        await uploader.upload(b"")
    assert caught.value.status == 400
    assert sim.files == []


LIMITS = {
    "openai": ("pollux_flows.simulator.openai.files.LIMIT_BYTES", 413),
    "anthropic": ("pollux_flows.simulator.anthropic.files.LIMIT_BYTES", 413),
    "gemini": ("pollux_flows.simulator.gemini.uploads.LIMIT_BYTES", 400),
}


async def test_a_file_that_is_too_large_is_refused(
    uploader: Uploader, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads the error although it has not sent all bytes, and can upload again on its connection."""
    limit, status = LIMITS[uploader.provider]
    monkeypatch.setattr(limit, 1_000_000)
    with pytest.raises(ErrorResponse) as caught:
        await uploader.upload(bytes(1_000_001))
    assert caught.value.status == status
    assert sim.files == []
    await uploader.upload(bytes(1_000_000))
    assert len(sim.files) == 1


async def test_concurrent_uploads_are_stored_separately(uploader: Uploader, sim: Simulator) -> None:
    """Each of twenty concurrent uploads gets its own file with its own content."""
    contents = [bytes([number]) * (100_000 + number) for number in range(20)]
    ids = await asyncio.gather(*(uploader.upload(content) for content in contents))
    stored = {file.id: file.sha256 for file in sim.files}
    assert [stored[file_id] for file_id in ids] == [hashlib.sha256(content).hexdigest() for content in contents]


async def test_ids_of_other_content_differ_after_a_reset(uploader: Uploader, sim: Simulator) -> None:
    """An id depends on the content too, so an id from before a reset never finds another file."""
    before = await uploader.upload(PDF)
    sim.reset()
    after = await uploader.upload(b"another")
    assert before != after
    await assert_unknown(uploader, before)


async def test_a_file_name_may_have_any_characters(uploader: Uploader, sim: Simulator) -> None:
    """File names may have characters outside ASCII."""
    await uploader.upload(PDF, "Bericht über Öl & 100%.pdf")
    assert only_file(sim).filename == "Bericht über Öl & 100%.pdf"


async def test_an_upload_needs_a_key(http: httpx.AsyncClient, sim: Simulator) -> None:
    """An upload without a key is refused, and nothing is stored."""
    for path in ("/openai/v1/files", "/anthropic/v1/files", "/gemini/upload/v1/files"):
        answer = await http.post(
            path, files={"file": ("a.pdf", bytes(300_000))}, headers={"authorization": "", "x-goog-api-key": ""}
        )
        assert answer.status_code in (401, 403), path
    assert sim.files == []


BROKEN = {
    "not a form": ("application/json", b"{}"),
    "no boundary": ("multipart/form-data", b"--x--"),
    "empty body": ("multipart/form-data; boundary=x", b""),
    "no end of the headers": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n',
    ),
    "no end of a part": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
    ),
    "no name": ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\nabc\r\n--x--"),
    "field that is too long": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + bytes(70_000) + b"\r\n--x--",
    ),
    "headers that are too long": ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 9_000),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_form_is_refused(name: str, http: httpx.AsyncClient) -> None:
    """A broken form is refused with 400 and an error text."""
    kind, body = BROKEN[name]
    for path in ("/openai/v1/files", "/anthropic/v1/files"):
        answer = await http.post(path, content=body, headers={"content-type": kind})
        assert (answer.status_code, "multipart" in answer.text) == (400, True), answer.text


async def test_another_process_can_list_the_files(uploader: Uploader, http: httpx.AsyncClient) -> None:
    """The control endpoint lists the files of `sim.files`, without their bytes."""
    file_id = await uploader.upload(PDF)
    (listed,) = (await http.get("/_simulator/files")).json()["files"]
    assert (listed["id"], listed["sha256"], listed["state"]) == (file_id, hashlib.sha256(PDF).hexdigest(), "active")
    await http.post("/_simulator/reset")
    assert (await http.get("/_simulator/files")).json() == {"files": []}


SERVER = """
import sys
from pollux_flows.simulator import Simulator, serve
with serve(Simulator()) as origin:
    print(origin, flush=True)
    sys.stdin.read()
"""


class Zeros(io.RawIOBase):
    """A readable file of `size` zeros that takes no memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = min(len(buffer), self.size - self.at)
        buffer[:count] = bytes(count)
        self.at += count
        return count


@pytest.mark.parametrize("name", UPLOADERS)
async def test_a_large_upload_takes_little_server_memory(name: str) -> None:
    """An upload of 64 MiB grows the memory of the server by less than 8 MiB."""
    size = 64 * 1024 * 1024
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    origin = (await server.stdout.readline()).decode().strip()
    async with AsyncExitStack() as stack:
        uploader = await UPLOADERS[name].open(Simulator.base_url(name, origin), stack)
        await uploader.upload(PDF)
        before = peak_memory_of(server.pid)
        file_id = await uploader.upload(Zeros(size))
        growth = peak_memory_of(server.pid) - before
        found = await uploader.get(file_id)
    await server.communicate(b"")
    assert size in (getattr(found, "bytes", None), getattr(found, "size_bytes", None))
    assert growth < 8 * 1024 * 1024


def peak_memory_of(pid: int) -> int:
    """Return the peak memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(pid)
