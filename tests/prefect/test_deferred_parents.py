"""Tests of deferred sub-flows whose parent is retried: each finds its own batch, and none is submitted twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from prefect import flow, task

from pollux_flows import ResultEnvelope, Source
from pollux_flows.flows import adeferred
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import SaveProvider, jobs_home, no_jobs_are_left, save_provider

__all__ = ["jobs_home", "no_jobs_are_left", "save_provider"]

TOPICS = ["ants", "bees", "cats", "bees"]


@pytest.mark.timeout(180)
async def test_each_sub_flow_of_a_retried_parent_finds_its_batch(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The retry calls the sub-flows in another order. Sub-flows with equal prompts have a batch each."""
    provider = await save_provider("openai")
    dice, attempts = random.Random(7), [0]  # noqa: S311 (no secret)

    async def ask(topic: str) -> tuple[str, ResultEnvelope]:
        await asyncio.sleep(dice.random() / 20)
        return topic, await adeferred([topic], provider)

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> list[tuple[str, ResultEnvelope]]:
        attempts[0] += 1
        topics = TOPICS if attempts[0] == 1 else [*reversed(TOPICS)]
        found = await asyncio.gather(*map(ask, topics))
        if attempts[0] == 1:
            raise RuntimeError("something else went wrong")
        return found

    found = await parent()
    assert [(topic, envelope.answers) for topic, envelope in found] == [
        (topic, [f"Simulated answer to: {topic}"]) for topic in reversed(TOPICS)
    ]
    assert len(simulator.batches) == len(TOPICS)
    ids = [envelope.diagnostics["raw_responses"][0]["response_id"] for _, envelope in found]
    assert len(set(ids)) == len(TOPICS)


@pytest.mark.timeout(120)
async def test_a_retry_with_other_prompts_submits_another_batch(
    save_provider: SaveProvider, simulator: Simulator
) -> None:
    """The retry does not get the answers of the first attempt."""
    provider, attempts = await save_provider("openai"), [0]

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> ResultEnvelope:
        attempts[0] += 1
        envelope = await adeferred([f"question {attempts[0]}"], provider)
        if attempts[0] == 1:
            raise RuntimeError("something else went wrong")
        return envelope

    assert (await parent()).answers == ["Simulated answer to: question 2"]
    assert len(simulator.batches) == 2


@pytest.mark.timeout(120)
async def test_a_retry_with_a_changed_file_submits_no_second_batch(
    save_provider: SaveProvider, simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answers are about the submitted content, and the log says so."""
    provider, attempts, file = await save_provider("openai"), [0], tmp_path / "report.txt"

    @task  # Prefect does not reuse the result of a flow that a task calls
    async def step() -> ResultEnvelope:
        return await adeferred(["what?"], provider, [Source.from_file(str(file))])

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> ResultEnvelope:
        attempts[0] += 1
        file.write_text(f"version {attempts[0]}")
        envelope = await step()
        if attempts[0] == 1:
            raise RuntimeError("something else went wrong")
        return envelope

    assert (await parent()).status == "ok"
    assert len(simulator.batches) == 1
    assert "A source has changed since" in caplog.text
