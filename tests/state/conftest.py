from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pollux_flows.state.ledger import Ledger
from pollux_flows.state.store import Store
from tests.state.places import Clock, Provider, open_store_at
from tests.state.servers import SHARED, BadLine, Server, delete_keys, is_redis_running


@pytest.fixture(params=["disk", "redis"])
def address(request: pytest.FixtureRequest) -> str:
    """The address of a store of each kind. A new kind is added here and to `open_store_at`."""
    place: str = request.getfixturevalue(f"{request.param}_place")
    return f"{request.param}:{place}"


@pytest.fixture
def disk_place(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of `SMALL_DISK_MIB`, a constant of the test module."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={request.module.SMALL_DISK_MIB}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], check=False).returncode:  # noqa: S607
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)  # noqa: S607


@pytest.fixture(scope="session")
def shared_redis() -> str:
    """The Redis of this machine. Without one, tests are skipped, and fail in CI."""
    if not is_redis_running(SHARED):
        why = f"no Redis answers at {SHARED}: start one with `redis-server`"
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    return SHARED


@pytest.fixture
def redis_place(shared_redis: str) -> Iterator[str]:
    """A prefix in the shared Redis that only this test uses; its keys are deleted afterwards."""
    prefix = f"pollux-test-{os.urandom(8).hex()}:"
    yield f"{shared_redis}#{prefix}"
    delete_keys(shared_redis, prefix)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A private Redis server, which a test may pause and kill."""
    server = Server(tmp_path / "redis")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def store(address: str) -> Store:
    return open_store_at(address)


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
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts and pauses of the store in a Redis."""
    from redis.backoff import ConstantBackoff

    from pollux_flows.state import redis

    monkeypatch.setattr(redis, "_SILENCE_S", 0.4)
    monkeypatch.setattr(redis, "_RETRIES", 3)
    monkeypatch.setattr(redis, "_BACKOFF", ConstantBackoff(0.05))
