"""Reuse: which calls a run makes, and which answers it takes from the journal."""

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
from tests.budgets import SHORT, find_worst_case
from tests.executing import execute_plan
from tests.loopback import ONCE, MakeConfig, asked, good, http, scripted, until
from tests.state.places import hold_run_lease
from tests.state.servers import Server, connect

PROMPTS = ["first", "second", "third"]


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def openai(config: MakeConfig) -> Config:
    return config("openai")


async def execute_run(
    config: Config, terms: Terms, prompts: list[str] = PROMPTS, options: Options | None = None
) -> list[Outcome]:
    return await execute_plan(make_plan(make_request(prompts, target=config.target, options=options)), config, terms)


def read_reused(envelope: ResultEnvelope) -> list[str | None]:
    return [call["reused"] for call in envelope.diagnostics["calls"]]


# --- One run ------------------------------------------------------------------------------------------------


async def test_a_rerun_asks_only_for_missing_answers(openai: Config, sim: Simulator) -> None:
    """The first run raises after one failure; the rerun reuses the answers to the other prompts."""
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError, match=r"answers to 2 of 3 prompts are saved.*the same run_key") as caught:
        await run_many(PROMPTS, config=openai, run_key="monday")
    assert caught.value.envelope is not None
    assert [bool(text) for text in caught.value.envelope.answers] == [True, False, True]
    envelope = await run_many(PROMPTS, config=openai, run_key="monday")
    assert envelope.status == "ok"
    assert [text.removeprefix("Simulated answer to: ") for text in envelope.answers] == PROMPTS
    assert len(asked(sim)) == 4
    assert read_reused(envelope) == ["run", None, "run"]
    assert envelope.metrics["n_reused"] == 2


async def test_a_run_waits_for_a_call_that_another_process_has_leased(openai: Config, sim: Simulator) -> None:
    """The run makes its other calls at once, and the leased call after the release."""
    plan = make_plan(make_request(["more"], target=openai.target))
    async with hold_run_lease(open_store(), "monday") as slots:
        await slots.acquire(plan.calls)
        running = asyncio.create_task(run_many([*PROMPTS, "more"], config=openai, run_key="monday"))
        await until(lambda: len(asked(sim)) == 3)
        await asyncio.wait({running}, timeout=0.3)
        assert not running.done()
        assert len(asked(sim)) == 3
    assert read_reused(await running) == [None] * 4
    assert len(asked(sim)) == 4


async def test_runs_with_different_run_keys_share_no_answers(openai: Config, sim: Simulator) -> None:
    """Each run without a run_key is a run of its own."""
    for key in (None, None, "a", "b"):
        await run_many(PROMPTS, config=openai, run_key=key)
    assert len(asked(sim)) == 12


