from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import Store
from tests.state.places import Clock, Provider, opened
from tests.state.servers import SHARED, BadLine, Server, answers, removed_from


@pytest.fixture(params=["disk", "redis"])
def address(request: pytest.FixtureRequest) -> str:
    """The address of a store of each kind. A new kind is added here and to `opened`."""
    place: str = request.getfixturevalue(f"{request.param}_place")
    return f"{request.param}:{place}"


@pytest.fixture
def disk_place(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of the size that the module sets."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={request.module.SMALL_DISK_MIB}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False).returncode:  # noqa: S607
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # noqa: S607


@pytest.fixture(scope="session")
def shared_redis() -> str:
    """The Redis of this machine: CI has one, others may do without."""
    if not answers(SHARED):
        why = f"no Redis answers at {SHARED}: start one with `redis-server`"
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    return SHARED


@pytest.fixture
def redis_place(shared_redis: str) -> Iterator[str]:
    """A part of it for this test alone, which is emptied afterwards."""
    prefix = f"pollux-test-{os.urandom(8).hex()}:"
    yield f"{shared_redis}#{prefix}"
    removed_from(shared_redis, prefix)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis server for this test alone, which it may pause and kill."""
    server = Server(tmp_path / "redis")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def store(address: str) -> Store:
    return opened(address)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> Provider:
    return Provider(clock)


@pytest.fixture
def ledger(store: Store, clock: Clock) -> Ledger:
    return Ledger(store, clock)


@pytest.fixture
def line(server: Server) -> Iterator[BadLine]:
    line = BadLine(server.port)
    yield line
    line.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short timeouts and pauses for the store in a Redis."""
    from redis.backoff import ConstantBackoff

    from pollux_flows.state import redis

    monkeypatch.setattr(redis, "_SILENCE_S", 0.4)
    monkeypatch.setattr(redis, "_RETRIES", 3)
    monkeypatch.setattr(redis, "_BACKOFF", ConstantBackoff(0.05))
