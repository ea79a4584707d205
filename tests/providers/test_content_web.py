"""Files on the web: read as streams from whatever kind of server, and what goes wrong there in words."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import APIError, Config, Source, SourceError, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.files.content import Content, examine, open_file
from pollux_flows.simulator import Simulator
from pollux_flows.state.content_cache import open_content_cache
from tests.loopback import SDKS, MakeConfig, http, scripted, until
from tests.test_address import collect_text

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 5000


class Site:
    """What the server gives, and how. It knows nothing of ranges."""

    def __init__(self) -> None:
        self.body = PDF
        self.status = 200
        self.headers: dict[str, str] = {}
        self.with_length = True
        self.sends_all = True
        self.answers_head = True
        self.asked: list[str] = []
        self.hang = threading.Event()  # set when nobody is to wait any more
        self.hangs_after: int | None = None
        self.drips = False
        self.moved_body = b""  # what the redirect at /moved.pdf brings besides
        self.moved_sent = 0
        self.origin = ""

    def source(self, path: str = "/report.pdf") -> Source:
        return Source.from_file(self.origin + path)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(405 if not site.answers_head else site.status)

        def do_GET(self) -> None:
            self._answer(site.status)
            with suppress(ConnectionError):  # whoever reads an error does not read its body
                while site.moved_body and self.path.startswith("/moved.pdf") and not site.hang.is_set():
                    self.wfile.write(site.moved_body)
                    site.moved_sent += len(site.moved_body)
                if site.hangs_after is not None:
                    self.wfile.write(site.body[: site.hangs_after])
                    site.hang.wait(30)
                    return
                place = 0
                while site.drips and not site.hang.wait(0.02):
                    self.wfile.write(site.body[place : place + 1])
                    place += 1
                self.wfile.write(site.body if site.sends_all else site.body[:-1])

        def _answer(self, status: int) -> None:
            site.asked.append(f"{self.command} {self.path}")
            moved = self.path.startswith("/moved.pdf")
            self.send_response(302 if moved else status)
            for name, value in ({"Location": "/report.pdf?sig=hunter3"} if moved else site.headers).items():
                self.send_header(name, value)
            if (moved and not site.moved_body) or (not moved and site.with_length):
                self.send_header("Content-Length", str(0 if moved else len(site.body)))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.origin = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        site.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


async def look(source: Source) -> Content:
    (found,) = await examine([source], open_content_cache())
    return found


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("answers_head", [True, False])
async def test_a_server_need_know_neither_ranges_nor_lengths(site: Site, with_length: bool, answers_head: bool) -> None:
    """The file is read as it comes."""
    site.with_length, site.answers_head = with_length, answers_head
    found = await look(site.source())
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(PDF).hexdigest(), len(PDF))
    assert found.mime_type == "application/pdf"


@pytest.mark.parametrize("provider", SDKS)
async def test_it_is_uploaded_byte_by_byte(
    provider: ProviderName, site: Site, config: MakeConfig, sim: Simulator
) -> None:
    """Although the SDKs ask for its length and go back to its beginning."""
    site.with_length = False
    assert (await run("What is it?", source=site.source(), config=config(provider))).status == "ok"
    assert [file.sha256 for file in sim.files] == [hashlib.sha256(PDF).hexdigest()]


async def test_it_is_inlined_as_well(site: Site, config: MakeConfig, sim: Simulator) -> None:
    """Where a provider keeps no files."""
    assert (await run("What is it?", source=site.source(), config=config("openrouter"))).status == "ok"
    assert sim.files == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, r"There is nothing at 'http://127.0.0.1:\d+/report.pdf'"),
        (410, "There is nothing at"),
        (401, "may not be read: the server answers 401.*expired"),
        (403, "may not be read: the server answers 403"),
        (503, "cannot be read: .*the server answers 503"),
    ],
)
async def test_what_the_server_answers_is_said_in_words(site: Site, status: int, said: str) -> None:
    """And never with what was secret in the address."""
    site.status = status
    with pytest.raises(SourceError, match=said) as caught:
        await look(site.source("/report.pdf?X-Amz-Signature=hunter2"))
    assert "hunter2" not in collect_text(caught.value)
    assert site.asked[-1] == "GET /report.pdf?X-Amz-Signature=hunter2"


async def test_nobody_there_is_said_in_words(config: MakeConfig, sim: Simulator) -> None:
    """The network has its own errors, and they hold the address, too."""
    for address in ("http://127.0.0.1:9/a.pdf?sig=hunter2", "http://[::1/a.pdf?sig=hunter2", "http:///a?sig=hunter2"):
        with pytest.raises(SourceError, match="cannot be read") as caught:
            await run("What is it?", source=Source.from_file(address), config=config("openai"))
        assert "hunter2" not in collect_text(caught.value)
    assert sim.requests == []


async def test_a_file_that_ends_too_early_is_not_taken_for_whole(site: Site) -> None:
    """A connection that breaks is no end."""
    site.sends_all = False
    with pytest.raises(SourceError, match="cannot be read"):
        await look(site.source())


async def test_an_address_may_lead_elsewhere(site: Site) -> None:
    """As arXiv's and GitHub's do."""
    assert (await look(site.source("/moved.pdf"))).size_bytes == len(PDF)


async def test_what_is_packed_for_the_way_is_unpacked(site: Site) -> None:
    """What counts is the file."""
    site.body, site.headers = gzip.compress(PDF), {"Content-Encoding": "gzip"}
    assert (await look(site.source())).sha256 == hashlib.sha256(PDF).hexdigest()


async def test_an_unchanged_file_is_not_fetched_again(site: Site) -> None:
    """Its tag says that it is the same."""
    site.headers = {"ETag": '"1"', "Last-Modified": formatdate(time.time() - 3600, usegmt=True)}
    first = await look(site.source())
    assert await look(site.source()) == first
    assert [asked.split()[0] for asked in site.asked] == ["HEAD", "GET", "HEAD"]
    site.body, site.headers = PDF + b"more", {**site.headers, "ETag": '"2"'}
    assert (await look(site.source())).size_bytes == len(PDF) + 4


@pytest.mark.parametrize("modified", [None, "just now", "some day"])
async def test_a_file_without_a_version_or_with_a_fresh_one_is_fetched_again(site: Site, modified: str | None) -> None:
    """Within one second of the server's clock it may change and look the same."""
    if modified:
        site.headers = {"Last-Modified": formatdate(usegmt=True) if modified == "just now" else modified}
    first = await look(site.source())
    site.body = PDF[::-1]
    assert (await look(site.source())).sha256 != first.sha256


