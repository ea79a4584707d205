"""Paid once: which answers a run asks for, and which it has already."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import (
    APIError,
    BudgetError,
    Config,
    ConfigurationError,
    Options,
    ResultEnvelope,
    Source,
    run,
    run_many,
)
from pollux_flows.pipeline import answers, execute
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.saved_answers import Saved
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import Outcome
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state import redis
from pollux_flows.state.journal import Journal
from pollux_flows.state.maintenance import is_complete
from pollux_flows.state.store import open_store
from tests.budgets import SHORT, worst_case
from tests.executing import execute_plan
from tests.loopback import ONCE, MakeConfig, asked, good, http, scripted, until
from tests.state.places import at_work
from tests.state.servers import Server, client

PROMPTS = ["first", "second", "third"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def openai(config: MakeConfig) -> Config:
    return config("openai")


async def outcomes(
    config: Config, terms: Terms, prompts: list[str] = PROMPTS, options: Options | None = None
) -> list[Outcome]:
    return await execute_plan(make_plan(make_request(prompts, target=config.target, options=options)), config, terms)


def reused(envelope: ResultEnvelope) -> list[str | None]:
    return [call["reused"] for call in envelope.diagnostics["calls"]]


# --- The same run -------------------------------------------------------------------------------------------


async def test_a_run_goes_on_where_it_failed(openai: Config, sim: Simulator) -> None:
    """The first failure raises; the siblings that were paid for are not asked again."""
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError, match=r"answers to 2 of 3 prompts are saved.*the same run_key") as raised:
        await run_many(PROMPTS, config=openai, run_key="monday")
    assert raised.value.envelope is not None
    assert [bool(text) for text in raised.value.envelope.answers] == [True, False, True]
    envelope = await run_many(PROMPTS, config=openai, run_key="monday")
    assert envelope.status == "ok"
    assert [text.removeprefix("Simulated answer to: ") for text in envelope.answers] == PROMPTS
    assert len(asked(sim)) == 4
    assert reused(envelope) == ["run", None, "run"]
    assert envelope.metrics["n_reused"] == 2


async def test_a_run_waits_for_what_another_process_is_asking_for_it(openai: Config, sim: Simulator) -> None:
    """Only for that: the rest it asks at once, and a question that comes free it asks itself."""
    plan = make_plan(make_request(["more"], target=openai.target))
    async with at_work(open_store(), "monday") as slots:
        await slots.acquire(plan.calls)
        running = asyncio.create_task(run_many([*PROMPTS, "more"], config=openai, run_key="monday"))
        await until(lambda: len(asked(sim)) == 3)
        await asyncio.wait({running}, timeout=0.3)
        assert not running.done()
        assert len(asked(sim)) == 3
    assert reused(await running) == [None] * 4
    assert len(asked(sim)) == 4


async def test_a_new_run_asks_again(openai: Config, sim: Simulator) -> None:
    """A name is what makes two calls one run."""
    for key in (None, None, "a", "b"):
        await run_many(PROMPTS, config=openai, run_key=key)
    assert len(asked(sim)) == 12


async def test_a_finished_run_meets_no_provider(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor opens a connection to one."""
    first = await run_many(PROMPTS, config=openai, run_key="monday")
    monkeypatch.setattr(execute, "open_session", None)
    again = await run_many(PROMPTS, config=openai, run_key="monday")
    assert len(asked(sim)) == 3
    assert again.answers == first.answers
    assert again.usage == first.usage


async def test_five_times_the_same_is_five_answers(openai: Config, sim: Simulator) -> None:
    """And a rerun gives the same five."""
    sim.fail(Fault(status=400), contains="same")
    with pytest.raises(APIError):
        await run_many(["same"] * 5, config=openai, run_key="monday")
    assert len(asked(sim)) == 5
    envelope = await run_many(["same"] * 5, config=openai, run_key="monday")
    assert len(asked(sim)) == 6
    assert sorted(map(str, reused(envelope))) == ["None", "run", "run", "run", "run"]


async def test_another_question_is_not_answered_by_an_earlier_one(config: MakeConfig, sim: Simulator) -> None:
    """Whatever can change the answer is part of its name."""
    for settings in ({}, {"model": "gpt-4.1"}):
        for options in (Options(), Options(temperature=0.5)):
            for source in (None, Source.from_text("x")):
                await run("why?", config=config("openai", **settings), options=options, source=source, run_key="k")
    assert len(asked(sim)) == 8


async def test_what_was_blocked_is_asked_again(openai: Config, sim: Simulator) -> None:
    """It is no answer, and a retry is there to get one."""
    (first,) = await outcomes(openai, Terms(run_key="k"), ["[[simulate: blocked]] why?"])
    assert first.answer is not None
    assert first.problem is not None
    await outcomes(openai, Terms(run_key="k"), ["[[simulate: blocked]] why?"])
    assert len(asked(sim)) == 2


