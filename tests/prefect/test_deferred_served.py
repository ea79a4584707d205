"""Test of served flows: a waiting run is suspended, and the scheduled `collect` resumes it with its answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from pollux_flows import ResultEnvelope
from pollux_flows.flows import asubmit
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import ANSWERS, PROMPTS, Saved, events_of, jobs_home, no_jobs_are_left, saved
from tests.prefect.test_served import finished, started, until

__all__ = ["jobs_home", "no_jobs_are_left", "saved"]

SERVE = """
from prefect import serve
from prefect.schedules import Interval
from pollux_flows.flows import await_for, collect, deferred
serve(
    collect.to_deployment("collect", schedule=Interval(15, active=False)),
    deferred.to_deployment("deferred"),
    await_for.to_deployment("await-for"),
)
"""
MOCK = {"provider": "openai", "model": "gpt-4.1-mini", "use_mock": True}


async def is_suspended(run: FlowRun) -> bool:
    async with get_client() as client:
        seen = await client.read_flow_run(run.id)
    assert seen.state is not None
    assert not seen.state.is_final(), seen.state
    return seen.state.is_paused()


@contextmanager
def scheduling_server(folder: Path) -> Iterator[None]:
    """Start a server as users do. That of the other tests has no scheduler."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'server.db'}",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while not _answers(f"http://127.0.0.1:{port}/api/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


async def _switch_on(deployment_id: UUID) -> None:
    async with get_client() as client:
        (schedule,) = await client.read_deployment_schedules(deployment_id)
        await client.update_deployment_schedule(deployment_id, schedule.id, active=True)


async def _completed_runs(deployment_id: UUID) -> list[FlowRun]:
    async with get_client() as client:
        return await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Completed"]))),
        )


@pytest.mark.timeout(600)  # with the start of two servers and nine processes
async def test_the_schedule_alone_collects_a_batch_and_completes_a_suspended_run(
    saved: Saved, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Resumed runs of `deferred` and of `wait_for` submit nothing a second time."""
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    with scheduling_server(tmp_path):
        try:
            await _collected_on_schedule(saved, simulator)
        finally:
            # The worker of this process would go on to send the events of later tests to this server.
            await cast(Any, EventsWorker.drain_all(timeout=5))


async def _collected_on_schedule(saved: Saved, simulator: Simulator) -> None:
    simulator.batch_s = 3600
    provider = await saved("openai")
    name = await asubmit(["earlier"], provider)
    server = started(SERVE)
    try:

        async def deployed() -> Any:
            async with get_client() as client:
                found = {each.name: each.id for each in await client.read_deployments()}
            return found if {"deferred", "collect", "await-for"} <= found.keys() else None

        ids = await until(deployed, within_s=120)
        picked = provider.reference
        async with get_client() as client:
            runs = [
                await client.create_flow_run_from_deployment(
                    ids["deferred"], parameters={"prompts": PROMPTS, "provider": picked}
                ),
                await client.create_flow_run_from_deployment(ids["await-for"], parameters={"job": name}),
                await client.create_flow_run_from_deployment(
                    ids["deferred"], parameters={"prompts": PROMPTS, "provider": MOCK}
                ),
            ]
        for run in runs:
            await until(partial(is_suspended, run), within_s=120)
        assert len(simulator.batches) == 2
        simulator.batch_s = 0
        for batch in simulator.batches:
            batch.takes_s = 0.0
        await _switch_on(ids["collect"])
        ended = [await until(partial(finished, run), within_s=120) for run in runs]
        # `collect` may still be at work on what follows the resumption.
        collected = await until(partial(_completed_runs, ids["collect"]), within_s=60)
        assert all(run.auto_scheduled for run in collected)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    envelopes: list[ResultEnvelope] = [await run.state.aresult() for run in ended]
    assert [envelope.answers for envelope in envelopes] == [ANSWERS, ["Simulated answer to: earlier"], ANSWERS]
    assert len(simulator.batches) == 2
    assert await events_of(name) == ["submitted", "collected"]