async def test_a_rerun_of_a_finished_run_opens_no_session(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await run_many(PROMPTS, config=openai, run_key="monday")
    monkeypatch.setattr(execute, "open_session", None)
    again = await run_many(PROMPTS, config=openai, run_key="monday")
    assert len(asked(sim)) == 3
    assert again.answers == first.answers
    assert again.usage == first.usage


async def test_equal_prompts_of_a_run_have_an_answer_each(openai: Config, sim: Simulator) -> None:
    """A rerun after one failure reuses four answers and asks for the fifth."""
    sim.fail(Fault(status=400), contains="same")
    with pytest.raises(APIError):
        await run_many(["same"] * 5, config=openai, run_key="monday")
    assert len(asked(sim)) == 5
    envelope = await run_many(["same"] * 5, config=openai, run_key="monday")
    assert len(asked(sim)) == 6
    assert sorted(map(str, read_reused(envelope))) == ["None", "run", "run", "run", "run"]


async def test_model_options_and_sources_are_part_of_the_identity(config: MakeConfig, sim: Simulator) -> None:
    for settings in ({}, {"model": "gpt-4.1"}):
        for options in (Options(), Options(temperature=0.5)):
            for source in (None, Source.from_text("x")):
                await run("why?", config=config("openai", **settings), options=options, source=source, run_key="k")
    assert len(asked(sim)) == 8


async def test_a_blocked_answer_is_not_reused(openai: Config, sim: Simulator) -> None:
    """A rerun asks again, because it may get an answer."""
    (first,) = await execute_run(openai, Terms(run_key="k"), ["[[simulate: blocked]] why?"])
    assert first.answer is not None
    assert first.problem is not None
    await execute_run(openai, Terms(run_key="k"), ["[[simulate: blocked]] why?"])
    assert len(asked(sim)) == 2


async def test_an_empty_answer_does_not_replace_a_saved_one(openai: Config, sim: Simulator) -> None:
    """The saved answer is reused by its own run and by others."""
    await run("why?", config=openai, run_key="k")
    sim.fail(Fault(kind="empty"), times=1)
    await execute_run(openai, Terms(run_key="k", reuse="never"), ["why?"])
    for terms in (Terms(run_key="k"), Terms(reuse="always")):
        assert (await execute_run(openai, terms, ["why?"]))[0].reused == terms.reuse
    assert len(asked(sim)) == 2


async def test_the_order_of_schema_fields_is_part_of_the_identity(openai: Config, sim: Simulator) -> None:
    """A model that writes its reason before its verdict may answer differently."""
    for fields in (["reason", "verdict"], ["verdict", "reason"]):
        schema = {"type": "object", "properties": {field: {"type": "string"} for field in fields}}
        await run("why?", config=openai, options=Options(response_schema=schema), reuse="always")
    assert len(asked(sim)) == 2


async def test_two_concurrent_executions_of_a_run_pay_for_each_call_once(openai: Config, sim: Simulator) -> None:
    """The executions need not have equal lists of prompts."""
    sim.latency_s = 0.05
    await asyncio.gather(*(run_many(PROMPTS[:count], config=openai, run_key="k") for count in (2, 3)))
    assert len(asked(sim)) == 3


async def test_reuse_never_asks_again_and_saves_the_answers(openai: Config, sim: Simulator) -> None:
    """Not even answers of the same run are reused; later runs with reuse="always" find the new answers."""
    await run_many(PROMPTS, config=openai, run_key="k")
    await run_many(PROMPTS, config=openai, run_key="k", reuse="never")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always")
    assert len(asked(sim)) == 6


# --- Answers of other runs ----------------------------------------------------------------------------------


async def test_reuse_always_takes_answers_of_any_run(openai: Config, sim: Simulator) -> None:
    """Answers of runs without a run_key are reused as well."""
    await run_many(PROMPTS[:2], config=openai)
    envelope = await run_many(PROMPTS, config=openai, reuse="always")
    assert len(asked(sim)) == 3
    assert read_reused(envelope) == ["always", "always", None]


async def test_max_age_limits_which_answers_of_other_runs_are_reused(openai: Config, sim: Simulator) -> None:
    """Answers of the same run are reused at any age."""
    await run_many(PROMPTS, config=openai)
    await run_many(PROMPTS, config=openai, reuse="always", max_age=timedelta(0), run_key="k")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always", max_age=0, run_key="k")
    assert len(asked(sim)) == 6
    await run_many(PROMPTS, config=openai, reuse="always", max_age=60)
    assert len(asked(sim)) == 6


async def test_two_concurrent_runs_with_reuse_always_share_the_work(openai: Config, sim: Simulator) -> None:
    """Each call is made once, and both runs have all answers."""
    sim.latency_s = 0.05
    prompts = [f"p{n}" for n in range(40)]
    both = await asyncio.gather(*(run_many(prompts, config=openai, reuse="always") for _ in range(2)))
    assert len(asked(sim)) == 40
    assert both[0].answers == both[1].answers
    assert sum(each.metrics["n_reused"] for each in both) == 40


async def test_a_run_that_waits_for_a_call_makes_it_if_the_other_run_fails(openai: Config, sim: Simulator) -> None:
    """The failure of the other run is not reused."""
    sim.latency_s = 0.05
    sim.fail(Fault(status=400), times=1)
    both = await asyncio.gather(*(execute_run(openai, Terms(reuse="always"), ["why?"]) for _ in range(2)))
    assert sorted(outcome.answer is not None for (outcome,) in both) == [False, True]
    assert len(asked(sim)) == 2


@pytest.mark.parametrize("wrong", [{"max_age": 60}, {"reuse": "sometimes"}, {"max_cost_usd": -1.0}, {"run_key": ""}])
async def test_invalid_terms_are_refused_before_any_request(
    openai: Config, sim: Simulator, wrong: dict[str, Any]
) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        await run_many(PROMPTS, config=openai, **wrong)
    assert sim.requests == []


# --- Costs --------------------------------------------------------------------------------------------------


async def test_the_envelope_reports_the_cost_and_the_amount_saved_by_reuse(openai: Config) -> None:
    """The cost is reported for each call and in total."""
    first = await run_many(PROMPTS, config=openai)
    each = [call["cost_usd"] for call in first.diagnostics["calls"]]
    assert all(cost > 0 for cost in each)
    assert first.metrics["cost_usd"] == pytest.approx(sum(each))
    assert first.metrics["saved_usd"] == 0
    again = await run_many([*PROMPTS, "fourth"], config=openai, reuse="always")
    assert again.metrics["saved_usd"] == first.metrics["cost_usd"]
    assert again.metrics["cost_usd"] > first.metrics["cost_usd"]


async def test_an_unknown_cost_is_none_with_a_reason(config: MakeConfig) -> None:
    envelope = await run("why?", config=config("openai", model="gpt-4.1-of-ours"))
    assert envelope.metrics["cost_usd"] is None
    assert "gpt-4.1-of-ours" in envelope.metrics["cost_unknown"]


async def test_a_run_stops_at_its_budget(config: MakeConfig, sim: Simulator) -> None:
    """No further call starts; a rerun with a larger budget reuses the answers and makes the missing call."""
    settings = config("openai", request_concurrency=1)
    (first,) = await execute_run(settings, Terms(run_key="one"), PROMPTS[:1])
    assert first.cost_usd
    budget = 1.5 * first.cost_usd + await find_worst_case(settings, "second", of=3)
    found = await execute_run(settings, Terms(run_key="k", max_cost_usd=budget), options=SHORT)
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, None, "budget"]
    with pytest.raises(BudgetError, match="max_cost_usd is"):
        await run_many(PROMPTS, config=settings, options=SHORT, run_key="k", max_cost_usd=budget)
    assert len(asked(sim)) == 3
    await run_many(PROMPTS, config=settings, options=SHORT, run_key="k", max_cost_usd=1.0)
    assert len(asked(sim)) == 4