async def test_what_is_no_answer_does_not_take_the_place_of_one(openai: Config, sim: Simulator) -> None:
    """Neither in its own run, nor for the others."""
    await run("why?", config=openai, run_key="k")
    sim.fail(Fault(kind="empty"), times=1)
    await outcomes(openai, Terms(run_key="k", reuse="never"), ["why?"])
    for terms in (Terms(run_key="k"), Terms(reuse="always")):
        assert (await outcomes(openai, terms, ["why?"]))[0].reused == terms.reuse
    assert len(asked(sim)) == 2


async def test_the_order_of_fields_counts(openai: Config, sim: Simulator) -> None:
    """A model that is to give its reason before its verdict answers another way."""
    for fields in (["reason", "verdict"], ["verdict", "reason"]):
        schema = {"type": "object", "properties": {field: {"type": "string"} for field in fields}}
        await run("why?", config=openai, options=Options(response_schema=schema), reuse="always")
    assert len(asked(sim)) == 2


async def test_two_at_once_on_one_run(openai: Config, sim: Simulator) -> None:
    """Also if they do not make the same calls: who comes second finds what the first has paid for."""
    sim.latency_s = 0.05
    await asyncio.gather(*(run_many(PROMPTS[:count], config=openai, run_key="k") for count in (2, 3)))
    assert len(asked(sim)) == 3


async def test_never_means_never(openai: Config, sim: Simulator) -> None:
    """Not even in the same run; but what comes is kept, for those who want it."""
    await run_many(PROMPTS, config=openai, run_key="k")
    await run_many(PROMPTS, config=openai, run_key="k", reuse="never")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always")
    assert len(asked(sim)) == 6


# --- Any run ------------------------------------------------------------------------------------------------


async def test_always_takes_anybodys_answer(openai: Config, sim: Simulator) -> None:
    """Also one of a run that had no name."""
    await run_many(PROMPTS[:2], config=openai)
    envelope = await run_many(PROMPTS, config=openai, reuse="always")
    assert len(asked(sim)) == 3
    assert reused(envelope) == ["always", "always", None]


async def test_always_can_want_fresh_answers(openai: Config, sim: Simulator) -> None:
    """Older ones are asked for again; but a run keeps what it has paid for itself."""
    await run_many(PROMPTS, config=openai)
    await run_many(PROMPTS, config=openai, reuse="always", max_age=timedelta(0), run_key="k")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always", max_age=0, run_key="k")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always", max_age=60)
    assert len(asked(sim)) == 6


async def test_two_at_once_pay_once(openai: Config, sim: Simulator) -> None:
    """They share the work, and both have all of it."""
    sim.latency_s = 0.05
    prompts = [f"p{n}" for n in range(40)]
    both = await asyncio.gather(*(run_many(prompts, config=openai, reuse="always") for _ in range(2)))
    assert len(asked(sim)) == 40
    assert both[0].answers == both[1].answers
    assert sum(each.metrics["n_reused"] for each in both) == 40


async def test_whoever_waits_takes_over_when_the_other_fails(openai: Config, sim: Simulator) -> None:
    """Its failure is its own."""
    sim.latency_s = 0.05
    sim.fail(Fault(status=400), times=1)
    both = await asyncio.gather(*(outcomes(openai, Terms(reuse="always"), ["why?"]) for _ in range(2)))
    assert sorted(outcome.answer is not None for (outcome,) in both) == [False, True]
    assert len(asked(sim)) == 2


