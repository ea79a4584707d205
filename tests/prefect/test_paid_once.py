"""Paid once: whatever makes a run start again, it asks only what is not answered."""

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
    """A provider that does not like the second prompt, once."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    yield simulator
    assert sorted(asked(simulator)) == sorted([*PROMPTS, "Where was it?"])


def asked(simulator: Simulator) -> list[str]:
    return [prompt_of(entry) for entry in simulator.requests if entry.operation == "generate"]


def prompt_of(entry: Logged) -> str:
    text: str = (
        entry.body["input"] if isinstance(entry.body["input"], str) else entry.body["input"][-1]["content"][-1]["text"]
    )
    return text


@pytest.mark.usefixtures("failing_once")
def test_a_flow_that_prefect_retries(provider: PolluxProvider) -> None:
    """Its answers are those of its run, whichever attempt asked."""
    envelope = fan_out.with_options(retries=1, retry_delay_seconds=0)(PROMPTS, provider)
    assert envelope.status == "ok"
    assert [call["reused"] for call in envelope.diagnostics["calls"]] == ["run", None, "run"]


@pytest.mark.usefixtures("failing_once")
def test_a_parent_that_prefect_retries(provider: PolluxProvider) -> None:
    """Prefect gives its sub-flow a new run; the answers are found all the same."""

    @flow(retries=1, retry_delay_seconds=0)
    def mine() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    assert mine().metrics["n_reused"] == 2


@pytest.mark.usefixtures("failing_once")
def test_a_grandparent_that_prefect_retries(provider: PolluxProvider) -> None:
    """However deep."""

    @flow
    def between() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    @flow(retries=1, retry_delay_seconds=0)
    def mine() -> ResultEnvelope:
        return between()

    assert mine().metrics["n_reused"] == 2


@pytest.mark.usefixtures("failing_once")
def test_a_task_that_prefect_retries(provider: PolluxProvider) -> None:
    """And that calls a flow."""

    @task(retries=1, retry_delay_seconds=0)
    def step() -> ResultEnvelope:
        return fan_out(PROMPTS, provider)

    @flow
    def mine() -> ResultEnvelope:
        return step()

    assert mine().metrics["n_reused"] == 2


def test_the_same_asked_by_two_sub_flows(provider: PolluxProvider, simulator: Simulator) -> None:
    """Are two questions, also when one of them is retried and the other is not."""

    @flow(retries=1, retry_delay_seconds=0)
    def mine() -> list[ResultEnvelope]:
        first = fan_out(PROMPTS[:2], provider)
        if len(asked(simulator)) == 2:
            simulator.fail(Fault(status=400), contains="Where", times=1)
        return [first, fan_out(PROMPTS[:2], provider)]

    first, second = mine()
    assert len(asked(simulator)) == 5
    ids = [[raw["response_id"] for raw in each.diagnostics["raw_responses"]] for each in (first, second)]
    assert len({*ids[0], *ids[1]}) == 4


def test_the_same_asked_by_flows_within_flows(provider: PolluxProvider, simulator: Simulator) -> None:
    """Each has its own answer."""

    @flow
    def between() -> ResultEnvelope:
        return realtime(PROMPTS[0], provider)

    @flow
    def mine() -> list[int]:
        return [between().metrics["n_reused"] for _ in range(3)]

    assert mine() == [0, 0, 0]
    assert len(asked(simulator)) == 3


@pytest.mark.usefixtures("failing_once")
async def test_a_flow_of_ones_own_that_prefect_retries(provider: PolluxProvider) -> None:
    """The tasks know the run that they are part of."""
    await provider.asave("for-a-flow-that-is-retried", overwrite=True)

    @flow(retries=1, retry_delay_seconds=0)
    async def mine() -> ResultEnvelope:
        config = await provider.config()
        planned = await plan(await request(PROMPTS, config.target))
        envelope = await extract(planned, await execute(planned, "for-a-flow-that-is-retried"))
        if envelope.errors:
            raise RuntimeError("not all of it was answered")
        return envelope

    assert (await mine()).metrics["n_reused"] == 2


async def test_the_same_asked_three_times_within_a_run(provider: PolluxProvider, simulator: Simulator) -> None:
    """That is three questions; and again when the run is retried, no question at all."""
    attempts = []

    @flow(retries=1, retry_delay_seconds=0)
    async def mine() -> list[ResultEnvelope]:
        envelopes = [await afan_out(PROMPTS[:1], provider) for _ in range(3)]
        attempts.append(len(asked(simulator)))
        if len(attempts) == 1:
            raise RuntimeError("something else went wrong")
        return envelopes

    await mine()
    assert attempts == [3, 3]


def test_a_custom_run_of_the_same_parameters(provider: PolluxProvider, simulator: Simulator) -> None:
    """It is a new run, and asks again, unless it is told to take what is there."""
    first = fan_out(PROMPTS, provider)
    assert fan_out(PROMPTS, provider).metrics["n_reused"] == 0
    assert len(asked(simulator)) == 6
    envelope = fan_out(PROMPTS, provider, reuse="always", max_age=60)
    assert len(asked(simulator)) == 6
    assert envelope.metrics["saved_usd"] == first.metrics["cost_usd"] > 0
    assert realtime(PROMPTS[0], provider, reuse="always").text == first.answers[0]


async def test_the_page_says_what_was_not_asked_again(provider: PolluxProvider) -> None:
    """As a count, and as money."""
    await afan_out(PROMPTS, provider)
    await afan_out(PROMPTS, provider, reuse="always")
    (page,) = await read_pages(await find_newest_run("fan-out"))
    assert "| Reused | 3 not asked again, which saved $0.00" in str(page.data)


def test_a_budget_for_a_flow(provider: PolluxProvider, simulator: Simulator) -> None:
    """The tasks of a run share it."""
    alone = provider.model_copy(update={"request_concurrency": 1})
    cost = realtime(PROMPTS[0], alone).metrics["cost_usd"]
    budget = 1.5 * cost + asyncio.run(_worst_case(alone))
    envelope = fan_out(PROMPTS, alone, options=SHORT, max_cost_usd=budget, on_partial="complete")
    kinds = [failure.kind for failure in envelope.errors or [] if failure]
    assert kinds == ["budget"]
    assert len(asked(simulator)) == 3


async def _worst_case(provider: PolluxProvider) -> float:
    return await find_worst_case(await provider.config(), max(PROMPTS, key=len), of=len(PROMPTS))


async def test_a_task_a_call_or_a_chunk(provider: PolluxProvider) -> None:
    """The UI shows each call by its prompt, while those are few; `calls_per_task` has the last word."""
    assert await _task_names(provider, PROMPTS) == {f"{n}. {prompt}" for n, prompt in enumerate(PROMPTS, 1)}
    assert await _task_names(provider, PROMPTS, calls_per_task=2) == {"2 calls, 1 to 2", "3. When was it?"}
    many = [f"p{n}" for n in range(40)]
    assert await _task_names(provider, many) == {f"4 calls, {n} to {n + 3}" for n in range(1, 40, 4)}


async def _task_names(provider: PolluxProvider, prompts: list[str], **more: Any) -> set[str]:
    await afan_out(prompts, provider, **more)
    run = await find_newest_run("fan-out")
    parts = -(-len(prompts) // more.get("calls_per_task", 1 if len(prompts) <= 32 else 4))
    tasks = await wait_until(partial(_tasks, run, parts + 3))
    return {each.name for each in tasks} - {"request", "plan", "extract"}


async def _tasks(run: FlowRun, count: int) -> list[TaskRun] | None:
    """The task runs, once the server has been told of all of them and of their ends."""
    async with get_client() as client:
        tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    ended = [each for each in tasks if each.state and each.state.is_final()]
    return tasks if len(ended) == count else None


async def test_a_call_that_failed_is_a_task_run_that_failed(provider: PolluxProvider, simulator: Simulator) -> None:
    """Whoever looks at the run sees which prompt it was."""
    simulator.fail(Fault(status=400, message="not now"), contains="Where")
    with pytest.raises(APIError):
        await afan_out(PROMPTS, provider)
    tasks = await wait_until(partial(_tasks, await find_newest_run("fan-out"), 6))
    (failed,) = [each for each in tasks if each.state.is_failed()]
    assert failed.name == "2. Where was it?"
    assert "not now" in failed.state.message


def test_each_row_of_a_broadcast_is_asked_for_once(provider: PolluxProvider, simulator: Simulator) -> None:
    """Also when the run fails and is retried."""
    simulator.fail(Fault(status=400), contains="Bob")
    sources = [Source.from_text(f"{name} was there.", identifier=name) for name in ("Ada", "Bob", "Cay")]
    envelopes = broadcast.with_options(retries=1, retry_delay_seconds=0)(PROMPTS[:1], sources, provider)
    assert [envelope.metrics["n_reused"] for envelope in envelopes] == [1, 0, 1]
    assert len(asked(simulator)) == 4
