"""Tests of each flow, in both forms, on a Prefect server and with a provider on loopback HTTP."""

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
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterName,
)
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
from tests.prefect.runs import find_newest_run, read_pages

PROMPTS = ["Who was it?", "Where was it?", "When was it?"]
SOURCES = [Source.from_text("Ada was there.", identifier="one"), Source.from_text("Bob was there.", identifier="two")]


class Person(BaseModel):
    name: str
    age: int | None = None


def test_realtime_answers_one_prompt(provider: PolluxProvider) -> None:
    """The sync form is called like any function, and returns the envelope."""
    envelope = realtime("Who was it?", provider, sources=SOURCES)
    assert isinstance(envelope, ResultEnvelope)
    assert envelope.status == "ok"
    assert envelope.text == "Simulated answer to: Who was it?"


async def test_arealtime_is_awaited(provider: PolluxProvider) -> None:
    assert (await arealtime("Who was it?", provider)).answers == ["Simulated answer to: Who was it?"]


def test_a_flow_continues_a_conversation(provider: PolluxProvider) -> None:
    """`continue_from` takes an envelope, or its JSON from a form. Several prompts at once are refused."""
    first = realtime(
        "I am Ada. [[simulate: tool_call]]", provider, options=Options(history=[], tools=[{"name": "look"}])
    )
    ((call,),) = first.tool_calls or []
    state = first["_conversation_state"]
    state["history"].append({"role": "tool", "tool_call_id": call["id"], "content": "sea"})
    from_a_form = Options.model_validate(
        {"continue_from": first.model_dump(mode="json") | {"_conversation_state": state}}
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


def test_fan_out_answers_prompts_in_their_order(provider: PolluxProvider) -> None:
    envelope = fan_out(PROMPTS, provider, sources=SOURCES)
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]


async def test_afan_out_is_awaited(provider: PolluxProvider) -> None:
    assert len((await afan_out(PROMPTS, provider)).answers) == 3


def test_fan_in_sends_all_sources_in_one_call(provider: PolluxProvider, simulator: Simulator) -> None:
    """The call has the sources, in their order, before the prompt."""
    envelope = fan_in("Compare them.", SOURCES, provider)
    assert envelope.metrics["n_calls"] == 1
    (request,) = simulator.requests
    texts = [part["text"] for part in request.body["input"][0]["content"]]
    assert texts == ["Ada was there.", "Bob was there.", "Compare them."]


async def test_afan_in_is_awaited(provider: PolluxProvider) -> None:
    assert (await afan_in("Compare them.", SOURCES, provider)).status == "ok"


def test_broadcast_sends_each_source_in_calls_of_its_own(provider: PolluxProvider, simulator: Simulator) -> None:
    """There is an envelope per source, in their order."""
    envelopes = broadcast(PROMPTS, SOURCES, provider)
    assert [envelope.metrics["n_calls"] for envelope in envelopes] == [3, 3]
    sent = [[part["text"] for part in request.body["input"][0]["content"]] for request in simulator.requests]
    assert sorted(sent) == sorted([source.text, prompt] for source in SOURCES for prompt in PROMPTS)


async def test_abroadcast_is_awaited(provider: PolluxProvider) -> None:
    """Without sources there are no envelopes."""
    assert len(await abroadcast(PROMPTS, SOURCES, provider)) == 2
    assert await abroadcast(PROMPTS, [], provider) == []


def test_a_fan_out_without_prompts_sends_nothing(provider: PolluxProvider, simulator: Simulator) -> None:
    envelope = fan_out([], provider)
    assert (envelope.status, envelope.answers, simulator.requests) == ("ok", [], [])


async def test_a_sync_form_also_works_in_a_running_event_loop(provider: PolluxProvider) -> None:
    """A notebook has such a loop. The call blocks until it is answered."""
    assert realtime("Who was it?", provider).status == "ok"


def test_a_flow_can_be_called_from_another_flow(provider: PolluxProvider) -> None:
    @flow
    def parent() -> str:
        return realtime("Who was it?", provider).text

    assert parent() == "Simulated answer to: Who was it?"


def test_with_options_returns_a_flow_that_is_called_in_the_same_way(provider: PolluxProvider) -> None:
    assert realtime.with_options(retries=1)("Who was it?", provider).status == "ok"


async def test_a_run_is_named_by_its_prompt_flow_model_and_counts(provider: PolluxProvider) -> None:
    await afan_out(PROMPTS, provider, sources=SOURCES)
    run = await find_newest_run("fan-out")
    assert run.name == f"{PROMPTS[0]} · fan-out · gpt-4.1-mini · 2 sources · 3 prompts"
    await arealtime("Who was it?", provider)
    assert (await find_newest_run("realtime")).name == "Who was it? · realtime · gpt-4.1-mini"