@pytest.mark.parametrize("wrong", [{"max_age": 60}, {"reuse": "sometimes"}, {"max_cost_usd": -1.0}, {"run_key": ""}])
async def test_terms_that_make_no_sense_are_refused(openai: Config, sim: Simulator, wrong: dict[str, Any]) -> None:
    """In words, before anything is sent."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        await run_many(PROMPTS, config=openai, **wrong)
    assert sim.requests == []


# --- Money --------------------------------------------------------------------------------------------------


async def test_the_cost_is_told_and_what_was_saved(openai: Config) -> None:
    """Of each call, in all, and how much of it was not paid again."""
    first = await run_many(PROMPTS, config=openai)
    each = [call["cost_usd"] for call in first.diagnostics["calls"]]
    assert all(cost > 0 for cost in each)
    assert first.metrics["cost_usd"] == pytest.approx(sum(each))
    assert first.metrics["saved_usd"] == 0
    again = await run_many([*PROMPTS, "fourth"], config=openai, reuse="always")
    assert again.metrics["saved_usd"] == first.metrics["cost_usd"]
    assert again.metrics["cost_usd"] > first.metrics["cost_usd"]


async def test_an_unknown_price_is_no_price(config: MakeConfig) -> None:
    """Never 0, and with the reason."""
    envelope = await run("why?", config=config("openai", model="gpt-4.1-of-ours"))
    assert envelope.metrics["cost_usd"] is None
    assert "gpt-4.1-of-ours" in envelope.metrics["cost_unknown"]


async def test_a_run_stops_at_its_budget(config: MakeConfig, sim: Simulator) -> None:
    """No new call starts; what was answered is kept, and a larger budget goes on from there."""
    settings = config("openai", request_concurrency=1)
    (first,) = await outcomes(settings, Terms(run_key="one"), PROMPTS[:1])
    assert first.cost_usd
    budget = 1.5 * first.cost_usd + await worst_case(settings, "second", of=3)
    found = await outcomes(settings, Terms(run_key="k", max_cost_usd=budget), options=SHORT)
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, None, "budget"]
    with pytest.raises(BudgetError, match="max_cost_usd is"):
        await run_many(PROMPTS, config=settings, options=SHORT, run_key="k", max_cost_usd=budget)
    assert len(asked(sim)) == 3
    await run_many(PROMPTS, config=settings, options=SHORT, run_key="k", max_cost_usd=1.0)
    assert len(asked(sim)) == 4


@pytest.mark.parametrize("terms", [{}, {"reuse": "never"}])
async def test_what_was_paid_for_and_is_of_no_use_was_paid_for(openai: Config, sim: Simulator, terms: Any) -> None:
    """A run that is tried again and again, and blocked each time, comes to an end."""
    prompt = "[[simulate: blocked]] why?"
    budget = await worst_case(openai, prompt)
    for _ in range(3):
        await outcomes(openai, Terms(run_key="k", max_cost_usd=budget, **terms), [prompt], SHORT)
    assert len(asked(sim)) == 1


@pytest.mark.parametrize(
    ("prompt", "reuse"),
    [("[[simulate: blocked]] why?", "run"), ("why?", "never"), ("[[simulate: blocked]] why?", "never")],
)
async def test_a_budget_holds_over_all_attempts_of_a_run(
    openai: Config, sim: Simulator, prompt: str, reuse: Reuse
) -> None:
    """Whatever became of the answers: each was paid for."""
    (probe,) = await outcomes(openai, Terms(), [prompt], SHORT)
    assert probe.cost_usd is not None
    budget = 2.5 * probe.cost_usd + await worst_case(openai, prompt)
    for _ in range(6):
        (last,) = await outcomes(openai, Terms(run_key="k", reuse=reuse, max_cost_usd=budget), [prompt], SHORT)
    assert last.failure is not None
    assert last.failure.kind == "budget"
    assert len(asked(sim)) == 1 + 3


async def test_an_answer_stays_when_asking_again_brings_none(openai: Config, sim: Simulator) -> None:
    """And what that cost is in the run's budget all the same."""
    (first,) = await outcomes(openai, Terms(run_key="k"), ["why?"])
    sim.fail(Fault(kind="blocked"), times=1)
    (second,) = await outcomes(openai, Terms(run_key="k", reuse="never"), ["why?"])
    (kept,) = await outcomes(openai, Terms(run_key="k"), ["why?"])
    assert second.problem is not None
    assert [each.answer and each.answer.text for each in (first, kept)] == ["Simulated answer to: why?"] * 2
    assert kept.paid_before_usd == second.cost_usd
    assert len(asked(sim)) == 2


async def test_what_others_paid_for_is_not_in_the_budget(openai: Config, sim: Simulator) -> None:
    """An answer that cost this run nothing leaves it its money."""
    await run_many(PROMPTS, config=openai, options=SHORT)
    budget = await worst_case(openai, "new", of=4)
    envelope = await run_many([*PROMPTS, "new"], config=openai, options=SHORT, reuse="always", max_cost_usd=budget)
    assert envelope.status == "ok"
    assert len(asked(sim)) == 4


async def test_a_budget_needs_a_price(config: MakeConfig, sim: Simulator) -> None:
    """Refused before anything is sent; and where it turns out on the way, nothing more is."""
    with pytest.raises(ConfigurationError, match=r"max_cost_usd cannot be enforced.*gpt-4.1-of-ours"):
        await run("why?", config=config("openai", model="gpt-4.1-of-ours"), max_cost_usd=1.0)
    assert sim.requests == []
    async with scripted(http(good("openai", model="gpt-of-somebody"))) as server:
        settings = server.config("openai", request_concurrency=1)
        found = await outcomes(settings, Terms(max_cost_usd=1.0))
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, "budget", "budget"]


# --- A store that fails -------------------------------------------------------------------------------------


