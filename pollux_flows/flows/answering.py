"""Answering: the way through the four tasks that all realtime flows take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pollux_flows import artifacts, tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Target
from pollux_flows.options import Options
from pollux_flows.pipeline.extract import typed
from pollux_flows.pipeline.plan import Plan
from pollux_flows.result import Outcome, ResultEnvelope
from pollux_flows.source import Source


async def answer(
    kind: str,
    prompts: Sequence[str | None],
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
) -> ResultEnvelope:
    """One envelope: every prompt about all sources together."""
    plan, outcomes, duration_s = await _outcomes(prompts, provider, sources, options, each_source=False)
    envelope = await tasks.extract(plan, outcomes, duration_s)
    await artifacts.leave_answers(kind, prompts, plan.target, envelope)
    _fail_if_none_answered([envelope], plan.target)
    return typed(envelope, plan.options)


async def answer_each(
    prompts: Sequence[str | None],
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
) -> list[ResultEnvelope]:
    """One envelope a source: every prompt about each source by itself."""
    plan, outcomes, duration_s = await _outcomes(prompts, provider, sources, options, each_source=True)
    envelopes = await tasks.extract_each(plan, outcomes, duration_s)
    await artifacts.leave_grid(prompts, sources, plan.target, envelopes)
    _fail_if_none_answered(envelopes, plan.target)
    return [typed(envelope, plan.options) for envelope in envelopes]


async def _outcomes(
    prompts: Sequence[str | None],
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    each_source: bool,
) -> tuple[Plan, list[Outcome], float]:
    config = await provider.config()
    async with tasks.holding_session(config):
        asked = await tasks.request(prompts, config.target, sources, options, each_source)
        plan = await tasks.plan(asked)
        started = time.monotonic()
        outcomes = await tasks.execute(plan, provider.name)
        return plan, outcomes, time.monotonic() - started


def _fail_if_none_answered(envelopes: Sequence[ResultEnvelope], target: Target) -> None:
    """A run that brought nothing back has failed, and says why; one that brought something back has not."""
    failures = [failure for envelope in envelopes for failure in envelope.errors or [] if failure is not None]
    if not failures or any(envelope.status != "error" for envelope in envelopes):
        return
    first = failures[0]
    if len(failures) > 1:
        first = first.model_copy(update={"message": f"None of {len(failures)} prompts was answered. {first.message}"})
    raise first.error(target.provider)
