"""Tests of defer, inspect_deferred, collect_deferred and cancel_deferred on all three batch systems."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pollux_flows import (
    Config,
    ConfigurationError,
    DeferredHandle,
    DeferredNotReadyError,
    Options,
    Source,
    cancel_deferred,
    collect_deferred,
    defer,
    defer_many,
    inspect_deferred,
    run_many,
)
from pollux_flows.config import KEY_VARIABLES, URL_VARIABLES, ProviderName
from pollux_flows.simulator import Simulator
from tests.loopback import KEY, MODELS, SDKS, MakeConfig

every_batch_system = pytest.mark.parametrize("provider", SDKS)
PROMPTS = ["one", "two", "three"]


class City(BaseModel):
    name: str
    people: int


@every_batch_system
async def test_answers_come_in_the_order_of_the_prompts(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    sim.batch_s = 60
    handle = await defer_many(PROMPTS, config=config(provider))
    assert (handle.provider, handle.request_count, handle.job_id) == (provider, 3, sim.batches[0].id)
    with pytest.raises(DeferredNotReadyError) as caught:
        await collect_deferred(handle, config=config(provider))
    seen = caught.value.snapshot
    assert seen is not None
    assert (seen.status in {"queued", "running"}, seen.pending, seen.is_terminal) == (True, 3, False)
    sim.clock = lambda: time.time() + 61
    seen = await inspect_deferred(handle, config=config(provider))
    assert (seen.status, seen.succeeded, seen.failed, seen.pending, seen.is_terminal) == ("completed", 3, 0, 0, True)
    envelope = await collect_deferred(handle, config=config(provider))
    assert (envelope.status, envelope.answers) == ("ok", [f"Simulated answer to: {prompt}" for prompt in PROMPTS])
    assert envelope.metrics["deferred"] is True
    assert envelope.metrics["n_calls"] == 3
    assert envelope.diagnostics["deferred"]["job_id"] == handle.job_id
    assert [item["status"] for item in envelope.diagnostics["deferred"]["items"]] == ["succeeded"] * 3
    again = await collect_deferred(handle, config=config(provider))
    assert again.answers == envelope.answers
    assert len(sim.batches) == 1


@every_batch_system
async def test_a_batch_costs_half_of_realtime_calls(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 0
    now = await run_many(PROMPTS, config=config(provider))
    later = await collect_deferred(await defer_many(PROMPTS, config=config(provider)), config=config(provider))
    assert later.metrics["cost_usd"] == pytest.approx(now.metrics["cost_usd"] / 2)


@every_batch_system
async def test_files_schema_and_system_instruction_reach_the_provider(
    provider: ProviderName, sim: Simulator, config: MakeConfig, tmp_path: Path
) -> None:
    sim.batch_s = 0
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7\n" + bytes(200))
    options = Options(system_instruction="Be brief.", response_schema=City)
    handle = await defer("Which city?", source=Source.from_file(pdf), config=config(provider), options=options)
    assert any(file.deleted_at is None for file in sim.files)
    await inspect_deferred(handle, config=config(provider))
    assert any(file.deleted_at is None for file in sim.files), "inspection deletes nothing"
    restored = DeferredHandle.from_dict(json.loads(json.dumps(handle.to_dict())))
    assert restored == handle
    plain = await collect_deferred(restored, config=config(provider))
    assert plain.structured is not None
    assert isinstance(plain.structured[0], dict)
    city = await collect_deferred(restored, config=config(provider), response_schema=City)
    assert city.structured is not None
    assert isinstance(city.structured[0], City)
    with pytest.raises(ConfigurationError, match="not the one"):
        await collect_deferred(restored, config=config(provider), response_schema={"type": "object"})


@every_batch_system
async def test_collection_deletes_the_uploads(
    provider: ProviderName, sim: Simulator, config: MakeConfig, tmp_path: Path
) -> None:
    sim.batch_s = 0
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7\n" + bytes(200))
    settings = config(provider, keep_files_s=0.0)
    handle = await defer_many(PROMPTS, sources=[Source.from_file(pdf)], config=settings)
    ours = {file.id for file in sim.files}
    await collect_deferred(handle, config=settings)
    assert {file.id for file in sim.files if file.id in ours and file.deleted_at is None} == set()


@every_batch_system
@pytest.mark.parametrize(("keep_files_s", "source_stays"), [(0.0, False), (3600.0, True)])
async def test_source_files_stay_as_long_as_the_submitting_config_says(  # noqa: PLR0917 (each is a fixture or a parameter)
    provider: ProviderName,
    keep_files_s: float,
    source_stays: bool,
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
) -> None:
    """The Config that collects has no influence. The file of the rows is always deleted: no other job can use it."""
    sim.batch_s = 0
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7\n" + bytes(200))
    handle = await defer_many(
        PROMPTS, sources=[Source.from_file(pdf)], config=config(provider, keep_files_s=keep_files_s)
    )
    ours = {file.id for file in sim.files}
    assert len(ours) == (1 if provider == "anthropic" else 2)
    await collect_deferred(handle, config=config(provider, keep_files_s=3600.0 - keep_files_s))
    alive = [file for file in sim.files if file.id in ours and file.deleted_at is None]
    assert len(alive) == source_stays


@every_batch_system
@pytest.mark.parametrize("end", ["partial", "expired", "cancelled", "failed"])
async def test_each_ending_of_a_batch_has_its_status(
    provider: ProviderName, end: str, sim: Simulator, config: MakeConfig
) -> None:
    sim.batch_s = 0
    sim.batch(end=end, answered=0.5)
    handle = await defer_many(["a", "b", "c", "d"], config=config(provider))
    seen = await inspect_deferred(handle, config=config(provider))
    envelope = await collect_deferred(handle, config=config(provider))
    statuses = [item["status"] for item in envelope.diagnostics["deferred"]["items"]]
    if end == "failed":
        assert (seen.status, envelope.status, statuses) == ("failed", "error", ["failed"] * 4)
        return
    left = {"partial": "failed"}.get(end, end)
    assert statuses == ["succeeded", "succeeded", left, left]
    assert (envelope.status, envelope.answers[2:]) == ("partial", ["", ""])
    assert (seen.status, seen.succeeded, seen.failed) == ("partial", 2, 2)


@every_batch_system
async def test_missing_duplicate_and_foreign_rows_are_reported(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """The envelope names each of them, and collection succeeds."""
    sim.batch_s = 0
    sim.batch(missing=1, duplicates=2, unknown=3)
    envelope = await collect_deferred(
        await defer_many([f"p{n}" for n in range(6)], config=config(provider)), config=config(provider)
    )
    statuses = [item["status"] for item in envelope.diagnostics["deferred"]["items"]]
    assert sorted(statuses) == ["missing", *["succeeded"] * 5]
    warnings = " ".join(envelope.diagnostics["warnings"])
    assert "2 results came twice" in warnings
    assert "3 results came that belong to no prompt" in warnings
    failure = next(failure for failure in envelope.errors or [] if failure)
    assert (failure.kind, failure.outcome_unknown) == ("missing", True)


@every_batch_system
async def test_an_unknown_provider_status_counts_as_running(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    sim.batch_s = 3600
    sim.batch(status="BATCH_STATE_PONDERING" if provider == "gemini" else "pondering")
    handle = await defer("a", config=config(provider))
    seen = await inspect_deferred(handle, config=config(provider))
    assert (seen.status, seen.is_terminal) == ("running", False)


@every_batch_system
async def test_cancelled_work_can_be_collected(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    handle = await defer_many(PROMPTS, config=config(provider))
    await cancel_deferred(handle, config=config(provider))
    await cancel_deferred(handle, config=config(provider))
    sim.clock = lambda: time.time() + 3601
    seen = await inspect_deferred(handle, config=config(provider))
    assert (seen.status, seen.failed) == ("cancelled", 3)
    envelope = await collect_deferred(handle, config=config(provider))
    assert [item["status"] for item in envelope.diagnostics["deferred"]["items"]] == ["cancelled"] * 3
    await cancel_deferred(handle, config=config(provider))  # after its end, this changes nothing


@every_batch_system
async def test_equal_calls_with_one_run_key_submit_one_batch(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    sim.batch_s = 3600
    first = await defer_many(PROMPTS, config=config(provider), run_key="nightly")
    assert await defer_many(PROMPTS, config=config(provider), run_key="nightly") == first
    assert (await defer_many(PROMPTS, config=config(provider))).job_id != first.job_id
    assert (await defer_many(["else"], config=config(provider), run_key="nightly")).job_id != first.job_id
    assert len(sim.batches) == 3


@every_batch_system
async def test_a_handle_is_enough_to_collect_on_another_machine(
    provider: ProviderName, sim: Simulator, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine has no state of the job, a newer package and the key in its environment."""
    sim.batch_s = 0
    data = (await defer_many(PROMPTS, config=config(provider))).to_dict()
    data["provider_state"]["job"]["something_new"] = {"a": 1}
    data["something_new"] = True
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv(KEY_VARIABLES[provider], KEY)
    handle = DeferredHandle.from_dict(data)
    with pytest.raises(ConfigurationError, match="not sent to"):  # a handle says where to ask, not where keys go
        await inspect_deferred(handle)
    monkeypatch.setenv(URL_VARIABLES[provider], str(config(provider).base_url))
    assert (await inspect_deferred(handle)).status == "completed"
    assert (await collect_deferred(handle)).status == "ok"


