"""A budget is never exceeded: each call reserves its worst case before it is made."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pollux_flows import BudgetError, Config, ConfigurationError, Options, RetryPolicy, Source, run, run_many
from pollux_flows.config import ProviderName
from pollux_flows.pipeline import spending
from pollux_flows.pipeline.execute import open_execution
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.terms import SharedBudget, Terms
from pollux_flows.result import Outcome
from pollux_flows.simulator import Fault, Simulator
from pollux_flows.state.store import open_store
from tests.budgets import SHORT, compute_bill, find_worst_case
from tests.executing import execute_plan
from tests.loopback import KEY, MODELS, ONCE, MakeConfig, asked, good, http, scripted, until

ROOT = Path(__file__).parents[2]
OPTIONS = Options(max_tokens=200)
# Prompts are long, so that the cost of an answer is not negligible beside its worst case.
PROMPTS = [f"{number:04} " + "why? " * 60 for number in range(120)]
CONCURRENCY = 50


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


@pytest.fixture
def openai(config: MakeConfig) -> Config:
    return config("openai", request_concurrency=CONCURRENCY)


async def execute(config: Config, prompts: list[str], terms: Terms, options: Options = OPTIONS) -> list[Outcome]:
    return await execute_plan(make_plan(make_request(prompts, target=config.target, options=options)), config, terms)


async def measure_cost_of_one(config: Config, sim: Simulator) -> float:
    """Run the first prompt, and return its cost."""
    await run(PROMPTS[0], config=config, options=OPTIONS)
    usd = compute_bill(sim)
    sim.reset()
    return usd


def list_failure_kinds(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.failure.kind if outcome.failure else None for outcome in outcomes]


async def load_ledger() -> dict[str, Any]:
    """Return the only ledger in the store."""
    (record,) = [record async for _, record in open_store().scan("budget/")]
    return record


# --- The limit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [{}, {"run_key": "k"}, {"run_key": "k", "reuse": "always"}])
async def test_a_run_spends_its_budget_up_to_less_than_one_worst_case(
    openai: Config, sim: Simulator, terms: dict[str, Any]
) -> None:
    """Fifty calls are under way at once, and some of them are refused and retried."""
    most = await find_worst_case(openai, PROMPTS[0], OPTIONS, of=len(PROMPTS))
    budget = (await measure_cost_of_one(openai, sim)) * len(PROMPTS) / 2
    assert budget > 3 * most
    sim.latency_s = 0.01
    sim.fail(Fault(status=429), times=20)
    found = await execute(openai, PROMPTS, Terms(max_cost_usd=budget, **terms))
    assert budget - most < compute_bill(sim) <= budget
    assert set(list_failure_kinds(found)) == {None, "budget"}
    assert sum(outcome.cost_usd or 0.0 for outcome in found if not outcome.reused) == pytest.approx(compute_bill(sim))


async def test_a_budget_error_names_the_cost_so_far_and_the_limit(config: MakeConfig) -> None:
    serial = config("openai", request_concurrency=1)
    most = await find_worst_case(serial, "why?", of=3)
    with pytest.raises(
        BudgetError,
        match=r"has cost \$0.0000\d+ so far, this call may cost up to \$0.00018, and max_cost_usd is \$0.00018",
    ):
        await run_many(["why?"] * 3, config=serial, options=SHORT, max_cost_usd=1.01 * most)


async def test_an_attempt_of_unknown_outcome_stays_counted_in_full(config: MakeConfig, sim: Simulator) -> None:
    """The attempt may have been billed, and so may each retry: each reserves its worst case."""
    serial = config("openai", request_concurrency=1, retry=RetryPolicy(max_attempts=9, initial_delay_s=0.0))
    most = await find_worst_case(serial, "why?")
    sim.fail(Fault(kind="drop_after"), times=None)
    (outcome,) = await execute(serial, ["why?"], Terms(max_cost_usd=3.5 * most, run_key="k"), SHORT)
    assert (outcome.attempts, outcome.unknown_attempts) == (3, 3)
    assert outcome.failure is not None
    assert outcome.failure.outcome_unknown
    assert len(asked(sim)) == 3
    assert (await load_ledger())["spent"] == pytest.approx(3 * most)


async def test_a_call_that_the_provider_refused_costs_nothing(config: MakeConfig, sim: Simulator) -> None:
    serial = config("openai", request_concurrency=1, retry=ONCE)
    most = await find_worst_case(serial, "why?", of=9)
    sim.fail(Fault(status=400), times=4)
    sim.fail(Fault(status=429), times=4)
    found = await execute(serial, ["why?"] * 9, Terms(max_cost_usd=most), SHORT)
    assert list_failure_kinds(found) == [*["api_error"] * 4, *["rate_limit"] * 4, None]


USAGE = {"output_tokens": 9, "completion_tokens": 9}


@pytest.mark.parametrize(
    ("provider", "reply"),
    [
        ("openai", http({"error": {"message": "no answer came"}}, 504)),
        ("openai", http({"error": {"message": "no answer came"}}, 524)),
        ("openai", http({**good("openai"), "status": "failed", "error": {"code": "server_error"}, "usage": USAGE})),
        ("openrouter", http({"choices": [{"error": {"code": 500, "message": "cut"}}], "usage": USAGE})),
    ],
)
async def test_an_error_that_may_be_billed_stays_counted_in_full(provider: ProviderName, reply: bytes) -> None:
    """A model may go on after its gateway has timed out, and may be billed for half an answer."""
    async with scripted(reply) as server:
        serial = server.config(provider, model=MODELS[provider], retry=ONCE)
        plan = make_plan(make_request("why?", target=serial.target, options=SHORT))
        async with open_execution(plan, serial, Terms(max_cost_usd=1.0, run_key="k"), session=None) as execution:
            (outcome,) = await execution.answer_calls(plan.calls)
            most = (await execution.find_worst_case(plan.calls[0])).usd("why?")
    assert outcome.failure is not None
    assert outcome.failure.outcome_unknown
    assert (await load_ledger())["spent"] == pytest.approx(most)


async def test_output_beyond_max_tokens_counts_against_the_budget() -> None:
    """The first answer of a provider that ignores max_tokens exhausts the budget."""
    usage = {"input_tokens": 10, "output_tokens": 1_000, "total_tokens": 1_010}
    async with scripted(http(good("openai", usage=usage))) as server:
        serial = server.config("openai", request_concurrency=1)
        most = await find_worst_case(serial, "why?", of=3)
        found = await execute(serial, ["why?"] * 3, Terms(max_cost_usd=9 * most), SHORT)
        assert (found[0].cost_usd or 0.0) > 9 * most
        assert list_failure_kinds(found) == [None, "budget", "budget"]
        assert len(server.requests) == 1


async def test_a_cancelled_call_stays_counted_in_full(config: MakeConfig, sim: Simulator) -> None:
    serial = config("openai", request_concurrency=1)
    most = await find_worst_case(serial, "why?")
    sim.latency_s = 5.0
    asking = asyncio.create_task(execute(serial, ["why?"], Terms(max_cost_usd=most, run_key="k"), SHORT))
    await until(lambda: len(asked(sim)) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await load_ledger())["spent"] == pytest.approx(most)


@pytest.mark.parametrize("provider", ["gemini", "openai", "anthropic", "openrouter"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system_instruction": "Antworte auf Deutsch: 日本語もいいです。" * 9},
        {"response_schema": {"type": "object", "properties": {"why": {"type": "string"}}, "required": ["why"]}},
        {"tools": [{"name": "find", "description": "Find it.", "parameters": {"type": "object", "properties": {}}}]},
        {"history": [{"role": "user", "content": "Who?" * 50}, {"role": "assistant", "content": "Nobody. " * 50}]},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
async def test_no_call_costs_more_than_its_worst_case(
    config: MakeConfig, provider: ProviderName, options: dict[str, Any]
) -> None:
    """The worst case is an upper bound for each provider and all kinds of options."""
    settings, prompt = config(provider), "Почему небо голубое? " * 20
    limited = Options(max_tokens=500, **options)
    most = await find_worst_case(settings, prompt, limited)
    (outcome,) = await execute(settings, [prompt], Terms(max_cost_usd=most), limited)
    assert outcome.cost_usd is not None
    assert 0 < outcome.cost_usd <= most


# --- Refusals before a call is sent ---------------------------------------------------------------------------


async def test_a_budget_below_one_call_is_refused(openai: Config, sim: Simulator) -> None:
    """The error names both amounts, and its hint two remedies that work: a smaller max_tokens and a larger budget."""
    with pytest.raises(
        BudgetError, match=r"one call may cost up to \$0.0018 .*, and max_cost_usd is \$0.0005\."
    ) as caught:
        await run("why?", config=openai, options=Options(max_tokens=1_000), max_cost_usd=5e-4)
    hint = caught.value.hint or ""
    assert sim.requests == []
    shorter = int(hint.partition("max_tokens=")[2].partition(")")[0])
    await run("why?", config=openai, options=Options(max_tokens=shorter), max_cost_usd=5e-4)
    enough = float(hint.partition("to $")[2].split()[0])
    await run("why?", config=openai, options=Options(max_tokens=1_000), max_cost_usd=enough)


async def test_without_max_tokens_the_output_limit_of_the_model_counts(openai: Config, sim: Simulator) -> None:
    with pytest.raises(BudgetError, match=r"\$0.053 \(\d+ tokens of input, 32,768 of output\)"):
        await run("why?", config=openai, max_cost_usd=0.05)
    assert sim.requests == []


async def test_a_call_without_a_known_worst_case_is_refused(config: MakeConfig, sim: Simulator) -> None:
    """The hint says what would bound the cost."""
    for settings, options, hint in (
        (config("openai", model="gpt-5.5-cyber"), Options(), "max_tokens"),
        (
            config("openai", model="gpt-5.5-cyber"),
            Options(max_tokens=100, provider_options={"openai": {"tools": []}}),
            "text",
        ),
    ):
        with pytest.raises(ConfigurationError, match=r"No budget can be enforced: The .* unknown") as caught:
            await run("why?", config=settings, options=options, max_cost_usd=100.0)
        assert hint in (caught.value.hint or "")
    assert asked(sim) == []


@pytest.mark.parametrize(
    ("provider", "raw"),
    [
        ("openai", {"tools": [{"type": "web_search"}]}),
        ("openai", {"service_tier": "scale"}),
        ("gemini", {"tools": [{"google_search": {}}]}),
        ("gemini", {"serviceTier": "priority"}),
        ("anthropic", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("anthropic", {"inference_geo": "us"}),
        ("anthropic", {"speed": "fast"}),
        ("openrouter", {"models": ["anthropic/claude-opus-4"]}),
    ],
)
async def test_raw_options_that_cost_an_unknown_amount_are_refused(
    config: MakeConfig, sim: Simulator, provider: ProviderName, raw: dict[str, Any]
) -> None:
    """Otherwise, all calls that are under way at once could be billed above their worst case."""
    options = Options(max_tokens=100, provider_options={provider: raw})
    with pytest.raises(ConfigurationError, match=r"No budget can be enforced: (With|genai-prices)"):
        await run("why?", config=config(provider), options=options, max_cost_usd=100.0)
    assert asked(sim) == []


async def test_an_output_limit_that_the_provider_ignores_does_not_lower_the_worst_case(config: MakeConfig) -> None:
    openrouter = config("openrouter")
    usual = await find_worst_case(openrouter, "why?", Options(max_tokens=5_000))
    for name in ("max_output_tokens", "max_completion_tokens"):
        raw = Options(max_tokens=5_000, provider_options={"openrouter": {name: 16}})
        assert await find_worst_case(openrouter, "why?", raw) == pytest.approx(usual, rel=0.01)


async def test_a_source_that_is_not_text_counts_as_the_full_context_of_the_model(
    config: MakeConfig, tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(BudgetError, match=r"1,050,000 tokens of input"):
        await run("why?", source=Source.from_file(image), config=config("openai"), options=SHORT, max_cost_usd=0.1)
    text = Source.from_text("Why? " * 1_000)
    with pytest.raises(BudgetError, match=r"\(5,\d\d\d tokens of input"):
        await run("why?", source=text, config=config("openai"), options=SHORT, max_cost_usd=0.001)


# --- Several attempts -----------------------------------------------------------------------------------------


async def test_the_cost_of_earlier_attempts_counts_once(config: MakeConfig, sim: Simulator) -> None:
    """A retry finds the cost in the ledger and the answers in the journal."""
    serial = config("openai", request_concurrency=1, retry=ONCE)
    prompts = [f"p{number}" for number in range(6)]
    most = await find_worst_case(serial, "p0", of=6)
    sim.fail(Fault(status=400), contains="p5")
    first = await execute(serial, prompts, Terms(run_key="k", max_cost_usd=1.0), SHORT)
    paid = compute_bill(sim)
    assert (await load_ledger())["spent"] == pytest.approx(paid)
    again = await execute(serial, prompts, Terms(run_key="k", max_cost_usd=paid + 1.01 * most), SHORT)
    assert list_failure_kinds(first) == [*[None] * 5, "api_error"]
    assert list_failure_kinds(again) == [None] * 6
    assert (await load_ledger())["spent"] == pytest.approx(compute_bill(sim))
    more = await execute(
        serial, [*prompts, "p6"], Terms(run_key="k", max_cost_usd=compute_bill(sim) + 0.99 * most), SHORT
    )
    assert list_failure_kinds(more) == [*[None] * 6, "budget"]


async def test_the_cost_of_attempts_without_a_budget_counts(config: MakeConfig, sim: Simulator) -> None:
    """Attempts without a budget, like those of earlier versions, write no ledger."""
    serial = config("openai", request_concurrency=1)
    most = await find_worst_case(serial, "p0", of=3)
    await execute(serial, ["p0", "p1"], Terms(run_key="k"), SHORT)
    assert [key async for key in open_store().list_keys("budget/")] == []
    for more, expected in ((0.99, "budget"), (1.01, None)):
        found = await execute(
            serial, ["p0", "p1", "p2"], Terms(run_key="k", max_cost_usd=compute_bill(sim) + more * most), SHORT
        )
        assert list_failure_kinds(found) == [None, None, expected]


# --- Shared budgets ---------------------------------------------------------------------------------------------


async def test_runs_with_the_same_budget_name_share_the_budget(config: MakeConfig, sim: Simulator) -> None:
    """Runs without a run_key share it as well; the cost of runs without the budget does not count."""
    serial = config("openai", request_concurrency=1)
    most = await find_worst_case(serial, "why?")
    await execute(serial, ["why?"], Terms(), SHORT)
    cost = compute_bill(sim)
    for name, expected in (("a", [None, None, "budget"]), ("b", [None])):
        shared = SharedBudget(name=name, usd_in_total=most + 1.5 * cost)
        for kind in expected:
            assert list_failure_kinds(await execute(serial, ["why?"], Terms(budget=shared), SHORT)) == [kind]
    assert len(asked(sim)) == 4


async def test_a_call_must_fit_into_both_budgets(config: MakeConfig, sim: Simulator) -> None:
    serial = config("openai", request_concurrency=1)
    most = await find_worst_case(serial, "why?", of=2)
    for limit, total, words in ((1.0, 0.9, "total budget 'team' is"), (0.9, 1.0, "max_cost_usd is")):
        shared = SharedBudget(name="team", usd_in_total=total * most)
        with pytest.raises(BudgetError, match=words):
            await execute(serial, ["why?"], Terms(max_cost_usd=limit * most, budget=shared, run_key="k"), SHORT)
    assert asked(sim) == []


async def test_a_daily_budget_begins_anew_each_day(
    config: MakeConfig, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is also renewed within a run that continues after midnight."""
    serial = config("openai", request_concurrency=1)
    terms = Terms(budget=SharedBudget(name="team", usd_per_day=1.01 * await find_worst_case(serial, "why?", of=4)))
    found = await execute(serial, ["why?"] * 4, terms, SHORT)
    assert list_failure_kinds(found) == [None, "budget", "budget", "budget"]
    assert found[1].failure is not None
    assert "after midnight (UTC)" in (found[1].failure.hint or "")
    days = iter([f"day {number}" for number in range(1_000)])
    monkeypatch.setattr(spending, "_today", lambda: next(days))
    assert list_failure_kinds(await execute(serial, ["why?"] * 4, terms, SHORT)) == [None] * 4
    assert len(asked(sim)) == 5


