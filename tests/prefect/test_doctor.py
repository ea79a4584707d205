"""doctor on a Prefect server: schedules that do not fire, a server that is old, a server that is new."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.deployments.steps.core import run_steps
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from pollux_flows.blocks.registration import aregister_block_types, register_block_types
from pollux_flows.cli.schedules import find_stuck, read_scheduled
from pollux_flows.flows import asweep, collect
from pollux_flows.result import SweepReport
from tests.prefect.jobs import jobs_home, no_jobs_are_left
from tests.prefect.test_cli import Command, pollux

__all__ = ["jobs_home", "no_jobs_are_left", "pollux"]


async def deployed(*, paused: bool) -> UUID:
    deployment = await collect.ato_deployment("collect", interval=timedelta(days=1), paused=paused)
    return UUID(str(await deployment.aapply()))


@pytest.fixture
async def schedule() -> AsyncIterator[UUID]:
    """The id of a deployment of `collect` on a schedule, which no process serves."""
    deployment_id = await deployed(paused=False)
    yield deployment_id
    async with get_client() as client:
        await client.delete_deployment(deployment_id)


async def doctor(pollux: Command) -> list[str]:
    return (await anyio.to_thread.run_sync(partial(pollux, "doctor"))).splitlines()


# --- Schedules ------------------------------------------------------------------------------------------------------


async def test_a_schedule_whose_runs_do_not_start(schedule: UUID, pollux: Command) -> None:
    assert "ok  Deferred jobs: none yet, collect is on a schedule." in await doctor(pollux)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    async with get_client() as client:
        for _ in range(2):
            await client.create_flow_run_from_deployment(schedule, state=Scheduled(scheduled_time=an_hour_ago))
    told = await doctor(pollux)
    assert (
        f"?   Schedule: collect: 2 runs have not started, due since {an_hour_ago.astimezone():%Y-%m-%d %H:%M}. "
        "No process serves it: start pollux-flows serve, or a worker of its work pool."
    ) in told
    assert "ok  Deferred jobs: none yet, the scheduled runs of collect do not start." in told


async def test_a_run_that_is_about_to_start_is_not_overdue(schedule: UUID) -> None:
    async with get_client() as client:
        await client.create_flow_run_from_deployment(schedule)
        assert await find_stuck(client, await read_scheduled(client)) == {}


async def test_a_paused_deployment_is_not_on_a_schedule() -> None:
    deployment_id = await deployed(paused=True)
    async with get_client() as client:
        assert await read_scheduled(client) == []
        await client.delete_deployment(deployment_id)


async def test_a_server_of_an_earlier_prefect(pollux: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    async def version(_: PrefectClient) -> str:
        return "3.8.8"

    monkeypatch.setattr(PrefectClient, "api_version", version)
    assert any("Prefect 3.8.8 never starts a scheduled run" in line for line in await doctor(pollux))


# --- A server that has never heard of our block types ---------------------------------------------------------------


@pytest.fixture
async def new_server() -> AsyncIterator[None]:
    async with get_client() as client:
        for slug in ("pollux-cache", "pollux-provider", "pollux-deferred-job"):
            try:
                await client.delete_block_type((await client.read_block_type_by_slug(slug)).id)
            except ObjectNotFound:
                continue
    yield
    await aregister_block_types()


async def registered() -> set[str]:
    async with get_client() as client:
        return {each.slug for each in await client.read_block_types() if each.slug.startswith("pollux-")}


@pytest.mark.usefixtures("new_server")
async def test_nothing_is_there_yet(pollux: Command) -> None:
    told = await doctor(pollux)
    assert "?   Providers: none yet. Save one in the UI under Blocks, or with pollux-flows apply." in told
    assert "ok  Deferred jobs: none yet, collect is not on a schedule." in told
    for command in ("jobs", "collect"):
        assert await anyio.to_thread.run_sync(partial(pollux, command)) == "No job is under way.\n"
    assert await asweep() == SweepReport()
    assert await registered() == set()


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
    assert await registered() == {"pollux-cache", "pollux-provider", "pollux-deferred-job"}
