"""Tests of flows that are served to a Prefect server, where people and schedules start, cancel and retry their runs."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling, Scheduled
from pydantic import SecretStr

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import asubmit
from pollux_flows.simulator import Fault, Simulator
from tests.prefect.counting import caching_operations, count_answers, count_calls
from tests.prefect.jobs import ANSWERS, PROMPTS, read_job_events
from tests.prefect.runs import read_if_ended, read_pages, wait_until
from tests.processes.conftest import Deployments, start_program

pytestmark = pytest.mark.timeout(300)
MOCK = {"provider": "openai", "model": "gpt-4.1-mini", "use_mock": True}


async def start_run(deployment: UUID, **parameters: Any) -> FlowRun:
    """Start a run of a deployment, as the button in the UI does."""
    async with get_client() as client:
        return await client.create_flow_run_from_deployment(deployment, parameters=parameters)


async def wait_for_end(run: FlowRun) -> Any:
    return await wait_until(partial(read_if_ended, run))


async def retry(run: FlowRun) -> Any:
    """Retry a run, as the button in the UI does, and return it once it has ended again."""
    async with get_client() as client:
        before = await client.read_flow_run(run.id)
        state: Any = Scheduled(name="AwaitingRetry", message="Retry from the UI")
        await client.set_flow_run_state(run.id, state, force=True)

    async def read_if_retried() -> FlowRun | None:
        ended = await read_if_ended(run)
        return ended if ended is not None and ended.run_count > before.run_count else None

    return await wait_until(read_if_retried)


async def test_flows_are_started_from_the_ui(served: Deployments, provider: PolluxProvider) -> None:
    """With a saved provider that is picked in the form, and with one that is typed in; in the sync and async form."""
    await provider.asave("picked-in-the-ui", overwrite=True)
    picked = provider.reference
    texts = [{"source_type": "text", "text": text} for text in ("One.", "Two.")]
    runs = [
        await start_run(served["realtime"], prompt="Who?", provider=picked),
        await start_run(served["broadcast"], prompts=["Who?"], sources=texts, provider=picked),
        await start_run(served["realtime"], prompt="Who?", provider=MOCK),
    ]
    ended = [await wait_for_end(run) for run in runs]
    assert [str(run.state.type.value) for run in ended] == ["COMPLETED"] * 3
    assert ended[0].name == "Who? · realtime · gpt-4.1-mini"
    envelope = await ended[0].state.aresult()
    assert isinstance(envelope, ResultEnvelope)
    assert envelope.answers == ["Simulated answer to: Who?"]


async def test_a_run_of_a_deployment_reads_no_file_of_its_worker(
    served: Deployments, provider: PolluxProvider, simulator: Simulator
) -> None:
    await provider.asave("picked-in-the-ui", overwrite=True)
    environ = {"source_type": "file", "uri": "/proc/self/environ"}
    ended = await wait_for_end(
        await start_run(served["realtime"], prompt="What is it?", provider=provider.reference, sources=[environ])
    )
    assert ended.state.is_failed()
    assert "may not be read" in ended.state.message
    assert simulator.requests == []


async def test_a_retry_of_a_failed_run_asks_what_has_no_answer(
    served: Deployments, provider: PolluxProvider, simulator: Simulator
) -> None:
    """The second attempt runs in another process. Each attempt leaves a page."""
    await provider.asave("retried-from-the-ui", overwrite=True)
    simulator.fail(Fault(status=400, message="not now"), contains="three")
    run = await start_run(served["fan-out"], prompts=PROMPTS, provider=provider.reference)
    failed = await wait_for_end(run)
    assert failed.state.is_failed()
    assert "1 of 4 prompts were not answered" in failed.state.message
    ended = await retry(run)
    assert ended.state.is_completed()
    assert (await ended.state.aresult()).metrics["n_reused"] == 3
    assert count_calls(simulator) == 5
    assert len([page for page in await read_pages(run) if page.type != "progress"]) == 2


async def test_a_retry_of_a_killed_run_asks_what_has_no_answer(
    served: Deployments, serving: int, provider: PolluxProvider, simulator: Simulator
) -> None:
    """The process of the run is killed half way by SIGKILL, and another one goes on from there."""
    simulator.latency_s = 0.1
    provider.request_concurrency = 2
    await provider.asave("killed-half-way", overwrite=True)
    prompts = [f"Question {n}?" for n in range(20)]
    run = await start_run(served["fan-out"], prompts=prompts, provider=provider.reference)

    async def is_half_way() -> bool:
        return count_calls(simulator) >= 8

    await wait_until(is_half_way)
    for process in child_processes(serving):
        os.kill(process, signal.SIGKILL)
    crashed = await wait_for_end(run)
    assert crashed.state.is_crashed()
    ended = await retry(run)
    assert ended.state.is_completed()
    envelope = await ended.state.aresult()
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in prompts]
    assert envelope.metrics["n_reused"] >= 6
    assert count_calls(simulator) <= len(prompts) + 2


def child_processes(process: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


async def test_a_cancelled_run_ends_within_seconds_and_saves_what_it_paid_for(
    served: Deployments, provider: PolluxProvider, simulator: Simulator
) -> None:
    """Its log has one warning, which says so. A retry asks only the other prompts."""
    provider.request_concurrency = 2
    await provider.asave("cancelled", overwrite=True)
    prompts = [f"Question {n}?" for n in range(20)]
    simulator.fail(Fault(kind="slow", delay_s=60), contains="Question 9?", times=2)
    simulator.fail(Fault(kind="slow", delay_s=60), contains="Question 10?", times=2)
    run = await start_run(served["fan-out"], prompts=prompts, provider=provider.reference)

    async def is_stuck() -> bool:
        return count_calls(simulator) >= 11

    await wait_until(is_stuck)
    async with get_client() as client:
        await client.set_flow_run_state(run.id, cast(Any, Cancelling()), force=True)
        ended = await wait_until(partial(read_if_ended, run), within_s=30)
    assert ended.state.is_cancelled()
    assert await wait_until(partial(read_warnings, run)) == [
        "Cancelled with 9 of 20 calls answered. These answers are saved: a retry asks only the others."
    ]
    simulator.reset()
    ended = await retry(run)
    assert ended.state.is_completed()
    assert (await ended.state.aresult()).metrics["n_reused"] == 9


async def read_warnings(run: FlowRun) -> list[str]:
    async with get_client() as client:
        logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return [log.message for log in logs if log.level == logging.WARNING]


async def test_a_sync_flow_in_a_script_ends_with_ctrl_c(provider: PolluxProvider, simulator: Simulator) -> None:
    """The server learns of the end: no run stays Running."""
    simulator.fail(Fault(kind="hang"), times=None)
    await provider.asave("hanging", overwrite=True)
    program = (
        "from pollux_flows.flows import realtime; from pollux_flows.blocks import PolluxProvider; "
        "realtime('Stop me.', PolluxProvider.load('hanging'))"
    )

    async def is_asked() -> bool:
        return any(request.operation == "generate" for request in simulator.requests)

    with start_program(program):
        await wait_until(is_asked)
    async with get_client() as client:
        newest = await client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=10)
    run = next(run for run in newest if run.parameters.get("prompt") == "Stop me.")
    ended = await wait_until(partial(read_if_ended, run), within_s=10)
    assert ended.state.is_crashed() or ended.state.is_cancelled()


async def test_a_nightly_run_pays_for_no_answer_twice(
    served: Deployments, world: tuple[Simulator, str], simulator: Simulator
) -> None:
    """Of two nights with cache="auto", the second fails half-way and is retried as from the UI."""
    gemini = PolluxProvider(
        provider="gemini",
        model="gemini-2.5-flash",
        api_key=SecretStr("gm-nightly"),
        base_url=simulator.base_url("gemini", origin=world[1]),
    )
    await gemini.asave("for-the-night", overwrite=True)
    sources = [{"source_type": "text", "text": "i" * 40_000}]
    start_night = partial(
        start_run, served["fan-out"], prompts=PROMPTS, provider=gemini.reference, sources=sources, cache="auto"
    )

    ended = await wait_for_end(await start_night())
    assert ended.state.is_completed()
    assert caching_operations(simulator) == ["cache.create", "cache.delete"]
    assert count_answers(simulator) == 4
    simulator.fail(Fault(status=400, message="not now"), contains="three")
    second = await start_night()
    ended = await wait_for_end(second)
    assert ended.state.is_failed()
    assert caching_operations(simulator) == 2 * ["cache.create", "cache.delete"]
    ended = await retry(second)
    assert ended.state.is_completed()
    envelope = await ended.state.aresult()
    assert envelope.metrics["n_reused"] == 3
    assert "no two prompts" in envelope.diagnostics["cache"]["why"]
    assert caching_operations(simulator) == 2 * ["cache.create", "cache.delete"]
    assert count_answers(simulator) == 8


async def test_the_schedule_of_collect_completes_suspended_runs(
    served: Deployments, provider: PolluxProvider, simulator: Simulator
) -> None:
    """Runs of `deferred` and of `wait_for` are resumed with their answers, and submit nothing a second time."""
    simulator.batch_s = 3600
    await provider.asave("deferred-served", overwrite=True)
    name = await asubmit(["earlier"], await PolluxProvider.named("deferred-served"))
    runs = [
        await start_run(served["deferred"], prompts=PROMPTS, provider=provider.reference),
        await start_run(served["wait-for"], job=name),
        await start_run(served["deferred"], prompts=PROMPTS, provider=MOCK),
    ]
    for run in runs:
        await wait_until(partial(is_suspended, run))
    assert len(simulator.batches) == 2
    simulator.batch_s = 0
    for batch in simulator.batches:
        batch.takes_s = 0.0
    await set_schedule(served["collect"], active=True)
    try:
        ended = [await wait_for_end(run) for run in runs]
        # `collect` may still be at work on what follows the resumption.
        collected = await wait_until(partial(read_completed_runs, served["collect"]), within_s=60)
    finally:
        await set_schedule(served["collect"], active=False)
    assert all(run.auto_scheduled for run in collected)
    envelopes: list[ResultEnvelope] = [await run.state.aresult() for run in ended]
    assert [envelope.answers for envelope in envelopes] == [ANSWERS, ["Simulated answer to: earlier"], ANSWERS]
    assert len(simulator.batches) == 2
    assert await read_job_events(name) == ["submitted", "collected"]


async def is_suspended(run: FlowRun) -> bool:
    async with get_client() as client:
        found = await client.read_flow_run(run.id)
    assert found.state is not None
    assert not found.state.is_final(), found.state
    return found.state.is_paused()


async def set_schedule(deployment: UUID, *, active: bool) -> None:
    async with get_client() as client:
        (schedule,) = await client.read_deployment_schedules(deployment)
        await client.update_deployment_schedule(deployment, schedule.id, active=active)


async def read_completed_runs(deployment: UUID) -> list[FlowRun]:
    async with get_client() as client:
        return await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Completed"]))),
        )
