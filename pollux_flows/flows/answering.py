"""Answering: run the four phases as Prefect tasks, for all realtime flows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

from prefect import get_run_logger
from prefect.utilities.annotations import opaque
from pydantic import WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from pollux_flows import artifacts, tasks
from pollux_flows.address import redact_address
from pollux_flows.blocks.cache import PolluxCache
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.caching.auto import cache_automatically
from pollux_flows.caching.named import find_requested_cache
from pollux_flows.config import Target
from pollux_flows.errors import ConfigurationError, PolluxError, raise_if_error
from pollux_flows.estimation.estimating import estimate_plan
from pollux_flows.flows.approval import require_approval
from pollux_flows.flows.prompts import read_prompts
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.flows.run_output import RunOutput, prepare_output
from pollux_flows.frames import Column
from pollux_flows.handles import CacheHandle
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.jobs.events import emit_cache_changes
from pollux_flows.options import Options
from pollux_flows.pages import RunInput, count_of, outcome_line
from pollux_flows.pipeline.execute import QueuePlace, make_unasked_outcome
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.saved_answers import Saved
from pollux_flows.pipeline.savings import UsedCache
from pollux_flows.pipeline.terms import Terms
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.source import Source

T = TypeVar("T")
AutoCache = Annotated[Literal["auto"], WithJsonSchema({"type": "string", "enum": ["auto"], "title": "automatic"})]
Cache = (
    # Each is a tab in the form, but for a cache handle, which only code can pass.
    AutoCache
    | PolluxCache
    | Annotated[str, WithJsonSchema({"type": "string", "title": "name"})]
    | SkipJsonSchema[CacheHandle]
    | None
)
"""The cache that a run uses: "auto", a PolluxCache or its name, or a cache handle."""
OnPartial = Literal["fail", "complete"]
"""How a run ends when some of its prompts have no answer. A failed run can be retried from the UI."""


async def answer(
    kind: str,
    prompts: Sequence[str | None] | Column,
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    terms: Terms,
    prompts_from: str | None = None,
    output: str | None = None,
    cache: Cache = None,
    on_partial: OnPartial = "fail",
    needs_approval: bool = False,
    calls_per_task: int | None = None,
) -> ResultEnvelope:
    """Answer every prompt about all sources together, and return one envelope."""
    answered = await answer_calls(
        kind,
        prompts,
        provider,
        sources,
        options,
        terms=terms,
        prompts_from=prompts_from,
        output=output,
        cache=cache,
        needs_approval=needs_approval,
        calls_per_task=calls_per_task,
    )
    envelope = await tasks.extract(*answered.extract_input(provider))
    await answered.finish([envelope], on_partial)
    return envelope


async def answer_each(
    prompts: Sequence[str | None] | Column,
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    terms: Terms,
    prompts_from: str | None = None,
    output: str | None = None,
    cache: AutoCache | None = None,
    on_partial: OnPartial = "fail",
    needs_approval: bool = False,
    calls_per_task: int | None = None,
) -> list[ResultEnvelope]:
    """Answer every prompt about each source separately, and return one envelope per source."""
    answered = await answer_calls(
        "broadcast",
        prompts,
        provider,
        sources,
        options,
        terms=terms,
        prompts_from=prompts_from,
        output=output,
        cache=cache,
        needs_approval=needs_approval,
        calls_per_task=calls_per_task,
        each_source=True,
    )
    envelopes = await tasks.extract_each(*answered.extract_input(provider))
    await answered.finish(envelopes, on_partial)
    return envelopes


class NotAnsweredError(Exception):
    """Some call has no saved answer, and `reused_only` forbids new calls."""


class Answered(NamedTuple):
    """The outcomes of all calls of a run, with its input, plan, duration and caches."""

    run_input: RunInput
    plan: Plan
    outcomes: list[Outcome]
    duration_s: float
    saved: Saved | None
    caches: list[UsedCache]
    output: RunOutput | None

    def extract_input(self, provider: PolluxProvider) -> tuple[Plan, list[Outcome], float, float, list[UsedCache]]:
        """Return the arguments of the task that makes the envelopes."""
        plan, outcomes, caches = pass_opaque(self.plan), pass_opaque(self.outcomes), pass_opaque(self.caches)
        return plan, outcomes, self.duration_s, provider.timeout_s, caches

    async def finish(self, envelopes: Sequence[ResultEnvelope], on_partial: OnPartial) -> None:
        """Write the output of the run, publish its page, and fail it if answers are missing."""
        await finish(self.run_input, envelopes, on_partial, output=self.output, advice=self.retry_advice)

    @property
    def retry_advice(self) -> str | None:
        """Return a sentence on which prompts a retry asks, or None if no call failed."""
        return self.saved and self.saved.advice("What was answered is", "a retry asks only the others", "a retry")


@with_restrictions
async def answer_calls(
    kind: str,
    prompts: Sequence[str | None] | Column,
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    terms: Terms,
    prompts_from: str | None = None,
    output: str | None = None,
    cache: Cache = None,
    needs_approval: bool = False,
    calls_per_task: int | None = None,
    each_source: bool = False,
    reused_only: bool = False,
) -> Answered:
    """Make the calls that have no saved answer; with `reused_only`, raise NotAnsweredError instead."""
    if calls_per_task is not None and calls_per_task < 1:
        raise ConfigurationError(
            f"calls_per_task is {calls_per_task}.",
            hint="Pass 1 or more, or leave it out for one call per task run, up to 32 task runs.",
        )
    prepared = await prepare_output(kind, output)
    prompts = await read_prompts(prompts, prompts_from)
    config = await provider.config()
    wanted = cache.cache_name if isinstance(cache, PolluxCache) else cache
    requested = await find_requested_cache(wanted, options, BlockRegistry())
    request = await tasks.request(
        pass_opaque(prompts), config.target, pass_opaque(sources), requested.options, each_source
    )
    plan = await tasks.plan(pass_opaque(request), provider.timeout_s, requested.request)
    log = get_run_logger()
    about = f" about {count_of(len(sources), 'source')}" if sources else ""
    log.info("Planned %s of %s %s%s.", count_of(len(plan.calls), "call"), provider.provider, provider.model, about)
    if needs_approval:
        await require_approval(lambda: estimate_plan(plan, config, terms))
    started = time.monotonic()
    async with tasks.share_execution(plan, config, terms) as shared:
        found = await shared.execution.answers.load_reusable(plan.calls)
        if reused_only and len(found) < len(plan.calls):
            raise NotAnsweredError
        shared.progress.advance(len(found))
        unanswered = [call for call in plan.calls if call.index not in found]
        if found:
            log.info("Reused %s saved answers; asking the other %s.", f"{len(found):,}", f"{len(unanswered):,}")
        async with cache_automatically(shared.execution, unanswered) if requested.is_auto else nullcontext():
            missing = shared.execution.plan.parts(calls_per_task, without=found)
            if missing:
                await shared.confirm_store()
            turns = asyncio.Semaphore(1)
            asked = await asyncio.gather(
                *(_run_part(part, provider.name, terms, turns) for part in missing), return_exceptions=True
            )
            await emit_cache_changes(shared.execution)
        plan = shared.execution.plan
        if not found and all(isinstance(each, BaseException) for each in asked):
            asked = [raise_if_error(each) for each in asked]  # raises the first
        for part, answered in zip(missing, asked, strict=True):
            found |= {outcome.index: outcome for outcome in _read_part(part, answered)}
        has_failed = any(outcome.failure for outcome in found.values())
        saved = await shared.execution.answers.check_saved(found.values()) if has_failed else None
    outcomes = [found[call.index] for call in plan.calls]
    run_input = RunInput(plan.target, prompts, sources, options or Options(), each_source)
    duration_s = time.monotonic() - started
    return Answered(run_input, plan, outcomes, duration_s, saved, shared.execution.used_caches, prepared)


async def finish(
    run_input: RunInput,
    envelopes: Sequence[ResultEnvelope],
    on_partial: OnPartial,
    *,
    output: RunOutput | None,
    advice: str | None,
) -> None:
    """Write the output of a run, publish its page, and fail it if answers are missing. `advice` is for a retry."""
    unwritten = None
    if output is not None:
        try:
            await output.write(run_input, envelopes)
        except ConfigurationError as error:
            unwritten = error
            unwritten.envelope = envelopes[0] if len(envelopes) == 1 else None
    written = (
        None if output is None else f"not written: {unwritten.message}" if unwritten else redact_address(output.path)
    )
    await publish_outcome(run_input, envelopes, on_partial, advice=advice, output=written)
    if unwritten is not None:
        raise unwritten


async def _run_part(part: Plan, provider: str | None, terms: Terms, turns: asyncio.Semaphore) -> list[Outcome]:
    """Make the calls of one task run, which ends as failed when one of its calls failed.

    Starts when all calls of the task run before are queued: starting all at once would delay the first calls.
    """
    await turns.acquire()
    with closing(QueuePlace(turns)) as turn, tasks.take_turn(turn):
        # Prefect's types wrongly say that an async task with return_state is not awaited.
        state = await cast(Any, tasks.execute)(pass_opaque(part), provider, terms, return_state=True)
    outcomes: list[Outcome] | Exception = await state.aresult(raise_on_failure=False)
    return raise_if_error(outcomes)


def _read_part(part: Plan, outcomes: list[Outcome] | BaseException) -> list[Outcome]:
    """Return the outcomes of a part. If the part was refused, each of its calls has failed with that error."""
    if not isinstance(outcomes, PolluxError):
        return raise_if_error(outcomes)
    return [make_unasked_outcome(call, outcomes) for call in part.calls]


def pass_opaque(value: T) -> T:
    """Wrap a value so that Prefect does not search each prompt and answer for task runs, which can take a second."""
    return cast(T, opaque(value))


async def publish_outcome(
    run_input: RunInput,
    envelopes: Sequence[ResultEnvelope],
    on_partial: OnPartial,
    *,
    advice: str | None,
    output: str | None = None,
) -> None:
    """Publish the page of a run, log its outcome, and fail it if it lacks answers.

    `advice` is for a retry; `output` is the file that the answers were also written to.
    """
    await artifacts.publish_answers(run_input, envelopes, advice, output)
    get_run_logger().info(outcome_line(envelopes))
    _fail_if_unanswered(envelopes, run_input.target, on_partial, advice)


def _fail_if_unanswered(
    envelopes: Sequence[ResultEnvelope],
    target: Target,
    on_partial: OnPartial,
    advice: str | None,
) -> None:
    """Fail a run that lacks answers, so that the UI offers a retry. `advice` says what a retry does."""
    failures = [failure for envelope in envelopes for failure in envelope.errors or [] if failure is not None]
    calls = [call for envelope in envelopes for call in envelope.diagnostics["calls"]]
    for file in sorted({call["spilled"] for call in calls if call.get("spilled")}):
        get_run_logger().error("Answers could not be saved in the state: the next run here reads them from %s.", file)
    if any("save_error" in call and "spilled" not in call for call in calls):
        get_run_logger().error("Answers could not be saved: they are only on the page of this run.")
    answered = any(envelope.status != "error" for envelope in envelopes)
    if not failures or (answered and on_partial == "complete"):
        return
    first, count = failures[0], sum(len(envelope.answers) for envelope in envelopes)
    if count > 1:
        how_many = f"{len(failures)} of {count} prompts were not" if answered else f"None of {count} prompts was"
        message = f"{how_many} answered. The first: {first.message}"
        hint = " ".join(filter(None, [first.hint, advice if answered else None]))
        first = first.model_copy(update={"message": message, "hint": hint or None})
    error = first.error(target.provider)
    error.envelope = envelopes[0] if len(envelopes) == 1 else None
    raise error
