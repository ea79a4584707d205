"""Tests of the flow `estimate`, its command, and runs that wait for approval."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect.states import Cancelling

from pollux_flows import Config, ConfigurationError, Estimate, Options, PolluxError, Source, estimate_many
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.flows import aestimate, afan_out, amap_rows, approval, asubmit, estimate, map_rows
from pollux_flows.flows.approval import is_approved, wait_for_approval
from pollux_flows.simulator import Simulator
from tests.prefect.jobs import no_jobs_are_left
from tests.prefect.runs import find_newest_run, wait_until

__all__ = ["no_jobs_are_left"]

PROMPTS = ["What fell short?", "What should the board know?"]


async def read_page(key: str) -> str:
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    # Other tests publish pages with this key on the shared server.
    return str(max(found, key=lambda each: str(each.created)).data)


async def test_the_flow_publishes_its_estimate(provider: PolluxProvider, simulator: Simulator) -> None:
    """The result is loaded from where Prefect stored it, and nothing is generated."""
    sources = [Source.from_text("The north plant made 1,200 pumps."), Source.from_text("The south plant made none.")]
    state = await aestimate(
        PROMPTS, provider, sources, Options(max_tokens=100), each_source=True, reuse="always", return_state=True
    )
    found = await state.aresult()
    assert isinstance(found, Estimate)
    assert (found.calls, found.counted) == (4, 4)
    assert {each.operation for each in simulator.requests} == {"count_tokens"}
    page = await read_page("pollux-estimate")
    assert page.startswith("**4 calls to ask: about $0.0")
    assert f"| Input tokens | {found.input_tokens.low} | {found.input_tokens.expected} |" in page
    assert all(line in page for line in found.assumptions)


def test_prompts_of_an_estimate_may_be_pasted(provider: PolluxProvider) -> None:
    assert estimate([], provider, prompts_from="one\ntwo\nthree").calls == 3


def test_the_estimate_command_prints_text_or_json(
    provider: PolluxProvider,
    simulator: Simulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The command sends no prompt."""
    provider.save("estimating", overwrite=True)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app(["estimate", *words])
        assert caught.value.code in {None, 0}
        return capsys.readouterr().out

    printed = command(*PROMPTS, "-p", "estimating", "--max-tokens", "100")
    assert printed.startswith("openai gpt-4.1-mini: 2 calls to ask\n")
    assert "Expected" in printed
    assert "- Input: openai has counted the tokens of every call." in printed
    found = Estimate.model_validate_json(command(*PROMPTS, "-p", "estimating", "--json"))
    assert json.loads(command(*PROMPTS, "-p", "estimating", "--json"))["calls"] == found.calls == 2
    (tmp_path / "t.csv").write_text("name\nAnn\nBob\n")
    rows = command("Greet {name}", "-p", "estimating", "--table", str(tmp_path / "t.csv"), "--limit", "1")
    assert rows.startswith("openai gpt-4.1-mini: 1 call to ask\n")
    assert {each.operation for each in simulator.requests} == {"count_tokens"}


def test_the_cost_of_a_mapped_table_is_close_to_its_estimate(
    provider: PolluxProvider, simulator: Simulator, tmp_path: Path
) -> None:
    lines = ["id,review", *(f'{number},"{"It broke. " * (number % 7 + 30)}{number}"' for number in range(60))]
    (tmp_path / "reviews.csv").write_text("\n".join(lines))
    table, prompt = str(tmp_path / "reviews.csv"), "Is this a complaint? {review}"
    options = Options(response_schema={"type": "object", "properties": {"is_complaint": {"type": "boolean"}}})
    expected = estimate([], provider, table=table, prompt=prompt, options=options)
    assert (expected.calls, expected.to_ask, expected.counted) == (60, 60, 20)
    assert {each.operation for each in simulator.requests} == {"count_tokens"}
    report = map_rows(table, prompt, provider, str(tmp_path / "out.csv"), options=options)
    assert expected.cost_usd.expected == pytest.approx(report.cost_usd, rel=0.15)
    assert estimate([], provider, table=table, prompt=prompt, options=options).to_ask == 0
    with pytest.raises(ConfigurationError, match="with one prompt"):
        estimate(["Why?"], provider, table=table, prompt=prompt)


async def make_estimate() -> Estimate:
    config = Config(provider="gemini", model="gemini-2.5-flash-lite", use_mock=True)
    return await estimate_many(PROMPTS, config=config)