def test_large_counts_in_run_names_have_a_thousands_separator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.flow_run, "name", "", raising=False)
    monkeypatch.setattr(runtime.flow_run, "parameters", {"prompts": ["Who?"] * 1000}, raising=False)
    assert run_name("fan-out")() == "Who? · fan-out · 1,000 prompts"


async def test_an_artifact_shows_prompts_answers_usage_and_time(provider: PolluxProvider) -> None:
    await afan_out(PROMPTS, provider, sources=SOURCES)
    (page,) = await read_pages(await find_newest_run("fan-out"))
    text = str(page.data)
    assert page.key == "pollux-fan-out"
    assert all(prompt in text and f"> Simulated answer to: {prompt}" in text for prompt in PROMPTS)
    assert re.search(r"\| Tokens \| \d+ input, \d+ output, \d+ total", text)
    assert re.search(r"\| Time \| \d+\.\d\d s \|", text)


async def test_pages_of_repeated_runs_share_a_key(provider: PolluxProvider) -> None:
    """The UI shows pages of one key as a history: of a parent flow, of runs with a label, or of a deployment."""

    @flow(name="Weekly report")
    async def weekly() -> None:
        await afan_out(PROMPTS, provider)

    await weekly()
    (page,) = await read_pages(await find_newest_run("fan-out"))
    assert page.key == "pollux-weekly-report-fan-out"
    with tags("label:North (Q3)", "other"):
        await weekly()
    (page,) = await read_pages(await find_newest_run("fan-out"))
    assert page.key == "pollux-weekly-report-fan-out-north-q3"
    for name, key in (("fan-out", "pollux-fan-out"), ("Nightly: Q3", "pollux-fan-out-nightly-q3")):
        async with get_client() as client:
            deployment = await client.create_deployment(await client.create_flow(afan_out), name)
            run = await client.create_flow_run_from_deployment(deployment, parameters={"prompts": PROMPTS})
        engine: Any = run_flow_async(afan_out, flow_run=run, parameters={"prompts": PROMPTS, "provider": provider})
        await asyncio.create_task(engine)
        (page,) = await read_pages(run)
        assert page.key == key


