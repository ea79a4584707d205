"""The public API as type checkers see it. Nothing here runs: `make check` reads it."""

from __future__ import annotations

from typing import Any, assert_type

import polars as pl
from pydantic import BaseModel, SecretStr

from pollux_flows import (
    APIError,
    CacheHandle,
    Config,
    ConfigurationError,
    DeferredHandle,
    DeferredSnapshot,
    Estimate,
    Options,
    PolluxError,
    RateLimitError,
    ResultEnvelope,
    RetryPolicy,
    Source,
    cancel_deferred,
    collect_deferred,
    continue_tool,
    create_cache,
    defer,
    defer_many,
    estimate_many,
    inspect_deferred,
    run,
    run_many,
)
from pollux_flows.blocks import PolluxDeferredJob, PolluxProvider
from pollux_flows.deferred.report import CollectReport
from pollux_flows.flows import (
    abroadcast,
    acancel,
    acollect,
    adeferred,
    aestimate,
    afan_in,
    afan_out,
    arealtime,
    aresubmit,
    asubmit,
    await_for,
    broadcast,
    cancel,
    collect,
    deferred,
    estimate,
    fan_in,
    fan_out,
    map_rows,
    realtime,
    resubmit,
    submit,
    wait_for,
)
from pollux_flows.mapping.report import MapReport


class Invoice(BaseModel):
    total: int


def documents() -> None:
    """Documents, as users write them."""
    Config(provider="gemini", model="gemini-2.5-flash-lite")
    config = Config(
        provider="openai",
        model="gpt-5-nano",
        api_key="sk-…",
        base_url="http://127.0.0.1:8000/v1",
        use_mock=True,
        request_concurrency=12,
        retry=RetryPolicy(max_attempts=5, initial_delay_s=1, max_elapsed_s=None),
        timeout_s=60,
        requests_per_minute=500,
        tokens_per_minute=200_000,
    )
    Config(provider="openai", model="gpt-5-nano", api_key=SecretStr("sk-…"))
    Config(provider="azure", model="m")  # type: ignore[arg-type]
    Config("openai", "gpt-5-nano")  # type: ignore[call-arg]
    assert_type(config.model, str)
    assert_type(config.retry, RetryPolicy)
    assert_type(config.key(), str | None)
    assert_type(config.model_copy(update={"timeout_s": 5.0}), Config)
    assert_type(Config.model_validate_json("{}"), Config)
    config.model = "another"  # type: ignore[misc]

    assert_type(Source.from_text("text", identifier="notes"), Source)
    assert_type(Source.from_json({"a": [1, 2]}), Source)
    assert_type(Source.from_json(Invoice(total=1)), Source)
    assert_type(Source.from_file("report.pdf", mime_type="application/pdf"), Source)
    assert_type(Source.from_uri("https://example.com/a.pdf"), Source)
    assert_type(Source.from_arxiv("2301.07041"), Source)
    video = Source.from_youtube("https://youtu.be/x")
    assert_type(video.with_gemini_video_settings(start_offset="10s", fps=1), Source)
    assert_type(Source.from_uri("https://example.com").with_gemini_url_context(), Source)

    Options()
    Options(response_schema=Invoice, temperature=0, tools=[{"name": "f", "parameters": {}}], tool_choice={"name": "f"})
    Options(response_schema="my_pkg.models:Invoice", reasoning_effort="low", max_tokens=100)
    Options(response_schema={"type": "object"}, provider_options={"openai": {"seed": 1}}, implicit_caching=False)
    Options(temprature=1)  # type: ignore[call-arg]


def answers(envelope: ResultEnvelope) -> None:
    """An envelope, as an object and as the mapping of the seeds."""
    assert_type(envelope.answers, list[str])
    assert_type(envelope.text, str)
    assert_type(envelope.usage, dict[str, int])
    assert_type(envelope.reasoning, list[str | None] | None)
    assert_type(envelope["status"], Any)
    assert_type(envelope.get("metrics", {}), Any)
    assert_type("reasoning" in envelope, bool)
    assert_type(envelope.to_rows(["Why?"]), list[dict[str, Any]])
    assert_type(pl.DataFrame(envelope.to_rows())["answer"], pl.Series)


def errors(error: RateLimitError) -> None:
    """The fields of errors."""
    assert_type(error.hint, str | None)
    assert_type(error.status_code, int | None)
    assert_type(error.retry_after_s, float | None)
    api: APIError = error
    root: PolluxError = api
    assert_type(root.message, str)
    local: type[PolluxError] = ConfigurationError
    raise local("It cannot work.", hint="Write it differently.")


