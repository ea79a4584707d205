"""Files on the web: streamed from servers of many kinds, with errors that name the cause and no secret."""

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
    """The responses of the test server, which ignores range requests."""

    def __init__(self) -> None:
        self.body = PDF
        self.status = 200
        self.headers: dict[str, str] = {}
        self.with_length = True
        self.sends_all = True
        self.answers_head = True
        self.requests: list[str] = []
        self.stopped = threading.Event()  # set at the end, so that hanging responses return
        self.hangs_after: int | None = None
        self.drips = False
        self.redirect_body = b""  # the body of the redirect at /moved.pdf
        self.redirect_bytes_sent = 0
        self.origin = ""

    def make_source(self, path: str = "/report.pdf") -> Source:
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
            with suppress(ConnectionError):  # the client closes the connection after an error
                while site.redirect_body and self.path.startswith("/moved.pdf") and not site.stopped.is_set():
                    self.wfile.write(site.redirect_body)
                    site.redirect_bytes_sent += len(site.redirect_body)
                if site.hangs_after is not None:
                    self.wfile.write(site.body[: site.hangs_after])
                    site.stopped.wait(30)
                    return
                place = 0
                while site.drips and not site.stopped.wait(0.02):
                    self.wfile.write(site.body[place : place + 1])
                    place += 1
                self.wfile.write(site.body if site.sends_all else site.body[:-1])

        def _answer(self, status: int) -> None:
            site.requests.append(f"{self.command} {self.path}")
            moved = self.path.startswith("/moved.pdf")
            self.send_response(302 if moved else status)
            for name, value in ({"Location": "/report.pdf?sig=hunter3"} if moved else site.headers).items():
                self.send_header(name, value)
            if (moved and not site.redirect_body) or (not moved and site.with_length):
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
        site.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


async def examine_cached(source: Source) -> Content:
    """Examine the source with the content cache."""
    (found,) = await examine([source], open_content_cache())
    return found


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("answers_head", [True, False])
async def test_a_server_without_ranges_lengths_or_head_is_read(
    site: Site, with_length: bool, answers_head: bool
) -> None:
    site.with_length, site.answers_head = with_length, answers_head
    found = await examine_cached(site.make_source())
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(PDF).hexdigest(), len(PDF))
    assert found.mime_type == "application/pdf"


@pytest.mark.parametrize("provider", SDKS)
async def test_a_web_file_is_uploaded_unchanged(
    provider: ProviderName, site: Site, config: MakeConfig, sim: Simulator
) -> None:
    """The SDKs ask for its length and seek to its start, which the server does not support."""
    site.with_length = False
    assert (await run("What is it?", source=site.make_source(), config=config(provider))).status == "ok"
    assert [file.sha256 for file in sim.files] == [hashlib.sha256(PDF).hexdigest()]


async def test_a_web_file_is_inlined_for_a_provider_without_files(
    site: Site, config: MakeConfig, sim: Simulator
) -> None:
    assert (await run("What is it?", source=site.make_source(), config=config("openrouter"))).status == "ok"
    assert sim.files == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"There is nothing at 'http://127.0.0.1:\d+/report.pdf'"),
        (410, "There is nothing at"),
        (401, "may not be read: the server answers 401.*expired"),
        (403, "may not be read: the server answers 403"),
        (503, "cannot be read: .*the server answers 503"),
    ],
)
async def test_an_error_status_is_explained_without_the_signature(site: Site, status: int, message: str) -> None:
    site.status = status
    with pytest.raises(SourceError, match=message) as caught:
        await examine_cached(site.make_source("/report.pdf?X-Amz-Signature=hunter2"))
    assert "hunter2" not in collect_text(caught.value)
    assert site.requests[-1] == "GET /report.pdf?X-Amz-Signature=hunter2"


async def test_an_unreachable_or_invalid_address_is_a_source_error_without_its_query(
    config: MakeConfig, sim: Simulator
) -> None:
    """Errors of the network library hold the address, too."""
    for address in ("http://127.0.0.1:9/a.pdf?sig=hunter2", "http://[::1/a.pdf?sig=hunter2", "http:///a?sig=hunter2"):
        with pytest.raises(SourceError, match="cannot be read") as caught:
            await run("What is it?", source=Source.from_file(address), config=config("openai"))
        assert "hunter2" not in collect_text(caught.value)
    assert sim.requests == []


async def test_a_truncated_download_is_an_error(site: Site) -> None:
    site.sends_all = False
    with pytest.raises(SourceError, match="cannot be read"):
        await examine_cached(site.make_source())


async def test_redirects_are_followed(site: Site) -> None:
    """Addresses of arXiv and GitHub redirect."""
    assert (await examine_cached(site.make_source("/moved.pdf"))).size_bytes == len(PDF)


async def test_a_gzipped_response_is_unpacked_before_it_is_hashed(site: Site) -> None:
    site.body, site.headers = gzip.compress(PDF), {"Content-Encoding": "gzip"}
    assert (await examine_cached(site.make_source())).sha256 == hashlib.sha256(PDF).hexdigest()


async def test_an_unchanged_file_is_not_fetched_again(site: Site) -> None:
    """The ETag shows that the file is unchanged."""
    site.headers = {"ETag": '"1"', "Last-Modified": formatdate(time.time() - 3600, usegmt=True)}
    first = await examine_cached(site.make_source())
    assert await examine_cached(site.make_source()) == first
    assert [line.split()[0] for line in site.requests] == ["HEAD", "GET", "HEAD"]
    site.body, site.headers = PDF + b"more", {**site.headers, "ETag": '"2"'}
    assert (await examine_cached(site.make_source())).size_bytes == len(PDF) + 4


