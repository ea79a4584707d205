"""Tests of splitting: work beyond the limits of one batch is submitted as several, and collected as one."""

from __future__ import annotations

from importlib import import_module

import pytest

from pollux_flows import ConfigurationError, collect_deferred, defer_many, inspect_deferred
from pollux_flows.config import ProviderName
from pollux_flows.providers.batches import BatchLimits
from pollux_flows.simulator import Simulator
from tests.loopback import SDKS, MakeConfig

every_batch_system = pytest.mark.parametrize("provider", SDKS)


def set_limits(monkeypatch: pytest.MonkeyPatch, provider: ProviderName, limits: BatchLimits) -> None:
    monkeypatch.setattr(import_module(f"pollux_flows.providers.{provider}.batch"), "LIMITS", limits)


@every_batch_system
async def test_rows_are_split_by_count(
    provider: ProviderName, sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.batch_s = 0
    set_limits(monkeypatch, provider, BatchLimits(rows=50, size_bytes=1 << 30))
    prompts = [f"Question {number}?" for number in range(120)]
    handle = await defer_many(prompts, config=config(provider))
    assert [batch.rows for batch in sim.batches] == [50, 50, 20]
    assert (handle.request_count, (await inspect_deferred(handle, config=config(provider))).succeeded) == (120, 120)
    envelope = await collect_deferred(handle, config=config(provider))
    assert envelope.answers == [f"Simulated answer to: {prompt}" for prompt in prompts]
    assert envelope.diagnostics["deferred"]["batches"] == [batch.id for batch in sim.batches]


@every_batch_system
async def test_rows_are_split_by_size(
    provider: ProviderName, sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim.batch_s = 0
    set_limits(monkeypatch, provider, BatchLimits(rows=1000, size_bytes=10_000))
    prompts = [f"{number} {'long ' * (100 * number)}" for number in range(12)]
    handle = await defer_many(prompts, config=config(provider))
    sizes = [sum(len(line) + 1 for line in batch.input) for batch in sim.batches]
    assert len(sizes) > 3
    assert max(sizes) <= 10_000
    envelope = await collect_deferred(handle, config=config(provider))
    assert [answer.split()[3] for answer in envelope.answers] == [str(number) for number in range(12)]


@every_batch_system
async def test_a_row_beyond_the_limit_is_refused(
    provider: ProviderName, sim: Simulator, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is submitted, and the error names the prompt."""
    set_limits(monkeypatch, provider, BatchLimits(rows=1000, size_bytes=1_000))
    with pytest.raises(ConfigurationError, match=r"prompts\[1\] is a row of"):
        await defer_many(["short", "long " * 1000, "short"], config=config(provider))
    assert sim.batches == []