async def test_a_home_that_cannot_be_written_to_is_refused_before_anything_is_paid(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that could not be kept would be paid for again."""
    monkeypatch.setenv("POLLUX_HOME", "/proc/nowhere")
    with pytest.raises(ConfigurationError, match="POLLUX_HOME"):
        await run_many(PROMPTS, config=openai)
    assert sim.requests == []


async def test_a_store_that_fails_meanwhile_costs_no_answer(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is given, and said not to be kept; nothing more is asked for."""
    monkeypatch.setattr(answers, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(Journal, "save_answer", _full)
    found = await outcomes(config("openai", request_concurrency=1), Terms(run_key="k"))
    assert [outcome.answer is not None for outcome in found] == [True, False, False]
    assert found[0].save_error == "The disk is full."
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, "state", "state"]
    assert len(asked(sim)) == 1


async def test_a_store_that_is_away_for_a_moment_is_waited_for(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are kept when it is back, and the run has missed nothing."""
    monkeypatch.setattr(answers, "_PAUSES", (0.01,) * 50)
    kept, failing = Journal.save_answer, [3]

    async def sometimes(*args: Any) -> None:
        failing[0] -= 1
        if failing[0] >= 0:
            await _full()
        await kept(*args)

    monkeypatch.setattr(Journal, "save_answer", sometimes)
    settings = config("openai", retry=ONCE)
    assert all(outcome.save_error is None for outcome in await outcomes(settings, Terms(run_key="k")))
    await run_many(PROMPTS, config=settings, run_key="k")
    assert len(asked(sim)) == 3


async def test_a_redis_that_goes_away_costs_no_answer(
    config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come is in the error's envelope, which says what could not be written down, and why."""
    monkeypatch.setattr(answers, "_PAUSES", (0.0,))
    monkeypatch.setattr(redis, "_RETRIES", 2)
    server = Server(tmp_path / "redis")
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    sim.latency_s = 0.3
    running = asyncio.create_task(run_many(PROMPTS, config=config("openai", request_concurrency=2)))
    await until(lambda: len(asked(sim)) == 2)
    server.kill()
    with pytest.raises(ConfigurationError, match="Redis") as raised:
        await running
    envelope = raised.value.envelope
    assert envelope is not None
    assert [bool(text) for text in envelope.answers] == [True, True, False]
    assert sum("was written to" in warning for warning in envelope.diagnostics["warnings"]) == 2
    assert len(asked(sim)) == 2


async def _full(*_: Any) -> None:
    raise ConfigurationError("The disk is full.")


# --- A state that is lost -------------------------------------------------------------------------------------


def lose_before_the_look(monkeypatch: pytest.MonkeyPatch, lose: Callable[[], object]) -> None:
    """Lose what is in the state just before a person is told about it."""
    look = answers.Answers.check_saved

    async def lost(self: answers.Answers, outcomes: Iterable[Outcome]) -> Saved | None:
        lose()
        return await look(self, outcomes)

    monkeypatch.setattr(answers.Answers, "check_saved", lost)


@pytest.fixture(params=["disk", "redis", "restarted redis"])
def losing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state that is lost before the look."""
    if request.param == "disk":
        lose_before_the_look(monkeypatch, lambda: shutil.rmtree(tmp_path / "state"))
        yield
        return
    server = Server(tmp_path / "redis")

    def lose() -> None:
        if request.param == "redis":
            with client(server.url) as behind:
                behind.flushall()
        else:
            server.kill()
            server.start()

    lose_before_the_look(monkeypatch, lose)
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    yield
    server.kill()


@pytest.mark.usefixtures("losing")
@pytest.mark.parametrize("terms", [{"run_key": "monday"}, {}, {"reuse": "always"}])
async def test_no_answer_is_called_kept_that_the_state_has_lost(
    openai: Config, sim: Simulator, terms: dict[str, Any]
) -> None:
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError) as raised:
        await run_many(PROMPTS, config=openai, **terms)
    hint = raised.value.hint or ""
    assert "answers to 2 of 3 prompts are no longer in the state" in hint
    assert "running again asks, and pays for, everything again" in hint
    assert "are saved" not in hint


async def test_what_cannot_be_looked_up_is_not_called_kept(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "has_answers", _full)
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError, match="still saved could not be checked: The disk is full"):
        await run_many(PROMPTS, config=openai, run_key="monday")


# --- Room -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [Terms(), Terms(reuse="always"), Terms(run_key="monday")])
async def test_a_run_says_whether_it_needs_no_retry(openai: Config, sim: Simulator, terms: Terms) -> None:
    """Until it has all its answers, what it has paid for makes no room for others."""
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    store = open_store()
    for complete in (False, True):
        await outcomes(openai, terms)
        runs = [key.split("/")[1] async for key in store.list_keys("run/") if key.count("/") == 1]
        assert complete in [await is_complete(store, run) for run in runs]
        assert (len(runs) == 1) is (complete is False or terms.run_key is not None)