async def calls(config: Config, source: Source) -> None:
    """The plain async entry points."""
    assert_type(await run("Why?", config=config), ResultEnvelope)
    assert_type(await run("Why?", source=source, config=config, options=Options()), ResultEnvelope)
    assert_type(await run(source=source, config=config), ResultEnvelope)
    called = await run("And in Oslo?", config=config, options=Options(history=[{"role": "user", "content": "Hi."}]))
    results = [{"tool_call_id": call["id"], "content": "rain"} for call in (called.tool_calls or [[]])[0]]
    assert_type(await continue_tool(called, results, config=config), ResultEnvelope)
    assert_type(await continue_tool({}, [], config=config, options=Options(), run_key="k"), ResultEnvelope)
    assert_type(called.conversation_state, dict[str, Any] | None)
    assert_type(await run_many(["Why?", "How?"], sources=[source], config=config), ResultEnvelope)
    assert_type(await run_many(prompts=("Why?", None), sources=(source,), config=config), ResultEnvelope)
    assert_type(await run_many("Why?", config=config, options=None), ResultEnvelope)
    assert_type(await run_many(["Why?", "How?"], sources=[source], config=config, cache="auto"), ResultEnvelope)
    estimated = await estimate_many(["Why?", "How?"], sources=[source], config=config, each_source=True, reuse="always")
    assert_type(estimated, Estimate)
    assert_type(estimated.cost_usd.expected, int | float | None)
    await run("Why?")  # type: ignore[call-arg]
    await run("Why?", sources=[source], config=config)  # type: ignore[call-arg]

    handle = await create_cache([source], config=config, system_instruction="Be brief.", tools=[], ttl_seconds=600)
    assert_type(handle, CacheHandle)
    assert_type(handle.expires_at, float)
    Options(cache=handle)


async def columns(config: Config, provider: PolluxProvider, table: pl.DataFrame) -> None:
    """A column of a table stands where a list of prompts does; a table does not."""
    assert_type(await run_many(table["question"], config=config), ResultEnvelope)
    assert_type(await defer_many(table["question"], config=config), DeferredHandle)
    assert_type(fan_out(table["question"], provider), ResultEnvelope)
    assert_type(await abroadcast(table["question"], [], provider), list[ResultEnvelope])
    assert_type(await asubmit(table["question"], provider), str)
    await run_many(table, config=config)  # type: ignore[arg-type]


async def later(config: Config, source: Source) -> None:
    """Deferred calls: they are submitted now, and collected later."""
    handle = await defer_many(["Why?", "How?"], sources=[source], config=config, options=Options(), run_key="nightly")
    assert_type(handle, DeferredHandle)
    assert_type(await defer("Why?", source=source, config=config), DeferredHandle)
    assert_type(handle.to_dict(), dict[str, Any])
    assert_type(DeferredHandle.from_dict({}), DeferredHandle)
    snapshot = await inspect_deferred(handle)
    assert_type(snapshot, DeferredSnapshot)
    assert_type(snapshot.is_terminal, bool)
    assert_type(await collect_deferred(handle, response_schema=Invoice, config=config), ResultEnvelope)
    await cancel_deferred(handle, config=config)
    await defer("Why?")  # type: ignore[call-arg]


async def jobs(provider: PolluxProvider, source: Source) -> None:
    """Deferred flows, each in both forms."""
    name = submit(["Why?"], provider, [source], Options(), output="answers/", resubmit=2, on_lost="report")
    assert_type(name, str)
    assert_type(await asubmit(["Why?"], provider), str)
    assert_type(collect(), CollectReport)
    assert_type(await acollect([name]), CollectReport)
    assert_type(cancel(name), str)
    assert_type(await acancel(name), str)
    assert_type(resubmit(name), str)
    assert_type(await aresubmit(name), str)
    assert_type(wait_for(name, on_partial="complete"), ResultEnvelope)
    assert_type(await await_for(name), ResultEnvelope)
    assert_type(deferred(["Why?"], provider, sources=[source]), ResultEnvelope)
    assert_type(await adeferred(["Why?"], provider, output="answers.jsonl"), ResultEnvelope)
    assert_type(PolluxDeferredJob(state="", status="", provider="", model="", prompts=1, job={}).handle, DeferredHandle)


async def flows(provider: PolluxProvider, source: Source) -> None:
    """Flows, each in both forms with equal parameters."""
    options = Options(temperature=0.5)
    assert_type(realtime("Why?", provider), ResultEnvelope)
    assert_type(realtime("Why?", provider, sources=[source], options=options), ResultEnvelope)
    assert_type(fan_out(["Why?", "How?"], provider, sources=[source], options=options), ResultEnvelope)
    assert_type(fan_out(["Why?"], provider, [source], cache="auto", output="answers.csv"), ResultEnvelope)
    assert_type(fan_in("Why?", [source], provider, options=options), ResultEnvelope)
    assert_type(map_rows("in.csv", "{a}", provider, "out.csv", source_columns=["b"]), MapReport)
    assert_type(broadcast(["Why?"], [source], provider, options=options), list[ResultEnvelope])

    assert_type(await arealtime("Why?", provider, sources=[source], options=options), ResultEnvelope)
    assert_type(await afan_out(["Why?", "How?"], provider, sources=[source], options=options), ResultEnvelope)
    assert_type(await afan_in("Why?", [source], provider, options=options), ResultEnvelope)
    assert_type(await abroadcast(["Why?"], [source], provider, options=options), list[ResultEnvelope])

    assert_type(estimate(["Why?"], provider, [source], options=options, each_source=True), Estimate)
    assert_type(await aestimate(["Why?"], provider, reuse="always", max_age=3600), Estimate)

    assert_type(await provider.config(), Config)
    assert_type(await PolluxProvider.named("gemini"), PolluxProvider)
