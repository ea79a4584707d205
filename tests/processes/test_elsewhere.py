"""Tests of tasks that run in processes of their own, as on Dask or Ray: each call has its own answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner

from pollux_flows import ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.config import Target
from pollux_flows.flows import realtime
from pollux_flows.simulator import Simulator
from pollux_flows.tasks import execute, plan, request
from tests.prefect.test_paid_once import PROMPTS, read_prompts

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")


def make_task_runner(count: int) -> Any:
    """Return a task runner, untyped because Prefect types its futures too narrowly for flows."""
    return ProcessPoolTaskRunner(max_workers=count)


@task
def ask(prompt: str, provider: PolluxProvider) -> tuple[str, str, int]:
    envelope: ResultEnvelope = realtime(prompt, provider)
    return envelope.text, envelope.diagnostics["raw_responses"][0]["response_id"], os.getpid()


@pytest.mark.timeout(300)
def test_tasks_in_other_processes_get_an_answer_for_each_call(provider: PolluxProvider, simulator: Simulator) -> None:
    """A prompt that is asked three times gets three answers, and a retry reuses each of them once."""
    provider.save("elsewhere", overwrite=True)
    attempts: list[list[tuple[str, str, int]]] = []

    @flow(retries=1, retry_delay_seconds=0, task_runner=make_task_runner(2))
    def parent() -> None:
        futures = [ask.submit(prompt, provider) for prompt in ("same", "same", "same", "other")]
        attempts.append([future.result() for future in futures])
        if len(attempts) == 1:
            raise RuntimeError("something else went wrong")

    parent()
    first, second = attempts
    assert [text for text, _, _ in first] == [f"Simulated answer to: {p}" for p in ("same", "same", "same", "other")]
    assert len({answer for _, answer, _ in first}) == 4
    assert sorted(answer for _, answer, _ in second) == sorted(answer for _, answer, _ in first)
    assert sorted(read_prompts(simulator)) == ["other", "same", "same", "same"]
    assert os.getpid() not in {process for _, _, process in first}


@pytest.mark.timeout(300)
async def test_the_execute_task_runs_in_another_process(provider: PolluxProvider, simulator: Simulator) -> None:
    """The task gets only documents, and finds its provider by name."""
    await provider.asave("elsewhere-by-name", overwrite=True)

    @flow(task_runner=make_task_runner(2))
    async def parent() -> list[str]:
        target = Target(provider="openai", model=provider.model, base_url=provider.base_url)
        planned = await plan(await request(PROMPTS, target))
        futures = [execute.submit(part, "elsewhere-by-name") for part in planned.parts(1)]
        outcomes = [outcome for future in futures for outcome in await asyncio.to_thread(cast(Any, future.result))]
        return [outcome.answer.text for outcome in outcomes if outcome.answer]

    assert await parent() == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]
    assert sorted(read_prompts(simulator)) == sorted(PROMPTS)
