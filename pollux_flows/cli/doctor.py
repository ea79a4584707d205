"""pollux-flows doctor: whether all that a run needs is there."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import prefect
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_API_URL

from pollux_flows import __version__
from pollux_flows.address import shown
from pollux_flows.blocks import PolluxDeferredJob, PolluxProvider
from pollux_flows.cli.words import NO_SERVER, say
from pollux_flows.errors import PolluxError
from pollux_flows.jobs.shelf import ResultShelf
from pollux_flows.state import claims
from pollux_flows.state.measures import in_words
from pollux_flows.state.store import open_store

_SHORT_S: Final = 5.0


class _Found(NamedTuple):
    what: str
    told: str
    mark: Literal["ok", "?", "NO"] = "ok"
    """Fine, worth a look, or in the way of every run."""


def doctor() -> None:
    """Look whether all that a run needs is there: server, blocks, keys, state. Nothing is asked of a provider."""
    wrong = asyncio.run(_looked())
    if wrong:
        raise SystemExit(f"{wrong} of these would stand in a run's way.")


async def _looked() -> int:
    wrong = 0
    async for what, told, mark in _all():
        say(f"{mark:4}{what}: {told}")
        wrong += mark == "NO"
    return wrong


async def _all() -> AsyncIterator[_Found]:
    versions = f"pollux_flows {__version__}, Prefect {prefect.__version__}, Python {platform.python_version()}"
    yield _Found("Versions", versions)
    yield await _state()
    url = PREFECT_API_URL.value()
    if not url:
        told = (
            "none is set, so each program starts one of its own. For one that stays, run `prefect server start` and set"
        )
        yield _Found("Server", f"{told} PREFECT_API_URL.", "?")
        return
    try:
        async with get_client() as client:
            yield _Found("Server", f"{shown(url)}, Prefect {await client.api_version()}")
            yield _Found("Results", (await ResultShelf.open()).where)
            async for found in _providers(client):
                yield found
            yield await _jobs(client)
    except NO_SERVER as error:
        yield _Found("Server", f"{shown(url)} does not answer ({error}). Start it, or correct PREFECT_API_URL.", "NO")


async def _state() -> _Found:
    """Whether answers can be written down."""
    try:
        store = open_store()
        if (claim := await claims.claim(store, f"asking/{uuid4().hex}", "doctor", _SHORT_S)) is not None:
            await claim.release()
        size = await store.size()
    except PolluxError as error:
        return _Found("State", str(error), "NO")
    return _Found("State", store.where if size is None else f"{store.where}, {in_words(size)}")


async def _providers(client: PrefectClient) -> AsyncIterator[_Found]:
    documents = await client.read_block_documents_by_type(PolluxProvider.get_block_type_slug())
    if not documents:
        yield _Found("Providers", "none is saved. Save one in the UI under Blocks, or with pollux-flows apply.", "?")
    for document in documents:
        name = str(document.name)
        try:
            config = await (await PolluxProvider.named(name)).config()
            how = "simulated" if config.use_mock else "with a key" if config.key() else "without a key"
        except PolluxError as error:  # which may be well where its flows run
            yield _Found(f"Provider {name}", str(error), "?")
            continue
        yield _Found(f"Provider {name}", f"{config.provider} {config.model}, {how}")


async def _jobs(client: PrefectClient) -> _Found:
    """Whether somebody collects what is under way."""
    documents = await client.read_block_documents_by_type(PolluxDeferredJob.get_block_type_slug())
    waiting = sum(document.data.get("state") != "collected" for document in documents)
    deployed = await client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["collect"])))
    scheduled = any(each.active for deployment in deployed for each in deployment.schedules)
    if waiting and not scheduled:
        told = (
            f"{waiting} under way, and nobody collects them: deploy collect on a schedule, or run pollux-flows serve."
        )
        return _Found("Deferred jobs", told, "?")
    return _Found("Deferred jobs", f"{waiting} under way, collect is {'' if scheduled else 'not '}on a schedule.")
