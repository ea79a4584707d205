"""Each flow, in both forms, against a real Prefect server and a provider on loopback HTTP."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from typing import Any

import pytest
from prefect import State, flow, runtime, tags, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_SERVER_API_MAX_PARAMETER_SIZE, temporary_settings
from pydantic import BaseModel

from pollux_flows import APIError, ConfigurationError, Options, RateLimitError, ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.flows import (
    abroadcast,
    afan_in,
    afan_out,
    arealtime,
    broadcast,
    fan_in,
    fan_out,
    frozen_heap,
    realtime,
)
from pollux_flows.flows.run_names import run_name
from pollux_flows.simulator import Fault, Simulator

PROMPTS = ["Who was it?", "Where was it?", "When was it?"]
SOURCES = [Source.from_text("Ada was there.", identifier="one"), Source.from_text("Bob was there.", identifier="two")]


class Person(BaseModel):
    name: str
    age: int | None = None


async def newest_run(kind: str) -> FlowRun:
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[kind])), sort=FlowRunSort.START_TIME_DESC, limit=1
        )
    return runs[0]


async def artifacts_of(run: FlowRun) -> list[Artifact]:
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return [artifact for artifact in found if artifact.type in {"markdown", "progress"}]


def test_realtime_answers_one_prompt(provider: PolluxProvider) -> None:
    """The sync form is called like any function, and gives the envelope."""
    envelope = realtime("Who was it?", provider, sources=SOURCES)
    assert isinstance(envelope, ResultEnvelope)
    assert envelope.status == "ok"
    assert envelope.text == "Simulated answer to: Who was it?"


async def test_arealtime_is_awaited(provider: PolluxProvider) -> None:
    """The async form is awaited, and gives the same."""
    assert (await arealtime("Who was it?", provider)).answers == ["Simulated answer to: Who was it?"]


def test_a_conversation_goes_on_in_a_flow(provider: PolluxProvider) -> None:
    """With the envelope itself, or with its JSON as a form gives it; several prompts at once are refused."""
    begun = realtime(
        "I am Ada. [[simulate: tool_call]]", provider, options=Options(history=[], tools=[{"name": "look"}])
    )
    ((call,),) = begun.tool_calls or []
    state = begun["_conversation_state"]
    state["history"].append({"role": "tool", "tool_call_id": call["id"], "content": "sea"})
    from_a_form = Options.model_validate(
        {"continue_from": begun.model_dump(mode="json") | {"_conversation_state": state}}
    )
    seen = realtime("What was it?", provider, options=from_a_form)
    last = realtime("Who am I?", provider, options=Options(continue_from=seen))
    assert last.text == "Simulated answer to: Who am I?"
    roles = [turn["role"] for turn in last["_conversation_state"]["history"]]
    assert roles == ["user", "assistant", "tool", "user", "assistant", "user", "assistant"]
    with pytest.raises(ConfigurationError, match="one prompt"):
        fan_out(PROMPTS, provider, options=Options(continue_from=last))
    with pytest.raises(ConfigurationError, match="each source separately"):
        broadcast(["Who?"], SOURCES, provider, options=Options(continue_from=last))


def test_fan_out_keeps_prompt_order(provider: PolluxProvider) -> None:
    """One envelope with an answer per prompt, in their order."""
    envelope = fan_out(PROMPTS, provider, sources=SOURCES)
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]


async def test_afan_out(provider: PolluxProvider) -> None:
    """The same, awaited."""
    assert len((await afan_out(PROMPTS, provider)).answers) == 3


def test_fan_in_sends_all_sources_in_one_call(provider: PolluxProvider, simulator: Simulator) -> None:
    """One call that holds every source, in order, before the prompt."""
    envelope = fan_in("Compare them.", SOURCES, provider)
    assert envelope.metrics["n_calls"] == 1
    (request,) = simulator.requests
    texts = [part["text"] for part in request.body["input"][0]["content"]]
    assert texts == ["Ada was there.", "Bob was there.", "Compare them."]


async def test_afan_in(provider: PolluxProvider) -> None:
    """The same, awaited."""
    assert (await afan_in("Compare them.", SOURCES, provider)).status == "ok"


def test_broadcast_asks_each_source_by_itself(provider: PolluxProvider, simulator: Simulator) -> None:
    """One envelope a source, in source order; each call holds its own source only."""
    envelopes = broadcast(PROMPTS, SOURCES, provider)
    assert [envelope.metrics["n_calls"] for envelope in envelopes] == [3, 3]
    sent = [[part["text"] for part in request.body["input"][0]["content"]] for request in simulator.requests]
    assert sorted(sent) == sorted([source.text, prompt] for source in SOURCES for prompt in PROMPTS)


async def test_abroadcast(provider: PolluxProvider) -> None:
    """The same, awaited; no sources, no envelopes."""
    assert len(await abroadcast(PROMPTS, SOURCES, provider)) == 2
    assert await abroadcast(PROMPTS, [], provider) == []


def test_no_prompts_is_a_legal_no_op(provider: PolluxProvider, simulator: Simulator) -> None:
    """Nothing is asked, nothing is sent, nothing is wrong."""
    envelope = fan_out([], provider)
    assert (envelope.status, envelope.answers, simulator.requests) == ("ok", [], [])


async def test_a_sync_form_also_works_where_a_loop_is_running(provider: PolluxProvider) -> None:
    """As in a notebook: the call blocks, and answers."""
    assert realtime("Who was it?", provider).status == "ok"


def test_a_flow_is_part_of_a_users_own_flow(provider: PolluxProvider) -> None:
    """Called from another flow, it is a subflow of it."""

    @flow
    def mine() -> str:
        return realtime("Who was it?", provider).text

    assert mine() == "Simulated answer to: Who was it?"


def test_options_changed_with_with_options_keep_the_form(provider: PolluxProvider) -> None:
    """`with_options` gives a flow that is called the same way."""
    assert realtime.with_options(retries=1)("Who was it?", provider).status == "ok"


async def test_runs_and_tasks_have_names_that_a_person_can_read(provider: PolluxProvider) -> None:
    """What the UI lists tells what was done, with which model, how much of it."""
    await afan_out(PROMPTS, provider, sources=SOURCES)
    run = await newest_run("fan-out")
    assert run.name == f"{PROMPTS[0]} · fan-out · gpt-4.1-mini · 2 sources · 3 prompts"
    await arealtime("Who was it?", provider)
    assert (await newest_run("realtime")).name == "Who was it? · realtime · gpt-4.1-mini"


def test_large_counts_in_names_read_as_those_on_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.flow_run, "name", "", raising=False)
    monkeypatch.setattr(runtime.flow_run, "parameters", {"prompts": ["Who?"] * 1000}, raising=False)
    assert run_name("fan-out")() == "Who? · fan-out · 1,000 prompts"


async def test_an_artifact_shows_prompts_answers_usage_and_time(provider: PolluxProvider) -> None:
    """A page in the UI holds what was asked, what was answered, and what it took."""
    await afan_out(PROMPTS, provider, sources=SOURCES)
    (page,) = await artifacts_of(await newest_run("fan-out"))
    text = str(page.data)
    assert page.key == "pollux-fan-out"
    assert all(prompt in text and f"> Simulated answer to: {prompt}" in text for prompt in PROMPTS)
    assert re.search(r"\| Tokens \| \d+ input, \d+ output, \d+ total", text)
    assert re.search(r"\| Time \| \d+\.\d\d s \|", text)


async def test_pages_of_one_piece_of_work_share_a_key(provider: PolluxProvider) -> None:
    """The UI shows them as a history: of a flow that calls ours, of runs with a label, and of a deployment."""

    @flow(name="Weekly report")
    async def weekly() -> None:
        await afan_out(PROMPTS, provider)

    await weekly()
    (page,) = await artifacts_of(await newest_run("fan-out"))
    assert page.key == "pollux-weekly-report-fan-out"
    with tags("label:North (Q3)", "other"):
        await weekly()
    (page,) = await artifacts_of(await newest_run("fan-out"))
    assert page.key == "pollux-weekly-report-fan-out-north-q3"
    for name, key in (("fan-out", "pollux-fan-out"), ("Nightly: Q3", "pollux-fan-out-nightly-q3")):
        async with get_client() as client:
            deployment = await client.create_deployment(await client.create_flow(afan_out), name)
            run = await client.create_flow_run_from_deployment(deployment, parameters={"prompts": PROMPTS})
        engine: Any = run_flow_async(afan_out, flow_run=run, parameters={"prompts": PROMPTS, "provider": provider})
        await asyncio.create_task(engine)
        (page,) = await artifacts_of(run)
        assert page.key == key


async def test_a_broadcast_artifact_has_a_row_a_source_and_a_column_a_prompt(provider: PolluxProvider) -> None:
    """The grid can be read across and down."""
    await abroadcast(PROMPTS, SOURCES, provider)
    (page,) = await artifacts_of(await newest_run("broadcast"))
    rows = [line for line in str(page.data).splitlines() if line.startswith("| ") and "Simulated" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| one", "| two"]
    assert all(row.count("Simulated answer to") == 3 for row in rows)


async def test_the_result_is_persisted_and_reads_back_equal(provider: PolluxProvider) -> None:
    """Whoever asks the server for the run's result later gets the envelope."""
    envelope = await arealtime("Who was it?", provider)
    run = await newest_run("realtime")
    assert run.state is not None
    assert await run.state.aresult() == envelope


