"""Estimates without Prefect: of a call of run_many, and of a table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from pollux_flows.caching.named import find_requested_cache
from pollux_flows.caching.registry import open_registry
from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.estimation.estimating import estimate_calls, estimate_plan
from pollux_flows.estimation.rows import ROWS_PER_CHUNK, find_rows_work
from pollux_flows.mapping.spec import MapSpec
from pollux_flows.options import Options
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.pipeline.terms import Reuse, Terms
from pollux_flows.source import Source
from pollux_flows.tables.table import Table, scan_table


async def estimate_many(
    prompts: str | Sequence[str | None] | None = None,
    *,
    sources: Sequence[Source] = (),
    config: Config,
    options: Options | None = None,
    each_source: bool = False,
    reuse: Reuse = "run",
    max_age: float | timedelta | None = None,
) -> Estimate:
    """Estimate the calls, tokens, cost and time of `run_many` with these arguments.

    With `each_source`, the prompts are asked about each source separately, as in the flow `broadcast`. If the provider
    can count tokens, a sample of the calls is sent to its counter, which is free. Nothing is generated or uploaded.
    """
    if not isinstance(config, Config):
        raise ConfigurationError(f"config is a {type(config).__name__}.", hint="Pass Config(provider=…, model=…).")
    terms = Terms.model_validate({"reuse": reuse, "max_age": max_age})
    requested = await find_requested_cache(None, options, open_registry(config))
    request = make_request(
        prompts, target=config.target, sources=sources, options=requested.options, each_source=each_source
    )
    contents = await read_sources(request, limit_s=config.timeout_s)
    return await estimate_plan(make_plan(request, contents, cache_request=requested.request), config, terms)


async def estimate_table(
    table: str, spec: MapSpec, *, config: Config, terms: Terms, limit: int | None = None, id_column: str | None = None
) -> Estimate:
    """Estimate `map_rows` for a table. Every row is read; nothing is generated or uploaded."""
    spec.check()
    scanned = await asyncio.to_thread(
        scan_table, table, rows_per_chunk=ROWS_PER_CHUNK, limit=limit, need=spec.columns, id_column=id_column
    )
    return await estimate_scanned(scanned, spec, config, terms)


async def estimate_scanned(scanned: Table, spec: MapSpec, config: Config, terms: Terms) -> Estimate:
    """Estimate `map_rows` for a scanned table."""
    return await estimate_calls(await find_rows_work(scanned, spec, config, terms), config)
