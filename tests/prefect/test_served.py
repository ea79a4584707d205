"""Served: a flow that waits on a server for somebody to start it, as a person does from the UI."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.simulator import Fault, Simulator

ROOT = Path(__file__).parents[2]
SERVE = """
from prefect import serve
from pollux_flows.flows import abroadcast, realtime
serve(realtime.to_deployment("served"), abroadcast.to_deployment("served"))
"""


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment, cwd=ROOT, text=True)


async def until(happened: Callable[[], Any], within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := await happened()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    return found


async def finished(run: FlowRun) -> FlowRun | None:
    async with get_client() as client:
        seen = await client.read_flow_run(run.id)
    return seen if seen.state and seen.state.is_final() else None


@pytest.mark.timeout(150)
async def test_a_served_flow_is_started_from_the_ui(provider: PolluxProvider) -> None:
    """With a saved provider picked from the form, and with one typed in; both forms of a flow can be served."""
    document = await provider.asave("picked-in-the-ui", overwrite=True)
    server = started(SERVE)
    try:

        async def deployed() -> Any:
            async with get_client() as client:
                deployments = [each for each in await client.read_deployments() if each.name == "served"]
            found = {str(each.entrypoint): each.id for each in deployments}
            return found if len(found) >= 2 else None

        ids = await until(deployed)
        realtime_id = next(found for name, found in ids.items() if "realtime" in name)
        broadcast_id = next(found for name, found in ids.items() if "broadcast" in name)
        picked = {"$ref": {"block_document_id": str(document)}}
        texts = [{"source_type": "text", "text": text} for text in ("One.", "Two.")]
        async with get_client() as client:
            runs = [
                await client.create_flow_run_from_deployment(
                    realtime_id, parameters={"prompt": "Who?", "provider": picked}
                ),
                await client.create_flow_run_from_deployment(
                    broadcast_id, parameters={"prompts": ["Who?"], "sources": texts, "provider": picked}
                ),
                await client.create_flow_run_from_deployment(
                    realtime_id,
                    parameters={
                        "prompt": "Who?",
                        "provider": {"provider": "openai", "model": "gpt-4.1-mini", "use_mock": True},
                    },
                ),
            ]
        ended = [await until(partial(finished, run)) for run in runs]
        assert [str(run.state and run.state.type.value) for run in ended] == ["COMPLETED"] * 3
        assert ended[0].name == "Who? · realtime · gpt-4.1-mini"
        envelope = await ended[0].state.aresult()
        assert isinstance(envelope, ResultEnvelope)
        assert envelope.answers == ["Simulated answer to: Who?"]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.mark.timeout(90)
async def test_ctrl_c_in_a_sync_flow_ends_the_run(provider: PolluxProvider, simulator: Simulator) -> None:
    """The server learns that it is over; nothing is left Running."""
    simulator.fail(Fault(kind="hang"), times=None)
    await provider.asave("hanging", overwrite=True)
    program = (
        "from pollux_flows.flows import realtime; from pollux_flows.blocks import PolluxProvider; "
        "realtime('Stop me.', PolluxProvider.load('hanging'))"
    )
    process = started(program)

    async def asked() -> bool:
        return any(request.operation == "generate" for request in simulator.requests)

    await until(asked)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    async with get_client() as client:
        newest = await client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=10)
    run = next(run for run in newest if run.parameters.get("prompt") == "Stop me.")
    ended = await until(lambda: finished(run), within_s=10)
    assert ended.state.is_crashed() or ended.state.is_cancelled()