async def test_a_server_that_goes_silent_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file came, and then nothing."""
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 0.3)
    site.hangs_after = 1000
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"report\.pdf.*(0\.3 seconds|ReadTimeout)"):
        await look(site.source())
    assert time.monotonic() - started < 5


async def test_a_server_that_drips_has_until_timeout_s(site: Site, config: MakeConfig, sim: Simulator) -> None:
    """A byte now and then is no silence; without an end, a run would wait for it for months."""
    site.drips = True
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"report\.pdf' was not read to its end within 0\.4 seconds") as caught:
        await run("What is it?", source=site.source(), config=config("openai", timeout_s=0.4))
    assert time.monotonic() - started < 5
    assert "timeout_s" in str(caught.value.hint)
    assert sim.requests == []


async def test_what_swells_on_the_way_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that unpacks to gigabytes is read no further than any provider would take, a piece at a time."""
    monkeypatch.setattr("pollux_flows.files.web._LARGEST", 8 << 20)
    site.body, site.headers = gzip.compress(bytes(100 << 20)), {"Content-Encoding": "gzip"}
    with pytest.raises(SourceError, match="larger than"):
        await look(site.source())


async def test_no_log_holds_what_is_secret_in_an_address(
    site: Site, config: MakeConfig, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither ours, nor that of the library that fetches it, however much is logged; nor where the address leads."""
    caplog.set_level(logging.DEBUG)
    source = site.source("/moved.pdf?X-Amz-Signature=hunter2")
    await run("What is it?", source=source, config=config("openai"))
    assert "GET /report.pdf?sig=hunter3" in site.asked
    assert len(sim.files) == 1
    assert "hunter" not in caplog.text


async def test_a_provider_that_repeats_an_address_is_quoted_without_its_query() -> None:
    """It says that it could not fetch it; who reads that may not be who may fetch it."""
    said = "Error while downloading https://h/march.pdf?X-Amz-Signature=hunter2. Upstream status code: 403."
    async with scripted(http({"error": {"message": said}}, 400)) as server:
        source = Source.from_uri("https://h/march.pdf?X-Amz-Signature=hunter2", mime_type="application/pdf")
        with pytest.raises(APIError, match=r"downloading https://h/march\.pdf") as caught:
            await run("What is it?", source=source, config=server.config("openai"))
        assert b"X-Amz-Signature=hunter2" in server.requests[0]
    assert "hunter2" not in collect_text(caught.value)


async def test_an_artifact_shows_an_address_without_its_query() -> None:
    """A page that whoever sees the run may read."""
    from pollux_flows.pages import RunInput, render_grid

    config = Config(provider="openai", model="gpt-4.1-mini", use_mock=True)
    sources = [Source.from_uri("https://h/march.pdf?sig=hunter2", mime_type="application/pdf")]
    envelope = await run_many(["What?"], sources=sources, config=config)
    page = render_grid(RunInput(config.target, ["What?"], sources), [envelope])
    assert "https://h/march.pdf" in page
    assert "hunter2" not in page


# --- The copy that an upload is made from -------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def test_a_copy_can_be_made_beside_what_else_goes_on(site: Site, spool: Path) -> None:
    """And one that nobody waits for any more is not finished."""
    site.hangs_after = 1000
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await open_file(site.source())
    site.hang.set()
    await until(lambda: open_descriptors(spool) == [])
    site.hangs_after = None
    with closing(await open_file(site.source())) as file:
        assert file.read() == PDF


async def test_the_copy_has_no_name_and_goes_with_the_reader(site: Site, spool: Path) -> None:
    """Not even a process that is killed leaves it behind."""
    with closing(await open_file(site.source())) as file:
        assert names_in(spool) == []
        assert file.seek(0, os.SEEK_END) == len(PDF)
        file.seek(0)
        assert file.read() == PDF
    assert open_descriptors(spool) == []


async def test_the_copy_goes_when_it_cannot_be_finished(site: Site, spool: Path) -> None:
    """The server breaks off, so there is nothing to upload."""
    site.sends_all = False
    with pytest.raises(SourceError, match="cannot be read"):
        await open_file(site.source())
    assert names_in(spool) == []
    assert open_descriptors(spool) == []


async def test_no_room_for_the_copy_is_said_in_words(site: Site, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With where the room is missing, and how to find other room."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(SourceError, match=rf"report\.pdf' could not be copied to {spool} .*No space.*TMPDIR"):
        await open_file(site.source())


def names_in(folder: Path) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208 (of a folder that a test made, from wherever it asks)


def open_descriptors(folder: Path) -> list[str]:
    """Open files under the folder, those without a name included."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]


async def test_the_body_of_a_redirect_is_not_read(site: Site) -> None:
    """httpx would read it to its end into memory, and this one has none."""
    site.moved_body = bytes(1 << 16)
    async with asyncio.timeout(10):
        found = await look(site.source("/moved.pdf"))
    assert found.sha256 == hashlib.sha256(PDF).hexdigest()
    assert site.moved_sent < 64 << 20


async def test_a_packed_file_ends_where_its_packing_does(site: Site) -> None:
    """A server may go on for ever after it."""
    site.body, site.headers = gzip.compress(PDF) + bytes(1 << 16), {"Content-Encoding": "gzip"}
    site.with_length, site.hangs_after = False, len(site.body)
    async with asyncio.timeout(10):
        found = await look(site.source())
    assert found.sha256 == hashlib.sha256(PDF).hexdigest()
