"""Ledger: concurrent processes and threads, some of which are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from pollux_flows.state.ledger import Ledger, Uploaded
from pollux_flows.state.store import Store
from tests.state.places import KEY, acquire_many, open_store_at, run_at_once

ROOT = Path(__file__).parents[2]


def test_processes_upload_a_file_once(address: str, tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    files = run_at_once(3, partial(acquire_many, address, str(tmp_path / "uploads")))
    (marker,) = [path.name for path in (tmp_path / "uploads").iterdir()]
    assert files == [[f"file-{marker}"] * 20] * 3


def test_threads_with_their_own_event_loops_upload_a_file_once(store: Store) -> None:
    ledger = Ledger(store)
    markers: list[str] = []
    files: list[Uploaded] = []

    async def upload(marker: str) -> Uploaded:
        markers.append(marker)
        await asyncio.sleep(0.1)
        return Uploaded(file_id=marker)

    async def work() -> None:
        files.extend(await asyncio.gather(*(ledger.acquire(KEY, "run", upload) for _ in range(10))))

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.file_id for each in files] == markers * 60
    assert len(markers) == 1


async def wait_for_renewals(store: Store, count: int) -> None:
    """Wait until the lease on the key has been renewed `count` times."""
    seen: set[float] = set()
    while len(seen) <= count:
        seen.add((await store.get(KEY.name) or {})["lease"]["until"])
        await asyncio.sleep(0.01)


def test_a_killed_uploader_is_replaced(address: str) -> None:
    """After its lease, one waiter uploads the file, and a sweep searches for the file of the killed uploader."""
    script = f"from tests.state.places import *; upload_until_killed('{address}', 1.5)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    orphan = process.stdout.readline().strip()
    store = open_store_at(address)
    ledger = Ledger(store, lease_s=1.5)
    markers: list[str] = []

    async def upload(marker: str) -> Uploaded:
        markers.append(marker)
        return Uploaded(file_id=marker)

    async def work() -> list[Uploaded]:
        waiting = [asyncio.ensure_future(ledger.acquire(KEY, "run", upload)) for _ in range(5)]
        await wait_for_renewals(store, 3)
        assert markers == []
        assert not any(each.done() for each in waiting)
        os.kill(process.pid, signal.SIGKILL)
        return await asyncio.wait_for(asyncio.gather(*waiting), 10)

    files = asyncio.run(work())
    process.wait()
    process.stdout.close()
    assert [each.file_id for each in files] == markers * 5
    assert len(markers) == 1
    assert [(due.marker, due.reason) for due in asyncio.run(ledger.list_due())] == [(orphan, "orphan")]
