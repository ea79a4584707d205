"""Served: a run that waits for a batch is suspended, and whoever collects it resumes it in another process."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from pollux_flows import ResultEnvelope
from pollux_flows.flows import acollect, asubmit
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import ANSWERS, PROMPTS, Saved, events_of, jobs_home, no_jobs_are_left, saved
from tests.prefect.test_served import finished, started, until

__all__ = ["jobs_home", "no_jobs_are_left", "saved"]

SERVE = """
from prefect import serve
from pollux_flows.flows import await_for, deferred
serve(deferred.to_deployment("deferred-served"), await_for.to_deployment("deferred-served"))
"""
MOCK = {"provider": "openai", "model": "gpt-4.1-mini", "use_mock": True}


async def suspended(run: FlowRun) -> bool:
    async with get_client() as client:
        seen = await client.read_flow_run(run.id)
    assert seen.state is not None
    assert not seen.state.is_final(), seen.state
    return seen.state.is_paused()


@pytest.mark.timeout(180)
async def test_a_run_is_suspended_while_the_provider_works(
    saved: Saved, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either form; and nothing is handed in twice when it starts again. The simulator's batches outlive a run."""
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    simulator.batch_s = 3600
    provider = await saved("openai")
    document = provider._block_document_id
    name = await asubmit(["earlier"], provider)
    server = started(SERVE)
    try:

        async def deployed() -> Any:
            async with get_client() as client:
                found = [each for each in await client.read_deployments() if each.name == "deferred-served"]
            return {str(each.entrypoint): each.id for each in found} if len(found) == 2 else None

        ids = await until(deployed)
        deferred_id = next(found for entry, found in ids.items() if "deferred.py" in entry)
        wait_id = next(found for entry, found in ids.items() if "wait_for.py" in entry)
        picked = {"$ref": {"block_document_id": str(document)}}
        async with get_client() as client:
            runs = [
                await client.create_flow_run_from_deployment(
                    deferred_id, parameters={"prompts": PROMPTS, "provider": picked}
                ),
                await client.create_flow_run_from_deployment(wait_id, parameters={"job": name}),
                await client.create_flow_run_from_deployment(
                    deferred_id, parameters={"prompts": PROMPTS, "provider": MOCK}
                ),
            ]
        for run in runs:
            await until(partial(suspended, run))
        assert len(simulator.batches) == 2
        simulator.batch_s = 0
        for batch in simulator.batches:
            batch.takes_s = 0.0
        assert all(row.collected for row in (await acollect()).rows)
        ended = [await until(partial(finished, run)) for run in runs]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    envelopes: list[ResultEnvelope] = [await run.state.aresult() for run in ended]
    assert [envelope.answers for envelope in envelopes] == [ANSWERS, ["Simulated answer to: earlier"], ANSWERS]
    assert len(simulator.batches) == 2
    assert await events_of(name) == ["submitted", "collected"]
