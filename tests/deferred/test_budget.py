"""Budgets of batches: all of a job's worst cases, at batch prices, before it is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pollux_flows import BudgetError, Config, Options
from pollux_flows.config import ProviderName
from pollux_flows.deferred.budget import check_job_budget, price_job, reserve_job, settle_job
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session
from pollux_flows.result import Answer, Outcome
from pollux_flows.state.slots import RunScope
from pollux_flows.state.store import open_store
from tests.budgets import SHORT, worst_case
from tests.loopback import SDKS, MakeConfig

SCOPE = RunScope("k")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


def plan_of(config: Config, count: int, options: Options = SHORT) -> Plan:
    return make_plan(
        make_request([f"question {number}" for number in range(count)], target=config.target, options=options)
    )


@pytest.mark.parametrize("provider", SDKS)
async def test_a_job_costs_at_most_half_of_what_its_calls_cost_now(config: MakeConfig, provider: ProviderName) -> None:
    settings = config(provider)
    options = Options(max_tokens=5_000)
    async with open_session(settings) as session:
        most = price_job(plan_of(settings, 10, options), session)
    now = await worst_case(settings, "question 0", options, of=10)
    assert most == pytest.approx(10 * now / 2, rel=0.1)


async def test_a_job_above_the_limit_is_refused(config: MakeConfig) -> None:
    """In words, with what would do."""
    settings = config("openai")
    plan = plan_of(settings, 10)
    async with open_session(settings) as session:
        most = price_job(plan, session)
        check_job_budget(plan, session, most)
        with pytest.raises(BudgetError, match=r"10 prompts may cost up to \$0.0008\d as a batch") as raised:
            check_job_budget(plan, session, 0.9 * most)
        check_job_budget(plan, session, float((raised.value.hint or "").partition("to $")[2].split()[0]))


async def test_a_job_holds_its_part_of_a_budget_until_its_answers_are_there(config: MakeConfig) -> None:
    """Then it has cost what they cost; what is unknown stays reserved."""
    settings, store = config("openai"), open_store()
    plan = plan_of(settings, 10)
    async with open_session(settings) as session:
        most = price_job(plan, session)

        async def reserve(job: str) -> None:
            await reserve_job(store, SCOPE, job, plan=plan, session=session, limit_usd=1.5 * most)

        await reserve("one")
        await reserve("one")  # a retry
        with pytest.raises(BudgetError, match=r"of which \$0.0004\d* is left"):
            await reserve("two")
        outcome = Outcome(index=0, identity="i", attempts=1, answer=Answer(text="a", finish_reason="stop"))
        await settle_job(store, SCOPE, "one", [outcome])
        with pytest.raises(BudgetError):
            await reserve("two")
        await settle_job(store, SCOPE, "one", [outcome.model_copy(update={"cost_usd": most / 4})])
        await reserve("two")
