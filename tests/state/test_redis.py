"""The store in a Redis: its address, lost replies, damage, and connections."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pollux_flows.errors import ConfigurationError
from pollux_flows.state import redis
from pollux_flows.state.redis import RedisStore
from pollux_flows.state.store import STATE_URL, open_store
from tests.state.places import list_keys, open_store_at, write_in_a_fork
from tests.state.servers import BadLine, Server, connect

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("short_timeouts")


@pytest.fixture
def store(server: Server) -> RedisStore:
    return RedisStore(server.url)


# --- Addresses ------------------------------------------------------------------------------------------------------


async def test_the_variable_selects_the_store(redis_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address has one store; without the variable, the store is that of the home."""
    embedded = open_store()
    url = redis_place.partition("#")[0]
    monkeypatch.setenv(STATE_URL, f" {url} ")
    shared = open_store()
    assert isinstance(shared, RedisStore)
    assert open_store() is shared
    assert repr(shared) == "RedisStore('127.0.0.1:6379/15')"
    monkeypatch.delenv(STATE_URL)
    assert open_store() is embedded


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:s3cret@localhost",
        "redis:s3cret",
        "redis://:s3cret/more@localhost/0",
        "redis://:6379#s3cret@localhost/0",
        "redis://s3cret?@localhost",
        "redis://:s3cret@localhost:port/0",
        "redis://localhost?s3cret=1",
        "redis://:s3cret@localhost?socket_timeout=soon",
        "rediss://:s3cret@localhost?ssl_cert_reqs=s3cret",
    ],
)
def test_an_invalid_address_is_an_error_that_does_not_show_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_URL, url)
    with pytest.raises(ConfigurationError, match=r"POLLUX_STATE_URL is not the address .*redis://") as caught:
        open_store()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_without_redis_py_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_URL, "redis://localhost/7")
    monkeypatch.setitem(sys.modules, "pollux_flows.state.redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pollux-flows\[redis\]'"):
        open_store()


async def test_a_socket_path_is_an_address(server: Server) -> None:
    await RedisStore(f"unix://{server.socket}").put("a", {"by": "socket"})
    assert await RedisStore(server.url).get("a") == {"by": "socket"}
    assert await RedisStore(f"unix://{server.socket}?db=1").get("a") is None


async def test_all_keys_have_the_prefix(server: Server, store: RedisStore) -> None:
    await store.put_many({"a": {}, "b": {}}, ttl_s=60)
    await store.swap("a", {}, {"a": 1})
    await store.delete("b")
    keys = {key.decode() for key in server.execute("KEYS", "*")}
    assert {key for key in keys if not key.startswith("pollux:asked:")} == {"pollux:record:a", "pollux:store"}
    assert server.execute("GET", "pollux:record:a") == b'{"a":1}'
    assert all(0 < server.execute("PTTL", key) <= 60_000 for key in keys if key.startswith("pollux:asked:"))


# --- Lost replies ---------------------------------------------------------------------------------------------------


async def test_a_write_whose_reply_is_lost_takes_effect_once(line: BadLine) -> None:
    """The write is sent again, but has no effect, and returns the result of the first time."""
    store = RedisStore(line.url)
    await store.put("a", {"count": 0})
    line.lose_reply(after=1)  # Redis first replies that it has the script
    assert await store.swap("a", {"count": 0}, {"count": 1}) is True
    line.lose_reply(after=1)
    assert await store.add("b", {"by": "me"}) is True
    line.lose_reply(after=1)
    assert await store.add("b", {"by": "me"}) is False  # an equal record is not the same write
    line.lose_reply(after=1)
    assert await store.swap("a", {"count": 0}, {"count": 1}) is False
    line.lose_reply(after=1)
    assert await store.swap("a", {"count": 1}, None) is True
    line.lose_reply()
    assert await store.get_many(["a", "b"]) == {"b": {"by": "me"}}
    line.lose_reply()
    assert await list_keys(store) == ["b"]
    assert line.losses == 7


async def test_a_repeated_write_does_not_overwrite_a_later_one(server: Server, line: BadLine) -> None:
    store, other = RedisStore(line.url), RedisStore(server.url)
    await store.put("a", {"by": "first"})
    greet = store._greet

    def greet_late(deadline: float) -> None:
        if line.losses:
            asyncio.run(other.put("a", {"by": "other"}))
            line.losses = 0
        greet(deadline)

    store._greet = greet_late  # type: ignore[method-assign]
    for write in (store.put("a", {"by": "me"}), store.delete("a"), store.swap("a", {"by": "other"}, {"by": "me"})):
        line.lose_reply(after=1)
        assert await write in (None, True)
        assert await other.get("a") == {"by": "other"}


async def test_no_increment_is_lost_or_repeated_when_replies_are_lost(line: BadLine) -> None:
    store = RedisStore(line.url)

    async def count() -> None:
        for _ in range(10):
            while True:
                old = await store.get("counter")
                if await store.swap("counter", old, {"count": (old or {"count": 0})["count"] + 1}):
                    break

    async def cut() -> None:
        while True:
            if not line.cuts:  # let the repeated request pass in between
                line.passes, line.cuts = 8, 1
            await asyncio.sleep(0.001)

    cutting = asyncio.ensure_future(cut())
    await asyncio.gather(*(count() for _ in range(10)))
    cutting.cancel()
    line.cuts = 0
    assert await store.get("counter") == {"count": 100}
    assert line.losses > 5