def test_a_handle_of_a_newer_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="newer pollux_flows"):
        DeferredHandle(job_id="b", provider="openai", model="m", request_count=1, submitted_at=0.0, version=99)


async def test_an_invalid_handle_is_refused(config: MakeConfig) -> None:
    handle = DeferredHandle(job_id="b", provider="openai", model="m", request_count=1, submitted_at=0.0)
    with pytest.raises(ConfigurationError, match="does not describe a job"):
        await inspect_deferred(handle, config=config("openai"))
    with pytest.raises(ConfigurationError, match="is a dict"):
        await inspect_deferred({}, config=config("openai"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("provider", "options", "problem"),
    [
        ("openai", {"tools": [{"name": "f"}]}, "Tool calling cannot be deferred"),
        ("anthropic", {"implicit_caching": False}, "implicit_caching cannot be deferred"),
        ("anthropic", {"temperature": 0.5}, "sampling"),
        ("openai", {"reasoning_budget_tokens": 5}, "reasoning_budget"),
        ("openrouter", {}, "deferred"),
        ("local", {}, "deferred"),
    ],
)
async def test_unsupported_options_are_refused_before_any_upload(  # noqa: PLR0917 (each is a fixture or a parameter)
    provider: ProviderName,
    options: dict[str, Any],
    problem: str,
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
) -> None:
    pdf = tmp_path / "report.txt"
    pdf.write_text("a text")
    sources = [] if provider == "local" else [Source.from_file(pdf)]
    with pytest.raises(ConfigurationError, match=problem):
        await defer_many(PROMPTS, sources=sources, config=config(provider), options=Options(**options))
    assert sim.requests == []


async def test_an_empty_list_of_prompts_is_refused(sim: Simulator, config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="no prompts"):
        await defer_many([], config=config("gemini"))
    assert sim.requests == []


@every_batch_system
async def test_the_in_process_simulator_answers_deferred_work(provider: ProviderName) -> None:
    settings = Config(provider=provider, model=MODELS[provider], use_mock=True)
    handle = await defer_many(PROMPTS, config=settings)
    deadline = time.monotonic() + 10
    while not (await inspect_deferred(handle)).is_terminal:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (await collect_deferred(handle)).status == "ok"
