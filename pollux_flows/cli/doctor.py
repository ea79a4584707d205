"""pollux-flows doctor: whether all that a run needs is there."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Container
from typing import Final, Literal, NamedTuple
from uuid import UUID, uuid4

import prefect
from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from pollux_flows import __version__
from pollux_flows.address import shown
from pollux_flows.blocks import PolluxDeferredJob, PolluxProvider
from pollux_flows.blocks.registration import read_documents
from pollux_flows.cli.schedules import find_stuck, read_scheduled
from pollux_flows.cli.versions import find_conflicts, find_server_problem, installed
from pollux_flows.cli.words import NO_SERVER, say
from pollux_flows.errors import PolluxError
from pollux_flows.flows import collect
from pollux_flows.jobs.store import ResultStorage
from pollux_flows.state import leases
from pollux_flows.state.store import open_store
from pollux_flows.state.units import format_size

_SHORT_S: Final = 5.0


class _Finding(NamedTuple):
    what: str
    finding: str
    mark: Literal["ok", "?", "NO"] = "ok"
    """Fine, worth a look, or in the way of every run."""


def doctor() -> None:
    """Look whether all that a run needs is there: server, blocks, keys, state. Nothing is asked of a provider."""
    wrong = asyncio.run(_check_all())
    if wrong:
        raise SystemExit(f"{wrong} of these would stand in a run's way.")


async def _check_all() -> int:
    wrong = 0
    async for what, finding, mark in _find_all():
        say(f"{mark:4}{what}: {finding}")
        wrong += mark == "NO"
    return wrong


async def _find_all() -> AsyncIterator[_Finding]:
    versions = f"pollux_flows {__version__}, Prefect {prefect.__version__}, Python {platform.python_version()}"
    yield _Finding("Versions", versions)
    for problem in find_conflicts(installed()):
        yield _Finding("Versions", problem, "NO")
    yield await _state()
    url = PREFECT_API_URL.value()
    if not url:
        finding = (
            "none is set, so each program starts one of its own. For one that stays, run `prefect server start` and set"
        )
        yield _Finding("Server", f"{finding} PREFECT_API_URL.", "?")
        return
    try:
        async with get_client() as client:
            version = await client.api_version()
            yield _Finding("Server", f"{shown(url)}, Prefect {version}")
            if outdated := find_server_problem(version):
                yield _Finding("Server", outdated, "?")
            yield _Finding("Results", (await ResultStorage.open()).where)
            async for found in _providers(client):
                yield found
            stuck = await find_stuck(client, await read_scheduled(client))
            for problem in stuck.values():
                yield _Finding("Schedule", problem, "?")
            yield await _jobs(client, stuck)
    except NO_SERVER as error:
        yield _Finding("Server", f"{shown(url)} does not answer ({error}). Start it, or correct PREFECT_API_URL.", "NO")


async def _state() -> _Finding:
    """Check that answers can be saved."""
    try:
        store = open_store()
        if (claim := await leases.acquire_lease(store, f"asking/{uuid4().hex}", "doctor", _SHORT_S)) is not None:
            await claim.release()
        size = await store.size()
    except PolluxError as error:
        return _Finding("State", str(error), "NO")
    return _Finding("State", store.where if size is None else f"{store.where}, {format_size(size)}")


async def _providers(client: PrefectClient) -> AsyncIterator[_Finding]:
    documents = await read_documents(client, PolluxProvider)
    if not documents:
        yield _Finding("Providers", "none yet. Save one in the UI under Blocks, or with pollux-flows apply.", "?")
    for document in documents:
        name = str(document.name)
        try:
            config = await (await PolluxProvider.named(name)).config()
            how = "simulated" if config.use_mock else "with a key" if config.key() else "without a key"
        except PolluxError as error:  # which may be well where its flows run
            yield _Finding(f"Provider {name}", str(error), "?")
            continue
        yield _Finding(f"Provider {name}", f"{config.provider} {config.model}, {how}")


async def _jobs(client: PrefectClient, stuck: Container[UUID]) -> _Finding:
    """Check that deferred jobs are collected; `stuck` are the deployments whose scheduled runs do not start."""
    documents = await read_documents(client, PolluxDeferredJob)
    waiting = sum(document.data.get("state") != "collected" for document in documents)
    collectors = await read_scheduled(client, collect.name)
    under_way = f"{waiting:,} under way" if documents else "none yet"
    if any(each.id not in stuck for each in collectors):
        return _Finding("Deferred jobs", f"{under_way}, collect is on a schedule.")
    problem = "the scheduled runs of collect do not start" if collectors else "collect is not on a schedule"
    if not waiting:
        return _Finding("Deferred jobs", f"{under_way}, {problem}.")
    finding = f"{under_way}, but {problem}: run pollux-flows serve, or deploy collect on a schedule."
    return _Finding("Deferred jobs", finding, "?")