@pytest.mark.parametrize("terms", [{}, {"reuse": "never"}])
async def test_a_blocked_answer_counts_against_the_budget(openai: Config, sim: Simulator, terms: Any) -> None:
    """A run that is blocked at each attempt cannot spend more than its budget."""
    prompt = "[[simulate: blocked]] why?"
    budget = await find_worst_case(openai, prompt)
    for _ in range(3):
        await execute_run(openai, Terms(run_key="k", max_cost_usd=budget, **terms), [prompt], SHORT)
    assert len(asked(sim)) == 1


@pytest.mark.parametrize(
    ("prompt", "reuse"),
    [("[[simulate: blocked]] why?", "run"), ("why?", "never"), ("[[simulate: blocked]] why?", "never")],
)
async def test_a_budget_covers_all_attempts_of_a_run(openai: Config, sim: Simulator, prompt: str, reuse: Reuse) -> None:
    """Answers that were blocked, and answers of attempts without reuse, count as well."""
    (probe,) = await execute_run(openai, Terms(), [prompt], SHORT)
    assert probe.cost_usd is not None
    budget = 2.5 * probe.cost_usd + await find_worst_case(openai, prompt)
    for _ in range(6):
        (last,) = await execute_run(openai, Terms(run_key="k", reuse=reuse, max_cost_usd=budget), [prompt], SHORT)
    assert last.failure is not None
    assert last.failure.kind == "budget"
    assert len(asked(sim)) == 1 + 3