async def test_a_connection_that_always_breaks_is_an_error(line: BadLine) -> None:
    store = RedisStore(line.url)
    await store.put("a", {})
    line.lose_reply(1000, after=1)
    with pytest.raises(ConfigurationError, match=r"cannot be reached.*not known whether the last write"):
        await store.add("b", {})
    line.cuts = 0
    assert await store.add("b", {}) is False  # the last write was done


async def test_a_scan_starts_over_on_a_new_connection(store: RedisStore, server: Server) -> None:
    """The cursor of the old connection may be that of another server."""
    await store.put_many({f"a/{index:05}": {} for index in range(3000)})
    run, scans = store._run, 0

    async def run_and_break(commands: list[redis.Command]) -> list[object]:
        nonlocal scans
        scans += 1
        if scans == 2:
            server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return await run(commands)

    store._run = run_and_break  # type: ignore[method-assign]
    assert len([key async for key in store.list_keys("a/")]) == 3000
    assert scans > 6


# --- Damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000, None])
async def test_a_damaged_record_is_an_error_that_names_it(redis_place: str, data: bytes | None) -> None:
    """Other records can be read, and this one can be replaced."""
    store = open_store_at(f"redis:{redis_place}")
    await store.put("a", {"answer": 1})
    await store.put("b", {"answer": 2})
    url, _, prefix = redis_place.partition("#")
    with connect(url) as client:
        if data is None:
            client.delete(f"{prefix}record:a")
            client.rpush(f"{prefix}record:a", "of another type")
        else:
            client.set(f"{prefix}record:a", data)
    error, other = await asyncio.gather(store.get("a"), store.get("b"), return_exceptions=True)
    assert isinstance(error, ConfigurationError)
    assert "The record a in 127.0.0.1:6379/15 is damaged" in str(error)
    assert other == {"answer": 2}
    with pytest.raises(ConfigurationError, match="record a"):
        await store.get_many(["b", "a"])
    with pytest.raises(ConfigurationError, match="record a"):
        await store.swap("a", {"answer": 1}, {"answer": 3})
    with pytest.raises(ConfigurationError, match="record a"):
        await list_keys(store)
    assert await store.add("a", {}) is False  # the record is damaged, not absent
    assert await store.swap("a", None, {}) is False
    await store.delete("a")
    assert await store.get("a") is None


async def test_an_equal_record_with_other_spaces_can_be_swapped(redis_place: str) -> None:
    store = open_store_at(f"redis:{redis_place}")
    url, _, prefix = redis_place.partition("#")
    with connect(url) as client:
        client.set(f"{prefix}record:a", b'{ "b": 2, "a": 1 }')
    assert await store.swap("a", {"a": 1}, {"a": 3}) is False
    assert await store.swap("a", {"a": 1, "b": 2}, {"a": 3}) is True
    assert await store.get("a") == {"a": 3}


# --- Processes and connections --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking with threads: that is the point
def test_a_store_works_in_a_fork(store: RedisStore) -> None:
    """The fork opens its own connection, and that of the parent still works."""
    write_in_a_fork(store)
    assert store._connections == 1


def test_acknowledged_writes_survive_a_kill(redis_place: str) -> None:
    script = f"from tests.state.places import *; write_until_killed('redis:{redis_place}')"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    for _ in range(20):
        acknowledged = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
    process.wait()
    process.stdout.close()
    found = asyncio.run(
        open_store_at(f"redis:{redis_place}").get_many([f"paid/{index}" for index in range(acknowledged)])
    )
    assert len(found) == acknowledged >= 100


async def test_many_writes_take_few_pipelines(store: RedisStore) -> None:
    await store.put("a", {})
    sizes: list[int] = []
    execute = store._execute

    def execute_and_count(commands: list[redis.Command]) -> list[object]:
        sizes.append(len(commands))
        return execute(commands)

    store._execute = execute_and_count  # type: ignore[method-assign]
    await asyncio.gather(*(store.put(f"b/{index}", {}) for index in range(1000)))
    assert sum(sizes) == 1000
    assert max(sizes) <= 250
    assert len(sizes) < 100


def count_connections(server: Server) -> int:
    return int(server.execute("INFO", "clients")["connected_clients"]) - 1  # without the one of this request


async def test_a_store_has_one_connection_until_it_is_closed(server: Server) -> None:
    store = RedisStore(server.url)
    assert count_connections(server) == 0
    threads = [threading.Thread(target=asyncio.run, args=(store.put(f"a/{index}", {}),)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert count_connections(server) == 1
    store.close()
    assert count_connections(server) == 0
    assert len(await list_keys(store)) == 8
    assert count_connections(server) == 1
    del store
    gc.collect()
    give_up = time.monotonic() + 5
    while count_connections(server):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


def test_no_connection_is_left_open_at_exit(server: Server) -> None:
    script = f"""
import asyncio, os
from pollux_flows.state import redis
from pollux_flows.state.store import open_store
redis._RETRIES = 0
for url in ({server.url!r}, "redis://127.0.0.1:1"):
    os.environ["POLLUX_STATE_URL"] = url
    store = open_store()
    for _ in range(2):
        try:
            asyncio.run(store.put("a", {{}}))
        except Exception as error:
            print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", script],
        capture_output=True, text=True, check=True, cwd=ROOT, timeout=30,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "ConfigurationError\n" * 2
    assert count_connections(server) == 0