@flow
async def paying() -> str:
    """Stand for a flow that spends only after a person has approved."""
    if not await is_approved():
        await wait_for_approval(await make_estimate())
    return "paid"


async def execute_run(run: FlowRun) -> Any:
    """Execute a run of `paying` as a worker does."""
    return await run_flow_async(cast(Any, paying), flow_run=run)


async def wait_for_pause(run_id: UUID) -> None:
    async def is_paused() -> bool:
        async with get_client() as client:
            state = (await client.read_flow_run(run_id)).state
        return state is not None and state.is_paused()

    await wait_until(is_paused)


async def resume_run(run_id: UUID) -> None:
    """Resume a run once it is paused."""
    await wait_for_pause(run_id)
    async with get_client() as client:
        await client.resume_flow_run(run_id)


async def test_a_run_is_paused_until_a_person_approves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a deployment waits in its process."""
    monkeypatch.setattr(approval, "_LOOK_EVERY_S", 0.1)
    async with get_client() as client:
        run = await client.create_flow_run(paying, name=f"approved-{uuid4()}")
        resuming = asyncio.create_task(resume_run(run.id))
        assert await asyncio.wait_for(execute_run(run), 60) == "paid"
        await resuming
        assert (await client.read_flow_run(run.id)).labels["pollux-approval"] is True
    assert (await read_page("pollux-paying-estimate")).startswith("**2 calls to ask")


async def test_a_paused_run_that_is_cancelled_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else would end the process of a run without a deployment."""
    monkeypatch.setattr(approval, "_LOOK_EVERY_S", 0.1)
    async with get_client() as client:
        run = await client.create_flow_run(paying, name=f"cancelled-{uuid4()}")
        starting = asyncio.create_task(execute_run(run))
        await wait_for_pause(run.id)
        await client.set_flow_run_state(run.id, Cancelling())
        with pytest.raises(PolluxError, match="cancelled while it waited"):
            await asyncio.wait_for(starting, 60)
        state = (await client.read_flow_run(run.id)).state
        assert state is not None
        assert state.is_final()


async def test_a_deployed_run_is_suspended_until_a_person_approves() -> None:
    """The resumed flow starts from its first line, and needs no second approval, also when it is retried."""
    async with get_client() as client:
        flow_id = await client.create_flow(paying)
        deployment = await client.create_deployment(flow_id, f"approved-{uuid4()}")
        run = await client.create_flow_run_from_deployment(deployment)
        with pytest.raises(Pause):  # ends the process of the run
            await execute_run(run)
        state = (await client.read_flow_run(run.id)).state
        assert state is not None
        assert state.name == "Suspended"
        await client.resume_flow_run(run.id)
        run = await client.read_flow_run(run.id)
        assert await execute_run(run) == "paid"
        assert (await client.read_flow_run(run.id)).labels["pollux-approval"] is True
        await client.delete_deployment(deployment)


@pytest.mark.usefixtures("no_jobs_are_left")
@pytest.mark.parametrize("kind", ["map-rows", "fan-out", "submit"])
async def test_a_run_that_requires_approval_sends_no_prompt_before(
    kind: str,
    provider: PolluxProvider,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(approval, "_LOOK_EVERY_S", 0.1)
    table = tmp_path / "t.csv"
    table.write_text("name\nAnn\nBob\n")
    prompts = ["Greet Ann", "Greet Bob"]
    flows: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "map-rows": lambda: amap_rows(
            str(table), "Greet {name}", provider, str(tmp_path / "out.csv"), require_approval=True
        ),
        "fan-out": lambda: afan_out(prompts, provider, require_approval=True),
        "submit": lambda: asubmit(prompts, provider, require_approval=True),
    }
    running = asyncio.create_task(flows[kind]())
    run: list[FlowRun] = []

    async def is_paused() -> bool:
        with suppress(IndexError):  # the run has not begun
            run[:] = [await find_newest_run(kind)]
        return any(each.state is not None and each.state.is_paused() for each in run)

    await wait_until(is_paused)
    assert {each.operation for each in simulator.requests} == {"count_tokens"}
    assert (await read_page(f"pollux-{kind}-estimate")).startswith("**2 calls to ask")
    await resume_run(run[0].id)
    await asyncio.wait_for(running, 60)
    sent = [each for each in simulator.requests if each.operation in {"generate", "batch.create"}]
    assert len(sent) == (1 if kind == "submit" else 2)
