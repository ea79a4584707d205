"""Tests of retried runs: a retry asks only prompts without an answer, and pays for none twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun

from pollux_flows import APIError, ResultEnvelope
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import afan_out, broadcast, fan_out, realtime
from pollux_flows.simulator import Fault, Logged, Simulator
from pollux_flows.source import Source
from pollux_flows.tasks import execute, extract, plan, request
from tests.budgets import SHORT, find_worst_case
from tests.prefect.runs import find_newest_run, read_pages, wait_until

PROMPTS = ["Who was it?", "Where was it?", "When was it?"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def failing_once(simulator: Simulator) -> Iterator[Simulator]:
    """Refuse the second prompt once, and check that only this prompt is asked twice."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    yield simulator
    assert sorted(read_prompts(simulator)) == sorted([*PROMPTS, "Where was it?"])


def read_prompts(simulator: Simulator) -> list[str]:
    return [read_prompt(entry) for entry in simulator.requests if entry.operation == "generate"]


def read_prompt(entry: Logged) -> str:
    text: str = (
        entry.body["input"] if isinstance(entry.body["input"], str) else entry.body["input"][-1]["content"][-1]["text"]
    )
    return text


@pytest.mark.usefixtures("failing_once")
def test_a_retried_flow_reuses_its_answers(provider: PolluxProvider) -> None:
    envelope = fan_out.with_options(retries=1, retry_delay_seconds=0)(PROMPTS, provider)
    assert envelope.status == "ok"
    assert [call["reused"] for call in envelope.diagnostics["calls"]] == ["run", None, "run"]


@pytest.mark.usefixtures("failing_once")
def test_a_retried_parent_reuses_the_answers_of_its_sub_flow(provider: PolluxProvider) -> None:
    """Prefect gives the sub-flow of the second attempt another run."""

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    assert parent().metrics["n_reused"] == 2


@pytest.mark.usefixtures("failing_once")
def test_a_retried_grandparent_reuses_the_answers_of_nested_sub_flows(provider: PolluxProvider) -> None:
    @flow
    def between() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> ResultEnvelope:
        return between()

    assert parent().metrics["n_reused"] == 2


@pytest.mark.usefixtures("failing_once")
def test_a_retried_task_reuses_the_answers_of_the_flow_that_it_calls(provider: PolluxProvider) -> None:
    @task(retries=1, retry_delay_seconds=0)
    def step() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    @flow
    def parent() -> ResultEnvelope:
        return step()

    assert parent().metrics["n_reused"] == 2


def test_two_sub_flows_with_one_prompt_get_two_answers(provider: PolluxProvider, simulator: Simulator) -> None:
    """This holds as well when one of them is retried and the other is not."""

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> list[ResultEnvelope]:
        first = fan_out(PROMPTS[:2], provider)
        if len(read_prompts(simulator)) == 2:
            simulator.fail(Fault(status=400), contains="Where", times=1)
        return [first, fan_out(PROMPTS[:2], provider)]

    first, second = parent()
    assert len(read_prompts(simulator)) == 5
    ids = [[raw["response_id"] for raw in each.diagnostics["raw_responses"]] for each in (first, second)]
    assert len({*ids[0], *ids[1]}) == 4


def test_nested_sub_flows_with_one_prompt_get_an_answer_each(provider: PolluxProvider, simulator: Simulator) -> None:
    @flow
    def between() -> ResultEnvelope:
        return realtime(PROMPTS[0], provider)

    @flow
    def parent() -> list[int]:
        return [between().metrics["n_reused"] for _ in range(3)]

    assert parent() == [0, 0, 0]
    assert len(read_prompts(simulator)) == 3


@pytest.mark.usefixtures("failing_once")
async def test_a_retried_custom_flow_reuses_the_answers_of_its_tasks(provider: PolluxProvider) -> None:
    """The tasks know the run that they are part of."""
    await provider.asave("for-a-flow-that-is-retried", overwrite=True)

    @flow(retries=1, retry_delay_seconds=0)
    async def custom_flow() -> ResultEnvelope:
        config = await provider.config()
        planned = await plan(await request(PROMPTS, config.target))
        envelope = await extract(planned, await execute(planned, "for-a-flow-that-is-retried"))
        if envelope.errors:
            raise RuntimeError("not all of it was answered")
        return envelope

    assert (await custom_flow()).metrics["n_reused"] == 2


