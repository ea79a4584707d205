"""Tests of deployments: `pollux-flows serve` and prefect.yaml define equal ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.importtools import import_object

from pollux_flows.blocks.registration import register_block_types
from pollux_flows.deployments import deployments

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def describe_schedule(planned: Any) -> dict[str, Any]:
    """Return when a deployment runs, in the form of prefect.yaml."""
    schedule = planned.schedule
    if hasattr(schedule, "cron"):
        return {"slug": planned.slug, "cron": schedule.cron}
    assert isinstance(schedule.interval, timedelta)
    return {
        "slug": planned.slug,
        "interval": schedule.interval.total_seconds(),
        "anchor_date": schedule.anchor_date.isoformat(),
    }


def test_prefect_yaml_defines_the_served_deployments() -> None:
    """Tags and schedules are equal, and each flow can be loaded wherever the package is installed."""
    defined = {
        each["name"]: (
            load_flow_from_entrypoint(each["entrypoint"]).name,
            each["tags"],
            each.get("schedules", []),
        )
        for each in yaml.safe_load(FILE.read_text())["deployments"]
    }
    served = {
        each.name: (each.flow_name, each.tags, [describe_schedule(one) for one in each.schedules or []])
        for each in deployments()
    }
    assert defined == served


def test_deploying_the_file_registers_the_block_types() -> None:
    """Prefect can import the build step that the file names."""
    (step,) = yaml.safe_load(FILE.read_text())["build"]
    assert [import_object(name) for name in step] == [register_block_types]


def test_deploying_again_changes_only_the_times_of_updates() -> None:
    """The schedules keep their ids and times."""
    with get_client(sync_client=True) as client:
        ids = [UUID(str(each.apply())) for each in deployments() if each.schedules]
        before = [client.read_deployment(each) for each in ids]
        again = [UUID(str(each.apply())) for each in deployments() if each.schedules]
        after = [client.read_deployment(each) for each in ids]
        for each in ids:
            client.delete_deployment(each)
    assert again == ids
    assert [read_data(each) for each in after] == [read_data(each) for each in before]


def test_serving_again_keeps_changed_and_added_schedules() -> None:
    """A schedule that was switched off stays off, and an added one stays."""
    with get_client(sync_client=True) as client:
        ids = {each.name: UUID(str(each.apply())) for each in deployments() if each.name in {"collect", "realtime"}}
        (schedule,) = client.read_deployment(ids["collect"]).schedules
        client.update_deployment_schedule(ids["collect"], schedule.id, active=False)
        added = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 1 1 *"))
        client.create_deployment_schedules(ids["realtime"], [added])
        for each in deployments():
            if each.name in ids:
                each.apply()
        after = {name: client.read_deployment(each) for name, each in ids.items()}
        for deployment in ids.values():
            client.delete_deployment(deployment)
    assert [each.active for each in after["collect"].schedules] == [False]
    assert [each.active for each in after["realtime"].schedules] == [True]


def read_data(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return a deployment without the times of its updates. To Prefect, no pull steps are [] at first, then None."""
    data = deployment.model_dump(mode="json", exclude={"updated", "pull_steps"})
    return {**data, "schedules": [{**each, "updated": None} for each in data["schedules"]]}