def test_a_state_is_returned_and_handed_to_hooks_with_the_envelope(provider: PolluxProvider) -> None:
    """`return_state=True` and `on_completion` see what any Prefect flow would show them."""
    seen: list[Any] = []

    async def note(flow: Any, flow_run: Any, state: State[Any]) -> None:  # noqa: ARG001 (the names that Prefect passes)
        seen.append(await state.aresult())

    hooked = fan_out.with_options(on_completion=[note])
    state: Any = hooked(PROMPTS, provider, return_state=True)
    assert state.is_completed()
    envelope = state.result()
    assert isinstance(envelope, ResultEnvelope)
    assert seen == [envelope]


def test_a_heap_that_the_program_froze_stays_frozen(provider: PolluxProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_heap, "_frozen_by_program", False)
    gc.freeze()  # as all tests do, see tests/conftest.py
    frozen = gc.get_freeze_count()
    realtime("Who was it?", provider)
    assert gc.get_freeze_count() > frozen / 2  # objects may have ended since


def test_the_heap_is_unfrozen_after_the_last_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while another is under way leaves the heap frozen."""
    monkeypatch.setattr(frozen_heap, "_frozen_by_program", False)
    gc.unfreeze()
    first, second = frozen_heap.frozen_heap(), frozen_heap.frozen_heap()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_freeze_count()
    second.__exit__(None, None, None)
    assert not gc.get_freeze_count()
    gc.freeze()  # as it was


async def test_task_runs_start_as_their_calls_come_into_line(provider: PolluxProvider) -> None:
    """The first calls leave at once, and the page of a long run shows the tasks that are at work."""
    slow = provider.model_copy(update={"request_concurrency": 1})
    await afan_out([f"Question {number}" for number in range(12)], slow, calls_per_task=3)
    run = await newest_run("fan-out")
    deadline = time.monotonic() + 20  # task runs are recorded with a delay
    async with get_client() as client:
        while True:
            tasks = await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
                task_run_filter=TaskRunFilter(name=TaskRunFilterName(like_="calls")),
            )
            starts = sorted(task.start_time for task in tasks if task.start_time is not None)
            ends = sorted(task.end_time for task in tasks if task.end_time is not None)
            if len(ends) == 4 or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
    assert len(starts) == len(ends) == 4
    assert starts[-1] > ends[0]


async def test_one_bad_prompt_costs_one_answer(provider: PolluxProvider, simulator: Simulator) -> None:
    """The envelope is partial, names the failure, and keeps the rest; the artifact says so too."""
    simulator.fail(Fault(status=400, message="I do not like this"), times=None, contains="Where")
    envelope = await afan_out(PROMPTS, provider, on_partial="complete")
    assert envelope.status == "partial"
    assert [bool(answer) for answer in envelope.answers] == [True, False, True]
    assert envelope.errors is not None
    failure = envelope.errors[1]
    assert failure is not None
    assert "I do not like this" in failure.message
    assert [envelope.errors[0], envelope.errors[2]] == [None, None]
    (page,) = await artifacts_of(await newest_run("fan-out"))
    assert "I do not like this" in str(page.data)


async def test_a_run_that_lacks_an_answer_has_failed(provider: PolluxProvider, simulator: Simulator) -> None:
    """So that the UI offers to retry it. What was answered can be seen all the same."""
    simulator.fail(Fault(status=400, message="I do not like this"), times=None, contains="Where")
    with pytest.raises(APIError, match=r"1 of 3 prompts were not answered.*I do not like this.*a retry asks only"):
        await afan_out(PROMPTS, provider)
    run = await newest_run("fan-out")
    assert run.state is not None
    assert run.state.is_failed()
    (page,) = await artifacts_of(run)
    assert "Simulated answer to: Who was it?" in str(page.data)


async def test_a_run_without_any_answer_fails_and_says_why(provider: PolluxProvider, simulator: Simulator) -> None:
    """The state in the UI is Failed, the message is the provider's, and the artifact is there all the same."""
    simulator.fail(Fault(status=401), times=None)
    with pytest.raises(APIError, match="OPENAI_API_KEY"):
        await arealtime("Who was it?", provider)
    run = await newest_run("realtime")
    assert run.state is not None
    assert run.state.is_failed()
    assert "401" in str(run.state.message)
    assert len(await artifacts_of(run)) == 1