async def test_a_saved_answer_stays_if_a_later_attempt_is_blocked(openai: Config, sim: Simulator) -> None:
    """The cost of the blocked attempt still counts against the run's budget."""
    (first,) = await execute_run(openai, Terms(run_key="k"), ["why?"])
    sim.fail(Fault(kind="blocked"), times=1)
    (second,) = await execute_run(openai, Terms(run_key="k", reuse="never"), ["why?"])
    (third,) = await execute_run(openai, Terms(run_key="k"), ["why?"])
    assert second.problem is not None
    assert [each.answer and each.answer.text for each in (first, third)] == ["Simulated answer to: why?"] * 2
    assert third.paid_before_usd == second.cost_usd
    assert len(asked(sim)) == 2


async def test_reused_answers_of_other_runs_do_not_count_against_the_budget(openai: Config, sim: Simulator) -> None:
    await run_many(PROMPTS, config=openai, options=SHORT)
    budget = await find_worst_case(openai, "new", of=4)
    envelope = await run_many([*PROMPTS, "new"], config=openai, options=SHORT, reuse="always", max_cost_usd=budget)
    assert envelope.status == "ok"
    assert len(asked(sim)) == 4


async def test_a_budget_for_a_model_without_a_price_is_refused(config: MakeConfig, sim: Simulator) -> None:
    """If the price turns out to be unknown after the first answer, no further call is made."""
    with pytest.raises(ConfigurationError, match=r"max_cost_usd cannot be enforced.*gpt-4.1-of-ours"):
        await run("why?", config=config("openai", model="gpt-4.1-of-ours"), max_cost_usd=1.0)
    assert sim.requests == []
    async with scripted(http(good("openai", model="gpt-of-others"))) as server:
        settings = server.config("openai", request_concurrency=1)
        found = await execute_run(settings, Terms(max_cost_usd=1.0))
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, "budget", "budget"]


# --- Failures of the store ----------------------------------------------------------------------------------


