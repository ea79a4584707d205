"""Deployments: all flows as they are served, with those on a schedule that look after what others have started."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval

from pollux_flows.flows import (
    broadcast,
    cancel,
    collect,
    converse,
    deferred,
    fan_in,
    fan_out,
    map_rows,
    realtime,
    resubmit,
    submit,
    sweep,
    warm_cache,
)

# A look at all jobs costs a few requests, however many they are. Runs may overlap.
_COLLECT_EVERY: Final = timedelta(minutes=10)
_ANCHOR: Final = datetime(2026, 1, 1, tzinfo=UTC)
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
        cancel,
        resubmit,
        warm_cache,
    )
    return [
        # By its slug, a schedule is found again when it is deployed again; by its anchor, it keeps its times.
        collect.to_deployment(collect.name, schedule=Interval(collect_every, _ANCHOR, slug=collect.name)),
        sweep.to_deployment(sweep.name, schedule=Cron(sweep_at, slug=sweep.name)),
        *(flow.to_deployment(flow.name) for flow in on_request),
    ]