def test_what_cannot_work_is_refused_before_anything_is_sent(provider: PolluxProvider, simulator: Simulator) -> None:
    """The gate's error is the run's error."""
    with pytest.raises(ConfigurationError, match="reasoning_budget"):
        realtime("Who was it?", provider, options=Options(reasoning_budget_tokens=5))
    assert simulator.requests == []


async def test_structured_answers_are_the_callers_own_type(provider: PolluxProvider) -> None:
    """In hand they are instances of the model; at rest they are JSON."""
    envelope = await arealtime("Who was it?", provider, options=Options(response_schema=Person))
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], Person)


async def test_a_form_in_the_ui_needs_only_plain_json(provider: PolluxProvider) -> None:
    """What a person types, or an API client posts, becomes sources and options, the schema by import string."""
    typed: dict[str, Any] = {
        "prompts": PROMPTS,
        "provider": provider,
        "sources": [{"source_type": "text", "text": "Ada was there."}],
        "options": {"response_schema": "tests.prefect.test_flows:Person", "temperature": 0.5},
    }
    envelope = await afan_out(**typed)
    assert envelope.structured is not None
    assert [type(value).__name__ for value in envelope.structured] == ["Person"] * 3


@pytest.mark.parametrize("each", [realtime, fan_out, fan_in, broadcast, arealtime, afan_out, afan_in, abroadcast])
def test_the_form_offers_a_block_picker_and_no_key_field(each: Any) -> None:
    """The parameter schema refers to the block type, so the UI shows a picker."""
    schema = each.parameters.model_dump()
    assert "PolluxProvider" in str(schema["properties"]["provider"])
    assert schema["definitions"]["PolluxProvider"]["block_type_slug"] == "pollux-provider"


