"""Stalls: a file system that hangs is given up, and holds up neither its caller, nor the loop, nor the process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from pollux_flows import Source, SourceError, run
from pollux_flows.config import ProviderName
from pollux_flows.files import file_threads
from pollux_flows.files.content import Content, examine, load, open_file
from pollux_flows.files.file_threads import Pulse, run_on_thread
from pollux_flows.simulator import Simulator
from tests.loopback import SDKS, MakeConfig, until
from tests.providers.shelf import Shelf

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 20_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 0.3)


def hanging(shelf: Shelf, *, after: int = 2_000_000, at_open: int = 1) -> Source:
    shelf.hangs, shelf.after, shelf.at_open = True, after, at_open
    return shelf.put("march.pdf", PDF)


def busy() -> int:
    """How many threads are reading."""
    return sum(thread.name == "pollux-reading" for thread in threading.enumerate())


@pytest.mark.parametrize("after", [0, 2_000_000])
async def test_a_file_that_brings_nothing_any_more_is_an_error_that_says_so(shelf: Shelf, after: int) -> None:
    """With its name and how long nothing came; files beside it are read meanwhile."""
    source = hanging(shelf, after=after)
    started = time.monotonic()
    for reading in (examine([source]), load(source, Content(sha256="", size_bytes=len(PDF), mime_type="a/b"))):
        with pytest.raises(SourceError, match=r"'shelf://march\.pdf' has sent no data for 0\.3 seconds"):
            await reading
    assert time.monotonic() - started < 5


async def test_what_goes_on_slowly_is_waited_for() -> None:
    """Only silence counts, not how long it takes in all."""

    def slow(pulse: Pulse) -> str:
        for piece in range(10):
            time.sleep(0.08)
            pulse.beat(f"piece {piece}")
        return "done"

    assert await run_on_thread(slow) == "done"


async def test_waiting_can_be_cancelled_at_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline holds although the read does not return; and the thread ends as soon as it does."""
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 60.0)
    source = hanging(shelf)
    await until(lambda: busy() == 0)  # threads of the tests before
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await examine([source])
    assert time.monotonic() - started < 2
    assert busy() == 1
    shelf.released.set()
    await until(lambda: busy() == 0)


def test_a_loop_ends_although_a_read_hangs(shelf: Shelf) -> None:
    """`asyncio.run` waits for the threads of its executor; these are not among them."""
    source = hanging(shelf)
    started = time.monotonic()
    with pytest.raises(SourceError, match="has sent no data"):
        asyncio.run(examine([source]))
    assert time.monotonic() - started < 5
    shelf.released.set()  # the thread finds nobody there any more, and that is no error
    asyncio.run(until(lambda: busy() == 0))


async def test_so_many_files_are_loaded_at_once_and_no_more(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may name thousands."""
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 60.0)
    source, content = hanging(shelf), Content(sha256="", size_bytes=len(PDF), mime_type="a/b")
    before = busy()
    loads = [asyncio.create_task(load(source, content)) for _ in range(100)]
    await until(lambda: shelf.opened == file_threads.THREADS)
    await asyncio.sleep(0.1)
    assert (shelf.opened, busy() - before) == (file_threads.THREADS, file_threads.THREADS)
    for each in loads:
        each.cancel()
    await asyncio.gather(*loads, return_exceptions=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_with_threads_of_its_own(tmp_path: Path) -> None:
    """Its parent's did not come along."""
    (tmp_path / "a.pdf").write_bytes(PDF)
    program = textwrap.dedent("""
        import asyncio, os, sys
        from pollux_flows import Source
        from pollux_flows.files.content import examine

        def look():
            return asyncio.run(examine([Source.from_file(sys.argv[1])]))[0].size_bytes

        look()
        if (child := os.fork()) == 0:
            os._exit(0 if look() else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "a.pdf")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "0"


def test_a_process_ends_although_a_read_hangs() -> None:
    """Nothing joins what will never return."""
    program = textwrap.dedent("""
        import asyncio, os, sys, threading
        from pollux_flows import Source
        from pollux_flows.files import file_threads, place
        from pollux_flows.files.content import examine

        file_threads.STALL_S = 0.3
        readable, _ = os.pipe()
        place._open = lambda name: os.fdopen(readable, "rb", buffering=0)  # nobody ever writes
        try:
            asyncio.run(examine([Source(source_type="file", uri="a.pdf")]))
        except Exception as error:
            print(error, [thread.name for thread in threading.enumerate()])
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert "'a.pdf' has sent no data for 0.3 seconds" in done.stdout
    assert "pollux-reading" in done.stdout
    assert done.stderr == ""


# --- While it is uploaded -----------------------------------------------------------------------------------


async def test_a_reader_fails_rather_than_hangs(shelf: Shelf) -> None:
    """And can be closed, which would otherwise wait for the read."""
    with closing(await open_file(hanging(shelf))) as reader, pytest.raises(SourceError, match="has sent no data"):
        reader.read()


async def test_a_local_file_that_hangs_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount may be gone."""
    readable, writable = os.pipe()
    try:
        monkeypatch.setattr("pollux_flows.files.place._open", lambda _: os.fdopen(readable, "rb", 0))
        (tmp_path / "a.pdf").write_bytes(PDF)
        reader = await open_file(Source.from_file(tmp_path / "a.pdf"))
        with pytest.raises(SourceError, match="has sent no data"):
            reader.read(10)
        reader.close()
    finally:
        os.close(writable)


@pytest.mark.parametrize("provider", SDKS)
async def test_an_upload_of_what_hangs_is_the_files_error(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    shelf: Shelf,
) -> None:
    """It fails in good time, once, and in words; the run ends."""
    source = hanging(shelf, at_open=2)
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"'shelf://march\.pdf' has sent no data"):
        await run("What is it?", source=source, config=config(provider, timeout_s=30.0))
    assert time.monotonic() - started < 10
    assert shelf.opened == 2
    assert [request for request in sim.requests if request.operation == "generate"] == []
