"""Run store: a flow run records, as an input of the run, which state its answers are in.

A retry may start on another worker. If that worker does not share the state of the earlier attempt, the retry would
silently pay for all answers again, so it is refused.
"""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.logging.loggers import get_run_logger

from pollux_flows.errors import ConfigurationError
from pollux_flows.jobs.connection import open_client, suppress_status
from pollux_flows.scope import Lineage
from pollux_flows.state.home import VARIABLE
from pollux_flows.state.identity import digest
from pollux_flows.state.journal import Journal
from pollux_flows.state.store import STATE_URL, Store, open_store

INPUT: Final = "pollux-state"
ASK_ANEW: Final = "POLLUX_ASK_ANEW"

_REMEMBERED: Final = 10_000
# Records that this process has made; only those of other processes are read from the server.
_recorded: Final[dict[UUID, str]] = {}


async def confirm_store(here: Lineage) -> None:
    """Record the current store on the outermost flow run. Refuses if an earlier attempt has used another store."""
    store, run_id, attempt = open_store(), here.outermost.id, here.chain[0][1]
    own = await store_id(store)
    record = f"{own} {attempt}"
    if _recorded.get(run_id) == record:
        return
    header = f"run/{digest('run', str(run_id))}"
    was_asked = await store.get(header) is not None
    await Journal(store, str(run_id)).begin()
    async with open_client() as client:
        while (found := await _record(client, run_id, record)) != record:
            earlier, _, its_attempt = found.partition(" ")
            if its_attempt == attempt:
                get_run_logger().warning(
                    "Another worker has answered calls of this run, and saves its answers in a different state from "
                    "this one (%s). Let all workers share one state: %s=redis://….",
                    store.where,
                    STATE_URL,
                )
                return
            is_gone = earlier == own and not was_asked
            if (earlier != own or is_gone) and not os.environ.get(ASK_ANEW, "").strip():
                if not was_asked:
                    await store.delete(header)  # otherwise the next retry would find it
                raise _refusal(store, is_gone=is_gone)
            with suppress_status(httpx.codes.NOT_FOUND):
                await client.delete_flow_run_input(run_id, INPUT)
    while len(_recorded) >= _REMEMBERED:
        del _recorded[next(iter(_recorded))]
    _recorded[run_id] = record


async def store_id(store: Store) -> str:
    """Return the id of a store, which changes when the store loses its data."""
    if (record := await store.get("store/id")) is None:
        await store.add("store/id", {"id": uuid4().hex[:12]})
        record = await store.get("store/id") or {}
    return str(record.get("id"))


async def _record(client: PrefectClient, run_id: UUID, record: str) -> str:
    """Record a store and an attempt on the run unless there is a record already, and return the record.

    A label would be simpler, but a server on SQLite refuses to change labels while task runs are being recorded.
    """
    with suppress_status(httpx.codes.CONFLICT):
        await client.create_flow_run_input(run_id, INPUT, record)
        return record
    with suppress_status(httpx.codes.NOT_FOUND):  # deleted in between, by another process of the same attempt
        return await client.read_flow_run_input(run_id, INPUT)
    return await _record(client, run_id, record)


def _refusal(store: Store, *, is_gone: bool) -> ConfigurationError:
    reason = (
        f"The record of the run is gone from the state in {store.where}: it was pruned, or the state was lost."
        if is_gone
        else f"They are not in the state of this worker ({store.where}), which is a different one or has lost its data."
    )
    return ConfigurationError(
        f"An earlier attempt of this run has paid for answers that this attempt would pay for again. {reason}",
        hint=f"Let all workers share one state, with {STATE_URL}=redis://… or with {VARIABLE} on a shared disk, and "
        f"retry where the answers are; or set {ASK_ANEW}=1 on the worker to ask all prompts again.",
    )
