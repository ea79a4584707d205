"""run, run_many and continue_tool: all four phases in this process, without Prefect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from pollux_flows.caching.auto import cache_automatically
from pollux_flows.caching.named import find_requested_cache
from pollux_flows.caching.registry import open_registry
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError, PolluxError, SourceError
from pollux_flows.frames import Column
from pollux_flows.handles import CacheHandle
from pollux_flows.options import Options
from pollux_flows.pipeline.conversation import with_results
from pollux_flows.pipeline.execute import first_error, open_execution
from pollux_flows.pipeline.extract import extract_envelope
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.saved_answers import Saved
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.source import Source


async def run(
    prompt: str | None = None,
    *,
    source: Source | None = None,
    config: Config,
    options: Options | None = None,
    cache: CacheHandle | str | None = None,
    reuse: Reuse = "run",
    max_age: float | timedelta | None = None,
    run_key: str | None = None,
    max_cost_usd: float | None = None,
) -> ResultEnvelope:
    """Ask one prompt, about one source or none. The last five arguments are those of `run_many`."""
    if source is not None and not isinstance(source, Source):
        raise SourceError(
            f"source is a {type(source).__name__}.", hint="For several sources use run_many(sources=[…])."
        )
    return await run_many(
        prompt,
        sources=() if source is None else (source,),
        config=config,
        options=options,
        cache=cache,
        reuse=reuse,
        max_age=max_age,
        run_key=run_key,
        max_cost_usd=max_cost_usd,
    )


async def run_many(
    prompts: str | Sequence[str | None] | Column | None = None,
    *,
    sources: Sequence[Source] = (),
    config: Config,
    options: Options | None = None,
    cache: CacheHandle | str | None = None,
    reuse: Reuse = "run",
    max_age: float | timedelta | None = None,
    run_key: str | None = None,
    max_cost_usd: float | None = None,
) -> ResultEnvelope:
    """Ask several prompts about the same sources concurrently, and return the answers in the order of the prompts.

    `prompts` is a list, or a column of a pandas, polars or Arrow table.

    The error of the first call that failed is raised, after all calls have ended and every answer was saved. The
    results of all calls are in the error's `envelope`.

    `cache` is the handle or the name of a cache that the prompts are about; a lost cache is created again if its name
    is known. "auto" holds the sources in a cache of the provider while the run lasts, where that is cheaper.

    Every answer is saved. `run_key` names the run that these calls belong to: a later call with the same key asks only
    the prompts without an answer. `reuse="always"` also reuses another run's answer to the same call, unless it is
    older than `max_age` (seconds, or a timedelta); `reuse="never"` asks all prompts again. The answers of a run, and
    the caches that it creates, cost at most `max_cost_usd`: a call is made only if its worst case fits.
    """
    if not isinstance(config, Config):
        raise ConfigurationError(f"config is a {type(config).__name__}.", hint="Pass Config(provider=…, model=…).")
    # Terms converts a timedelta into seconds.
    terms = Terms.model_validate({"reuse": reuse, "max_age": max_age, "run_key": run_key, "max_cost_usd": max_cost_usd})
    registry = open_registry(config)
    requested = await find_requested_cache(cache, options, registry)
    request = make_request(prompts, target=config.target, sources=sources, options=requested.options)
    contents = await read_sources(request, limit_s=config.timeout_s)
    plan = make_plan(request, contents, cache_request=requested.request)
    started = time.monotonic()
    async with open_execution(plan, config, terms, caches=registry) as execution:
        found = await execution.answers.load_reusable(plan.calls) if requested.is_auto else {}
        missing = [call for call in plan.calls if call.index not in found]
        async with cache_automatically(execution, missing) if requested.is_auto else nullcontext():
            found |= {outcome.index: outcome for outcome in await execution.answer_calls(missing)}
        plan, outcomes = execution.plan, [found[call.index] for call in plan.calls]
        error = first_error(outcomes, config.provider)
        saved = await execution.answers.check_saved(outcomes) if error else None
    duration_s = time.monotonic() - started
    envelope = await asyncio.to_thread(
        extract_envelope,
        plan,
        outcomes,
        duration_s=duration_s,
        limit_s=config.timeout_s,
        caches=execution.used_caches,
    )
    if error is not None:
        error.envelope = envelope
        raise _with_advice(error, outcomes, saved, run_key)
    return envelope


async def continue_tool(
    continue_from: ResultEnvelope | Mapping[str, Any],
    tool_results: Sequence[Mapping[str, Any]],
    *,
    config: Config,
    options: Options | None = None,
    reuse: Reuse = "run",
    max_age: float | timedelta | None = None,
    run_key: str | None = None,
    max_cost_usd: float | None = None,
) -> ResultEnvelope:
    """Continue after tool calls, with the result of each call: `{"tool_call_id": …, "content": …}`.

    `options` are those of this turn: options of earlier turns (system_instruction, tools, …) must be passed again if
    they still apply. The last four arguments are those of `run_many`.
    """
    if options is not None and not isinstance(options, Options):
        raise ConfigurationError(f"options is a {type(options).__name__}.", hint="Pass Options(…).")
    continued = {"history": None, "continue_from": with_results(continue_from, tool_results)}
    return await run_many(
        None,
        config=config,
        options=(options or Options()).model_copy(update=continued),
        reuse=reuse,
        max_age=max_age,
        run_key=run_key,
        max_cost_usd=max_cost_usd,
    )


def _with_advice(
    error: PolluxError, outcomes: Sequence[Outcome], saved: Saved | None, run_key: str | None
) -> PolluxError:
    """Return the error with advice in its hint on how to reuse the saved answers, if there are any."""
    if saved is not None:
        count = sum(outcome.problem is None and outcome.save_error is None for outcome in outcomes)
        again = "run again with the same run_key" if run_key else "pass reuse='always'"
        which = f"The answers to {count} of {len(outcomes)} prompts are"
        advice = saved.advice(which, f"to ask only the others, {again}", "running again")
        error.hint = f"{error.hint} {advice}" if error.hint else advice
    return error
