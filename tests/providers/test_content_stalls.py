"""Stalls: a read that hangs is given up, and blocks neither its caller, nor the event loop, nor the process."""

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
def short_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 0.3)


def make_hanging_source(shelf: Shelf, *, readable_bytes: int = 2_000_000, failing_from: int = 1) -> Source:
    shelf.hangs, shelf.readable_bytes, shelf.failing_from = True, readable_bytes, failing_from
    return shelf.put("march.pdf", PDF)


def count_reading_threads() -> int:
    return sum(thread.name == "pollux-reading" for thread in threading.enumerate())


@pytest.mark.parametrize("readable_bytes", [0, 2_000_000])
async def test_a_stalled_read_names_the_file_and_the_seconds(shelf: Shelf, readable_bytes: int) -> None:
    source = make_hanging_source(shelf, readable_bytes=readable_bytes)
    started = time.monotonic()
    for reading in (examine([source]), load(source, Content(sha256="", size_bytes=len(PDF), mime_type="a/b"))):
        with pytest.raises(SourceError, match=r"'shelf://march\.pdf' has sent no data for 0\.3 seconds"):
            await reading
    assert time.monotonic() - started < 5


async def test_a_slow_read_that_makes_progress_is_not_a_stall() -> None:
    """Only the time without progress counts, not the time in total."""

    def read_slowly(pulse: Pulse) -> str:
        for piece in range(10):
            time.sleep(0.08)
            pulse.beat(f"piece {piece}")
        return "done"

    assert await run_on_thread(read_slowly) == "done"


async def test_a_hanging_read_can_be_cancelled(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline holds although the read does not return, and the thread ends once the read does."""
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 60.0)
    source = make_hanging_source(shelf)
    await until(lambda: count_reading_threads() == 0)  # threads of the tests before
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await examine([source])
    assert time.monotonic() - started < 2
    assert count_reading_threads() == 1
    shelf.may_return.set()
    await until(lambda: count_reading_threads() == 0)


def test_an_event_loop_closes_while_a_read_hangs(shelf: Shelf) -> None:
    """`asyncio.run` waits for the threads of its executor; reading threads are not among them."""
    source = make_hanging_source(shelf)
    started = time.monotonic()
    with pytest.raises(SourceError, match="has sent no data"):
        asyncio.run(examine([source]))
    assert time.monotonic() - started < 5
    shelf.may_return.set()  # the thread ends without an error, although its event loop is closed
    asyncio.run(until(lambda: count_reading_threads() == 0))


async def test_the_number_of_reading_threads_is_limited(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may name thousands of files."""
    monkeypatch.setattr("pollux_flows.files.file_threads.STALL_S", 60.0)
    source, content = make_hanging_source(shelf), Content(sha256="", size_bytes=len(PDF), mime_type="a/b")
    before = count_reading_threads()
    loads = [asyncio.create_task(load(source, content)) for _ in range(100)]
    await until(lambda: shelf.open_count == file_threads.THREADS)
    await asyncio.sleep(0.1)
    assert (shelf.open_count, count_reading_threads() - before) == (file_threads.THREADS, file_threads.THREADS)
    for each in loads:
        each.cancel()
    await asyncio.gather(*loads, return_exceptions=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_with_threads_of_its_own(tmp_path: Path) -> None:
    """A fork copies none of its parent's threads."""
    (tmp_path / "a.pdf").write_bytes(PDF)
    program = textwrap.dedent("""
        import asyncio, os, sys
        from pollux_flows import Source
        from pollux_flows.files.content import examine

        def read_size():
            return asyncio.run(examine([Source.from_file(sys.argv[1])]))[0].size_bytes

        read_size()
        if (child := os.fork()) == 0:
            os._exit(0 if read_size() else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "a.pdf")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "0"


def test_a_process_exits_while_a_read_hangs() -> None:
    """The interpreter does not join reading threads."""
    program = textwrap.dedent("""
        import asyncio, os, sys, threading
        from pollux_flows import Source
        from pollux_flows.files import file_threads, place
        from pollux_flows.files.content import examine

        file_threads.STALL_S = 0.3
        readable, _ = os.pipe()
        place._open = lambda name: os.fdopen(readable, "rb", buffering=0)  # never written to
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


# --- Stalls during an upload --------------------------------------------------------------------------------


async def test_a_stalled_reader_raises_and_can_be_closed(shelf: Shelf) -> None:
    """Without the time limit, closing would wait for the read."""
    with (
        closing(await open_file(make_hanging_source(shelf))) as reader,
        pytest.raises(SourceError, match="has sent no data"),
    ):
        reader.read()


async def test_a_stalled_local_file_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount of a local file may be gone."""
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
async def test_a_stall_during_an_upload_is_a_source_error(
    provider: ProviderName,
    config: MakeConfig,
    sim: Simulator,
    shelf: Shelf,
) -> None:
    """The upload fails in time and without a retry, and no generate request is sent."""
    source = make_hanging_source(shelf, failing_from=2)
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"'shelf://march\.pdf' has sent no data"):
        await run("What is it?", source=source, config=config(provider, timeout_s=30.0))
    assert time.monotonic() - started < 10
    assert shelf.open_count == 2
    assert [request for request in sim.requests if request.operation == "generate"] == []
