"""Tests of converse: a conversation continues from run to run, each turn is added once, and tools are called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow_async
from prefect.states import Pending
from pydantic import SecretStr

from pollux_flows import APIError, BudgetError, ConfigurationError, Options, ResultEnvelope, Source
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli import app
from pollux_flows.config import ProviderName
from pollux_flows.errors import ToolError
from pollux_flows.flows import aconverse, converse
from pollux_flows.flows.tools import load_tools
from pollux_flows.simulator import Fault, Logged, Simulator
from pollux_flows.state import conversations
from pollux_flows.state.conversations import StoredConversation, load_conversation
from pollux_flows.state.maintenance import prune, remove_damaged, survey
from pollux_flows.state.store import open_store
from tests.commands import Command
from tests.loopback import MODELS
from tests.mortal import Death, Mortal, start_process
from tests.prefect import weather
from tests.prefect.runs import find_newest_run, read_pages

WEATHER = "tests.prefect.weather:get_weather"
NEWS = "tests.prefect.weather:get_news"
DATE = "tests.prefect.weather:get_date"
RAIN = "Will it rain? [[simulate: tool_call]]"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _reset_tools() -> Iterator[None]:
    weather.calls.clear()
    weather.failing = 0
    yield
    weather.failing = 0


@pytest.fixture
def pollux(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `pollux-flows …`, and return what it prints or refuses with."""

    def command(*words: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app([*words])
        printed = capsys.readouterr().out
        return printed if caught.value.code in (None, 0) else f"{caught.value}{printed}"

    return command


def make_provider(kind: ProviderName, world: tuple[Simulator, str]) -> PolluxProvider:
    return PolluxProvider(
        provider=kind,
        model=MODELS[kind],
        api_key=SecretStr("sk-never-saved"),
        base_url=Simulator.base_url(kind, world[1]),
    )


def read_calls(simulator: Simulator) -> list[Logged]:
    return [entry for entry in simulator.requests if entry.operation == "generate"]


async def load_stored(name: str) -> StoredConversation:
    found = await load_conversation(open_store(), name)
    assert found is not None
    return found


def read_contents(found: StoredConversation) -> list[str]:
    return [turn["content"] for each in found.exchanges for turn in each.turns]


# --- Several runs -----------------------------------------------------------------------------------------------------


async def test_a_later_run_continues_a_conversation_by_its_name(provider: PolluxProvider, simulator: Simulator) -> None:
    first = await aconverse("I am Ada.", provider, "support-weekly")
    second = await aconverse("Who am I?", provider, " support-weekly ", sources=[Source.from_text("Notes.")])
    assert [first.conversation, second.conversation] == ["support-weekly"] * 2
    assert read_contents(await load_stored("support-weekly")) == [
        "I am Ada.",
        first.text,
        "Notes.\n\nWho am I?",
        second.text,
    ]
    # OpenAI stores the conversation itself: only the new turn was sent.
    assert read_calls(simulator)[1].body["previous_response_id"]
    (page,) = await read_pages(await find_newest_run("converse"))
    assert "## Conversation: support-weekly" in str(page.data)
    assert "2 exchanges. The last turns:" in str(page.data)
    assert "- **user:** I am Ada." in str(page.data)


def test_a_conversation_without_a_name_gets_one(provider: PolluxProvider) -> None:
    first = converse("I am Ada.", provider)
    assert first.conversation is not None
    assert first.conversation.startswith("conversation-")
    second = converse("Who am I?", provider, first.conversation)
    assert len(second["_conversation_state"]["history"]) == 4
    assert converse("Who am I?", provider).conversation not in {None, first.conversation}
    assert ResultEnvelope.model_validate_json(second.model_dump_json()) == second


async def test_a_conversation_may_have_any_printable_name(provider: PolluxProvider) -> None:
    for name in ("Ünïcode / 1% — ../..", "a:b*c?[d]", "x" * 200):
        await aconverse("Hello.", provider, name)
        assert len((await load_stored(name)).exchanges) == 1
    await aconverse("Hello.", provider, "Cafe\u0301")
    assert len((await load_stored("Caf\u00e9")).exchanges) == 1  # both spellings are one name
    for name in ("", "  ", "two\nlines", "x" * 201, "turned\u202earound", "half\ud800"):
        with pytest.raises(ConfigurationError, match="name of the conversation"):
            conversations.normalize_name(name)
    with pytest.raises(ConfigurationError, match="deleted, has expired"):
        await aconverse("Hello.", provider, "conversation-0123456789ab")


async def test_a_conversation_continues_with_another_provider(
    world: tuple[Simulator, str], simulator: Simulator
) -> None:
    openai, anthropic = make_provider("openai", world), make_provider("anthropic", world)
    first = await aconverse(RAIN, openai, "both", tools=[WEATHER])
    await aconverse("And then?", anthropic, "both", tools=[WEATHER], options=Options(reasoning_effort="low"))
    await aconverse("And after?", openai, "both", tools=[WEATHER])
    _, _, second, third = read_calls(simulator)
    assert [message["role"] for message in second.body["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert "previous_response_id" not in third.body  # OpenAI has not stored the answer of Anthropic
    assert "signature" not in json.dumps(third.body)
    assert first.text in json.dumps(third.body)


async def test_a_provider_is_sent_no_response_id_of_the_simulator(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    first = await aconverse("I am Ada.", provider.model_copy(update={"use_mock": True}), "rehearsed")
    await aconverse("Who am I?", provider, "rehearsed")
    (sent,) = read_calls(simulator)
    assert "previous_response_id" not in sent.body
    assert first.text in json.dumps(sent.body)


async def test_a_source_that_the_next_provider_cannot_read_is_refused(
    world: tuple[Simulator, str], simulator: Simulator, tmp_path: Path
) -> None:
    video = tmp_path / "plant.mp4"
    video.write_bytes(b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(64))
    source = Source.from_file(video, mime_type="video/mp4")
    await aconverse("Describe it.", make_provider("gemini", world), "video", sources=[source])
    count = len(read_calls(simulator))
    with pytest.raises((ConfigurationError, APIError), match=r"plant\.mp4|video"):
        await aconverse("Go on.", make_provider("anthropic", world), "video")
    assert len(read_calls(simulator)) == count
    assert len((await load_stored("video")).exchanges) == 1


async def test_a_failed_turn_is_not_added(provider: PolluxProvider, simulator: Simulator) -> None:
    await aconverse("I am Ada.", provider, "failing")
    simulator.fail(Fault(kind="context_overflow"))
    with pytest.raises(APIError, match="Begin another conversation"):
        await aconverse("Who am I?", provider, "failing")
    assert len((await load_stored("failing")).exchanges) == 1


def test_options_that_a_stored_conversation_cannot_have_are_refused(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    for options in (Options(history=[]), Options(tools=[{"name": "f", "parameters": {}}])):
        with pytest.raises(ConfigurationError, match=r"history|tools"):
            converse("Hello.", provider, "refused", options=options)
    with pytest.raises(ConfigurationError, match="max_rounds"):
        converse("Hello.", provider, "refused", max_rounds=0)
    assert read_calls(simulator) == []


# --- Exactly once -----------------------------------------------------------------------------------------------------


async def test_concurrent_runs_of_one_conversation_wait_for_each_other(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    simulator.latency_s = 0.2
    await asyncio.gather(*(aconverse(f"Number {n}.", provider, "busy") for n in range(3)))
    found = await load_stored("busy")
    assert [each.base for each in found.exchanges] == [0, 1, 2]
    assert {turn["content"] for turn in (each.turns[0] for each in found.exchanges)} == {
        f"Number {n}." for n in range(3)
    }
    assert len(read_calls(simulator)) == 3


def test_equal_prompts_of_one_run_are_two_turns(provider: PolluxProvider, simulator: Simulator) -> None:
    """A retry adds no turn: Prefect returns the result of the first call, and the second is added once."""
    attempts = []

    @flow(retries=1, retry_delay_seconds=0)
    def parent() -> list[str]:
        texts = [converse("Go on.", provider, "equal").text for _ in range(2)]
        attempts.append(len(read_calls(simulator)))
        if len(attempts) == 1:
            raise RuntimeError("something else went wrong")
        return texts

    parent()
    assert attempts == [2, 2]
    assert len(asyncio.run(load_stored("equal")).exchanges) == 2


async def run_turn(run_id: UUID, saved: str, parameters: dict[str, Any]) -> None:
    """Run a flow run of `converse` as a worker does."""
    async with get_client() as client:
        await client.set_flow_run_state(run_id, Pending(), force=True)
        run = await client.read_flow_run(run_id)
    block = await PolluxProvider.aload(saved)
    await run_flow_async(aconverse, flow_run=run, parameters={**parameters, "provider": block})


class Worker:
    """Starts processes that run one flow run."""

    def __init__(self, run_id: UUID, home: Path, parameters: dict[str, Any]) -> None:
        self._run_id, self._home, self._parameters = run_id, home, parameters

    def start(self, death: Death | None = None) -> Mortal:
        work = (run_turn, self._run_id, "killed-turns", self._parameters)
        return start_process(*work, death=death, home=self._home, log=self._home.parent / "log")


async def make_worker(provider: PolluxProvider, home: Path, **parameters: Any) -> Worker:
    await provider.asave("killed-turns", overwrite=True)
    async with get_client() as client:
        run = await client.create_flow_run(aconverse, state=Pending())
    return Worker(run.id, home, parameters)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["nightly", None])
async def test_a_run_that_is_killed_around_the_append_adds_its_turn_once(
    when: Any, name: str | None, provider: PolluxProvider, simulator: Simulator, home: Path
) -> None:
    """A retry in a new process asks nothing, and the next run continues the conversation."""
    turn = await make_worker(provider, home, prompt=RAIN, conversation=name, tools=[WEATHER])
    death = Death("pollux_flows.state.conversations:append_exchange", when)
    assert not await turn.start(death).runs_to_completion(30)
    assert len(read_calls(simulator)) == 2
    assert await turn.start().runs_to_completion(30)
    assert len(read_calls(simulator)) == 2
    ((found,), _) = await conversations.list_conversations(open_store())
    assert len(found.exchanges) == 1
    assert [each["role"] for each in found.exchanges[0].turns] == ["user", "assistant", "tool", "assistant"]
    later = await aconverse("And tomorrow?", provider, found.name, tools=[WEATHER])
    assert len(later["_conversation_state"]["history"]) == 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "death",
    [
        Death("pollux_flows.flows.conversing:call_tool", "before"),
        Death("pollux_flows.state.conversations:RunRecords.save_tool_result", "after"),
    ],
    ids=str,
)
async def test_a_killed_run_adds_its_turn_after_that_of_another_run(
    death: Death, provider: PolluxProvider, simulator: Simulator, home: Path
) -> None:
    """The answer to the shorter conversation is reused."""
    turn = await make_worker(provider, home, prompt=RAIN, conversation="shared", tools=[WEATHER])
    assert not await turn.start(death).runs_to_completion(30)
    assert len(read_calls(simulator)) == 1
    await aconverse("I come in between.", provider, "shared")
    assert await turn.start().runs_to_completion(30)
    assert len(read_calls(simulator)) == 3
    found = await load_stored("shared")
    assert [each.base for each in found.exchanges] == [0, 0]
    last = await aconverse("Who was first?", provider, "shared", tools=[WEATHER])
    assert len(last["_conversation_state"]["history"]) == 8
    # OpenAI has stored the last answer without the turn in between.
    assert "previous_response_id" not in read_calls(simulator)[-1].body


# --- Tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini", "openrouter"])
async def test_tools_are_called_with_the_arguments_of_the_model(
    kind: ProviderName, world: tuple[Simulator, str], simulator: Simulator
) -> None:
    envelope = await aconverse(
        "Will it rain? [[simulate: tool_calls=2]]", make_provider(kind, world), "tools", tools=[WEATHER, DATE]
    )
    assert envelope.text == "Simulated answer from the results of: get_weather, get_date"
    assert {name for name, _ in weather.calls} >= {"date"}
    assert len(weather.calls) == 2
    first, second = envelope.diagnostics["calls"]
    assert envelope.metrics["cost_usd"] == pytest.approx(first["cost_usd"] + second["cost_usd"])
    assert envelope.metrics["n_calls"] == 2
    results = [turn for turn in (await load_stored("tools")).exchanges[0].turns if turn["role"] == "tool"]
    assert json.loads(results[0]["content"])["sky"] == "clear"
    assert len(read_calls(simulator)) == 2
    (page,) = await read_pages(await find_newest_run("converse"))
    assert "- **call of get_weather:**" in str(page.data)
    assert "- **result of get_weather:**" in str(page.data)


def test_a_tool_that_raises_fails_the_run_and_a_retry_pays_for_nothing_twice(
    provider: PolluxProvider, simulator: Simulator
) -> None:
    weather.failing = 1
    again = converse.with_options(retries=1, retry_delay_seconds=0)
    again("What is new? [[simulate: tool_calls=2]]", provider, "news", tools=[WEATHER, NEWS])
    assert [name for name, _ in weather.calls].count("news") == 2
    assert len(weather.calls) == 3  # the other tool was not called again
    assert len(read_calls(simulator)) == 2
    weather.failing = 1
    with pytest.raises(ToolError, match="'get_news' failed: RuntimeError: the newsroom is closed"):
        converse("What is new? [[simulate: tool_call]]", provider, "news", tools=[NEWS])
    assert len(asyncio.run(load_stored("news")).exchanges) == 1


def test_a_model_that_always_calls_a_tool_is_stopped(provider: PolluxProvider, simulator: Simulator) -> None:
    simulator.fail(Fault(kind="tool_call"), times=None)
    with pytest.raises(ToolError, match="3 times and has not answered"):
        converse("Go.", provider, "endless", tools=[WEATHER], max_rounds=3)
    assert (len(read_calls(simulator)), len(weather.calls)) == (4, 3)
    before = len(read_calls(simulator))
    with pytest.raises(BudgetError, match="the run has cost"):
        converse("Go.", provider, "endless", tools=[WEATHER], max_rounds=50, max_cost_usd=0.4726)
    assert 1 < len(read_calls(simulator)) - before < 30


def test_a_tool_that_takes_too_long_fails_the_run(provider: PolluxProvider) -> None:
    slow = "tests.prefect.weather:sleep"
    with pytest.raises(ToolError, match=r"longer than 0\.2 seconds"):
        converse("Go. [[simulate: tool_call]]", provider, "slow", tools=[slow], tool_timeout_s=0.2)


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (["os.system"], "does not name a tool"),
        (["os:system"], "not a Python function"),
        (["tests.prefect.weather:untyped"], "has no type annotation"),
        (["tests.prefect.weather:by_position"], "positional-only"),
        (["tests.prefect.weather:missing"], "cannot be imported"),
        ([WEATHER, WEATHER], "Two tools"),
    ],
)
def test_an_unusable_tool_is_refused(tools: list[str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        load_tools(tools)


# --- Stored conversations ---------------------------------------------------------------------------------------------


async def test_pruning_removes_no_conversation(provider: PolluxProvider) -> None:
    await aconverse(RAIN, provider, "stays", tools=[WEATHER])
    store = open_store()
    found = await survey(store)
    assert (found.records["conversation"], found.records["turn"]) == (1, 2)
    assert found.bytes["conversation"] > 100
    pruned = await prune(store, older_than_s=0.0)
    assert pruned.answers == 2
    after = await survey(store)
    assert after.records.keys() & {"answer", "turn", "conversation"} == {"conversation"}
    assert (await remove_damaged(store)).removed == []
    text = (await load_stored("stays")).model_dump_json()
    assert "sk-never-saved" not in text


def test_the_conversations_command_lists_shows_and_deletes(provider: PolluxProvider, pollux: Command) -> None:
    assert pollux("conversations") == "No conversation is stored yet.\n"
    converse(RAIN, provider, "On the command line", tools=[WEATHER])
    assert pollux("conversations").startswith("On the command line: 1 exchange, the last ")
    assert json.loads(pollux("conversations", "--json"))["exchanges"][0]["model"] == provider.model
    damaged = f"conversation/{'0' * 64}"
    asyncio.run(open_store().put(damaged, {"at": 1.0}))
    listed = pollux("conversations").splitlines()
    assert listed[0].startswith("On the command line: 1 exchange")
    assert listed[1].startswith(f"The record {damaged} in ")
    assert pollux("conversations", "--json").count("\n") == 2
    assert "Left 1 damaged conversation. Restore the state" in pollux("state", "prune", "--damaged")
    assert pollux("conversations", "delete", damaged) == f"Deleted {damaged}, which could not be read.\n"
    shown = pollux("conversations", "show", "On the command line")
    assert f"user:\n  {RAIN}\n\nassistant:\n  calls get_weather {{" in shown
    assert shown.endswith("assistant:\n  Simulated answer from the results of: get_weather\n")
    assert "Conversations" in pollux("state")
    assert RAIN in pollux("answers", asyncio.run(find_newest_run("converse")).name)
    assert pollux("conversations", "delete", "On the command line") == "Deleted On the command line, of 1 exchange.\n"
    assert "There is no conversation" in pollux("conversations", "show", "On the command line")


def test_a_conversation_within_a_task_is_refused(provider: PolluxProvider, simulator: Simulator) -> None:
    """Two tasks may send equal prompts in different turns, and a retry could not tell their answers apart."""

    @task
    def ask(name: str | None) -> ResultEnvelope:
        return converse("Go on.", provider, name)

    @flow
    def ask_in_tasks(name: str | None) -> ResultEnvelope:
        return ask(name)

    for name in (None, "story"):
        with pytest.raises(ConfigurationError, match="within a task"):
            ask_in_tasks(name)
    assert simulator.requests == []
