"""Deployments: served from here or kept by a work pool, they are the same ones."""

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


def in_words(planned: Any) -> dict[str, Any]:
    """When it runs, as the file says it."""
    schedule = planned.schedule
    if hasattr(schedule, "cron"):
        return {"slug": planned.slug, "cron": schedule.cron}
    assert isinstance(schedule.interval, timedelta)
    return {
        "slug": planned.slug,
        "interval": schedule.interval.total_seconds(),
        "anchor_date": schedule.anchor_date.isoformat(),
    }


def test_the_file_names_what_is_served() -> None:
    """With the same tags and schedules, and flows that can be found wherever the package is installed."""
    said = {
        each["name"]: (
            load_flow_from_entrypoint(each["entrypoint"]).name,
            each["tags"],
            each.get("schedules", []),
        )
        for each in yaml.safe_load(FILE.read_text())["deployments"]
    }
    served = {
        each.name: (each.flow_name, each.tags, [in_words(one) for one in each.schedules or []])
        for each in deployments()
    }
    assert said == served


def test_deploying_the_file_registers_the_block_types() -> None:
    """By a step that Prefect finds under the name that the file gives."""
    (step,) = yaml.safe_load(FILE.read_text())["build"]
    assert [import_object(name) for name in step] == [register_block_types]


def test_what_is_deployed_again_is_as_it_was() -> None:
    """The schedules are the same rows, with the same times; but for when it was updated, so is all else."""
    with get_client(sync_client=True) as client:
        ids = [UUID(str(each.apply())) for each in deployments() if each.schedules]
        before = [client.read_deployment(each) for each in ids]
        again = [UUID(str(each.apply())) for each in deployments() if each.schedules]
        after = [client.read_deployment(each) for each in ids]
        for each in ids:
            client.delete_deployment(each)
    assert again == ids
    assert [data_of(each) for each in after] == [data_of(each) for each in before]


def test_what_people_did_to_schedules_stays_when_flows_are_served_again() -> None:
    """One that was switched off stays off, and one that was added is still there."""
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


def data_of(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return a deployment without the times of its updates. To Prefect, no pull steps are [] at first, then None."""
    data = deployment.model_dump(mode="json", exclude={"updated", "pull_steps"})
    return {**data, "schedules": [{**each, "updated": None} for each in data["schedules"]]}
