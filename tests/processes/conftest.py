"""A Prefect server as users start it, a process that serves flows, and a simulated provider on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from uuid import UUID

with socket() as _free:
    _free.bind(("127.0.0.1", 0))
    PORT = _free.getsockname()[1]
URL = f"http://127.0.0.1:{PORT}/api"
# Prefect reads its settings when it is imported. Set later, they would not reach all of its threads.
os.environ["PREFECT_API_URL"] = URL

import httpx  # noqa: E402
import pytest  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402

from tests.hurry import retry_quickly  # noqa: E402
from tests.prefect.conftest import no_caches_are_left, provider, simulator, world  # noqa: E402
from tests.prefect.runs import wait_until  # noqa: E402

__all__ = ["no_caches_are_left", "provider", "simulator", "world"]

ROOT = Path(__file__).parents[2]

SERVE = """
from prefect import serve
from prefect.schedules import Interval
from pollux_flows.flows import abroadcast, await_for, collect, deferred, fan_out, realtime
serve(
    *[each.to_deployment(each.name) for each in (abroadcast, await_for, deferred, fan_out, realtime)],
    collect.to_deployment("collect", schedule=Interval(15, active=False)),
)
"""
_SETTINGS = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    # An event is seen five seconds later, unless the server saves events more often.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
    # A new schedule is seen a minute later, unless the scheduler looks more often.
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    # For the job of 10,001 prompts in test_memory.py.
    "PREFECT_SERVER_API_MAX_PARAMETER_SIZE": str(1 << 28),
}


@pytest.fixture(scope="session", autouse=True)
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a server with its scheduler and all its services. That of tests/prefect has none."""
    folder = tmp_path_factory.mktemp("server")
    database = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'server.db'}"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(PORT)]
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **_SETTINGS, **database}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not _is_healthy():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        with retry_quickly(), temporary_settings({PREFECT_API_URL: URL}):
            yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _is_healthy() -> bool:
    try:
        return httpx.get(f"{URL}/health").is_success
    except httpx.TransportError:
        return False


@contextmanager
def start_program(program: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program in a process of its own, which ends with the block at the latest."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": URL, **environment}
    process = subprocess.Popen([sys.executable, "-c", program], env=variables, cwd=ROOT, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


Deployments = Mapping[str, UUID]
"""The ids of the served deployments, by the names of their flows."""


@pytest.fixture(scope="session")
def serving(prefect_server: None) -> Iterator[int]:  # noqa: ARG001 (it has to be there)
    """Start a process that serves flows, each of whose runs has a process of its own. Return its id."""
    with start_program(SERVE, PREFECT_RUNNER_POLL_FREQUENCY="1") as process:
        yield process.pid


@pytest.fixture(scope="session")
def served(serving: int) -> Deployments:  # noqa: ARG001 (it serves them)
    """Return the deployments that are served."""

    async def find_deployments() -> Deployments | None:
        async with get_client() as client:
            found = {str(each.name): each.id for each in await client.read_deployments()}
        return found if len(found) == 6 else None

    deployments: Deployments = asyncio.run(wait_until(find_deployments))
    return deployments
