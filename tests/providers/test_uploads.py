"""Concurrent uploads: one that hangs stops no other, and many small ones need few clients."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pollux_flows import APIError, Config, Source, run
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers import http, uploads
from pollux_flows.result import Outcome
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.store import open_store
from tests.executing import execute_plan
from tests.loopback import SDKS, MakeConfig, until

ROOT = Path(__file__).parents[2]
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40

on_sdks = pytest.mark.parametrize("provider", SDKS)


@pytest.fixture(autouse=True)
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))


class HangingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system whose files can be examined once; the next read never ends."""

    protocol = "stuck"
    store: dict[str, Any] = {}  # noqa: RUF012 (as fsspec has it)
    opened_paths: set[str] = set()  # noqa: RUF012
    reads_in_progress = threading.Semaphore(0)
    may_return = threading.Event()

    def _open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        first = path not in self.opened_paths
        self.opened_paths.add(path)
        return io.BytesIO(PDF + path.encode()) if first else HangingFile(PDF + path.encode())

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": None, "type": "file"}


class HangingFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        HangingFileSystem.reads_in_progress.release()
        HangingFileSystem.may_return.wait()
        return super().read(size)


@pytest.fixture
def hanging_sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Source]]:
    """Return files that hang until the end of the test, and then wait for the upload threads to end."""
    monkeypatch.setattr(uploads, "_PATIENCE_S", 0.3)
    monkeypatch.setenv("POLLUX_ALLOW_PROTOCOLS", "stuck")
    fsspec.register_implementation("stuck", HangingFileSystem, clobber=True)
    HangingFileSystem.opened_paths.clear()
    HangingFileSystem.may_return.clear()
    HangingFileSystem.reads_in_progress = threading.Semaphore(0)
    yield [Source.from_file(f"stuck://{index}.pdf") for index in range(3)]
    HangingFileSystem.may_return.set()
    deadline = time.monotonic() + 10
    while any(thread.name == "pollux-upload" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "an upload thread has not ended"
        time.sleep(0.01)


def write_pdfs(folder: Path, count: int) -> list[Source]:
    for index in range(count):
        (folder / f"{index}.pdf").write_bytes(PDF + index.to_bytes(4))
    return [Source.from_file(folder / f"{index}.pdf") for index in range(count)]


async def run_broadcast(sources: list[Source], config: Config) -> list[Outcome]:
    """Run one prompt about each source."""
    request = make_request(["What is it?"], target=config.target, sources=sources, each_source=True)
    plan = make_plan(request, await read_sources(request))
    return await execute_plan(plan, config)


@on_sdks
async def test_an_upload_whose_read_hangs_fails_after_timeout_s(
    provider: ProviderName, config: MakeConfig, hanging_sources: list[Source]
) -> None:
    started = time.monotonic()
    with pytest.raises(APIError, match=r"within 0\.5 seconds"):
        await run("What is it?", source=hanging_sources[0], config=config(provider, timeout_s=0.5))
    assert time.monotonic() - started < 5


@on_sdks
async def test_hanging_uploads_do_not_stop_other_uploads(
    provider: ProviderName, config: MakeConfig, hanging_sources: list[Source], tmp_path: Path
) -> None:
    """Three uploads hang from the start; the other sources are uploaded and answered."""
    outcomes = await run_broadcast([*hanging_sources, *write_pdfs(tmp_path, 10)], config(provider, timeout_s=3.0))
    assert [outcome.answer is not None for outcome in outcomes] == [False] * 3 + [True] * 10
    assert all("within 3 seconds" in str(outcome.failure) for outcome in outcomes[:3])


@on_sdks
async def test_a_run_with_a_hanging_upload_can_be_cancelled(
    provider: ProviderName, config: MakeConfig, hanging_sources: list[Source]
) -> None:
    running = asyncio.create_task(run("What is it?", source=hanging_sources[0], config=config(provider)))
    await until(lambda: HangingFileSystem.reads_in_progress.acquire(blocking=False), within_s=20)
    started = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started < 5


@pytest.mark.timeout(60)
def test_a_process_exits_while_an_upload_hangs(world: tuple[Simulator, str], sim: Simulator, tmp_path: Path) -> None:
    """The interpreter does not join upload threads."""
    program = textwrap.dedent("""
        import asyncio, sys
        import fsspec
        from pollux_flows import APIError, Config, Source, run
        from tests.providers.test_uploads import HangingFileSystem
        fsspec.register_implementation("stuck", HangingFileSystem)
        config = Config(provider="openai", model="gpt-4.1-mini", api_key="k", base_url=sys.argv[1], timeout_s=0.5)
        try:
            asyncio.run(run("What is it?", source=Source.from_file("stuck://report.pdf"), config=config))
        except APIError as error:
            print(error.message)
    """)
    command = [sys.executable, "-c", program, sim.base_url("openai", world[1])]
    environment = {"PYTHONPATH": str(ROOT), "POLLUX_HOME": str(tmp_path / "pollux")}
    environment |= {"POLLUX_ALLOW_PROTOCOLS": "stuck"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=True)
    assert ended.stdout.strip() == "No answer came within 0.5 seconds."


@on_sdks
async def test_forty_uploads_need_at_most_five_clients(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client serves the calls, and one each concurrent upload."""
    created = []
    sdk_client = http.sdk_client

    def create_counting(*arguments: Any) -> Any:
        created.append(arguments)
        return sdk_client(*arguments)

    monkeypatch.setattr(http, "sdk_client", create_counting)
    outcomes = await run_broadcast(write_pdfs(tmp_path, 40), config(provider))
    assert all(outcome.answer is not None for outcome in outcomes)
    assert len(sim.files) == 40
    assert 2 <= len(created) <= 5


@on_sdks
async def test_a_run_cancelled_during_an_upload_leaves_it_to_the_run_that_waits_for_it(
    provider: ProviderName, config: MakeConfig, sim: Simulator, tmp_path: Path
) -> None:
    """The file is uploaded once, also with keep_files_s=0, and deleted after the second run."""
    (tmp_path / "a.pdf").write_bytes(PDF)
    source, settings = Source.from_file(tmp_path / "a.pdf"), config(provider, keep_files_s=0.0)
    operation = "file.upload_chunk" if provider == "gemini" else "file.create"
    sim.fail(Fault(kind="slow", delay_s=0.7), operation=operation, times=1)
    first = asyncio.create_task(run("One?", source=source, config=settings))
    await wait_for_owners(1)
    second = asyncio.create_task(run("Two?", source=source, config=settings))
    await wait_for_owners(2)
    first.cancel()
    assert (await second).status == "ok"
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert len([entry for entry in sim.requests if entry.operation == operation]) == 1
    assert [file.state for file in sim.files] == ["deleted"]


async def wait_for_owners(count: int) -> None:
    """Return once so many runs are recorded as owners of the file."""
    store = open_store()
    async with asyncio.timeout(5):
        while len([name async for name in store.list_keys("owner/")]) < count:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.005)