async def test_a_broadcast_artifact_has_a_row_per_source_and_a_column_per_prompt(provider: PolluxProvider) -> None:
    await abroadcast(PROMPTS, SOURCES, provider)
    (page,) = await read_pages(await find_newest_run("broadcast"))
    rows = [line for line in str(page.data).splitlines() if line.startswith("| ") and "Simulated" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| one", "| two"]
    assert all(row.count("Simulated answer to") == 3 for row in rows)


async def test_the_result_is_persisted_and_reads_back_equal(provider: PolluxProvider) -> None:
    envelope = await arealtime("Who was it?", provider)
    run = await find_newest_run("realtime")
    assert run.state is not None
    assert await run.state.aresult() == envelope


def test_a_state_with_the_envelope_is_returned_and_passed_to_hooks(provider: PolluxProvider) -> None:
    """`return_state=True` and `on_completion` work as for any Prefect flow."""
    seen: list[Any] = []

    async def append_result(flow: Any, flow_run: Any, state: State[Any]) -> None:  # noqa: ARG001 (passed by name)
        seen.append(await state.aresult())

    hooked = fan_out.with_options(on_completion=[append_result])
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
    gc.freeze()  # as before this test


async def test_task_runs_start_when_their_calls_may_be_sent(provider: PolluxProvider) -> None:
    """The page of a long run shows only task runs that are at work."""
    slow = provider.model_copy(update={"request_concurrency": 1})
    await afan_out([f"Question {number}" for number in range(12)], slow, calls_per_task=3)
    run = await find_newest_run("fan-out")
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
    """The envelope is partial, names the failure and has the other answers; the artifact names the failure too."""
    simulator.fail(Fault(status=400, message="I do not like this"), times=None, contains="Where")
    envelope = await afan_out(PROMPTS, provider, on_partial="complete")
    assert envelope.status == "partial"
    assert [bool(answer) for answer in envelope.answers] == [True, False, True]
    assert envelope.errors is not None
    failure = envelope.errors[1]
    assert failure is not None
    assert "I do not like this" in failure.message
    assert [envelope.errors[0], envelope.errors[2]] == [None, None]
    (page,) = await read_pages(await find_newest_run("fan-out"))
    assert "I do not like this" in str(page.data)


async def test_a_run_that_lacks_an_answer_fails(provider: PolluxProvider, simulator: Simulator) -> None:
    """The UI offers to retry a failed run. The page of the run shows the other answers."""
    simulator.fail(Fault(status=400, message="I do not like this"), times=None, contains="Where")
    with pytest.raises(APIError, match=r"1 of 3 prompts were not answered.*I do not like this.*a retry asks only"):
        await afan_out(PROMPTS, provider)
    run = await find_newest_run("fan-out")
    assert run.state is not None
    assert run.state.is_failed()
    (page,) = await read_pages(run)
    assert "Simulated answer to: Who was it?" in str(page.data)


async def test_a_run_without_any_answer_fails_with_the_message_of_the_provider(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    """The artifact is published all the same."""
    simulator.fail(Fault(status=401), times=None)
    with pytest.raises(APIError, match="OPENAI_API_KEY"):
        await arealtime("Who was it?", provider)
    run = await find_newest_run("realtime")
    assert run.state is not None
    assert run.state.is_failed()
    assert "401" in str(run.state.message)
    assert len(await read_pages(run)) == 1


def test_unsupported_options_are_refused_before_anything_is_sent(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    with pytest.raises(ConfigurationError, match="reasoning_budget"):
        realtime("Who was it?", provider, options=Options(reasoning_budget_tokens=5))
    assert simulator.requests == []


async def test_structured_answers_are_instances_of_the_response_schema(provider: PolluxProvider) -> None:
    envelope = await arealtime("Who was it?", provider, options=Options(response_schema=Person))
    assert envelope.structured is not None
    assert isinstance(envelope.structured[0], Person)


async def test_parameters_may_be_plain_json(provider: PolluxProvider) -> None:
    """A form or an API client sends sources and options as JSON, and a schema by its import string."""
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
    """The UI shows a picker because the parameter schema refers to the block type."""
    schema = each.parameters.model_dump()
    assert "PolluxProvider" in str(schema["properties"]["provider"])
    assert schema["definitions"]["PolluxProvider"]["block_type_slug"] == "pollux-provider"


async def test_the_four_tasks_can_be_used_in_a_custom_flow(provider: PolluxProvider) -> None:
    """Tasks take and return documents. `execute` finds the key by the name of the saved block."""
    from pollux_flows.tasks import execute, extract, plan, request

    await provider.asave("for-my-own-flow", overwrite=True)

    @flow
    async def custom_flow() -> ResultEnvelope:
        config = await provider.config()
        planned = await plan(await request(PROMPTS, config.target))
        return await extract(planned, await execute(planned, "for-my-own-flow"))

    assert (await custom_flow()).answers == [f"Simulated answer to: {prompt}" for prompt in PROMPTS]


async def test_a_long_run_shows_a_progress_bar(provider: PolluxProvider, simulator: Simulator) -> None:
    """The bar ends at 100."""
    simulator.fail(Fault(kind="slow", delay_s=2.6), times=None, contains="When")
    await afan_out(PROMPTS, provider)
    pages = await read_pages(await find_newest_run("fan-out"))
    (bar,) = [page for page in pages if page.type == "progress"]
    assert bar.data == 100.0


async def test_a_task_can_call_a_flow(provider: PolluxProvider) -> None:
    @task
    def ask() -> str:
        return realtime("Who was it?", provider).text

    @flow
    def parent() -> str:
        return ask()

    assert parent() == "Simulated answer to: Who was it?"


@pytest.mark.parametrize("broken", ["acreate_markdown_artifact", "acreate_progress_artifact"])
async def test_an_artifact_that_cannot_be_published_does_not_fail_the_run(
    broken: str, provider: PolluxProvider, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_error(**_: Any) -> None:
        raise RuntimeError("the server is full")

    monkeypatch.setattr(f"pollux_flows.artifacts.{broken}", raise_error)
    monkeypatch.setattr("pollux_flows.artifacts._PROGRESS_EVERY_S", 0.05)
    simulator.fail(Fault(kind="slow", delay_s=0.3), times=None, contains="When")
    assert (await afan_out(PROMPTS, provider)).status == "ok"


async def test_the_error_of_a_failed_flow_has_the_type_and_fields_of_its_calls(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    simulator.fail(Fault(status=429, retry_after=60), times=None)
    with pytest.raises(RateLimitError, match="None of 3") as caught:
        await afan_out(PROMPTS, provider)
    assert (caught.value.provider, caught.value.retry_after_s) == ("openai", 60)


def test_a_run_that_is_too_large_for_the_server_is_refused(provider: PolluxProvider, simulator: Simulator) -> None:
    """The server would quote all parameters. Our error names alternatives instead."""
    default = temporary_settings(restore_defaults={PREFECT_SERVER_API_MAX_PARAMETER_SIZE})
    with default, pytest.raises(ConfigurationError, match=r"600,\d+ bytes.*524,288.*run_many"):
        realtime("Who?", provider, sources=[Source.from_text("x" * 600_000)])
    assert simulator.requests == []


async def test_html_and_images_in_prompts_and_answers_are_escaped_on_the_page(provider: PolluxProvider) -> None:
    await arealtime("<script>alert(1)</script> ![x](https://example.com/spy.png) | a\\|b", provider)
    (page,) = await read_pages(await find_newest_run("realtime"))
    assert "<script>" not in str(page.data)
    assert "![x]" not in str(page.data)
