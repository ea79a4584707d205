"""run and run_many: all four phases, here and now. No Prefect, no server."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError, SourceError
from pollux_flows.options import Options
from pollux_flows.pipeline.execute import execute_plan, first_error
from pollux_flows.pipeline.extract import extract_envelope, typed
from pollux_flows.pipeline.plan import make_plan
from pollux_flows.pipeline.read import read_sources
from pollux_flows.pipeline.request import make_request
from pollux_flows.providers.session import open_session
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source


async def run(
    prompt: str | None = None, *, source: Source | None = None, config: Config, options: Options | None = None
) -> ResultEnvelope:
    """Ask one thing, about one source or none."""
    if source is not None and not isinstance(source, Source):
        raise SourceError(
            f"source is a {type(source).__name__}.", hint="For several sources use run_many(sources=[…])."
        )
    return await run_many(prompt, sources=() if source is None else (source,), config=config, options=options)


async def run_many(
    prompts: str | Sequence[str | None] | None = None,
    *,
    sources: Sequence[Source] = (),
    config: Config,
    options: Options | None = None,
) -> ResultEnvelope:
    """Ask several things about the same sources, side by side. Answers come in prompt order.

    The first call that failed is raised, after all of them have ended.
    """
    if not isinstance(config, Config):
        raise ConfigurationError(f"config is a {type(config).__name__}.", hint="Pass Config(provider=…, model=…).")
    request = make_request(prompts, target=config.target, sources=sources, options=options)
    plan = make_plan(request, await read_sources(request))
    started = time.monotonic()
    async with open_session(config) as session:
        outcomes = await execute_plan(plan, session)
    if error := first_error(outcomes, config.provider):
        raise error
    return typed(extract_envelope(plan, outcomes, duration_s=time.monotonic() - started), request.options)