async def test_three_equal_calls_in_a_flow_are_asked_three_times_and_its_retry_asks_none(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    attempts = []

    @flow(retries=1, retry_delay_seconds=0)
    async def parent() -> list[ResultEnvelope]:
        envelopes = [await afan_out(PROMPTS[:1], provider) for _ in range(3)]
        attempts.append(len(read_prompts(simulator)))
        if len(attempts) == 1:
            raise RuntimeError("something else went wrong")
        return envelopes

    await parent()
    assert attempts == [3, 3]


def test_a_new_run_with_equal_parameters_asks_again_unless_it_may_reuse_answers(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    first = fan_out(PROMPTS, provider)
    assert fan_out(PROMPTS, provider).metrics["n_reused"] == 0
    assert len(read_prompts(simulator)) == 6
    envelope = fan_out(PROMPTS, provider, reuse="always", max_age=60)
    assert len(read_prompts(simulator)) == 6
    assert envelope.metrics["saved_usd"] == first.metrics["cost_usd"] > 0
    assert realtime(PROMPTS[0], provider, reuse="always").text == first.answers[0]


async def test_the_page_shows_reused_answers_and_their_saved_cost(provider: PolluxProvider) -> None:
    await afan_out(PROMPTS, provider)
    await afan_out(PROMPTS, provider, reuse="always")
    (page,) = await read_pages(await find_newest_run("fan-out"))
    assert "| Reused | 3 not asked again, which saved $0.00" in str(page.data)


def test_the_tasks_of_a_run_share_its_budget(provider: PolluxProvider, simulator: Simulator) -> None:
    sequential = provider.model_copy(update={"request_concurrency": 1})
    cost = realtime(PROMPTS[0], sequential).metrics["cost_usd"]
    budget = 1.5 * cost + asyncio.run(_worst_case(sequential))
    envelope = fan_out(PROMPTS, sequential, options=SHORT, max_cost_usd=budget, on_partial="complete")
    kinds = [failure.kind for failure in envelope.errors or [] if failure]
    assert kinds == ["budget"]
    assert len(read_prompts(simulator)) == 3


async def _worst_case(provider: PolluxProvider) -> float:
    return await find_worst_case(await provider.config(), max(PROMPTS, key=len), of=len(PROMPTS))


async def test_a_task_run_has_one_call_or_a_chunk_of_calls(provider: PolluxProvider) -> None:
    """A few calls have a task run each, named by their prompt, unless `calls_per_task` is set."""
    assert await _read_task_names(provider, PROMPTS) == {f"{n}. {prompt}" for n, prompt in enumerate(PROMPTS, 1)}
    assert await _read_task_names(provider, PROMPTS, calls_per_task=2) == {"2 calls, 1 to 2", "3. When was it?"}
    many = [f"p{n}" for n in range(40)]
    assert await _read_task_names(provider, many) == {f"4 calls, {n} to {n + 3}" for n in range(1, 40, 4)}


async def _read_task_names(provider: PolluxProvider, prompts: list[str], **more: Any) -> set[str]:
    await afan_out(prompts, provider, **more)
    run = await find_newest_run("fan-out")
    parts = -(-len(prompts) // more.get("calls_per_task", 1 if len(prompts) <= 32 else 4))
    tasks = await wait_until(partial(_read_ended_tasks, run, parts + 3))
    return {each.name for each in tasks} - {"request", "plan", "extract"}


async def _read_ended_tasks(run: FlowRun, count: int) -> list[TaskRun] | None:
    """Return the task runs, once the server knows that all of them have ended."""
    async with get_client() as client:
        tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    ended = [each for each in tasks if each.state and each.state.is_final()]
    return tasks if len(ended) == count else None


async def test_a_failed_call_is_a_failed_task_run(provider: PolluxProvider, simulator: Simulator) -> None:
    """The task run is named by its prompt."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError):
        await afan_out(PROMPTS, provider)
    tasks = await wait_until(partial(_read_ended_tasks, await find_newest_run("fan-out"), 6))
    (failed,) = [each for each in tasks if each.state.is_failed()]
    assert failed.name == "2. Where was it?"
    assert "not now" in failed.state.message


def test_a_retried_broadcast_asks_only_unanswered_prompts(provider: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(status=400), contains="Bob")
    sources = [Source.from_text(f"{name} was there.", identifier=name) for name in ("Ada", "Bob", "Cay")]
    envelopes = broadcast.with_options(retries=1, retry_delay_seconds=0)(PROMPTS[:1], sources, provider)
    assert [envelope.metrics["n_reused"] for envelope in envelopes] == [1, 0, 1]
    assert len(read_prompts(simulator)) == 4
