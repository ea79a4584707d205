"""defer and its companions, on all three batch systems: handed in, looked at, collected, cancelled."""

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
async def test_what_is_deferred_comes_back_in_order(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
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
async def test_a_batch_costs_half(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 0
    now = await run_many(PROMPTS, config=config(provider))
    later = await collect_deferred(await defer_many(PROMPTS, config=config(provider)), config=config(provider))
    assert later.metrics["cost_usd"] == pytest.approx(now.metrics["cost_usd"] / 2)


@every_batch_system
async def test_files_a_schema_and_a_system_instruction(
    provider: ProviderName, sim: Simulator, config: MakeConfig, tmp_path: Path
) -> None:
    sim.batch_s = 0
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.7\n" + bytes(200))
    options = Options(system_instruction="Be brief.", response_schema=City)
    handle = await defer("Which city?", source=Source.from_file(pdf), config=config(provider), options=options)
    assert any(file.deleted_at is None for file in sim.files)
    await inspect_deferred(handle, config=config(provider))
    assert any(file.deleted_at is None for file in sim.files), "looking deletes nothing"
    kept = DeferredHandle.from_dict(json.loads(json.dumps(handle.to_dict())))
    assert kept == handle
    plain = await collect_deferred(kept, config=config(provider))
    assert plain.structured is not None
    assert isinstance(plain.structured[0], dict)
    city = await collect_deferred(kept, config=config(provider), response_schema=City)
    assert city.structured is not None
    assert isinstance(city.structured[0], City)
    with pytest.raises(ConfigurationError, match="not the one"):
        await collect_deferred(kept, config=config(provider), response_schema={"type": "object"})


@every_batch_system
async def test_the_input_is_deleted_once_it_is_collected(
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
async def test_a_job_keeps_files_as_the_config_that_submitted_it_says(  # noqa: PLR0917 (each is a fixture or a parameter)
    provider: ProviderName,
    keep_files_s: float,
    source_stays: bool,
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
) -> None:
    """Whatever the Config that collects says. No other job can use the batch's input file: it never stays."""
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
async def test_every_end(provider: ProviderName, end: str, sim: Simulator, config: MakeConfig) -> None:
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
async def test_rows_that_are_missing_doubled_or_nobodys(
    provider: ProviderName, sim: Simulator, config: MakeConfig
) -> None:
    """Told for each, and no error."""
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
async def test_an_unknown_word_is_no_end(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    sim.batch(status="BATCH_STATE_PONDERING" if provider == "gemini" else "pondering")
    handle = await defer("a", config=config(provider))
    seen = await inspect_deferred(handle, config=config(provider))
    assert (seen.status, seen.is_terminal) == ("running", False)


@every_batch_system
async def test_cancel(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    handle = await defer_many(PROMPTS, config=config(provider))
    await cancel_deferred(handle, config=config(provider))
    await cancel_deferred(handle, config=config(provider))
    sim.clock = lambda: time.time() + 3601
    seen = await inspect_deferred(handle, config=config(provider))
    assert (seen.status, seen.failed) == ("cancelled", 3)
    envelope = await collect_deferred(handle, config=config(provider))
    assert [item["status"] for item in envelope.diagnostics["deferred"]["items"]] == ["cancelled"] * 3
    await cancel_deferred(handle, config=config(provider))  # of what is done, nothing is left to cancel


@every_batch_system
async def test_the_same_run_hands_in_once(provider: ProviderName, sim: Simulator, config: MakeConfig) -> None:
    sim.batch_s = 3600
    first = await defer_many(PROMPTS, config=config(provider), run_key="nightly")
    assert await defer_many(PROMPTS, config=config(provider), run_key="nightly") == first
    assert (await defer_many(PROMPTS, config=config(provider))).job_id != first.job_id
    assert (await defer_many(["else"], config=config(provider), run_key="nightly")).job_id != first.job_id
    assert len(sim.batches) == 3


@every_batch_system
async def test_collected_elsewhere_from_the_handle_alone(
    provider: ProviderName, sim: Simulator, config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that knows nothing of it, by a package that has more to say, with a key from the environment."""
    sim.batch_s = 0
    told = (await defer_many(PROMPTS, config=config(provider))).to_dict()
    told["provider_state"]["job"]["something_new"] = {"a": 1}
    told["something_new"] = True
    monkeypatch.setenv("POLLUX_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv(KEY_VARIABLES[provider], KEY)
    handle = DeferredHandle.from_dict(told)
    with pytest.raises(ConfigurationError, match="not sent to"):  # a handle says where to ask, not where keys go
        await inspect_deferred(handle)
    monkeypatch.setenv(URL_VARIABLES[provider], str(config(provider).base_url))
    assert (await inspect_deferred(handle)).status == "completed"
    assert (await collect_deferred(handle)).status == "ok"


def test_a_handle_of_another_time() -> None:
    with pytest.raises(ConfigurationError, match="newer pollux_flows"):
        DeferredHandle(job_id="b", provider="openai", model="m", request_count=1, submitted_at=0.0, version=99)


async def test_a_handle_that_is_none(config: MakeConfig) -> None:
    handle = DeferredHandle(job_id="b", provider="openai", model="m", request_count=1, submitted_at=0.0)
    with pytest.raises(ConfigurationError, match="does not describe a job"):
        await inspect_deferred(handle, config=config("openai"))
    with pytest.raises(ConfigurationError, match="is a dict"):
        await inspect_deferred({}, config=config("openai"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("provider", "options", "said"),
    [
        ("openai", {"tools": [{"name": "f"}]}, "Tool calling cannot be deferred"),
        ("anthropic", {"implicit_caching": False}, "implicit_caching cannot be deferred"),
        ("anthropic", {"temperature": 0.5}, "sampling"),
        ("openai", {"reasoning_budget_tokens": 5}, "reasoning_budget"),
        ("openrouter", {}, "deferred"),
        ("local", {}, "deferred"),
    ],
)
async def test_refused_before_any_upload(  # noqa: PLR0917 (each is a fixture or a parameter)
    provider: ProviderName,
    options: dict[str, Any],
    said: str,
    sim: Simulator,
    config: MakeConfig,
    tmp_path: Path,
) -> None:
    pdf = tmp_path / "report.txt"
    pdf.write_text("a text")
    sources = [] if provider == "local" else [Source.from_file(pdf)]
    with pytest.raises(ConfigurationError, match=said):
        await defer_many(PROMPTS, sources=sources, config=config(provider), options=Options(**options))
    assert sim.requests == []


async def test_nothing_to_defer(sim: Simulator, config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="no prompts"):
        await defer_many([], config=config("gemini"))
    assert sim.requests == []


@every_batch_system
async def test_the_simulator_in_process(provider: ProviderName) -> None:
    settings = Config(provider=provider, model=MODELS[provider], use_mock=True)
    handle = await defer_many(PROMPTS, config=settings)
    deadline = time.monotonic() + 10
    while not (await inspect_deferred(handle)).is_terminal:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (await collect_deferred(handle)).status == "ok"
