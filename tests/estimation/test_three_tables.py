"""Tests of estimates of three kinds of tables: the expected cost is close to the bill, and nothing is generated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import pytest
from pydantic import BaseModel

from pollux_flows import Config, Estimate, Options, collect_deferred, defer_many, estimate_many, run_many
from pollux_flows.config import ProviderName
from pollux_flows.pipeline.terms import Reuse
from pollux_flows.simulator import Simulator
from tests.loopback import SDKS, MakeConfig, asked

with_counter = pytest.mark.parametrize("provider", SDKS)


class Ticket(BaseModel):
    """A row of structured answers: some of it fixed, some of it free."""

    kind: Literal["complaint", "question", "praise"]
    urgency: int
    is_customer: bool
    summary: str
    product: str | None


def make_texts(count: int, seed: str, words: tuple[int, int]) -> list[str]:
    """Return prompts with random numbers of words, all different."""
    rng = random.Random(seed)  # noqa: S311 (not for secrets)
    return [
        f"{number}: {' '.join('x' * rng.randint(1, 12) for _ in range(rng.randint(*words)))}" for number in range(count)
    ]


async def estimate_and_run(
    sim: Simulator, config: Config, prompts: Sequence[str], options: Options | None = None, reuse: Reuse = "run"
) -> tuple[Estimate, float]:
    """Return the estimate of a run, for which nothing is generated, and then its bill."""
    sim.reset()
    estimate = await estimate_many(prompts, config=config, options=options, reuse=reuse)
    assert {each.operation for each in sim.requests} == {"count_tokens"}
    envelope = await run_many(prompts, config=config, options=options, reuse=reuse)
    assert len(asked(sim)) == estimate.to_ask
    return estimate, envelope.metrics["cost_usd"] - envelope.metrics["saved_usd"]


@with_counter
async def test_the_estimate_of_long_texts_with_short_answers_is_close_to_the_bill(
    sim: Simulator, config: MakeConfig, provider: ProviderName
) -> None:
    """Only the maximum length of the answers is known, and they cost little."""
    prompts = make_texts(60, f"long {provider}", (1_000, 5_000))
    estimate, bill = await estimate_and_run(sim, config(provider), prompts, Options(max_tokens=100))
    assert estimate.cost_usd.expected == pytest.approx(bill, rel=0.15)
    assert (estimate.calls, estimate.to_ask, estimate.counted) == (60, 60, 20)


@with_counter
async def test_the_estimate_of_structured_answers_is_close_to_the_bill(
    sim: Simulator, config: MakeConfig, provider: ProviderName
) -> None:
    """The length of the answers is estimated from the schema."""
    prompts = make_texts(60, f"structured {provider}", (20, 150))
    options = Options(response_schema=Ticket, system_instruction="You read tickets.")
    estimate, bill = await estimate_and_run(sim, config(provider), prompts, options)
    assert estimate.cost_usd.expected == pytest.approx(bill, rel=0.15)


@with_counter
async def test_the_estimate_of_partly_answered_prompts_is_close_to_the_bill(
    sim: Simulator, config: MakeConfig, provider: ProviderName
) -> None:
    """Answered prompts are not paid for again, and show how long the other answers will be."""
    prompts = make_texts(120, f"short {provider}", (3, 20))
    await run_many(prompts[:20], config=config(provider))
    estimate, bill = await estimate_and_run(sim, config(provider), prompts, reuse="always")
    assert (estimate.calls, estimate.reused, estimate.to_ask) == (120, 20, 100)
    assert estimate.cost_usd.expected == pytest.approx(bill, rel=0.15)


@with_counter
async def test_the_estimate_of_a_batch_is_close_to_the_bill(
    sim: Simulator, config: MakeConfig, provider: ProviderName
) -> None:
    """A batch costs about half as much as the same calls in realtime."""
    sim.batch_s = 0.0
    prompts, options = make_texts(30, f"batch {provider}", (100, 500)), Options(max_tokens=50)
    estimate = await estimate_many(prompts, config=config(provider), options=options)
    handle = await defer_many(prompts, config=config(provider), options=options)
    envelope = await collect_deferred(handle, config=config(provider))
    assert estimate.batch_cost_usd.expected == pytest.approx(envelope.metrics["cost_usd"], rel=0.15)
    assert estimate.batch_cost_usd.expected == pytest.approx((estimate.cost_usd.expected or 0) / 2, rel=0.01)
