"""Deployments: served from here or kept by a work pool, they are the same ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.importtools import import_object

from pollux_flows.blocks.registration import register_block_types
from pollux_flows.deployments import deployments

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def in_words(schedule: Any) -> str | float:
    """When it runs, as the file says it."""
    if hasattr(schedule, "cron"):
        return str(schedule.cron)
    assert isinstance(schedule.interval, timedelta)
    return schedule.interval.total_seconds()


def test_the_file_names_what_is_served() -> None:
    """With the same schedules, and flows that can be found wherever the package is installed."""
    said = {
        each["name"]: (
            load_flow_from_entrypoint(each["entrypoint"]).name,
            [schedule.get("cron", schedule.get("interval")) for schedule in each.get("schedules", [])],
        )
        for each in yaml.safe_load(FILE.read_text())["deployments"]
    }
    served = {
        each.name: (each.flow_name, [in_words(one.schedule) for one in each.schedules or []]) for each in deployments()
    }
    assert said == served


def test_deploying_the_file_registers_the_block_types() -> None:
    """By a step that Prefect finds under the name that the file gives."""
    (step,) = yaml.safe_load(FILE.read_text())["build"]
    assert [import_object(name) for name in step] == [register_block_types]