async def test_a_home_that_cannot_be_written_to_is_refused_before_any_call(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that cannot be saved would be paid for again."""
    monkeypatch.setenv("POLLUX_HOME", "/proc/nowhere")
    with pytest.raises(ConfigurationError, match="POLLUX_HOME"):
        await run_many(PROMPTS, config=openai)
    assert sim.requests == []


async def test_an_answer_is_returned_although_the_store_cannot_save_it(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome names the error of the store, and no further call is made."""
    monkeypatch.setattr(answers, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(Journal, "save_answer", _refuse_to_save)
    found = await execute_run(config("openai", request_concurrency=1), Terms(run_key="k"))
    assert [outcome.answer is not None for outcome in found] == [True, False, False]
    assert found[0].save_error == "The disk is full."
    assert [outcome.failure and outcome.failure.kind for outcome in found] == [None, "state", "state"]
    assert len(asked(sim)) == 1


async def test_a_run_waits_for_a_store_that_fails_for_a_moment(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are saved when the store is available again."""
    monkeypatch.setattr(answers, "_PAUSES", (0.01,) * 50)
    save_answer, failing = Journal.save_answer, [3]

    async def fail_at_first(*args: Any) -> None:
        failing[0] -= 1
        if failing[0] >= 0:
            await _refuse_to_save()
        await save_answer(*args)

    monkeypatch.setattr(Journal, "save_answer", fail_at_first)
    settings = config("openai", retry=ONCE)
    assert all(outcome.save_error is None for outcome in await execute_run(settings, Terms(run_key="k")))
    await run_many(PROMPTS, config=settings, run_key="k")
    assert len(asked(sim)) == 3


async def test_answers_are_in_the_error_if_the_redis_is_killed_during_a_run(
    config: MakeConfig, sim: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The envelope of the error has the answers, and a warning for each answer that is not saved."""
    monkeypatch.setattr(answers, "_PAUSES", (0.0,))
    monkeypatch.setattr(redis, "_RETRIES", 2)
    server = Server(tmp_path / "redis")
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    sim.latency_s = 0.3
    running = asyncio.create_task(run_many(PROMPTS, config=config("openai", request_concurrency=2)))
    await until(lambda: len(asked(sim)) == 2)
    server.kill()
    with pytest.raises(ConfigurationError, match="Redis") as caught:
        await running
    envelope = caught.value.envelope
    assert envelope is not None
    assert [bool(text) for text in envelope.answers] == [True, True, False]
    assert sum("was written to" in warning for warning in envelope.diagnostics["warnings"]) == 2
    assert len(asked(sim)) == 2


async def _refuse_to_save(*_: Any) -> None:
    raise ConfigurationError("The disk is full.")


# --- A state that loses its records -----------------------------------------------------------------------------


def lose_before_lookup(monkeypatch: pytest.MonkeyPatch, lose: Callable[[], object]) -> None:
    """Lose the records of the state just before the error message looks them up."""
    look_for_saved = answers.Answers.check_saved

    async def lose_and_look(self: answers.Answers, outcomes: Iterable[Outcome]) -> Saved | None:
        lose()
        return await look_for_saved(self, outcomes)

    monkeypatch.setattr(answers.Answers, "check_saved", lose_and_look)


@pytest.fixture(params=["disk", "redis", "restarted redis"])
def losing_state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state that loses its records before the error message looks them up."""
    if request.param == "disk":
        lose_before_lookup(monkeypatch, lambda: shutil.rmtree(tmp_path / "state"))
        yield
        return
    server = Server(tmp_path / "redis")

    def lose() -> None:
        if request.param == "redis":
            with connect(server.url) as behind:
                behind.flushall()
        else:
            server.kill()
            server.start()

    lose_before_lookup(monkeypatch, lose)
    server.start()
    monkeypatch.setenv("POLLUX_STATE_URL", server.url)
    yield
    server.kill()


@pytest.mark.usefixtures("losing_state")
@pytest.mark.parametrize("terms", [{"run_key": "monday"}, {}, {"reuse": "always"}])
async def test_an_error_reports_answers_that_the_state_has_lost(
    openai: Config, sim: Simulator, terms: dict[str, Any]
) -> None:
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError) as caught:
        await run_many(PROMPTS, config=openai, **terms)
    hint = caught.value.hint or ""
    assert "answers to 2 of 3 prompts are no longer in the state" in hint
    assert "running again asks, and pays for, everything again" in hint
    assert "are saved" not in hint


async def test_an_error_reports_that_saved_answers_could_not_be_looked_up(
    openai: Config, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "has_answers", _refuse_to_save)
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    with pytest.raises(APIError, match="still saved could not be checked: The disk is full"):
        await run_many(PROMPTS, config=openai, run_key="monday")


# --- Pruning --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [Terms(), Terms(reuse="always"), Terms(run_key="monday")])
async def test_a_run_records_whether_it_is_complete(openai: Config, sim: Simulator, terms: Terms) -> None:
    """Answers of an incomplete run are not pruned, because its retry needs them."""
    sim.fail(Fault(status=400, message="not this one"), contains="second")
    store = open_store()
    for complete in (False, True):
        await execute_run(openai, terms)
        runs = [key.split("/")[1] async for key in store.list_keys("run/") if key.count("/") == 1]
        assert complete in [await is_complete(store, run) for run in runs]
        assert (len(runs) == 1) is (complete is False or terms.run_key is not None)
