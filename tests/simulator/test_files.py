"""Files at every provider that has them: stored, found, used, and gone."""

import asyncio
import hashlib
import io
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from pollux_flows.simulator import Simulator, StoredFile

from .clients import KEY, Failed
from .conftest import Time
from .uploaders import UPLOADERS, Uploader

PDF = b"%PDF-1.7 " + bytes(range(256)) * 9 + b"\r\n--boundary\r\n"


def only(sim: Simulator) -> StoredFile:
    (file,) = sim.files
    return file


async def test_the_bytes_that_arrive_are_the_files(uploader: Uploader, sim: Simulator) -> None:
    """To the last one, whatever they look like."""
    file_id = await uploader.upload(PDF)
    file = only(sim)
    assert (file.id, file.provider, file.filename, file.mime_type) == (
        file_id,
        uploader.provider,
        "a.pdf",
        "application/pdf",
    )
    assert (file.size, file.sha256) == (len(PDF), hashlib.sha256(PDF).hexdigest())
    assert file.content() == PDF
    assert (file.state, file.is_there) == ("active", True)


async def test_an_open_file_is_streamed(uploader: Uploader, sim: Simulator, tmp_path: Path) -> None:
    """Its hash is right, its content is not kept, and the log holds neither."""
    path = tmp_path / "large.pdf"
    path.write_bytes(PDF * 4000)
    with path.open("rb") as opened:
        await uploader.upload(opened)
    file = only(sim)
    assert (file.size, file.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(LookupError, match="did not store"):
        file.content()
    assert len(str(sim.requests)) < 20_000


async def test_what_was_stored_stands_in_the_log(uploader: Uploader, sim: Simulator) -> None:
    """The request that stored a file names it, and says what came without the bytes."""
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


async def test_a_file_can_be_looked_up(uploader: Uploader) -> None:
    """All its metadata is there, or the strict SDK would complain."""
    file_id = await uploader.upload(PDF, "report.pdf")
    found = await uploader.get(file_id)
    named = found.model_dump()
    assert file_id in (named.get("id"), named.get("name"))
    assert "report.pdf" in (named.get("filename"), named.get("display_name"))
    assert len(PDF) in (named.get("bytes"), named.get("size_bytes"))


async def test_files_are_listed_page_by_page(uploader: Uploader) -> None:
    """The newest first; no page is the last one for ever."""
    ids = [await uploader.upload(PDF) for _ in range(5)]
    assert await uploader.ids(2) == ids[::-1]
    assert await uploader.ids(100) == ids[::-1]
    await uploader.delete(ids[0])
    assert await uploader.ids(2) == ids[:0:-1]


async def test_a_request_can_use_a_file(uploader: Uploader) -> None:
    """It costs by its size, as if it had been sent along."""
    assert await uploader.ask(await uploader.upload(PDF)) == 258 + 1
    assert await uploader.ask(await uploader.upload(b"%PDF" + bytes(64 * 1024))) == 3 * 258 + 1
    assert await uploader.ask(await uploader.upload(b"x" * 4000, "a.txt", "text/plain")) == 1000 + 1
    assert await uploader.ask(await uploader.upload(b"png", "a.png", "image/png"), "image") == 258 + 1


async def test_a_deleted_file_is_gone(uploader: Uploader, sim: Simulator, clock: Time) -> None:
    """From its provider; the simulator remembers it."""
    file_id = await uploader.upload(PDF)
    clock.now += 5
    await uploader.delete(file_id)
    file = only(sim)
    assert (file.state, file.is_there, file.deleted_at) == ("deleted", False, clock.now)
    with pytest.raises(LookupError):
        file.content()
    await assert_unknown(uploader, file_id)


async def test_a_file_expires(uploader: Uploader, sim: Simulator, clock: Time) -> None:
    """After the time that was asked for; at Gemini always after 48 hours."""
    file_id = await uploader.upload(PDF)
    lasts = 48 * 3600 if uploader.provider == "gemini" else 86_400
    assert only(sim).expires_at == clock.now + lasts
    clock.now += lasts - 1
    assert await uploader.ask(file_id)
    clock.now += 1
    assert (only(sim).state, only(sim).deleted_at) == ("expired", None)
    assert await uploader.ids(10) == []
    await assert_unknown(uploader, file_id)


async def test_another_accounts_file_is_not_there(uploader: Uploader, sim: Simulator, origin: str) -> None:
    """The account is the key."""
    file_id = await uploader.upload(PDF)
    async with AsyncExitStack() as stack:
        stranger = await type(uploader).open(sim.base_url(uploader.provider, origin), stack, key="another")
        assert await stranger.ids(10) == []
        await assert_unknown(stranger, file_id)
    assert await uploader.ask(file_id)


async def test_a_file_that_nobody_uploaded_is_not_there(uploader: Uploader) -> None:
    """Neither to be looked up, nor deleted, nor used."""
    await assert_unknown(uploader, uploader.nobodys)


async def assert_unknown(uploader: Uploader, file_id: str) -> None:
    status = 403 if uploader.provider == "gemini" else 404
    for attempt in (uploader.get(file_id), uploader.delete(file_id), uploader.ask(file_id)):
        with pytest.raises(Failed) as failed:
            await attempt
        assert failed.value.status == status
        assert file_id.removeprefix("files/") in str(failed.value.body)


async def test_an_empty_file_is_refused(uploader: Uploader, sim: Simulator) -> None:
    """There is nothing in it to read."""
    with pytest.raises(Failed) as failed:
        await uploader.upload(b"")
    assert failed.value.status == 400
    assert sim.files == []


LIMITS = {
    "openai": ("pollux_flows.simulator.openai.files.LIMIT_BYTES", 413),
    "anthropic": ("pollux_flows.simulator.anthropic.files.LIMIT_BYTES", 413),
    "gemini": ("pollux_flows.simulator.gemini.uploads.LIMIT_BYTES", 400),
}


async def test_a_file_that_is_too_large_is_refused(
    uploader: Uploader, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hears so although it sends on, and the connection lives."""
    place, status = LIMITS[uploader.provider]
    monkeypatch.setattr(place, 1_000_000)
    with pytest.raises(Failed) as failed:
        await uploader.upload(bytes(1_000_001))
    assert failed.value.status == status
    assert sim.files == []
    await uploader.upload(bytes(1_000_000))
    assert len(sim.files) == 1


async def test_many_upload_at_once(uploader: Uploader, sim: Simulator) -> None:
    """Each gets its own file, and nothing is mixed up."""
    contents = [bytes([number]) * (100_000 + number) for number in range(20)]
    ids = await asyncio.gather(*(uploader.upload(content) for content in contents))
    stored = {file.id: file.sha256 for file in sim.files}
    assert [stored[file_id] for file_id in ids] == [hashlib.sha256(content).hexdigest() for content in contents]


async def test_an_id_from_before_a_reset_is_not_that_of_another_file(uploader: Uploader, sim: Simulator) -> None:
    """Numbers begin again, but ids tell contents apart."""
    before = await uploader.upload(PDF)
    sim.reset()
    after = await uploader.upload(b"another")
    assert before != after
    await assert_unknown(uploader, before)


async def test_a_name_may_be_anything(uploader: Uploader, sim: Simulator) -> None:
    """Not only ASCII."""
    await uploader.upload(PDF, "Bericht über Öl & 100%.pdf")
    assert only(sim).filename == "Bericht über Öl & 100%.pdf"


async def test_an_upload_needs_a_key(http: httpx.AsyncClient, sim: Simulator) -> None:
    """It is refused before it is read into anything."""
    for path in ("/openai/v1/files", "/anthropic/v1/files", "/gemini/upload/v1/files"):
        answer = await http.post(
            path, files={"file": ("a.pdf", bytes(300_000))}, headers={"authorization": "", "x-goog-api-key": ""}
        )
        assert answer.status_code in (401, 403), path
    assert sim.files == []


BROKEN = {
    "no form": ("application/json", b"{}"),
    "no boundary": ("multipart/form-data", b"--x--"),
    "nothing": ("multipart/form-data; boundary=x", b""),
    "no end": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n',
    ),
    "no end of a part": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
    ),
    "no name": ("multipart/form-data; boundary=x", b"--x\r\nA: b\r\n\r\nabc\r\n--x--"),
    "a field without end": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + bytes(70_000) + b"\r\n--x--",
    ),
    "headers without end": ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 9_000),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_form_is_refused(name: str, http: httpx.AsyncClient) -> None:
    """With words, and not with a 500."""
    kind, body = BROKEN[name]
    for path in ("/openai/v1/files", "/anthropic/v1/files"):
        answer = await http.post(path, content=body, headers={"content-type": kind})
        assert (answer.status_code, "multipart" in answer.text) == (400, True), answer.text


async def test_another_process_can_see_the_files(uploader: Uploader, http: httpx.AsyncClient) -> None:
    """What `sim.files` tells, without the bytes."""
    file_id = await uploader.upload(PDF)
    (told,) = (await http.get("/_simulator/files")).json()["files"]
    assert (told["id"], told["sha256"], told["state"]) == (file_id, hashlib.sha256(PDF).hexdigest(), "active")
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
    """As many zeros as one likes, of which none is in memory."""

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
async def test_a_large_upload_costs_the_server_no_memory(name: str) -> None:
    """64 MiB go through, and hardly any of it stays."""
    size = 64 * 1024 * 1024
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    origin = (await server.stdout.readline()).decode().strip()
    async with AsyncExitStack() as stack:
        uploader = await UPLOADERS[name].open(Simulator.base_url(name, origin), stack)
        await uploader.upload(PDF)
        before = peak_of(server.pid)
        file_id = await uploader.upload(Zeros(size))
        grown = peak_of(server.pid) - before
        found = await uploader.get(file_id)
    await server.communicate(b"")
    assert size in (getattr(found, "bytes", None), getattr(found, "size_bytes", None))
    assert grown < 8 * 1024 * 1024


def peak_of(pid: int) -> int:
    """The most memory that the process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(pid)
