"""Budgets of batches: the worst cases of all calls of a job, at batch prices, are checked before its submission."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pollux_flows import BudgetError, Config, Options
from pollux_flows.config import ProviderName
from pollux_flows.deferred.budget import check_child_budget, check_job_budget, price_job
from pollux_flows.deferred.job import new_job
from pollux_flows.deferred.store import JobRequest, StateJobStore
from pollux_flows.output import Manifest
from pollux_flows.pipeline.plan import Plan, make_plan
from pollux_flows.pipeline.request import Request, make_request
from pollux_flows.providers.session import open_session
from pollux_flows.state.store import open_store
from tests.budgets import SHORT, find_worst_case
from tests.loopback import SDKS, MakeConfig


@pytest.fixture(autouse=True)
def _fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path))


def build_request(config: Config, count: int, options: Options = SHORT) -> Request:
    return make_request([f"question {number}" for number in range(count)], target=config.target, options=options)


def build_plan(config: Config, count: int, options: Options = SHORT) -> Plan:
    return make_plan(build_request(config, count, options))


@pytest.mark.parametrize("provider", SDKS)
async def test_a_job_costs_at_most_half_of_what_its_calls_cost_now(config: MakeConfig, provider: ProviderName) -> None:
    settings = config(provider)
    options = Options(max_tokens=5_000)
    async with open_session(settings) as session:
        most = price_job(build_plan(settings, 10, options), session)
    now = await find_worst_case(settings, "question 0", options, of=10)
    assert most == pytest.approx(10 * now / 2, rel=0.1)


async def test_a_job_above_the_limit_is_refused(config: MakeConfig) -> None:
    """The error names the amount, and its hint a limit that is sufficient."""
    settings = config("openai")
    plan = build_plan(settings, 10)
    async with open_session(settings) as session:
        most = price_job(plan, session)
        check_job_budget(plan, session, most)
        with pytest.raises(BudgetError, match=r"10 prompts may cost up to \$0.0008\d as a batch") as caught:
            check_job_budget(plan, session, 0.9 * most)
        check_job_budget(plan, session, float((caught.value.hint or "").partition("to $")[2].split()[0]))


async def test_a_child_job_must_fit_into_the_rest_of_the_budget(config: MakeConfig) -> None:
    """Failed calls are submitted again as a child job if the rest of the budget covers them."""
    settings = config("openai")
    plan = build_plan(settings, 10)
    async with open_session(settings) as session:
        most = price_job(plan, session)

        async def check(limit_usd: float | None, **manifest: Any) -> float | None:
            store, name = StateJobStore(open_store()), uuid4().hex
            job = new_job(name, plan, time.time(), None, max_cost_usd=limit_usd)
            await store.save_request(name, JobRequest.of(build_request(settings, 10), plan.contents))
            found = Manifest(submitted=10, failed=5, collected_at=0.0, **manifest)
            return await check_child_budget(store, job.with_manifest(found), range(5), session)

        assert await check(None, cost_usd=1.0) is None
        assert await check(most, cost_usd=0.4 * most) == pytest.approx(0.6 * most)
        with pytest.raises(BudgetError, match=r"5 prompts may cost up to .*, and \$0.0003\d* of max_cost_usd"):
            await check(most, cost_usd=0.6 * most)
        with pytest.raises(BudgetError, match=r"Not submitted again: .* can no longer be enforced\. Who knows\."):
            await check(most, cost_usd=None, cost_unknown="Who knows.")
        with pytest.raises(BudgetError, match="returned no result"):
            await check(most, cost_usd=0.0, missing=1)
