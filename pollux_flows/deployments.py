"""Deployments: all flows as `serve` deploys them, with `collect` and `sweep` on a schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect.client.schemas.actions import DeploymentScheduleCreate as Create
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import RunnerDeployment

from pollux_flows.flows import (
    broadcast,
    cancel,
    collect,
    converse,
    deferred,
    estimate,
    fan_in,
    fan_out,
    map_rows,
    realtime,
    resubmit,
    submit,
    sweep,
    warm_cache,
)

# A pass over all jobs takes a few requests, regardless of their number. Runs may overlap.
_COLLECT_EVERY: Final = timedelta(minutes=10)
_ANCHOR: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TAGS: Final = ["pollux"]
_SWEEP_AT: Final = "17 3 * * *"


def deployments(collect_every: timedelta = _COLLECT_EVERY, sweep_at: str = _SWEEP_AT) -> list[RunnerDeployment]:
    """Return one deployment a flow, for Prefect's `serve`. `sweep_at` is a cron expression."""
    # `deferred` is suspended while the provider works, and resumed by `collect`.
    on_request: tuple[Any, ...] = (
        realtime,
        fan_out,
        fan_in,
        broadcast,
        map_rows,
        converse,
        deferred,
        submit,
        estimate,
        cancel,
        resubmit,
        warm_cache,
    )
    # The slug identifies a schedule when it is deployed again, and the anchor keeps its times. `active` is not set, and
    # so not sent, so that a schedule that a person switched off stays off.
    collecting = Create(schedule=IntervalSchedule(interval=collect_every, anchor_date=_ANCHOR), slug=collect.name)
    sweeping = Create(schedule=CronSchedule(cron=sweep_at), slug=sweep.name)
    on_demand = [flow.to_deployment(flow.name, tags=_TAGS) for flow in on_request]
    for deployment in on_demand:
        # Not sent, so that schedules that people added on the server stay.
        deployment.model_fields_set.discard("schedules")
    return [
        collect.to_deployment(collect.name, tags=_TAGS, schedules=[collecting]),
        sweep.to_deployment(sweep.name, tags=_TAGS, schedules=[sweeping]),
        *on_demand,
    ]
