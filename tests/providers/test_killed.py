"""Processes killed during an upload: the next run works, and files left behind are found and deleted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pollux_flows import Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.cleanup import delete_due
from pollux_flows.providers.session import open_session
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.leases import LEASE_S
from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import open_store
from tests.loopback import KEY, MODELS, SDKS, MakeConfig

ROOT = Path(__file__).parents[2]
PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
PROGRAM = textwrap.dedent("""
    import asyncio, functools, sys
    from pollux_flows import Config, Source, run_many
    from pollux_flows.pipeline import cleanup
    cleanup.Ledger = functools.partial(cleanup.Ledger, lease_s=1.0)  # so that the next run need not wait long
    provider, model, key, address, *paths = sys.argv[1:]
    config = Config(provider=provider, model=model, api_key=key, base_url=address, timeout_s=60)
    print(asyncio.run(run_many("What is it?", sources=list(map(Source.from_file, paths)), config=config)).status)
""")


@pytest.fixture
def pollux_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a POLLUX_HOME that this process shares with those that are killed."""
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "pollux"))
    return tmp_path / "pollux"


def get_upload_operation(provider: ProviderName) -> str:
    """Return the operation that stores a file."""
    return "file.upload_chunk" if provider == "gemini" else "file.create"


def start_program(
    provider: ProviderName, address: str, paths: Iterable[Path], pollux_home: Path
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "POLLUX_HOME": str(pollux_home)}
    command = [sys.executable, "-c", PROGRAM, provider, MODELS[provider], KEY, address, *map(str, paths)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("provider", SDKS)
def test_a_file_stored_by_a_killed_process_is_deleted_later(
    provider: ProviderName,
    world: tuple[Simulator, str],
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
    *,
    pollux_home: Path,
) -> None:
    """The provider stored the file, and the process was killed before the response arrived."""
    (tmp_path / "report.pdf").write_bytes(PDF)
    operation = get_upload_operation(provider)
    sim.fail(Fault(kind="drop_after"), operation=operation, times=1)  # stored, without a response
    sim.fail(Fault(kind="hang"), operation=operation, times=None)  # all later requests hang
    process = start_program(provider, sim.base_url(provider, world[1]), [tmp_path / "report.pdf"], pollux_home)
    wait_until(lambda: len(sim.files) == 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sim.faults.clear()

    envelope = asyncio.run(
        run("What is it?", source=Source.from_file(tmp_path / "report.pdf"), config=config(provider, timeout_s=60.0))
    )
    assert envelope.status == "ok"

    async def sweep_later() -> None:
        later = time.time() + 2 * LEASE_S + 90_000
        ledger = Ledger(open_store(), clock=lambda: later)
        settings = config(provider)
        async with open_session(settings) as session:
            await delete_due(session, ledger)

    asyncio.run(sweep_later())
    assert [file for file in sim.files if file.state == "active"] == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("provider", SDKS)
def test_one_listing_finds_all_files_that_a_killed_process_left(
    provider: ProviderName,
    world: tuple[Simulator, str],
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
    *,
    pollux_home: Path,
) -> None:
    """The process leaves no more upload records than it had uploads in progress."""
    paths = [tmp_path / f"{index}.pdf" for index in range(30)]
    for index, path in enumerate(paths):
        path.write_bytes(PDF + bytes([index]))
    operation = get_upload_operation(provider)
    sim.fail(Fault(kind="drop_after"), operation=operation, times=4)
    sim.fail(Fault(kind="hang"), operation=operation, times=None)
    process = start_program(provider, sim.base_url(provider, world[1]), paths, pollux_home)
    wait_until(lambda: len([request for request in sim.requests if request.operation == operation]) == 8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    sim.faults.clear()

    async def count_upload_records() -> int:
        return len([name async for name in open_store().list_keys("upload/")])

    assert asyncio.run(count_upload_records()) == 4
    envelope = asyncio.run(
        run_many("What are they?", sources=[Source.from_file(path) for path in paths], config=config(provider))
    )
    assert envelope.status == "ok"
    assert len([request for request in sim.requests if request.operation == "file.list"]) == 1
    assert (len(sim.files), len([file for file in sim.files if file.state == "active"])) == (34, 30)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("provider", SDKS)
def test_a_large_file_is_streamed(
    provider: ProviderName, world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """192 MiB take under 64 MiB more memory than a small file. (`make bench` does it with 1 GiB.)"""
    peaks = []
    for size in (1024, 192 * 1024 * 1024):
        path = tmp_path / f"{size}.pdf"
        with path.open("wb") as file:
            file.write(PDF)
            file.truncate(max(size, len(PDF)))
        process = start_program(provider, sim.base_url(provider, world[1]), [path], tmp_path / "pollux")
        assert process.stdout is not None
        assert process.stdout.read().strip() == "ok"
        _, _, usage = os.wait4(process.pid, 0)
        peaks.append(usage.ru_maxrss)
    assert [file.size for file in sim.files] == [len(PDF), 192 * 1024 * 1024]
    assert peaks[1] - peaks[0] < 64 * 1024, peaks