async def test_a_shared_budget_may_apply_to_each_provider_separately(config: MakeConfig) -> None:
    openai, gemini = config("openai", request_concurrency=1), config("gemini", request_concurrency=1)
    amount = 1.01 * await find_worst_case(openai, "why?")
    for is_each, expected in ((True, None), (False, "budget")):
        terms = Terms(budget=SharedBudget(name=f"{is_each}", usd_in_total=amount, each_provider=is_each))
        assert list_failure_kinds(await execute(openai, ["why?"], terms, SHORT)) == [None]
        assert list_failure_kinds(await execute(openai, ["why?"], terms, SHORT)) == ["budget"]
        assert list_failure_kinds(await execute(gemini, ["why?"], terms, Options(max_tokens=300))) == [expected]


PROGRAM = textwrap.dedent("""
    import asyncio, json, sys
    from pollux_flows import BudgetError, Config, Options, run_many
    config, prompts, terms = map(json.loads, sys.argv[1:4])
    sys.stdout.write("ready")
    sys.stdout.flush()
    sys.stdin.readline()
    try:
        asyncio.run(run_many(prompts, config=Config(**config), options=Options(max_tokens=200), **terms))
    except BudgetError as error:
        sys.stdout.write(error.message)
""")


def start_process(config: Config, prompts: list[str], **terms: Any) -> subprocess.Popen[str]:
    """Start a process that waits for a line of input before its run begins."""
    settings = {**config.model_dump(mode="json"), "api_key": KEY}
    command = [sys.executable, "-c", PROGRAM, *map(json.dumps, (settings, prompts, terms))]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def begin_runs(*processes: subprocess.Popen[str]) -> None:
    """Let all processes begin their runs once each of them is ready."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.read(5) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


@pytest.mark.timeout(120)
async def test_two_processes_of_a_run_share_its_budget(openai: Config, sim: Simulator) -> None:
    most = await find_worst_case(openai, PROMPTS[0], OPTIONS, of=len(PROMPTS))
    budget = (await measure_cost_of_one(openai, sim)) * len(PROMPTS) / 2
    sim.latency_s = 0.02
    both = [start_process(openai, part, run_key="k", max_cost_usd=budget) for part in (PROMPTS[:60], PROMPTS[60:])]
    begin_runs(*both)
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert any("max_cost_usd is" in each for each in outputs)
    assert budget - 2 * most < compute_bill(sim) <= budget
    assert (await load_ledger())["tranches"] == {}
    assert (await load_ledger())["spent"] == pytest.approx(compute_bill(sim))


@pytest.mark.timeout(120)
async def test_a_killed_process_costs_at_most_its_reservation(openai: Config, sim: Simulator) -> None:
    """The calls of the killed process may have been billed, so the next process spends only the rest of the budget."""
    most = await find_worst_case(openai, PROMPTS[0], OPTIONS, of=len(PROMPTS))
    budget = 60 * most
    sim.latency_s = 0.05
    killed = start_process(openai, PROMPTS, run_key="k", max_cost_usd=budget)
    begin_runs(killed)
    await until(lambda: len(asked(sim)) >= 70)
    killed.kill()
    killed.wait()
    sim.latency_s = 0.0
    lost = sum(tranche["usd"] for tranche in (await load_ledger())["tranches"].values())
    assert 0 < lost <= budget
    found = await execute(openai, PROMPTS, Terms(run_key="k", max_cost_usd=budget))
    assert compute_bill(sim) <= budget
    record = await load_ledger()
    assert record["spent"] + lost <= budget + 1e-9
    if "budget" in list_failure_kinds(found):
        assert record["spent"] + lost > budget - most
