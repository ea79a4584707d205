"""Tests of `pollux-flows doctor` on a Prefect server: stuck schedules, conflicting versions, a new server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import DeploymentStatus
from prefect.deployments.steps.core import run_steps
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from pollux_flows.blocks import PolluxProvider
from pollux_flows.blocks.registration import aregister_block_types, register_block_types
from pollux_flows.cli.schedules import find_stuck, read_scheduled
from pollux_flows.cli.versions import find_conflicts, find_installed, find_server_problem
from pollux_flows.flows import asweep, collect
from pollux_flows.result import SweepReport
from tests.prefect.jobs import jobs_home, no_jobs_are_left
from tests.prefect.test_cli import Command, pollux

__all__ = ["jobs_home", "no_jobs_are_left", "pollux"]


async def deploy_collect(*, paused: bool) -> UUID:
    deployment = await collect.ato_deployment("collect", interval=timedelta(days=1), paused=paused)
    return UUID(str(await deployment.aapply()))


@pytest.fixture
async def schedule() -> AsyncIterator[UUID]:
    """Return the id of a deployment of `collect` on a schedule, which no process serves."""
    deployment_id = await deploy_collect(paused=False)
    yield deployment_id
    async with get_client() as client:
        await client.delete_deployment(deployment_id)


async def run_doctor(pollux: Command) -> list[str]:
    return (await anyio.to_thread.run_sync(partial(pollux, "doctor"))).splitlines()


# --- Schedules ------------------------------------------------------------------------------------------------------


async def test_doctor_reports_scheduled_runs_that_do_not_start(schedule: UUID, pollux: Command) -> None:
    assert "ok  Deferred jobs: none yet, collect is on a schedule." in await run_doctor(pollux)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    async with get_client() as client:
        for _ in range(2):
            await client.create_flow_run_from_deployment(schedule, state=Scheduled(scheduled_time=an_hour_ago))
    lines = await run_doctor(pollux)
    assert (
        f"?   Schedule: collect: 2 runs have not started, due since {an_hour_ago.astimezone():%Y-%m-%d %H:%M}. "
        "No process serves it: start pollux-flows serve, or a worker of its work pool."
    ) in lines
    assert "ok  Deferred jobs: none yet, the scheduled runs of collect do not start." in lines


async def test_a_run_that_is_about_to_start_is_not_overdue(schedule: UUID) -> None:
    async with get_client() as client:
        await client.create_flow_run_from_deployment(schedule)
        assert await find_stuck(client, await read_scheduled(client)) == {}


async def test_a_schedule_without_planned_runs_is_reported() -> None:
    """A server whose scheduler fails plans no runs. In this test none are planned because the deployment is paused."""
    deployment_id = await deploy_collect(paused=True)
    async with get_client() as client:
        assert await read_scheduled(client) == []
        paused = await client.read_deployment(deployment_id)
        unplanned = paused.model_copy(
            update={"schedules": [each.model_copy(update={"active": True}) for each in paused.schedules]}
        )
        assert await find_stuck(client, [unplanned]) == {}  # the scheduler may plan them soon
        later = datetime.now(UTC) + timedelta(minutes=5)
        (problem,) = (await find_stuck(client, [unplanned], later)).values()
        await client.delete_deployment(deployment_id)
    assert problem.startswith("collect: the Prefect server has planned no run of it.")


# --- The next step --------------------------------------------------------------------------------------------------


async def test_the_last_line_names_the_next_step(schedule: UUID, pollux: Command) -> None:
    """The next step concerns the first thing that is missing, or else shows how to try a run."""
    async with get_client() as client:
        for document in await client.read_block_documents_by_type("pollux-provider"):
            await client.delete_block_document(document.id)
    assert (await run_doctor(pollux))[-1] == "Next: pollux-flows serve"  # collect is deployed, and no process serves it
    async with get_client() as client:
        deployment = await client.read_deployment(schedule)
        served = deployment.model_copy(update={"status": DeploymentStatus.READY})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pollux_flows.cli.doctor.read_scheduled", partial(_return_value, [served]))
        assert (await run_doctor(pollux))[-1] == "Next: pollux-flows init"
        patch.delenv("OPENAI_API_KEY", raising=False)
        await PolluxProvider(provider="openai", model="m").asave("first")
        assert (await run_doctor(pollux))[-1].startswith(
            "Next: make PolluxProvider 'first' usable. Save the key in the block, or set OPENAI_API_KEY"
        )
        await PolluxProvider(provider="openai", model="m", use_mock=True).asave("second")
        assert (await run_doctor(pollux))[-1] == 'Ready. Try it: pollux-flows run "Why is the sky blue?" -p second'


async def _return_value(value: Any, *_arguments: Any) -> Any:
    return value


# --- Versions -------------------------------------------------------------------------------------------------------


def test_the_versions_installed_here_work_together() -> None:
    assert find_installed().keys() == {"prefect", "sqlalchemy", "fastapi"}
    assert find_conflicts(find_installed()) == []


@pytest.mark.parametrize(
    ("versions", "problem"),
    [
        ({"prefect": "3.8.8", "sqlalchemy": "2.1.9", "fastapi": "0.150.0"}, "never starts a scheduled run"),
        ({"prefect": "3.8.8", "sqlalchemy": "2.0.44", "fastapi": "0.151.0"}, "does not start"),
        ({"prefect": "3.8.8", "sqlalchemy": "2.0.44", "fastapi": "0.150.0"}, None),
        ({"prefect": "3.9.1", "sqlalchemy": "2.1.9", "fastapi": "0.150.0"}, None),
        ({"prefect": "3.9.2+7.gabcdef", "sqlalchemy": "2.1.9"}, None),
        ({"prefect": "unknown", "sqlalchemy": "2.1.9"}, None),
    ],
)
def test_conflicting_versions_are_found(versions: dict[str, str], problem: str | None) -> None:
    found = find_conflicts(versions)
    assert len(found) == (problem is not None)
    assert (problem or "") in "".join(found)


def test_a_server_of_an_earlier_prefect_is_a_problem() -> None:
    assert find_server_problem("3.9.1") is None
    assert "Prefect 3.8.8 never starts a scheduled run" in str(find_server_problem("3.8.8"))


def test_doctor_names_conflicting_versions(pollux: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pollux_flows.cli.doctor.find_installed", lambda: {"prefect": "3.8.8", "sqlalchemy": "2.1.9"})
    printed = pollux("doctor")
    assert printed.startswith("refused: 2 ")
    assert (
        "NO  Versions: prefect 3.8.8 with sqlalchemy 2.1.9: a server of these never starts a scheduled run." in printed
    )


# --- A server without our block types -------------------------------------------------------------------------------


@pytest.fixture
async def new_server() -> AsyncIterator[None]:
    async with get_client() as client:
        for slug in ("pollux-budget", "pollux-cache", "pollux-provider", "pollux-deferred-job"):
            try:
                await client.delete_block_type((await client.read_block_type_by_slug(slug)).id)
            except ObjectNotFound:
                continue
    yield
    await aregister_block_types()


async def read_block_types() -> set[str]:
    async with get_client() as client:
        return {each.slug for each in await client.read_block_types() if each.slug.startswith("pollux-")}


@pytest.mark.usefixtures("new_server")
async def test_commands_on_a_new_server_find_nothing_and_register_nothing(pollux: Command) -> None:
    lines = await run_doctor(pollux)
    assert "?   Providers: none yet. Save one in the UI under Blocks, or with pollux-flows apply." in lines
    assert "ok  Deferred jobs: none yet, collect is not on a schedule." in lines
    for command in ("jobs", "collect"):
        assert await anyio.to_thread.run_sync(partial(pollux, command)) == "No job is under way.\n"
    assert await asweep() == SweepReport()
    assert await read_block_types() == set()


@pytest.mark.usefixtures("new_server")
@pytest.mark.parametrize("way", ["serve", "deploy"])
async def test_serving_and_deploying_register_the_block_types(
    way: str, pollux: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "serve":
        monkeypatch.setattr("prefect.serve", lambda *_deployments, **_options: None)
        await anyio.to_thread.run_sync(partial(pollux, "serve"))
    else:
        step: dict[str, Any] = {f"{register_block_types.__module__}.{register_block_types.__name__}": {}}
        await run_steps([step])
    assert await read_block_types() == {"pollux-budget", "pollux-cache", "pollux-provider", "pollux-deferred-job"}
