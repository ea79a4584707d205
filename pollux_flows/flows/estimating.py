"""Estimating: estimate prompts or a table, and publish the estimate."""

from __future__ import annotations

from collections.abc import Sequence

from pollux_flows import tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.caching.named import find_requested_cache
from pollux_flows.errors import ConfigurationError
from pollux_flows.estimation.api import estimate_table
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.estimation.estimating import estimate_plan
from pollux_flows.flows.answering import pass_opaque
from pollux_flows.flows.approval import publish_estimate
from pollux_flows.flows.mapping import make_spec
from pollux_flows.flows.prompts import read_prompts
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.options import Options
from pollux_flows.pipeline.terms import Terms
from pollux_flows.source import Source


@with_restrictions
async def estimate_run(
    prompts: Sequence[str | None],
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    terms: Terms,
    prompts_from: str | None = None,
    each_source: bool = False,
) -> Estimate:
    """Estimate a run, publish the estimate, and log its cost."""
    prompts = await read_prompts(prompts, prompts_from)
    config = await provider.config()
    requested = await find_requested_cache(None, options, BlockRegistry())
    request = await tasks.request(
        pass_opaque(prompts), config.target, pass_opaque(sources), requested.options, each_source
    )
    plan = await tasks.plan(pass_opaque(request), provider.timeout_s, requested.request)
    estimate = await estimate_plan(plan, config, terms)
    await publish_estimate(estimate)
    return estimate


@with_restrictions
async def estimate_rows(
    table: str | None,
    prompt: str | None,
    provider: PolluxProvider,
    options: Options | None,
    *,
    terms: Terms,
    source_columns: Sequence[str] = (),
    id_column: str | None = None,
    limit: int | None = None,
    others: Sequence[object] = (),
) -> Estimate:
    """Estimate a prompt about each row of a table, publish the estimate, and log its cost."""
    if table is None or prompt is None or others:
        raise ConfigurationError(
            "A table is estimated with one prompt, and without further prompts or sources.",
            hint="Pass table and prompt, and leave prompts, prompts_from and sources out.",
        )
    config = await provider.config()
    spec = make_spec(prompt, source_columns, config.target, options)
    estimate = await estimate_table(table, spec, config=config, terms=terms, limit=limit, id_column=id_column)
    await publish_estimate(estimate)
    return estimate
