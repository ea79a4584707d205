"""Stores for tests, by addresses that other processes understand, and the work of those processes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pollux_flows.errors import PolluxError
from pollux_flows.state.leases import acquire_lease
from pollux_flows.state.ledger import Due, Ledger, Uploaded, UploadKey
from pollux_flows.state.slots import RunScope, Slots
from pollux_flows.state.store import Row, Store

P = ParamSpec("P")
T = TypeVar("T")
DAY = 86_400.0
KEY = UploadKey(provider="openai", account="acme", sha256="5eed", mime_type="text/plain")


def open_store_at(address: str) -> Store:
    """Return a new store at this address, such as `disk:FOLDER` or `redis:URL#PREFIX`."""
    kind, _, place = address.partition(":")
    if kind == "redis":
        from pollux_flows.state.redis import RedisStore  # loads redis: processes with a disk start faster without

        url, _, prefix = place.partition("#")
        return RedisStore(url, prefix)
    assert kind == "disk"
    from pollux_flows.state.disk import DiskStore

    return DiskStore(Path(place))


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Provider:
    """A provider that records uploads, fails them with `errors`, and blocks them until `gate` is set."""

    clock: Clock
    lifetime_s: float | None = 2 * DAY
    errors: list[Exception] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def upload(self, marker: str) -> Uploaded:
        self.markers.append(marker)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        expires_at = None if self.lifetime_s is None else self.clock() + self.lifetime_s
        return Uploaded(file_id=f"file-{len(self.markers)}", uri="https://files/1", expires_at=expires_at)

    async def wait_for_uploads(self, count: int = 1) -> None:
        """Wait until this number of uploads has begun."""
        while len(self.markers) < count:  # noqa: ASYNC110 (the upload sets no event)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def hold_run_lease(
    store: Store, run: str, clock: Callable[[], float] = time.time, lease_s: float = 20
) -> AsyncIterator[Slots]:
    """Hold the lease of a run during the block."""
    slots = Slots(store, RunScope(run), clock, lease_s=lease_s)
    await slots.acquire([])
    try:
        yield slots
    finally:
        await slots.close()


async def list_keys(store: Store) -> list[str]:
    return [key async for key, _ in store.scan("")]


async def list_rows(store: Store) -> list[Row]:
    return [row async for row in store.list_rows()]


async def delete_due_files(ledger: Ledger, dues: list[Due]) -> list[str]:
    """Delete due files, as a sweep does, and return their ids, or their markers if they have no id."""
    gone = []
    for due in dues:
        if await ledger.begin_deletion(due):
            gone.append(due.uploaded.file_id if due.uploaded else due.marker)
            await ledger.finish_deletion(due)
    return gone


@cache
def get_process_pool() -> ProcessPoolExecutor:
    """Return a shared pool of processes, whose imports take longer than their work."""
    return ProcessPoolExecutor(8, mp_context=get_context("spawn"))


def run_at_once(count: int, work: Callable[[int, float], T]) -> list[T]:
    """Return the results of `count` processes that begin at the same moment."""
    pool = get_process_pool()
    while len(set(pool.map(report_pid, [count] * count))) < count:
        pass  # until all have started and imported what they need
    return list(pool.map(work, range(count), [time.time() + 0.05] * count))


def report_pid(_: int) -> int:
    """Return the id of this process, after a pause in which each process of the pool gets a call."""
    time.sleep(0.05)
    return os.getpid()


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def damage(address: str, key: str, data: object) -> None:
    """Overwrite the data of a record, bypassing the store."""
    kind, _, place = address.partition(":")
    if kind == "redis":
        from tests.state.servers import connect

        url, _, prefix = place.partition("#")
        with connect(url) as redis:
            assert redis.exists(f"{prefix}record:{key}")
            redis.set(f"{prefix}record:{key}", data)  # type: ignore[arg-type]
        return
    with closing(sqlite3.connect(Path(place) / "cache.db", isolation_level=None)) as database:
        assert database.execute("UPDATE Cache SET value = ? WHERE key = ?", (data, key)).rowcount == 1


def write_in_a_fork(store: Store) -> None:
    """Write in this process and in a fork of it, and check that both records are there."""
    run(store.put("a", {"by": "parent"}))
    child = os.fork()
    if child == 0:
        try:
            run(asyncio.wait_for(store.put("b", {"by": "child"}), 10))
        except BaseException:  # noqa: BLE001 (the tests of the parent must not go on in the child)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert run(store.get_many(["a", "b"])) == {"a": {"by": "parent"}, "b": {"by": "child"}}


def remount_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: S607


# --- Work for other processes -----------------------------------------------------------------------------------


def add_all(address: str, keys: int, me: int, moment: float) -> int:
    """Add the same records as all other processes, and return how many this one added."""
    store = open_store_at(address)

    async def work() -> int:
        return sum([await store.add(f"race/{index}", {"by": me}) for index in range(keys)])

    sleep_until(moment)
    return run(work())


def count_up(address: str, times: int, _me: int, moment: float) -> None:
    """Increment the same counter as all other processes."""
    store = open_store_at(address)

    async def work() -> None:
        for _ in range(times):
            while True:
                old = await store.get("counter")
                if await store.swap("counter", old, {"count": (old or {"count": 0})["count"] + 1}):
                    break

    sleep_until(moment)
    run(work())


def acquire_one(address: str, me: int, moment: float) -> bool:
    """Try to acquire the same lease as all other processes."""
    store = open_store_at(address)
    sleep_until(moment)
    return run(acquire_lease(store, "prize", f"process {me}", lease_s=60.0)) is not None


def acquire_many(address: str, folder: str, me: int, moment: float) -> list[str]:
    """Acquire one file in twenty coroutines; each upload creates a file in the folder."""
    ledger = Ledger(open_store_at(address))

    async def upload(marker: str) -> Uploaded:
        Path(folder, marker).touch()  # noqa: ASYNC240 (an empty file)
        await asyncio.sleep(0.2)
        return Uploaded(file_id=f"file-{marker}")

    async def work() -> list[str]:
        files = await asyncio.gather(*(ledger.acquire(KEY, f"run {me}", upload) for _ in range(20)))
        return [each.file_id for each in files]

    sleep_until(moment)
    return run(work())


def write_until_killed(address: str) -> None:
    """Write records without end, and print after each few how many were written."""
    store = open_store_at(address)

    async def work() -> None:
        index = 0
        while True:
            await asyncio.gather(*(store.put(f"paid/{index + more}", {"answer": "x" * 500}) for more in range(5)))
            index += 5
            print(index, flush=True)  # noqa: T201 (for the process that kills this one)

    run(work())


def upload_until_killed(address: str, lease_s: float) -> None:
    """Begin an upload that never ends."""

    async def upload(marker: str) -> Uploaded:
        print(marker, flush=True)  # noqa: T201 (for the process that kills this one)
        await asyncio.sleep(3600)
        raise AssertionError

    run(Ledger(open_store_at(address), lease_s=lease_s).acquire(KEY, "killed owner", upload))


def fill_under_limit(address: str, limit: int) -> str:
    """Write more than the system allows to this process, and return the error."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = open_store_at(address)

    async def work() -> str:
        try:
            for index in range(1000):
                await store.put(f"much/{index}", {"answer": "x" * 10_000})
        except PolluxError as error:
            return f"{type(error).__name__}: {error}"
        return "no limit"

    return run(work())
