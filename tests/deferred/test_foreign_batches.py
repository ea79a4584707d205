"""Tests of reconciliation beside foreign batches: batches of the account that other programs have submitted."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI

from pollux_flows import collect_deferred, defer_many, inspect_deferred
from pollux_flows.providers.batches import BatchLimits
from pollux_flows.simulator import Fault, Simulator
from tests.loopback import KEY, ONCE, MakeConfig

PROMPTS = ["one", "two", "three"]


async def test_a_foreign_batch_does_not_delay_a_resubmission(
    sim: Simulator, config: MakeConfig, world: tuple[Simulator, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our request did not arrive. A running foreign batch of the same size does not leave that undecided."""
    settings = config("openai", retry=ONCE)
    async with AsyncOpenAI(api_key=KEY, base_url=sim.base_url("openai", world[1])) as client:
        body = {"model": settings.model, "input": "theirs"}
        rows = [
            f'{{"custom_id": "{n}", "method": "POST", "url": "/v1/responses", "body": {body}}}'.replace("'", '"')
            for n in range(len(PROMPTS))
        ]
        file = await client.files.create(file=("theirs.jsonl", "\n".join(rows).encode()), purpose="batch")
        sim.batch(takes_s=3600)
        await client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    sim.batch_s = 0
    sim.fail(Fault(kind="drop"), operation="batch.create")
    monkeypatch.setattr("pollux_flows.deferred.reconcile.SETTLED_S", 0.0)
    handle = await defer_many(PROMPTS, config=settings)
    await inspect_deferred(handle, config=settings)
    assert (await collect_deferred(handle, config=settings)).status == "ok"
    assert len(sim.batches) == 2


async def test_a_part_is_not_mistaken_for_another_of_the_same_job(
    sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part is running, and the request of another with as many rows did not arrive."""
    settings = config("anthropic", retry=ONCE)
    sim.batch_s = 3600
    sim.fail(Fault(kind="drop"), operation="batch.create", contains="four")
    monkeypatch.setattr("pollux_flows.providers.anthropic.batch.LIMITS", BatchLimits(rows=3, size_bytes=1 << 20))
    monkeypatch.setattr("pollux_flows.deferred.reconcile.SETTLED_S", 0.0)
    handle = await defer_many([*PROMPTS, "four", "five", "six"], config=settings)
    assert (await inspect_deferred(handle, config=settings)).pending == len(PROMPTS) * 2
    assert [batch.rows for batch in sim.batches] == [3, 3]
