"""Estimating: the way from prompts to a published estimate, and a person's approval of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.flow_runs import apause_flow_run, asuspend_flow_run

from pollux_flows import artifacts, tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.caching.named import find_requested_cache
from pollux_flows.errors import ConfigurationError
from pollux_flows.estimation.api import estimate_table
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.estimation.estimating import estimate_plan
from pollux_flows.estimation.table import describe_calls, describe_cost
from pollux_flows.flows.answering import pass_opaque
from pollux_flows.flows.mapping import make_spec
from pollux_flows.flows.prompts import read_prompts
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.jobs.caches import BlockRegistry
from pollux_flows.jobs.connection import open_client
from pollux_flows.jobs.waiters import SUSPENDED_S, suspendable_run
from pollux_flows.options import Options
from pollux_flows.pipeline.terms import Terms
from pollux_flows.source import Source

_APPROVAL: Final = "pollux-approval"
_LOOK_EVERY_S: Final = 5


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
    """Estimate what a run would take, publish it, and log its cost."""
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
    """Estimate what a prompt over each row of a table would take, publish it, and log its cost."""
    if table is None or prompt is None or others:
        raise ConfigurationError(
            "A table has one prompt, and its columns say what it is about.",
            hint="Pass table and prompt, and leave prompts, prompts_from and sources out.",
        )
    config = await provider.config()
    spec = make_spec(prompt, source_columns, config.target, options)
    estimate = await estimate_table(table, spec, config=config, terms=terms, limit=limit, id_column=id_column)
    await publish_estimate(estimate)
    return estimate


async def publish_estimate(estimate: Estimate) -> None:
    """Publish the page of an estimate, and log its cost."""
    await artifacts.publish_estimate(estimate)
    get_run_logger().info("%s: %s.", describe_calls(estimate), describe_cost(estimate))


async def is_approved() -> bool:
    """Return whether a person has resumed this flow run after `wait_for_approval`, in this attempt or an earlier one.

    A run that was suspended starts from its first line: it asks here before it makes another estimate.
    """
    run = _flow_run()
    async with open_client() as client:
        current = await client.read_flow_run(run.id)
        if current.labels.get(_APPROVAL) is True:
            return True
        if _APPROVAL not in (current.empirical_policy.pause_keys or ()):
            return False
        # A retry forgets the key, and the run was approved all the same.
        await client.update_flow_run_labels(run.id, {_APPROVAL: True})
        return True


async def wait_for_approval(estimate: Estimate) -> None:
    """Publish an estimate, and wait until a person resumes this flow run in the UI. Cancelled, it costs nothing.

    A run of a deployment is suspended: nothing runs meanwhile, and once it is resumed it starts from its first line.
    Any other is paused where it is.
    """
    await publish_estimate(estimate)
    log = get_run_logger()
    log.info("This run waits for approval: resume it on its page to go on, or cancel it. Nothing is spent until then.")
    if suspendable_run() is not None:
        await asuspend_flow_run(timeout=SUSPENDED_S, key=_APPROVAL)
    else:
        await apause_flow_run(timeout=SUSPENDED_S, poll_interval=_LOOK_EVERY_S, key=_APPROVAL)
    if await is_approved():
        log.info("Approved.")


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise ConfigurationError(
            "Only a flow run can be approved.", hint="Call map_rows, or leave require_approval out."
        )
    return context.flow_run