async def test_the_four_tasks_make_a_flow_of_ones_own(provider: PolluxProvider) -> None:
    """Tasks take and give documents; the key is found through the saved block's name."""
    from pollux_flows.tasks import execute, extract, plan, request

    await provider.asave("for-my-own-flow", overwrite=True)

    @flow
    async def mine() -> ResultEnvelope:
        config = await provider.config()
        planned = await plan(await request(PROMPTS, config.target))
        return await extract(planned, await execute(planned, "for-my-own-flow"))

    assert (await mine()).answers == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]


async def test_a_long_run_shows_its_progress(provider: PolluxProvider, simulator: Simulator) -> None:
    """What takes longer than a moment has a progress bar, and it ends at 100."""
    simulator.fail(Fault(kind="slow", delay_s=2.6), times=None, contains="When")
    await afan_out(PROMPTS, provider)
    pages = await artifacts_of(await newest_run("fan-out"))
    (bar,) = [page for page in pages if page.type == "progress"]
    assert bar.data == 100.0


async def test_tasks_of_a_users_flow_can_run_a_flow(provider: PolluxProvider) -> None:
    """A flow called inside a task of somebody else's is still just a flow."""

    @task
    def ask() -> str:
        return realtime("Who was it?", provider).text

    @flow
    def mine() -> str:
        return ask()

    assert mine() == "Simulated answer to: Who was it?"


@pytest.mark.parametrize("broken", ["acreate_markdown_artifact", "acreate_progress_artifact"])
async def test_an_artifact_that_cannot_be_left_costs_no_answer(
    broken: str, provider: PolluxProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was paid for comes back, whatever becomes of the page that shows it."""

    async def fails(**_: Any) -> None:
        raise RuntimeError("the server is full")

    monkeypatch.setattr(f"pollux_flows.artifacts.{broken}", fails)
    monkeypatch.setattr("pollux_flows.artifacts._PROGRESS_EVERY_S", 0.05)
    simulator.fail(Fault(kind="slow", delay_s=0.3), times=None, contains="When")
    assert (await afan_out(PROMPTS, provider)).status == "ok"


async def test_a_failed_flows_error_is_as_rich_as_the_calls(provider: PolluxProvider, simulator: Simulator) -> None:
    """Its kind, who said it, and when to come back."""
    simulator.fail(Fault(status=429, retry_after=60), times=None)
    with pytest.raises(RateLimitError, match="None of 3") as caught:
        await afan_out(PROMPTS, provider)
    assert (caught.value.provider, caught.value.retry_after_s) == ("openai", 60)


def test_a_run_that_is_too_large_for_the_server_says_so(provider: PolluxProvider, simulator: Simulator) -> None:
    """Before the server refuses it with all of it quoted; with the ways out."""
    default = temporary_settings(restore_defaults={PREFECT_SERVER_API_MAX_PARAMETER_SIZE})
    with default, pytest.raises(ConfigurationError, match=r"600,\d+ bytes.*524,288.*run_many"):
        realtime("Who?", provider, sources=[Source.from_text("x" * 600_000)])
    assert simulator.requests == []


async def test_what_an_answer_says_stays_text(provider: PolluxProvider) -> None:
    """HTML and images in prompts and answers are shown, not obeyed."""
    await arealtime("<script>alert(1)</script> ![x](https://example.com/spy.png) | a\\|b", provider)
    (page,) = await artifacts_of(await newest_run("realtime"))
    assert "<script>" not in str(page.data)
    assert "![x]" not in str(page.data)
