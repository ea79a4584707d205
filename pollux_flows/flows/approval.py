"""Approval: a run publishes its estimate, and waits until a person resumes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.states import Cancelled

from pollux_flows import artifacts
from pollux_flows.errors import InternalError, PolluxError
from pollux_flows.estimation.estimate import Estimate, describe_calls, describe_cost
from pollux_flows.jobs.connection import open_client
from pollux_flows.jobs.waiters import SUSPENDED_S, suspendable_run

_APPROVAL: Final = "pollux-approval"
_LOOK_EVERY_S: Final = 5


async def require_approval(make_estimate: Callable[[], Awaitable[Estimate]]) -> None:
    """Publish an estimate and wait for a person's approval, unless this run is approved already."""
    if not await is_approved():
        await wait_for_approval(await make_estimate())


async def publish_estimate(estimate: Estimate) -> None:
    """Publish the page of an estimate, and log its cost."""
    await artifacts.publish_estimate(estimate)
    get_run_logger().info("%s: %s.", describe_calls(estimate), describe_cost(estimate))


async def is_approved() -> bool:
    """Return whether a person has resumed this flow run after `wait_for_approval`, in this attempt or an earlier one.

    A run that was suspended starts from its first line: it checks this before it makes another estimate.
    """
    run = _flow_run()
    async with open_client() as client:
        current = await client.read_flow_run(run.id)
        if current.labels.get(_APPROVAL) is True:
            return True
        if _APPROVAL not in (current.empirical_policy.pause_keys or ()):
            return False
        # A retry loses the pause key; the label keeps the approval.
        await client.update_flow_run_labels(run.id, {_APPROVAL: True})
        return True


async def wait_for_approval(estimate: Estimate) -> None:
    """Publish an estimate, and wait until a person resumes this flow run in the UI. A cancelled run costs nothing.

    A run of a deployment is suspended: nothing runs meanwhile, and once it is resumed it starts from its first line.
    Any other run is paused, and its process waits.
    """
    await publish_estimate(estimate)
    log = get_run_logger()
    log.info("This run waits for approval: resume it on its page to go on, or cancel it. Nothing is spent until then.")
    if suspendable_run() is not None:
        await asuspend_flow_run(timeout=SUSPENDED_S, key=_APPROVAL)
    else:
        await _pause()
    if await is_approved():
        log.info("Approved.")


async def _pause() -> None:
    """Pause until a person resumes the run. Raise once it is cancelled, as Prefect itself would go on waiting."""
    pausing = asyncio.create_task(apause_flow_run(timeout=SUSPENDED_S, poll_interval=_LOOK_EVERY_S, key=_APPROVAL))
    try:
        while not (await asyncio.wait([pausing], timeout=_LOOK_EVERY_S))[0]:
            if await _is_cancelled():
                raise PolluxError("The run was cancelled while it waited for approval.", hint="Nothing was spent.")
    finally:
        pausing.cancel()
    await pausing


async def _is_cancelled() -> bool:
    run_id = _flow_run().id
    async with open_client() as client:
        state = (await client.read_flow_run(run_id)).state
        if state is not None and state.is_cancelling():
            # A run without a worker stays in this state until it is moved to a final one.
            await client.set_flow_run_state(run_id, Cancelled())
            return True
    return state is not None and state.is_cancelled()


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise InternalError("Approval was requested outside a flow run.")
    return context.flow_run