@pytest.mark.parametrize("modified", [None, "just now", "some day"])
async def test_a_file_with_a_recent_or_no_version_is_fetched_again(site: Site, modified: str | None) -> None:
    """Within one second of the server's clock a file may change and keep its version."""
    if modified:
        site.headers = {"Last-Modified": formatdate(usegmt=True) if modified == "just now" else modified}
    first = await examine_cached(site.make_source())
    site.body = PDF[::-1]
    assert (await examine_cached(site.make_source())).sha256 != first.sha256


async def test_a_server_that_stalls_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 0.3)
    site.hangs_after = 1000
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"report\.pdf.*(0\.3 seconds|ReadTimeout)"):
        await examine_cached(site.make_source())
    assert time.monotonic() - started < 5


async def test_a_slow_endless_download_ends_at_timeout_s(site: Site, config: MakeConfig, sim: Simulator) -> None:
    """A byte now and then is not a stall, so only the total time ends the download."""
    site.drips = True
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"report\.pdf' was not read to its end within 0\.4 seconds") as caught:
        await run("What is it?", source=site.make_source(), config=config("openai", timeout_s=0.4))
    assert time.monotonic() - started < 5
    assert "timeout_s" in str(caught.value.hint)
    assert sim.requests == []


async def test_a_gzip_bomb_on_the_web_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking stops at the size limit."""
    monkeypatch.setattr("pollux_flows.files.web._LARGEST", 8 << 20)
    site.body, site.headers = gzip.compress(bytes(100 << 20)), {"Content-Encoding": "gzip"}
    with pytest.raises(SourceError, match="larger than"):
        await examine_cached(site.make_source())


async def test_no_log_holds_the_signature_of_an_address(
    site: Site, config: MakeConfig, sim: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither this project nor its HTTP library logs the signature at any level, also after a redirect."""
    caplog.set_level(logging.DEBUG)
    source = site.make_source("/moved.pdf?X-Amz-Signature=hunter2")
    await run("What is it?", source=source, config=config("openai"))
    assert "GET /report.pdf?sig=hunter3" in site.requests
    assert len(sim.files) == 1
    assert "hunter" not in caplog.text


async def test_a_provider_that_repeats_an_address_is_quoted_without_its_query() -> None:
    """Readers of the error may have no right to fetch the file."""
    message = "Error while downloading https://h/march.pdf?X-Amz-Signature=hunter2. Upstream status code: 403."
    async with scripted(http({"error": {"message": message}}, 400)) as server:
        source = Source.from_uri("https://h/march.pdf?X-Amz-Signature=hunter2", mime_type="application/pdf")
        with pytest.raises(APIError, match=r"downloading https://h/march\.pdf") as caught:
            await run("What is it?", source=source, config=server.config("openai"))
        assert b"X-Amz-Signature=hunter2" in server.requests[0]
    assert "hunter2" not in collect_text(caught.value)


async def test_an_artifact_shows_an_address_without_its_query() -> None:
    """The page can be read by everyone who sees the run."""
    from pollux_flows.pages import RunInput, render_grid

    config = Config(provider="openai", model="gpt-4.1-mini", use_mock=True)
    sources = [Source.from_uri("https://h/march.pdf?sig=hunter2", mime_type="application/pdf")]
    envelope = await run_many(["What?"], sources=sources, config=config)
    page = render_grid(RunInput(config.target, ["What?"], sources), [envelope])
    assert "https://h/march.pdf" in page
    assert "hunter2" not in page


# --- The temporary copy for an upload -----------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of temporary files."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def test_copying_can_be_cancelled_without_blocking_the_loop(site: Site, spool: Path) -> None:
    """The cancelled copy is removed."""
    site.hangs_after = 1000
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await open_file(site.make_source())
    site.stopped.set()
    await until(lambda: list_open_files(spool) == [])
    site.hangs_after = None
    with closing(await open_file(site.make_source())) as file:
        assert file.read() == PDF


async def test_the_copy_has_no_name_and_is_removed_with_its_reader(site: Site, spool: Path) -> None:
    """A file without a name is removed even if the process is killed."""
    with closing(await open_file(site.make_source())) as file:
        assert list_names(spool) == []
        assert file.seek(0, os.SEEK_END) == len(PDF)
        file.seek(0)
        assert file.read() == PDF
    assert list_open_files(spool) == []


async def test_an_incomplete_copy_is_removed(site: Site, spool: Path) -> None:
    site.sends_all = False
    with pytest.raises(SourceError, match="cannot be read"):
        await open_file(site.make_source())
    assert list_names(spool) == []
    assert list_open_files(spool) == []


async def test_a_full_disk_during_the_copy_names_the_folder_and_tmpdir(
    site: Site, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(SourceError, match=rf"report\.pdf' could not be copied to {spool} .*No space.*TMPDIR"):
        await open_file(site.make_source())


def list_names(folder: Path) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208 (an async test may call this)


def list_open_files(folder: Path) -> list[str]:
    """Return the open files under the folder, including those without a name."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(folder))]


async def test_the_body_of_a_redirect_is_not_read(site: Site) -> None:
    """httpx would read the body into memory, and this one is endless."""
    site.redirect_body = bytes(1 << 16)
    async with asyncio.timeout(10):
        found = await examine_cached(site.make_source("/moved.pdf"))
    assert found.sha256 == hashlib.sha256(PDF).hexdigest()
    assert site.redirect_bytes_sent < 64 << 20


async def test_bytes_after_a_gzipped_file_are_not_waited_for(site: Site) -> None:
    site.body, site.headers = gzip.compress(PDF) + bytes(1 << 16), {"Content-Encoding": "gzip"}
    site.with_length, site.hangs_after = False, len(site.body)
    async with asyncio.timeout(10):
        found = await examine_cached(site.make_source())
    assert found.sha256 == hashlib.sha256(PDF).hexdigest()
